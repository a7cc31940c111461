//! From candidates to the plans that a search returns: nothing recomputed for nothing, B where it may be, audited.

use super::judge::{Candidate, Judge};
use super::portfolio::Pool;
use super::{Options, Outcome, Rung, RungKind, order};
use crate::moves;
use crate::shape::predicted;
use crate::simulate::simulate;
use adaptis_plan::{Plan, Problem, audit};
use adaptis_proto::Epoch;

/// Sets of layers of a stage whose recomputation is tried to be left out.
const IDLE_RECOMPUTE_TRIES: usize = 17;
/// Instructions replayed for that.
const IDLE_RECOMPUTE_INSTRUCTIONS: u64 = 3_000_000;

/// A candidate that recomputes only what its memory or time asks for: what was recomputed on the way to a better plan
/// may be of no use to it.
fn without_idle_recompute(judge: &mut Judge, candidate: &Candidate) -> Candidate {
    let mut lean = candidate.clone();
    let instructions_max = judge.instructions + IDLE_RECOMPUTE_INSTRUCTIONS;
    for stage in 0..candidate.shape.stages.len() {
        let recomputed: Vec<usize> =
            candidate.shape.stages[stage].range().filter(|&layer| candidate.shape.recompute[layer]).collect();
        let tries = std::iter::once(recomputed.as_slice()).chain(recomputed.chunks(1)).take(IDLE_RECOMPUTE_TRIES);
        for layers in tries.filter(|layers| !layers.is_empty()) {
            let mut shape = lean.shape.clone();
            layers.iter().for_each(|&layer| shape.recompute[layer] = false);
            if shape == lean.shape || judge.instructions > instructions_max {
                continue;
            }
            let tried = judge.given(&shape, lean.programs.clone(), lean.genes);
            if let Some(tried) = tried.filter(|tried| tried.value <= lean.value) {
                lean = tried;
            }
        }
    }
    lean
}

/// A plan near the running one that is so little worse than the best is preferred to it.
const NEAR_ENOUGH: f64 = 0.03;

/// A candidate and its plan, which passed the audit.
struct Finished {
    plan: Plan,
    value: f64,
    /// Without the toll.
    free_value: f64,
}

/// The best members as plans that passed the audit.
pub(super) fn conclude(
    problem: &Problem,
    judge: &mut Judge,
    pool: &Pool,
    from: Option<&Plan>,
    options: &Options,
) -> Outcome {
    let parent = from.map_or(Epoch(0), |plan| plan.epoch);
    let mut finished = |candidate: &Candidate, only_order: bool| {
        let lean = match only_order {
            true => candidate.clone(),
            false => without_idle_recompute(judge, candidate),
        };
        let joined = order::fused(judge, &lean);
        [joined.as_ref(), Some(&lean), Some(candidate)].into_iter().flatten().find_map(|candidate| {
            let mut plan = candidate.shape.plan(problem, &candidate.programs, options.epoch, parent);
            let timeline = simulate(problem, &plan).ok()?;
            plan.predicted = Some(predicted(&timeline, judge.bound_ns));
            let passes = timeline.fits && audit(problem, &plan).is_empty();
            let toll = if judge.is_free { 0.0 } else { judge.toll(&candidate.shape) };
            passes.then_some(Finished { plan, value: candidate.value, free_value: candidate.value - toll })
        })
    };
    let best = pool.members.iter().find_map(|member| finished(member, false));
    let best = best.expect("candidates keep every rule of the audit by construction");
    let mut held: Vec<(RungKind, Finished)> = vec![(RungKind::Full, best)];
    for kind in RungKind::ALL {
        let candidate = pool.rungs[kind as usize].as_ref();
        held.extend(candidate.and_then(|candidate| finished(candidate, kind == RungKind::Order)).map(|of| (kind, of)));
    }
    // A cheaper kind's plan is one of the dearer kinds, too, and may have become the better one in being finished.
    let worth = |kind: RungKind, of: &Finished| if kind == RungKind::Anew { of.free_value } else { of.value };
    let least = |kind: RungKind| {
        let allowed = held.iter().filter(|(other, _)| kind.allows(*other)).map(|(_, finished)| finished);
        allowed.min_by(|a, b| worth(kind, a).total_cmp(&worth(kind, b)))
    };
    let rung = |kind: RungKind, from: &Plan| {
        let finished = least(kind)?;
        let (plan, value) = (&finished.plan, worth(kind, finished));
        let moved = moves::moves(problem, from, plan);
        Some(Rung {
            kind,
            plan: plan.clone(),
            iteration_ns: plan.predicted.as_ref().map_or(u64::MAX, |predicted| predicted.iteration_ns),
            value_ns: value.ceil() as u64,
            moved_layers: moved.layers,
            unavoidable_layers: moved.unavoidable_layers,
            moved_bytes: moved.bytes,
        })
    };
    let rungs = from.map(|from| RungKind::ALL.into_iter().filter_map(|kind| rung(kind, from)).collect());
    let [full, anew] = [RungKind::Full, RungKind::Anew].map(|kind| least(kind).expect("the best member is held"));
    let is_far_better = anew.free_value < full.free_value * (1.0 - NEAR_ENOUGH);
    let plan = if is_far_better { &anew.plan } else { &full.plan }.clone();
    Outcome { plan, rungs: rungs.unwrap_or_default(), evaluations: judge.evaluations, lower_bound_ns: judge.bound_ns }
}
