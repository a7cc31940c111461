//! Derived sends and receives.

use crate::support::{Dice, one_f_one_b, problem, program, small};
use adaptis_plan::lower::{CannotLower, Row, Work, lower};
use adaptis_plan::{Instruction, audit};
use adaptis_proto::message::TensorKind;

/// `>d tag` for a send, `<d tag` for a receive, the tag as kind of the consumer.
fn draw(row: &Row) -> String {
    let word = |work: &Work| {
        let (arrow, peer, tag) = match work {
            Work::Run(instruction) => return instruction.to_string(),
            Work::Send { to, tag } => ('>', to, tag),
            Work::Receive { from, tag } => ('<', from, tag),
        };
        let kind = match tag.kind {
            TensorKind::Activation => 'a',
            TensorKind::Gradient => 'g',
        };
        format!("{arrow}{peer}:{}{kind}{}", tag.stage, tag.microbatch)
    };
    row.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn rows_of_a_small_plan() {
    let (_, plan) = small();
    let rows: Vec<String> = lower(&plan).expect("it runs").iter().map(draw).collect();
    assert_eq!(
        rows,
        ["0F0 >1:1a0 0F1 >1:1a1 <1:0g0 0B0 <1:0g1 0B1", "<0:1a0 <0:1a1 1F0 1I0 >0:0g0 1F1 1W0 1B1 >0:0g1",]
    );
}

#[test]
fn two_stages_on_one_device_exchange_nothing() {
    let (_, mut plan) = small();
    plan.stages[1].device = 0;
    plan.programs = vec![program("0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"), vec![]];
    let rows: Vec<String> = lower(&plan).expect("it runs").iter().map(draw).collect();
    assert_eq!(rows, ["0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1", ""]);
}

#[test]
fn what_cannot_run_has_no_rows() {
    let instruction = |text: &str| text.parse::<Instruction>().expect("an instruction");
    let (_, plan) = small();
    let mut circle = plan.clone();
    circle.programs = vec![program("0F0 0B0 0F1 0B1"), program("1F0 1F1 1B0 1B1")];
    assert_eq!(lower(&circle), Err(CannotLower::Deadlock { device: 0, before: instruction("0B0") }));
    let mut foreign = plan.clone();
    foreign.programs[0].extend(program("1F0"));
    assert_eq!(lower(&foreign), Err(CannotLower::Stage { device: 0, instruction: instruction("1F0") }));
    let mut nowhere = plan;
    nowhere.programs[1].extend(program("9F0"));
    assert_eq!(lower(&nowhere), Err(CannotLower::Stage { device: 1, instruction: instruction("9F0") }));
}

/// A receive should not block what could run before its tensor comes, so it stands near its use.
#[test]
fn receives_are_posted_near_their_use() {
    let problem = problem(&mut Dice(3), 4, 4, 16);
    let rows = lower(&one_f_one_b(&problem)).expect("it runs");
    for row in &rows {
        for (at, work) in row.iter().enumerate() {
            let Work::Receive { tag, .. } = work else {
                continue;
            };
            let used = row[at..].iter().filter(|work| matches!(work, Work::Run(_))).position(|work| {
                matches!(work, Work::Run(instruction) if instruction.stage == tag.stage
                    && instruction.microbatch == tag.microbatch
                    && (instruction.action == adaptis_plan::Action::Forward) == (tag.kind == TensorKind::Activation))
            });
            assert!(used.expect("what is received is used") <= 4, "{}", draw(row));
        }
    }
}

#[test]
fn a_large_plan_is_lowered_and_audited() {
    let problem = problem(&mut Dice(2), 64, 128, 256);
    let plan = one_f_one_b(&problem);
    let rows = lower(&plan).expect("it runs");
    let works: usize = rows.iter().map(Vec::len).sum();
    // 128 stages x 256 microbatches x (F, B), and 127 boundaries x 256 x 2 transfers with both ends.
    assert_eq!(works, 128 * 256 * 2 + 127 * 256 * 4);
    assert_eq!(audit(&problem, &plan), []);
}
