//! What comes in: bytes to messages, batches to the store, and a count of everything.
//!
//! At this hop, of records: received = stored + duplicates + beyond_gap + refused. Nothing is queued here between turns of the
//! loop; what waits in the link's queue is counted there.

use crate::store::Stored;
use adaptis_link::{Incoming, PeerId};
use adaptis_proto::message::{AgentEvent, Ask, Batch, Health, RankEvent, ToCoordinator};
use adaptis_proto::sample::{Record, Sample};
use adaptis_proto::wire;
use std::collections::BTreeMap;

/// Devices whose counters are kept by name. More: theirs are added up under one name.
const DEVICES_MAX: usize = 4_096;
const OTHERS: &str = "others";

/// Messages of one turn of the loop, by what is to be done with them.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) batches: Vec<(PeerId, Batch)>,
    pub(crate) ranks: Vec<(PeerId, RankEvent)>,
    pub(crate) pings: Vec<(PeerId, u64)>,
    pub(crate) asks: Vec<(PeerId, Ask)>,
}

/// What was taken in so far.
#[derive(Debug, Default)]
pub(crate) struct Ingest {
    messages: u64,
    malformed: u64,
    batches: u64,
    batches_refused: u64,
    records_received: u64,
    records_stored: u64,
    records_duplicate: u64,
    records_beyond_gap: u64,
    records_refused: u64,
    records_of_others: u64,
    records_unknown: u64,
    records_lost: u64,
    records_trimmed: u64,
    dropped: BTreeMap<String, u64>,
    health: BTreeMap<String, Health>,
}

impl Ingest {
    /// Reads a message into a turn.
    pub(crate) fn sort(&mut self, turn: &mut Turn, message: Incoming) {
        self.messages += 1;
        let Incoming { peer, payload } = message;
        match wire::decode::<ToCoordinator>(&payload) {
            Ok(ToCoordinator::Rank(event)) => turn.ranks.push((peer, event)),
            Ok(ToCoordinator::Agent(AgentEvent::Batch(batch))) => turn.batches.push((peer, batch)),
            Ok(ToCoordinator::Agent(AgentEvent::Ping { sent_ns, .. })) => turn.pings.push((peer, sent_ns)),
            Ok(ToCoordinator::Agent(AgentEvent::Health(health))) => self.take_health(health),
            Ok(ToCoordinator::Ask(ask)) => turn.asks.push((peer, ask)),
            Err(error) => {
                self.malformed += 1;
                tracing::debug!(%peer, %error, "a message can't be read");
            }
        }
    }

    /// Counts what became of a batch of a member of the run, or of another process.
    pub(crate) fn count(&mut self, batch: &Batch, stored: &Stored, is_of_member: bool) {
        self.batches += 1;
        self.records_received += batch.records.len() as u64;
        self.records_stored += stored.records.len() as u64;
        self.records_duplicate += stored.duplicates;
        self.records_beyond_gap += stored.beyond_gap;
        self.records_refused += stored.refused.min(batch.records.len() as u64);
        self.batches_refused += u64::from(stored.refused > 0);
        if !is_of_member {
            self.records_of_others += stored.records.len() as u64;
        }
        self.records_lost = self.records_lost.saturating_add(stored.lost);
        self.records_unknown += unknown(&stored.records);
        let is_known = self.dropped.contains_key(&batch.device) || self.dropped.len() < DEVICES_MAX;
        let device = if is_known { batch.device.as_str() } else { OTHERS };
        let dropped = self.dropped.entry(device.to_owned()).or_default();
        *dropped = dropped.saturating_add(stored.dropped);
    }

    /// Counts records that the store let go.
    pub(crate) fn count_trimmed(&mut self, records: u64) {
        self.records_trimmed += records;
    }

    fn take_health(&mut self, health: Health) {
        if self.health.contains_key(&health.device) || self.health.len() < DEVICES_MAX {
            self.health.insert(health.device.clone(), health);
        }
    }

    /// The last word on each device's state.
    pub(crate) fn health(&self) -> impl Iterator<Item = &Health> {
        self.health.values()
    }

    /// All counts, by name.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let mut counters: Vec<(String, u64)> = [
            ("messages_received", self.messages),
            ("messages_malformed", self.malformed),
            ("batches_received", self.batches),
            ("batches_refused", self.batches_refused),
            ("records_received", self.records_received),
            ("records_stored", self.records_stored),
            ("records_duplicate", self.records_duplicate),
            ("records_beyond_gap", self.records_beyond_gap),
            ("records_refused", self.records_refused),
            ("records_of_others", self.records_of_others),
            ("records_unknown", self.records_unknown),
            ("records_lost_before_arrival", self.records_lost),
            ("records_trimmed_from_store", self.records_trimmed),
            ("records_dropped_ring_full", self.dropped.values().fold(0, |sum, dropped| sum.saturating_add(*dropped))),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .to_vec();
        let dropped = self.dropped.iter();
        counters.extend(dropped.map(|(device, count)| (format!("{device}.records_dropped_ring_full"), *count)));
        for health in self.health.values() {
            let own = health.counters.iter();
            counters.extend(own.map(|(name, count)| (format!("{}.agent.{name}", health.device), *count)));
        }
        counters
    }
}

fn unknown(records: &[Record]) -> u64 {
    records.iter().filter(|&&record| Sample::try_from(record).is_err()).count() as u64
}
