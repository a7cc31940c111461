//! What the detector says: what changed, since when, by how much, how it runs its course and what it looks like.

use adaptis_proto::{DeviceIndex, LayerIndex, Step};
use serde::{Deserialize, Serialize};

/// What can change its speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Who {
    /// A device.
    Device(DeviceIndex),
    /// A directed pair of devices, sender first.
    Link(DeviceIndex, DeviceIndex),
    /// One layer on the device that runs it, beside its other layers.
    Layer(DeviceIndex, LayerIndex),
}

impl Who {
    /// In words, with the devices' names.
    pub fn named(self, name_of: impl Fn(DeviceIndex) -> String) -> String {
        match self {
            Who::Device(device) => name_of(device),
            Who::Link(from, to) => format!("the link from {} to {}", name_of(from), name_of(to)),
            Who::Layer(device, layer) => format!("layer {layer} on {}", name_of(device)),
        }
    }
}

/// A confirmed change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Of what.
    pub who: Who,
    /// First iteration that it shows in; of a gradual one, the first that tells where it has got to.
    pub onset: Step,
    /// Iteration that confirmed it.
    pub detected: Step,
    /// Times after it over times before it.
    pub factor: f64,
    /// How it came, as far as it can be told.
    #[serde(default)]
    pub course: Course,
    /// What it looks like.
    #[serde(default)]
    pub cause: Cause,
    /// What the cause was told by.
    #[serde(default)]
    pub evidence: Evidence,
}

impl Change {
    /// How much it says of what several changes are about: what changed by how much, of how many layers.
    pub fn weight(&self) -> f64 {
        self.factor.ln().abs() * self.evidence.layers.max(1) as f64
    }
}

/// How a change runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// From one iteration to the next.
    #[default]
    Step,
    /// Little by little: told each time that its sum is large enough.
    Gradual {
        /// Iteration that it began in.
        from: Step,
        /// Factor from one iteration to the next.
        per_iteration: f64,
        /// Factor since it began.
        total: f64,
    },
    /// To and fro between two levels.
    Periodic {
        /// Iterations from one rise to the next, in the mean.
        period_iterations: f64,
        /// Share of them that are slow.
        slow_share: f64,
        /// Times while slow over times while fast.
        slow_factor: f64,
        /// Mean of the times over the period, over those at present.
        average: f64,
    },
}

/// What a change looks like. Samples hold times alone: a lowered clock can't be told from a throttle by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// All layers and phases of a device alike: its clock is another one, by a throttle or its end.
    Throttle,
    /// Works take longer and vary more than they did, or the device's links are slow as well: something runs beside them.
    Contention,
    /// One layer, while the device's other layers take what they took.
    OneLayer,
    /// Transfers alone.
    Link,
    /// Layers or phases differ in how much they changed, or too few works were seen to tell.
    #[default]
    Unclear,
}

/// The numbers behind a [`Cause`], about the iterations since the onset beside those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Works since the onset.
    pub works: u32,
    /// Layers among them.
    pub layers: u32,
    /// How far apart the changes of layers and of phases are: largest over smallest factor.
    pub apart: f64,
    /// Deviation of single works since, over the one before; 0 if unknown.
    pub deviation: f64,
    /// Links of the device that are slow meanwhile.
    pub slow_links: u32,
}

/// What iterations that differ from their reference mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    /// Something takes another time than it did. It may pass again.
    Changed(Change),
    /// That change has lasted: it is to be acted on.
    Lasts(Change),
    /// A change that had not lasted is over.
    Passed(Passed),
    /// A device or link that goes to and fro is on its other level.
    Turned(Change),
    /// Works that this kind of device had never done take another time than was guessed: the reference was wrong, and
    /// nothing changed.
    Corrected(Change),
    /// Since another plan took effect something works at another speed than under the one before, as ranks do that share
    /// caches or power with others: what was measured there says less of it here, and nothing broke.
    WithPlan(Change),
}

/// A transient that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passed {
    /// As it was told when it began.
    pub began: Change,
    /// The way back.
    pub ended: Change,
}

impl Shift {
    /// Its size and place; of what passed, the way back.
    pub fn change(&self) -> Change {
        match *self {
            Shift::Passed(passed) => passed.ended,
            Shift::Changed(change)
            | Shift::Lasts(change)
            | Shift::Turned(change)
            | Shift::Corrected(change)
            | Shift::WithPlan(change) => change,
        }
    }
}

impl Passed {
    /// How many iterations it took.
    pub fn iterations(&self) -> u64 {
        self.ended.onset.0.saturating_sub(self.began.onset.0)
    }
}
