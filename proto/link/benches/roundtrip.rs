//! A message to a server and back, over each transport and size; and a stream one way, counted in messages.

use std::{thread, time::Duration};

use adaptis_link::{
    Client, Limits, Security, Server,
    keys::{KeyPair, Keyring},
};
use divan::{Bencher, counter::ItemsCount};

const PATIENCE: Duration = Duration::from_secs(30);
const SIZES: [usize; 3] = [64, 1 << 10, 64 << 10];

fn main() {
    divan::main();
}

#[divan::bench(args = SIZES, sample_count = 1000, sample_size = 10)]
fn tcp(bencher: Bencher, bytes: usize) {
    round_trip(bencher, "tcp://127.0.0.1:*", &Security::Open, bytes);
}

#[divan::bench(args = SIZES, sample_count = 1000, sample_size = 10)]
fn ipc(bencher: Bencher, bytes: usize) {
    round_trip(bencher, "ipc://*", &Security::Open, bytes);
}

#[divan::bench(args = SIZES, sample_count = 1000, sample_size = 10)]
fn curve(bencher: Bencher, bytes: usize) {
    let pair = KeyPair::generate().expect("libzmq has CURVE");
    let ring = Keyring::new(pair.clone(), pair.public, []);
    round_trip(bencher, "tcp://127.0.0.1:*", &Security::Curve(ring), bytes);
}

/// Messages a second one way: the inverse of the time for ten thousand.
#[divan::bench(args = SIZES, sample_count = 20, sample_size = 1)]
fn stream(bencher: Bencher, bytes: usize) {
    const LEN: usize = 10_000;
    let (server, client) = pair("tcp://127.0.0.1:*", &Security::Open);
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| {
        thread::scope(|scope| {
            scope.spawn(|| (0..LEN).for_each(|_| client.send_within(vec![0; bytes], PATIENCE).expect("room in time")));
            (0..LEN).for_each(|_| drop(server.receive(PATIENCE).expect("an open link").expect("a message in time")));
        });
    });
}

fn pair(address: &str, security: &Security) -> (Server, Client) {
    let server = Server::bind(address, security, Limits::default()).expect("a free place");
    let client = Client::connect(server.endpoint(), "bench", security, Limits::default()).expect("a good address");
    (server, client)
}

fn round_trip(bencher: Bencher, address: &str, security: &Security, bytes: usize) {
    let (server, client) = pair(address, security);
    thread::scope(|scope| {
        scope.spawn(|| {
            // An empty message ends it.
            while let Ok(Some(message)) = server.receive(PATIENCE) {
                if message.payload.is_empty() || server.send(&message.peer, message.payload).is_err() {
                    break;
                }
            }
        });
        let mut payload = vec![0; bytes];
        let mut turn = || {
            client.send(std::mem::take(&mut payload)).expect("an empty queue");
            payload = client.receive(PATIENCE).expect("an open link").expect("an answer in time");
        };
        turn();
        bencher.bench_local(&mut turn);
        client.send(Vec::new()).expect("an empty queue");
    });
}
