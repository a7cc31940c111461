//! A search that is wanted, and what of a decision to stay says when the next one is.

use crate::admission::{Reason, Trigger};
use crate::drift::Change;
use adaptis_proto::Step;

/// What another plan has to gain in the mean for a change to be looked at again soon, as a share of the iteration.
const UNSURE_GAIN_MIN: f64 = 0.03;

/// A search that is to come.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) trigger: Trigger,
    pub(super) change: Option<Change>,
    /// First complete iteration after which it may start.
    pub(super) from: Step,
    /// Looks at the same change before, which left it open whether another plan gains.
    pub(super) looks: u8,
}

/// Why a plan stays, as far as it says when to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Staying {
    /// Only the open promise stands against another one.
    PromiseOpen,
    /// Another one gains in the mean, and it is not sure.
    Unsure,
    /// Anything else.
    Settled,
}

impl Staying {
    pub(super) fn because(reason: &Reason, predicted_before_ns: u64, predicted_after_ns: u64) -> Self {
        let is_better = predicted_after_ns as f64 <= (1.0 - UNSURE_GAIN_MIN) * predicted_before_ns as f64;
        match reason {
            Reason::PromiseOpen { .. } => Staying::PromiseOpen,
            Reason::GainBelowModelError { .. } if is_better => Staying::Unsure,
            _ => Staying::Settled,
        }
    }
}
