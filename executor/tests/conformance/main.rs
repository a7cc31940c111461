//! The conformance suite: any audited plan computes what one device computes, and takes the time and memory that DESIGN
//! section 3.1 says, also across switches.
//!
//! Ranks are threads over the memory transport; the clock never waits, so a device's time is the emulation's alone.

mod cluster;
mod plans;
mod simulation;

use adaptis_executor::Halt;
use adaptis_executor::emulation::Fault;
use adaptis_proto::message::Failure;
use adaptis_proto::sample::{Mark, Phase, Sample};
use adaptis_proto::{Epoch, LayerIndex};
use cluster::{Cluster, emulation};
use plans::{Dice, one_device, random_plan};
use proptest::prelude::*;

const ITERATIONS: u64 = 3;

#[test]
fn the_model_learns_on_one_device() {
    let emulation = emulation(1, 4, 25);
    let run = Cluster::new(&emulation, one_device(&emulation.truth, Epoch(1))).run();
    let losses = run.losses();
    assert!(losses[24] < losses[0] - 0.3, "{losses:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Any plan gives the losses and the state of one device, takes the simulated time, and has the audited peak.
    #[test]
    fn any_plan_computes_what_one_device_computes(seed: u64, devices in 1_usize..5, microbatches in 1_u32..5) {
        let emulation = emulation(devices, microbatches, ITERATIONS);
        let expected = Cluster::new(&emulation, one_device(&emulation.truth, Epoch(1))).run();
        let plan = random_plan(&emulation.truth, Epoch(1), Epoch(0), &mut Dice(seed));
        let run = Cluster::new(&emulation, plan.clone()).run();
        prop_assert_eq!(run.loss_bits(), expected.loss_bits());
        prop_assert_eq!(run.digests(), expected.digests());
        let iteration_ns = simulation::iteration_ns(&emulation.truth, &plan);
        let peaks = adaptis_plan::peak_bytes(&emulation.truth, &plan).expect("the plan is audited");
        for (rank, peak) in run.ranks.iter().zip(peaks) {
            for sample in &rank.samples {
                match sample {
                    Sample::Iteration { duration_ns, .. } => prop_assert_eq!(*duration_ns, iteration_ns),
                    Sample::DeviceMemory { peak_bytes, late_ns, .. } => {
                        prop_assert_eq!((*peak_bytes, *late_ns), (peak, 0));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Plans that follow one another leave the state that one device would have.
    #[test]
    fn switches_change_no_bit(seed: u64, devices in 2_usize..5) {
        let emulation = emulation(devices, 3, 7);
        let expected = Cluster::new(&emulation, one_device(&emulation.truth, Epoch(1))).run();
        let dice = &mut Dice(seed);
        let plans: Vec<_> =
            (1..=3).map(|epoch| random_plan(&emulation.truth, Epoch(epoch), Epoch(epoch - 1), dice)).collect();
        let run = Cluster::new(&emulation, plans[0].clone()).then(0, &plans[1]).then(3, &plans[2]).run();
        prop_assert_eq!(run.loss_bits(), expected.loss_bits());
        prop_assert_eq!(run.digests(), expected.digests());
        for rank in &run.ranks {
            let seen: Vec<_> = rank.samples.iter().filter_map(|sample| match sample {
                Sample::Iteration { place, duration_ns, .. } => Some((place.step.0, place.epoch.0, *duration_ns)),
                _ => None,
            }).collect();
            let times: Vec<_> = plans.iter().map(|plan| simulation::iteration_ns(&emulation.truth, plan)).collect();
            let epochs = [1, 1, 2, 2, 2, 3, 3];
            let expected: Vec<_> =
                (0..7).map(|step| (step, epochs[step as usize], times[epochs[step as usize] as usize - 1])).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}

#[test]
fn a_switch_takes_the_time_of_its_moves_and_an_order_only_one_takes_none() {
    let emulation = emulation(2, 3, 6);
    let truth = &emulation.truth;
    let plan = |epoch: u64, cut, dice| {
        plans::scheduled(truth, Epoch(epoch), Epoch(epoch - 1), &[(0, cut, 0), (cut, 6, 1)], &mut Dice(dice))
    };
    let run = Cluster::new(&emulation, plan(1, 2, 7)).then(0, &plan(2, 2, 8)).then(2, &plan(3, 4, 9)).run();
    let link = truth.link(1, 0);
    let moving_ns: u64 = [2, 3]
        .iter()
        .map(|&at: &usize| (truth.layers[at].moved() as f64 * 1e9 / link.bytes_per_second).round() as u64)
        .sum();
    for (rank, received) in run.ranks.iter().zip([truth.layers[2].moved() + truth.layers[3].moved(), 0]) {
        let switches: Vec<_> = rank
            .samples
            .iter()
            .filter_map(|sample| match *sample {
                Sample::Switch { place, layers_moved, bytes_received, pause_ns, from } => {
                    Some((place.epoch.0, from, layers_moved, bytes_received, pause_ns))
                }
                _ => None,
            })
            .collect();
        assert_eq!(switches, [(2, 1, 0, 0, 0), (3, 2, 2, received, moving_ns + link.latency_ns)]);
    }
}

#[test]
fn a_throttled_device_and_a_slow_link_take_what_the_changed_truth_takes() {
    let mut emulation = emulation(2, 4, 6);
    let slow = |iteration, factor| Fault::Throttle { iteration, device: "gpu1".into(), factor };
    let between = ["gpu0".to_owned(), "gpu1".to_owned()];
    let links = |iteration, factor| Fault::SlowLink { iteration, between: between.clone(), factor };
    emulation.faults = vec![slow(3, 1.0), slow(1, 1.8), links(2, 4.0), links(5, 1.0)];
    let truth = emulation.truth.clone();
    let plan = plans::scheduled(&truth, Epoch(1), Epoch(0), &[(0, 3, 0), (3, 6, 1)], &mut Dice(5));
    let run = Cluster::new(&emulation, plan.clone()).run();
    let time = |throttle: f64, slow: f64| {
        let mut truth = truth.clone();
        truth.devices[1].slowdown *= throttle;
        truth.links.default.bytes_per_second /= slow;
        simulation::iteration_ns(&truth, &plan)
    };
    let expected = [time(1.0, 1.0), time(1.8, 1.0), time(1.8, 4.0), time(1.0, 4.0), time(1.0, 4.0), time(1.0, 1.0)];
    assert_eq!(run.durations(0), expected);
    assert_eq!(run.durations(1), expected);
}

/// The ranks wait 20 s at least; at a millionth of the bandwidth a layer travels for longer than that, and so do the
/// tensors of an iteration.
#[test]
fn however_slow_a_link_or_device_becomes_training_goes_on_to_the_same_bits() {
    let calm = emulation(2, 3, 5);
    let mut emulation = calm.clone();
    let between = ["gpu0".to_owned(), "gpu1".to_owned()];
    let slow = |factor| Fault::Throttle { iteration: 3, device: "gpu1".into(), factor };
    emulation.faults = vec![Fault::SlowLink { iteration: 1, between, factor: 2e6 }, slow(3e7)];
    let truth = &emulation.truth;
    let plan = |epoch: u64, cut, dice| {
        plans::scheduled(truth, Epoch(epoch), Epoch(epoch - 1), &[(0, cut, 0), (cut, 6, 1)], &mut Dice(dice))
    };
    let plans = [plan(1, 2, 7), plan(2, 4, 9)];
    let run = |emulation| Cluster::new(emulation, plans[0].clone()).then(0, &plans[1]).run();
    let (disturbed, undisturbed) = (run(&emulation), run(&calm));
    assert_eq!(disturbed.loss_bits(), undisturbed.loss_bits());
    assert_eq!(disturbed.digests(), undisturbed.digests());
    let pauses = disturbed.ranks[0].samples.iter().filter_map(|sample| match *sample {
        Sample::Switch { pause_ns, .. } => Some(pause_ns),
        _ => None,
    });
    assert!(pauses.max().is_some_and(|longest_ns| longest_ns > 20_000_000_000), "the move was long indeed");
    assert!(disturbed.durations(0)[4] > 20_000_000_000, "so was an iteration");
}

/// A rank on another host, whose clock began long before.
#[test]
fn an_instant_that_nothing_explains_is_still_refused() {
    let emulation = emulation(2, 3, 3);
    let plan = plans::scheduled(&emulation.truth, Epoch(1), Epoch(0), &[(0, 3, 0), (3, 6, 1)], &mut Dice(5));
    let run = Cluster::new(&emulation, plan).clock_ahead(1, 60_000_000_000).run();
    match &run.ranks[0].outcome {
        Err(Halt::Failed(Failure::Environment(text))) => assert!(text.contains("one host"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_device_stops_all_ranks_and_names_itself() {
    let mut emulation = emulation(2, 4, 3);
    let plan = plans::scheduled(&emulation.truth, Epoch(1), Epoch(0), &[(0, 3, 0), (3, 6, 1)], &mut Dice(5));
    let needed = adaptis_plan::peak_bytes(&emulation.truth, &plan).expect("the plan is audited")[1];
    emulation.truth.devices[1].memory_bytes = needed - 1;
    let run = Cluster::new(&emulation, plan).without_room_check().run();
    match &run.ranks[1].outcome {
        Err(Halt::Failed(Failure::OutOfMemory { device, needed_bytes, limit_bytes })) => {
            assert_eq!((device.as_str(), *needed_bytes, *limit_bytes), ("gpu1", needed, needed - 1));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(run.ranks[0].outcome, Err(Failure::PeerFailed { peer: 1.into() }.into()));
}

#[test]
fn calibration_measures_every_signature_and_link_and_leaves_no_trace() {
    let mut emulation = emulation(3, 2, 2);
    emulation.truth.layers[3].signature = emulation.truth.layers[1].signature.clone();
    let plan = plans::scheduled(&emulation.truth, Epoch(1), Epoch(0), &[(0, 3, 0), (3, 6, 2)], &mut Dice(5));
    let plain = Cluster::new(&emulation, plan.clone()).run();
    let run = Cluster::new(&emulation, plan).calibrated().run();
    assert_eq!(run.digests(), plain.digests());
    for (at, rank) in run.ranks.iter().enumerate() {
        let mut work = Vec::new();
        let mut probes = 0;
        for sample in &rank.samples {
            match *sample {
                Sample::Work { mark: Mark::Calibration, layer, phase, duration_ns, .. } => {
                    let cost = &emulation.truth.costs_of(at)[layer.index()];
                    let cost_ns = match phase {
                        Phase::Forward => cost.forward_ns,
                        Phase::InputGradient => cost.input_gradient_ns + cost.split_ns,
                        _ => cost.weight_gradient_ns,
                    };
                    let slowed = cost_ns as f64 * emulation.truth.devices[at].slowdown;
                    assert_eq!(duration_ns, slowed.round() as u64);
                    work.push(layer);
                }
                Sample::Transfer { mark: Mark::Calibration, .. } => probes += 1,
                _ => {}
            }
        }
        work.dedup();
        assert_eq!(work, [0, 1, 2, 4, 5].map(LayerIndex), "one layer of each signature");
        assert_eq!(probes, 2 * 4, "two probes of two sizes from each of two peers");
    }
}

#[test]
fn samples_say_what_the_truth_takes() {
    let emulation = emulation(2, 3, 5);
    let plan = plans::scheduled(&emulation.truth, Epoch(1), Epoch(0), &[(0, 2, 0), (2, 6, 1)], &mut Dice(3));
    let run = Cluster::new(&emulation, plan).run();
    for (at, rank) in run.ranks.iter().enumerate() {
        let costs = emulation.truth.costs_of(at);
        let slowdown = emulation.truth.devices[at].slowdown;
        let mut cold = 0;
        for sample in &rank.samples {
            let Sample::Work { place, layer, phase, mark, duration_ns, .. } = *sample else { continue };
            let cost = &costs[layer.index()];
            let exact = slowdown
                * match phase {
                    Phase::Forward | Phase::Recompute => cost.forward_ns,
                    Phase::InputGradient => cost.input_gradient_ns + cost.split_ns,
                    Phase::WeightGradient => cost.weight_gradient_ns,
                    Phase::Optimizer => emulation.truth.optimizer_of(at, layer.index()),
                } as f64;
            // Deadlines are rounded sums, so one layer's share may be off by one.
            let fused = if phase == Phase::InputGradient { slowdown * cost.split_ns as f64 } else { 0.0 };
            let measured = duration_ns as f64;
            assert!(measured >= exact - fused - 1.0 && measured <= exact + 1.0, "{sample:?}, exactly {exact}");
            assert_eq!(mark == Mark::Cold, place.step.0 < 3, "{sample:?}");
            cold += u32::from(mark == Mark::Cold);
        }
        assert!(cold > 0);
    }
}
