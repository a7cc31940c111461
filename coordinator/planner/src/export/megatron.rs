//! Megatron-LM: the arguments that give its layout and recomputation.
//!
//! `--pipeline-model-parallel-layout` lists the stages, `E` embedding, `t` transformer layer, `m` multi-token
//! prediction, `L` head and loss; stage s lies on rank s modulo the number of ranks. Which letter a layer has is read
//! from its signature; an attention layer and the MLP or MoE behind it make one `t`, and the final norm has none of its
//! own: it lies with the head, or with multi-token prediction with the last transformer layer.
//!
//! The order is Megatron-LM's own, 1F1B or interleaved, whatever the plan's: the plan is simulated in that order, which
//! must fit the memory, and a difference is told.

use super::refusal::{NoFlag, Refusal, Target};
use super::tool::{Export, File, Style, Warning, admit, rank_warning, ranks, recomputing_only, replayed};
use crate::costs::Costs;
use crate::program::unpack;
use crate::schedule::Name;
use crate::shape::{Shape, Tables};
use crate::simulate::simulate;
use adaptis_plan::{Plan, Problem};
use std::fmt::Write;

/// Types of layers as they stand in signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Embedding,
    /// A whole transformer layer.
    Transformer,
    /// The first half of one.
    Attention,
    /// The second half.
    FeedForward,
    Norm,
    Mtp,
    Head,
}

const KNOWN: &str =
    "embedding; transformer, block or decoder; attention with mlp or moe behind it; norm; mtp; head or loss";

const TYPES: [(&[&str], Kind); 7] = [
    (&["embedding", "embed"], Kind::Embedding),
    (&["transformer", "block", "decoder", "dec"], Kind::Transformer),
    (&["attention", "attn"], Kind::Attention),
    (&["mlp", "moe", "ffn"], Kind::FeedForward),
    (&["norm", "layernorm", "rmsnorm"], Kind::Norm),
    (&["mtp"], Kind::Mtp),
    (&["head", "lm_head", "output", "loss"], Kind::Head),
];

/// Writes the arguments, one per line.
///
/// # Errors
/// The plan is not valid, or its layers, placement, recomputation or memory are beyond what the arguments express.
pub fn write(problem: &Problem, plan: &Plan, name: &str) -> Result<Export, Refusal> {
    admit(Target::Megatron, problem, plan)?;
    let (_, ranks): (Style, _) = ranks(Target::Megatron, plan, false)?;
    let kinds = kinds(problem)?;
    let stages = stages(problem, plan, &kinds)?;
    multi_token(problem, plan, &kinds, ranks.len())?;
    let is_block = |layer: usize| matches!(kinds[layer], Kind::Transformer | Kind::Attention | Kind::FeedForward);
    let (theirs, not_recomputed) = recomputing_only(problem, plan, is_block);
    let flags = recompute(problem, &theirs, &stages)?;
    let mut warnings: Vec<Warning> = rank_warning(plan, &ranks).into_iter().collect();
    warnings.extend(not_recomputed);
    warnings.extend(own_order(problem, plan, theirs, ranks.len())?);
    let layout: Vec<String> = stages.iter().map(|units| letters(units)).collect();
    let count = |kind| stages.iter().flatten().filter(|unit| unit.kind == kind).count();
    let mut out = String::new();
    let _ = writeln!(out, "--num-layers {}", count(Kind::Transformer));
    let _ = writeln!(out, "--pipeline-model-parallel-size {}", ranks.len());
    let _ = writeln!(out, "--pipeline-model-parallel-layout \"{}\"", layout.join("|"));
    if count(Kind::Mtp) > 0 {
        let _ = writeln!(out, "--mtp-num-layers {}", count(Kind::Mtp));
    }
    out.push_str(&flags);
    Ok(Export { files: vec![File { name: name.to_owned(), text: out }], ranks, warnings })
}

/// A letter of the layout and the layers it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unit {
    kind: Kind,
    layers: Vec<usize>,
}

/// Each layer's type: the first part of its signature that is one.
fn kinds(problem: &Problem) -> Result<Vec<Kind>, Refusal> {
    let of = |part: &str| {
        let part = part.to_ascii_lowercase();
        TYPES.iter().find(|(names, _)| names.contains(&part.as_str())).map(|&(_, kind)| kind)
    };
    let layers = problem.layers.iter().enumerate().map(|(layer, of_layer)| {
        let signature = &of_layer.signature;
        let refusal = || Refusal::LayerType { layer, signature: signature.clone(), known: KNOWN };
        signature.split('/').find_map(of).ok_or_else(refusal)
    });
    let kinds = layers.collect::<Result<Vec<Kind>, Refusal>>()?;
    let misplaced = |layer: usize, rule| {
        let name = problem.layers[layer].name.clone();
        Err(Refusal::LayerOrder { layer, name, rule })
    };
    let last = kinds.len().saturating_sub(1);
    for (layer, &kind) in kinds.iter().enumerate() {
        let before = layer.checked_sub(1).map(|before| kinds[before]);
        match kind {
            Kind::Embedding if layer != 0 => return misplaced(layer, "only the first layer may be an embedding"),
            Kind::Head if layer != last => return misplaced(layer, "only the last layer may be the head"),
            Kind::FeedForward if before != Some(Kind::Attention) => {
                return misplaced(
                    layer,
                    "an MLP or MoE stands behind an attention layer: both make one transformer layer",
                );
            }
            Kind::Attention if kinds.get(layer + 1) != Some(&Kind::FeedForward) => {
                return misplaced(
                    layer,
                    "an MLP or MoE stands behind an attention layer: both make one transformer layer",
                );
            }
            Kind::Norm if !kinds[layer + 1..].iter().all(|kind| matches!(kind, Kind::Mtp | Kind::Head)) => {
                return misplaced(
                    layer,
                    "only the final norm, behind the transformer layers, may be a layer of its own",
                );
            }
            Kind::Transformer | Kind::Attention if kinds[..layer].contains(&Kind::Mtp) => {
                return misplaced(layer, "transformer layers stand before multi-token prediction");
            }
            _ if layer == 0 && kind != Kind::Embedding => {
                return misplaced(layer, "the first layer must be the embedding");
            }
            _ if layer == last && kind != Kind::Head => return misplaced(layer, "the last layer must be the head"),
            _ => {}
        }
    }
    Ok(kinds)
}

/// Each stage's letters.
fn stages(problem: &Problem, plan: &Plan, kinds: &[Kind]) -> Result<Vec<Vec<Unit>>, Refusal> {
    let has_mtp = kinds.contains(&Kind::Mtp);
    let mut stages = Vec::with_capacity(plan.stages.len());
    for (stage, of) in plan.stages.iter().enumerate() {
        let cut = |layer: usize, rule| Err(Refusal::Cut { stage, name: problem.layers[layer].name.clone(), rule });
        let mut units: Vec<Unit> = Vec::new();
        for layer in of.range() {
            let is_first = layer == of.range().start;
            match kinds[layer] {
                Kind::FeedForward if is_first => {
                    return cut(layer, "the second half of a transformer layer, which Megatron-LM does not cut");
                }
                Kind::FeedForward => units.last_mut().expect("its attention is in this stage").layers.push(layer),
                Kind::Attention => units.push(Unit { kind: Kind::Transformer, layers: vec![layer] }),
                // The norm has no letter; its stage must be the one that Megatron-LM gives it to.
                Kind::Norm if has_mtp && is_first => {
                    return cut(layer, "and Megatron-LM keeps the final norm with the last transformer layer");
                }
                Kind::Norm => {}
                Kind::Head if !has_mtp && is_first && kinds[layer - 1] == Kind::Norm => {
                    return cut(layer, "and Megatron-LM keeps the final norm with the head");
                }
                kind => units.push(Unit { kind, layers: vec![layer] }),
            }
        }
        stages.push(units);
    }
    Ok(stages)
}

/// Multi-token prediction: in one stage, the last of a rank that is not the first.
fn multi_token(problem: &Problem, plan: &Plan, kinds: &[Kind], ranks: usize) -> Result<(), Refusal> {
    let is_mtp = |layer: &usize| kinds[*layer] == Kind::Mtp;
    let holders: Vec<usize> =
        (0..plan.stages.len()).filter(|&stage| plan.stages[stage].range().any(|layer| is_mtp(&layer))).collect();
    let rule = match holders[..] {
        [] => return Ok(()),
        [stage] if stage + ranks < plan.stages.len() => {
            "and Megatron-LM runs multi-token prediction in the last stage of its rank"
        }
        [stage] if stage % ranks == 0 => "and Megatron-LM runs no multi-token prediction on the first rank",
        [_] => return Ok(()),
        _ => "and Megatron-LM keeps all of multi-token prediction in one stage",
    };
    let stage = *holders.last().expect("it is not empty");
    let layer = plan.stages[stage].range().find(is_mtp).expect("the stage holds one");
    Err(Refusal::Cut { stage, name: problem.layers[layer].name.clone(), rule })
}

/// `Ett`, with runs of four and more as `t*4`.
fn letters(units: &[Unit]) -> String {
    let letter = |kind| match kind {
        Kind::Embedding => 'E',
        Kind::Mtp => 'm',
        Kind::Head => 'L',
        _ => 't',
    };
    let mut out = String::new();
    for run in units.chunk_by(|a, b| a.kind == b.kind) {
        let letter = letter(run[0].kind);
        match run.len() {
            0..4 => out.extend(std::iter::repeat_n(letter, run.len())),
            more => {
                let _ = write!(out, "{letter}*{more}");
            }
        }
    }
    out
}

/// The recompute arguments, none if nothing is recomputed.
fn recompute(problem: &Problem, plan: &Plan, stages: &[Vec<Unit>]) -> Result<String, Refusal> {
    let name = |layer: usize| problem.layers[layer].name.clone();
    let mut counts = Vec::with_capacity(stages.len());
    for (stage, units) in stages.iter().enumerate() {
        let is_again = |layer: &usize| plan.stages[stage].recompute.contains(&(*layer as u32));
        let refuse = |because| Err(Refusal::RecomputeSet { stage, because });
        let blocks: Vec<&Unit> = units.iter().filter(|unit| unit.kind == Kind::Transformer).collect();
        for block in &blocks {
            let again: Vec<usize> = block.layers.iter().copied().filter(|layer| is_again(layer)).collect();
            if !again.is_empty() && again.len() < block.layers.len() {
                return refuse(NoFlag::Part { name: name(again[0]) });
            }
        }
        let is_whole = |block: &&Unit| block.layers.iter().all(is_again);
        let prefix = blocks.iter().take_while(|block| is_whole(block)).count();
        if let Some(block) = blocks[prefix..].iter().find(|block| is_whole(block)) {
            return refuse(NoFlag::Prefix { name: name(block.layers[0]) });
        }
        counts.push((prefix, blocks.len()));
    }
    let most = counts.iter().map(|&(found, _)| found).max().unwrap_or(0);
    if most == 0 {
        return Ok(String::new());
    }
    if let Some((stage, &(found, layers))) =
        counts.iter().enumerate().find(|(_, (found, layers))| *found != most.min(*layers))
    {
        return Err(Refusal::RecomputeSet { stage, because: NoFlag::Count { found, layers, most } });
    }
    let (method, layers) = match counts.iter().all(|(found, layers)| found == layers) {
        true => ("uniform", 1),
        false => ("block", most),
    };
    Ok(format!("--recompute-granularity full\n--recompute-method {method}\n--recompute-num-layers {layers}\n"))
}

/// Puts the plan into Megatron-LM's order, which must fit, and tells if it is not the plan's.
fn own_order(problem: &Problem, plan: &Plan, theirs: Plan, ranks: usize) -> Result<Option<Warning>, Refusal> {
    let own = match plan.stages.len() == ranks {
        true => Name::OneFOneB,
        false => Name::Interleaved,
    };
    if own == Name::Interleaved && !(problem.microbatches as usize).is_multiple_of(ranks) {
        return Err(Refusal::Microbatches { microbatches: problem.microbatches, ranks });
    }
    let plan_ns = simulate(problem, plan)?.iteration_ns;
    let tables = Tables::new(&Costs::new(problem), &Shape::of(plan));
    let programs = own.programs(&tables).expect("stages in a loop have both orders");
    let programs: Vec<Vec<_>> = programs.iter().map(|program| program.iter().map(|&op| unpack(op)).collect()).collect();
    let is_other = programs != plan.programs;
    let theirs = Plan { programs, ..theirs };
    let tool_ns = replayed(Target::Megatron, problem, &theirs, own.text())?.iteration_ns;
    Ok(is_other.then_some(Warning::OtherOrder { order: own.text(), plan_ns, tool_ns }))
}
