//! `layers`: stages cover the model in order, each layer once.

use crate::plan::Plan;
use crate::problem::Problem;

/// How stages and layers do not match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The plan is for another model.
    #[error("the plan is for {plan} layers and the problem has {problem}")]
    Count {
        /// Layers of the plan.
        plan: u32,
        /// Layers of the problem.
        problem: usize,
    },
    /// A stage without a layer.
    #[error("stage {stage} has the layers [{from}, {to}), which are none: a stage holds at least one")]
    Empty {
        /// Index of the stage.
        stage: usize,
        /// Its first layer.
        from: u32,
        /// The layer behind its last.
        to: u32,
    },
    /// Layers between two stages.
    #[error("layers {from} to {last} are in no stage: stage {stage} must begin with layer {from}", last = to - 1)]
    Gap {
        /// The stage behind the gap.
        stage: usize,
        /// First layer of the gap.
        from: u32,
        /// The layer behind its last.
        to: u32,
    },
    /// Layers in two stages, or stages out of order.
    #[error("stage {stage} begins with layer {from}, which an earlier stage has passed: it must begin with {expected}")]
    Overlap {
        /// The later stage.
        stage: usize,
        /// Its first layer.
        from: u32,
        /// The layer behind the last one of the stages before.
        expected: u32,
    },
    /// Layers that the model does not have.
    #[error("stage {stage} ends before layer {to}, but the model has {layers} layers")]
    Beyond {
        /// Index of the stage.
        stage: usize,
        /// The layer behind its last.
        to: u32,
        /// Layers of the problem.
        layers: usize,
    },
    /// The last layers are missing.
    #[error(
        "layers {from} to {last} are in no stage: the last stage must end before layer {layers}",
        last = layers - 1
    )]
    Tail {
        /// First of them.
        from: u32,
        /// Layers of the problem.
        layers: usize,
    },
}

pub(super) fn check(problem: &Problem, plan: &Plan) -> Vec<Fault> {
    let mut faults = Vec::new();
    let layers = problem.layers.len();
    if plan.layers as usize != layers {
        faults.push(Fault::Count { plan: plan.layers, problem: layers });
    }
    let mut covered = 0;
    for (stage, [from, to]) in plan.stages.iter().map(|stage| stage.layers).enumerate() {
        if from >= to {
            faults.push(Fault::Empty { stage, from, to });
            continue;
        }
        if from > covered {
            faults.push(Fault::Gap { stage, from: covered, to: from });
        }
        if from < covered {
            faults.push(Fault::Overlap { stage, from, expected: covered });
        }
        if to as usize > layers {
            faults.push(Fault::Beyond { stage, to, layers });
        }
        covered = covered.max(to);
    }
    if (covered as usize) < layers {
        faults.push(Fault::Tail { from: covered, layers });
    }
    faults
}
