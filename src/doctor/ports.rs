//! The coordinator's two ports: free for one, or whose they are.

use super::Finding;
use super::Verdict::{Fine, Fix, Note};
use crate::failure;
use adaptis_link::{Client, Limits, Security};
use adaptis_proto::message::{Answer, Ask, FromCoordinator, Status, ToCoordinator};
use adaptis_proto::wire;
use anyhow::Result;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// What whoever has a port gets to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pages' own status is no longer.
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// Whether a port can be had.
enum Port {
    Free,
    Taken,
    Refused(String),
}

fn port(address: SocketAddr) -> Port {
    match TcpListener::bind(address) {
        Ok(_) => Port::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => Port::Taken,
        Err(error) => Port::Refused(error.to_string()),
    }
}

fn resolved(address: &str) -> Option<SocketAddr> {
    address.to_socket_addrs().ok()?.next()
}

/// The port of the pages.
pub(super) fn pages(address: &str) -> Finding {
    let about = "pages";
    let Some(place) = resolved(address) else {
        return Finding::new(about, Fix, format!("--http {address}: write HOST:PORT, of a host that is known"));
    };
    match port(place) {
        Port::Free => Finding::new(about, Fine, format!("{address} is free")),
        Port::Taken if is_ours(place) => Finding::new(about, Fine, format!("{address}: a coordinator's, at work")),
        Port::Taken => {
            let text = format!("{address} is another program's: give the coordinator --http HOST:PORT, or none");
            Finding::new(about, Fix, text)
        }
        Port::Refused(why) => {
            Finding::new(about, Fix, format!("{address}: {why}: give the coordinator another --http"))
        }
    }
}

/// Whether a coordinator's pages are there: only they have these figures.
fn is_ours(place: SocketAddr) -> bool {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&place, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n")?;
        let mut page = Vec::new();
        stream.take(PAGE_BYTES_MAX).read_to_end(&mut page)?;
        Ok(page)
    };
    ask().is_ok_and(|page| String::from_utf8_lossy(&page).contains("# TYPE adaptis_"))
}

/// The port of ranks, agents and tools.
///
/// # Errors
/// No connection of ours can be had at all.
pub(super) fn coordinator(address: &str) -> Result<Finding> {
    let about = "coordinator";
    let place = address.strip_prefix("tcp://").and_then(resolved);
    let Some(place) = place else {
        let text = format!("--listen {address}: write tcp://HOST:PORT, of a host that is known");
        return Ok(Finding::new(about, Fix, text));
    };
    let finding = match port(place) {
        Port::Free => Finding::new(about, Fine, format!("{address} is free")),
        Port::Refused(why) => {
            Finding::new(about, Fix, format!("{address}: {why}: give the coordinator another --listen"))
        }
        Port::Taken => match asked(address)? {
            Some(status) => {
                Finding::new(about, Fine, format!("{address}: a coordinator's, run {}, {:?}", status.run, status.state))
            }
            None => Finding::new(
                about,
                Note,
                format!(
                    "{address} is taken, and no coordinator answers without keys: `adaptis status --keys DIR` asks one \
                     that has them; if it is another program, give the coordinator another --listen"
                ),
            ),
        },
    };
    Ok(finding)
}

/// The coordinator that the job's environment names.
///
/// # Errors
/// No connection of ours can be had at all.
pub(super) fn reached(address: &str) -> Result<Finding> {
    let about = "coordinator";
    if let Err(error) = Client::connect(address, "doctor/check", &Security::Open, Limits::default()) {
        return Ok(Finding::new(about, Fix, format!("ADAPTIS_COORDINATOR: {error}")));
    }
    Ok(match asked(address)? {
        Some(status) => Finding::new(about, Fine, format!("{address}: run {}, {:?}", status.run, status.state)),
        None => Finding::new(
            about,
            Note,
            format!(
                "ADAPTIS_COORDINATOR: {address} does not answer without keys: until a coordinator is there, ranks train \
                 unmeasured (`adaptis status --keys DIR` asks one that has keys)"
            ),
        ),
    })
}

/// What a coordinator without keys says of its run.
fn asked(address: &str) -> Result<Option<Status>> {
    let identity = format!("doctor/{}", std::process::id());
    let client =
        Client::connect(address, &identity, &Security::Open, Limits::default()).map_err(failure::environment)?;
    client.send(wire::encode(&ToCoordinator::Ask(Ask::Status)))?;
    let answer = client.receive(PATIENCE)?.and_then(|bytes| wire::decode(&bytes).ok());
    Ok(match answer {
        Some(FromCoordinator::Answer(Answer::Status(status))) => Some(*status),
        _ => None,
    })
}
