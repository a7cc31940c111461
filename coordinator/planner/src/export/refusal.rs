//! What a target cannot express, by the field of the plan or the problem that it fails on, and what to do about it.

use crate::simulate::CannotSimulate;
use adaptis_plan::Finding;

/// Another tool that runs a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `torch.distributed.pipelining`.
    Torch,
    /// torchtitan.
    Torchtitan,
    /// Megatron-LM.
    Megatron,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Target::Torch => "torch.distributed.pipelining",
            Target::Torchtitan => "torchtitan",
            Target::Megatron => "Megatron-LM",
        })
    }
}

/// Why there is no export.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A plan that breaks a rule is handed to nobody: some tools would train on it, and wrongly.
    #[error("the plan is not valid for this problem ({rule}: {first}); `adaptis audit` names every finding", rule = first.rule())]
    Invalid {
        /// What the audit found first.
        first: Finding,
    },
    /// More than the simulator holds, which must say whether the plan fits as the target runs it.
    #[error(transparent)]
    Simulation(#[from] CannotSimulate),
    /// A rank without a stage.
    #[error(
        "plan.stages: none is on {device}, and every rank of {target} holds at least one; take {device} out of the problem's devices and plan again"
    )]
    Idle {
        /// Who needs one.
        target: Target,
        /// Who has none.
        device: String,
    },
    /// A pipeline of one rank, which the target does not know.
    #[error("problem.devices: {target} has no pipeline of one rank; run the model there without one")]
    OneDevice {
        /// Who has none.
        target: Target,
    },
    /// Devices hold different numbers of stages.
    #[error(
        "plan.stages: {few} holds {fewer} of them and {many} {more}, and {target} wants equally many on every rank; plan with --schedule 1f1b or i1f1b"
    )]
    Uneven {
        /// Who wants it.
        target: Target,
        /// A device with the fewest.
        few: String,
        /// How many.
        fewer: usize,
        /// A device with the most.
        many: String,
        /// How many.
        more: usize,
    },
    /// A stage lies elsewhere than the target would put it.
    #[error(
        "plan.stages[{stage}].device is {device}, and {target} would run the stage on {expected}; plan with --schedule {}",
        match target { Target::Torchtitan => "1f1b, i1f1b or zb-v", _ => "1f1b or i1f1b" }
    )]
    Placement {
        /// Who would.
        target: Target,
        /// Which stage.
        stage: usize,
        /// Where it lies.
        device: String,
        /// Where the target would put it.
        expected: String,
    },
    /// A layer's name is no module that torchtitan can keep or drop.
    #[error(
        "problem.layers[{layer}].name `{name}`: torchtitan splits a model by its modules, written `tok_embeddings` or `layers.7`; name the layers as the model names its modules"
    )]
    ModuleName {
        /// Index of the layer.
        layer: usize,
        /// Its name.
        name: String,
    },
    /// torchtitan recomputes every transformer layer or none.
    #[error(
        "plan.stages[{stage}].recompute: `{name}` is {} recomputed, and torchtitan recomputes either every one of `layers.*` or none; plan with --schedule 1f1b, which recomputes all or nothing",
        if *is_recomputed { "" } else { "not" }
    )]
    RecomputeSome {
        /// Its stage.
        stage: usize,
        /// A layer that breaks the rule.
        name: String,
        /// Whether it is recomputed.
        is_recomputed: bool,
    },
    /// No letter of Megatron-LM's layout stands for a layer.
    #[error(
        "problem.layers[{layer}].signature `{signature}`: no part of it is a type that a Megatron-LM layout has a letter for: {known}"
    )]
    LayerType {
        /// Index of the layer.
        layer: usize,
        /// Its signature.
        signature: String,
        /// The types that have one.
        known: &'static str,
    },
    /// The layout's rules on which layer comes where.
    #[error("problem.layers[{layer}] `{name}`: {rule}")]
    LayerOrder {
        /// Index of the layer.
        layer: usize,
        /// Its name.
        name: String,
        /// What Megatron-LM demands.
        rule: &'static str,
    },
    /// A stage begins where Megatron-LM cannot cut.
    #[error("plan.stages[{stage}].layers: the stage begins with `{name}`, {rule}")]
    Cut {
        /// The stage.
        stage: usize,
        /// Its first layer.
        name: String,
        /// What Megatron-LM demands.
        rule: &'static str,
    },
    /// No flag of Megatron-LM recomputes just these layers.
    #[error("plan.stages[{stage}].recompute: {because}; plan with --schedule 1f1b, which recomputes all or nothing")]
    RecomputeSet {
        /// The stage.
        stage: usize,
        /// Why not.
        because: NoFlag,
    },
    /// Interleaving wants whole groups of microbatches.
    #[error(
        "problem.microbatches is {microbatches}, and Megatron-LM interleaves only multiples of its {ranks} ranks; plan with --schedule 1f1b"
    )]
    Microbatches {
        /// How many.
        microbatches: u32,
        /// Of the pipeline.
        ranks: usize,
    },
    /// As the target would run it, the memory does not suffice.
    #[error(
        "problem.devices: {target} runs {order} and recomputes transformer layers alone, and so {device} needs {needed_bytes} bytes and has {available_bytes}; {}",
        advice(needed_bytes.saturating_sub(*available_bytes), *available_bytes)
    )]
    Memory {
        /// Who runs it so.
        target: Target,
        /// The order.
        order: &'static str,
        /// Who lacks memory.
        device: String,
        /// Run so.
        needed_bytes: u64,
        /// Its memory.
        available_bytes: u64,
    },
}

/// What to do about memory that does not suffice. A plan of the same kind that leaves a large part of a device empty is
/// hardly to be had.
fn advice(short_bytes: u64, available_bytes: u64) -> String {
    match short_bytes > available_bytes / 2 {
        true => {
            "plan with --schedule 1f1b, which has fewest microbatches in flight, with smaller ones, or on more devices"
                .to_owned()
        }
        false => format!("take {short_bytes} off its memory_bytes and plan again"),
    }
}

/// Why no recompute flag of Megatron-LM fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFlag {
    /// Part of a transformer layer.
    #[error("`{name}` is recomputed without the rest of its transformer layer")]
    Part {
        /// The layer.
        name: String,
    },
    /// Not the first ones of the stage.
    #[error("`{name}` is recomputed and one before it is not; Megatron-LM recomputes the first layers of a stage")]
    Prefix {
        /// The layer.
        name: String,
    },
    /// Other stages recompute more.
    #[error(
        "{found} of its {layers} transformer layers are recomputed and {most} elsewhere, and the flag counts the same for every stage"
    )]
    Count {
        /// Here.
        found: usize,
        /// Transformer layers here.
        layers: usize,
        /// In another stage.
        most: usize,
    },
}
