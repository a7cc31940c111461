//! Ranks as threads, and a script in place of a coordinator: each rank gives itself the orders at the same iteration, so
//! that a switch happens where the test says.

use adaptis_executor::backend::cpu::Text;
use adaptis_executor::backend::emulated::{Device, links::Links};
use adaptis_executor::clock::{Clock, Unpaced};
use adaptis_executor::emulation::{FORMAT, Run as RunHead, Sizes};
use adaptis_executor::tape::{Record, Tape};
use adaptis_executor::training::{Outcome, Parts, Training};
use adaptis_executor::transport::{Mailbox, Peers, memory};
use adaptis_executor::{Emulation, Halt, worker::EmulatedRoom};
use adaptis_plan::{Cost, Device as DeviceOf, Layer, Links as LinksOf, Plan, Problem, ReceiveBuffers};
use adaptis_proto::message::{Member, RankOrder, Refusal};
use adaptis_proto::sample::Sample;
use adaptis_proto::{DeviceIndex, Digest, Generation, Incarnation, LayerIndex, RunId, Step, Term};
use adaptis_session::{Compiler, Room};
use adaptis_session::{Errand, Station};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const GENERATION: Generation = Generation(1);
const TERM: Term = Term(1);
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    emulation: Emulation,
    start: Plan,
    script: Vec<(Step, RankOrder)>,
    room_check: bool,
    calibrated: bool,
    /// A device, and what its clock shows at the start.
    ahead: Option<(usize, u64)>,
}

pub struct Rank {
    pub outcome: Result<Outcome, Halt>,
    pub samples: Vec<Sample>,
}

pub struct Run {
    pub ranks: Vec<Rank>,
}

impl Cluster {
    pub fn new(emulation: &Emulation, start: Plan) -> Cluster {
        let (script, room_check, calibrated, ahead) = (Vec::new(), true, false, None);
        Cluster { emulation: emulation.clone(), start, script, room_check, calibrated, ahead }
    }

    /// After iteration `step`, every rank is told to prepare `plan`: it is in force two iterations later.
    pub fn then(mut self, step: u64, plan: &Plan) -> Cluster {
        let text = plan.write();
        let order = RankOrder::Prepare {
            term: TERM,
            generation: GENERATION,
            parent: plan.parent,
            epoch: plan.epoch,
            digest: Plan::digest(&text),
            plan: text,
        };
        self.script.push((Step(step), order));
        self
    }

    pub fn without_room_check(mut self) -> Cluster {
        self.room_check = false;
        self
    }

    pub fn calibrated(mut self) -> Cluster {
        self.calibrated = true;
        self
    }

    pub fn clock_ahead(mut self, device: usize, by_ns: u64) -> Cluster {
        self.ahead = Some((device, by_ns));
        self
    }

    pub fn run(&self) -> Run {
        let count = self.emulation.truth.devices.len();
        let wires = memory::mesh(count);
        let ranks = std::thread::scope(|scope| {
            let threads: Vec<_> = wires
                .into_iter()
                .enumerate()
                .map(|(index, wire)| scope.spawn(move || self.rank(index.into(), wire)))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
        });
        Run { ranks }
    }

    fn rank(&self, index: DeviceIndex, wire: memory::MemoryWire) -> Rank {
        let truth = Arc::new(self.emulation.truth.clone());
        let room: Box<dyn Room> = match self.room_check {
            true => Box::new(EmulatedRoom { truth: Arc::clone(&truth), device: index }),
            false => Box::new(Boundless),
        };
        let name = &truth.devices[index.index()].name;
        let compiler = Compiler::new(&self.emulation.job(), index, room);
        let (station, _events) = Station::new(name, Incarnation(index.0.into()), compiler);
        let mut errands = station.order(self.start_order(&truth));
        let Some(Errand::Begin(begin, compiled)) = errands.pop() else { panic!("START is accepted: {errands:?}") };
        assert_eq!(begin.device, index);

        let script = Rc::new(RefCell::new(Script {
            station: Arc::clone(&station),
            orders: self.script.clone(),
            samples: Vec::new(),
        }));
        let tape = Tape::new(script.clone());
        let place = station.place().expect("it has begun");
        let stop = Arc::new(AtomicBool::new(false));
        let mailbox = Mailbox::new(wire, index, place, PATIENCE, Arc::clone(&stop));
        let peers = Peers::new(mailbox, Links::new(&truth, index), tape.clone(), Arc::clone(&truth), index);
        let clock = Unpaced::default();
        if let Some((_, by_ns)) = self.ahead.filter(|(device, _)| *device == index.index()) {
            clock.wait_until(by_ns);
        }
        let device = Device::new(&self.emulation, Arc::clone(&truth), index, text(), clock, tape.clone(), stop);
        let device = device.expect("the emulation is well formed");
        let patience_floor = PATIENCE;
        let parts = Parts { station, device, peers, tape, index, truth, compiled, place, patience_floor };
        let mut training = Training::new(&self.emulation, parts);
        let outcome = if self.calibrated { training.calibrate_and_train() } else { training.train() };
        let samples = std::mem::take(&mut script.borrow_mut().samples);
        Rank { outcome, samples }
    }

    fn start_order(&self, truth: &Problem) -> RankOrder {
        let plan = self.start.write();
        let member = |(index, device): (usize, &DeviceOf)| Member {
            device: device.name.clone(),
            kind: device.kind.clone(),
            incarnation: Incarnation(index as u64),
            endpoint: String::new(),
        };
        RankOrder::Start {
            term: TERM,
            generation: GENERATION,
            epoch: self.start.epoch,
            digest: Plan::digest(&plan),
            plan,
            members: truth.devices.iter().enumerate().map(member).collect(),
        }
    }
}

struct Boundless;

impl Room for Boundless {
    fn grant(&self, _: Option<&Plan>, _: &Plan) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Keeps samples, and gives the rank its orders when an iteration is recorded.
struct Script {
    station: Arc<Station>,
    orders: Vec<(Step, RankOrder)>,
    samples: Vec<Sample>,
}

impl Record for Script {
    fn record(&mut self, sample: Sample) {
        self.samples.push(sample);
        if let Sample::Iteration { place, .. } = sample {
            for (_, order) in self.orders.iter().filter(|(step, _)| *step == place.step) {
                let errands = self.station.order(order.clone());
                assert!(
                    matches!(&errands[..], [Errand::Tell(adaptis_proto::message::RankEvent::Prepared { .. })]),
                    "{errands:?}"
                );
            }
        }
    }

    fn set_step(&mut self, _: Step) {}
}

impl Run {
    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.ranks.iter().map(|rank| rank.outcome.as_ref().expect("the rank finished"))
    }

    pub fn losses(&self) -> Vec<f32> {
        let all: Vec<Vec<f32>> = self
            .ranks
            .iter()
            .map(|rank| {
                let of = |sample: &Sample| match *sample {
                    Sample::Iteration { loss_bits, .. } => Some(f32::from_bits(loss_bits)),
                    _ => None,
                };
                rank.samples.iter().filter_map(of).collect()
            })
            .collect();
        assert!(all.iter().all(|losses| *losses == all[0]), "all ranks learn the same loss");
        all[0].clone()
    }

    pub fn loss_bits(&self) -> Vec<u32> {
        self.losses().into_iter().map(f32::to_bits).collect()
    }

    pub fn digests(&self) -> BTreeMap<LayerIndex, Digest> {
        let all: Vec<_> = self.outcomes().flat_map(|outcome| outcome.layers.iter().copied()).collect();
        let by_layer: BTreeMap<_, _> = all.iter().copied().collect();
        assert_eq!(all.len(), by_layer.len(), "each layer is on one rank");
        by_layer
    }

    pub fn durations(&self, rank: usize) -> Vec<u64> {
        let of = |sample: &Sample| match *sample {
            Sample::Iteration { duration_ns, .. } => Some(duration_ns),
            _ => None,
        };
        self.ranks[rank].samples.iter().filter_map(of).collect()
    }
}

pub fn text() -> Text {
    let words = ["the ", "pipeline ", "of ", "layers ", "moves ", "and ", "learns "];
    let bytes: Vec<u8> = (0..2000_usize).flat_map(|i| words[(i * i + i / 3) % words.len()].bytes()).collect();
    Text::from_bytes(bytes).expect("long enough")
}

/// A model of six layers of every type on unequal devices, with every optional cost in use.
pub fn emulation(devices: usize, microbatches: u32, iterations: u64) -> Emulation {
    let types = ["embedding", "attention", "mlp", "moe", "ssm", "head"];
    let cost = |at: usize, kind: u64| Cost {
        forward_ns: 1001 + 137 * at as u64 * kind,
        input_gradient_ns: 900 + 211 * at as u64 + 77 * kind,
        weight_gradient_ns: 800 + 53 * at as u64 * kind,
        activation_bytes: 4000 + 100 * at as u64,
        weight_gradient_bytes: 1500 + 10 * at as u64,
        workspace_bytes: 70 * at as u64,
        split_ns: 33,
        note: None,
    };
    let truth = Problem {
        optimizer_ns: [("fast", 200), ("slow", 333)].map(|(kind, ns)| (kind.to_owned(), vec![ns; 6])).into(),
        receive_buffers: ReceiveBuffers::All,
        boundary_ns: 555,
        stage_ns: 19,
        crossing_ns: 7,
        ..Problem::new(
            microbatches,
            types
                .iter()
                .enumerate()
                .map(|(at, name)| Layer {
                    name: format!("{at}.{name}"),
                    signature: format!("{name}/test"),
                    parameter_bytes: 1000,
                    state_bytes: 16_000 + at as u64,
                    output_bytes: 2048 + 256 * at as u64,
                    moved_bytes: (at % 2 == 0).then_some(12_000),
                    note: None,
                })
                .collect(),
            (0..devices)
                .map(|at| DeviceOf {
                    name: format!("gpu{at}"),
                    kind: ["fast", "slow"][at % 2].into(),
                    memory_bytes: 10_000_000,
                    slowdown: 1.0 + 0.17 * at as f64,
                    reserved_bytes: 5000,
                    note: None,
                })
                .collect(),
            [("fast", 1), ("slow", 3)]
                .map(|(kind, factor)| (kind.to_owned(), (0..6).map(|at| cost(at, factor)).collect()))
                .into(),
            LinksOf::all(311, 0.6e9),
        )
    };
    Emulation {
        format: FORMAT.into(),
        note: None,
        job: RunHead { run: RunId("test".into()), iterations },
        truth,
        layer_types: types.map(String::from).to_vec(),
        shape: Sizes { width: 8, heads: 2, hidden: 12, experts: 2, state: 4, sequence: 16, vocabulary: 256 },
        seed: 1,
        text: "unused".into(),
        noise: 0.0,
        lengths: 0.0,
        faults: Vec::new(),
        start_plan: None,
    }
}
