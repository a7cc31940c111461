//! Samples on their way in: to disk, into the profiles, and to the brain, in this order.

use super::Control;
use crate::CoordinatorError;
use crate::ingest::Ingest;
use crate::store::{Profiles, Stored, absorb};
use adaptis_coordinator_core::crossings::Source;
use adaptis_coordinator_core::estimate::Load;
use adaptis_coordinator_core::{Brain, Event};
use adaptis_link::PeerId;
use adaptis_proto::message::{AgentOrder, Batch, FromCoordinator};
use adaptis_proto::sample::{Record, Sample};
use adaptis_proto::{DeviceIndex, Microbatch, Step};
use std::collections::HashMap;

impl Control {
    pub(super) fn take_batches(&mut self, batches: Vec<(PeerId, Batch)>) -> Result<(), CoordinatorError> {
        if batches.is_empty() {
            return Ok(());
        }
        if self.brain.generation().is_none() {
            // Nobody trains for this ledger: they are of a job that another coordinator's folder holds, which is to have
            // them, or of an earlier one, and then they come again.
            self.ingest.defer(batches.len());
            return Ok(());
        }
        let (peers, batches): (Vec<PeerId>, Vec<Batch>) = batches.into_iter().unzip();
        let brain = &self.brain;
        let stored = self.store.store(&batches, |batch| brain.is_of_member(&batch.device, batch.ring))?;
        let records = stored.iter().flat_map(|stored| &stored.records);
        let loads = if brain.has_covariates() { fresh_loads(records) } else { FreshLoads::default() };
        // All before the brain hears of any: a merge takes for granted that what is on disk is in the profiles.
        for ((peer, batch), stored) in peers.iter().zip(&batches).zip(&stored) {
            self.ingest.count(peer, batch, stored);
            self.tell(peer, FromCoordinator::Agent(AgentOrder::Stored { ring: batch.ring, next: stored.next }));
            if self.brain.is_of_member(&batch.device, batch.ring) {
                profile(&mut self.profiles, &self.brain, &self.ingest, &batch.device, &stored.records, &loads);
            }
        }
        for (batch, stored) in batches.iter().zip(&stored) {
            self.take_crossings(batch, &stored.records)?;
        }
        for (Batch { device, ring, .. }, Stored { records, .. }) in batches.into_iter().zip(stored) {
            if self.brain.is_of_member(&device, ring) && !records.is_empty() {
                self.feed(Event::Absorbed { device, ring, records })?;
            }
        }
        self.store.trim()?;
        Ok(())
    }

    /// What works at both ends tell of transfers that no rank tells of: as if their receivers had.
    fn take_crossings(&mut self, batch: &Batch, records: &[Record]) -> Result<(), CoordinatorError> {
        self.crossings.heed(records);
        let (Some(of), Some(plan), Some(clock)) = (self.brain.generation(), self.brain.running(), batch.clock) else {
            return Ok(());
        };
        let member =
            of.members.iter().position(|member| member.device == batch.device && member.incarnation == batch.ring);
        let Some(at) = member else { return Ok(()) };
        // On one host there is one clock.
        let is_same = clock.offset_ns.unsigned_abs() <= clock.error_ns;
        let (offset_ns, error_ns) = if is_same { (0, 0) } else { (clock.offset_ns, clock.error_ns) };
        let source = Source { device: DeviceIndex::from(at), offset_ns, error_ns };
        let samples = records.iter().filter_map(|&record| Sample::try_from(record).ok());
        let found = self.crossings.absorb(&of.job, plan, source, samples);
        let receiver =
            |device: DeviceIndex| of.members.get(device.index()).map(|of| (of.device.clone(), of.incarnation));
        let found: Vec<_> =
            found.into_iter().filter_map(|(to, sample)| Some((receiver(to)?, Record::from(sample)))).collect();
        for ((device, ring), record) in found {
            profile(&mut self.profiles, &self.brain, &self.ingest, &device, &[record], &FreshLoads::default());
            self.feed(Event::Absorbed { device, ring, records: vec![record] })?;
        }
        Ok(())
    }
}

/// Loads that the brain has not heard of.
pub(super) type FreshLoads = HashMap<(Step, Microbatch), Load>;

/// Of any device: the one that records a microbatch's load need not be the one that runs it.
fn fresh_loads<'a>(records: impl Iterator<Item = &'a Record>) -> FreshLoads {
    let load = |record: &Record| match Sample::try_from(*record).ok()? {
        Sample::Load { place, microbatch, tokens, squares, busiest } => {
            Some(((place.step, microbatch), Load::new(tokens, squares, busiest)))
        }
        _ => None,
    };
    records.filter_map(load).collect()
}

/// Takes what the records tell of costs. Works count as what they would take on a device at the speed of its kind, and with
/// the mean load.
pub(super) fn profile(
    profiles: &mut Profiles,
    brain: &Brain,
    ingest: &Ingest,
    device: &str,
    records: &[Record],
    loads: &FreshLoads,
) {
    let Some(of) = brain.generation() else { return };
    let Some(at) = of.cards.iter().position(|card| card.name == device) else { return };
    let samples = records.iter().filter_map(|&record| Sample::try_from(record).ok());
    absorb(profiles, of, &of.cards[at], samples, &ingest.software(device), |place, work| {
        let load = loads.get(&(place.step, work.1)).copied();
        brain.over_usual(DeviceIndex::from(at), place, work, load)
    });
}
