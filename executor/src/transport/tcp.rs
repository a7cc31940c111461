//! Ranks as processes: each listens, and connects to every peer.
//!
//! A rank sends over its own connection and receives over the peers' ones, so messages of one sender keep their order.

use super::{Wire, WireError};
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
    /// Those of [`Client::connect`]: a malformed endpoint.
    pub fn connect(self, members: &[Member], me: DeviceIndex) -> Result<TcpWire, adaptis_link::Error> {
        let name = members.get(me.index()).map_or("", |member| &member.device);
        let peers = members
            .iter()
            .enumerate()
            .map(|(at, member)| match at == me.index() {
                true => Ok(None),
                false => Client::connect(&member.endpoint, name, &self.security, limits()).map(Some),
            })
            .collect::<Result<_, _>>()?;
        Ok(TcpWire { server: self.server, peers })
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
                let (header, payload) = wire::decode_with(&incoming.payload)?;
                Ok(Some((header, payload.to_vec())))
            }
            None => Ok(None),
        }
    }
}
