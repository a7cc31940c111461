//! Real sockets, one process: what the link promises, by story.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod curve;
mod exchange;
mod keyfiles;
mod places;
mod pressure;
mod recovery;

use std::{
    thread,
    time::{Duration, Instant},
};

use adaptis_link::{Client, Incoming, Limits, Security, Server};

/// Far more than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOPBACK: &str = "tcp://127.0.0.1:*";

fn open_server() -> Server {
    Server::bind(LOOPBACK, &Security::Open, Limits::default()).unwrap()
}

fn open_client(server: &Server, name: &str) -> Client {
    Client::connect(server.endpoint(), name, &Security::Open, Limits::default()).unwrap()
}

fn take(server: &Server) -> Incoming {
    server.receive(PATIENCE).unwrap().expect("a message within the patience")
}

fn take_answer(client: &Client) -> Vec<u8> {
    client.receive(PATIENCE).unwrap().expect("an answer within the patience")
}

/// Waits for a count to be reached; the wait is not what is tested.
fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "never came: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
