//! A plan's text, made ready to run: checked against its digest, audited, its memory granted, lowered.

use adaptis_plan::{Constraints, Cost, Device, Layer, Link, Links, Plan, Problem, Row, audit, lower, problem};
use adaptis_proto::message::{Job, Refusal};
use adaptis_proto::{DeviceIndex, Digest, Epoch};

/// A plan that this rank can run.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// Digest of its text.
    pub digest: Digest,
    /// This rank's program with its transfers.
    pub row: Row,
}

/// Says whether a rank's device has room for a plan, beside what it runs now.
pub trait Room: Send + Sync {
    /// Nothing, if there is room for `next` and for the switch to it from `current`.
    ///
    /// # Errors
    /// [`Refusal::Memory`] with what it takes and what there is.
    fn grant(&self, current: Option<&Plan>, next: &Plan) -> Result<(), Refusal>;
}

/// Checks and lowers plans for one rank.
pub struct Compiler {
    structure: Problem,
    device: DeviceIndex,
    room: Box<dyn Room>,
}

impl Compiler {
    /// For the device number `device` of a job.
    pub fn new(job: &Job, device: DeviceIndex, room: Box<dyn Room>) -> Compiler {
        Compiler { structure: structure(job), device, room }
    }

    /// Makes a plan ready. `epoch` is the number under which it was announced.
    ///
    /// # Errors
    /// Why this rank can't run it.
    pub fn compile(
        &self,
        text: &str,
        digest: Digest,
        epoch: Epoch,
        current: Option<&Plan>,
    ) -> Result<Compiled, Refusal> {
        if Plan::digest(text) != digest {
            return Err(Refusal::Unreadable("its digest is another one".to_owned()));
        }
        let plan = Plan::read(text).map_err(|error| Refusal::Unreadable(error.to_string()))?;
        if plan.epoch != epoch {
            let (named, announced) = (plan.epoch, epoch);
            return Err(Refusal::Unreadable(format!("it names epoch {named} and was announced as {announced}")));
        }
        let findings = audit(&self.structure, &plan);
        if !findings.is_empty() {
            return Err(Refusal::Invalid(findings.iter().map(ToString::to_string).collect()));
        }
        self.room.grant(current, &plan)?;
        let rows = lower(&plan).map_err(|error| Refusal::Invalid(vec![error.to_string()]))?;
        let row = rows.into_iter().nth(self.device.index());
        let row = row.ok_or_else(|| Refusal::Invalid(vec!["it has no program for this device".to_owned()]))?;
        Ok(Compiled { plan, digest, row })
    }
}

/// A job without its costs, which a rank need not know: the audit of a plan's structure is the same.
fn structure(job: &Job) -> Problem {
    const KIND: &str = "any";
    // Above any sum of states, and far from where sums overflow.
    const MEMORY_BYTES: u64 = 1 << 60;
    let layer = |layer: &adaptis_proto::message::JobLayer| Layer {
        name: layer.name.clone(),
        signature: layer.signature.clone(),
        parameter_bytes: 0,
        state_bytes: 0,
        output_bytes: 0,
        moved_bytes: None,
        note: None,
    };
    let device = |name: &String| Device {
        name: name.clone(),
        kind: KIND.to_owned(),
        memory_bytes: MEMORY_BYTES,
        slowdown: 1.0,
        reserved_bytes: 0,
        note: None,
    };
    Problem {
        format: problem::FORMAT.to_owned(),
        note: None,
        microbatches: job.microbatches,
        layers: job.layers.iter().map(layer).collect(),
        devices: job.devices.iter().map(device).collect(),
        costs: [(KIND.to_owned(), vec![Cost::default(); job.layers.len()])].into(),
        links: Links {
            default: Link { latency_ns: 0, bytes_per_second: 1.0, note: () },
            pairs: Vec::new(),
            note: None,
        },
        optimizer_ns: Default::default(),
        receive_buffers: Default::default(),
        boundary_ns: 0,
        stage_ns: 0,
        constraints: Constraints::default(),
    }
}
