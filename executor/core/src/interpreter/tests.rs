use super::*;
use adaptis_plan::{Plan, Stage, lower, plan};
use adaptis_proto::Epoch;
use std::cell::RefCell;
use std::rc::Rc;

/// Everything that happens, in order.
type Log = Rc<RefCell<Vec<String>>>;

struct Device(Log);

impl Device {
    fn note(&self, letter: char, stage: StageIndex, microbatch: Microbatch, input: Option<String>) -> String {
        let name = format!("{stage}{letter}{microbatch}");
        self.0.borrow_mut().push(match input {
            Some(input) => format!("{name}({input})"),
            None => format!("{name}()"),
        });
        name
    }
}

impl Backend for Device {
    type Tensor = String;
    type Fault = String;

    fn forward(&mut self, s: StageIndex, m: Microbatch, input: Option<String>) -> Result<Option<String>, String> {
        Ok(Some(self.note('F', s, m, input)))
    }

    fn input_gradient(&mut self, s: StageIndex, m: Microbatch, g: Option<String>) -> Result<Option<String>, String> {
        Ok(Some(self.note('I', s, m, g)))
    }

    fn weight_gradient(&mut self, s: StageIndex, m: Microbatch) -> Result<(), String> {
        self.note('W', s, m, None);
        if m.0 == 9 { Err("broken".into()) } else { Ok(()) }
    }

    fn backward(&mut self, s: StageIndex, m: Microbatch, g: Option<String>) -> Result<Option<String>, String> {
        Ok(Some(self.note('B', s, m, g)))
    }

    fn complete(&mut self) -> Result<(), String> {
        self.0.borrow_mut().push("done".into());
        Ok(())
    }
}

/// Hands out a tensor named after its tag.
struct Mail(Log);

impl Transport for Mail {
    type Tensor = String;
    type Fault = String;

    fn post(&mut self, from: DeviceIndex, tag: TensorTag) -> Result<(), String> {
        self.0.borrow_mut().push(format!("post {}<{from}", name(tag)));
        Ok(())
    }

    fn take(&mut self, from: DeviceIndex, tag: TensorTag) -> Result<String, String> {
        Ok(format!("{}<{from}", name(tag)))
    }

    fn send(&mut self, to: DeviceIndex, tag: TensorTag, tensor: String) -> Result<(), String> {
        self.0.borrow_mut().push(format!("{tensor}>{to}"));
        let _ = tag;
        Ok(())
    }
}

fn name(tag: TensorTag) -> String {
    let kind = if tag.kind == TensorKind::Activation { 'a' } else { 'g' };
    format!("{kind}{}.{}", tag.stage, tag.microbatch)
}

fn rows(stages: &[u32], programs: &[&str]) -> Vec<Row> {
    let plan = Plan {
        format: plan::FORMAT.into(),
        note: None,
        epoch: Epoch(1),
        parent: Epoch(0),
        layers: stages.len() as u32,
        devices: (0..programs.len()).map(|at| format!("gpu{at}")).collect(),
        stages: stages
            .iter()
            .zip(0..)
            .map(|(&device, at)| Stage { layers: [at, at + 1], device, recompute: vec![], note: None })
            .collect(),
        programs: programs
            .iter()
            .map(|program| program.split_whitespace().map(|text| text.parse().expect("an instruction")).collect())
            .collect(),
        predicted: None,
        why: None,
    };
    lower(&plan).expect("it can be lowered")
}

fn log_of(row: &Row, stages: usize) -> (Vec<String>, Result<(), Stopped<String, String>>) {
    let log = Log::default();
    let result = run(row, stages, &mut Device(log.clone()), &mut Mail(log.clone()));
    let log = log.borrow().clone();
    (log, result)
}

#[test]
fn tensors_go_through_memory_on_a_device_and_through_the_transport_between_two() {
    let rows = rows(&[0, 0, 1], &["0F0 1F0 1I0 0I0 1W0 0W0", "2F0 2B0"]);
    let (log, result) = log_of(&rows[0], 3);
    assert_eq!(result, Ok(()));
    let expected = "0F0() done 1F0(0F0) 1F0>1 post g1.0<1 done 1I0(g1.0<1) done 0I0(1I0) done 1W0() done 0W0() done";
    assert_eq!(log.join(" "), expected);
    let (log, result) = log_of(&rows[1], 3);
    assert_eq!(result, Ok(()));
    assert_eq!(log.join(" "), "post a2.0<0 2F0(a2.0<0) done 2B0() 2B0>0 done");
}

#[test]
fn a_result_is_sent_before_the_backend_waits_for_its_device() {
    let rows = rows(&[0, 1], &["0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"]);
    for row in &rows {
        let (log, _) = log_of(row, 2);
        for (at, _) in log.iter().enumerate().filter(|(_, event)| event.contains('>')) {
            assert!(log[at..].iter().any(|event| event == "done"));
            assert_ne!(log[at - 1], "done", "{log:?}");
        }
    }
}

#[test]
fn a_fault_names_its_instruction() {
    let row = vec![Work::Run(Instruction::new(0, Action::WeightGradient, 9))];
    let stopped = Stopped::Backend { instruction: "0W9".parse().unwrap(), fault: "broken".to_owned() };
    assert_eq!(log_of(&row, 1).1, Err(stopped));
}

#[test]
fn a_row_that_no_plan_gives_is_refused() {
    let activation = TensorTag { kind: TensorKind::Activation, stage: StageIndex(1), microbatch: Microbatch(0) };
    let forward = |stage| Work::Run(Instruction::new(stage, Action::Forward, 0));
    let cases = [
        (vec![forward(1)], Stopped::Missing { tag: activation }),
        (vec![Work::Send { to: DeviceIndex(1), tag: activation }], Stopped::Missing { tag: activation }),
        (vec![forward(0)], Stopped::LeftOver { tag: activation }),
        (vec![Work::Receive { from: DeviceIndex(0), tag: activation }], Stopped::LeftOver { tag: activation }),
    ];
    for (row, stopped) in cases {
        assert_eq!(log_of(&row, 2).1, Err(stopped));
    }
}
