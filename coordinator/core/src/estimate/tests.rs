mod between;
mod earlier;
mod hostile;
mod hosts;
mod loads;
mod memory;

use super::random::Random;
use super::synthetic::{Cluster, MICROBATCHES, Noise, RUN};
use super::{CORRECTION_MAX, Estimated, Estimator, JobView, Missing, NotYet, Source};
use crate::drift::Who;
use adaptis_plan::Host;
use adaptis_planner::{noise, schedule, simulate};
use adaptis_proto::message::{CrowdedHost, DeviceCard, JobLayer};
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{DeviceIndex, Epoch, Generation, LayerIndex, Microbatch, Step};

const MIXED: [&str; 4] = ["h100", "h100", "a100", "a100"];

fn fitted(estimator: &Estimator) -> Estimated {
    estimator.problem().expect("there are samples of everything")
}

fn predicted_ns(estimated: &Estimated, device: usize, layer: usize, phase: usize) -> f64 {
    let cost = &estimated.problem.costs_of(device)[layer];
    let ns = [cost.forward_ns, cost.input_gradient_ns, cost.weight_gradient_ns][phase];
    ns as f64 * estimated.problem.devices[device].slowdown
}

/// Largest and typical |log(predicted / true)| over what each device runs, or over what it does not.
fn errors(cluster: &Cluster, estimated: &Estimated, running: bool) -> (f64, f64) {
    let mut errors = Vec::new();
    for device in 0..cluster.job.devices.len() {
        for layer in 0..cluster.job.layers.len() {
            for phase in 0..RUN.len() {
                if (cluster.device_of[layer] == device) == running {
                    let predicted = predicted_ns(estimated, device, layer, phase);
                    errors.push((predicted / cluster.true_ns(device, layer, phase)).ln().abs());
                }
            }
        }
    }
    (errors.iter().copied().fold(0.0, f64::max), errors.iter().sum::<f64>() / errors.len() as f64)
}

#[test]
fn costs_come_out_under_every_noise() {
    // Largest and mean error of what runs, of what does not.
    for (noise, largest, mean, largest_other, mean_other) in [
        (Noise::Normal(0.0), 0.001, 0.001, 0.001, 0.001),
        (Noise::Normal(0.03), 0.02, 0.005, 0.05, 0.02),
        (Noise::Heavy(0.1), 0.06, 0.015, 0.15, 0.05),
        (Noise::Stalls, 0.03, 0.01, 0.06, 0.02),
    ] {
        for seed in 0..3 {
            let mut cluster = Cluster::new(&MIXED, 48, noise, seed);
            cluster.slowdown[1] = 1.1;
            let estimated = fitted(&cluster.trained(10));
            let (worst, typical) = errors(&cluster, &estimated, true);
            assert!(worst <= largest && typical <= mean, "{noise:?} {seed}: {worst} {typical}");
            let (worst, typical) = errors(&cluster, &estimated, false);
            assert!(worst <= largest_other && typical <= mean_other, "elsewhere {noise:?} {seed}: {worst} {typical}");
        }
    }
}

#[test]
fn a_throttled_device_is_a_slow_device_not_slow_layers() {
    let mut cluster = Cluster::new(&MIXED, 48, Noise::Heavy(0.1), 7);
    let mut estimator = cluster.trained(12);
    let before = fitted(&estimator);
    cluster.slowdown[1] = 1.8;
    for step in 12..14 {
        cluster.train(&mut estimator, step, Mark::Warm);
    }
    estimator.restart_window(Who::Device(DeviceIndex(1)), Step(12));
    let after = fitted(&estimator);
    for (device, slowdown) in [1.0, 1.8, 1.0, 1.0].into_iter().enumerate() {
        let found = after.problem.devices[device].slowdown;
        assert!((found / slowdown - 1.0).abs() < 0.03, "device {device}: {found}");
    }
    let moved = before.problem.costs_of(0).iter().zip(after.problem.costs_of(0));
    let moved: Vec<f64> = moved.map(|(was, is)| is.forward_ns as f64 / was.forward_ns as f64 - 1.0).collect();
    assert!(moved.iter().all(|moved| moved.abs() < 0.06), "{moved:?}");
    assert!((moved.iter().sum::<f64>() / moved.len() as f64).abs() < 0.01, "{moved:?}");
    assert!(before.problem.devices.iter().all(|device| (device.slowdown - 1.0).abs() < 0.03));
}

/// A calibration of a host that was behind and then held up: most works too short, some far too long.
fn rush(calibration: &mut [(DeviceIndex, Sample)], random: &mut Random) {
    for (_, sample) in calibration {
        if let Sample::Work { duration_ns, .. } = sample {
            let factor =
                if random.uniform() < 0.7 { 0.05 + 0.6 * random.uniform() } else { 1.0 + 3.0 * random.uniform() };
            *duration_ns = (*duration_ns as f64 * factor) as u64;
        }
    }
}

/// Lower median of the slowdowns of a kind's devices.
fn usual_slowdown(estimated: &Estimated, kind: &str) -> f64 {
    let of_kind = estimated.problem.devices.iter().filter(|device| device.kind == kind);
    super::robust::lower_median(&mut of_kind.map(|device| device.slowdown).collect::<Vec<_>>()).expect("a device")
}

#[test]
fn healthy_devices_take_their_kinds_time_whatever_calibration_said() {
    for seed in 0..6 {
        let mut cluster = Cluster::new(&MIXED, 48, Noise::Heavy(0.1), 300 + seed);
        let mut estimator = Estimator::new(cluster.job.clone());
        let mut calibration = cluster.calibrate();
        rush(&mut calibration, &mut cluster.random);
        calibration.iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
        // A plan after the other, so that the earliest segments go; the throttle begins under the second.
        for step in 0..72 {
            cluster.epoch = 1 + step / 8;
            if step == 12 {
                cluster.slowdown[1] = 1.8;
            }
            cluster.train(&mut estimator, step, if step % 8 < 3 { Mark::Cold } else { Mark::Warm });
            if step == 13 {
                estimator.restart_window(Who::Device(DeviceIndex(1)), Step(12));
            }
            if ![7, 15, 39, 71].contains(&step) {
                continue;
            }
            let estimated = fitted(&estimator);
            for (device, slowdown) in cluster.slowdown.iter().enumerate() {
                let found = estimated.problem.devices[device].slowdown;
                assert!((found / slowdown - 1.0).abs() < 0.03, "seed {seed} step {step} device {device}: {found}");
            }
            for kind in ["h100", "a100"] {
                let usual = usual_slowdown(&estimated, kind);
                assert!((usual - 1.0).abs() < 0.03, "seed {seed} step {step} {kind}: {usual}");
            }
            // The level of the costs themselves, which a product of cost and slowdown does not show.
            for (layer, &device) in cluster.device_of.iter().enumerate() {
                let cost = estimated.problem.costs_of(device)[layer].forward_ns as f64;
                let truth = cluster.cost_ns[cluster.kind_of[device]][layer][0];
                assert!((cost / truth - 1.0).abs() < 0.08, "seed {seed} step {step} layer {layer}: {cost} of {truth}");
            }
        }
    }
}

#[test]
fn without_a_detected_change_the_window_alone_follows() {
    let mut cluster = Cluster::new(&MIXED, 48, Noise::Normal(0.05), 8);
    let mut estimator = cluster.trained(12);
    cluster.slowdown[2] = 1.3;
    for step in 12..21 {
        cluster.train(&mut estimator, step, Mark::Warm);
    }
    let slowdown = fitted(&estimator).problem.devices[2].slowdown;
    assert!((slowdown - 1.3).abs() < 0.05, "{slowdown}");
}

#[test]
fn after_the_throttle_ends_the_device_is_as_before() {
    let mut cluster = Cluster::new(&MIXED, 48, Noise::Normal(0.05), 9);
    let mut estimator = cluster.trained(12);
    for (from, slowdown) in [(12, 1.8), (22, 1.0), (32, 2.5), (42, 1.0), (52, 1.2), (62, 1.0), (72, 3.0)] {
        cluster.slowdown[3] = slowdown;
        for step in from..from + 10 {
            cluster.train(&mut estimator, step, Mark::Warm);
        }
        estimator.restart_window(Who::Device(DeviceIndex(3)), Step(from));
        let found = fitted(&estimator).problem.devices[3].slowdown;
        assert!((found / slowdown - 1.0).abs() < 0.02, "{found} for {slowdown}");
    }
}

#[test]
fn a_layer_that_differs_from_its_signature_keeps_its_own_cost() {
    let mut cluster = Cluster::new(&MIXED, 48, Noise::Normal(0.05), 10);
    for kind in &mut cluster.cost_ns {
        kind[5].iter_mut().for_each(|ns| *ns *= 1.2);
    }
    let estimated = fitted(&cluster.trained(11));
    let (odd, usual) = (predicted_ns(&estimated, 0, 5, 0), predicted_ns(&estimated, 0, 9, 0));
    assert!((odd / usual / 1.2 - 1.0).abs() < 0.03, "{odd} {usual}");
    assert!((estimated.problem.devices[0].slowdown - 1.0).abs() < 0.02);
}

#[test]
fn a_cell_that_never_ran_on_a_kind_comes_from_the_other_kinds() {
    let mut cluster = Cluster::new(&["h100", "h100", "a100"], 48, Noise::Normal(0.05), 11);
    let mut estimator = Estimator::new(cluster.job.clone());
    // No calibration: each device knows only its own layers, and the head (signature of layer 47) runs on the a100.
    cluster.memory().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
    for step in 0..6 {
        cluster.train(&mut estimator, step, Mark::Warm);
    }
    let estimated = fitted(&estimator);
    let figure = |device: usize, layer: usize| estimated.uncertainty.figures[device][layer][0];
    assert_eq!(figure(0, 0).source, Source::Measured);
    assert_eq!(figure(1, 0).source, Source::OtherDeviceOfKind);
    assert_eq!(figure(0, 40).source, Source::SameSignature);
    assert_eq!(figure(0, 47).source, Source::OtherKind);
    assert!(figure(0, 47).ln_sd > figure(1, 0).ln_sd && figure(1, 0).ln_sd > figure(0, 0).ln_sd);
    let error = (predicted_ns(&estimated, 0, 47, 0) / cluster.true_ns(0, 47, 0)).ln();
    assert!(error.abs() < 2.0 * figure(0, 47).ln_sd, "{error} {:?}", figure(0, 47));
    assert!(figure(0, 47).low() < 1.0 && figure(0, 47).high() > 1.0);
}

#[test]
fn intervals_cover_what_they_should() {
    let (mut within, mut all) = (0, 0);
    for seed in 0..4 {
        let mut cluster = Cluster::new(&MIXED, 48, Noise::Heavy(0.1), 100 + seed);
        let estimated = fitted(&cluster.trained(8));
        for device in 0..4 {
            for layer in 0..48 {
                for phase in 0..3 {
                    let figure = estimated.uncertainty.figures[device][layer][phase];
                    let ratio = cluster.true_ns(device, layer, phase) / predicted_ns(&estimated, device, layer, phase);
                    within += usize::from((figure.low()..=figure.high()).contains(&ratio));
                    all += 1;
                }
            }
        }
    }
    let share = within as f64 / f64::from(all);
    assert!(share > 0.85, "{share}");
}

#[test]
fn boundary_optimizer_spread_and_iterations_are_measured() {
    let mut cluster = Cluster::new(&MIXED, 48, Noise::Heavy(0.1), 12);
    let mut estimator = cluster.trained(12);
    let estimated = fitted(&estimator);
    assert_eq!(estimated.problem.boundary_ns, 2_000_000);
    assert!((estimated.problem.optimizer_of(1, 20) as f64 / 1e6 - 1.0).abs() < 0.05);
    let spread = estimator.spread().expect("there are works");
    assert!((0.08..0.13).contains(&spread), "{spread}");
    let measured = estimator.measured(Epoch(1)).expect("there are warm iterations");
    assert_eq!(measured.iterations, 9);
    assert_eq!(estimator.measured(Epoch(2)), None);
    let simulated_ns = (measured.median_ns as f64 / 1.06) as u64;
    assert!((estimator.prediction_correction(Epoch(1), simulated_ns) - 1.06).abs() < 1e-3);
    assert!((estimator.prediction_correction(Epoch(2), 1) - 1.06).abs() < 1e-3, "the last one is remembered");
    // Twice as long is more than a model leaves out, unless others share the cores.
    assert_eq!(estimator.prediction_correction(Epoch(1), simulated_ns / 2), CORRECTION_MAX);
    estimator.crowd(&[CrowdedHost { devices: vec![DeviceIndex(0), DeviceIndex(1)], at_once: 1.0 }]);
    assert!((estimator.prediction_correction(Epoch(1), simulated_ns / 2) - 2.12).abs() < 1e-2);
    estimator.restart_window(Who::Device(DeviceIndex(0)), Step(10));
    assert_eq!(estimator.measured(Epoch(1)).map(|measured| measured.iterations), Some(2));
}

#[test]
fn jitter_is_measured_within_iterations() {
    let plan = |estimated: &Estimated| schedule::even(&estimated.problem);
    let longer = |estimated: &Estimated| {
        let plan = plan(estimated);
        let exact_ns = simulate::simulate(&estimated.problem, &plan).expect("it runs").iteration_ns;
        estimated.iterations(&plan).expect("it runs").median_ns() as f64 / exact_ns as f64
    };
    let trained = |noise| {
        let mut cluster = Cluster::new(&["h100"; 4], 8, noise, 15);
        cluster.cost_ns = vec![vec![[1e6; 3]; 8]];
        fitted(&cluster.trained(8))
    };
    let still = trained(Noise::Normal(0.0));
    assert!(still.uncertainty.noise.is_none());
    assert_eq!(longer(&still), 1.0);
    let noisy = trained(Noise::Normal(0.2));
    assert!(noisy.uncertainty.noise.together < 0.1, "{}", noisy.uncertainty.noise.together);
    // The same without a measurement.
    let known = noise::Jitter::log_normal(0.2);
    let known = noise::Noise { devices: vec![[known.clone(), known.clone(), known]; 4], together: 0.0 };
    let drawn = noise::draws(&still.problem, &plan(&still), &known, 32, 7).expect("it runs");
    let exact_ns = simulate::simulate(&still.problem, &plan(&still)).expect("it runs").iteration_ns;
    let expected = drawn.median_ns() as f64 / exact_ns as f64;
    assert!(expected > 1.02 && (longer(&noisy) - expected).abs() < 0.01, "{expected} {}", longer(&noisy));
    // Stalls: one work in fifty takes 3 ms more, which no median shows.
    let stalled = trained(Noise::Stalls);
    assert!(longer(&stalled) > 1.03, "{}", longer(&stalled));
    // A device that has run nothing yet jitters as its kind does.
    let mut cluster = Cluster::new(&["h100", "h100", "a100"], 16, Noise::Normal(0.2), 15);
    cluster.device_of = (0..16).map(|layer| if layer < 8 { 0 } else { 2 }).collect();
    let of = fitted(&cluster.trained(8)).uncertainty.noise.devices;
    assert_eq!(of[1], of[0]);
    assert_ne!(of[1], of[2]);
}

#[test]
fn what_is_missing_is_named() {
    let cluster = Cluster::new(&MIXED, 8, Noise::Normal(0.0), 1);
    let mut estimator = Estimator::new(cluster.job.clone());
    let missing = NotYet::Memory { signature: "embedding/e".into() };
    assert_eq!(estimator.problem(), Err(missing));
    cluster.memory().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
    let missing = NotYet::Cost { signature: "embedding/e".into(), phase: Phase::Forward };
    assert_eq!(estimator.problem(), Err(missing));
    let empty = Estimator::new(JobView { layers: Vec::new(), devices: Vec::new(), microbatches: 0 });
    assert_eq!(empty.problem(), Err(NotYet::Empty(Missing::Layers)));
}

#[test]
fn another_membership_keeps_what_is_known() {
    let mut cluster = Cluster::new(&MIXED, 48, Noise::Normal(0.03), 13);
    cluster.slowdown[2] = 1.5;
    let mut estimator = cluster.trained(10);
    let mut devices = cluster.job.devices.clone();
    devices[3].kind = "l40s".into();
    devices.remove(1);
    estimator.set_devices(devices, &[]);
    let estimated = fitted(&estimator);
    let slowdowns: Vec<f64> = estimated.problem.devices.iter().map(|device| device.slowdown).collect();
    assert!((slowdowns[0] - 1.0).abs() < 0.02 && (slowdowns[1] - 1.0).abs() < 0.6, "{slowdowns:?}");
    assert_eq!(estimated.uncertainty.figures[0][14][0].source, Source::SameSignature);
    assert_eq!(estimated.uncertainty.figures[2][14][0].source, Source::UnknownKind);
    assert!(predicted_ns(&estimated, 2, 14, 0) > 0.0);
}

/// What a kind does in a calibration.
fn rates(operations_per_s: u64, bytes_per_s: u64) -> Rates {
    Rates { operations_per_s: Some(operations_per_s), bytes_per_s: Some(bytes_per_s) }
}

#[test]
fn a_kind_that_nobody_ran_starts_with_what_its_calibration_says() {
    // Device 2 holds the last third of the layers and has measured nothing yet: it has just joined.
    let mut cluster = Cluster::new(&["h100", "h100", "l40s"], 48, Noise::Normal(0.05), 21);
    let mut estimator = Estimator::new(cluster.job.clone());
    let joined = DeviceIndex(2);
    cluster.device_of = (0..48).map(|layer| layer % 2).collect();
    cluster.memory().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
    for step in 0..6 {
        cluster.train(&mut estimator, step, Mark::Warm);
    }
    let ln_error = |estimated: &Estimated, layer: usize, phase: usize| {
        (predicted_ns(estimated, joined.index(), layer, phase) / cluster.true_ns(joined.index(), layer, phase)).ln()
    };
    let figure = |estimated: &Estimated, layer: usize, phase: usize| estimated.uncertainty.figures[2][layer][phase];

    let blind = fitted(&estimator);
    assert_eq!(figure(&blind, 14, 0).source, Source::UnknownKind);
    // The truth is 2 to 2.7 times as long for what computes, 1.5 times for the embedding.
    estimator.set_rates([("h100".to_owned(), rates(600, 290)), ("l40s".to_owned(), rates(250, 180))].into());
    let calibrated = fitted(&estimator);
    for layer in [0, 1, 2, 4, 5, 47] {
        for phase in 0..RUN.len() {
            let figure = figure(&calibrated, layer, phase);
            assert_eq!(figure.source, Source::OtherKindByRates, "layer {layer}");
            assert!(figure.source.is_guess());
            let (error, before) = (ln_error(&calibrated, layer, phase), ln_error(&blind, layer, phase));
            assert!(error.abs() < 1.64 * figure.ln_sd && figure.ln_sd >= 0.6, "layer {layer}: {error} {figure:?}");
            assert!(error.abs() < 0.25 && error.abs() < before.abs(), "layer {layer}: {error}, without {before}");
        }
    }
    // A single work of its own, and the kinds have something in common that tells more.
    let work = Sample::Work {
        place: Place { step: Step(6), epoch: Epoch(1), generation: Generation(1) },
        layer: LayerIndex(2),
        microbatch: Microbatch(0),
        phase: Phase::Forward,
        mark: Mark::Warm,
        start_ns: 0,
        duration_ns: cluster.true_ns(2, 2, 0) as u64,
    };
    estimator.absorb(joined, &work);
    let shared = fitted(&estimator);
    assert_eq!(figure(&shared, 14, 1).source, Source::OtherKind);
    assert!(figure(&shared, 14, 1).ln_sd < figure(&calibrated, 14, 1).ln_sd);
}

#[test]
fn draws_repeat_and_vary() {
    let mut cluster = Cluster::new(&MIXED, 16, Noise::Normal(0.05), 14);
    let estimated = fitted(&cluster.trained(6));
    assert_eq!(estimated.draw(1, 5), estimated.draw(1, 5));
    assert_ne!(estimated.draw(1, 5), estimated.draw(1, 6));
    assert_ne!(estimated.draw(1, 5), estimated.draw(2, 5));
    assert!(estimated.draw(1, 5).check().is_ok());
}

#[test]
fn a_change_that_passed_leaves_what_was_known_before_it() {
    let mut cluster = Cluster::new(&["h100", "h100", "a100"], 24, Noise::Normal(0.03), 21);
    let mut estimator = cluster.trained(12);
    let slowdown = |estimator: &Estimator| estimator.problem().expect("all was measured").problem.devices[1].slowdown;
    let device = Who::Device(DeviceIndex(1));
    let before = slowdown(&estimator);
    cluster.slowdown[1] = 2.0;
    (12..15).for_each(|step| cluster.train(&mut estimator, step, Mark::Warm));
    estimator.restart_window(device, Step(12));
    assert!((slowdown(&estimator) / 2.0 - 1.0).abs() < 0.03);
    cluster.slowdown[1] = 1.0;
    (15..17).for_each(|step| cluster.train(&mut estimator, step, Mark::Warm));
    estimator.undo_change(device, Step(12), Step(15));
    assert!((slowdown(&estimator) / before - 1.0).abs() < 0.01, "{before} {}", slowdown(&estimator));
    let figure = estimator.problem().expect("all was measured").uncertainty.slowdown_ln_sd[1];
    assert!(figure < 0.02, "as sure as before: {figure}");
}

#[test]
fn a_layer_that_changed_costs_its_new_time_and_its_device_is_no_slower() {
    let mut cluster = Cluster::new(&["h100", "h100", "a100"], 24, Noise::Normal(0.03), 22);
    let mut estimator = cluster.trained(12);
    let cost = |estimator: &Estimator, layer: usize| {
        let estimated = estimator.problem().expect("all was measured");
        (estimated.problem.costs["h100"][layer].forward_ns as f64, estimated.problem.devices[1].slowdown)
    };
    let (was, (beside, _)) = (cost(&estimator, 10), cost(&estimator, 11));
    cluster.cost_ns[0][10].iter_mut().for_each(|ns| *ns *= 1.6);
    (12..15).for_each(|step| cluster.train(&mut estimator, step, Mark::Warm));
    estimator.restart_window(Who::Layer(DeviceIndex(1), LayerIndex(10)), Step(12));
    let (is, (beside_now, _)) = (cost(&estimator, 10), cost(&estimator, 11));
    assert!((is.0 / was.0 / 1.6 - 1.0).abs() < 0.05, "{was:?} {is:?}");
    assert!((is.1 / was.1 - 1.0).abs() < 0.02 && (beside_now / beside - 1.0).abs() < 0.02, "{was:?} {is:?}");
}

#[test]
fn the_mean_of_what_goes_to_and_fro_is_a_factor_on_what_it_takes_now() {
    let estimated = Cluster::new(&["h100", "h100", "a100"], 12, Noise::Normal(0.01), 23).trained(8).problem();
    let estimated = estimated.expect("all was measured");
    let (device, layer) = (Who::Device(DeviceIndex(1)), Who::Layer(DeviceIndex(0), LayerIndex(2)));
    let mean = estimated.clone().averaged([(device, 1.25), (layer, 2.0)]).problem;
    let now = estimated.problem;
    assert!((mean.devices[1].slowdown / now.devices[1].slowdown - 1.25).abs() < 1e-9);
    assert_eq!(mean.devices[0].slowdown, now.devices[0].slowdown);
    assert_eq!(mean.costs["h100"][2].forward_ns, 2 * now.costs["h100"][2].forward_ns);
    assert_eq!(mean.costs["h100"][3], now.costs["h100"][3]);
}

/// How whole iterations of a device deviate, and by how much a layer takes another time on one device than on another.
#[derive(Clone, Copy)]
struct Systematic {
    iteration: f64,
    device_layer: f64,
}

/// Share of the costs measured that lie within their intervals, and the widest of the usual intervals.
fn held(systematic: Systematic) -> (f64, f64) {
    let (mut within, mut all, mut widest) = (0, 0, 0.0_f64);
    for seed in 0..16 {
        let mut cluster = Cluster::new(&MIXED, 24, Noise::Normal(0.05), 40 + seed);
        let mut random = Random::new(seed, 9);
        let own: Vec<f64> = (0..4 * 24).map(|_| random.factor(systematic.device_layer)).collect();
        let mut estimator = Estimator::new(cluster.job.clone());
        cluster.calibrate().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
        for step in 0..22 {
            if step == 11 {
                // The layers move on, so that each ran on two devices.
                cluster.device_of.iter_mut().for_each(|device| *device = (*device + 1) % 4);
                cluster.epoch += 1;
            }
            cluster.slowdown = (0..4).map(|_| random.factor(systematic.iteration)).collect();
            for (device, mut sample) in cluster.iteration(step, if step % 11 < 3 { Mark::Cold } else { Mark::Warm }) {
                if let Sample::Work { layer, duration_ns, .. } = &mut sample {
                    *duration_ns = (*duration_ns as f64 * own[device.index() * 24 + layer.index()]) as u64;
                }
                estimator.absorb(device, &sample);
            }
        }
        cluster.slowdown = vec![1.0; 4];
        let estimated = fitted(&estimator);
        let mut sds = Vec::new();
        for (layer, &device) in cluster.device_of.iter().enumerate() {
            for phase in 0..RUN.len() {
                let figure = estimated.uncertainty.figures[device][layer][phase];
                assert_eq!(figure.source, Source::Measured);
                let truth = cluster.true_ns(device, layer, phase) * own[device * 24 + layer];
                let ratio = truth / predicted_ns(&estimated, device, layer, phase);
                within += usize::from((figure.low()..=figure.high()).contains(&ratio));
                all += 1;
                sds.push(figure.ln_sd);
            }
        }
        widest = widest.max(super::robust::median(&mut sds).expect("there are figures"));
    }
    (within as f64 / f64::from(all), widest)
}

#[test]
fn what_does_not_average_out_widens_intervals_by_as_much() {
    let (share, still_sd) = held(Systematic { iteration: 0.0, device_layer: 0.0 });
    assert!(share > 0.87 && still_sd < 0.008, "{share} {still_sd}");
    for (systematic, least_sd) in [
        (Systematic { iteration: 0.03, device_layer: 0.0 }, 0.01),
        (Systematic { iteration: 0.0, device_layer: 0.03 }, 0.015),
    ] {
        let (share, sd) = held(systematic);
        assert!(share > 0.82 && sd > least_sd, "{} {}: {share} {sd}", systematic.iteration, systematic.device_layer);
    }
}

#[test]
fn where_too_much_is_coupled_each_number_is_told_by_itself() {
    let mut cluster = Cluster::new(&["h100"; 600], 12, Noise::Normal(0.05), 41);
    let mut estimator = Estimator::new(cluster.job.clone());
    cluster.calibrate().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
    let estimated = fitted(&estimator);
    assert!(estimated.uncertainty.joint.is_none());
    let figure = estimated.uncertainty.figures[599][3][0];
    assert!(figure.source == Source::Calibrated && (0.01..0.1).contains(&figure.ln_sd), "{figure:?}");
    assert_ne!(estimated.draw(1, 5), estimated.draw(1, 6));
}
