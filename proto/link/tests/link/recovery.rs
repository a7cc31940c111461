//! Ends that go away: the other one finds them again, and nothing hangs.

use std::time::{Duration, Instant};

use adaptis_link::{
    Client, Limits, Security, Server,
    keys::{KeyPair, Keyring},
};

use crate::{LOOPBACK, open_client, open_server, take, take_answer, wait_until};

#[test]
fn a_client_finds_a_restarted_server() {
    let server = open_server();
    let place = server.endpoint().to_owned();
    let client = open_client(&server, "faithful");
    client.send(b"first".to_vec()).unwrap();
    assert_eq!(take(&server).payload, b"first");
    drop(server);
    client.send(b"while it was away".to_vec()).unwrap();
    let server = Server::bind(&place, &Security::Open, Limits::default()).unwrap();
    let message = take(&server);
    assert_eq!(message.payload, b"while it was away");
    server.send(&message.peer, b"back".to_vec()).unwrap();
    assert_eq!(take_answer(&client), b"back");
}

#[test]
fn a_restarted_client_takes_its_name_over() {
    let server = open_server();
    let old = open_client(&server, "rank-0");
    old.send(b"old".to_vec()).unwrap();
    take(&server);
    let new = open_client(&server, "rank-0");
    new.send(b"new".to_vec()).unwrap();
    let message = take(&server);
    assert_eq!(message.payload, b"new");
    server.send(&message.peer, b"for the new one".to_vec()).unwrap();
    assert_eq!(take_answer(&new), b"for the new one");
    assert_eq!(old.counters().received, 0);
}

#[test]
fn what_was_accepted_is_sent_before_the_end() {
    let server = open_server();
    let client = open_client(&server, "brief");
    for number in 0..1000_u32 {
        client.send(number.to_le_bytes().to_vec()).unwrap();
    }
    drop(client);
    for number in 0..1000_u32 {
        assert_eq!(take(&server).payload, number.to_le_bytes());
    }
    let client = open_client(&server, "listener");
    client.send(vec![]).unwrap();
    let peer = take(&server).peer;
    for number in 0..1000_u32 {
        server.send(&peer, number.to_le_bytes().to_vec()).unwrap();
    }
    drop(server);
    for number in 0..1000_u32 {
        assert_eq!(take_answer(&client), number.to_le_bytes());
    }
}

/// Far below libzmq's own default, which is never; far above what a loaded machine adds.
const NOT_FOR_EVER: Duration = Duration::from_secs(10);

fn ends_soon(what: &str, end: impl FnOnce()) {
    let start = Instant::now();
    end();
    assert!(start.elapsed() < NOT_FOR_EVER, "{what} took {:?}", start.elapsed());
}

#[test]
fn a_drop_never_hangs() {
    let gone = open_server().endpoint().to_owned();
    let client = Client::connect(&gone, "lonely", &Security::Open, Limits::default()).unwrap();
    for _ in 0..2000 {
        client.send(vec![0; 1000]).unwrap();
    }
    ends_soon("a client without a server", || drop(client));

    let server = open_server();
    let reader =
        Client::connect(server.endpoint(), "deaf", &Security::Open, Limits { incoming_len: 1, ..Limits::default() });
    let reader = reader.unwrap();
    reader.send(vec![]).unwrap();
    let peer = take(&server).peer;
    for _ in 0..500 {
        server.send(&peer, vec![0; 100_000]).unwrap();
    }
    ends_soon("a server whose client does not read", || drop(server));
    ends_soon("a client with messages unread", || drop(reader));

    let server = Server::bind(LOOPBACK, &Security::Open, Limits { incoming_len: 1, ..Limits::default() }).unwrap();
    let writer = open_client(&server, "eager");
    for _ in 0..500 {
        writer.send(vec![0; 100_000]).unwrap();
    }
    wait_until("it stalls", || server.counters().stalls > 0);
    ends_soon("a stalled server", || drop(server));
    ends_soon("its client", || drop(writer));
}

#[test]
fn a_drop_amid_refusals_never_hangs() {
    let pair = KeyPair::generate().unwrap();
    let ring = Keyring::new(pair.clone(), pair.public, []);
    let limits =
        Limits { reconnect_max: Duration::from_millis(5), linger: Duration::from_millis(50), ..Limits::default() };
    let server = Server::bind(LOOPBACK, &Security::Curve(ring), limits.clone()).unwrap();
    let strangers: Vec<_> = (0..8)
        .map(|index| {
            let ring = Keyring::new(KeyPair::generate().unwrap(), pair.public, []);
            let client = Client::connect(server.endpoint(), &index.to_string(), &Security::Curve(ring), limits.clone());
            let client = client.unwrap();
            client.send(vec![1]).unwrap();
            client
        })
        .collect();
    wait_until("many are refused", || server.counters().refused_keys > 100);
    ends_soon("a server amid refusals", || drop(server));
    ends_soon("its strangers", || drop(strangers));
}

#[test]
fn a_signal_interrupts_nothing() {
    // A handler without SA_RESTART, and a storm of signals to the whole process: every wait must go on.
    extern "C" fn ignore(_: libc::c_int) {}
    // SAFETY: a zeroed sigaction with a handler that does nothing is valid, and no one else uses SIGUSR1 here.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let server = open_server();
    let client = open_client(&server, "steady");
    for number in 0..500_u32 {
        // SAFETY: signals this process, which handles it.
        unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) };
        client.send(number.to_le_bytes().to_vec()).unwrap();
        let message = take(&server);
        server.send(&message.peer, message.payload).unwrap();
        assert_eq!(take_answer(&client), number.to_le_bytes());
    }
}
