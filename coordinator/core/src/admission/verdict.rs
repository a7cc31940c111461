//! What admission says: verdicts with their reasons in numbers, and their text.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A decision and the numbers behind it, predicted when it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What to do.
    pub verdict: Verdict,
    /// Iteration time of the plan in force, corrected; 0 if it could not be simulated.
    pub predicted_before_ns: u64,
    /// Of the candidate that was weighed last: the chosen one, or the best of the rejected.
    pub predicted_after_ns: u64,
    /// Lower quantile of the gain per iteration.
    pub gain_low_ns: i64,
    /// Expected pause of the switch.
    pub cost_ns: u64,
}

impl Decision {
    /// To keep the plan, before any number was known.
    pub fn keep(reason: Reason) -> Self {
        Self {
            verdict: Verdict::Keep(reason),
            predicted_before_ns: 0,
            predicted_after_ns: 0,
            gain_low_ns: 0,
            cost_ns: 0,
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// Switch to a candidate.
    Switch {
        /// Its index in the input.
        candidate: usize,
        /// Why.
        because: Because,
    },
    /// Stay.
    Keep(Reason),
}

/// Why a switch pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Because {
    /// The gain over the horizon is more than its cost.
    Pays {
        /// Lower quantile of the gain per iteration.
        gain_low_ns: i64,
        /// Iterations it is expected to last.
        horizon_iterations: u64,
        /// Expected pause.
        cost_ns: u64,
    },
    /// The same, of a plan made of estimates that have settled since.
    Refines {
        /// Lower quantile of the gain per iteration.
        gain_low_ns: i64,
        /// Iterations it is expected to last.
        horizon_iterations: u64,
        /// Expected pause.
        cost_ns: u64,
    },
}

/// Why a plan stays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reason {
    /// The search offered nothing.
    NoCandidate,
    /// Nothing it offered is faster than the plan in force.
    NoBetterPlan {
        /// Of the best candidate, corrected.
        predicted_after_ns: u64,
        /// Of the plan in force, corrected.
        predicted_before_ns: u64,
    },
    /// The gain is not clearly more than what the model may be wrong by.
    GainBelowModelError {
        /// Lower quantile of the gain per iteration.
        gain_low_ns: i64,
        /// What the model may be wrong by, per iteration.
        error_ns: u64,
    },
    /// The gain over the horizon is less than the switch costs.
    GainBelowCost {
        /// Lower quantile of the gain, over the horizon.
        gain_low_ns: i64,
        /// Expected pause.
        cost_ns: u64,
        /// Iterations the gain would last.
        horizon_iterations: u64,
    },
    /// An operator froze the plan.
    Frozen,
    /// There were enough switches of late.
    RateLimited {
        /// In the last hour.
        switches: u32,
        /// Allowed.
        limit: u32,
    },
    /// Every candidate that pays broke its promise before.
    InQuarantine {
        /// How many.
        candidates: usize,
        /// Iterations until the first may be tried again.
        remaining_iterations: u64,
    },
    /// The last switch has not been judged yet.
    PromiseOpen {
        /// Since the switch.
        iterations: u64,
    },
    /// The plan in force can't be simulated with these costs.
    Unpredictable,
}

/// What became of the last switch's promise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Judgement {
    /// There was none, or it is settled.
    NothingPromised,
    /// Not enough warm iterations yet.
    Waiting {
        /// So far.
        iterations: usize,
    },
    /// It pays.
    Kept {
        /// Measured over predicted.
        ratio: f64,
        /// Measured gain per iteration over the plan before.
        gain_ns: i64,
    },
    /// It does not: take the plan before back.
    Broken {
        /// Measured over predicted.
        ratio: f64,
        /// Measured loss per iteration against the plan before.
        loss_ns: i64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Reason::NoCandidate => f.write_str("the search offered no plan"),
            Reason::NoBetterPlan { predicted_after_ns, predicted_before_ns } => {
                let (after, before) = (Millis(predicted_after_ns as f64), Millis(predicted_before_ns as f64));
                write!(f, "the best other plan takes {after} an iteration, the one in force {before}")
            }
            Reason::GainBelowModelError { gain_low_ns, error_ns } => {
                let (gain, error) = (Millis(gain_low_ns as f64), Millis(error_ns as f64));
                write!(f, "the sure gain is {gain} an iteration, the model may be wrong by {error}")
            }
            Reason::GainBelowCost { gain_low_ns, cost_ns, horizon_iterations } => {
                let (gain, cost) = (Millis(gain_low_ns as f64), Millis(cost_ns as f64));
                write!(f, "the sure gain is {gain} over {horizon_iterations} iterations, the switch costs {cost}")
            }
            Reason::Frozen => f.write_str("an operator froze the plan"),
            Reason::RateLimited { switches, limit } => {
                write!(f, "{switches} switches in the last hour, {limit} are allowed")
            }
            Reason::InQuarantine { candidates, remaining_iterations } => {
                write!(
                    f,
                    "each of the {candidates} plans broke its promise before; the first may be tried again in \
                     {remaining_iterations} iterations"
                )
            }
            Reason::PromiseOpen { iterations } => {
                write!(f, "the last switch, {iterations} iterations ago, has not been judged yet")
            }
            Reason::Unpredictable => f.write_str("the plans can't be simulated with the estimated costs"),
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, gain_low_ns, horizon_iterations, cost_ns) = match *self {
            Because::Pays { gain_low_ns, horizon_iterations, cost_ns } => {
                ("it pays", gain_low_ns, horizon_iterations, cost_ns)
            }
            Because::Refines { gain_low_ns, horizon_iterations, cost_ns } => {
                ("settled estimates refine the last switch", gain_low_ns, horizon_iterations, cost_ns)
            }
        };
        let (gain, cost) = (Millis(gain_low_ns as f64), Millis(cost_ns as f64));
        write!(f, "{what}: at least {gain} an iteration over {horizon_iterations} iterations, for a pause of {cost}")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Switch { because, .. } => write!(f, "switch: {because}"),
            Verdict::Keep(reason) => write!(f, "keep: {reason}"),
        }
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Judgement::NothingPromised => f.write_str("nothing was promised"),
            Judgement::Waiting { iterations } => write!(f, "{iterations} warm iterations so far"),
            Judgement::Kept { ratio, gain_ns } => {
                let percent = 100.0 * (ratio - 1.0);
                if gain_ns <= 0 {
                    let lost = Millis(-gain_ns as f64);
                    return write!(f, "not broken, but nothing gained: {lost} lost, {percent:+.1}% off the prediction");
                }
                write!(f, "kept: {} gained an iteration, {percent:+.1}% off the prediction", Millis(gain_ns as f64))
            }
            Judgement::Broken { ratio, loss_ns } => {
                let percent = 100.0 * (ratio - 1.0);
                write!(f, "broken: {} lost an iteration, {percent:+.1}% off the prediction", Millis(loss_ns as f64))
            }
        }
    }
}

/// Nanoseconds, written as milliseconds.
struct Millis(f64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ms", self.0 / 1e6)
    }
}
