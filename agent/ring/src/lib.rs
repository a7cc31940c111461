//! The recorder and its shared-memory ring, linked into the training process.
//!
//! ```text
//!   training process                 file under /dev/shm                      agent
//!   Recorder::record  -- store -->  [header | slot 0 .. slot n-1]  -- load -->  Reader::read
//!        head, dropped, step, closed ^                          ^ tail          Reader::commit
//! ```
//!
//! 1. A record is visible only when it is whole: its six words are stored before the head that covers them.
//! 2. A slot is written again only after the reader committed past it. A full ring drops the new record and counts it.
//! 3. Records are numbered from 0 in the ring's life, without gaps; what is dropped takes no number.
//! 4. Recording makes no system call, takes no lock, allocates nothing and never waits.
//! 5. A ring is put where nothing lies, or the ring of a writer that is gone; never over another file or a living writer's
//!    ring.
//! 6. Head and tail outlive both processes: a restarted reader goes on at the tail, a killed writer leaves no half record.
//!
//! Left out on purpose: a second writer or reader; growth; an attached recorder that continues a ring (a restarted
//! process makes its own, under a new incarnation); protection from someone who truncates the file while it is mapped.

mod error;
mod layout;
mod mapping;
mod protocol;
mod reader;
mod recorder;
mod seat;

pub use error::RingError;
pub use layout::{CAPACITY_RECORDS_DEFAULT, CAPACITY_RECORDS_MAX, DEVICE_BYTES_MAX, VERSION, ring_bytes};
pub use reader::Reader;
pub use recorder::Recorder;

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of all samples, common to the processes of a host.
///
/// # Panics
/// Never on Linux, where this clock exists and is not negative.
#[inline]
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec for the duration of the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    assert_eq!(status, 0, "CLOCK_MONOTONIC can be read");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
