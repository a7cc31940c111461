//! The device's clock: holds real work to the time that the emulated device takes.
//!
//! ```text
//!   device clock   |start    |deadline 1   |deadline 2       free_at
//!   real work      [##...wait][####...wait ][###.... sent early, completed later
//! ```
//!
//! 1. An instruction starts at the later of the end of the one before and the arrival of its input.
//! 2. Its end is `start + round(sum of costs x slowdown) + fixed cost`, however the host schedules the real work, as
//!    long as the work is late by no more than [`SLACK_NS`]: it then catches up, as a GPU's stream absorbs the jitter of
//!    its launches.
//! 3. Work that is later than that moves the device's clock, and the whole overrun is counted. What is caught up is
//!    counted apart. Nothing is hidden.
//! 4. Every wait ends at the stop flag, too: what was waited for has not come then, and [`Pace::check`] says so.

use crate::Halt;
use crate::clock::Clock;
use adaptis_proto::message::Failure;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Lateness of the host that the device's clock absorbs: a few time slices of a busy machine, and less than what a
/// training process has queued on a GPU's stream.
pub const SLACK_NS: u64 = 20_000_000;

/// How often a wait looks at the stop flag.
const SLICE_NS: u64 = 100_000_000;

/// By how much, and how often, the host was too slow for the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// Sum of overruns.
    pub ns: u64,
    /// How many.
    pub count: u64,
    /// Sum of the largest lateness of each instruction that was caught up within [`SLACK_NS`].
    pub absorbed_ns: u64,
    /// Samples marked hasty.
    pub hasty: u64,
}

/// A device's clock.
#[derive(Debug)]
pub struct Pace<C> {
    clock: C,
    slowdown: f64,
    /// When the last instruction ended, and the next may start.
    free_at_ns: u64,
    /// Start of the instruction at work, moved by its overruns.
    origin_ns: u64,
    /// Costs of the instruction so far, before the slowdown.
    elapsed_ns: f64,
    /// Largest lateness of the instruction that was not an overrun.
    behind_ns: u64,
    late: Late,
    stop: Arc<AtomicBool>,
    /// How far ahead of this clock a peer's instant may lie.
    patience_ns: u64,
}

impl<C: Clock> Pace<C> {
    /// A free device; `stop` ends its waits.
    pub fn new(clock: C, slowdown: f64, stop: Arc<AtomicBool>) -> Pace<C> {
        let (free_at_ns, late, patience_ns) = (clock.now_ns(), Late::default(), u64::MAX);
        let (origin_ns, elapsed_ns, behind_ns) = (free_at_ns, 0.0, 0);
        Pace { clock, slowdown, free_at_ns, origin_ns, elapsed_ns, behind_ns, late, stop, patience_ns }
    }

    /// How long a peer is waited for from now on; without end at first.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
    }

    /// Whether work may go on.
    ///
    /// # Errors
    /// [`Halt::Asked`] at the stop flag.
    pub fn check(&self) -> Result<(), Halt> {
        if self.stop.load(Ordering::Relaxed) { Err(Halt::Asked) } else { Ok(()) }
    }

    /// Whether an instant that a peer named is one to wait for.
    ///
    /// # Errors
    /// It is further ahead than a peer is waited for; or the stop flag.
    pub fn check_instant(&self, instant_ns: u64) -> Result<(), Halt> {
        let ahead_ns = instant_ns.saturating_sub(self.clock.now_ns());
        if ahead_ns > self.patience_ns {
            let [ahead_s, patience_s] = [ahead_ns, self.patience_ns].map(|ns| ns as f64 / 1e9);
            return Err(Failure::Environment(format!(
                "a peer named an instant {ahead_s:.1} s ahead of this rank's clock, and nothing under this plan takes \
                 more than {patience_s:.1} s, slow links and devices included: emulated ranks must share one host, \
                 whose clock they compare"
            ))
            .into());
        }
        self.check()
    }

    /// Waits for an instant on the host's clock; returns early at the stop flag.
    pub fn wait_until(&self, instant_ns: u64) {
        while self.check().is_ok() {
            let now_ns = self.clock.now_ns();
            self.clock.wait_until(instant_ns.min(now_ns.saturating_add(SLICE_NS)));
            if instant_ns.saturating_sub(now_ns) <= SLICE_NS {
                return;
            }
        }
    }

    /// The host's clock.
    pub fn clock(&self) -> &C {
        &self.clock
    }

    /// Factor on all costs from now on.
    pub fn set_slowdown(&mut self, slowdown: f64) {
        self.slowdown = slowdown;
    }

    /// What some costs take on this device, rounded half up.
    pub fn slowed(&self, cost_ns: f64) -> u64 {
        (cost_ns * self.slowdown).round() as u64
    }

    /// When the device is free.
    pub fn free_at_ns(&self) -> u64 {
        self.free_at_ns
    }

    /// Overruns so far.
    pub fn late(&self) -> Late {
        self.late
    }

    /// Starts an instruction whose input is there at `due_ns`: waits for its start.
    pub fn begin(&mut self, due_ns: u64) {
        self.origin_ns = self.free_at_ns.max(due_ns);
        self.elapsed_ns = 0.0;
        self.behind_ns = 0;
        self.wait_until(self.origin_ns);
        self.absorb();
    }

    /// Adds a part of the instruction; returns when it is to end.
    pub fn add(&mut self, cost_ns: f64) -> u64 {
        self.elapsed_ns += cost_ns;
        self.absorb();
        self.deadline_ns()
    }

    /// Ends the instruction, without waiting: returns when its result exists on the device.
    pub fn end(&mut self, fixed_ns: u64) -> u64 {
        self.absorb();
        self.late.absorbed_ns += self.behind_ns;
        self.free_at_ns = self.deadline_ns().saturating_add(fixed_ns);
        self.free_at_ns
    }

    /// The device is free no earlier than this.
    pub fn rest_until(&mut self, instant_ns: u64) {
        self.free_at_ns = self.free_at_ns.max(instant_ns);
    }

    /// Waits until the device is free; returns the host's time then.
    pub fn wait_free(&mut self) -> u64 {
        self.wait_until(self.free_at_ns);
        self.clock.now_ns()
    }

    /// When the work so far is to end.
    pub fn deadline_ns(&self) -> u64 {
        self.origin_ns.saturating_add(self.slowed(self.elapsed_ns))
    }

    fn absorb(&mut self) {
        let overrun_ns = self.clock.now_ns().saturating_sub(self.deadline_ns());
        if overrun_ns > SLACK_NS {
            self.origin_ns += overrun_ns;
            self.late.ns += overrun_ns;
            self.late.count += 1;
        } else {
            self.behind_ns = self.behind_ns.max(overrun_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Unpaced;

    #[test]
    fn an_instruction_starts_after_its_input_and_takes_its_rounded_cost() {
        let mut pace = Pace::new(Unpaced::default(), 1.5, Arc::default());
        pace.begin(100);
        assert_eq!(pace.add(1.0), 102, "1.5 rounds up");
        assert_eq!(pace.add(1.0), 103, "the sum is rounded, not the parts");
        assert_eq!(pace.end(7), 110);
        pace.begin(50);
        assert_eq!(pace.add(10.0), 125, "it was not free before");
    }

    #[test]
    fn small_lateness_is_caught_up_and_large_lateness_moves_the_clock_and_is_counted() {
        let mut pace = Pace::new(Unpaced::default(), 1.0, Arc::default());
        pace.begin(0);
        pace.add(1e6);
        pace.clock().wait_until(1_000_000 + SLACK_NS);
        assert_eq!(pace.end(0), 1_000_000);
        let absorbed = Late { absorbed_ns: SLACK_NS, ..Late::default() };
        assert_eq!(pace.late(), absorbed);
        pace.clock().wait_until(SLACK_NS + 7_000_000);
        pace.begin(0);
        assert_eq!(pace.late(), Late { ns: SLACK_NS + 6_000_000, count: 1, ..absorbed });
        assert_eq!(pace.end(0), SLACK_NS + 7_000_000);
    }

    #[test]
    fn long_waits_end_where_they_should_and_at_the_stop_flag() {
        let mut pace = Pace::new(Unpaced::default(), 1.0, Arc::default());
        pace.wait_until(5 * SLICE_NS + 1);
        assert_eq!(pace.clock().now_ns(), 5 * SLICE_NS + 1);
        pace.stop.store(true, Ordering::Relaxed);
        pace.begin(u64::MAX);
        assert_eq!(pace.clock().now_ns(), 5 * SLICE_NS + 1);
        assert_eq!(pace.check(), Err(Halt::Asked));
    }

    #[test]
    fn an_instant_beyond_the_patience_is_a_failure() {
        let mut pace = Pace::new(Unpaced::default(), 1.0, Arc::default());
        assert_eq!(pace.check_instant(u64::MAX), Ok(()));
        pace.set_patience(Duration::from_secs(30));
        assert_eq!(pace.check_instant(30_000_000_000), Ok(()));
        assert!(matches!(pace.check_instant(30_000_000_001), Err(Halt::Failed(Failure::Environment(_)))));
    }
}
