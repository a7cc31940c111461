//! How changes end, and what they look like: one story a test. Works deviate by 5%, four layers on each of four devices.

use super::{Cause, Change, Course, Drift, Limits, OfLayer, Reading, Readings, Shift, Who};
use crate::estimate::random::Random;
use crate::estimate::robust;
use adaptis_proto::{DeviceIndex, LayerIndex, Step};

const DEVICES: usize = 4;
const LAYERS: usize = 4;
/// Of each layer.
const WORKS: u32 = 6;
const SPREAD: f64 = 0.05;
const ONE: Who = Who::Device(DeviceIndex(1));
const SLOW_LAYER: Who = Who::Layer(DeviceIndex(1), LayerIndex(6));

/// What device 1 takes beside normal: each of its layers, how much more its works deviate, the link that leads to it.
#[derive(Clone, Copy)]
struct Level {
    layers: [f64; LAYERS],
    deviation: f64,
    link: f64,
}

fn all(factor: f64) -> Level {
    Level { layers: [factor; LAYERS], deviation: 1.0, link: 1.0 }
}

struct Scene {
    random: Random,
    drift: Drift,
    step: u64,
    told: Vec<Shift>,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let mut scene =
            Scene { random: Random::new(seed, 7), drift: Drift::new(Limits::default()), step: 0, told: vec![] };
        scene.go_on(40, |_| all(1.0));
        assert_eq!(scene.told, [], "quiet so far");
        scene
    }

    /// Iterations; the level of each by its number from here on.
    fn go_on(&mut self, iterations: u64, level: impl Fn(u64) -> Level) -> &mut Self {
        for at in 0..iterations {
            let level = level(at);
            let mut of: Vec<Reading> = (0..DEVICES).map(|device| self.device(device, level)).collect();
            for to in 1..DEVICES {
                let factor = if to == 1 { level.link } else { 1.0 };
                let who = Who::Link(DeviceIndex::from(to - 1), DeviceIndex::from(to));
                of.push(self.reading(who, &[factor], 1.0));
            }
            self.told.extend(self.drift.observe(&Readings { step: Step(self.step), of }));
            self.step += 1;
        }
        self
    }

    fn device(&mut self, device: usize, level: Level) -> Reading {
        let level = if device == 1 { level } else { all(1.0) };
        let who = Who::Device(DeviceIndex::from(device));
        let mut reading = self.reading(who, &level.layers, level.deviation);
        for (at, layer) in reading.layers.iter_mut().enumerate() {
            layer.layer = LayerIndex::from(device * LAYERS + at);
        }
        reading
    }

    fn reading(&mut self, who: Who, layers: &[f64], deviation: f64) -> Reading {
        let mut lns: Vec<Vec<f64>> = Vec::new();
        for layer in layers {
            let of = (0..WORKS).map(|_| layer.ln() + deviation * SPREAD * self.random.normal());
            lns.push(of.collect());
        }
        let of_layer = |(at, lns): (usize, &Vec<f64>)| OfLayer {
            layer: LayerIndex::from(at),
            ln_ratio: robust::location(&mut lns.clone(), SPREAD).expect("there are works"),
            works: WORKS,
            reference_ln_sd: 0.01,
        };
        let mut whole: Vec<f64> = lns.concat();
        let ln_ratio = robust::location(&mut whole, SPREAD).expect("there are works");
        let works = WORKS * layers.len() as u32;
        Reading {
            who,
            ln_ratio,
            works,
            spread: SPREAD,
            reference_ln_sd: 0.01,
            is_guess: false,
            cold: false,
            deviation: robust::scale_around(&whole, ln_ratio).expect("there are works"),
            layers: if matches!(who, Who::Device(_)) { lns.iter().enumerate().map(of_layer).collect() } else { vec![] },
            phases: [Some((ln_ratio, works)), None, None],
        }
    }

    fn change(&self) -> Change {
        let told = self.told.first().unwrap_or_else(|| panic!("nothing was told"));
        let Shift::Changed(change) = *told else { panic!("{told:?}") };
        change
    }
}

#[test]
fn a_step_is_told_at_once_and_lasts_from_its_fourth_iteration_on() {
    for seed in 0..50 {
        let mut scene = Scene::new(seed);
        scene.go_on(3, |_| all(1.8));
        let [Shift::Changed(change)] = scene.told[..] else { panic!("{:?}", scene.told) };
        assert_eq!((change.who, change.onset, change.detected), (ONE, Step(40), Step(41)));
        assert_eq!((change.course, change.cause), (Course::Step, Cause::Throttle), "{change:?}");
        scene.go_on(1, |_| all(1.8));
        assert_eq!(scene.told[1..], [Shift::Lasts(change)]);
        scene.go_on(40, |_| all(1.8));
        assert_eq!(scene.told.len(), 2, "and is told once: {:?}", scene.told);
    }
}

#[test]
fn a_transient_passes_and_is_never_acted_on() {
    for seed in 0..50 {
        for iterations in [2, 3] {
            let mut scene = Scene::new(seed);
            scene.go_on(iterations, |_| all(2.0)).go_on(30, |_| all(1.0));
            let [Shift::Changed(change), Shift::Passed(passed)] = scene.told[..] else { panic!("{:?}", scene.told) };
            assert_eq!((passed.began, passed.iterations()), (change, iterations));
            assert_eq!((passed.ended.who, passed.ended.onset), (ONE, Step(40 + iterations)));
        }
    }
}

#[test]
fn a_change_back_is_a_change_of_its_own() {
    let mut scene = Scene::new(1);
    scene.go_on(20, |_| all(1.2)).go_on(20, |_| all(1.0));
    let [Shift::Changed(there), Shift::Lasts(_), Shift::Changed(back), Shift::Lasts(_)] = scene.told[..] else {
        panic!("{:?}", scene.told)
    };
    assert!((there.factor * back.factor - 1.0).abs() < 0.05, "{there:?} {back:?}");
    assert_eq!((there.onset, back.onset), (Step(40), Step(60)));
}

#[test]
fn what_comes_and_goes_is_told_with_its_period_and_mean_and_then_no_more() {
    let mut scene = Scene::new(2);
    // 10 slow, 20 fast.
    scene.go_on(150, |at| all(if at % 30 < 10 { 1.3 } else { 1.0 }));
    let lasting: Vec<Change> =
        scene.told.iter().filter(|told| matches!(told, Shift::Lasts(_))).map(Shift::change).collect();
    let [up, down, again] = lasting[..] else { panic!("{:?}", scene.told) };
    assert_eq!((up.onset, down.onset, again.onset), (Step(40), Step(50), Step(70)));
    let Course::Periodic { period_iterations, slow_share, slow_factor, average } = again.course else {
        panic!("{again:?}")
    };
    assert!((period_iterations - 30.0).abs() < 1.5 && (slow_share - 1.0 / 3.0).abs() < 0.05, "{again:?}");
    assert!((slow_factor - 1.3).abs() < 0.04 && (average - 1.1 / 1.3).abs() < 0.02, "{again:?}");
    let turns = scene.told.iter().filter(|told| matches!(told, Shift::Turned(_))).count();
    assert_eq!(turns, 7, "{:?}", scene.told);
    // It stays: what was planned for was the mean, hence the change is from there.
    let told = scene.told.len();
    scene.go_on(80, |_| all(1.3));
    let [Shift::Turned(_), Shift::Changed(stays), Shift::Lasts(_)] = scene.told[told..] else {
        panic!("{:?}", scene.told)
    };
    assert!((stays.factor - 1.3 / 1.1).abs() < 0.03 && stays.course == Course::Step, "{stays:?}");
}

#[test]
fn a_gradual_drift_is_told_each_time_that_its_sum_is_enough() {
    let mut scene = Scene::new(3);
    scene.go_on(100, |at| all(1.0 + 0.004 * at as f64)).go_on(40, |_| all(1.4));
    let lasting: Vec<Change> =
        scene.told.iter().filter(|told| matches!(told, Shift::Lasts(_))).map(Shift::change).collect();
    assert!(lasting.len() >= 3, "{:?}", scene.told);
    let mut sum = 0.0;
    for change in &lasting {
        sum += change.factor.ln();
        let Course::Gradual { from, per_iteration, total } = change.course else { panic!("{change:?}") };
        assert!(from.0.abs_diff(40) < 15 && (1.002..1.006).contains(&per_iteration), "{change:?}");
        assert!((total.ln() - sum).abs() < 0.01, "{change:?}: {sum}");
    }
    assert!((sum - 1.4f64.ln()).abs() < 0.07, "what is left is too little to be told: {sum}");
}

#[test]
fn one_layer_is_named_and_its_device_is_not_blamed() {
    for seed in 0..50 {
        for (factor, latest) in [(1.5, 5), (2.0, 3)] {
            let mut scene = Scene::new(seed);
            let mut level = all(1.0);
            level.layers[2] = factor;
            scene.go_on(20, |_| level);
            let change = scene.change();
            assert_eq!((change.who, change.cause), (SLOW_LAYER, Cause::OneLayer), "{:?}", scene.told);
            assert!(change.onset == Step(40) && change.detected.0 < 40 + latest, "{change:?}");
            assert!((change.factor / factor - 1.0).abs() < 0.1, "{change:?}");
            // Whoever refits after a change takes the layer's new time for what it costs.
            assert!(scene.told.iter().all(|told| told.change().who != Who::Device(DeviceIndex(0))), "{:?}", scene.told);
        }
    }
}

#[test]
fn contention_shows_in_how_works_vary_and_in_slow_links() {
    let mut right = 0;
    for seed in 0..50 {
        let mut scene = Scene::new(seed);
        scene.go_on(10, |_| Level { deviation: 4.0, ..all(1.5) });
        let change = scene.change();
        right += usize::from(change.cause == Cause::Contention && change.evidence.deviation > 1.5);
        let mut scene = Scene::new(seed);
        scene.go_on(10, |_| Level { link: 2.0, ..all(1.5) });
        let of_device = scene.told.iter().map(Shift::change).find(|change| change.who == ONE).expect("it is told");
        assert_eq!((of_device.cause, of_device.evidence.slow_links), (Cause::Contention, 1), "{:?}", scene.told);
    }
    assert!(right >= 45, "{right} of 50 by their deviation");
}

#[test]
fn layers_that_change_by_unlike_factors_have_no_clear_cause() {
    let mut scene = Scene::new(4);
    scene.go_on(10, |_| Level { layers: [1.1, 1.1, 2.0, 2.0], ..all(1.0) });
    let change = scene.told.iter().map(Shift::change).find(|change| change.who == ONE);
    assert!(
        change.is_some_and(|change| change.cause == Cause::Unclear && change.evidence.apart > 1.5),
        "{:?}",
        scene.told
    );
}
