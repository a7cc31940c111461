//! What the planner did with a problem, and what of it was wrong.

use crate::generate::{Dice, LAYERS_ALL_PLACEMENTS};
use crate::oracle::{Fit, exhaustive, sampled};
use adaptis_plan::{Plan, Problem, audit, iteration_ns, peak_bytes};
use adaptis_planner::bounds::lower_bound_ns;
use adaptis_planner::schedule::{Name, even, named};
use adaptis_planner::search::{Control, Infeasible, Options, search};
use adaptis_planner::simulate::simulate;

/// A search may be this much slower than the best named schedule that fits.
const WORSE_MAX: f64 = 1.001;

/// Evaluations of a search with the bytes that a refusal asked for, and with a fiftieth more: to the byte, only the one
/// placement that the refusal knew would fit.
const GRANTED_EVALUATIONS: u64 = 3_000;
const GRANTED_SLACK: u64 = 50;

/// What came of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A plan.
    Planned,
    /// A refusal, proved right.
    Refused,
    /// A refusal that nothing speaks against, on a problem with too many placements to look at all.
    RefusedUnproved,
}

/// Plans, checks everything, and says what was wrong: one sentence each.
pub fn judge(problem: &Problem, evaluations: u64, dice: &mut Dice) -> (End, Vec<String>) {
    let mut wrong = Vec::new();
    let bound_ns = lower_bound_ns(problem);
    let mut best: Option<(u64, String)> = None;
    let baselines = Name::ALL.into_iter().filter_map(|name| Some((name.to_string(), named(problem, name).ok()?)));
    let even = Some(("even".to_owned(), even(problem))).filter(|(_, plan)| audit(problem, plan).is_empty());
    for (name, plan) in baselines.chain(even) {
        if let Some(time_ns) = checked(problem, &plan, bound_ns, &name, &mut wrong)
            && best.as_ref().is_none_or(|(best_ns, _)| time_ns < *best_ns)
        {
            best = Some((time_ns, name));
        }
    }
    let options = Options { evaluations: Some(evaluations), ..Options::default() };
    let end = match search(problem, None, &options, &mut |_| Control::Go) {
        Ok(outcome) => {
            let time_ns = checked(problem, &outcome.plan, bound_ns, "search", &mut wrong);
            if let (Some(time_ns), Some((best_ns, name))) = (time_ns, best)
                && time_ns as f64 > best_ns as f64 * WORSE_MAX
            {
                let ratio = time_ns as f64 / best_ns as f64;
                wrong.push(format!("worse: {time_ns} ns, and {name} takes {best_ns} ns ({ratio:.4})"));
            }
            End::Planned
        }
        Err(error) => refused(problem, &error, best.map(|(_, name)| name), dice, &mut wrong),
    };
    (end, wrong)
}

/// Its time, if it is valid and everybody agrees on it.
fn checked(problem: &Problem, plan: &Plan, bound_ns: u64, name: &str, wrong: &mut Vec<String>) -> Option<u64> {
    let findings = audit(problem, plan);
    if let Some(finding) = findings.first() {
        wrong.push(format!("invalid: {name}: {}: {finding}", finding.rule()));
        return None;
    }
    let (Ok(time_ns), Ok(peaks)) = (iteration_ns(problem, plan), peak_bytes(problem, plan)) else {
        wrong.push(format!("invalid: {name}: no time or peak by the audit"));
        return None;
    };
    match simulate(problem, plan) {
        Ok(timeline) if timeline.iteration_ns == time_ns && timeline.peak_bytes == peaks && timeline.fits => {}
        Ok(timeline) => {
            wrong.push(format!("disagreement: {name}: {} ns simulated, {time_ns} ns", timeline.iteration_ns))
        }
        Err(error) => wrong.push(format!("disagreement: {name}: {error}")),
    }
    match &plan.predicted {
        Some(predicted) if predicted.iteration_ns == time_ns && predicted.peak_bytes == peaks => {}
        _ => wrong.push(format!("claim: {name}: predicted is not what the audit finds, {time_ns} ns")),
    }
    if bound_ns > time_ns {
        wrong.push(format!("bound: {name} takes {time_ns} ns, under the bound of {bound_ns} ns"));
    }
    Some(time_ns)
}

fn refused(
    problem: &Problem,
    error: &Infeasible,
    named: Option<String>,
    dice: &mut Dice,
    wrong: &mut Vec<String>,
) -> End {
    if let Some(name) = named {
        wrong.push(format!("refusal: {name} fits, and yet: {error}"));
        return End::RefusedUnproved;
    }
    let fit = match problem.layers.len() <= LAYERS_ALL_PLACEMENTS {
        true => exhaustive(problem),
        false => sampled(problem, dice),
    };
    if fit == Fit::Possible {
        wrong.push(format!("refusal: some plan fits, and yet: {error}"));
    }
    if let Infeasible::Memory { short, is_proved } = error {
        let mut granted = problem.clone();
        for short in short {
            let device = problem.device_index(&short.device).map(|device| &mut granted.devices[device]);
            let Some(device) = device.filter(|device| device.memory_bytes == short.available_bytes) else {
                wrong.push(format!("figures: {error}"));
                continue;
            };
            if short.needed_bytes.checked_sub(short.available_bytes) != Some(short.short_bytes)
                || short.short_bytes == 0
            {
                wrong.push(format!("figures: {error}"));
            }
            device.memory_bytes = short.needed_bytes + short.needed_bytes / GRANTED_SLACK;
        }
        // With what it asks for, it must find a plan; what a device reserves for nothing may hide what others lack.
        let options = Options { evaluations: Some(GRANTED_EVALUATIONS), ..Options::default() };
        if !short.iter().any(|short| short.is_idle)
            && let Err(still) = search(&granted, None, &options, &mut |_| Control::Go)
        {
            wrong.push(format!("promise: {error}; with that: {still}"));
        }
        if *is_proved && fit == Fit::Possible {
            wrong.push(format!("proof: some plan fits, and yet: {error}"));
        }
    }
    match fit {
        Fit::Impossible => End::Refused,
        _ => End::RefusedUnproved,
    }
}
