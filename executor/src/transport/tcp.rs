//! Ranks as processes: each listens, and connects to every peer.
//!
//! A rank sends over its own connection and receives over the peers' ones, so messages of one sender keep their order.
//!
//! 1. With keys, a connection is made only to the holder of the peer's own key.
//! 2. A message is taken only under the name by which its connection was made.

use super::{Wire, WireError};
use crate::ExecutorError;
use adaptis_link::{Client, Limits, Security, Server};
use adaptis_proto::DeviceIndex;
use adaptis_proto::message::{Member, PeerHeader};
use adaptis_proto::wire;
use std::time::Duration;

/// A rank that its peers can reach, before it knows them.
pub struct Listener {
    server: Server,
    security: Security,
}

/// A rank connected with its peers.
pub struct TcpWire {
    server: Server,
    /// By device index; none for itself.
    peers: Vec<Option<Client>>,
    /// Device names, by which peers connect.
    names: Vec<String>,
}

/// A schedule may send all of an iteration's microbatches before the receiver takes the first one: room for that.
fn limits() -> Limits {
    Limits { incoming_len: 4096, outgoing_len: 1024, per_peer_len: 1024, ..Limits::data() }
}

impl Listener {
    /// Listens at `address`; a port of `*` is a free one.
    ///
    /// # Errors
    /// Those of [`Server::bind`].
    pub fn bind(address: &str, security: &Security) -> Result<Listener, adaptis_link::Error> {
        Ok(Listener { server: Server::bind(address, security, limits())?, security: security.clone() })
    }

    /// Where peers reach it.
    pub fn endpoint(&self) -> &str {
        self.server.endpoint()
    }

    /// Connects to all members of a generation, of which this rank is number `me`. Does not wait for them.
    ///
    /// # Errors
    /// A peer's key is missing, or its endpoint is malformed.
    pub fn connect(self, members: &[Member], me: DeviceIndex) -> Result<TcpWire, ExecutorError> {
        let name = members.get(me.index()).map_or("", |member| &member.device);
        let peers = members
            .iter()
            .enumerate()
            .map(|(at, member)| match at == me.index() {
                true => Ok(None),
                false => {
                    let security = facing(&self.security, &member.device)?;
                    Ok(Some(Client::connect(&member.endpoint, name, &security, limits())?))
                }
            })
            .collect::<Result<_, ExecutorError>>()?;
        let names = members.iter().map(|member| member.device.clone()).collect();
        Ok(TcpWire { server: self.server, peers, names })
    }
}

/// For a connection to the rank of `device`.
fn facing(security: &Security, device: &str) -> Result<Security, ExecutorError> {
    match security {
        // All processes of one user may share the coordinator's pair: then every rank listens with it.
        Security::Curve(ring) if ring.public() != ring.server() => ring
            .facing(device)
            .map(Security::Curve)
            .map_err(|source| ExecutorError::PeerKey { device: device.to_owned(), source }),
        shared => Ok(shared.clone()),
    }
}

impl Wire for TcpWire {
    fn send(&mut self, to: DeviceIndex, header: &PeerHeader, payload: &[u8]) -> Result<(), WireError> {
        let peer = self.peers.get(to.index()).and_then(Option::as_ref).ok_or(WireError::NoPeer { to })?;
        peer.send(wire::encode_with(header, payload)).map_err(|error| match error {
            adaptis_link::Error::Full => WireError::Full { to },
            other => WireError::Link(other),
        })
    }

    fn receive(&mut self, timeout: Duration) -> Result<Option<(PeerHeader, Vec<u8>)>, WireError> {
        match self.server.receive(timeout).map_err(WireError::Link)? {
            Some(incoming) => {
                let (header, payload) = wire::decode_with::<PeerHeader>(&incoming.payload)?;
                let name = self.names.get(header.from.index());
                if name.is_none_or(|name| name.as_bytes() != incoming.peer.as_bytes()) {
                    return Err(WireError::Foreign { from: header.from, peer: incoming.peer.to_string() });
                }
                Ok(Some((header, payload.to_vec())))
            }
            None => Ok(None),
        }
    }

    fn members(&self) -> usize {
        self.peers.len()
    }
}
