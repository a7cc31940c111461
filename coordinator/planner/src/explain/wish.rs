//! What more of something would buy, by planning again with it.

use super::{Explanation, Options, Wait};
use crate::search::{self, Control, Progress, search};
use adaptis_plan::problem::DEVICES_MAX;
use adaptis_plan::{Device, Pair, Plan, Problem};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// What a device is given more.
const MORE_MEMORY_BYTES: u64 = 1 << 30;
/// Devices, and links, that are asked for one by one; those that press most.
const EACH_MAX: usize = 4;

/// More of something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "more")]
pub enum Wish {
    /// One more device of a kind that the problem has, as fast as its kind and with the memory of its last one.
    Device {
        /// The kind.
        kind: String,
    },
    /// One more GiB on each of some devices.
    Memory {
        /// The devices.
        devices: Vec<String>,
        /// What each is given.
        bytes: u64,
    },
    /// Twice the bytes per second, in both directions.
    Bandwidth {
        /// Pairs of devices.
        links: Vec<[String; 2]>,
    },
}

/// What a wish buys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The wish.
    #[serde(flatten)]
    pub wish: Wish,
    /// The iteration with it.
    pub iteration_ns: u64,
    /// Less than planning again without it.
    pub gain_ns: u64,
}

/// Where the asking stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Questions answered.
    pub answered: usize,
    /// Questions in all.
    pub questions: usize,
}

/// Asks for everything that presses.
pub(super) fn ask(
    problem: &Problem,
    plan: &Plan,
    options: &Options,
    tick: &mut dyn FnMut(&Ask) -> Control,
    explanation: &mut Explanation,
) {
    if explanation.iteration_ns <= explanation.lower_bound_ns {
        // Planning an optimal plan again finds nothing; a wish may, since it moves the bound.
        explanation.again_ns = Some(explanation.iteration_ns);
    }
    let wishes = wishes(problem, plan, explanation);
    let mut position = Ask { answered: 0, questions: wishes.len() + 1 };
    let mut is_stopped = false;
    let mut again = |problem: &Problem, position: &Ask| {
        // A search that reaches its bound at once never asks.
        is_stopped |= tick(position) == Control::Stop;
        if is_stopped {
            return None;
        }
        let mut watch = |_: &Progress| {
            let control = tick(position);
            is_stopped |= control == Control::Stop;
            control
        };
        let iteration_ns = planned_again(problem, plan, options, &mut watch);
        (!is_stopped).then_some(iteration_ns)
    };
    if explanation.again_ns.is_none() {
        explanation.again_ns = again(problem, &position).map(|ns| ns.min(explanation.iteration_ns));
    }
    let Some(base_ns) = explanation.again_ns else {
        explanation.unasked = wishes.len();
        return;
    };
    for wish in wishes {
        position.answered += 1;
        match again(&wish.granted(problem), &position) {
            Some(iteration_ns) => {
                let iteration_ns = iteration_ns.min(base_ns);
                explanation.wishes.push(Answer { wish, iteration_ns, gain_ns: base_ns - iteration_ns });
            }
            None => explanation.unasked += 1,
        }
    }
    explanation.wishes.sort_by_key(|answer| Reverse(answer.gain_ns));
}

/// The shortest iteration from the plan and from nothing, half of the budget each.
fn planned_again(problem: &Problem, plan: &Plan, options: &Options, tick: &mut dyn FnMut(&Progress) -> Control) -> u64 {
    let names: Vec<String> = problem.devices.iter().map(|device| device.name.clone()).collect();
    let start = plan.map_to(&names).ok();
    let options = search::Options {
        seed: options.seed,
        evaluations: Some((options.evaluations / 2).max(1)),
        horizon_iterations: u64::MAX,
        ..search::Options::default()
    };
    let mut shortest = |from: Option<&Plan>| {
        let outcome = search(problem, from, &options, tick).ok()?;
        outcome.plan.predicted.map(|predicted| predicted.iteration_ns)
    };
    let from_plan = shortest(start.as_ref());
    let from_nothing = shortest(None);
    from_plan.into_iter().chain(from_nothing).min().unwrap_or(u64::MAX)
}

fn wishes(problem: &Problem, plan: &Plan, explanation: &Explanation) -> Vec<Wish> {
    let mut wishes = Vec::new();
    let kinds: BTreeSet<&String> = problem.devices.iter().map(|device| &device.kind).collect();
    if problem.devices.len() < DEVICES_MAX {
        wishes.extend(kinds.into_iter().map(|kind| Wish::Device { kind: kind.clone() }));
    }
    let mut binding: Vec<_> = explanation.memory.iter().filter(|memory| memory.is_binding).collect();
    let memory = |devices: Vec<String>| Wish::Memory { devices, bytes: MORE_MEMORY_BYTES };
    if binding.len() > 1 {
        wishes.push(memory(binding.iter().map(|memory| memory.device.clone()).collect()));
    }
    binding.sort_by_key(|memory| memory.free_bytes());
    wishes.extend(binding.iter().take(EACH_MAX).map(|each| memory(vec![each.device.clone()])));
    let links = links(plan, &explanation.waits);
    if links.len() > 1 {
        wishes.push(Wish::Bandwidth { links: links.iter().map(|(link, _)| link.clone()).collect() });
    }
    let waited = links.iter().filter(|(_, waited_ns)| *waited_ns > 0).take(EACH_MAX);
    wishes.extend(waited.map(|(link, _)| Wish::Bandwidth { links: vec![link.clone()] }));
    wishes
}

/// Links that the plan uses, with what is waited for them in both directions, longest first.
fn links(plan: &Plan, waits: &[Wait]) -> Vec<([String; 2], u64)> {
    let pairs: BTreeSet<(u32, u32)> = plan
        .stages
        .windows(2)
        .map(|pair| (pair[0].device.min(pair[1].device), pair[0].device.max(pair[1].device)))
        .filter(|(a, b)| a != b)
        .collect();
    let mut links: Vec<([String; 2], u64)> = pairs
        .into_iter()
        .map(|(a, b)| {
            let link = [a, b].map(|device| plan.devices[device as usize].clone());
            let is_on = |wait: &&Wait| link.contains(&wait.device) && link.contains(&wait.from);
            let waited_ns = waits.iter().filter(is_on).map(|wait| wait.for_link_ns).sum();
            (link, waited_ns)
        })
        .collect();
    links.sort_by_key(|(_, waited_ns)| Reverse(*waited_ns));
    links
}

impl Wish {
    /// The problem with it.
    fn granted(&self, problem: &Problem) -> Problem {
        let mut problem = problem.clone();
        match self {
            Wish::Device { kind } => add_device(&mut problem, kind),
            Wish::Memory { devices, bytes } => {
                for device in problem.devices.iter_mut().filter(|device| devices.contains(&device.name)) {
                    device.memory_bytes = device.memory_bytes.saturating_add(*bytes);
                }
            }
            Wish::Bandwidth { links } => {
                for [a, b] in links {
                    double(&mut problem, a, b);
                    double(&mut problem, b, a);
                }
            }
        }
        problem
    }
}

fn double(problem: &mut Problem, from: &str, to: &str) {
    if let Some(pair) = problem.links.pairs.iter_mut().find(|pair| pair.from == from && pair.to == to) {
        pair.bytes_per_second = (pair.bytes_per_second * 2.0).min(f64::MAX);
        return;
    }
    let default = problem.links.default;
    problem.links.pairs.push(Pair {
        from: from.to_owned(),
        to: to.to_owned(),
        latency_ns: default.latency_ns,
        bytes_per_second: (default.bytes_per_second * 2.0).min(f64::MAX),
        note: None,
    });
}

/// One more device, with the links of the last one of its kind.
fn add_device(problem: &mut Problem, kind: &str) {
    let Some(model) = problem.devices.iter().rfind(|device| device.kind == kind).cloned() else { return };
    let mut name = format!("another {kind}");
    while problem.device_index(&name).is_some() {
        name.insert_str(0, "yet ");
    }
    let copied: Vec<Pair> = problem
        .links
        .pairs
        .iter()
        .filter(|pair| pair.from == model.name || pair.to == model.name)
        .map(|pair| {
            let moved = |end: &String| if *end == model.name { name.clone() } else { end.clone() };
            Pair { from: moved(&pair.from), to: moved(&pair.to), ..pair.clone() }
        })
        .collect();
    problem.links.pairs.extend(copied);
    problem.devices.push(Device { name, slowdown: 1.0, note: None, ..model });
}
