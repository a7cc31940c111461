//! `recompute`: a stage recomputes layers of its own, listed once each in ascending order.

use crate::plan::Plan;

/// A wrong list of layers to recompute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A layer of another stage.
    #[error("stage {stage} recomputes layer {layer}, but holds the layers [{from}, {to})")]
    Outside {
        /// Index of the stage.
        stage: usize,
        /// The layer.
        layer: u32,
        /// The stage's first layer.
        from: u32,
        /// The layer behind its last.
        to: u32,
    },
    /// A layer twice, or a smaller one behind a larger one.
    #[error("stage {stage} recomputes layer {before} and then {layer}: list each once, in ascending order")]
    Unordered {
        /// Index of the stage.
        stage: usize,
        /// A layer.
        before: u32,
        /// The next one in the list.
        layer: u32,
    },
}

pub(super) fn check(plan: &Plan) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        let [from, to] = stage.layers;
        if let Some(layer) = stage.recompute.iter().copied().find(|layer| !(from..to).contains(layer)) {
            faults.push(Fault::Outside { stage: index, layer, from, to });
        }
        if let Some(pair) = stage.recompute.windows(2).find(|pair| pair[0] >= pair[1]) {
            faults.push(Fault::Unordered { stage: index, before: pair[0], layer: pair[1] });
        }
    }
    faults
}
