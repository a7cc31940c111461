//! What the brain calls the connections by which ranks speak.

use adaptis_coordinator_core::Brain;
use adaptis_coordinator_core::membership::Peer;
use adaptis_link::PeerId;
use adaptis_proto::DeviceIndex;
use std::collections::{HashMap, HashSet};

/// Connections whose ranks are remembered. More: those of no member are forgotten, and known again when they speak.
const PEERS_MAX: usize = 16_384;

/// The brain's names for connections.
#[derive(Default)]
pub(crate) struct Peers {
    keys: HashMap<PeerId, Peer>,
    names: HashMap<Peer, PeerId>,
    next: u64,
}

impl Peers {
    /// The name of a connection, known or new.
    pub fn key(&mut self, name: &PeerId, brain: &Brain) -> Peer {
        if let Some(&key) = self.keys.get(name) {
            return key;
        }
        if self.keys.len() >= PEERS_MAX {
            let roster = brain.roster();
            let members = (0..roster.len()).filter_map(|device| roster.rank(DeviceIndex::from(device))?.peer);
            let members: HashSet<Peer> = members.collect();
            self.keys.retain(|_, key| members.contains(key));
            self.names.retain(|key, _| members.contains(key));
        }
        let key = Peer(self.next);
        self.next += 1;
        self.keys.insert(name.clone(), key);
        self.names.insert(key, name.clone());
        key
    }

    /// The connection of a name, if it is remembered.
    pub fn name(&self, key: Peer) -> Option<&PeerId> {
        self.names.get(&key)
    }
}
