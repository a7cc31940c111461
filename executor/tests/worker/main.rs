//! Whole ranks over real sockets, rings and the real clock, against a coordinator that only follows the test's script.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use adaptis_executor::emulation::{FORMAT, Run, Sizes};
use adaptis_executor::{Emulation, Ended, ExecutorError, Options, run};
use adaptis_link::keys::Keyring;
use adaptis_link::{Limits, PeerId, Security, Server};
use adaptis_plan::{Action, Cost, Device, Instruction, Layer, Links, Plan, Problem, Stage};
use adaptis_proto::message::{Failure, FromCoordinator, Member, RankEvent, RankOrder, Rejection, ToCoordinator};
use adaptis_proto::sample::{Mark, Phase, Sample};
use adaptis_proto::{Digest, Epoch, Generation, LayerIndex, RunId, Term, wire};
use adaptis_ring::{Reader, RingError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TERM: Term = Term(1);
const GENERATION: Generation = Generation(1);
const MICROBATCHES: u32 = 4;
const LIMIT: Duration = Duration::from_secs(60);

fn emulation(folder: &Path, iterations: u64) -> Emulation {
    let text = folder.join("text");
    let bytes: Vec<u8> = (0..3000_u32).map(|i| b'a' + (i.wrapping_mul(i) / 7 % 26) as u8).collect();
    std::fs::write(&text, bytes).unwrap();
    let types = ["embedding", "attention", "mlp", "ssm", "head"];
    let cost = Cost {
        forward_ns: 400_000,
        input_gradient_ns: 500_000,
        weight_gradient_ns: 300_000,
        activation_bytes: 1000,
        weight_gradient_bytes: 400,
        workspace_bytes: 0,
        split_ns: 0,
        note: None,
    };
    let truth = Problem {
        boundary_ns: 1_000_000,
        ..Problem::new(
            MICROBATCHES,
            types
                .map(|name| Layer {
                    name: name.into(),
                    signature: format!("{name}/8h2/f32/b1xs16"),
                    parameter_bytes: 1000,
                    state_bytes: 4000,
                    output_bytes: 512,
                    moved_bytes: None,
                    note: None,
                })
                .into(),
            ["gpu0", "gpu1"]
                .map(|name| Device {
                    name: name.into(),
                    kind: "test".into(),
                    memory_bytes: 100_000,
                    slowdown: 1.0,
                    reserved_bytes: 1000,
                    note: None,
                })
                .into(),
            [("test".to_owned(), vec![cost; types.len()])].into(),
            Links::all(50_000, 1e7),
        )
    };
    Emulation {
        format: FORMAT.into(),
        note: None,
        job: Run { run: RunId("worker test".into()), iterations },
        truth,
        layer_types: types.map(String::from).into(),
        shape: Sizes { width: 8, heads: 2, hidden: 8, experts: 2, state: 4, sequence: 16, vocabulary: 256 },
        seed: 3,
        text,
        noise: 0.0,
        lengths: 0.0,
        faults: Vec::new(),
        start_plan: None,
    }
}

/// Two stages cut before layer `cut`, all F before all B.
fn plan(epoch: u64, cut: u32) -> Plan {
    let stage = |layers, device| Stage { layers, device, recompute: vec![], note: None };
    let program = |stage| {
        let all = |action| (0..MICROBATCHES as usize).map(move |m| Instruction::new(stage, action, m));
        all(Action::Forward).chain(all(Action::Backward)).collect()
    };
    Plan {
        format: adaptis_plan::plan::FORMAT.into(),
        note: None,
        epoch: Epoch(epoch),
        parent: Epoch(epoch - 1),
        layers: 5,
        devices: vec!["gpu0".into(), "gpu1".into()],
        stages: vec![stage([0, cut], 0), stage([cut, 5], 1)],
        programs: vec![program(0), program(1)],
        predicted: None,
        why: None,
    }
}

/// The coordinator's end, and the ranks.
struct Theatre {
    server: Server,
    folder: tempfile::TempDir,
    ranks: Vec<Option<JoinHandle<Result<Ended, ExecutorError>>>>,
    stop: Arc<AtomicBool>,
    peers: BTreeMap<String, PeerId>,
}

impl Theatre {
    fn open(iterations: u64, change: impl FnOnce(&mut Emulation), options: impl Fn(&mut Options)) -> Theatre {
        Theatre::open_with(&Security::Open, iterations, change, options)
    }

    fn open_with(
        security: &Security,
        iterations: u64,
        change: impl FnOnce(&mut Emulation),
        options: impl Fn(&mut Options),
    ) -> Theatre {
        let folder = tempfile::tempdir().unwrap();
        let mut emulation = emulation(folder.path(), iterations);
        change(&mut emulation);
        let file = folder.path().join("emulation.json");
        std::fs::write(&file, emulation.write()).unwrap();
        let server = Server::bind("tcp://127.0.0.1:*", security, Limits::default()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ranks = ["gpu0", "gpu1"]
            .map(|device| {
                let ring = folder.path().join(format!("{device}.ring"));
                let mut own = Options::new(server.endpoint().to_owned(), device.into(), file.clone(), ring);
                own.dismissal = Duration::from_secs(20);
                own.farewell = Duration::from_millis(500);
                own.patience = Duration::from_secs(20);
                options(&mut own);
                let stop = Arc::clone(&stop);
                Some(std::thread::spawn(move || run(own, stop)))
            })
            .into();
        Theatre { server, folder, ranks, stop, peers: BTreeMap::new() }
    }

    /// The next event of a rank that `wanted` takes, with whatever it makes of it.
    fn expect<T>(&mut self, what: &str, mut wanted: impl FnMut(&str, RankEvent) -> Option<T>) -> T {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            let Some(incoming) = self.server.receive(Duration::from_millis(100)).unwrap() else { continue };
            let name = incoming.peer.as_str().unwrap().split('/').nth(1).unwrap().to_owned();
            self.peers.insert(name.clone(), incoming.peer.clone());
            let ToCoordinator::Rank(event) = wire::decode(&incoming.payload).unwrap() else { panic!("not a rank") };
            if let Some(found) = wanted(&name, event) {
                return found;
            }
        }
        panic!("{what} did not come")
    }

    fn order(&self, device: &str, order: RankOrder) {
        self.server.send(&self.peers[device], wire::encode(&FromCoordinator::Rank(order))).unwrap();
    }

    fn order_all(&self, order: RankOrder) {
        self.peers.keys().for_each(|device| self.order(device, order.clone()));
    }

    /// Waits for both ranks and starts them.
    fn start(&mut self, plan: &Plan) {
        let mut members = BTreeMap::new();
        self.expect("Hello", |name, event| {
            if let RankEvent::Hello { incarnation, card, endpoint, place, .. } = event {
                assert_eq!((card.name.as_str(), place), (name, None));
                members.insert(name.to_owned(), Member { device: card.name, kind: card.kind, incarnation, endpoint });
            }
            (members.len() == 2).then_some(())
        });
        let text = plan.write();
        self.order_all(RankOrder::Start {
            term: TERM,
            generation: GENERATION,
            epoch: plan.epoch,
            digest: Plan::digest(&text),
            plan: text,
            members: members.into_values().collect(),
        });
    }

    fn prepare(&mut self, plan: &Plan) {
        let text = plan.write();
        self.order_all(RankOrder::Prepare {
            term: TERM,
            generation: GENERATION,
            parent: plan.parent,
            epoch: plan.epoch,
            digest: Plan::digest(&text),
            plan: text,
        });
    }

    /// The digests of all layers, once both ranks have finished; dismisses them.
    fn finish(&mut self) -> BTreeMap<LayerIndex, Digest> {
        let mut of = BTreeMap::new();
        let all = self.expect("Finished", |name, event| {
            if let RankEvent::Finished { layers, .. } = event {
                of.insert(name.to_owned(), layers);
            }
            (of.len() == 2).then(|| of.values().flatten().copied().collect())
        });
        self.order_all(RankOrder::Dismissed { term: TERM });
        all
    }

    fn end_of(&mut self, rank: usize) -> Result<Ended, ExecutorError> {
        self.ranks[rank].take().unwrap().join().unwrap()
    }

    fn samples(&self, device: &str) -> Vec<Sample> {
        let reader = Reader::open(&self.folder.path().join(format!("{device}.ring"))).unwrap();
        let mut records = Vec::new();
        reader.read(0, &mut records, 1 << 20);
        records.into_iter().map(|record| Sample::try_from(record).unwrap()).collect()
    }
}

#[test]
fn ranks_train_switch_and_leave_and_the_switch_changes_no_bit() {
    let mut undisturbed = Theatre::open(30, |_| {}, |_| {});
    undisturbed.start(&plan(1, 2));
    let expected = undisturbed.finish();
    assert_eq!(expected.len(), 5);

    let mut stage = Theatre::open(30, |_| {}, |_| {});
    stage.start(&plan(1, 2));
    stage.expect("Beat", |_, event| matches!(event, RankEvent::Beat { .. }).then_some(()));
    stage.prepare(&plan(2, 3));
    let mut active = BTreeMap::new();
    stage.expect("Active", |name, event| {
        if let RankEvent::Active { place, .. } = event {
            active.insert(name.to_owned(), place);
        }
        (active.len() == 2).then_some(())
    });
    assert_eq!(active["gpu0"], active["gpu1"]);
    assert_eq!(active["gpu0"].epoch, Epoch(2));
    stage.order_all(RankOrder::Introduce { term: Term(1) });
    let place = stage.expect("Hello again", |_, event| match event {
        RankEvent::Hello { place, .. } => Some(place),
        _ => None,
    });
    assert_eq!(place.map(|place| place.generation), Some(GENERATION));
    assert_eq!(stage.finish(), expected);
    for rank in 0..2 {
        assert!(matches!(stage.end_of(rank), Ok(Ended::Finished { dropped: 0, .. })));
    }

    let samples = stage.samples("gpu1");
    let durations = |epoch| -> Vec<u64> {
        let of = |sample: &Sample| match *sample {
            Sample::Iteration { place, duration_ns, .. } if place.epoch == Epoch(epoch) => Some(duration_ns),
            _ => None,
        };
        samples.iter().filter_map(of).collect()
    };
    assert_eq!(durations(1).len() + durations(2).len(), 30);
    let probes = samples.iter().filter(|s| matches!(s, Sample::Transfer { mark: Mark::Calibration, .. })).count();
    assert_eq!(probes, 4);
    let mut work: Vec<u64> = samples
        .iter()
        .filter_map(|sample| match *sample {
            Sample::Work { phase: Phase::Forward, mark: Mark::Warm, duration_ns, .. } => Some(duration_ns),
            _ => None,
        })
        .collect();
    work.sort_unstable();
    let median = work[work.len() / 2];
    assert!((350_000..600_000).contains(&median), "a forward takes 400 us of the host's clock, not {median} ns");
    assert!(samples.iter().any(|s| matches!(s, Sample::Switch { layers_moved: 1, bytes_received: 0, .. })));
    assert!(stage.samples("gpu0").iter().any(|s| matches!(s, Sample::Switch { bytes_received: 4000, .. })));
}

#[test]
fn ranks_with_keys_of_their_own_train_and_one_without_its_peers_key_says_so() {
    let keys = tempfile::tempdir().unwrap();
    let ring = Keyring::create(keys.path(), ["gpu0", "gpu1"]).unwrap();
    let own = |options: &mut Options| {
        options.security = Security::Curve(Keyring::load_as(keys.path(), &options.device).unwrap());
    };
    let mut stage = Theatre::open_with(&Security::Curve(ring), 5, |_| {}, own);
    stage.start(&plan(1, 2));
    assert_eq!(stage.finish().len(), 5);
    for rank in 0..2 {
        assert!(matches!(stage.end_of(rank), Ok(Ended::Finished { dropped: 0, .. })));
    }

    let ring = Keyring::load_as(keys.path(), "server").unwrap();
    let without_peer = |options: &mut Options| {
        own(options);
        if options.device == "gpu0" {
            std::fs::remove_file(keys.path().join("clients/gpu1.pub")).unwrap();
            own(options);
        }
    };
    // The ranks' options are made in order of device: gpu1 needs its own pair alone.
    let mut stage = Theatre::open_with(&Security::Curve(ring), 5, |_| {}, without_peer);
    stage.start(&plan(1, 2));
    let told = stage.expect("Failed", |name, event| match event {
        RankEvent::Failed { reason: Failure::Environment(text), .. } if name == "gpu0" => Some(text),
        _ => None,
    });
    assert!(told.contains("clients/gpu1.pub"), "{told}");
    match stage.end_of(0) {
        Err(ExecutorError::PeerKey { device, .. }) => assert_eq!(device, "gpu1"),
        other => panic!("{other:?}"),
    }
    stage.stop.store(true, Ordering::Relaxed);
}

#[test]
fn a_plan_without_room_is_refused_in_numbers_and_training_goes_on() {
    let mut stage = Theatre::open(20, |emulation| emulation.truth.devices[0].memory_bytes = 18_000, |_| {});
    stage.start(&plan(1, 2));
    stage.expect("Beat", |_, event| matches!(event, RankEvent::Beat { .. }).then_some(()));
    stage.prepare(&plan(2, 4));
    let reason = stage.expect("Refused", |name, event| match event {
        RankEvent::Refused { reason, epoch: Epoch(2), .. } => {
            assert_eq!(name, "gpu0");
            Some(reason)
        }
        _ => None,
    });
    // Reserved, four states, and four microbatches on each of four layers.
    let needed_bytes = 1000 + 4 * 4000 + 4 * 4 * 1000;
    assert_eq!(reason, adaptis_proto::message::Refusal::Memory { needed_bytes, available_bytes: 18_000 });
    stage.order_all(RankOrder::Abort { term: TERM, epoch: Epoch(2) });
    assert_eq!(stage.finish().len(), 5);
}

#[test]
fn a_rank_that_has_finished_stays_until_its_end_is_recorded() {
    let mut stage = Theatre::open(2, |_| {}, |options| options.dismissal = Duration::from_millis(50));
    stage.start(&plan(1, 2));
    let mut finished = BTreeMap::new();
    stage.expect("Finished", |name, event| {
        let count: &mut u32 = finished.entry(name.to_owned()).or_default();
        *count += u32::from(matches!(event, RankEvent::Finished { .. }));
        // Several times as long as it waits between two words of it.
        (finished.len() == 2 && finished.values().all(|count| *count >= 4)).then_some(())
    });
    stage.finish();
    for rank in 0..2 {
        assert!(matches!(stage.end_of(rank), Ok(Ended::Finished { .. })));
    }
    let mut stage = Theatre::open(2, |_| {}, |_| {});
    stage.start(&plan(1, 2));
    stage.expect("Finished", |_, event| matches!(event, RankEvent::Finished { .. }).then_some(()));
    stage.stop.store(true, Ordering::Relaxed);
    assert!(matches!(stage.end_of(0), Ok(Ended::Stopped)), "unless it is told to stop");
}

#[test]
fn a_rank_that_is_turned_away_says_so() {
    let mut stage = Theatre::open(2, |_| {}, |_| {});
    stage.expect("Hello", |name, _| (name == "gpu1").then_some(()));
    stage.order("gpu1", RankOrder::Rejected { term: TERM, reason: Rejection::JobsDiffer });
    assert!(matches!(stage.end_of(1), Err(ExecutorError::Rejected(Rejection::JobsDiffer))));
    assert!(!stage.folder.path().join("gpu1.ring").exists(), "a rank that is not let in puts no ring anywhere");
    stage.stop.store(true, Ordering::Relaxed);
    assert!(matches!(stage.end_of(0), Ok(Ended::Stopped)));
}

#[test]
fn a_rank_puts_its_ring_over_no_file_of_somebody_else() {
    let taken = |options: &mut Options| std::fs::write(&options.ring, "a problem of mine").unwrap();
    let mut stage = Theatre::open(2, |_| {}, taken);
    for rank in 0..2 {
        let end = stage.end_of(rank);
        assert!(matches!(end, Err(ExecutorError::Ring(RingError::Foreign { .. }))), "{end:?}");
        let text = std::fs::read_to_string(stage.folder.path().join(format!("gpu{rank}.ring"))).unwrap();
        assert_eq!(text, "a problem of mine");
    }
}

#[test]
fn a_rank_whose_ring_has_no_folder_does_not_join() {
    let nowhere = |options: &mut Options| options.ring = options.ring.with_file_name("missing").join("ring");
    let mut stage = Theatre::open(2, |_| {}, nowhere);
    for rank in 0..2 {
        let end = stage.end_of(rank);
        assert!(matches!(end, Err(ExecutorError::Ring(RingError::Folder { .. }))), "{end:?}");
    }
    assert!(stage.server.try_receive().unwrap().is_none(), "nobody heard of it");
}

#[test]
fn a_rank_that_is_asked_to_stop_ends_within_a_bounded_wait() {
    let mut stage = Theatre::open(0, |_| {}, |_| {});
    stage.start(&plan(1, 2));
    stage.expect("Beat", |_, event| matches!(event, RankEvent::Beat { .. }).then_some(()));
    stage.stop.store(true, Ordering::Relaxed);
    for rank in 0..2 {
        match stage.end_of(rank) {
            // Whoever sees the flag a moment later may hear of it from its peer first.
            Ok(Ended::Stopped) | Err(ExecutorError::Failed { failure: Failure::PeerFailed { .. }, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
