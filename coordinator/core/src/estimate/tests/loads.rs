//! Microbatches that differ: costs at the mean load.

use super::super::synthetic::Lengths;
use super::*;
use crate::estimate::Load;

const LENGTHS: Lengths = Lengths { ln_sd: 0.6, are_told: true };

/// Without a calibration, whose works are of no microbatch.
fn trained(noise: Noise, lengths: Lengths, iterations: u64, seed: u64) -> (Cluster, Estimator) {
    let mut cluster = Cluster::new(&MIXED, 24, noise, seed);
    cluster.lengths = Some(lengths);
    let mut estimator = Estimator::new(cluster.job.clone());
    cluster.memory().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
    for step in 0..iterations {
        cluster.train(&mut estimator, step, if step < 3 { Mark::Cold } else { Mark::Warm });
    }
    (cluster, estimator)
}

/// log(predicted / true at a load) of all that devices run.
fn off(cluster: &Cluster, estimated: &Estimated, load: Load) -> Vec<f64> {
    let of_layer = |layer: usize| {
        let device = cluster.device_of[layer];
        (0..RUN.len()).map(move |phase| {
            let truth = cluster.true_ns_at(device, layer, phase, load);
            (predicted_ns(estimated, device, layer, phase) / truth).ln()
        })
    };
    (0..cluster.job.layers.len()).flat_map(of_layer).collect()
}

fn mean_abs(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).sum::<f64>() / values.len() as f64
}

/// Less what all have in common: how well costs are known in relation to each other.
fn relative(values: &[f64]) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|value| value - mean).collect()
}

#[test]
fn costs_are_those_of_the_mean_load() {
    for (noise, most) in [(Noise::Normal(0.0), 0.002), (Noise::Normal(0.05), 0.02), (Noise::Heavy(0.1), 0.035)] {
        let (mut with, mut without) = ([0.0; 2], [0.0; 2]);
        let seeds = 6;
        for seed in 0..seeds {
            let (cluster, told) = trained(noise, LENGTHS, 12, seed);
            let (_, untold) = trained(noise, Lengths { are_told: false, ..LENGTHS }, 12, seed);
            let (told, untold) = (fitted(&told), fitted(&untold));
            let mean = told.uncertainty.covariates.as_ref().expect("loads differ").mean;
            assert!(untold.uncertainty.covariates.is_none());
            for (errors, estimated) in [(&mut with, &told), (&mut without, &untold)] {
                let off = off(&cluster, estimated, mean);
                errors[0] += mean_abs(&off) / seeds as f64;
                errors[1] += mean_abs(&relative(&off)) / seeds as f64;
            }
        }
        println!(
            "{noise:?}: error of costs {:.2}% with loads and {:.2}% without ({:.1} times), in relation to each other {:.2}% and \
             {:.2}% ({:.1} times)",
            100.0 * with[0],
            100.0 * without[0],
            without[0] / with[0],
            100.0 * with[1],
            100.0 * without[1],
            without[1] / with[1]
        );
        assert!(with[0] < most && with[0] * 5.0 < without[0], "{noise:?}: {with:?} {without:?}");
        assert!(with[1] < without[1], "{noise:?}: {with:?} {without:?}");
    }
}

#[test]
fn loads_that_do_not_differ_or_make_no_difference_change_nothing() {
    let same = |are_told| trained(Noise::Heavy(0.1), Lengths { ln_sd: 0.0, are_told }, 10, 3).1;
    let (mut told, untold) = (same(false), same(false));
    // All alike, for the busiest expert is drawn.
    for step in 0..10 {
        let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
        for microbatch in 0..MICROBATCHES {
            let (microbatch, tokens, squares) = (Microbatch(microbatch), 2_000, 4_000_000);
            told.absorb(DeviceIndex(0), &Sample::Load { place, microbatch, tokens, squares, busiest: 0 });
        }
    }
    assert_eq!(fitted(&told), fitted(&untold), "to the bit");

    // Padded to one length: times do not follow what is in a microbatch.
    let train = |are_told: bool| {
        let mut cluster = Cluster::new(&MIXED, 24, Noise::Normal(0.05), 5);
        let mut estimator = cluster.trained(0);
        for step in 0..10 {
            let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
            for microbatch in (0..MICROBATCHES).filter(|_| are_told) {
                let tokens = u64::from(1 + microbatch * 7 % 5) * (step % 3 + 1) * 100;
                let (microbatch, squares) = (Microbatch(microbatch), tokens * tokens);
                estimator.absorb(DeviceIndex(0), &Sample::Load { place, microbatch, tokens, squares, busiest: 0 });
            }
            cluster.train(&mut estimator, step, Mark::Warm);
        }
        fitted(&estimator)
    };
    assert_eq!(train(true), train(false), "to the bit, too");
}

#[test]
fn loads_may_come_after_the_works_and_some_not_at_all() {
    let mut cluster = Cluster::new(&MIXED, 24, Noise::Normal(0.05), 8);
    cluster.lengths = Some(LENGTHS);
    let mut estimator = Estimator::new(cluster.job.clone());
    cluster.memory().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
    let mut late: Vec<(DeviceIndex, Sample)> = Vec::new();
    for step in 0..14 {
        let (loads, works): (Vec<_>, Vec<_>) = cluster
            .iteration(step, Mark::Warm)
            .into_iter()
            .partition(|(_, sample)| matches!(sample, Sample::Load { .. }));
        let mut came = std::mem::replace(&mut late, loads);
        // One in eight never comes.
        came.truncate(MICROBATCHES as usize - 1);
        works.iter().chain(&came).for_each(|(device, sample)| estimator.absorb(*device, sample));
    }
    let estimated = fitted(&estimator);
    let mean = estimated.uncertainty.covariates.as_ref().expect("loads differ").mean;
    let off = mean_abs(&off(&cluster, &estimated, mean));
    assert!(off < 0.03, "{off}");
}

#[test]
fn a_slow_device_is_none_of_longer_sequences() {
    let mut cluster = Cluster::new(&MIXED, 24, Noise::Normal(0.05), 4);
    cluster.lengths = Some(LENGTHS);
    let mut estimator = cluster.trained(12);
    cluster.slowdown[1] = 1.5;
    estimator.restart_window(Who::Device(DeviceIndex(1)), Step(12));
    for step in 12..20 {
        cluster.train(&mut estimator, step, Mark::Warm);
    }
    let slowdowns: Vec<f64> = fitted(&estimator).problem.devices.iter().map(|device| device.slowdown).collect();
    for (found, truth) in slowdowns.iter().zip([1.0, 1.5, 1.0, 1.0]) {
        assert!((found / truth - 1.0).abs() < 0.03, "{slowdowns:?}");
    }
}

#[test]
fn intervals_hold_with_loads() {
    let mut lengths = 0.0;
    for noise in [Noise::Normal(0.05), Noise::Heavy(0.1)] {
        let (mut within, mut all) = (0, 0);
        for seed in 0..16 {
            let (cluster, estimator) = trained(noise, LENGTHS, 12, 100 + seed);
            let estimated = fitted(&estimator);
            let mean = estimated.uncertainty.covariates.as_ref().expect("loads differ").mean;
            lengths += mean.tokens;
            for layer in 0..cluster.job.layers.len() {
                let device = cluster.device_of[layer];
                for phase in 0..RUN.len() {
                    let figure = estimated.uncertainty.figures[device][layer][phase];
                    assert_eq!(figure.source, Source::Measured);
                    let truth = cluster.true_ns_at(device, layer, phase, mean);
                    let ratio = truth / predicted_ns(&estimated, device, layer, phase);
                    within += usize::from((figure.low()..=figure.high()).contains(&ratio));
                    all += 1;
                }
            }
        }
        let percent = 100.0 * within as f64 / all as f64;
        println!("{noise:?}: {percent:.1}% of {all} costs within their interval of 90%");
        assert!((87.0..=93.0).contains(&percent), "{noise:?}: {percent:.1}%");
    }
    assert!((lengths / 32.0 / 2_394.0 - 1.0).abs() < 0.05, "costs are said to be of the mean length");
}
