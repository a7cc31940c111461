//! The cases, and what became of them in many runs.

use super::job::{Condition, Dice, Job, LAYERS, Setting};
use super::watching::{Told, Watching};
use adaptis_coordinator_core::drift::{Cause, Course, Shift, Who};
use adaptis_proto::{DeviceIndex, LayerIndex};

/// What changes. The onset is iteration 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Case {
    /// One device takes so many times as long.
    Step(f64),
    /// One device that did so no longer does.
    Leave(f64),
    /// Two devices at once.
    Two(f64),
    /// One device, 20% over 100 iterations.
    Gradual,
    /// One device, twice as long for three iterations.
    Transient,
    /// One device, 1.3 times as long in every other 20 iterations.
    Periodic,
    /// One layer of one device.
    Layer(f64),
    /// One link.
    Link(f64),
}

impl Case {
    /// The device that changes, or that a link leads to.
    const WHERE: usize = 1;

    /// Iterations from the onset on.
    fn iterations(self) -> u64 {
        match self {
            Case::Gradual | Case::Periodic => 160,
            Case::Layer(_) | Case::Transient => 40,
            _ => 20,
        }
    }

    /// Factor of the change that is awaited.
    fn factor(self) -> f64 {
        match self {
            Case::Step(factor) | Case::Two(factor) | Case::Layer(factor) | Case::Link(factor) => factor,
            Case::Leave(factor) => factor.recip(),
            Case::Gradual => 1.2,
            Case::Transient => 2.0,
            Case::Periodic => 1.3,
        }
    }

    /// What is slower in an iteration, counted from the onset.
    fn condition(self, devices: usize, since: i64) -> Condition {
        let mut condition = Condition::normal(devices);
        let (at, is_on) = (Self::WHERE, since >= 0);
        match self {
            Case::Step(factor) if is_on => condition.devices[at] = factor,
            Case::Leave(factor) if !is_on => condition.devices[at] = factor,
            Case::Two(factor) if is_on => condition.devices[..2].fill(factor),
            Case::Gradual => condition.devices[at] = 1.0 + 0.2 * (since as f64 / 100.0).clamp(0.0, 1.0),
            Case::Transient if (0..3).contains(&since) => condition.devices[at] = 2.0,
            Case::Periodic if is_on && since / 20 % 2 == 0 => condition.devices[at] = 1.3,
            Case::Layer(factor) if is_on => condition.layer = Some((Self::LAYER, factor)),
            Case::Link(factor) if is_on => condition.links[at] = factor,
            _ => {}
        }
        condition
    }

    /// The layer of [`Case::Layer`].
    const LAYER: usize = Self::WHERE * LAYERS + 1;

    fn is_of(self, who: Who) -> bool {
        let device = DeviceIndex::from(Self::WHERE);
        match (self, who) {
            (Case::Layer(_), Who::Layer(of, layer)) => of == device && layer == LayerIndex::from(Self::LAYER),
            (_, Who::Layer(..)) => false,
            (Case::Link(_), Who::Link(_, to)) => to == device,
            (Case::Link(_), _) | (_, Who::Link(..)) => false,
            (Case::Two(_), Who::Device(of)) => of == device || of == DeviceIndex(0),
            (_, Who::Device(of)) => of == device,
        }
    }
}

/// One run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Iterations from the onset to the first right word, the one of the onset counted.
    pub delay: Option<u64>,
    /// Of that word: how far its onset is off, and its size as a logarithm.
    pub onset_off: f64,
    pub size_off: f64,
    /// What was said of other devices, or before anything changed; and the same of links.
    pub false_alarms: u64,
    pub link_alarms: u64,
    /// Quiet iterations of all devices.
    pub quiet: u64,
    /// Changes told of what did change, and of these, those that are to be acted on.
    pub changes: u64,
    pub lasting: u64,
    /// Transients told of it, and flips of what was told to be periodic.
    pub passed: u64,
    pub turned: u64,
    /// The first right word names the cause.
    pub is_cause_right: bool,
    /// Some word names the course: a gradual one, a period within 10% and its mean within 5%.
    pub is_course_right: bool,
    /// Product of the factors of what lasts, as a logarithm.
    pub sum: f64,
}

/// Runs a case once.
pub fn run(case: Case, setting: Setting, seed: u64) -> Outcome {
    let mut watching = Watching::new(Job::new(setting, seed));
    let onset = 30 + Dice::new(seed ^ 0xface).below(30);
    for step in 0..onset + case.iterations() {
        watching.iterate(&case.condition(setting.devices, step as i64 - onset as i64));
    }
    judge(case, onset, setting.devices as u64, &watching.told)
}

fn judge(case: Case, onset: u64, devices: u64, told: &[Told]) -> Outcome {
    let is_right = |told: &&Told| {
        told.is_change()
            && told.at >= onset
            && case.is_of(told.change.who)
            && (told.change.factor - 1.0) * (case.factor() - 1.0) > 0.0
    };
    let is_of = |told: &&Told| told.at >= onset && case.is_of(told.change.who);
    let is_false = |told: &&Told| told.is_change() && !is_of(told);
    let first = told.iter().find(is_right);
    let others = if matches!(case, Case::Two(_)) { devices - 2 } else { devices - 1 };
    let cause = match case {
        Case::Layer(_) => Cause::OneLayer,
        Case::Link(_) => Cause::Link,
        _ => Cause::Throttle,
    };
    let count = |of: &dyn Fn(&Told) -> bool| told.iter().filter(|told| is_of(told) && of(told)).count() as u64;
    let lasting = told.iter().filter(|told| is_of(told) && told.is_lasting());
    Outcome {
        delay: first.map(|told| told.at - onset + 1),
        onset_off: first.map_or(0.0, |told| told.change.onset.0 as f64 - onset as f64),
        size_off: first.map_or(0.0, |told| (told.change.factor / case.factor()).ln()),
        false_alarms: told.iter().filter(is_false).filter(|told| !is_link(told)).count() as u64,
        link_alarms: told.iter().filter(is_false).filter(is_link).count() as u64,
        quiet: onset * devices + case.iterations() * others,
        changes: count(&Told::is_change),
        lasting: count(&Told::is_lasting),
        passed: count(&|told| matches!(told.shift, Shift::Passed(_))),
        turned: count(&|told| matches!(told.shift, Shift::Turned(_))),
        is_cause_right: first.is_some_and(|told| told.change.cause == cause),
        is_course_right: told.iter().filter(is_of).any(|told| is_course_of(case, told.change.course)),
        sum: lasting.map(|told| told.change.factor.ln()).sum(),
    }
}

fn is_course_of(case: Case, course: Course) -> bool {
    match (case, course) {
        (Case::Gradual, Course::Gradual { .. }) => true,
        (Case::Periodic, Course::Periodic { period_iterations, slow_share, slow_factor, .. }) => {
            let mean = 1.0 + slow_share * (slow_factor - 1.0);
            (period_iterations / 40.0 - 1.0).abs() < 0.1 && (mean / 1.15 - 1.0).abs() < 0.05
        }
        (Case::Gradual | Case::Periodic, _) => false,
        (_, course) => course == Course::Step,
    }
}

fn is_link(told: &&Told) -> bool {
    matches!(told.change.who, Who::Link(..))
}

/// A job that nothing happens to: false alarms of devices and of links, in so many iterations.
pub fn quiet(setting: Setting, iterations: u64, seed: u64) -> (u64, u64) {
    let mut watching = Watching::new(Job::new(setting, seed));
    let condition = Condition::normal(setting.devices);
    (0..iterations).for_each(|_| watching.iterate(&condition));
    let changes = watching.told.iter().filter(|told| told.is_change());
    let (links, devices): (Vec<&Told>, Vec<&Told>) = changes.partition(is_link);
    (devices.len() as u64, links.len() as u64)
}
