//! Text to address, and what a server may bind without keys.
//!
//! The form is checked here rather than left to libzmq, whose answers do not say what is wrong. Whether the place is
//! free is for `probe`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{AddressFault, Error};

/// What fits `sun_path` with its closing zero.
const PATH_BYTES_MAX: usize = 107;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Any host and port that `tcp` can name; no port stands for a free one.
    Tcp { host: String, port: Option<u16> },
    /// A socket in the file system; no path stands for a free one.
    Ipc { path: Option<String> },
}

impl Address {
    /// Where a client may connect: nothing is left open.
    pub(crate) fn to_connect(text: &str) -> Result<Self, Error> {
        let address = Self::parse(text)?;
        let is_open = match &address {
            Self::Tcp { host, port } => host == "*" || port.is_none(),
            Self::Ipc { path } => path.is_none(),
        };
        if is_open { Err(bad(text, AddressFault::Wildcard)) } else { Ok(address) }
    }

    /// Where a server may listen: `*` is allowed for host, port and path.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("tcp://") {
            let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad(text, AddressFault::Port))?;
            let port = match port {
                "*" => None,
                digits => match digits.parse() {
                    Ok(port) if port != 0 => Some(port),
                    _ => return Err(bad(text, AddressFault::Port)),
                },
            };
            let host = match host {
                "" => return Err(bad(text, AddressFault::NoHost)),
                "localhost" => "127.0.0.1",
                host if is_host(host) => host,
                _ => return Err(bad(text, AddressFault::Host)),
            };
            Ok(Self::Tcp { host: host.to_owned(), port })
        } else if let Some(path) = text.strip_prefix("ipc://") {
            let bytes = path.len();
            match path {
                "*" => Ok(Self::Ipc { path: None }),
                _ if path.is_empty() || path.starts_with('@') || path.contains('\0') => {
                    Err(bad(text, AddressFault::NoPath))
                }
                _ if bytes > PATH_BYTES_MAX => {
                    Err(bad(text, AddressFault::PathLength { bytes, bytes_max: PATH_BYTES_MAX }))
                }
                path => Ok(Self::Ipc { path: Some(path.to_owned()) }),
            }
        } else {
            Err(bad(text, AddressFault::Scheme))
        }
    }

    /// Whether only this machine can reach it. A name is not looked up: what it stands for may change.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => ip(host).is_some_and(|ip| ip.is_loopback()),
            Self::Ipc { .. } => true,
        }
    }

    /// The IP address that a server is to listen at; none for ipc and for the name of an interface.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp { host, .. } => ip(host),
            Self::Ipc { .. } => None,
        }
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        matches!(self, Self::Tcp { host, .. } if host.starts_with('['))
    }

    /// In libzmq's words.
    pub(crate) fn endpoint(&self) -> String {
        match self {
            Self::Tcp { host, port: Some(port) } => format!("tcp://{host}:{port}"),
            Self::Tcp { host, port: None } => format!("tcp://{host}:*"),
            Self::Ipc { path } => format!("ipc://{}", path.as_deref().unwrap_or("*")),
        }
    }
}

pub(crate) fn bad(address: &str, fault: AddressFault) -> Error {
    Error::BadAddress { address: address.to_owned(), fault }
}

/// Whether a text can be a host: `*`, a name, an interface, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        // The zone of a link-local address, as in `fe80::1%eth0`, is the system's to know.
        Some(Some(inner)) => inner.split('%').next().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        Some(None) => false,
        None => host == "*" || host.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)),
    }
}

fn ip(host: &str) -> Option<IpAddr> {
    if host == "*" {
        return Some(Ipv4Addr::UNSPECIFIED.into());
    }
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_ipc_are_local() {
        let table = [
            ("tcp://127.0.0.1:29611", true),
            ("tcp://127.8.9.1:*", true),
            ("tcp://localhost:1", true),
            ("tcp://[::1]:29611", true),
            ("ipc:///tmp/adaptis.socket", true),
            ("tcp://0.0.0.0:29611", false),
            ("tcp://*:29611", false),
            ("tcp://10.0.0.7:29611", false),
            ("tcp://[::]:29611", false),
            ("tcp://lo:29611", false),
            ("tcp://localhost.example.org:29611", false),
            ("tcp://127.0.0.1.example.org:29611", false),
        ];
        for (text, local) in table {
            assert_eq!(Address::parse(text).unwrap().is_local(), local, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("ipc:///{}", "x".repeat(200));
        let table = [
            ("", AddressFault::Scheme),
            ("127.0.0.1:29611", AddressFault::Scheme),
            ("udp://127.0.0.1:1", AddressFault::Scheme),
            ("tcp://127.0.0.1", AddressFault::Port),
            ("tcp://127.0.0.1:0", AddressFault::Port),
            ("tcp://127.0.0.1:65536", AddressFault::Port),
            ("tcp://:29611", AddressFault::NoHost),
            ("tcp://a b:29611", AddressFault::Host),
            ("tcp://[::1:29611", AddressFault::Host),
            ("tcp://::1:29611", AddressFault::Host),
            ("tcp://[gpu0]:29611", AddressFault::Host),
            ("tcp://tcp://127.0.0.1:29611", AddressFault::Host),
            ("ipc://", AddressFault::NoPath),
            ("ipc://@abstract", AddressFault::NoPath),
            (&long, AddressFault::PathLength { bytes: 201, bytes_max: 107 }),
        ];
        for (text, expected) in table {
            match Address::parse(text) {
                Err(Error::BadAddress { address, fault }) => assert_eq!((address.as_str(), fault), (text, expected)),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
