//! Full queues: who is slowed down, what is dropped, and that every message is counted once.

use std::thread;

use adaptis_link::{Client, Error, Limits, Security, Server};

use crate::{LOOPBACK, open_client, take, take_answer, wait_until};

fn narrow() -> Limits {
    Limits { incoming_len: 4, outgoing_len: 4, per_peer_len: 4, ..Limits::default() }
}

/// Large enough that the system's socket buffers hold only some dozens.
fn numbered(number: u64) -> Vec<u8> {
    let mut payload = vec![0; 64 << 10];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

#[test]
fn a_server_that_does_not_read_slows_its_client_and_loses_nothing() {
    let server = Server::bind(LOOPBACK, &Security::Open, narrow()).unwrap();
    let client = Client::connect(server.endpoint(), "fast", &Security::Open, narrow()).unwrap();
    let mut accepted = 0;
    // Until the pressure has come all the way back: the server stalls, then the client's queue is full.
    loop {
        match client.send(numbered(accepted)) {
            Ok(()) => accepted += 1,
            Err(Error::Full) if server.counters().stalls > 0 && client.counters().sent < accepted => break,
            Err(Error::Full) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
        assert!(accepted < 100_000, "no pressure came back");
    }
    assert_eq!(client.counters().accepted, accepted);
    assert!(client.counters().dropped_full > 0);
    for number in 0..accepted {
        assert_eq!(take(&server).payload, numbered(number));
    }
    assert!(server.try_receive().unwrap().is_none());
    assert_eq!(client.counters().sent, accepted);
    assert_eq!(server.counters().received, accepted);
}

#[test]
fn a_client_that_does_not_read_does_not_hold_up_the_others() {
    let server = Server::bind(LOOPBACK, &Security::Open, Limits { incoming_len: 64, ..narrow() }).unwrap();
    let slow = Client::connect(server.endpoint(), "slow", &Security::Open, narrow()).unwrap();
    let quick = open_client(&server, "quick");
    for client in [&slow, &quick] {
        client.send(vec![]).unwrap();
        take(&server);
    }
    let mut accepted = 0;
    while server.counters().dropped_peer_full == 0 {
        match server.send(&"slow".into(), numbered(accepted)) {
            Ok(()) => accepted += 1,
            Err(Error::Full) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
        assert!(accepted < 100_000, "its queue was never full");
    }
    let answer = loop {
        match server.send(&"quick".into(), b"on time".to_vec()) {
            Ok(()) => break take_answer(&quick),
            Err(Error::Full) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(answer, b"on time");
    let counters = server.counters();
    assert_eq!((counters.queued(), counters.unroutable), (0, 0));
    assert_eq!(counters.accepted, counters.sent + counters.dropped_peer_full);
    // What was not dropped arrives, in order.
    let expected = counters.sent - 1;
    let mut last = None;
    for _ in 0..expected {
        let payload = take_answer(&slow);
        let number = u64::from_le_bytes(*payload.first_chunk().unwrap());
        assert!(last < Some(number));
        last = Some(number);
    }
    assert!(slow.try_receive().unwrap().is_none());
}

#[test]
fn without_a_server_the_queues_fill_and_say_so() {
    let nowhere = Server::bind(LOOPBACK, &Security::Open, narrow()).unwrap().endpoint().to_owned();
    let client = Client::connect(&nowhere, "early", &Security::Open, narrow()).unwrap();
    let mut accepted = 0;
    // Four in the pipe, one held, four in the queue, at most.
    while accepted < 100 {
        match client.send(vec![accepted]) {
            Ok(()) => accepted += 1,
            Err(Error::Full) if client.counters().sent == 4 => break,
            Err(Error::Full) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    assert!((8..=9).contains(&accepted), "{accepted}");
    // It comes up: everything accepted is delivered.
    let server = Server::bind(&nowhere, &Security::Open, narrow()).unwrap();
    for number in 0..accepted {
        assert_eq!(take(&server).payload, [number]);
    }
    wait_until("all are counted as sent", || client.counters().sent == u64::from(accepted));
}
