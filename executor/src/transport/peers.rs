//! What a rank says to its peers, over a mailbox and the emulated links.
//!
//! 1. A tensor leaves as soon as it exists and carries the times of its transfer; the receiver holds it until due, so
//!    that the machine's own speed does not show.
//! 2. The receiver records the transfer, as it stood on the link.

use super::{Key, Letter, Mailbox, Wire};
use crate::Halt;
use crate::backend::emulated::links::Links;
use crate::tape::Tape;
use adaptis_executor_core::Transport;
use adaptis_plan::{Plan, Problem};
use adaptis_proto::message::{Failure, PeerBody, TensorKind, TensorTag, Vote};
use adaptis_proto::sample::{Mark, Place, Sample};
use adaptis_proto::{DeviceIndex, Digest, LayerIndex, Microbatch, Step};
use std::sync::Arc;
use std::time::Duration;

/// What stages exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// `sequence x width`, row-major.
    pub values: Vec<f32>,
    /// Where it was produced: when it exists on the device's clock. Where it is consumed: when it is there.
    pub ready_ns: u64,
}

/// The state of a layer that came from another device.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// What its sender computed.
    pub digest: Digest,
    /// When it is there.
    pub due_ns: u64,
    /// Bytes that the link carried for it.
    pub bytes: u64,
    /// As exported.
    pub state: Vec<u8>,
}

/// One rank's side of all its conversations.
pub struct Peers<W> {
    mailbox: Mailbox<W>,
    links: Links,
    tape: Tape,
    truth: Arc<Problem>,
    me: DeviceIndex,
    /// Layers of each stage of the plan in force.
    stages: Vec<std::ops::Range<usize>>,
    mark: Mark,
}

impl<W: Wire> Peers<W> {
    /// All other devices of the truth, as seen from device `me`.
    pub fn new(mailbox: Mailbox<W>, links: Links, tape: Tape, truth: Arc<Problem>, me: DeviceIndex) -> Self {
        Peers { mailbox, links, tape, truth, me, stages: Vec::new(), mark: Mark::Cold }
    }

    /// The plan whose tensors are exchanged from now on.
    pub fn adopt(&mut self, plan: &Plan) {
        self.stages = plan.stages.iter().map(adaptis_plan::Stage::range).collect();
    }

    /// Where training stands from now on, and how its samples are marked.
    pub fn set_place(&mut self, place: Place, mark: Mark, patience: Duration) {
        self.mailbox.set_place(place, patience);
        self.mark = mark;
    }

    /// The links that leave this device.
    pub fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }

    /// Messages refused as stale, and messages that could not be read.
    pub fn refused(&self) -> (u64, u64) {
        (self.mailbox.refused(), self.mailbox.malformed())
    }

    /// Whether training may go on.
    ///
    /// # Errors
    /// A peer stops, or the rank is to stop.
    pub fn check(&self) -> Result<(), Halt> {
        self.mailbox.check()
    }

    /// Tells every peer that this rank stops.
    pub fn say_stopping(&mut self) {
        for to in self.others() {
            self.mailbox.say_stopping(to);
        }
    }

    /// The votes of all ranks, in order of device index.
    ///
    /// # Errors
    /// A peer is silent or stops, or the rank is to stop.
    pub fn gather(&mut self, vote: Vote) -> Result<Vec<Vote>, Halt> {
        for to in self.others() {
            self.mailbox.send(to, PeerBody::Vote(vote.clone()), &[])?;
        }
        self.all()
            .map(|from| match from == self.me {
                true => Ok(vote.clone()),
                false => match self.mailbox.take(from, Key::Vote)?.body {
                    PeerBody::Vote(vote) => Ok(vote),
                    other => Err(unexpected(from, &other)),
                },
            })
            .collect()
    }

    /// Waits until all ranks have come here; returns the latest `ready_ns` of all.
    ///
    /// # Errors
    /// A peer is silent or stops, or the rank is to stop.
    pub fn settle(&mut self, step: Step, ready_ns: u64) -> Result<u64, Halt> {
        for to in self.others() {
            self.mailbox.send(to, PeerBody::Settled { step, ready_ns }, &[])?;
        }
        let epoch = self.mailbox.place().epoch;
        let mut latest_ns = ready_ns;
        for from in self.others() {
            match self.mailbox.take(from, Key::Settled(epoch, step))?.body {
                PeerBody::Settled { ready_ns, .. } => latest_ns = latest_ns.max(ready_ns),
                other => return Err(unexpected(from, &other)),
            }
        }
        Ok(latest_ns)
    }

    /// Sends a layer that moves, from the instant `from_ns` on.
    ///
    /// # Errors
    /// The peer is silent or stops, or the rank is to stop.
    pub fn send_layer(
        &mut self,
        to: DeviceIndex,
        layer: LayerIndex,
        from_ns: u64,
        digest: Digest,
        state: &[u8],
    ) -> Result<(), Halt> {
        let bytes = self.truth.layers[layer.index()].moved();
        let due_ns = self.links.carry(to, from_ns, bytes).due_ns;
        self.mailbox.send(to, PeerBody::LayerState { layer, digest, due_ns, bytes }, state)
    }

    /// Waits for a layer that moves here. It may be used from its `due_ns` on.
    ///
    /// # Errors
    /// The peer is silent or stops, or the rank is to stop.
    pub fn take_layer(&mut self, from: DeviceIndex, layer: LayerIndex) -> Result<Arrival, Halt> {
        let epoch = self.mailbox.place().epoch;
        match self.mailbox.take(from, Key::Layer(epoch, layer))? {
            Letter { body: PeerBody::LayerState { digest, due_ns, bytes, .. }, payload } => {
                Ok(Arrival { digest, due_ns, bytes, state: payload })
            }
            Letter { body, .. } => Err(unexpected(from, &body)),
        }
    }

    /// Sends `sizes` bytes to every peer, one transfer after the other, and takes as many from each; records what came.
    /// Returns when the last of it was there.
    ///
    /// # Errors
    /// A peer is silent or stops, or the rank is to stop.
    pub fn probe(&mut self, from_ns: u64, sizes: &[u64]) -> Result<u64, Halt> {
        for &bytes in sizes {
            for to in self.others() {
                let passage = self.links.carry(to, from_ns, bytes);
                let body = PeerBody::Probe { start_ns: passage.start_ns, due_ns: passage.due_ns, bytes };
                self.mailbox.send(to, body, &[])?;
            }
        }
        let mut last_ns = from_ns;
        for from in self.others() {
            for number in 0..sizes.len() {
                match self.mailbox.take(from, Key::Probe)?.body {
                    PeerBody::Probe { start_ns, due_ns, bytes } => {
                        last_ns = last_ns.max(due_ns);
                        self.record(from, number.into(), Mark::Calibration, bytes, start_ns, due_ns);
                    }
                    other => return Err(unexpected(from, &other)),
                }
            }
        }
        Ok(last_ns)
    }

    fn record(&self, from: DeviceIndex, microbatch: Microbatch, mark: Mark, bytes: u64, start_ns: u64, due_ns: u64) {
        let (place, duration_ns) = (self.mailbox.place(), due_ns.saturating_sub(start_ns));
        self.tape.record(Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns });
    }

    /// What the link carries: the output of the layer before the consumer of an activation, or of the last layer of the
    /// consumer of a gradient.
    fn bytes_of(&self, tag: TensorTag) -> u64 {
        let consumer = &self.stages[tag.stage.index()];
        let layer = match tag.kind {
            TensorKind::Activation => consumer.start - 1,
            TensorKind::Gradient => consumer.end - 1,
        };
        self.truth.layers[layer].output_bytes
    }

    fn all(&self) -> impl Iterator<Item = DeviceIndex> + use<W> {
        (0..self.truth.devices.len()).map(DeviceIndex::from)
    }

    fn others(&self) -> impl Iterator<Item = DeviceIndex> + use<W> {
        let me = self.me;
        self.all().filter(move |&device| device != me)
    }
}

impl<W: Wire> Transport for Peers<W> {
    type Tensor = Tensor;
    type Fault = Halt;

    fn post(&mut self, _from: DeviceIndex, _tag: TensorTag) -> Result<(), Halt> {
        Ok(())
    }

    fn take(&mut self, from: DeviceIndex, tag: TensorTag) -> Result<Tensor, Halt> {
        let step = self.mailbox.place().step;
        match self.mailbox.take(from, Key::Tensor(step, tag))? {
            Letter { body: PeerBody::Tensor { start_ns, due_ns, bytes, .. }, payload } => {
                self.record(from, tag.microbatch, self.mark, bytes, start_ns, due_ns);
                Ok(Tensor { values: floats(&payload), ready_ns: due_ns })
            }
            Letter { body, .. } => Err(unexpected(from, &body)),
        }
    }

    fn send(&mut self, to: DeviceIndex, tag: TensorTag, tensor: Tensor) -> Result<(), Halt> {
        let bytes = self.bytes_of(tag);
        let passage = self.links.carry(to, tensor.ready_ns, bytes);
        let step = self.mailbox.place().step;
        let body = PeerBody::Tensor { step, tag, start_ns: passage.start_ns, due_ns: passage.due_ns, bytes };
        self.mailbox.send(to, body, &bytes_of_floats(&tensor.values))
    }
}

fn bytes_of_floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

fn unexpected(from: DeviceIndex, body: &PeerBody) -> Halt {
    // Keys follow from bodies, so this can't be reached over a mailbox; it is an operating fault all the same.
    Failure::Environment(format!("device {from} sent {body:?} in place of what was waited for")).into()
}
