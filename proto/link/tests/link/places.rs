//! Where a server may listen, and what is said when it may not.

use std::{fs, net::TcpListener, os::unix::net::UnixListener};

use adaptis_link::{AddressFault, Client, Error, Limits, Security, Server};

use crate::{open_client, open_server, take};

fn bind(address: &str) -> Result<Server, Error> {
    Server::bind(address, &Security::Open, Limits::default())
}

#[test]
fn a_free_port_is_filled_in() {
    let (one, two) = (open_server(), open_server());
    let port =
        |server: &Server| -> u16 { server.endpoint().strip_prefix("tcp://127.0.0.1:").unwrap().parse().unwrap() };
    assert_ne!(port(&one), port(&two));
    let named = bind("tcp://localhost:*").unwrap();
    assert_ne!(port(&named), 0);
    let local = bind("ipc://*").unwrap();
    let client = open_client(&local, "found");
    client.send(vec![1]).unwrap();
    assert_eq!(take(&local).payload, [1]);
}

#[test]
fn a_taken_port_is_named() {
    let server = open_server();
    let taken = server.endpoint().to_owned();
    match bind(&taken).err() {
        Some(Error::AddressInUse { address }) => assert_eq!(address, taken),
        other => panic!("{other:?}"),
    }
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp://{}", other.local_addr().unwrap());
    let text = bind(&taken).err().unwrap().to_string();
    assert!(text.contains(&taken) && text.contains("in use"), "{text}");
}

#[test]
fn a_taken_path_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("ipc://{}/socket", folder.path().display());
    let server = bind(&address).unwrap();
    assert!(matches!(bind(&address), Err(Error::AddressInUse { .. })));
    let client = open_client(&server, "still here");
    client.send(vec![1]).unwrap();
    assert_eq!(take(&server).payload, [1]);
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("left");
    drop(UnixListener::bind(&left).unwrap());
    assert!(left.exists());
    assert!(bind(&format!("ipc://{}", left.display())).is_ok());
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let fault = |address: &str| match bind(address).err() {
        Some(Error::BadAddress { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(&format!("ipc://{}", file.display())), AddressFault::NotASocket);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(fault(&format!("ipc://{}/absent/socket", folder.path().display())), AddressFault::NoFolder);
    assert_eq!(fault(&format!("ipc://{}/below", file.display())), AddressFault::NoFolder);
}

#[test]
fn without_keys_only_this_machine() {
    for address in [
        "tcp://0.0.0.0:29611",
        "tcp://*:29611",
        "tcp://10.1.2.3:29611",
        "tcp://[::]:29611",
        "tcp://node-7.example.org:29611",
        "tcp://eth0:*",
    ] {
        match bind(address).err() {
            Some(error @ Error::Unprotected { .. }) => {
                let text = error.to_string();
                assert!(text.contains(address) && text.contains("adaptis keys"), "{text}");
            }
            other => panic!("{address}: {other:?}"),
        }
    }
}

#[test]
fn the_loopback_of_ipv6() {
    match bind("tcp://[::1]:*") {
        Ok(server) => {
            let client = open_client(&server, "six");
            client.send(vec![6]).unwrap();
            assert_eq!(take(&server).payload, [6]);
        }
        // A machine without IPv6 says so in one way or another; it does not panic.
        Err(error) => assert!(matches!(error, Error::AddressNotLocal { .. } | Error::System { .. }), "{error:?}"),
    }
}

#[test]
fn a_client_needs_a_whole_address() {
    let connect = |address: &str| Client::connect(address, "a", &Security::Open, Limits::default());
    for (address, expected) in [
        ("tcp://127.0.0.1:*", AddressFault::Wildcard),
        ("tcp://*:29611", AddressFault::Wildcard),
        ("ipc://*", AddressFault::Wildcard),
        ("node-7:29611", AddressFault::Scheme),
    ] {
        match connect(address).err() {
            Some(Error::BadAddress { fault, .. }) => assert_eq!(fault, expected),
            other => panic!("{address}: {other:?}"),
        }
    }
    assert!(connect("tcp://no-such-host.invalid:29611").is_ok(), "names are looked up in the background");
}
