//! Samples on their way in: whose they are, and what is done with those of this reign and of earlier ones.
//!
//! Only the processes of the present generation count: a ring that an earlier run left on a device, or a stranger's,
//! says nothing about this one.

use super::Brain;
use crate::drift::Shift;
use crate::ledger::Durable;
use adaptis_proto::message::Member;
use adaptis_proto::sample::{Record, Sample};
use adaptis_proto::{DeviceIndex, Incarnation};

impl Brain {
    /// Whether records of a process are of a member of the present generation.
    pub fn is_of_member(&self, device: &str, ring: Incarnation) -> bool {
        self.member(device, ring).is_some()
    }

    /// Learns what an earlier reign acted on, and acts on nothing.
    pub(super) fn on_replayed(&mut self, device: &str, ring: Incarnation, records: &[Record]) {
        let Some(index) = self.member(device, ring) else { return };
        for sample in records.iter().filter_map(|&record| Sample::try_from(record).ok()) {
            self.note_late(index, &sample);
            self.note_peak(index, &sample);
            self.history.absorb(index, &sample);
            if let Some(adapt) = &mut self.adapt {
                adapt.replay(index, &sample);
            }
        }
    }

    fn note_late(&mut self, device: DeviceIndex, sample: &Sample) {
        if let Sample::DeviceMemory { late_ns, .. } = *sample {
            let total_ns = self.late_ns.entry(device).or_default();
            *total_ns = total_ns.saturating_add(late_ns);
        }
    }

    pub(super) fn on_records(&mut self, now_ns: u64, device: &str, ring: Incarnation, records: &[Record]) {
        let Some(index) = self.member(device, ring) else { return };
        self.absorbed_ns = now_ns;
        let mut is_whole = false;
        for sample in records.iter().filter_map(|&record| Sample::try_from(record).ok()) {
            self.note_late(index, &sample);
            self.note_peak(index, &sample);
            let Some(adapt) = &mut self.adapt else { return };
            for shift in adapt.absorb(index, &sample) {
                match shift {
                    Shift::Changed(change) => self.on_change(change),
                    Shift::Lasts(change) => self.on_lasting(now_ns, change),
                    Shift::Passed(passed) => self.on_passed(passed),
                    Shift::Turned(change) => self.on_turn(change),
                    Shift::Corrected(change) => self.on_correction(change),
                    Shift::WithPlan(change) => self.on_change_of_plan(change),
                }
            }
            for step in self.history.absorb(index, &sample) {
                self.on_iteration(now_ns, step);
                is_whole = true;
            }
        }
        self.persist_switches();
        // Once an iteration: a peak that creeps costs no write for each batch.
        if is_whole {
            self.persist_peaks();
        }
    }

    /// Writes what became known of switches.
    fn persist_switches(&mut self) {
        let switches: Vec<Durable> = self.history.take_switches().into_iter().map(Durable::Switch).collect();
        if !switches.is_empty() {
            self.persist(switches, Vec::new());
        }
    }

    fn member(&self, device: &str, ring: Incarnation) -> Option<DeviceIndex> {
        let members = &self.generation.as_ref()?.members;
        let is_it = |member: &Member| member.device == device && member.incarnation == ring;
        members.iter().position(is_it).map(DeviceIndex::from)
    }

    /// The replay is over: what it told that an earlier reign did not get to write is written.
    pub(super) fn catch_up(&mut self) {
        if let Some(adapt) = &mut self.adapt {
            let peaks: Vec<_> = self.peaks.all().cloned().collect();
            adapt.estimator.recall_peaks(&peaks);
        }
        self.persist_switches();
        self.persist_peaks();
        if let Some((step, epoch)) = self.history.first_on_last_plan() {
            self.begin_phase(step, epoch);
        }
    }
}
