//! A plan's text, made ready to run: checked against its digest, audited, its memory granted, lowered.

use adaptis_plan::problem::Constraints;
use adaptis_plan::{Plan, Problem, Row, audit, lower};
use adaptis_proto::message::{Bounds, Job, Refusal};
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
        Compiler { structure: Problem::structure(job), device, room }
    }

    /// Any plan is to obey these bounds.
    #[must_use]
    pub fn within(mut self, bounds: &Bounds) -> Compiler {
        let devices: Vec<String> = self.structure.devices.iter().map(|device| device.name.clone()).collect();
        self.structure.constraints = Constraints::of(bounds, &devices, self.structure.layers.len());
        self
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

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_plan::{Action, Instruction, Stage};
    use adaptis_proto::LayerIndex;
    use adaptis_proto::message::JobLayer;

    struct Lot(u64);

    impl Room for Lot {
        fn grant(&self, _: Option<&Plan>, _: &Plan) -> Result<(), Refusal> {
            match self.0 {
                0 => Err(Refusal::Memory { needed_bytes: 1, available_bytes: 0 }),
                _ => Ok(()),
            }
        }
    }

    fn compiler(room: u64) -> Compiler {
        let layer = |name: &str| JobLayer {
            name: name.into(),
            signature: "mlp/x".into(),
            parameter_bytes: 0,
            state_bytes: u64::MAX / 2,
            output_bytes: 0,
            moved_bytes: 0,
        };
        let job = Job {
            run: Default::default(),
            devices: vec!["gpu0".into(), "gpu1".into()],
            layers: vec![layer("a"), layer("b")],
            microbatches: 1,
            iterations: 1,
            start_plan: None,
        };
        Compiler::new(&job, DeviceIndex(1), Box::new(Lot(room)))
    }

    fn plan() -> Plan {
        let stage = |layers, device| Stage { layers, device, recompute: vec![], note: None };
        let program =
            |stage| vec![Instruction::new(stage, Action::Forward, 0), Instruction::new(stage, Action::Backward, 0)];
        Plan {
            format: adaptis_plan::plan::FORMAT.into(),
            note: None,
            epoch: Epoch(4),
            parent: Epoch(3),
            layers: 2,
            devices: vec!["gpu0".into(), "gpu1".into()],
            stages: vec![stage([0, 1], 0), stage([1, 2], 1)],
            programs: vec![program(0), program(1)],
            predicted: None,
            why: None,
        }
    }

    fn compile(room: u64, plan: &Plan, epoch: u64) -> Result<Compiled, Refusal> {
        let text = plan.write();
        compiler(room).compile(&text, Plan::digest(&text), Epoch(epoch), None)
    }

    #[test]
    fn a_valid_plan_gives_this_devices_row() {
        let compiled = compile(1, &plan(), 4).unwrap();
        assert_eq!(compiled.row.len(), 4, "receive, F, B, send");
    }

    #[test]
    fn a_plan_out_of_bounds_is_refused() {
        let text = plan().write();
        let within = |pinned, together| {
            let compiler = compiler(1).within(&Bounds { pinned, together });
            compiler.compile(&text, Plan::digest(&text), Epoch(4), None)
        };
        assert!(within(vec![(LayerIndex(0), DeviceIndex(0))], vec![]).is_ok());
        let parted = vec![vec![LayerIndex(0), LayerIndex(1)]];
        for (pinned, together) in [(vec![(LayerIndex(0), DeviceIndex(1))], vec![]), (vec![], parted)] {
            assert!(matches!(within(pinned, together), Err(Refusal::Invalid(findings)) if findings.len() == 1));
        }
    }

    #[test]
    fn a_refusal_says_why() {
        let mut without_b = plan();
        without_b.programs[1].pop();
        assert!(matches!(compile(1, &without_b, 4), Err(Refusal::Invalid(findings)) if !findings.is_empty()));
        assert_eq!(compile(0, &plan(), 4), Err(Refusal::Memory { needed_bytes: 1, available_bytes: 0 }));
        assert!(matches!(compile(1, &plan(), 5), Err(Refusal::Unreadable(_))), "announced under another number");
        let text = plan().write();
        for (text, digest) in [(&text, Digest::default()), (&"{".to_owned(), Plan::digest("{"))] {
            let refused = compiler(1).compile(text, digest, Epoch(4), None);
            assert!(matches!(refused, Err(Refusal::Unreadable(_))));
        }
    }
}
