//! Which works are timed, so that timing stays within a budget and shows every pattern.
//!
//! An inspector with little time looks into one box of every hundred. If it were always the tenth, whoever packs would
//! soon know, and so would a machine that spoils every tenth by itself; so he draws, for every hundred anew, which one he
//! opens. No box is safe, none waits for longer than two hundred, and twice as much time means every fiftieth.
//!
//! The boxes are a layer's microbatches in one phase, numbered on through the iterations. A block is [`Governor::period`]
//! of them, and a hash of (block, layer, phase) draws the one that is timed.
//!
//! 1. The choice depends on (step, layer, microbatch, phase) and the period alone.
//! 2. At a fixed period every (layer, phase) is timed in any `2 x period` consecutive microbatches of it.
//! 3. After an iteration that cost more than the budget the period is at once as long as that cost asks for, and it is
//!    shortened by a quarter an iteration at most, so that one cheap iteration is not believed at once.
//! 4. The period stays where it is while the cost is between a half and the whole of the budget: noise moves nothing.
//!
//! Left out on purpose: the cost of asking (a few nanoseconds, less than timing it would cost), and fairness between
//! cheap and dear phases: an event costs the same around both.

use adaptis_proto::sample::Phase;
use adaptis_proto::{LayerIndex, Microbatch, Step};

/// What the governor is held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GovernorLimits {
    /// Share of an iteration that measuring may take.
    pub budget_share: f64,
    /// Iterations within which every (layer, phase) is timed whatever it costs; the share may be exceeded for that alone,
    /// and [`Governor::is_at_floor`] says so.
    pub iterations_max: u32,
}

impl Default for GovernorLimits {
    fn default() -> Self {
        Self { budget_share: 0.01, iterations_max: 64 }
    }
}

/// What an iteration cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// From boundary to boundary.
    pub iteration_ns: u64,
    /// Of it, what measuring took.
    pub cost_ns: u64,
    /// Works that were timed.
    pub timed: u64,
    /// Works that could have been.
    pub offered: u64,
    /// Microbatches of the iteration.
    pub microbatches: u32,
}

/// Chooses what is timed.
#[derive(Clone, Debug, PartialEq)]
pub struct Governor {
    limits: GovernorLimits,
    period: u64,
    microbatches: u32,
    is_at_floor: bool,
}

impl Governor {
    /// Times everything until it knows what that costs.
    ///
    /// # Panics
    /// If the budget is not a share, or no iteration is ever timed.
    pub fn new(limits: GovernorLimits) -> Self {
        assert!(limits.budget_share > 0.0 && limits.budget_share <= 1.0, "a budget is a share");
        assert!(limits.iterations_max > 0);
        Self { limits, period: 1, microbatches: 1, is_at_floor: false }
    }

    /// Whether a work is timed.
    #[inline]
    pub fn chooses(&self, step: Step, layer: LayerIndex, microbatch: Microbatch, phase: Phase) -> bool {
        if self.period == 1 {
            return true;
        }
        let number = step.0.wrapping_mul(u64::from(self.microbatches)).wrapping_add(u64::from(microbatch.0));
        let (block, place) = (number / self.period, number % self.period);
        let seed = u64::from(layer.0) << 8 | phase as u64;
        place == scaled(mixed(block ^ mixed(seed)), self.period)
    }

    /// One in so many works is timed.
    pub fn period(&self) -> u64 {
        self.period
    }

    /// The least that must be timed costs more than the budget.
    pub fn is_at_floor(&self) -> bool {
        self.is_at_floor
    }

    /// Learns at a boundary what the iteration before it cost.
    pub fn learn(&mut self, spent: &Spent) {
        self.microbatches = spent.microbatches.max(1);
        let longest = u64::from(self.microbatches) * u64::from(self.limits.iterations_max);
        self.period = self.period.min(longest);
        let budget_ns = spent.iteration_ns as f64 * self.limits.budget_share;
        // Without a sample nothing was learnt of what one costs.
        if spent.timed == 0 || spent.offered == 0 || budget_ns <= 0.0 {
            return;
        }
        let all_ns = spent.cost_ns as f64 / spent.timed as f64 * spent.offered as f64;
        let needed = (all_ns / budget_ns).ceil().max(1.0);
        let needed = if needed < longest as f64 { needed as u64 } else { longest };
        self.is_at_floor = needed == longest && all_ns / longest as f64 > budget_ns;
        if needed > self.period {
            self.period = needed;
        } else if needed * 2 <= self.period {
            self.period = needed.max(self.period - self.period.div_ceil(4));
        }
    }
}

/// A number whose bits all depend on all bits of another (the finaliser of SplitMix64, Steele 2014).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// A random number below a bound, as even as 64 bits allow.
fn scaled(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}
