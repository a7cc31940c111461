//! Tries a place with the standard library before libzmq has it.
//!
//! Why: libzmq takes an ipc path away from a living server without a word, and the `zmq` crate panics at error numbers
//! that it does not know (a read-only folder, a machine without IPv6). Between the probe and libzmq's own bind the
//! place may still be taken; libzmq's answer then stands.

use std::{
    fs, io,
    net::TcpListener,
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

use crate::{
    AddressFault, Error, Step,
    address::{Address, bad},
};

/// Whether a server could listen there; removes the socket that a killed server left behind. `text` is the address as
/// given, for the error.
pub(crate) fn require_free(text: &str, address: &Address) -> Result<(), Error> {
    let probed = match address {
        Address::Ipc { path: None } => return Ok(()),
        Address::Ipc { path: Some(path) } => probe_path(text, Path::new(path))?,
        Address::Tcp { port, .. } => match address.ip() {
            Some(ip) => TcpListener::bind((ip, port.unwrap_or(0))).map(drop),
            // The name of an interface, which only libzmq looks up.
            None => return Ok(()),
        },
    };
    let address = text.to_owned();
    probed.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::AddressInUse { address },
        io::ErrorKind::AddrNotAvailable => Error::AddressNotLocal { address },
        io::ErrorKind::PermissionDenied => Error::AddressDenied { address },
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => bad(text, AddressFault::NoFolder),
        _ => Error::System { step: Step::Bind, source },
    })
}

fn probe_path(text: &str, path: &Path) -> Result<io::Result<()>, Error> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(bad(text, AddressFault::NotASocket)),
        Ok(_) => match UnixStream::connect(path) {
            // Nobody answers: left behind by a killed process.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                if let Err(error) = fs::remove_file(path) {
                    return Ok(Err(error));
                }
            }
            Err(error) => return Ok(Err(error)),
            Ok(_) => return Err(Error::AddressInUse { address: text.to_owned() }),
        },
        // Not there, or not to be looked at: the bind will say which.
        Err(_) => {}
    }
    Ok(UnixListener::bind(path).and_then(|listener| {
        drop(listener);
        fs::remove_file(path)
    }))
}

/// Removes the socket of a server that has ended, which libzmq leaves behind, unless another server has the place.
pub(crate) fn sweep(endpoint: &str) {
    if let Some(path) = endpoint.strip_prefix("ipc://")
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        // Someone else may have swept it.
        let _ = fs::remove_file(path);
    }
}
