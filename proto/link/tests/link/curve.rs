//! With keys: who is let in, who is not, and that the latter is seen.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use adaptis_link::{
    Client, Limits, Security, Server,
    keys::{KeyPair, Keyring},
};

use crate::{LOOPBACK, PATIENCE, take, take_answer, wait_until};

/// A coordinator that lets `rank-0` and `rank-1` in.
struct Cluster {
    pair: KeyPair,
    coordinator: Keyring,
    ranks: [Keyring; 2],
}

fn cluster() -> Cluster {
    let [server, zero, one] = [(); 3].map(|()| KeyPair::generate().unwrap());
    let ring = |own: &KeyPair| {
        let clients = [("rank-0".to_owned(), zero.public), ("rank-1".to_owned(), one.public)];
        Keyring::new(own.clone(), server.public, clients)
    };
    Cluster { coordinator: ring(&server), ranks: [ring(&zero), ring(&one)], pair: server }
}

fn quick() -> Limits {
    Limits { reconnect_max: Duration::from_millis(50), ..Limits::default() }
}

fn serve(keyring: &Keyring) -> Server {
    Server::bind(LOOPBACK, &Security::Curve(keyring.clone()), quick()).unwrap()
}

fn connect(server: &Server, name: &str, security: Security) -> Client {
    Client::connect(server.endpoint(), name, &security, quick()).unwrap()
}

#[test]
fn a_known_key_is_let_in() {
    let cluster = cluster();
    let server = serve(&cluster.coordinator);
    for (index, ring) in cluster.ranks.iter().enumerate() {
        let name = format!("rank-{index}");
        let client = connect(&server, &name, Security::Curve(ring.clone()));
        client.send(vec![index as u8; 70_000]).unwrap();
        let message = take(&server);
        assert_eq!((message.peer.as_str(), message.payload), (Some(name.as_str()), vec![index as u8; 70_000]));
        server.send(&message.peer, b"welcome".to_vec()).unwrap();
        assert_eq!(take_answer(&client), b"welcome");
    }
    assert_eq!(server.counters().refused(), 0);
}

#[test]
fn with_keys_other_machines_may_be_served() {
    let cluster = cluster();
    let server = Server::bind("tcp://*:*", &Security::Curve(cluster.coordinator.clone()), quick()).unwrap();
    let port = server.endpoint().strip_prefix("tcp://0.0.0.0:").unwrap();
    let security = Security::Curve(cluster.ranks[0].clone());
    let client = Client::connect(&format!("tcp://127.0.0.1:{port}"), "rank-0", &security, quick()).unwrap();
    client.send(vec![1]).unwrap();
    assert_eq!(take(&server).payload, [1]);
}

#[test]
fn an_unknown_key_is_refused_and_counted() {
    let cluster = cluster();
    let server = serve(&cluster.coordinator);
    let stranger = Keyring::new(KeyPair::generate().unwrap(), cluster.coordinator.public(), []);
    let client = connect(&server, "rank-0", Security::Curve(stranger));
    client.send(b"let me in".to_vec()).unwrap();
    wait_until("the server counts it", || server.counters().refused_keys >= 2);
    wait_until("the client knows", || client.counters().refused() >= 1);
    // A known key still gets in, and its message is the only one.
    let known = connect(&server, "rank-1", Security::Curve(cluster.ranks[1].clone()));
    known.send(b"known".to_vec()).unwrap();
    assert_eq!(take(&server).payload, b"known");
    server.send(&"rank-0".into(), b"secret".to_vec()).unwrap();
    wait_until("nobody has that name", || server.counters().unroutable == 1);
    assert!(server.try_receive().unwrap().is_none());
    assert_eq!(client.counters().received, 0);
    wait_until("only one came in", || server.counters().connections == 1);
}

#[test]
fn no_key_is_refused_and_counted() {
    let cluster = cluster();
    let server = serve(&cluster.coordinator);
    let client = connect(&server, "rank-0", Security::Open);
    client.send(b"let me in".to_vec()).unwrap();
    wait_until("the server counts it", || server.counters().refused_handshakes >= 1);
    wait_until("the client knows", || client.counters().refused() >= 1);
    server.send(&"rank-0".into(), b"secret".to_vec()).unwrap();
    wait_until("nobody has that name", || server.counters().unroutable == 1);
    assert_eq!((server.counters().received, client.counters().received), (0, 0));
    assert_eq!(server.counters().refused_keys, 0);
}

#[test]
fn another_servers_key_is_refused_and_counted() {
    let (ours, theirs) = (cluster(), cluster());
    let server = serve(&ours.coordinator);
    // Our rank, but it expects another coordinator: it must not talk to this one.
    let client = connect(&server, "rank-0", Security::Curve(theirs.ranks[0].clone()));
    client.send(b"for theirs only".to_vec()).unwrap();
    wait_until("the server counts it", || server.counters().refused() >= 1);
    assert_eq!(server.counters().received, 0);
    assert_eq!(server.counters().connections, 0);
}

#[test]
fn a_client_with_keys_does_not_talk_to_a_server_without() {
    let cluster = cluster();
    let server = Server::bind(LOOPBACK, &Security::Open, quick()).unwrap();
    let client = connect(&server, "rank-0", Security::Curve(cluster.ranks[0].clone()));
    client.send(b"in the clear?".to_vec()).unwrap();
    wait_until("the client refuses", || client.counters().refused() >= 1);
    assert_eq!(server.counters().received, 0);
}

#[test]
fn strays_do_no_harm() {
    let cluster = cluster();
    let server = serve(&cluster.coordinator);
    let place = server.endpoint().strip_prefix("tcp://").unwrap();
    drop(TcpStream::connect(place).unwrap());
    wait_until("a port scan is counted", || server.counters().refused_handshakes == 1);
    let mut browser = TcpStream::connect(place).unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // What libzmq says before it hangs up; then the end, or a reset.
    let _ = browser.read_to_end(&mut Vec::new());
    let known = connect(&server, "rank-0", Security::Curve(cluster.ranks[0].clone()));
    known.send(vec![1]).unwrap();
    assert_eq!(take(&server).payload, [1]);
    assert_eq!(server.counters().received, 1);
}

#[test]
fn two_rings_live_in_one_process() {
    let (ours, theirs) = (cluster(), cluster());
    let (one, two) = (serve(&ours.coordinator), serve(&theirs.coordinator));
    let good = [
        connect(&one, "a", Security::Curve(ours.ranks[0].clone())),
        connect(&two, "b", Security::Curve(theirs.ranks[0].clone())),
    ];
    for (client, server) in good.iter().zip([&one, &two]) {
        client.send(vec![1]).unwrap();
        assert_eq!(take(server).payload, [1]);
    }
    // Our rank with the right key of their server is still a stranger to them.
    let key = KeyPair::generate().unwrap();
    let mixed = Keyring::new(key.clone(), theirs.coordinator.public(), []);
    let stranger = connect(&two, "c", Security::Curve(mixed));
    wait_until("theirs refuses", || two.counters().refused_keys >= 1);
    assert_eq!(one.counters().refused(), 0);
    drop(stranger);
}

#[test]
fn ranks_face_each_other() {
    let cluster = cluster();
    let receiver = serve(&cluster.ranks[1]);
    let facing = cluster.ranks[0].facing("rank-1").unwrap();
    assert_eq!(facing.server(), cluster.ranks[1].public());
    let client = connect(&receiver, "rank-0", Security::Curve(facing));
    client.send(b"activations".to_vec()).unwrap();
    assert_eq!(take(&receiver).payload, b"activations");
    // The coordinator's key is not that of the rank.
    let wrong = connect(&receiver, "rank-0", Security::Curve(cluster.ranks[0].clone()));
    wait_until("it is refused", || receiver.counters().refused() >= 1);
    drop(wrong);
}

#[test]
fn a_refused_client_gets_in_once_its_key_is_known() {
    let cluster = cluster();
    let strict = Keyring::new(cluster.pair.clone(), cluster.coordinator.public(), []);
    let server = serve(&strict);
    let client =
        Client::connect(server.endpoint(), "rank-0", &Security::Curve(cluster.ranks[0].clone()), quick()).unwrap();
    wait_until("it is refused", || server.counters().refused_keys >= 1);
    let place = server.endpoint().to_owned();
    drop(server);
    let server = Server::bind(&place, &Security::Curve(cluster.coordinator.clone()), quick()).unwrap();
    wait_until("it is let in", || server.counters().connections == 1);
    client.send(b"at last".to_vec()).unwrap();
    assert_eq!(server.receive(PATIENCE).unwrap().unwrap().payload, b"at last");
}
