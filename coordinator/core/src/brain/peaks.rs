//! Memory under each plan: what was predicted of it, held against what came.
//!
//! A prediction is the plan's own, made with it; of a plan that came without one it is the first estimate's. It is never
//! replaced.

use super::Brain;
use crate::ledger::Durable;
use adaptis_plan::Plan;
use adaptis_proto::message::PeakMemory;
use adaptis_proto::sample::Sample;
use adaptis_proto::{DeviceIndex, Epoch};
use std::collections::{BTreeMap, BTreeSet};

/// Plans whose peaks are at hand; the ledger has all.
const PLANS: usize = 32;

/// By plan and name of the device.
#[derive(Clone, Debug, Default)]
pub(super) struct PeakMemories {
    of: BTreeMap<(Epoch, String), PeakMemory>,
    /// Those of which the ledger does not know the latest.
    unwritten: BTreeSet<(Epoch, String)>,
}

impl PeakMemories {
    /// What the ledger holds.
    pub fn recover(&mut self, peaks: Vec<PeakMemory>) {
        self.of = peaks.into_iter().map(|peak| ((peak.epoch, peak.device.clone()), peak)).collect();
        self.bound();
    }

    /// All that is at hand.
    pub fn all(&self) -> impl Iterator<Item = &PeakMemory> {
        self.of.values()
    }

    /// Lets the oldest plans go.
    fn bound(&mut self) {
        let plans: BTreeSet<Epoch> = self.of.keys().map(|(epoch, _)| *epoch).collect();
        if let Some(&first) = plans.iter().rev().nth(PLANS - 1) {
            self.of = self.of.split_off(&(first, String::new()));
        }
    }

    /// A plan's peaks by device, as first estimated; they count where nothing was predicted.
    pub fn predict<'a>(&mut self, epoch: Epoch, peaks: impl Iterator<Item = (&'a str, u64)>) {
        for (device, predicted_bytes) in peaks {
            let key = (epoch, device.to_owned());
            if let Some(peak) = self.of.get_mut(&key).filter(|peak| peak.predicted_bytes.is_none()) {
                peak.predicted_bytes = Some(predicted_bytes);
                self.unwritten.insert(key);
            }
        }
    }

    fn note(&mut self, peak: PeakMemory) {
        let key = (peak.epoch, peak.device.clone());
        let measured_bytes = peak.measured_bytes;
        let is_new = !self.of.contains_key(&key);
        let known = self.of.entry(key.clone()).or_insert(PeakMemory { measured_bytes: 0, ..peak });
        if measured_bytes > known.measured_bytes {
            known.measured_bytes = measured_bytes;
            self.unwritten.insert(key);
        }
        if is_new {
            self.bound();
        }
    }
}

fn of_device(plan: &Plan, device: DeviceIndex) -> Option<u64> {
    plan.predicted.as_ref()?.peak_bytes.get(device.index()).copied()
}

impl Brain {
    /// What memory came to under the latest plans, in order of plans and names.
    pub fn peaks(&self) -> Vec<PeakMemory> {
        self.peaks.all().cloned().collect()
    }

    /// Notes the peak of an iteration.
    pub(super) fn note_peak(&mut self, device: DeviceIndex, sample: &Sample) {
        let Sample::DeviceMemory { place, peak_bytes, .. } = *sample else { return };
        let (Some(rank), true) = (self.roster.rank(device), self.plans.contains_key(&place.epoch)) else { return };
        let key = (place.epoch, rank.card.name.clone());
        let predicted_bytes = match self.peaks.of.get(&key) {
            Some(known) => known.predicted_bytes,
            // The plan in force is at hand; to read another one takes long, and its samples come late.
            None => match self.running.as_ref().filter(|plan| plan.epoch == key.0) {
                Some(plan) => of_device(plan, device),
                None => self.plan_of(key.0).and_then(|plan| of_device(&plan, device)),
            },
        };
        let (epoch, device) = key;
        let memory_bytes = rank.card.memory_bytes;
        self.peaks.note(PeakMemory { epoch, device, predicted_bytes, measured_bytes: peak_bytes, memory_bytes });
    }

    /// Writes what became known of memory.
    pub(super) fn persist_peaks(&mut self) {
        let keys = std::mem::take(&mut self.peaks.unwritten);
        let peaks: Vec<Durable> =
            keys.iter().filter_map(|key| self.peaks.of.get(key).cloned()).map(Durable::Peak).collect();
        if !peaks.is_empty() {
            self.persist(peaks, Vec::new());
        }
    }
}
