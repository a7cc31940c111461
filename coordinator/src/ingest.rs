//! What comes in: bytes to messages, and a count of them.
//!
//! At this hop, of records: received = stored + duplicates + beyond_gap + refused, which the store counts as it stores.
//! Nothing is queued here between turns of the loop; what waits in the link's queue is counted there.

use crate::store::Stored;
use adaptis_link::{Incoming, PeerId};
use adaptis_proto::message::{AgentEvent, Ask, Batch, Health, RankEvent, ToCoordinator};
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

/// What was taken in so far, and the last words of agents; records are counted where they are stored.
#[derive(Debug, Default)]
pub(crate) struct Ingest {
    messages: u64,
    malformed: u64,
    dropped: BTreeMap<String, u64>,
    health: BTreeMap<String, Health>,
    /// An agent said something since [`Ingest::take_news`].
    has_news: bool,
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

    /// What earlier reigns took in.
    pub(crate) fn recover(&mut self, dropped: BTreeMap<String, u64>, health: Vec<Health>) {
        dropped.into_iter().for_each(|(device, count)| self.drop_records(&device, count));
        health.into_iter().for_each(|health| self.take_health(health));
        self.has_news = false;
    }

    /// Counts what a batch said of its ring.
    pub(crate) fn count(&mut self, batch: &Batch, stored: &Stored) {
        self.drop_records(&batch.device, stored.dropped);
        self.has_news |= !stored.records.is_empty() || stored.lost > 0 || stored.dropped > 0;
    }

    fn drop_records(&mut self, device: &str, count: u64) {
        let is_known = self.dropped.contains_key(device) || self.dropped.len() < DEVICES_MAX;
        let dropped = self.dropped.entry(if is_known { device } else { OTHERS }.to_owned()).or_default();
        *dropped = dropped.saturating_add(count);
    }

    /// Whether an agent told anything new since this was last asked.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Whether every agent that spoke has told the end of it: nothing is queued there, and as many records are stored
    /// here as they were told.
    pub(crate) fn is_balanced(&self, records_stored: u64) -> bool {
        let of =
            |health: &Health, name: &str| health.counters.iter().find(|(own, _)| own == name).map_or(0, |own| own.1);
        let sum = |name: &str| self.health.values().fold(0u64, |sum, health| sum.saturating_add(of(health, name)));
        sum("queued") == 0 && sum("stored") == records_stored
    }

    fn take_health(&mut self, health: Health) {
        if self.health.contains_key(&health.device) || self.health.len() < DEVICES_MAX {
            self.has_news |= self.health.get(&health.device) != Some(&health);
            self.health.insert(health.device.clone(), health);
        }
    }

    /// The last word on each device's state.
    pub(crate) fn health(&self) -> impl Iterator<Item = &Health> {
        self.health.values()
    }

    /// All counts of this hop but those of the store, by name.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let dropped_in_all = self.dropped.values().fold(0, |sum: u64, dropped| sum.saturating_add(*dropped));
        let mut counters = vec![("records_dropped_ring_full".to_owned(), dropped_in_all)];
        let dropped = self.dropped.iter();
        counters.extend(dropped.map(|(device, count)| (format!("{device}.records_dropped_ring_full"), *count)));
        for health in self.health.values() {
            let own = health.counters.iter();
            counters.extend(own.map(|(name, count)| (format!("{}.agent.{name}", health.device), *count)));
        }
        counters
    }

    /// Messages of this reign, by name.
    pub(crate) fn messages(&self) -> [(&'static str, u64); 2] {
        [("messages_received", self.messages), ("messages_malformed", self.malformed)]
    }
}
