//! The training loop of one rank: iteration, vote, optimizer, switch.
//!
//! ```text
//!   | instructions .......... | ready | vote | boundary | optimizer | [moves, settled] | next iteration
//!   ^ start                                                         ^ boundary instant, common to all ranks
//! ```
//!
//! 1. All ranks enter an iteration at one instant, computed from the votes alone.
//! 2. Nothing is applied before the vote passed; a failed vote, a silent peer or a full device stops the rank, which
//!    tells its peers.
//! 3. A link or device that has become slow is waited for as long as its work may take (see `patience`).
//! 4. A switch moves state between the boundary and the next iteration; the time of it is the switch's, not an
//!    iteration's.

use crate::backend::emulated::Device;
use crate::clock::Clock;

use crate::emulation::Fault;
use crate::patience::Patience;
use crate::tape::Tape;
use crate::transport::{Peers, Wire};
use crate::{Emulation, Halt};
use adaptis_executor_core::{Apply, Migration, Rules, Stopped, run};
use adaptis_plan::Problem;
use adaptis_proto::message::Failure;
use adaptis_proto::sample::{Mark, Place, Sample};
use adaptis_proto::{DeviceIndex, Digest, LayerIndex, Step};
use adaptis_session::{COLD_ITERATIONS, Compiled, Conclusion, Station};
use std::sync::Arc;
use std::time::Duration;

/// Gradients are clipped to this global norm.
const MAX_NORM: f64 = 1.0;
/// The smaller one of the two sizes by which links are probed.
const PROBE_BYTES: u64 = 64 << 10;
/// Probes of each size.
const PROBES: usize = 2;

/// A rank that has been started.
pub struct Training<C, W> {
    station: Arc<Station>,
    device: Device<C>,
    peers: Peers<W>,
    tape: Tape,
    index: DeviceIndex,
    truth: Arc<Problem>,
    compiled: Arc<Compiled>,
    place: Place,
    /// First iteration under the plan in force.
    since: Step,
    iterations: u64,
    faults: Vec<Fault>,
    rules: Rules,
    patience: Patience,
}

/// What a rank leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Where training ended.
    pub place: Place,
    /// Digest of each layer here.
    pub layers: Vec<(LayerIndex, Digest)>,
}

/// What a training loop is made of.
pub struct Parts<C, W> {
    /// Where it meets the control thread.
    pub station: Arc<Station>,
    /// Its device, without layers.
    pub device: Device<C>,
    /// Its peers.
    pub peers: Peers<W>,
    /// Where samples go.
    pub tape: Tape,
    /// Its number.
    pub index: DeviceIndex,
    /// Costs in force.
    pub truth: Arc<Problem>,
    /// The plan to start on.
    pub compiled: Arc<Compiled>,
    /// Where it starts.
    pub place: Place,
    /// The least time that a peer is waited for; what it has to do comes on top.
    pub patience_floor: Duration,
}

impl<C: Clock, W: Wire> Training<C, W> {
    /// A loop at its start.
    pub fn new(emulation: &Emulation, parts: Parts<C, W>) -> Training<C, W> {
        let Parts { station, device, peers, tape, index, truth, compiled, place, patience_floor } = parts;
        let rules = Rules { layers: truth.layers.len(), max_norm: MAX_NORM, boundary_ns: truth.boundary_ns };
        let mut faults = emulation.faults.clone();
        faults.sort_by_key(Fault::iteration);
        let (since, iterations) = (place.step, emulation.job.iterations);
        let patience = Patience::new(Arc::clone(&truth), patience_floor);
        let mut training = Training {
            station,
            device,
            peers,
            tape,
            index,
            truth,
            compiled,
            place,
            since,
            iterations,
            faults,
            rules,
            patience,
        };
        training.device.load(&training.compiled.plan);
        training.peers.adopt(&training.compiled.plan);
        training
    }

    /// [`Training::train`] after a calibration, which all ranks make or none.
    ///
    /// # Errors
    /// As for `train`.
    pub fn calibrate_and_train(&mut self) -> Result<Outcome, Halt> {
        let outcome = self.calibrate().and_then(|()| self.iterate());
        self.part(outcome)
    }

    /// Measures layers and links before the first iteration.
    fn calibrate(&mut self) -> Result<(), Halt> {
        self.set_place(Mark::Calibration);
        self.device.calibrate(self.place);
        let largest = self.truth.layers.iter().map(|layer| layer.output_bytes).max().unwrap_or(PROBE_BYTES);
        let mut sizes = vec![PROBE_BYTES; PROBES];
        sizes.extend([largest; PROBES]);
        let probed_ns = self.peers.probe(self.device.free_at_ns(), &sizes)?;
        self.device.rest_until(probed_ns).map(drop)
    }

    /// Trains to the end of the run.
    ///
    /// # Errors
    /// Training failed here or at a peer, or the rank was asked to stop; its peers are told.
    pub fn train(&mut self) -> Result<Outcome, Halt> {
        let outcome = self.iterate();
        self.part(outcome)
    }

    fn part(&mut self, outcome: Result<Outcome, Halt>) -> Result<Outcome, Halt> {
        if let Err(halt) = &outcome {
            if let Halt::Failed(failure) = halt {
                self.station.failed(failure.clone());
            }
            self.peers.say_stopping();
        }
        outcome
    }

    /// Overruns of the device so far, and messages refused and malformed.
    pub fn counters(&self) -> (crate::backend::emulated::Late, (u64, u64)) {
        (self.device.late(), self.peers.refused())
    }

    fn iterate(&mut self) -> Result<Outcome, Halt> {
        self.set_place(Mark::Cold);
        let start_ns = self.peers.settle(self.place.step, self.device.free_at_ns())?;
        let mut begun_ns = self.device.rest_until(start_ns)?;
        while self.iterations == 0 || self.place.step.0 < self.iterations {
            // A rank without peers waits nowhere else.
            self.peers.check()?;
            let (apply, next) = self.iteration()?;
            let ended_ns = self.device.apply(self.place.step, apply.scale, apply.apply_at_ns, apply.start_ns)?;
            self.tape.record(Sample::Iteration {
                place: self.place,
                start_ns: begun_ns,
                duration_ns: ended_ns.saturating_sub(begun_ns),
                loss_bits: apply.loss.unwrap_or(f32::NAN).to_bits(),
            });
            self.place.step = self.place.step.next();
            begun_ns = match next {
                Some(next) => self.switch(next, apply.start_ns, ended_ns)?,
                None => ended_ns,
            };
        }
        let layers = self.device.digests();
        self.station.finished(layers.clone());
        Ok(Outcome { place: self.place, layers })
    }

    /// One iteration up to its vote.
    fn iteration(&mut self) -> Result<(Apply, Option<Arc<Compiled>>), Halt> {
        self.break_things();
        let mark = if self.place.step.0 < self.since.0 + COLD_ITERATIONS { Mark::Cold } else { Mark::Warm };
        self.set_place(mark);
        self.device.begin(self.place, mark, self.place.step == self.since);
        run(&self.compiled.row, self.compiled.plan.stages.len(), &mut self.device, &mut self.peers).map_err(
            |stopped| match stopped {
                Stopped::Backend { fault, .. } | Stopped::Transport { fault, .. } => fault,
                broken @ (Stopped::Missing { .. } | Stopped::LeftOver { .. }) => {
                    Failure::Environment(format!("the plan's program is broken: {broken:?}")).into()
                }
            },
        )?;
        let vote = self.station.cast(self.device.end().ballot);
        let votes = self.peers.gather(vote)?;
        match self.station.conclude(&votes, &self.rules) {
            Conclusion::Stay(apply) => Ok((apply, None)),
            Conclusion::Switch(apply, next) => Ok((apply, Some(next))),
            Conclusion::Stop(failure) => Err(failure.into()),
        }
    }

    /// Goes over to another plan at the boundary `boundary_ns`, which was reached at `ended_ns`; returns when the next
    /// iteration begins.
    fn switch(&mut self, next: Arc<Compiled>, boundary_ns: u64, ended_ns: u64) -> Result<u64, Halt> {
        let from = self.place.epoch;
        let migration = Migration::between(&self.compiled.plan, &next.plan);
        self.place.epoch = next.plan.epoch;
        self.since = self.place.step;
        self.compiled = next;
        self.go_by(Mark::Cold, self.patience.switch(&migration, &self.compiled.plan));
        for one in migration.leaving(self.index) {
            let (digest, state) = self.device.export(one.layer);
            self.peers.send_layer(one.to, one.layer, boundary_ns, digest, &state)?;
        }
        let (mut ready_ns, mut bytes_received) = (boundary_ns, 0);
        for one in migration.arriving(self.index) {
            let arrival = self.peers.take_layer(one.from, one.layer)?;
            self.device.import(one.layer, arrival.digest, &arrival.state)?;
            ready_ns = ready_ns.max(arrival.due_ns);
            bytes_received = arrival.bytes.saturating_add(bytes_received);
        }
        self.device.adopt(&self.compiled.plan);
        self.peers.adopt(&self.compiled.plan);
        self.device.rest_until(ready_ns)?;
        let start_ns = self.peers.settle(self.place.step, self.device.free_at_ns())?;
        self.station.settled();
        let begun_ns = self.device.rest_until(start_ns)?;
        self.tape.record(Sample::Switch {
            place: self.place,
            layers_moved: u32::try_from(migration.moves.len()).unwrap_or(u32::MAX),
            bytes_received,
            pause_ns: begun_ns.saturating_sub(ended_ns),
            from: from.0 as u32,
        });
        Ok(begun_ns)
    }

    /// What goes wrong from this iteration on.
    fn break_things(&mut self) {
        let due = self.faults.partition_point(|fault| fault.iteration() <= self.place.step.0);
        for fault in self.faults.drain(..due) {
            self.patience.suffer(&fault);
            match fault {
                Fault::Throttle { device, factor, .. } => {
                    if self.truth.device_index(&device) == Some(self.index.index()) {
                        self.device.throttle(factor);
                    }
                }
                Fault::SlowLink { between, factor, .. } => {
                    let ends = between.map(|name| self.truth.device_index(&name));
                    let me = Some(self.index.index());
                    let other = if ends[0] == me { ends[1] } else { ends[0].filter(|_| ends[1] == me) };
                    if let Some(other) = other {
                        self.peers.links_mut().slow(other.into(), factor);
                    }
                }
            }
        }
    }

    /// Device and peers go by the place and the plan in force.
    fn set_place(&mut self, mark: Mark) {
        self.go_by(mark, self.patience.iteration(&self.compiled.plan));
    }

    fn go_by(&mut self, mark: Mark, patience: Duration) {
        self.peers.set_place(self.place, mark, patience);
        self.device.set_patience(patience);
    }
}
