//! The independent checker of plans.

use crate::plan::Plan;
use crate::problem::Problem;

/// A rule that a plan breaks.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {}

/// Every rule that `plan` breaks on `problem`; none if it is valid.
pub fn audit(_problem: &Problem, _plan: &Plan) -> Vec<Finding> {
    Vec::new()
}
