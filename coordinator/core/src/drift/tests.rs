use super::{Change, Drift, Gauge, Limits, OF_PLAN_ITERATIONS, OfLayer, Reading, Readings, Shift, Who};
use crate::estimate::random::Random;
use crate::estimate::synthetic::{Cluster, Lengths, Noise};
use adaptis_proto::sample::{Mark, Place, Sample};
use adaptis_proto::{DeviceIndex, Epoch, Generation, LayerIndex, Microbatch, Step};
use proptest::prelude::*;

const DEVICES: usize = 4;
const WORKS: u32 = 8;

fn device(at: usize) -> Who {
    Who::Device(DeviceIndex::from(at))
}

/// Readings of devices whose works deviate by `spread` (Student t, 4 degrees), with a deviation in common.
struct Source {
    random: Random,
    devices: usize,
    works: u32,
    spread: f64,
    common_sd: f64,
    /// True log factor of each device.
    level: Vec<f64>,
}

impl Source {
    fn new(devices: usize, spread: f64, common_sd: f64, seed: u64) -> Self {
        let (random, level) = (Random::new(seed, 1), vec![0.0; devices]);
        Self { random, devices, works: WORKS, spread, common_sd, level }
    }

    fn reading(&mut self, at: usize, common: f64) -> Reading {
        let mut works: Vec<f64> = (0..self.works)
            .map(|_| {
                let squares: f64 = (0..4).map(|_| self.random.normal().powi(2)).sum();
                let t = self.random.normal() / (squares / 4.0).sqrt();
                (1.0 + self.spread * t).max(0.2).ln()
            })
            .collect();
        let ln_ratio = crate::estimate::robust::median(&mut works).expect("there are works") + self.level[at] + common;
        Reading {
            who: device(at),
            ln_ratio,
            works: self.works,
            spread: self.spread,
            reference_ln_sd: 0.01,
            is_guess: false,
            cold: false,
            deviation: self.spread,
            layers: Vec::new(),
            phases: [None; 3],
        }
    }

    fn next(&mut self, step: u64) -> Readings {
        let common = self.common_sd * self.random.normal();
        Readings { step: Step(step), of: (0..self.devices).map(|at| self.reading(at, common)).collect() }
    }
}

/// The changes that are told, whether they last or not.
fn changes(shifts: Vec<Shift>) -> Vec<Change> {
    let change = |shift| match shift {
        Shift::Changed(change) => Some(change),
        Shift::Passed(passed) => Some(passed.ended),
        Shift::Lasts(_) | Shift::Turned(_) => None,
        Shift::Corrected(_) | Shift::WithPlan(_) => panic!("nothing was guessed, and no plan changed: {shift:?}"),
    };
    shifts.into_iter().filter_map(change).collect()
}

/// Feeds steps and gathers the changes.
fn feed(drift: &mut Drift, source: &mut Source, steps: std::ops::Range<u64>) -> Vec<Change> {
    steps.flat_map(|step| changes(drift.observe(&source.next(step)))).collect()
}

/// Delays (in iterations, the one of the onset counted) until a step of `factor` on one device is confirmed, and how
/// many other changes were told.
fn delays(factor: f64, spread: f64, common_sd: f64, devices: usize, runs: u64) -> (Vec<u64>, usize) {
    let (mut delays, mut false_alarms) = (Vec::new(), 0);
    for seed in 0..runs {
        let mut source = Source::new(devices, spread, common_sd, seed);
        let mut drift = Drift::new(Limits::default());
        let quiet = 5 + seed % 30;
        false_alarms += feed(&mut drift, &mut source, 0..quiet).len();
        source.level[devices - 1] = factor.ln();
        let changes = feed(&mut drift, &mut source, quiet..quiet + 12);
        let right = |change: &&Change| change.who == device(devices - 1) && change.factor.ln() * factor.ln() > 0.0;
        delays.push(changes.iter().find(right).map_or(99, |change| change.detected.0 - quiet + 1));
        false_alarms += changes.iter().filter(|change| change.who != device(devices - 1)).count();
    }
    delays.sort_unstable();
    (delays, false_alarms)
}

#[test]
fn steps_are_confirmed_in_time() {
    // Factor, spread, common deviation, devices; typical delay and the one that 98 of 100 keep to.
    for (factor, spread, common_sd, devices, typical, latest) in [
        (1.2, 0.05, 0.0, 4, 2, 3),
        (1.2, 0.10, 0.0, 4, 3, 5),
        (1.2, 0.10, 0.0, 2, 3, 5),
        (1.0 / 1.2, 0.10, 0.0, 4, 3, 5),
        // What all have in common is as large as the noise here: the hardest case.
        (1.2, 0.10, 0.05, 4, 3, 7),
        (1.8, 0.10, 0.05, 4, 2, 2),
        (1.8, 0.10, 0.0, 1, 2, 2),
        (3.0, 0.02, 0.05, 8, 2, 2),
    ] {
        let runs = 300;
        let (delays, false_alarms) = delays(factor, spread, common_sd, devices, runs);
        let (median, almost_all) = (delays[runs as usize / 2], delays[runs as usize * 98 / 100]);
        assert!(median <= typical && almost_all <= latest, "{factor} {spread} {devices}: {median} {almost_all}");
        // A reading before the onset may lean the right way by chance; that must stay rare.
        assert!(delays[runs as usize / 50] >= 2, "{factor} {spread} {devices}: one iteration is no change");
        // About 10,000 readings a device, most of them before the noise is learned.
        assert!(false_alarms <= 10, "{factor} {spread} {devices}: {false_alarms}");
    }
}

#[test]
fn quiet_iterations_raise_no_alarm() {
    for (spread, common_sd, works, devices, highest) in [
        (0.1, 0.0, 8, 4, 1e-4),
        (0.1, 0.05, 8, 4, 1e-4),
        (0.05, 0.0, 100, 4, 1e-4),
        (0.1, 0.0, 8, 2, 1e-4),
        (0.02, 0.05, 200, 8, 1e-4),
        // A single heavy-tailed work is hardly a median.
        (0.1, 0.0, 1, 4, 3e-4),
    ] {
        let (mut alarms, iterations) = (0, 16_000);
        for seed in 0..4 {
            let mut source = Source::new(devices, spread, common_sd, 1_000 + seed);
            source.works = works;
            let mut drift = Drift::new(Limits::default());
            alarms += feed(&mut drift, &mut source, 0..iterations / 4).len();
        }
        let rate = alarms as f64 / (iterations * devices as u64) as f64;
        assert!(rate < highest, "{spread} {common_sd} {works} {devices}: {rate}");
    }
}

#[test]
fn one_slow_iteration_is_no_change() {
    let mut source = Source::new(DEVICES, 0.05, 0.0, 3);
    let mut drift = Drift::new(Limits::default());
    for step in 0..200 {
        source.level[2] = if step % 10 == 9 { 3f64.ln() } else { 0.0 };
        assert_eq!(drift.observe(&source.next(step)), [], "step {step}");
    }
}

#[test]
fn onset_and_factor_are_right_and_the_way_back_is_told() {
    for seed in 0..40 {
        let mut source = Source::new(DEVICES, 0.05, 0.02, seed);
        let mut drift = Drift::new(Limits::default());
        assert_eq!(feed(&mut drift, &mut source, 0..20), []);
        source.level[3] = 1.8f64.ln();
        let there = feed(&mut drift, &mut source, 20..30);
        source.level[3] = 0.0;
        let back = feed(&mut drift, &mut source, 30..40);
        for (changes, onset, factor) in [(there, 20, 1.8), (back, 30, 1.0 / 1.8)] {
            assert_eq!(changes.len(), 1, "{changes:?}");
            assert_eq!((changes[0].who, changes[0].onset), (device(3), Step(onset)), "{seed}");
            assert!((changes[0].factor / factor - 1.0).abs() < 0.1, "{changes:?}");
        }
    }
}

#[test]
fn half_of_the_devices_may_slow_down_together() {
    let mut source = Source::new(DEVICES, 0.05, 0.0, 5);
    let mut drift = Drift::new(Limits::default());
    feed(&mut drift, &mut source, 0..20);
    source.level[..2].fill(1.5f64.ln());
    let mut who: Vec<Who> = feed(&mut drift, &mut source, 20..30).into_iter().map(|change| change.who).collect();
    who.sort_unstable();
    assert_eq!(who, [device(0), device(1)]);
}

#[test]
fn a_slow_rise_adds_up_to_a_change() {
    let mut source = Source::new(DEVICES, 0.05, 0.0, 6);
    let mut drift = Drift::new(Limits::default());
    feed(&mut drift, &mut source, 0..40);
    let mut changes = Vec::new();
    for step in 40..200 {
        source.level[0] += 0.002;
        changes.extend(self::changes(drift.observe(&source.next(step))));
    }
    assert!(!changes.is_empty() && changes.iter().all(|change| change.who == device(0)), "{changes:?}");
    let told: f64 = changes.iter().map(|change| change.factor.ln()).sum();
    assert!((0.15..0.4).contains(&told), "{told}");
}

#[test]
fn what_changes_in_cold_iterations_is_found_behind_them() {
    let mut source = Source::new(DEVICES, 0.05, 0.0, 7);
    let mut drift = Drift::new(Limits::default());
    feed(&mut drift, &mut source, 0..20);
    source.level[1] = 1.4f64.ln();
    for step in 20..23 {
        let mut readings = source.next(step);
        readings.of.iter_mut().for_each(|reading| reading.cold = true);
        assert_eq!(drift.observe(&readings), []);
    }
    let changes = feed(&mut drift, &mut source, 23..26);
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].who, changes[0].onset), (device(1), Step(20)));
}

#[test]
fn an_uncertain_reference_is_no_change() {
    let mut drift = Drift::new(Limits::default());
    let mut source = Source::new(DEVICES, 0.05, 0.0, 8);
    feed(&mut drift, &mut source, 0..40);
    // A new plan: the layers of device 0 take 12% more than was guessed, within 10% of uncertainty.
    source.level[0] = 0.11;
    for step in 40..60 {
        let mut readings = source.next(step);
        readings.of[0].reference_ln_sd = 0.1;
        assert_eq!(drift.observe(&readings), []);
    }
    drift.reference_changed();
    source.level[0] = 0.0;
    assert_eq!(feed(&mut drift, &mut source, 60..90), []);
}

#[test]
fn a_guess_that_was_wrong_is_corrected_and_what_changes_after_it_is_a_change() {
    for (seed, factor) in [(1, 0.57), (2, 0.8), (3, 2.2)] {
        let mut drift = Drift::new(Limits::default());
        let mut source = Source::new(DEVICES, 0.05, 0.0, 60 + seed);
        feed(&mut drift, &mut source, 0..40);
        // A new plan: device 0 does what no device of its kind ever did.
        source.level[0] = f64::ln(factor);
        let mut shifts = Vec::new();
        for step in 40..80 {
            if step == 65 {
                source.level[0] += 1.8f64.ln();
            }
            let mut readings = source.next(step);
            (readings.of[0].reference_ln_sd, readings.of[0].is_guess) = (0.05, true);
            readings.of.iter_mut().for_each(|reading| reading.cold = step < 43);
            shifts.extend(drift.observe(&readings).into_iter().filter(|shift| !matches!(shift, Shift::Lasts(_))));
        }
        let [Shift::Corrected(corrected), Shift::Changed(changed)] = shifts[..] else { panic!("{factor}: {shifts:?}") };
        assert_eq!((corrected.who, changed.who, changed.onset), (device(0), device(0), Step(65)));
        assert!((corrected.factor / factor - 1.0).abs() < 0.05, "{corrected:?}");
        assert!((changed.factor / 1.8 - 1.0).abs() < 0.05, "{changed:?}");
    }
}

#[test]
fn what_begins_with_another_plan_is_no_change_unless_it_is_large() {
    for (seed, factor, later, is_told) in [
        (1, 0.8, 0, false),
        (2, 1.2, 0, false),
        (3, 0.3, 2, false),
        (4, 1.8, 0, true),
        (5, 1.2, OF_PLAN_ITERATIONS, true),
    ] {
        let mut drift = Drift::new(Limits::default());
        let mut source = Source::new(DEVICES, 0.05, 0.0, 160 + seed);
        feed(&mut drift, &mut source, 0..40);
        drift.switched(Step(40));
        let mut shifts = Vec::new();
        for step in 40..60 {
            if step == 40 + later {
                source.level[0] = f64::ln(factor);
            }
            let mut readings = source.next(step);
            readings.of.iter_mut().for_each(|reading| reading.cold = step < 43);
            shifts.extend(drift.observe(&readings).into_iter().filter(|shift| !matches!(shift, Shift::Lasts(_))));
        }
        let [shift] = shifts[..] else { panic!("{factor}: {shifts:?}") };
        assert_eq!(matches!(shift, Shift::Changed(_)), is_told, "{shift:?}");
        assert_eq!(matches!(shift, Shift::WithPlan(_)), !is_told, "{shift:?}");
        assert!((shift.change().factor / factor - 1.0).abs() < 0.05, "{shift:?}");
    }
}

#[test]
fn works_that_were_measured_speak_for_a_device_beside_guessed_ones() {
    let mut cluster = Cluster::new(&["h100", "h100", "a100", "a100"], 48, Noise::Normal(0.03), 4);
    // The head of the calibration of device 1 came out at twice its time.
    let mut estimator = crate::estimate::Estimator::new(cluster.job.clone());
    for (device, mut sample) in cluster.calibrate() {
        if let Sample::Work { layer, duration_ns, .. } = &mut sample
            && layer.index() == 47
            && device == DeviceIndex(1)
        {
            *duration_ns *= 2;
        }
        estimator.absorb(device, &sample);
    }
    for step in 0..8 {
        cluster.train(&mut estimator, step, if step < 3 { Mark::Cold } else { Mark::Warm });
    }
    let estimated = estimator.problem().expect("there are samples of everything");
    let (mut gauge, mut drift) = (Gauge::new(&estimated), Drift::new(Limits::default()));
    // The head moves there, alone or beside what the device has.
    for is_alone in [false, true] {
        if is_alone {
            cluster.device_of.iter_mut().filter(|device| **device == 1).for_each(|device| *device = 0);
        }
        cluster.device_of[47] = 1;
        let mut shifts = Vec::new();
        for step in if is_alone { 40..60 } else { 8..40 } {
            for (device, sample) in cluster.iteration(step, Mark::Warm) {
                gauge.absorb(device, &sample).iter().for_each(|readings| shifts.extend(drift.observe(readings)));
            }
        }
        match (is_alone, &shifts[..]) {
            (false, []) => {}
            (true, [Shift::Corrected(corrected)]) => assert_eq!(corrected.who, device(1), "{corrected:?}"),
            _ => panic!("{is_alone}: {shifts:?}"),
        }
    }
}

#[test]
fn samples_become_changes() {
    for (noise, seed) in [(Noise::Heavy(0.1), 1), (Noise::Stalls, 2), (Noise::Normal(0.03), 3)] {
        let mut cluster = Cluster::new(&["h100", "h100", "a100", "a100"], 48, noise, seed);
        let estimated = cluster.trained(6).problem().expect("there are samples of everything");
        let (mut gauge, mut drift, mut changes) = (Gauge::new(&estimated), Drift::new(Limits::default()), Vec::new());
        for step in 6..60 {
            cluster.slowdown[1] = if step >= 40 { 1.2 } else { 1.0 };
            for (device, sample) in cluster.iteration(step, Mark::Warm) {
                for readings in gauge.absorb(device, &sample) {
                    assert_eq!(readings.of.len(), DEVICES);
                    changes.extend(self::changes(drift.observe(&readings)));
                }
            }
        }
        assert_eq!(changes.len(), 1, "{noise:?} {changes:?}");
        assert_eq!((changes[0].who, changes[0].onset, changes[0].detected), (device(1), Step(40), Step(41)));
        assert!((changes[0].factor / 1.2 - 1.0).abs() < 0.03, "{changes:?}");
    }
}

#[test]
fn a_device_is_watched_though_loads_stop() {
    for (seed, are_told) in (0..4).flat_map(|seed| [(seed, true), (seed, false)]) {
        let mut cluster = Cluster::new(&["h100", "h100", "a100", "a100"], 24, Noise::Normal(0.05), seed);
        cluster.lengths = Some(Lengths { ln_sd: 0.5, are_told: true });
        let estimated = cluster.trained(16).problem().expect("there are samples of everything");
        let (mut gauge, mut drift, mut changes) = (Gauge::new(&estimated), Drift::new(Limits::default()), Vec::new());
        for step in 16..80 {
            cluster.slowdown[1] = if step >= 60 { 2.5 } else { 1.0 };
            for (device, sample) in cluster.iteration(step, Mark::Warm) {
                if matches!(sample, Sample::Load { .. }) && !are_told {
                    continue;
                }
                for readings in gauge.absorb(device, &sample) {
                    assert_eq!(readings.of.len(), DEVICES);
                    let spread = readings.of[0].spread;
                    assert!(if are_told { spread < 0.1 } else { spread > 0.3 }, "step {step}: {spread}");
                    changes.extend(self::changes(drift.observe(&readings)));
                }
            }
        }
        assert_eq!(gauge.without_load() > 0, !are_told);
        assert_eq!(changes.len(), 1, "{are_told} {changes:?}");
        assert_eq!((changes[0].who, changes[0].onset), (device(1), Step(60)));
        assert!((changes[0].factor / 2.5 - 1.0).abs() < 0.2, "{changes:?}");
    }
}

#[test]
fn loads_of_iterations_that_nobody_runs_blind_nobody() {
    let mut cluster = Cluster::new(&["h100", "h100", "a100", "a100"], 24, Noise::Normal(0.05), 3);
    cluster.lengths = Some(Lengths { ln_sd: 0.5, are_told: true });
    let estimated = cluster.trained(16).problem().expect("there are samples of everything");
    let mut gauge = Gauge::new(&estimated);
    for step in 16..40 {
        for (device, sample) in cluster.iteration(step, Mark::Warm) {
            gauge.absorb(device, &sample);
        }
        for ahead in 0..if step == 20 { 64 } else { 0 } {
            let place = Place { step: Step(1 << 30 | ahead), epoch: Epoch(1), generation: Generation(1) };
            let (microbatch, tokens, squares) = (Microbatch(0), 2_000, 4_000_000);
            gauge.absorb(DeviceIndex(2), &Sample::Load { place, microbatch, tokens, squares, busiest: 0 });
        }
    }
    assert_eq!(gauge.without_load(), 0);
}

#[test]
fn an_iteration_that_a_device_never_ends_is_read_anyway() {
    let mut cluster = Cluster::new(&["h100", "h100", "a100"], 12, Noise::Normal(0.01), 1);
    let estimated = cluster.trained(6).problem().expect("there are samples of everything");
    let mut gauge = Gauge::new(&estimated);
    let mut steps = Vec::new();
    for step in 6..16 {
        for (device, sample) in cluster.iteration(step, Mark::Warm) {
            let is_lost = device == DeviceIndex(2) && matches!(sample, Sample::Iteration { .. });
            if !is_lost {
                steps.extend(gauge.absorb(device, &sample).iter().map(|readings| readings.step.0));
            }
        }
    }
    assert_eq!(steps, (6..12).collect::<Vec<_>>());
}

#[test]
fn a_link_is_watched_like_a_device() {
    let link = Who::Link(DeviceIndex(0), DeviceIndex(1));
    let mut drift = Drift::new(Limits::default());
    let mut changes = Vec::new();
    for step in 0..30 {
        let ln_ratio = if step < 20 { 0.0 } else { 4f64.ln() };
        let of = vec![Reading {
            who: link,
            ln_ratio,
            works: 16,
            spread: 0.05,
            reference_ln_sd: 0.01,
            is_guess: false,
            cold: false,
            deviation: 0.05,
            layers: Vec::new(),
            phases: [None; 3],
        }];
        changes.extend(self::changes(drift.observe(&Readings { step: Step(step), of })));
    }
    let [change] = changes[..] else { panic!("{changes:?}") };
    assert_eq!((change.who, change.onset, change.detected), (link, Step(20), Step(21)));
    assert!((change.factor - 4.0).abs() < 1e-9);
}

proptest! {
    #[test]
    fn nothing_panics(
        readings in prop::collection::vec(
            (0..3usize, any::<f64>(), any::<u32>(), any::<f64>(), any::<f64>(), any::<bool>(), any::<bool>()),
            0..200,
        ),
    ) {
        let mut drift = Drift::new(Limits::default());
        for (step, (at, ln_ratio, works, spread, reference_ln_sd, is_guess, cold)) in readings.into_iter().enumerate() {
            let layer = |layer: usize, ln_ratio| OfLayer { layer: LayerIndex::from(layer), ln_ratio, works, reference_ln_sd };
            let one = Reading {
                who: device(at),
                ln_ratio,
                works,
                spread,
                reference_ln_sd,
                is_guess,
                cold,
                deviation: spread,
                layers: vec![layer(0, ln_ratio), layer(1, -ln_ratio), layer(2, spread)],
                phases: [Some((ln_ratio, works)), None, Some((spread, works))],
            };
            let other = Reading { who: device(3), ..one.clone() };
            let third = Reading { who: device(4), ln_ratio: -ln_ratio, ..one.clone() };
            for shift in drift.observe(&Readings { step: Step(step as u64), of: vec![one, other, third] }) {
                let change = shift.change();
                prop_assert!(!change.factor.is_nan() && change.onset <= change.detected);
            }
        }
    }
}
