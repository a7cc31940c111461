//! Plans: one device under 1F1B, and random ones of every kind that the audit lets through.

use adaptis_plan::{Action, Instruction, Plan, Problem, Stage, audit, plan};
use adaptis_proto::Epoch;

/// A small source of numbers: SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % count as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// All layers as one stage on the first device: 1F1B is F and B in turn there.
pub fn one_device(truth: &Problem, epoch: Epoch) -> Plan {
    let layers = truth.layers.len() as u32;
    let stages = vec![Stage { layers: [0, layers], device: 0, recompute: vec![], note: None }];
    let program = (0..truth.microbatches as usize)
        .flat_map(|m| [Instruction::new(0, Action::Forward, m), Instruction::new(0, Action::Backward, m)])
        .collect();
    let mut programs = vec![Vec::new(); truth.devices.len()];
    programs[0] = program;
    checked(truth, whole(truth, epoch, Epoch(0), stages, programs))
}

/// A random partition, placement, recomputation and schedule: several stages on a device, none on another, I and W
/// apart, B fused, or both in turn.
pub fn random_plan(truth: &Problem, epoch: Epoch, parent: Epoch, dice: &mut Dice) -> Plan {
    let layers = truth.layers.len() as u32;
    let mut cuts = vec![0];
    cuts.extend((1..layers).filter(|_| dice.chance(45)));
    cuts.push(layers);
    let stages: Vec<_> = cuts.windows(2).map(|cut| (cut[0], cut[1], dice.below(truth.devices.len()) as u32)).collect();
    scheduled(truth, epoch, parent, &stages, dice)
}

/// A random schedule and recomputation of given stages, `(from, to, device)`.
pub fn scheduled(truth: &Problem, epoch: Epoch, parent: Epoch, stages: &[(u32, u32, u32)], dice: &mut Dice) -> Plan {
    let stages: Vec<Stage> = stages
        .iter()
        .map(|&(from, to, device)| {
            let recompute = (from..to).filter(|_| dice.chance(30)).collect();
            Stage { layers: [from, to], device, recompute, note: None }
        })
        .collect();
    let programs = schedule(&stages, truth.devices.len(), truth.microbatches as usize, dice);
    checked(truth, whole(truth, epoch, parent, stages, programs))
}

/// Draws one of the instructions that can run, again and again: an order of all instructions that respects every
/// dependency, so that no deadlock is possible.
fn schedule(stages: &[Stage], devices: usize, microbatches: usize, dice: &mut Dice) -> Vec<Vec<Instruction>> {
    let count = stages.len();
    let (mut forwards, mut inputs, mut weights) = (vec![0; count], vec![0; count], vec![0; count]);
    let mut programs = vec![Vec::new(); devices];
    let fused_percent = [0, 50, 100][dice.below(3)];
    loop {
        let mut ready = Vec::new();
        for s in 0..count {
            let m = forwards[s];
            if m < microbatches && (s == 0 || forwards[s - 1] > m) {
                ready.push(Instruction::new(s, Action::Forward, m));
            }
            let m = inputs[s];
            if m < forwards[s] && (s + 1 == count || inputs[s + 1] > m) {
                // B is also the next W of its stage, so no W may be due before it.
                let fused = weights[s] == m && dice.chance(fused_percent);
                ready.push(Instruction::new(s, if fused { Action::Backward } else { Action::InputGradient }, m));
            }
            if weights[s] < inputs[s] {
                ready.push(Instruction::new(s, Action::WeightGradient, weights[s]));
            }
        }
        if ready.is_empty() {
            return programs;
        }
        let next = ready[dice.below(ready.len())];
        let s = next.stage.index();
        match next.action {
            Action::Forward => forwards[s] += 1,
            Action::InputGradient => inputs[s] += 1,
            Action::WeightGradient => weights[s] += 1,
            Action::Backward => {
                inputs[s] += 1;
                weights[s] += 1;
            }
        }
        programs[stages[s].device as usize].push(next);
    }
}

fn whole(truth: &Problem, epoch: Epoch, parent: Epoch, stages: Vec<Stage>, programs: Vec<Vec<Instruction>>) -> Plan {
    Plan {
        format: plan::FORMAT.into(),
        note: None,
        epoch,
        parent,
        layers: truth.layers.len() as u32,
        devices: truth.devices.iter().map(|device| device.name.clone()).collect(),
        stages,
        programs,
        predicted: None,
        why: None,
    }
}

fn checked(truth: &Problem, plan: Plan) -> Plan {
    assert_eq!(audit(truth, &plan), []);
    plan
}
