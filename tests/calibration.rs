//! A real agent calibrates this host's processor, and a real coordinator keeps it by kind: two processes, and a rank that
//! is there and does not train yet.

mod support;

use adaptis_coordinator::profiles::library;
use adaptis_link::{Client, Limits, Security};
use adaptis_proto::message::ToCoordinator;
use adaptis_proto::wire;
use std::process::{Child, Command, Stdio};
use support::{Folder, hello, signal, until};

fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts")
}

fn stop(mut child: Child) {
    signal(&child, libc::SIGTERM);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_device_that_joins_leaves_its_rates_with_its_kind() {
    let folder = Folder::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
    let address = format!("tcp://127.0.0.1:{port}");
    let (run, ring, spool) = (folder.text("run"), folder.text("ring"), folder.text("spool"));
    let coordinator = start(&["coordinator", "--dir", &run, "--listen", &address, "--http", "127.0.0.1:0"]);
    let agent = ["agent", "--device", "host", "--ring", &ring, "--spool", &spool, "--coordinator", &address];
    let agent = start(&agent);
    let rank = Client::connect(&address, "rank/host", &Security::Open, Limits::default()).expect("an address");
    let person = Client::connect(&address, "person", &Security::Open, Limits::default()).expect("an address");
    let status = wire::encode(&ToCoordinator::Ask(adaptis_proto::message::Ask::Status));
    until("no word of the agent", || {
        rank.send(wire::encode(&hello())).expect("it is sent");
        person.send(status.clone()).expect("it is sent");
        let answer = person.receive(std::time::Duration::from_millis(200)).expect("a link");
        let text = answer.map(|bytes| format!("{:?}", wire::decode::<adaptis_proto::message::FromCoordinator>(&bytes)));
        text.is_some_and(|text| text.contains("host.agent.taken") && text.contains("Training"))
    });
    // Its last word is said when it leaves, and by then the kernels are done.
    std::thread::sleep(std::time::Duration::from_secs(3));
    stop(agent);
    stop(coordinator);
    let rates = library::of_run(&folder.path("run")).expect("a run").rates;
    let of_kind = rates.get("cpu").expect("its kind");
    for rate in [of_kind.operations_per_s, of_kind.bytes_per_s] {
        assert!(rate.is_some_and(|rate| (100_000_000..100_000_000_000_000).contains(&rate)), "{rates:?}");
    }
}
