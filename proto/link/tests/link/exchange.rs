//! Messages go both ways, whole, in order, to the right peer.

use std::{os::unix::fs::FileTypeExt, thread};

use adaptis_link::{Client, Error, IdentityFault, Limits, PeerId, Security, Server};
use crossbeam::select;

use crate::{LOOPBACK, PATIENCE, open_client, open_server, take, take_answer, wait_until};

#[test]
fn a_message_and_its_answer() {
    let server = open_server();
    let client = open_client(&server, "rank-3");
    client.send(b"sample".to_vec()).unwrap();
    let message = take(&server);
    assert_eq!(message.peer, PeerId::from("rank-3"));
    assert_eq!(message.peer.as_str(), Some("rank-3"));
    assert_eq!(message.payload, b"sample");
    server.send(&message.peer, b"stored".to_vec()).unwrap();
    assert_eq!(take_answer(&client), b"stored");
    let (at_server, at_client) = (server.counters(), client.counters());
    assert_eq!((at_server.received, at_server.sent, at_server.queued()), (1, 1, 0));
    assert_eq!((at_client.received, at_client.sent, at_client.queued()), (1, 1, 0));
    wait_until("both have noted the connection", || {
        (server.counters().connections, client.counters().connections) == (1, 1)
    });
    assert_eq!((at_server.refused(), at_client.refused()), (0, 0));
}

#[test]
fn over_a_local_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("link.socket");
    let address = format!("ipc://{}", path.display());
    let server = Server::bind(&address, &Security::Open, Limits::default()).unwrap();
    assert_eq!(server.endpoint(), address);
    assert!(path.symlink_metadata().unwrap().file_type().is_socket());
    let client = Client::connect(&address, "agent", &Security::Open, Limits::default()).unwrap();
    client.send(vec![7; 100]).unwrap();
    assert_eq!(take(&server).payload, vec![7; 100]);
    drop(server);
    assert!(!path.exists(), "a dropped server removes its socket");
}

#[test]
fn order_is_kept_both_ways() {
    const LEN: u64 = 20_000;
    let server = open_server();
    let client = open_client(&server, "counter");
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..LEN {
                client.send_within(number.to_le_bytes().to_vec(), PATIENCE).unwrap();
            }
        });
        scope.spawn(|| {
            for number in 0..LEN {
                assert_eq!(take_answer(&client), number.to_le_bytes());
            }
        });
        for number in 0..LEN {
            let message = take(&server);
            assert_eq!(message.payload, number.to_le_bytes());
            server.sender().send_within(&message.peer, message.payload, PATIENCE).unwrap();
        }
    });
    assert_eq!((server.counters().received, client.counters().received), (LEN, LEN));
}

#[test]
fn many_peers_each_get_their_own() {
    let server = open_server();
    let clients: Vec<_> = (0..20).map(|index| open_client(&server, &format!("agent-{index}"))).collect();
    for client in &clients {
        client.send(b"hello".to_vec()).unwrap();
    }
    for _ in &clients {
        let peer = take(&server).peer;
        server.send(&peer, peer.as_bytes().to_vec()).unwrap();
    }
    for (index, client) in clients.iter().enumerate() {
        assert_eq!(take_answer(client), format!("agent-{index}").into_bytes());
    }
}

#[test]
fn large_and_empty_messages() {
    let server = open_server();
    let client = open_client(&server, "tensor");
    let large: Vec<u8> = (0..32 << 20).map(|index: u32| index.wrapping_mul(2_654_435_761) as u8).collect();
    client.send(large.clone()).unwrap();
    client.send(Vec::new()).unwrap();
    // Room to spare in the vector must not go over the wire.
    let mut roomy = Vec::with_capacity(1 << 20);
    roomy.extend_from_slice(b"short");
    client.send(roomy).unwrap();
    let message = take(&server);
    assert!(message.payload == large);
    assert_eq!(take(&server).payload, b"");
    assert_eq!(take(&server).payload, b"short");
    server.send(&message.peer, message.payload).unwrap();
    assert!(take_answer(&client) == large);
}

#[test]
fn too_long_is_refused_where_it_is_sent() {
    let limits = Limits { message_bytes_max: 1000, ..Limits::default() };
    let server = Server::bind(LOOPBACK, &Security::Open, limits.clone()).unwrap();
    let client = Client::connect(server.endpoint(), "a", &Security::Open, limits).unwrap();
    let refused = client.send(vec![0; 1001]);
    assert!(matches!(refused, Err(Error::TooLong { bytes: 1001, bytes_max: 1000 })), "{refused:?}");
    client.send(vec![0; 1000]).unwrap();
    assert_eq!(take(&server).payload.len(), 1000);
    assert!(matches!(server.send(&"a".into(), vec![0; 1001]), Err(Error::TooLong { .. })));
}

#[test]
fn queues_can_be_selected_on() {
    let (one, two) = (open_server(), open_server());
    open_client(&two, "x").send(b"to two".to_vec()).unwrap();
    select! {
        recv(one.incoming()) -> _ => panic!("nothing was sent there"),
        recv(two.incoming()) -> message => assert_eq!(message.unwrap().payload, b"to two"),
        default(PATIENCE) => panic!("nothing came"),
    }
    assert!(one.try_receive().unwrap().is_none());
}

#[test]
fn senders_in_other_threads() {
    let server = open_server();
    let client = open_client(&server, "sink");
    client.send(vec![]).unwrap();
    let peer = take(&server).peer;
    thread::scope(|scope| {
        for _ in 0..4 {
            let (sender, peer) = (server.sender(), peer.clone());
            scope.spawn(move || (0..100).for_each(|_| sender.send(&peer, vec![1]).unwrap()));
        }
    });
    for _ in 0..400 {
        assert_eq!(take_answer(&client), [1]);
    }
    let sender = server.sender();
    drop(server);
    assert!(matches!(sender.send(&peer, vec![1]), Err(Error::Closed)));
}

#[test]
fn an_absent_peer_is_counted() {
    let server = open_server();
    for _ in 0..100 {
        server.send(&"nobody".into(), b"lost".to_vec()).unwrap();
    }
    wait_until("all are counted", || server.counters().unroutable == 100);
    assert_eq!((server.counters().accepted, server.counters().sent), (100, 0));
}

#[test]
fn frames_that_are_not_ours_are_counted() {
    let server = open_server();
    let stranger = zmq::Context::new().socket(zmq::DEALER).unwrap();
    stranger.set_linger(0).unwrap();
    stranger.connect(server.endpoint()).unwrap();
    stranger.send_multipart(["one", "two", "three"], 0).unwrap();
    stranger.send("good", 0).unwrap();
    let message = take(&server);
    assert_eq!(message.payload, b"good");
    assert_eq!(message.peer.as_bytes()[0], 0, "a name of libzmq's making");
    assert_eq!(server.counters().malformed, 1);
}

#[test]
fn names_are_checked() {
    let connect = |name: &str| Client::connect("tcp://127.0.0.1:1", name, &Security::Open, Limits::default());
    let fault = |name: &str| match connect(name).err() {
        Some(Error::BadIdentity { fault, .. }) => Some(fault),
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(""), Some(IdentityFault::Empty));
    assert_eq!(fault(&"x".repeat(256)), Some(IdentityFault::Length { bytes: 256 }));
    assert_eq!(fault("\0x"), Some(IdentityFault::Zero));
    assert!(connect(&"x".repeat(255)).is_ok());
}
