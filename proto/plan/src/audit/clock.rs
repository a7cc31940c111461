//! What an iteration takes, by the audit's own clock. DESIGN section 3.1.
//!
//! ```text
//!   instruction --> next of its program
//!        |
//!        +--> transfer --> next of its directed pair, by the sender's program
//!                 |
//!                 +-- latency --> consumer
//! ```
//!
//! Each event waits for those that point to it, starts at the latest of their ends and is settled once all of them are.
//! An instruction's other needs come before it in its own program. Times are summed layer by layer.
//!
//! Where devices share the cores of a host, an instruction's end depends on who works beside it: events are then gone
//! through in time, from one end to the next, and ends are rounded up.

use crate::instruction::{Action, Instruction};
use crate::plan::{Plan, crossings};
use crate::problem::{Link, Problem};
use std::collections::BTreeMap;

/// Instruction or transfer.
struct Event {
    start_ns: u64,
    length_ns: u64,
    /// Events that it still waits for.
    waits: u8,
    /// Who waits for it, and how long after its end.
    followers: [Option<(usize, u64)>; 2],
}

impl Event {
    fn new(length_ns: u64) -> Event {
        Event { start_ns: 0, length_ns, waits: 0, followers: [None; 2] }
    }
}

/// Boundary to boundary, in nanoseconds. Needs every rule of the structure.
pub(super) fn iteration_ns(problem: &Problem, plan: &Plan) -> u64 {
    let mut events = events(problem, plan);
    let last_ns = match problem.hosts.is_empty() {
        true => settle(&mut events),
        false => go_through(problem, plan, events),
    };
    let optimizer_ns = (0..problem.devices.len()).map(|device| {
        let own = plan.stages.iter().filter(|stage| stage.device as usize == device);
        let sum_ns = own.flat_map(|stage| stage.range()).map(|layer| problem.optimizer_of(device, layer)).sum();
        slowed(sum_ns, problem.devices[device].slowdown)
    });
    last_ns + problem.boundary_ns + optimizer_ns.max().unwrap_or(0)
}

/// The last event's end, where each takes its length.
fn settle(events: &mut [Event]) -> u64 {
    let mut settled: Vec<usize> = (0..events.len()).filter(|&event| events[event].waits == 0).collect();
    let mut last_ns = 0;
    while let Some(event) = settled.pop() {
        let end_ns = events[event].start_ns + events[event].length_ns;
        last_ns = last_ns.max(end_ns);
        for (follower, lag_ns) in events[event].followers.into_iter().flatten() {
            let follows = &mut events[follower];
            follows.start_ns = follows.start_ns.max(end_ns + lag_ns);
            follows.waits -= 1;
            if follows.waits == 0 {
                settled.push(follower);
            }
        }
    }
    last_ns
}

/// The last event's end, where the instructions of a host's devices share its cores.
fn go_through(problem: &Problem, plan: &Plan, mut events: Vec<Event>) -> u64 {
    let host =
        |device: usize| problem.hosts.iter().position(|host| host.devices.contains(&problem.devices[device].name));
    // Of each instruction; transfers have none.
    let mut host_of: Vec<Option<usize>> =
        plan.programs.iter().enumerate().flat_map(|(device, program)| vec![host(device); program.len()]).collect();
    host_of.resize(events.len(), None);
    let mut left: Vec<f64> = events.iter().map(|event| event.length_ns as f64).collect();
    let mut open: Vec<usize> = (0..events.len()).filter(|&event| events[event].waits == 0).collect();
    let mut now = 0.0_f64;
    while !open.is_empty() {
        let is_begun = |event: usize| events[event].start_ns as f64 <= now;
        let mut speed = vec![1.0_f64; problem.hosts.len()];
        for (at, speed) in speed.iter_mut().enumerate() {
            let working = open.iter().filter(|&&event| host_of[event] == Some(at) && is_begun(event)).count();
            *speed = (problem.hosts[at].at_once / working.max(1) as f64).min(1.0);
        }
        let speed_of = |event: usize| host_of[event].map_or(1.0, |host| speed[host]);
        let ends = |event: usize| match is_begun(event) {
            true => now + left[event] / speed_of(event),
            false => events[event].start_ns as f64,
        };
        let next = open.iter().map(|&event| ends(event)).fold(f64::INFINITY, f64::min);
        let done: Vec<usize> = open.iter().copied().filter(|&event| is_begun(event) && ends(event) <= next).collect();
        let working: Vec<usize> = open.iter().copied().filter(|&event| is_begun(event)).collect();
        for event in working {
            left[event] = (left[event] - (next - now) * speed_of(event)).max(0.0);
        }
        open.retain(|event| !done.contains(event));
        now = next;
        for event in done {
            for (follower, lag_ns) in events[event].followers.into_iter().flatten() {
                let follows = &mut events[follower];
                follows.start_ns = follows.start_ns.max(now.ceil() as u64 + lag_ns);
                follows.waits -= 1;
                if follows.waits == 0 {
                    open.push(follower);
                }
            }
        }
    }
    now.ceil() as u64
}

/// All events with who waits for whom: the instructions, program after program, then the transfers.
fn events(problem: &Problem, plan: &Plan) -> Vec<Event> {
    let mut events: Vec<Event> =
        plan.programs.iter().flatten().map(|&instruction| Event::new(length_ns(problem, plan, instruction))).collect();
    let microbatches = problem.microbatches as usize;
    // Who takes a forward result, and who takes an input gradient: by stage and microbatch.
    let mut forward = vec![0; plan.stages.len() * microbatches];
    let mut backward = forward.clone();
    for (event, instruction) in plan.programs.iter().flatten().enumerate() {
        let cell = instruction.stage.index() * microbatches + instruction.microbatch.index();
        match instruction.action {
            Action::Forward => forward[cell] = event,
            Action::InputGradient | Action::Backward => backward[cell] = event,
            Action::WeightGradient => {}
        }
    }
    let mut event = 0;
    for (device, program) in plan.programs.iter().enumerate() {
        // By receiver: the link, and the last transfer on it.
        let mut pairs: BTreeMap<usize, (Link, Option<usize>)> = BTreeMap::new();
        for (position, instruction) in program.iter().enumerate() {
            if position + 1 < program.len() {
                follow(&mut events, event, 0, event + 1, 0);
            }
            if let Some((stage, bytes)) = sends(problem, plan, *instruction) {
                let cell = stage * microbatches + instruction.microbatch.index();
                let consumer = if instruction.action == Action::Forward { forward[cell] } else { backward[cell] };
                let to = plan.stages[stage].device as usize;
                if to == device {
                    follow(&mut events, event, 1, consumer, 0);
                } else {
                    let (link, last) = pairs.entry(to).or_insert_with(|| (problem.link(device, to), None));
                    let transfer = events.len();
                    events.push(Event::new((bytes as f64 * 1e9 / link.bytes_per_second).round() as u64));
                    follow(&mut events, event, 1, transfer, 0);
                    follow(&mut events, transfer, 0, consumer, link.latency_ns);
                    if let Some(before) = last.replace(transfer) {
                        follow(&mut events, before, 1, transfer, 0);
                    }
                }
            }
            event += 1;
        }
    }
    events
}

fn follow(events: &mut [Event], event: usize, place: usize, follower: usize, lag_ns: u64) {
    events[event].followers[place] = Some((follower, lag_ns));
    events[follower].waits += 1;
}

/// The stage that takes an instruction's result, and how large that is.
fn sends(problem: &Problem, plan: &Plan, instruction: Instruction) -> Option<(usize, u64)> {
    let stage = instruction.stage.index();
    match instruction.action {
        Action::Forward if stage + 1 < plan.stages.len() => {
            Some((stage + 1, problem.layers[plan.stages[stage].range().end - 1].output_bytes))
        }
        Action::InputGradient | Action::Backward if stage > 0 => {
            Some((stage - 1, problem.layers[plan.stages[stage].range().start - 1].output_bytes))
        }
        _ => None,
    }
}

fn length_ns(problem: &Problem, plan: &Plan, instruction: Instruction) -> u64 {
    let stage = &plan.stages[instruction.stage.index()];
    let device = stage.device as usize;
    let costs = problem.costs_of(device);
    let again_ns = || stage.recompute.iter().map(|&layer| costs[layer as usize].forward_ns).sum::<u64>();
    let own = &costs[stage.range()];
    let sum_ns = match instruction.action {
        Action::Forward => own.iter().map(|cost| cost.forward_ns).sum(),
        Action::InputGradient => {
            own.iter().map(|cost| cost.input_gradient_ns + cost.split_ns).sum::<u64>() + again_ns()
        }
        Action::WeightGradient => own.iter().map(|cost| cost.weight_gradient_ns).sum(),
        Action::Backward => {
            own.iter().map(|cost| cost.input_gradient_ns + cost.weight_gradient_ns).sum::<u64>() + again_ns()
        }
    };
    let crossings_ns = match instruction.action {
        Action::WeightGradient => 0,
        _ => problem.crossing_ns * crossings(&plan.stages, instruction.stage.index()),
    };
    slowed(sum_ns, problem.devices[device].slowdown) + problem.stage_ns + crossings_ns
}

/// To the nearest nanosecond, half up. A device at its own speed loses no digit to a float.
fn slowed(sum_ns: u64, slowdown: f64) -> u64 {
    if slowdown == 1.0 { sum_ns } else { (sum_ns as f64 * slowdown).round() as u64 }
}
