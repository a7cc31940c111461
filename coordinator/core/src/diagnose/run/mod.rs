//! Our own recordings: when a device or link became slower, what that cost, and what would win it back.
//!
//! ```text
//!   samples, once    -> estimate, drift          -> changes        (watch)
//!   samples, again   -> works of each iteration  -> replayed as recorded, and without each change   (works)
//!                                                -> findings, and another plan from the last estimate
//! ```
//!
//! 1. What is slow is what drift says: a change of a device or link against itself, with its first iteration.
//! 2. An iteration is replayed on the plan that it ran on; works that were not sampled take what others of their layer and
//!    phase took in it; so do those that show the host and not their device.
//! 3. Samples may come twice: the store is read twice, so that no more than some iterations are in memory at a time.
//!
//! Left out on purpose: runs of which a device left or joined, but for their last membership.

mod watch;
mod works;

pub use watch::Watch;
pub use works::{Fixed, Works};

use super::findings::median_differences;
use super::{BetterPlan, Diagnosis, Doubt, FORMAT, Finding, Kind, Options, Phase, Place, Refusal, doubt, interval};
use crate::drift::Who;
use crate::estimate::Estimated;
use adaptis_plan::Plan;
use adaptis_planner::moves::moves;
use adaptis_planner::search::{Control, search};
use adaptis_proto::Step;

/// Evaluations of the search for another plan.
const EVALUATIONS: u64 = 2_000;
/// Draws of uncertain costs.
const DRAWS: u64 = 32;
/// Least gain, as a share of the iteration, that is worth another plan.
const GAIN_MIN: f64 = 0.01;
/// Least share of the lost time that is told.
const SHARE_MIN: f64 = 0.05;
/// Iterations of a plan that are cold, and not judged by.
const COLD: usize = 3;
/// Share of works that show the host from which on iterations take longer than their works.
const HASTY_MIN: f64 = 0.02;

/// A device or link that became slower.
#[derive(Clone, Debug, PartialEq)]
pub struct Slowdown {
    /// Which.
    pub who: Who,
    /// First iteration that it shows in.
    pub from: Step,
    /// First iteration in which it is over.
    pub until: Option<Step>,
    /// By iteration since: its times over those before.
    pub factors: Vec<f64>,
}

impl Slowdown {
    /// In the middle.
    pub fn factor(&self) -> f64 {
        interval::ln_median(&self.factors).map_or(1.0, |(ln, _)| ln.exp())
    }

    /// Whether an iteration shows it.
    pub fn is_at(&self, step: Step) -> bool {
        step >= self.from && self.until.is_none_or(|until| step < until)
    }
}

/// What the first reading of a run gives.
#[derive(Clone, Debug)]
pub struct Watched {
    /// In order of their first iterations.
    pub slowdowns: Vec<Slowdown>,
    /// As it is at the end; none if there were too few samples.
    pub estimated: Option<Estimated>,
    /// Names of the devices.
    pub devices: Vec<String>,
}

/// Puts both readings together.
///
/// # Errors
/// No iteration could be replayed.
pub fn conclude(watched: &Watched, works: Works, last: &Plan, options: &Options) -> Result<Diagnosis, Refusal> {
    let replayed = works.finish();
    if replayed.measured_ns.is_empty() {
        return Err(Refusal::Nothing { operation: "work of a whole iteration" });
    }
    let lost_ns: f64 = total(&replayed.simulated_ns, &replayed.even_ns);
    let name = |index: usize| watched.devices.get(index).cloned();
    let mut findings = Vec::new();
    let replays = replayed.without_ns.iter().zip(&replayed.alone_ns);
    for (slowdown, (without_ns, alone_ns)) in watched.slowdowns.iter().zip(replays) {
        let Some(factor) = interval::of_median(&slowdown.factors, options.seed) else { continue };
        // Two equal culprits hide each other where either is gone, and not where either is alone.
        let [last, alone] = [(&replayed.simulated_ns, without_ns), (alone_ns, &replayed.even_ns)]
            .map(|(more, less)| total(more, less).max(0.0));
        let share = (last.midpoint(alone) / lost_ns.max(1.0)).clamp(0.0, 1.0);
        if share < SHARE_MIN {
            continue;
        }
        let since = Place { iteration: Some(slowdown.from.0), ..Place::default() };
        let (kind, place) = match slowdown.who {
            Who::Device(device) => (Kind::Worker, Place { device: name(device.index()), ..since }),
            Who::Link(from, to) => {
                (Kind::Link, Place { from_device: name(from.index()), to_device: name(to.index()), ..since })
            }
            Who::Layer(device, layer) => {
                let operation = Some(format!("layer {layer}"));
                (Kind::Operation, Place { device: name(device.index()), operation, ..since })
            }
        };
        let during: Vec<usize> = (0..replayed.steps.len()).filter(|&at| slowdown.is_at(replayed.steps[at])).collect();
        let of = |times: &[u64]| during.iter().map(|&at| times[at]).collect::<Vec<u64>>();
        let gain_ns = median_differences(&of(&replayed.simulated_ns), &of(without_ns));
        findings.push(Finding {
            kind,
            place,
            factor: factor.middle,
            factor_low: factor.low,
            factor_high: factor.high,
            lost_share: share,
            is_reliable: true,
            without_ns: (interval::median_ns(&of(&replayed.measured_ns)) as f64 - gain_ns).max(0.0).round() as u64,
        });
    }
    let shares = findings.iter().map(|finding| finding.lost_share).sum::<f64>().max(1.0);
    findings.iter_mut().for_each(|finding| finding.lost_share /= shares);
    findings.sort_by(|a, b| b.lost_share.total_cmp(&a.lost_share));
    let latest: Vec<u64> = replayed.of_epoch(last.epoch);
    let better_plan = watched.estimated.as_ref().and_then(|estimated| another_plan(estimated, last, &latest, options));
    let is_held_up = replayed.hasty > HASTY_MIN;
    let mut doubts: Vec<Doubt> = doubt::few(replayed.steps.len()).into_iter().collect();
    if is_held_up {
        doubts.push(Doubt::HeldUp { works: replayed.hasty });
    }
    let unexplained = unexplained(&replayed, is_held_up);
    let mut diagnosis = Diagnosis {
        format: FORMAT,
        iterations: replayed.measured_ns.len(),
        measured_median_ns: interval::median_ns(&replayed.measured_ns),
        simulated_median_ns: interval::median_ns(&replayed.simulated_ns),
        even_ns: interval::median_ns(&replayed.even_ns),
        phases: phases(&replayed).iter().map(|of| phase(&replayed, of)).collect(),
        simulated_ns: replayed.simulated_ns,
        measured_ns: replayed.measured_ns,
        findings,
        better_plan,
        is_reliable: true,
        doubts,
        set_aside: Vec::new(),
    };
    if let Some(unexplained) = unexplained {
        diagnosis.unexplain(unexplained);
    }
    Ok(diagnosis)
}

/// Places of the iterations of each plan, in the order in which they ran.
fn phases(replayed: &works::Replayed) -> Vec<std::ops::Range<usize>> {
    let mut phases: Vec<std::ops::Range<usize>> = Vec::new();
    for at in 0..replayed.epochs.len() {
        match phases.last_mut() {
            Some(last) if replayed.epochs[last.start] == replayed.epochs[at] => last.end = at + 1,
            _ => phases.push(at..at + 1),
        }
    }
    phases
}

/// Those that are not cold; all where there are no others.
fn warm(of: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    if of.len() > COLD { of.start + COLD..of.end } else { of.clone() }
}

fn phase(replayed: &works::Replayed, of: &std::ops::Range<usize>) -> Phase {
    let warm = warm(of);
    Phase {
        from: replayed.steps[of.start].0,
        to: replayed.steps[of.end - 1].0,
        epoch: replayed.epochs[of.start].0,
        measured_median_ns: interval::median_ns(&replayed.measured_ns[warm.clone()]),
        simulated_median_ns: interval::median_ns(&replayed.simulated_ns[warm]),
    }
}

/// What the replay is off by under the plan where it is farthest off, if that is too much. Iterations in which the host was
/// held up take longer than their works whatever the model; so there the middle alone counts.
fn unexplained(replayed: &works::Replayed, is_held_up: bool) -> Option<Doubt> {
    let of = |places: Vec<usize>| {
        let times = |of: &[u64]| places.iter().map(|&at| of[at]).collect::<Vec<u64>>();
        doubt::fit(&times(&replayed.simulated_ns), &times(&replayed.measured_ns))
    };
    let warm: Vec<std::ops::Range<usize>> = phases(replayed).iter().map(warm).collect();
    let fits = warm.iter().filter(|of| of.len() >= interval::SPREAD_ITERATIONS_MIN);
    let fits: Vec<(f64, f64)> = fits.filter_map(|range| of(range.clone().collect())).collect();
    let (all_error, within) = of(warm.into_iter().flatten().collect())?;
    // Where every plan ran for a few iterations, they are judged together.
    let error = fits.into_iter().map(|(error, _)| error).max_by(f64::total_cmp).unwrap_or(all_error);
    let is_off = error > doubt::OFF_MAX || !is_held_up && within < doubt::WITHIN_MIN;
    is_off.then_some(Doubt::Unexplained { error, within })
}

fn total(more: &[u64], less: &[u64]) -> f64 {
    more.iter().zip(less).map(|(&more, &less)| more as f64 - less as f64).sum()
}

/// A plan for the costs at the end of the run, against the one in force then, on the same draws.
fn another_plan(estimated: &Estimated, last: &Plan, latest_ns: &[u64], options: &Options) -> Option<BetterPlan> {
    let search_options = adaptis_planner::search::Options {
        seed: options.seed,
        evaluations: Some(EVALUATIONS),
        epoch: last.epoch.next(),
        ..Default::default()
    };
    let outcome = search(&estimated.problem, Some(last), &search_options, &mut |_| Control::Go).ok()?;
    let median_of = |plan: &Plan| Some(estimated.iterations(plan)?.median_ns().max(1) as f64);
    let ratio = median_of(&outcome.plan)? / median_of(last)?;
    if ratio > 1.0 - GAIN_MIN || latest_ns.is_empty() {
        return None;
    }
    let simulated = |problem: &adaptis_plan::Problem, plan: &Plan| {
        let timeline = adaptis_planner::simulate::simulate(problem, plan).ok()?;
        Some(timeline.iteration_ns.max(1) as f64)
    };
    let exact = simulated(&estimated.problem, &outcome.plan)? / simulated(&estimated.problem, last)?;
    let measured_ns = interval::median_ns(latest_ns) as f64;
    let one = |number: u64| {
        let problem = estimated.draw(options.seed, number);
        let drawn =
            simulated(&problem, &outcome.plan).zip(simulated(&problem, last)).map(|(after, before)| after / before);
        drawn.map_or(f64::NAN, |drawn| measured_ns * ratio * drawn / exact)
    };
    let interval = interval::around(measured_ns * ratio, (0..DRAWS).map(one).collect());
    let moved = moves(&estimated.problem, last, &outcome.plan).layers;
    let change = match moved {
        0 => "run the same layers in another order".to_owned(),
        1 => "move 1 layer to another device".to_owned(),
        _ => format!("move {moved} layers to other devices"),
    };
    Some(super::remedy::better(interval, interval::median_ns(latest_ns), change))
}
