//! What holds for every plan: the valid ones audit clean, a single damage is found, garbage harms nobody.

use crate::support::{Dice, damaged_plan, empty_plan, garbage_plan, one_f_one_b, problem, valid_plan};
use adaptis_plan::lower::{Row, Work, lower};
use adaptis_plan::{Action, Instruction, Link, Pair, Plan, Problem, audit, peak_bytes};
use adaptis_proto::message::TensorTag;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

/// Dice and a problem of some size.
fn cases() -> impl Strategy<Value = (u64, Problem)> {
    (any::<u64>(), 1..5_usize, 1..8_usize, 1..6_u32).prop_map(|(seed, devices, layers, microbatches)| {
        (seed, problem(&mut Dice(seed), devices, layers, microbatches))
    })
}

fn rules(problem: &Problem, plan: &Plan) -> Vec<&'static str> {
    audit(problem, plan).iter().map(|finding| finding.rule()).collect()
}

/// Peak of a device, layer by layer and microbatch by microbatch, straight from DESIGN section 3.1.
fn peak_by_layers(problem: &Problem, plan: &Plan, device: usize) -> u64 {
    let costs = problem.costs_of(device);
    let own = |stage: &&adaptis_plan::Stage| stage.device as usize == device;
    let state: u64 =
        plan.stages.iter().filter(own).flat_map(|stage| stage.range()).map(|l| problem.layers[l].state_bytes).sum();
    let mut buffers = 0;
    if problem.receive_buffers == adaptis_plan::ReceiveBuffers::All {
        for pair in plan.stages.windows(2).filter(|pair| pair[0].device != pair[1].device) {
            let bytes = problem.layers[pair[0].range().end - 1].output_bytes * u64::from(problem.microbatches);
            buffers += bytes * pair.iter().filter(|stage| own(stage)).count() as u64;
        }
    }
    let base = problem.devices[device].reserved_bytes + state + buffers;
    let mut held: BTreeMap<(usize, u32), u64> = BTreeMap::new();
    let mut peak = base;
    for instruction in &plan.programs[device] {
        let stage = &plan.stages[instruction.stage.index()];
        let microbatch = instruction.microbatch.0;
        let workspace = stage.range().map(|layer| costs[layer].workspace_bytes).max().unwrap_or(0);
        let mut see = |held: &BTreeMap<(usize, u32), u64>| {
            peak = peak.max(base + workspace + held.values().sum::<u64>());
        };
        if instruction.action == Action::Forward {
            for layer in stage.range() {
                let input = if layer == 0 { 0 } else { problem.layers[layer - 1].output_bytes };
                let recomputed = stage.recompute.iter().any(|other| *other as usize == layer);
                held.insert((layer, microbatch), if recomputed { input } else { costs[layer].activation_bytes });
            }
        }
        see(&held);
        if matches!(instruction.action, Action::InputGradient | Action::Backward) {
            for layer in stage.range().rev() {
                held.insert((layer, microbatch), costs[layer].activation_bytes);
                see(&held);
                held.insert((layer, microbatch), costs[layer].weight_gradient_bytes);
            }
        }
        if matches!(instruction.action, Action::WeightGradient | Action::Backward) {
            for layer in stage.range() {
                held.remove(&(layer, microbatch));
            }
        }
    }
    assert!(held.is_empty());
    peak
}

/// Per directed pair, in order.
type Transfers = BTreeMap<(usize, usize), Vec<TensorTag>>;

/// Runs the rows with sends and receives that block until they meet, scanning all devices each time.
/// Where they stop, if they do.
fn meet(rows: &[Row]) -> Result<Transfers, Vec<usize>> {
    let mut next = vec![0; rows.len()];
    let mut transfers = Transfers::new();
    loop {
        let mut moved = false;
        for device in 0..rows.len() {
            match rows[device].get(next[device]) {
                Some(Work::Run(_)) => {
                    next[device] += 1;
                    moved = true;
                }
                Some(Work::Send { to, tag }) => {
                    let peer = to.index();
                    if rows[peer].get(next[peer]) == Some(&Work::Receive { from: device.into(), tag: *tag }) {
                        next[device] += 1;
                        next[peer] += 1;
                        transfers.entry((device, peer)).or_default().push(*tag);
                        moved = true;
                    }
                }
                Some(Work::Receive { .. }) | None => {}
            }
        }
        if !moved {
            break;
        }
    }
    match rows.iter().zip(&next).all(|(row, next)| row.len() == *next) {
        true => Ok(transfers),
        false => Err(next),
    }
}

proptest! {
    #[test]
    fn every_valid_plan_audits_clean((seed, problem) in cases()) {
        problem.check().expect("the generator's problems are sound");
        let plan = valid_plan(&mut Dice(seed), &problem);
        prop_assert_eq!(audit(&problem, &plan), []);
        prop_assert_eq!(audit(&problem, &one_f_one_b(&problem)), []);
    }

    #[test]
    fn peaks_equal_the_sum_over_layers((seed, problem) in cases()) {
        let plan = valid_plan(&mut Dice(seed), &problem);
        let peaks = peak_bytes(&problem, &plan).expect("the plan is valid");
        let expected: Vec<u64> = (0..peaks.len()).map(|device| peak_by_layers(&problem, &plan, device)).collect();
        prop_assert_eq!(&peaks, &expected);
        // The limit is strict.
        let mut tight = problem.clone();
        for (device, peak) in tight.devices.iter_mut().zip(&peaks) {
            device.memory_bytes = *peak;
        }
        prop_assert_eq!(audit(&tight, &plan), []);
        if let Some(device) = peaks.iter().position(|peak| *peak > 0) {
            tight.devices[device].memory_bytes -= 1;
            prop_assert_eq!(rules(&tight, &plan), ["memory"]);
        }
    }

    #[test]
    fn rows_keep_programs_and_never_deadlock((seed, problem) in cases()) {
        let plan = valid_plan(&mut Dice(seed), &problem);
        let rows = lower(&plan).expect("the plan is valid");
        let mut crossing = 0;
        for pair in plan.stages.windows(2) {
            crossing += usize::from(pair[0].device != pair[1].device);
        }
        for (device, row) in rows.iter().enumerate() {
            let runs: Vec<Instruction> = row.iter().filter_map(|work| match work {
                Work::Run(instruction) => Some(*instruction),
                _ => None,
            }).collect();
            prop_assert_eq!(&runs, &plan.programs[device]);
            for (at, work) in row.iter().enumerate() {
                if matches!(work, Work::Send { .. }) {
                    prop_assert!(matches!(row[at - 1], Work::Run(_)), "a send stands behind its instruction");
                }
            }
        }
        let transfers = meet(&rows).expect("sends and receives meet");
        let count: usize = transfers.values().map(Vec::len).sum();
        prop_assert_eq!(count, crossing * 2 * problem.microbatches as usize);
        // Receives of a pair stand in the order of its sends.
        for (device, row) in rows.iter().enumerate() {
            let mut sent: BTreeMap<usize, VecDeque<TensorTag>> = BTreeMap::new();
            for ((from, to), tags) in &transfers {
                if *to == device {
                    sent.insert(*from, tags.iter().copied().collect());
                }
            }
            for work in row {
                if let Work::Receive { from, tag } = work {
                    prop_assert_eq!(sent.get_mut(&from.index()).and_then(VecDeque::pop_front), Some(*tag));
                }
            }
        }
    }

    #[test]
    fn one_damage_is_found((seed, mut problem) in cases(), kind in 0..12_usize) {
        let mut dice = Dice(seed);
        let mut plan = valid_plan(&mut dice, &problem);
        let busy: Vec<usize> = (0..plan.programs.len()).filter(|device| !plan.programs[*device].is_empty()).collect();
        let device = busy[dice.below(busy.len())];
        let at = dice.below(plan.programs[device].len());
        let stage = dice.below(plan.stages.len());
        let microbatches = problem.microbatches as usize;
        let expected = match kind {
            0 => {
                plan.programs[device].remove(at);
                "program"
            }
            1 => {
                let instruction = plan.programs[device][at];
                plan.programs[device].push(instruction);
                "program"
            }
            2 => {
                plan.programs[device][at] = Instruction::new(plan.stages.len(), Action::Forward, 0);
                "program"
            }
            3 => {
                plan.programs[device].push(Instruction::new(stage, Action::Backward, microbatches));
                "program"
            }
            4 => {
                // Some stage's first F behind everything else of its device.
                let instruction = plan.programs[device].iter().position(|i| i.action == Action::Forward);
                let first = plan.programs[device].remove(instruction.expect("a busy device has an F"));
                plan.programs[device].push(first);
                "dependency"
            }
            5 => {
                plan.layers += 1;
                "layers"
            }
            6 => {
                plan.stages[stage].layers[1] += 1;
                "layers"
            }
            7 => {
                plan.devices[device].push('x');
                "devices"
            }
            8 => {
                plan.stages[stage].device = u32::try_from(problem.devices.len()).expect("few devices");
                "devices"
            }
            9 => {
                let outside = plan.stages[stage].layers[1];
                plan.stages[stage].recompute.push(outside);
                "recompute"
            }
            10 => {
                problem.constraints.forbidden.push(plan.devices[plan.stages[stage].device as usize].clone());
                "constraint"
            }
            _ => {
                if problem.devices.len() == 1 {
                    return Ok(());
                }
                let other = (device + 1) % problem.devices.len();
                let moved = plan.programs[device].remove(at);
                plan.programs[other].push(moved);
                "placement"
            }
        };
        let found = rules(&problem, &plan);
        prop_assert!(found.contains(&expected), "expected {}, found {:?}", expected, found);
    }

    #[test]
    fn swapped_microbatches_are_found((seed, problem) in cases()) {
        let mut dice = Dice(seed);
        let mut plan = valid_plan(&mut dice, &problem);
        let stage = dice.below(plan.stages.len());
        let program = &mut plan.programs[plan.stages[stage].device as usize];
        let forwards: Vec<usize> = (0..program.len())
            .filter(|at| program[*at].stage.index() == stage && program[*at].action == Action::Forward)
            .collect();
        if forwards.len() < 2 {
            return Ok(());
        }
        program.swap(forwards[0], forwards[1]);
        prop_assert!(rules(&problem, &plan).contains(&"order"));
    }

    #[test]
    fn no_plan_harms_the_audit((seed, problem) in cases(), random in any::<bool>()) {
        let mut dice = Dice(seed);
        let plan = if random { garbage_plan(&mut dice, &problem) } else { damaged_plan(&mut dice, &problem) };
        let findings = audit(&problem, &plan);
        for finding in &findings {
            prop_assert!(!finding.to_string().is_empty());
        }
        if findings.is_empty() {
            prop_assert!(meet(&lower(&plan).expect("an audited plan has rows")).is_ok());
        }
        let _ = (peak_bytes(&problem, &plan), lower(&plan));
        let devices: Vec<String> = problem.devices.iter().rev().map(|device| device.name.clone()).collect();
        let _ = plan.map_to(&devices);
        prop_assert_eq!(Plan::read(&plan.write()).ok(), Some(plan).filter(|plan| plan.layers <= 65_536));
    }

    #[test]
    fn a_mapped_plan_is_as_valid_as_before((seed, problem) in cases()) {
        let plan = valid_plan(&mut Dice(seed), &problem);
        let mut turned = problem.clone();
        turned.devices.rotate_left(1);
        let devices: Vec<String> = turned.devices.iter().map(|device| device.name.clone()).collect();
        let mapped = plan.map_to(&devices).expect("the same devices");
        prop_assert_eq!(audit(&turned, &mapped), []);
        prop_assert_eq!(mapped.map_to(&plan.devices), Ok(plan));
    }

    #[test]
    fn what_is_written_is_read(
        (_, mut problem) in cases(), slowdown in 1e-3..1e3_f64, rate in 1.0..1e13_f64, name in "\\PC{1,8}",
    ) {
        problem.devices[0].slowdown = slowdown;
        problem.devices[0].name = format!("{name}\"\\[{{");
        problem.constraints.note = Some(name);
        problem.links.default = Link { latency_ns: 3, bytes_per_second: rate, note: () };
        if problem.devices.len() > 1 {
            let (from, to) = (problem.devices[1].name.clone(), problem.devices[0].name.clone());
            problem.links.pairs.push(Pair { from, to, latency_ns: 1, bytes_per_second: rate / 3.0, note: None });
        }
        prop_assert_eq!(Problem::read(&problem.write()), Ok(problem.clone()));
        let plan = empty_plan(&problem);
        prop_assert_eq!(Plan::read(&plan.write()), Ok(plan));
    }

    #[test]
    fn no_text_harms_the_reader(text in "\\PC{0,40}", cut in 0..400_usize) {
        let _ = (Problem::read(&text), Plan::read(&text));
        let written = problem(&mut Dice(7), 2, 2, 2).write();
        let cut = written.len().min(cut * 4);
        if cut < written.trim_end().len() {
            prop_assert!(Problem::read(&written[..cut]).is_err());
        }
    }
}
