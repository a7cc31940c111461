//! The device itself: its layers, what they hold, and the instructions of the interpreter.

use super::bench::{Bench, Task};
use super::lengths::Lengths;
use super::memory::Memory;
use super::noise::Noise;
use super::pace::{Late, Pace};
use crate::Emulation;
use crate::Halt;
use crate::backend::cpu::{AdamW, Input, Layer, LayerType, Shape, Stash, Text};
use crate::clock::Clock;
use crate::tape::Tape;
use crate::transport::Tensor;
use adaptis_executor_core::{Backend, Ballot};
use adaptis_plan::{Action, Cost, FormatError, Instruction, Plan, Problem, Stage, crossings};
use adaptis_proto::message::Failure;
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{DeviceIndex, Digest, LayerIndex, Microbatch, StageIndex, Step};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A device and the part of the model that lives on it.
pub struct Device<C> {
    pub(super) index: DeviceIndex,
    pub(super) truth: Arc<Problem>,
    pub(super) types: Vec<LayerType>,
    pub(super) shape: Shape,
    pub(super) seed: u64,
    pub(super) text: Text,
    pub(super) bench: Bench<C>,
    optimizer: AdamW,
    layers: BTreeMap<usize, Layer>,
    /// Of the whole plan in force.
    stages: Vec<Stage>,
    memory: Memory,
    live: HashMap<(StageIndex, Microbatch), Vec<Held>>,
    losses: BTreeMap<Microbatch, f32>,
    /// Overruns that samples have told.
    late_before: Late,
}

/// What a layer holds for a microbatch.
enum Held {
    /// After F what I needs, after I what W needs.
    Stash(Stash),
    /// Only its input, to run F again (empty for the embedding, whose tokens can be drawn again).
    Input(Vec<f32>),
}

/// What the training loop learns at the end of an iteration's instructions.
#[derive(Clone, Debug, PartialEq)]
pub struct Iteration {
    /// What to vote.
    pub ballot: Ballot,
    /// Highest use of memory.
    pub peak_bytes: u64,
}

impl<C: Clock> Device<C> {
    /// Device number `index` of an emulation, without layers yet; `stop` ends its waits.
    ///
    /// # Errors
    /// Layer types that are none.
    pub fn new(
        emulation: &Emulation,
        truth: Arc<Problem>,
        index: DeviceIndex,
        text: Text,
        clock: C,
        tape: Tape,
        stop: Arc<AtomicBool>,
    ) -> Result<Device<C>, FormatError> {
        let at = index.index();
        let pace = Pace::new(clock, truth.devices[at].slowdown, stop);
        let noise = Noise::new(emulation.seed, at, emulation.noise);
        let types = emulation.types()?;
        let mut bench = Bench::new(pace, noise, tape);
        bench.lengths = Lengths::new(emulation.seed, emulation.lengths, emulation.shape().sequence, types.clone());
        Ok(Device {
            index,
            types,
            shape: emulation.shape(),
            seed: emulation.seed,
            text,
            bench,
            optimizer: AdamW::default(),
            layers: BTreeMap::new(),
            stages: Vec::new(),
            memory: Memory::new(&truth, index, &[]),
            live: HashMap::new(),
            losses: BTreeMap::new(),
            late_before: Late::default(),
            truth,
        })
    }

    /// Makes the layers that a plan gives this device, fresh.
    pub fn load(&mut self, plan: &Plan) {
        let layers = plan.stages.iter().filter(|stage| stage.device == self.index.0).flat_map(Stage::range);
        self.layers = layers.map(|layer| (layer, self.fresh(layer))).collect();
        self.adopt(plan);
    }

    /// Follows a plan whose layers are all here.
    pub fn adopt(&mut self, plan: &Plan) {
        self.stages.clone_from(&plan.stages);
        self.memory = Memory::new(&self.truth, self.index, &plan.stages);
    }

    /// The slowdown of this device is the truth's times `factor` from now on.
    pub fn throttle(&mut self, factor: f64) {
        self.bench.pace.set_slowdown(self.truth.devices[self.index.index()].slowdown * factor);
    }

    /// How long a peer is waited for from now on: no instant that one names may be further ahead.
    pub fn set_patience(&mut self, patience: Duration) {
        self.bench.pace.set_patience(patience);
    }

    /// An iteration begins. `fresh_plan`: it is the first one under its plan.
    pub fn begin(&mut self, place: Place, mark: Mark, fresh_plan: bool) {
        self.bench.place = place;
        self.bench.mark = mark;
        self.bench.tape().set_step(place.step);
        // Whoever reads the text knows how long it is.
        if self.layers.contains_key(&0) {
            let loads = self.bench.lengths.loads(place, self.truth.microbatches);
            loads.for_each(|load| self.bench.tape().record(load));
        }
        if fresh_plan {
            for &layer in self.layers.keys() {
                let cost = self.cost(layer);
                self.bench.tape().record(Sample::LayerMemory {
                    place,
                    layer: layer.into(),
                    activation_bytes: cost.activation_bytes,
                    weight_gradient_bytes: cost.weight_gradient_bytes,
                    workspace_bytes: cost.workspace_bytes,
                });
            }
        }
        self.layers.values_mut().for_each(Layer::clear_gradients);
    }

    /// All instructions of the iteration are done.
    pub fn end(&mut self) -> Iteration {
        let count = self.losses.len();
        // In microbatch order, whatever the schedule.
        let sum = self.losses.values().fold(0.0_f32, |sum, loss| sum + loss);
        self.losses.clear();
        let costs: f64 = self.layers.keys().map(|&layer| self.bench.cost_ns(self.optimizer_task(layer))).sum();
        let peak_bytes = self.memory.take_peak();
        // From vote to vote: the optimizer and what comes before the first iteration are in it.
        let late = self.bench.late();
        let late_ns = late.ns - self.late_before.ns;
        self.late_before = late;
        self.bench.tape().record(Sample::DeviceMemory {
            place: self.bench.place,
            peak_bytes,
            reserved_bytes: self.truth.devices[self.index.index()].reserved_bytes,
            late_ns,
        });
        let ballot = Ballot {
            squares: self.layers.iter().map(|(&at, layer)| (at.into(), layer.gradient_square_sum())).collect(),
            loss: (count > 0).then(|| sum / count as f32),
            ready_ns: self.bench.pace.free_at_ns(),
            apply_ns: self.bench.pace.slowed(costs),
        };
        Iteration { ballot, peak_bytes }
    }

    /// The optimizer's step number `step`, from the instant `apply_at_ns` on; the device is free at `start_ns`, and
    /// this returns the host's time then.
    ///
    /// # Errors
    /// The instants are further ahead than a peer is waited for, before anything is applied; or the stop flag.
    pub fn apply(&mut self, step: Step, scale: f64, apply_at_ns: u64, start_ns: u64) -> Result<u64, Halt> {
        self.bench.pace.check_instant(apply_at_ns.max(start_ns))?;
        self.bench.pace.begin(apply_at_ns);
        let layers: Vec<usize> = self.layers.keys().copied().collect();
        for at in layers {
            let task = self.optimizer_task(at);
            let layer = self.layers.get_mut(&at).expect("its key was just read");
            let optimizer = &self.optimizer;
            self.bench.work(task, || layer.apply(optimizer, step.0, scale as f32));
        }
        self.bench.pace.end(0);
        self.bench.close();
        self.rest_until(start_ns)
    }

    /// The device is idle until an instant; waits, and returns the host's time then.
    ///
    /// # Errors
    /// The instant is further ahead than a peer is waited for; or the stop flag.
    pub fn rest_until(&mut self, instant_ns: u64) -> Result<u64, Halt> {
        self.bench.pace.check_instant(instant_ns)?;
        self.bench.pace.rest_until(instant_ns);
        let now_ns = self.bench.pace.wait_free();
        self.bench.pace.check()?;
        Ok(now_ns)
    }

    /// When the device is free.
    pub fn free_at_ns(&self) -> u64 {
        self.bench.pace.free_at_ns()
    }

    /// By how much the host was too slow so far.
    pub fn late(&self) -> Late {
        self.bench.late()
    }

    /// Takes a layer off the device: its state and the digest of it.
    ///
    /// # Panics
    /// If it is not here.
    pub fn export(&mut self, layer: LayerIndex) -> (Digest, Vec<u8>) {
        let layer = self.layers.remove(&layer.index()).expect("a layer that leaves a device lives there");
        (layer.digest(), layer.export_state())
    }

    /// Puts a layer on the device.
    ///
    /// # Errors
    /// [`Failure::DigestUnequal`] if the state is not what its sender had.
    pub fn import(&mut self, at: LayerIndex, digest: Digest, state: &[u8]) -> Result<(), Failure> {
        let mut layer = self.fresh(at.index());
        if layer.import_state(state).is_err() || layer.digest() != digest {
            return Err(Failure::DigestUnequal { layer: at });
        }
        self.layers.insert(at.index(), layer);
        Ok(())
    }

    /// Digest of each layer here, in layer order.
    pub fn digests(&self) -> Vec<(LayerIndex, Digest)> {
        self.layers.iter().map(|(&at, layer)| (at.into(), layer.digest())).collect()
    }

    pub(super) fn fresh(&self, layer: usize) -> Layer {
        Layer::new(self.types[layer], &self.shape, self.seed, layer).with_microbatches(self.truth.microbatches)
    }

    pub(super) fn cost(&self, layer: usize) -> Cost {
        self.truth.costs_of(self.index.index())[layer].clone()
    }

    fn optimizer_task(&self, layer: usize) -> Task {
        let cost_ns = self.truth.optimizer_of(self.index.index(), layer);
        Task { layer, microbatch: Microbatch(0), phase: Phase::Optimizer, cost_ns }
    }

    fn batch(&self, microbatch: Microbatch) -> (Vec<u8>, Vec<u8>) {
        self.text.batch(self.seed, self.bench.place.step.0, microbatch.0, self.shape.sequence)
    }

    fn reserve(&mut self, stage: StageIndex, action: Action, microbatch: Microbatch) -> Result<(), Halt> {
        let out = match self.memory.begin(Instruction { stage, action, microbatch }) {
            Ok(_) => return Ok(()),
            Err(out) => out,
        };
        Err(Halt::Failed(Failure::OutOfMemory {
            device: self.truth.devices[self.index.index()].name.clone(),
            needed_bytes: out.needed_bytes,
            limit_bytes: out.limit_bytes,
        }))
    }

    /// F of one layer on its input, as a phase of its own or as a part of I.
    fn run_layer(
        &mut self,
        at: usize,
        microbatch: Microbatch,
        phase: Phase,
        input: &[f32],
    ) -> (Vec<f32>, Stash, Option<f32>) {
        let task = Task { layer: at, microbatch, phase, cost_ns: self.cost(at).forward_ns };
        let (tokens, targets) = match self.types[at] {
            LayerType::Embedding | LayerType::Head => self.batch(microbatch),
            _ => Default::default(),
        };
        let layer = &self.layers[&at];
        self.bench.work(task, || {
            layer.forward(&match layer.layer_type() {
                LayerType::Embedding => Input::Tokens(&tokens),
                LayerType::Head => Input::ActivationWithTargets(input, &targets),
                _ => Input::Activation(input),
            })
        })
    }

    /// I or B: walks the layers of a stage from last to first.
    fn walk_back(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        output_gradient: Option<Tensor>,
        action: Action,
    ) -> Result<Option<Tensor>, Halt> {
        self.reserve(stage, action, microbatch)?;
        let (mut gradient, due_ns) = output_gradient.map_or_else(Default::default, |t| (t.values, t.ready_ns));
        self.bench.pace.check_instant(due_ns)?;
        self.bench.pace.begin(due_ns);
        let fused = action == Action::Backward;
        let range = self.stages[stage.index()].range();
        let held = self.live.remove(&(stage, microbatch)).expect("the audit has put F before I");
        let mut kept = Vec::with_capacity(held.len());
        for (at, held) in range.clone().zip(held).rev() {
            let mut stash = match held {
                Held::Stash(stash) => stash,
                Held::Input(input) => self.run_layer(at, microbatch, Phase::Recompute, &input).1,
            };
            let cost = self.cost(at);
            let cost_ns = cost.input_gradient_ns + if fused { 0 } else { cost.split_ns };
            let task = Task { layer: at, microbatch, phase: Phase::InputGradient, cost_ns };
            let layer = &self.layers[&at];
            gradient = self.bench.work(task, || layer.input_gradient(&mut stash, &gradient));
            if fused {
                self.weigh(at, microbatch, stash);
            } else {
                kept.push(Held::Stash(stash));
            }
        }
        if !fused {
            kept.reverse();
            self.live.insert((stage, microbatch), kept);
        }
        let ready_ns = self.bench.pace.end(self.crossing_ns(stage));
        Ok((range.start > 0).then_some(Tensor { values: gradient, ready_ns }))
    }

    /// What an F, I or B takes besides its layers.
    fn crossing_ns(&self, stage: StageIndex) -> u64 {
        self.truth.stage_ns + self.truth.crossing_ns * crossings(&self.stages, stage.index())
    }

    /// W of one layer.
    fn weigh(&mut self, at: usize, microbatch: Microbatch, stash: Stash) {
        let cost_ns = self.cost(at).weight_gradient_ns;
        let task = Task { layer: at, microbatch, phase: Phase::WeightGradient, cost_ns };
        let layer = self.layers.get_mut(&at).expect("the layers of its stages are on the device");
        self.bench.work(task, || layer.weight_gradient(stash));
    }
}

impl<C: Clock> Backend for Device<C> {
    type Tensor = Tensor;
    type Fault = Halt;

    fn forward(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        input: Option<Tensor>,
    ) -> Result<Option<Tensor>, Halt> {
        self.reserve(stage, Action::Forward, microbatch)?;
        let (mut values, due_ns) = input.map_or_else(Default::default, |tensor| (tensor.values, tensor.ready_ns));
        self.bench.pace.check_instant(due_ns)?;
        self.bench.pace.begin(due_ns);
        let range = self.stages[stage.index()].range();
        let mut held = Vec::with_capacity(range.len());
        for at in range.clone() {
            let (output, stash, loss) = self.run_layer(at, microbatch, Phase::Forward, &values);
            let dropped = self.stages[stage.index()].recompute.contains(&(at as u32));
            let input = std::mem::replace(&mut values, output);
            held.push(if dropped { Held::Input(input) } else { Held::Stash(stash) });
            if let Some(loss) = loss {
                self.losses.insert(microbatch, loss);
            }
        }
        self.live.insert((stage, microbatch), held);
        let ready_ns = self.bench.pace.end(self.crossing_ns(stage));
        Ok((range.end < self.types.len()).then_some(Tensor { values, ready_ns }))
    }

    fn input_gradient(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        output_gradient: Option<Tensor>,
    ) -> Result<Option<Tensor>, Halt> {
        self.walk_back(stage, microbatch, output_gradient, Action::InputGradient)
    }

    fn weight_gradient(&mut self, stage: StageIndex, microbatch: Microbatch) -> Result<(), Halt> {
        self.reserve(stage, Action::WeightGradient, microbatch)?;
        self.bench.pace.begin(0);
        let range = self.stages[stage.index()].range();
        let held = self.live.remove(&(stage, microbatch)).expect("the audit has put I before W");
        for (at, held) in range.zip(held).rev() {
            let Held::Stash(stash) = held else { unreachable!("I leaves a stash of every layer") };
            self.weigh(at, microbatch, stash);
        }
        self.bench.pace.end(self.truth.stage_ns);
        Ok(())
    }

    fn backward(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        output_gradient: Option<Tensor>,
    ) -> Result<Option<Tensor>, Halt> {
        self.walk_back(stage, microbatch, output_gradient, Action::Backward)
    }

    fn complete(&mut self) -> Result<(), Halt> {
        self.bench.close();
        self.bench.pace.check()
    }
}
