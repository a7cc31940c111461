//! The one interpreter: runs a device's row over any backend and any transport.
//!
//! ```text
//!   Receive(tag) -> transport.post            the tensor is waited for where it is consumed
//!   Run(3F0)     -> input: handed over in memory, or transport.take, or none
//!                   backend.forward           output is held under the tag of its consumer
//!   Send(tag)    -> transport.send            of what is held
//! ```
//!
//! 1. A tensor between two stages of one device never touches the transport.
//! 2. Instructions run in the row's order, one at a time; nothing is decided here.
//! 3. A completed row leaves nothing behind: no tensor unconsumed, no posted receive untaken.
//! 4. What an instruction produced is sent before the backend is asked to complete it, so that a backend that paces or
//!    synchronises does not hold up its peers.
//!
//! Left out on purpose: time, threads, the boundary between two iterations.

use adaptis_plan::{Action, Instruction, Row, Work};
use adaptis_proto::message::{TensorKind, TensorTag};
use adaptis_proto::{DeviceIndex, Microbatch, StageIndex};
use std::collections::HashMap;

/// One device's compute. Stages are numbered as in the plan.
pub trait Backend {
    /// What stages exchange.
    type Tensor;
    /// Why it can't go on.
    type Fault;

    /// F. `input` is none for the first stage, the result is none for the last one.
    ///
    /// # Errors
    /// The backend's own.
    fn forward(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        input: Option<Self::Tensor>,
    ) -> Result<Option<Self::Tensor>, Self::Fault>;

    /// I. `output_gradient` is none for the last stage, the result is none for the first one.
    ///
    /// # Errors
    /// The backend's own.
    fn input_gradient(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        output_gradient: Option<Self::Tensor>,
    ) -> Result<Option<Self::Tensor>, Self::Fault>;

    /// W, of a microbatch whose I is done.
    ///
    /// # Errors
    /// The backend's own.
    fn weight_gradient(&mut self, stage: StageIndex, microbatch: Microbatch) -> Result<(), Self::Fault>;

    /// B: I and W in one; the result is handed over at its end.
    ///
    /// # Errors
    /// The backend's own.
    fn backward(
        &mut self,
        stage: StageIndex,
        microbatch: Microbatch,
        output_gradient: Option<Self::Tensor>,
    ) -> Result<Option<Self::Tensor>, Self::Fault>;

    /// Called once after each instruction, when its result is on its way: the place to wait for the device.
    ///
    /// # Errors
    /// The backend's own.
    fn complete(&mut self) -> Result<(), Self::Fault> {
        Ok(())
    }
}

/// What carries tensors between devices.
pub trait Transport {
    /// What it carries.
    type Tensor;
    /// Why it can't go on.
    type Fault;

    /// A tensor will be taken later. Does not wait.
    ///
    /// # Errors
    /// The transport's own.
    fn post(&mut self, from: DeviceIndex, tag: TensorTag) -> Result<(), Self::Fault>;

    /// Waits for a posted tensor.
    ///
    /// # Errors
    /// The transport's own: a silent peer for instance.
    fn take(&mut self, from: DeviceIndex, tag: TensorTag) -> Result<Self::Tensor, Self::Fault>;

    /// Sends a tensor. May wait for the receiver, as NCCL does.
    ///
    /// # Errors
    /// The transport's own.
    fn send(&mut self, to: DeviceIndex, tag: TensorTag, tensor: Self::Tensor) -> Result<(), Self::Fault>;
}

/// Why a row did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped<B, T> {
    /// The backend failed.
    #[error("instruction {instruction} failed")]
    Backend {
        /// At this instruction.
        instruction: Instruction,
        /// Why.
        fault: B,
    },
    /// The transport failed.
    #[error("tensor {tag:?} could not be carried")]
    Transport {
        /// For this tensor.
        tag: TensorTag,
        /// Why.
        fault: T,
    },
    /// The row sends or consumes a tensor that nothing in it produces. No lowered plan does.
    #[error("tensor {tag:?} is used before it is there")]
    Missing {
        /// Which one.
        tag: TensorTag,
    },
    /// The row ends with a tensor that nothing consumed. No lowered plan does.
    #[error("tensor {tag:?} is left over")]
    LeftOver {
        /// Which one.
        tag: TensorTag,
    },
}

/// Why a backend and a transport of these types stop.
pub type StoppedOf<B, T> = Stopped<<B as Backend>::Fault, <T as Transport>::Fault>;

/// Runs one iteration of a device's row. `stages` is the number of stages of the whole plan.
///
/// # Errors
/// The first fault; the iteration is lost then, and with it the tensors under way.
pub fn run<B, T>(row: &Row, stages: usize, backend: &mut B, transport: &mut T) -> Result<(), StoppedOf<B, T>>
where
    B: Backend,
    T: Transport<Tensor = B::Tensor>,
{
    let mut iteration =
        Iteration { last: stages.saturating_sub(1), backend, transport, held: HashMap::new(), posted: HashMap::new() };
    let mut open = None;
    for work in row {
        match *work {
            Work::Receive { from, tag } => iteration.post(from, tag)?,
            Work::Send { to, tag } => iteration.send(to, tag)?,
            Work::Run(instruction) => {
                iteration.complete(open.replace(instruction))?;
                iteration.execute(instruction)?;
            }
        }
    }
    iteration.complete(open)?;
    match iteration.held.keys().chain(iteration.posted.keys()).min() {
        Some(&tag) => Err(Stopped::LeftOver { tag }),
        None => Ok(()),
    }
}

struct Iteration<'a, B: Backend, T> {
    last: usize,
    backend: &'a mut B,
    transport: &'a mut T,
    /// Produced here, not consumed or sent yet; by the tag of the consumer.
    held: HashMap<TensorTag, B::Tensor>,
    /// Will come from these devices.
    posted: HashMap<TensorTag, DeviceIndex>,
}

impl<B, T> Iteration<'_, B, T>
where
    B: Backend,
    T: Transport<Tensor = B::Tensor>,
{
    fn post(&mut self, from: DeviceIndex, tag: TensorTag) -> Result<(), StoppedOf<B, T>> {
        self.posted.insert(tag, from);
        self.transport.post(from, tag).map_err(|fault| Stopped::Transport { tag, fault })
    }

    fn send(&mut self, to: DeviceIndex, tag: TensorTag) -> Result<(), StoppedOf<B, T>> {
        let tensor = self.held.remove(&tag).ok_or(Stopped::Missing { tag })?;
        self.transport.send(to, tag, tensor).map_err(|fault| Stopped::Transport { tag, fault })
    }

    fn consume(&mut self, tag: TensorTag) -> Result<B::Tensor, StoppedOf<B, T>> {
        if let Some(tensor) = self.held.remove(&tag) {
            return Ok(tensor);
        }
        let from = self.posted.remove(&tag).ok_or(Stopped::Missing { tag })?;
        self.transport.take(from, tag).map_err(|fault| Stopped::Transport { tag, fault })
    }

    fn complete(&mut self, instruction: Option<Instruction>) -> Result<(), StoppedOf<B, T>> {
        match instruction {
            Some(instruction) => self.backend.complete().map_err(|fault| Stopped::Backend { instruction, fault }),
            None => Ok(()),
        }
    }

    fn execute(&mut self, instruction: Instruction) -> Result<(), StoppedOf<B, T>> {
        let Instruction { stage, action, microbatch } = instruction;
        let failed = |fault| Stopped::Backend { instruction, fault };
        let (first, last) = (stage.index() == 0, stage.index() == self.last);
        let activation = |stage| TensorTag { kind: TensorKind::Activation, stage, microbatch };
        let gradient = |stage| TensorTag { kind: TensorKind::Gradient, stage, microbatch };
        let (produced, tag) = match action {
            Action::Forward => {
                let input = if first { None } else { Some(self.consume(activation(stage))?) };
                (
                    self.backend.forward(stage, microbatch, input).map_err(failed)?,
                    (!last).then(|| activation(StageIndex(stage.0 + 1))),
                )
            }
            Action::InputGradient | Action::Backward => {
                let input = if last { None } else { Some(self.consume(gradient(stage))?) };
                let produced = match action {
                    Action::Backward => self.backend.backward(stage, microbatch, input),
                    _ => self.backend.input_gradient(stage, microbatch, input),
                };
                (produced.map_err(failed)?, (!first).then(|| gradient(StageIndex(stage.0 - 1))))
            }
            Action::WeightGradient => {
                self.backend.weight_gradient(stage, microbatch).map_err(failed)?;
                return Ok(());
            }
        };
        match (produced, tag) {
            (Some(tensor), Some(tag)) => {
                self.held.insert(tag, tensor);
                Ok(())
            }
            (None, Some(tag)) => Err(Stopped::Missing { tag }),
            (_, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
