//! `deadlock`: the derived rows run to their end even if every send and every receive blocks until the two meet.
//!
//! The strictest runtime there is; one that buffers a send or posts a receive ahead can only do more. The rows are not
//! trusted: each must be its device's program, and a tensor must be produced before it is sent and received before it
//! is used.

use super::name;
use crate::instruction::{Action, Instruction};
use crate::lower::{self, CannotLower, Row, Work};
use crate::plan::Plan;
use adaptis_proto::StageIndex;
use adaptis_proto::message::{TensorKind, TensorTag};
use std::collections::HashSet;

/// What is wrong with the rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There are none.
    #[error(transparent)]
    NoRows(#[from] CannotLower),
    /// A row is not its device's program with transfers.
    #[error("the row of {device} leaves out or adds instructions: it must be the program of {device}")]
    OtherProgram {
        /// The device.
        device: String,
    },
    /// A transfer never meets its counterpart.
    #[error("{device} waits for good to {} {peer}", transfer(*sends, *tag))]
    Blocked {
        /// The device.
        device: String,
        /// Whom it waits for.
        peer: String,
        /// It sends, rather than receives.
        sends: bool,
        /// The tensor.
        tag: TensorTag,
    },
    /// A tensor is used or sent before it is there.
    #[error("{device} has not got {} when it needs it", tensor(*tag))]
    NotThere {
        /// The device.
        device: String,
        /// The tensor.
        tag: TensorTag,
    },
}

fn tensor(tag: TensorTag) -> String {
    let kind = match tag.kind {
        TensorKind::Activation => "activation",
        TensorKind::Gradient => "gradient",
    };
    format!("the {kind} for stage {}, microbatch {}", tag.stage, tag.microbatch)
}

fn transfer(sends: bool, tag: TensorTag) -> String {
    match sends {
        true => format!("send {} to", tensor(tag)),
        false => format!("receive {} from", tensor(tag)),
    }
}

/// Needs `devices`, `placement`, `program` and `dependency`.
pub(super) fn check(plan: &Plan) -> Vec<Fault> {
    match lower::lower(plan) {
        Ok(rows) => check_rows(plan, &rows),
        Err(error) => vec![Fault::NoRows(error)],
    }
}

fn check_rows(plan: &Plan, rows: &[Row]) -> Vec<Fault> {
    if rows.len() != plan.programs.len() {
        return vec![Fault::OtherProgram { device: name(plan, rows.len().min(plan.programs.len())) }];
    }
    let mut faults = Vec::new();
    for (device, (row, program)) in rows.iter().zip(&plan.programs).enumerate() {
        let runs = row.iter().filter_map(|work| match work {
            Work::Run(instruction) => Some(instruction),
            Work::Receive { .. } | Work::Send { .. } => None,
        });
        if !runs.eq(program) {
            faults.push(Fault::OtherProgram { device: name(plan, device) });
        }
    }
    if !faults.is_empty() {
        return faults;
    }
    let mut meeting = Meeting { plan, rows, next: vec![0; rows.len()], there: HashSet::new(), faults: Vec::new() };
    let mut waking: Vec<usize> = (0..rows.len()).rev().collect();
    while let Some(device) = waking.pop() {
        meeting.go_on(device, &mut waking);
    }
    meeting.into_faults()
}

struct Meeting<'a> {
    plan: &'a Plan,
    rows: &'a [Row],
    next: Vec<usize>,
    /// Tensors, each at its producer's and, once received, at its consumer's device.
    there: HashSet<(usize, TensorTag)>,
    faults: Vec<Fault>,
}

impl Meeting<'_> {
    fn go_on(&mut self, device: usize, waking: &mut Vec<usize>) {
        while let Some(work) = self.rows[device].get(self.next[device]).copied() {
            match work {
                Work::Run(instruction) => {
                    if let Some(tag) = self.input_of(instruction) {
                        self.expect_there(device, tag);
                    }
                    if let Some(tag) = self.result_of(instruction) {
                        self.there.insert((device, tag));
                    }
                }
                Work::Send { to, tag } => {
                    let peer = to.index();
                    if !self.is_at(peer, Work::Receive { from: device.into(), tag }) {
                        return;
                    }
                    self.expect_there(device, tag);
                    self.there.insert((peer, tag));
                    self.next[peer] += 1;
                    waking.push(peer);
                }
                Work::Receive { from, tag } => {
                    let peer = from.index();
                    if !self.is_at(peer, Work::Send { to: device.into(), tag }) {
                        return;
                    }
                    self.expect_there(peer, tag);
                    self.there.insert((device, tag));
                    self.next[peer] += 1;
                    waking.push(peer);
                }
            }
            self.next[device] += 1;
        }
    }

    fn is_at(&self, device: usize, work: Work) -> bool {
        self.rows.get(device).and_then(|row| row.get(self.next[device])) == Some(&work)
    }

    fn expect_there(&mut self, device: usize, tag: TensorTag) {
        if !self.there.contains(&(device, tag)) {
            self.faults.push(Fault::NotThere { device: name(self.plan, device), tag });
        }
    }

    /// What comes from another stage; the first F and the last I have no such input.
    fn input_of(&self, Instruction { stage, action, microbatch }: Instruction) -> Option<TensorTag> {
        let kind = match action {
            Action::Forward => (stage.0 > 0).then_some(TensorKind::Activation),
            Action::InputGradient | Action::Backward => {
                (stage.index() + 1 < self.plan.stages.len()).then_some(TensorKind::Gradient)
            }
            Action::WeightGradient => None,
        };
        kind.map(|kind| TensorTag { kind, stage, microbatch })
    }

    fn result_of(&self, Instruction { stage, action, microbatch }: Instruction) -> Option<TensorTag> {
        match action {
            Action::Forward => {
                let behind = StageIndex(stage.0 + 1);
                let tag = TensorTag { kind: TensorKind::Activation, stage: behind, microbatch };
                (behind.index() < self.plan.stages.len()).then_some(tag)
            }
            Action::InputGradient | Action::Backward => {
                let before = StageIndex(stage.0.checked_sub(1)?);
                Some(TensorTag { kind: TensorKind::Gradient, stage: before, microbatch })
            }
            Action::WeightGradient => None,
        }
    }

    fn into_faults(mut self) -> Vec<Fault> {
        for (device, row) in self.rows.iter().enumerate() {
            let (peer, sends, tag) = match row.get(self.next[device]) {
                Some(Work::Send { to, tag }) => (to.index(), true, *tag),
                Some(Work::Receive { from, tag }) => (from.index(), false, *tag),
                Some(Work::Run(_)) | None => continue,
            };
            let (device, peer) = (name(self.plan, device), name(self.plan, peer));
            self.faults.push(Fault::Blocked { device, peer, sends, tag });
        }
        self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{FORMAT, Stage};
    use adaptis_proto::{Epoch, Microbatch};

    /// Stage 0 on a, stage 1 on b, two microbatches under 1F1B.
    fn plan() -> Plan {
        let program = |text: &str| text.split(' ').map(|text| text.parse().expect("an instruction")).collect();
        Plan {
            format: FORMAT.into(),
            note: None,
            epoch: Epoch(1),
            parent: Epoch(0),
            layers: 2,
            devices: vec!["a".into(), "b".into()],
            stages: (0..2)
                .map(|index| Stage { layers: [index, index + 1], device: index, recompute: Vec::new(), note: None })
                .collect(),
            programs: vec![program("0F0 0F1 0B0 0B1"), program("1F0 1B0 1F1 1B1")],
            predicted: None,
            why: None,
        }
    }

    /// `F0` an instruction of the row's stage; `+0` its send, `-0` its receive for a microbatch.
    fn row(stage: u32, text: &str) -> Row {
        let work = |word: &str| {
            let microbatch = Microbatch(word[1..].parse().expect("a number"));
            let peer = (1 - stage as usize).into();
            let tag = |receiver: u32| TensorTag {
                kind: if receiver == 1 { TensorKind::Activation } else { TensorKind::Gradient },
                stage: StageIndex(receiver),
                microbatch,
            };
            match &word[..1] {
                "+" => Work::Send { to: peer, tag: tag(1 - stage) },
                "-" => Work::Receive { from: peer, tag: tag(stage) },
                _ => Work::Run(format!("{stage}{word}").parse().expect("an instruction")),
            }
        };
        text.split(' ').map(work).collect()
    }

    fn faults(a: &str, b: &str) -> Vec<String> {
        check_rows(&plan(), &[row(0, a), row(1, b)]).iter().map(Fault::to_string).collect()
    }

    #[test]
    fn rows_that_meet_are_fine() {
        let good = "-0 F0 B0 +0 -1 F1 B1 +1";
        // The second activation waits behind the first gradient on b, so a must take that one first.
        assert_eq!(faults("F0 +0 F1 -0 +1 B0 -1 B1", good), Vec::<String>::new());
        assert_eq!(check(&plan()), []);
    }

    #[test]
    fn two_sends_that_face_each_other_block() {
        assert_eq!(
            faults("F0 +0 F1 +1 -0 B0 -1 B1", "-0 F0 B0 +0 -1 F1 B1 +1"),
            [
                "a waits for good to send the activation for stage 1, microbatch 1 to b",
                "b waits for good to send the gradient for stage 0, microbatch 0 to a",
            ]
        );
    }

    #[test]
    fn a_row_must_be_the_program() {
        assert_eq!(
            faults("F0 +0 F1 -0 +1 B0 -1", "-0 F0 B0 +0 -1 F1 B1 +1"),
            ["the row of a leaves out or adds instructions: it must be the program of a"]
        );
        assert_eq!(check_rows(&plan(), &[]).len(), 1);
    }

    #[test]
    fn a_tensor_must_be_there_when_it_is_sent_or_used() {
        assert_eq!(
            faults("+0 F0 F1 -0 +1 B0 -1 B1", "-0 F0 B0 +0 -1 F1 B1 +1"),
            ["a has not got the activation for stage 1, microbatch 0 when it needs it"]
        );
        assert_eq!(
            faults("F0 +0 F1 -0 +1 B0 B1 -1", "-0 F0 B0 +0 -1 F1 B1 +1"),
            ["a has not got the gradient for stage 0, microbatch 1 when it needs it"]
        );
    }
}
