//! The clock that devices are paced by.
//!
//! Samples and due times of all ranks of a host are instants of one clock, `CLOCK_MONOTONIC`. Waiting never spins: many
//! ranks share few cores.

use std::cell::Cell;

/// A clock that can be waited on.
pub trait Clock {
    /// Nanoseconds.
    fn now_ns(&self) -> u64;
    /// How long the calling thread has worked, waits and what others did meanwhile left out, in nanoseconds.
    fn busy_ns(&self) -> u64;
    /// Returns at `instant_ns` or a little later; at once if it is past.
    fn wait_until(&self, instant_ns: u64);
}

/// How long the kernel may delay a wake-up to batch it with others; its default is 50 us.
const TIMER_SLACK_NS: libc::c_ulong = 1_000;

/// `CLOCK_MONOTONIC`. Use it in the thread that made it: the timer slack belongs to a thread.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic(());

impl Monotonic {
    /// The clock, with sharp wake-ups for the calling thread.
    pub fn new() -> Monotonic {
        // SAFETY: PR_SET_TIMERSLACK takes one number and touches nothing but the calling thread's slack.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK_NS) };
        Monotonic(())
    }
}

impl Default for Monotonic {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for Monotonic {
    fn now_ns(&self) -> u64 {
        adaptis_ring::now_ns()
    }

    fn busy_ns(&self) -> u64 {
        let mut busy = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes only into `busy`; this clock is there since Linux 2.6.12, and without it nothing was
        // worked.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut busy) };
        (busy.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(busy.tv_nsec as u64)
    }

    fn wait_until(&self, instant_ns: u64) {
        let until = libc::timespec {
            tv_sec: (instant_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (instant_ns % 1_000_000_000) as libc::c_long,
        };
        loop {
            // SAFETY: `until` is a valid timespec for the duration of the call, and an absolute wait writes no rest.
            let status = unsafe {
                libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &until, std::ptr::null_mut())
            };
            if status != libc::EINTR {
                return;
            }
        }
    }
}

/// A clock that never waits: its time is the latest instant waited for. Under it, devices take exactly the time that
/// the emulation says, however fast the machine is.
#[derive(Debug, Default)]
pub struct Unpaced {
    now_ns: Cell<u64>,
}

impl Clock for Unpaced {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn busy_ns(&self) -> u64 {
        0
    }

    fn wait_until(&self, instant_ns: u64) {
        self.now_ns.set(self.now_ns.get().max(instant_ns));
    }
}
