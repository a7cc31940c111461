//! What comes in: bytes to messages, and a count of them.
//!
//! At this hop, of records: received = stored + duplicates + beyond_gap + refused, which the store counts as it stores.
//! Nothing is queued here between turns of the loop; what waits in the link's queue is counted there.

use crate::store::Stored;
use adaptis_link::{Incoming, PeerId};
use adaptis_proto::message::{AgentEvent, Ask, Batch, Health, RankEvent, ToCoordinator};
use adaptis_proto::rates::Rates;
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
    /// With what an agent measured of its device before training.
    pub(crate) calibrated: Vec<Health>,
}

/// What was taken in so far, and the last words of agents; records are counted where they are stored.
#[derive(Debug, Default)]
pub(crate) struct Ingest {
    messages: u64,
    malformed: u64,
    deferred: u64,
    dropped: BTreeMap<String, u64>,
    health: BTreeMap<String, Health>,
    /// By device: what came from its agent's present process under this reign.
    heard: BTreeMap<String, Heard>,
    /// An agent said something since [`Ingest::take_news`].
    has_news: bool,
}

/// What came from an agent's process.
#[derive(Debug)]
struct Heard {
    process: PeerId,
    /// Records that were new here.
    stored: u64,
    /// Batches came after the last word on them.
    is_untold: bool,
}

impl Ingest {
    /// Reads a message into a turn.
    pub(crate) fn sort(&mut self, turn: &mut Turn, message: Incoming) {
        self.messages += 1;
        let Incoming { peer, payload } = message;
        match wire::decode::<ToCoordinator>(&payload) {
            Ok(ToCoordinator::Rank(event)) => turn.ranks.push((peer, event)),
            Ok(ToCoordinator::Agent(AgentEvent::Batch(batch))) => {
                self.hear(&peer, &batch.device);
                turn.batches.push((peer, batch));
            }
            Ok(ToCoordinator::Agent(AgentEvent::Ping { sent_ns, .. })) => turn.pings.push((peer, sent_ns)),
            Ok(ToCoordinator::Agent(AgentEvent::Health(health))) => {
                if Rates::are_in(&health.readings) {
                    turn.calibrated.push(health.clone());
                }
                self.take_health(health);
            }
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

    fn hear(&mut self, process: &PeerId, device: &str) {
        if let Some(heard) = self.heard.get_mut(device).filter(|heard| heard.process == *process) {
            heard.is_untold = true;
        } else if self.heard.contains_key(device) || self.heard.len() < DEVICES_MAX {
            self.heard.insert(device.to_owned(), Heard { process: process.clone(), stored: 0, is_untold: true });
        }
    }

    /// Counts what a batch of a process said of its ring.
    pub(crate) fn count(&mut self, process: &PeerId, batch: &Batch, stored: &Stored) {
        if let Some(heard) = self.heard.get_mut(&batch.device).filter(|heard| heard.process == *process) {
            heard.stored += stored.records.len() as u64;
        }
        self.drop_records(&batch.device, stored.dropped);
        self.has_news |= !stored.records.is_empty() || stored.lost > 0 || stored.dropped > 0;
    }

    /// Batches that were not taken, and not acknowledged: they stay with their agents.
    pub(crate) fn defer(&mut self, batches: usize) {
        self.deferred += batches as u64;
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

    /// Whether every agent that spoke has told the end of it: nothing is queued there, its last word came after its last
    /// batch, and it knows of all that its present process has had stored. It may know of more: what it sent again for a
    /// process before it was stored already.
    pub(crate) fn is_balanced(&self) -> bool {
        let of =
            |health: &Health, name: &str| health.counters.iter().find(|(own, _)| own == name).map_or(0, |own| own.1);
        let is_told = |(device, heard): (&String, &Heard)| {
            let told = self.health.get(device).map_or(0, |health| of(health, "stored"));
            !heard.is_untold && told >= heard.stored
        };
        self.health.values().all(|health| of(health, "queued") == 0) && self.heard.iter().all(is_told)
    }

    fn take_health(&mut self, health: Health) {
        if let Some(heard) = self.heard.get_mut(&health.device) {
            heard.is_untold = false;
        }
        if self.health.contains_key(&health.device) || self.health.len() < DEVICES_MAX {
            self.has_news |= self.health.get(&health.device) != Some(&health);
            self.health.insert(health.device.clone(), health);
        }
    }

    /// The last word on each device's state.
    pub(crate) fn health(&self) -> impl Iterator<Item = &Health> {
        self.health.values()
    }

    /// What of a device's software and settings is part of a profile's key; empty where nobody tells it.
    pub(crate) fn software(&self, device: &str) -> String {
        let readings = self.health.get(device).map_or(&[][..], |health| &health.readings);
        let limit = readings.iter().find(|(name, _)| name == "power_limit_w");
        limit.map_or_else(String::new, |(_, watts)| format!("power limit {watts:.0} W"))
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
    pub(crate) fn messages(&self) -> [(&'static str, u64); 3] {
        let [received, malformed] = [self.messages, self.malformed];
        [("messages_received", received), ("messages_malformed", malformed), ("batches_deferred", self.deferred)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::Incarnation;

    fn message(event: AgentEvent, process: &str) -> Incoming {
        Incoming { peer: PeerId::from(process), payload: wire::encode(&ToCoordinator::Agent(event)) }
    }

    fn batch() -> Batch {
        Batch { device: "gpu0".into(), ring: Incarnation(1), first: 0, records: Vec::new(), dropped: 0, clock: None }
    }

    #[test]
    fn an_agent_that_was_started_again_can_tell_the_end_of_it() {
        let mut ingest = Ingest::default();
        let mut turn = Turn::default();
        let mut send = |ingest: &mut Ingest, process: &str, records: usize| {
            ingest.sort(&mut turn, message(AgentEvent::Batch(batch()), process));
            let stored = Stored { records: vec![Default::default(); records], ..Stored::default() };
            ingest.count(&PeerId::from(process), &batch(), &stored);
        };
        let tell = |ingest: &mut Ingest, stored: u64, queued: u64| {
            let counters = vec![("stored".to_owned(), stored), ("queued".to_owned(), queued)];
            let health = Health { device: "gpu0".into(), incarnation: Incarnation(9), readings: Vec::new(), counters };
            ingest.sort(&mut Turn::default(), message(AgentEvent::Health(health), "any"));
        };
        assert!(ingest.is_balanced(), "nobody spoke");
        send(&mut ingest, "first", 5);
        assert!(!ingest.is_balanced(), "it has told nothing of it");
        tell(&mut ingest, 3, 0);
        assert!(!ingest.is_balanced(), "it does not know of all");
        tell(&mut ingest, 5, 1);
        assert!(!ingest.is_balanced(), "there is more to come");
        tell(&mut ingest, 5, 0);
        assert!(ingest.is_balanced());
        // Its successor sends again what was not acknowledged, and counts from 0.
        send(&mut ingest, "second", 0);
        send(&mut ingest, "second", 2);
        assert!(!ingest.is_balanced(), "a batch came after the last word");
        tell(&mut ingest, 4, 0);
        assert!(ingest.is_balanced());
    }
}
