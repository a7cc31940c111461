//! torchtitan: a function that sets a `Trainer.Config`'s split, schedule and recomputation, and the schedule's CSV.
//!
//! Layer names are the model's module names. torchtitan decides by the name of a schedule class where stages lie:
//! `PipelineScheduleMulti` in a loop, `ZBVZeroBubble` in a V; the CSV then replaces that class's order. It recomputes
//! every one of `layers.*` or none.

use super::refusal::{Refusal, Target};
use super::tool::{
    Export, File, Style, Warning, admit, rank_warning, ranks, recomputing_only, replayed, runtime_warnings,
};
use super::torch::csv;
use adaptis_plan::{Plan, Problem};
use std::fmt::Write;

/// Writes the configuration, which names the schedule by `csv_name`, and the schedule.
///
/// # Errors
/// The plan is not valid, its placement is neither loop nor V, its layers are no modules, or it recomputes some of the
/// transformer layers.
pub fn write(problem: &Problem, plan: &Plan, name: &str, csv_name: &str) -> Result<Export, Refusal> {
    admit(Target::Torchtitan, problem, plan)?;
    let (style, ranks) = ranks(Target::Torchtitan, plan, true)?;
    modules(problem)?;
    let is_block = |layer: usize| problem.layers[layer].name.starts_with("layers.");
    let (theirs, not_recomputed) = recomputing_only(problem, plan, is_block);
    let is_recomputed = recompute(problem, &theirs, is_block)?;
    replayed(Target::Torchtitan, problem, &theirs, "the plan's order")?;
    let schedule = match style {
        Style::Loop => "PipelineScheduleMulti",
        Style::V => "ZBVZeroBubble",
    };
    let mut out = String::new();
    let _ = writeln!(out, "# Plan {} for torchtitan: call it on the Trainer.Config of a run.", plan.epoch);
    for (rank, &device) in ranks.iter().enumerate() {
        let _ = writeln!(out, "# Pipeline rank {rank} is {}.", comment(&plan.devices[device]));
    }
    if is_recomputed {
        out.push_str("from torchtitan.distributed.activation_checkpoint import FullAC\n");
    }
    out.push_str("\n\ndef apply(config):\n    parallelism = config.parallelism\n");
    let _ = writeln!(out, "    parallelism.pipeline_parallel_degree = {}", ranks.len());
    let _ = writeln!(out, "    parallelism.num_pp_microbatches = {}", problem.microbatches);
    let _ = writeln!(out, "    parallelism.pipeline_parallel_schedule = {}", quoted(schedule));
    out.push_str("    # A path from where training starts.\n");
    let _ = writeln!(out, "    parallelism.pipeline_parallel_schedule_csv = {}", quoted(csv_name));
    out.push_str("    # Older releases call it module_fqns_per_model_part.\n");
    out.push_str("    parallelism.pipeline_parallel_module_fqns_per_model_part = [\n");
    for stage in &plan.stages {
        let names: Vec<String> = stage.range().map(|layer| quoted(&problem.layers[layer].name)).collect();
        let _ = writeln!(out, "        [{}],", names.join(", "));
    }
    out.push_str("    ]\n");
    let policy = if is_recomputed { "FullAC.Config()" } else { "None" };
    let _ = writeln!(out, "    config.activation_checkpoint = {policy}");
    out.push_str("    return config\n");
    let mut warnings: Vec<Warning> = rank_warning(plan, &ranks).into_iter().chain(other_modules(problem)).collect();
    warnings.extend(not_recomputed);
    warnings.extend(runtime_warnings(&theirs));
    let schedule = File { name: csv_name.to_owned(), text: csv(plan, &ranks) };
    Ok(Export { files: vec![File { name: name.to_owned(), text: out }, schedule], ranks, warnings })
}

/// A string of Python; JSON's escapes are among Python's.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string serialises")
}

/// A text that stays within its line.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// torchtitan keeps or drops a model's children, and the children of its lists: no deeper.
fn modules(problem: &Problem) -> Result<(), Refusal> {
    let is_word = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_');
    for (layer, of) in problem.layers.iter().enumerate() {
        let parts: Vec<&str> = of.name.split('.').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_word(part)) {
            return Err(Refusal::ModuleName { layer, name: of.name.clone() });
        }
    }
    Ok(())
}

/// The layers that are named as no module of torchtitan's own models is.
fn other_modules(problem: &Problem) -> Option<Warning> {
    let is_known = |name: &str| {
        let is_layer = name.strip_prefix("layers.").is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()));
        is_layer || ["tok_embeddings", "norm", "output", "lm_head"].contains(&name)
    };
    let names: Vec<String> =
        problem.layers.iter().map(|layer| layer.name.clone()).filter(|name| !is_known(name)).collect();
    (!names.is_empty()).then_some(Warning::OtherModules { names })
}

/// Whether all transformer layers are recomputed; else none is.
fn recompute(problem: &Problem, plan: &Plan, is_block: impl Fn(usize) -> bool) -> Result<bool, Refusal> {
    let is_any = plan.stages.iter().any(|stage| !stage.recompute.is_empty());
    for (stage, of) in plan.stages.iter().enumerate() {
        let is_again = |layer: usize| of.recompute.contains(&(layer as u32));
        if let Some(layer) = of.range().find(|&layer| is_block(layer) && is_again(layer) != is_any) {
            let name = problem.layers[layer].name.clone();
            return Err(Refusal::RecomputeSome { stage, name, is_recomputed: is_again(layer) });
        }
    }
    Ok(is_any)
}
