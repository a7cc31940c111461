//! Measured iterations as panels of a picture: what each device really did, when.

use adaptis_plan::{Action, Plan};
use adaptis_planner::export::{Bar, Kind, Lane, Panel, layers_text, milliseconds};
use adaptis_proto::sample::{Mark, Phase, Sample};
use std::collections::{BTreeMap, HashSet};

/// Gaps up to this long inside one instruction are the clock's, not idle time.
const JOIN_NS: u64 = 1_000_000;

/// An iteration to draw.
pub struct Wanted<'a> {
    /// Its index.
    pub step: u64,
    /// What it shows: `before the fault`.
    pub title: &'a str,
    /// The plan it ran on.
    pub plan: &'a Plan,
}

/// The last iteration up to this one in which every device that has stages had its layers measured.
pub fn measured(plan: &Plan, samples: &[(String, Sample)], last: u64) -> Option<u64> {
    let with_stages: HashSet<&str> =
        plan.stages.iter().map(|stage| plan.devices[stage.device as usize].as_str()).collect();
    let mut devices_of: BTreeMap<u64, HashSet<&str>> = BTreeMap::new();
    for (device, sample) in samples {
        if let Sample::Work { place, mark, .. } = *sample
            && mark != Mark::Calibration
            && place.step.0 <= last
            && place.epoch == plan.epoch
        {
            devices_of.entry(place.step.0).or_default().insert(device);
        }
    }
    devices_of.into_iter().rev().find(|(_, devices)| with_stages.is_subset(devices)).map(|(step, _)| step)
}

/// A panel of a measured iteration; none if its samples are not there.
///
/// `kinds` are the devices' kinds, `samples` pairs of device name and sample, on one clock.
pub fn panel(wanted: &Wanted<'_>, kinds: &[String], samples: &[(String, Sample)]) -> Option<Panel> {
    let (start_ns, duration_ns) = samples.iter().find_map(|(_, sample)| match *sample {
        Sample::Iteration { place, start_ns, duration_ns, .. } if place.step.0 == wanted.step => {
            Some((start_ns, duration_ns))
        }
        _ => None,
    })?;
    let stages = Stages::of(wanted.plan);
    let lanes: Vec<Lane> = wanted
        .plan
        .devices
        .iter()
        .zip(kinds)
        .enumerate()
        .map(|(index, (device, kind))| Lane {
            label: format!("{device} {kind}"),
            note: layers_text(wanted.plan, index),
            bars: bars(wanted.step, device, start_ns, &stages, samples),
        })
        .collect();
    let busy_ns: u64 = lanes.iter().map(Lane::busy_ns).sum();
    let idle = 1.0 - busy_ns as f64 / (duration_ns.max(1) * lanes.len().max(1) as u64) as f64;
    let idle = match busy_ns {
        0 => "layers not measured".to_owned(),
        _ => format!("devices idle {:.0}% of it", idle.max(0.0) * 100.0),
    };
    Some(Panel {
        title: format!("iteration {}: {}", wanted.step, wanted.title),
        caption: format!("{}, plan {}, {idle}", milliseconds(duration_ns), wanted.plan.epoch),
        duration_ns,
        lanes,
    })
}

/// Which stage a layer belongs to, and which of its backwards are fused.
struct Stages {
    of_layer: Vec<usize>,
    fused: HashSet<(usize, usize)>,
}

impl Stages {
    fn of(plan: &Plan) -> Stages {
        let mut of_layer = vec![0; plan.layers as usize];
        for (index, stage) in plan.stages.iter().enumerate() {
            of_layer[stage.range()].fill(index);
        }
        let fused = plan.programs.iter().flatten().filter(|instruction| instruction.action == Action::Backward);
        Stages { of_layer, fused: fused.map(|i| (i.stage.index(), i.microbatch.index())).collect() }
    }

    fn kind(&self, phase: Phase, stage: usize, microbatch: usize) -> Kind {
        match phase {
            Phase::Forward => Kind::Forward,
            Phase::Recompute => Kind::Recompute,
            Phase::Optimizer => Kind::Optimizer,
            _ if self.fused.contains(&(stage, microbatch)) => Kind::Backward,
            Phase::InputGradient => Kind::InputGradient,
            Phase::WeightGradient => Kind::WeightGradient,
        }
    }
}

/// The bars of a device: the works of its layers, joined where they belong to one instruction. Calibration comes before
/// the first iteration and bears its number.
fn bars(step: u64, device: &str, origin_ns: u64, stages: &Stages, samples: &[(String, Sample)]) -> Vec<Bar> {
    let mut works: Vec<Bar> = samples
        .iter()
        .filter(|(name, _)| name == device)
        .filter_map(|(_, sample)| match *sample {
            Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns }
                if place.step.0 == step && mark != Mark::Calibration =>
            {
                let stage = *stages.of_layer.get(layer.index())?;
                let start_ns = start_ns.saturating_sub(origin_ns);
                Some(Bar {
                    kind: stages.kind(phase, stage, microbatch.index()),
                    stage,
                    microbatch: microbatch.index(),
                    start_ns,
                    end_ns: start_ns + duration_ns,
                })
            }
            _ => None,
        })
        .collect();
    works.sort_by_key(|bar| bar.start_ns);
    let mut joined: Vec<Bar> = Vec::with_capacity(works.len() / 4);
    for bar in works {
        match joined.last_mut() {
            Some(last)
                if (last.kind, last.stage, last.microbatch) == (bar.kind, bar.stage, bar.microbatch)
                    && bar.start_ns <= last.end_ns + JOIN_NS =>
            {
                last.end_ns = bar.end_ns;
            }
            _ => joined.push(bar),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::sample::Place;
    use adaptis_proto::{Epoch, Generation, LayerIndex, Microbatch, Step};

    #[test]
    fn an_iteration_is_measured_when_all_devices_with_stages_were() {
        let plan = r#"{
            "format": "adaptis.plan/1", "epoch": 1, "parent": 0, "layers": 2, "devices": ["gpu0", "gpu1", "gpu2"],
            "stages": [
                { "layers": [0, 1], "device": 0, "recompute": [] },
                { "layers": [1, 2], "device": 1, "recompute": [] }
            ],
            "programs": [["0F0", "0B0"], ["1F0", "1B0"], []]
        }"#;
        let plan = Plan::read(plan).expect("a plan");
        let work = |device: &str, step: u64, epoch: u64| {
            let place = Place { step: Step(step), epoch: Epoch(epoch), generation: Generation(1) };
            let (layer, microbatch, phase) = (LayerIndex(0), Microbatch(0), Phase::Forward);
            let mark = Mark::Warm;
            (device.to_owned(), Sample::Work { place, layer, microbatch, phase, mark, start_ns: 1, duration_ns: 1 })
        };
        let samples = [
            work("gpu0", 4, 2),
            work("gpu1", 4, 2),
            work("gpu0", 5, 1),
            work("gpu1", 5, 1),
            work("gpu0", 8, 1),
            work("gpu0", 9, 1),
            work("gpu1", 9, 1),
        ];
        let found: Vec<_> = [4, 5, 8, 9].map(|last| measured(&plan, &samples, last)).into();
        assert_eq!(found, [None, Some(5), Some(5), Some(9)]);
    }

    #[test]
    fn calibration_is_no_part_of_the_first_iteration() {
        let work = |mark, start_ns| Sample::Work {
            place: Place { step: Step(0), epoch: Epoch(1), generation: Generation(1) },
            layer: LayerIndex(0),
            microbatch: Microbatch(0),
            phase: Phase::Forward,
            mark,
            start_ns,
            duration_ns: 10,
        };
        let samples = [work(Mark::Calibration, 500), work(Mark::Cold, 2_000)].map(|sample| ("gpu0".to_owned(), sample));
        let stages = Stages { of_layer: vec![0], fused: HashSet::new() };
        let bars = bars(0, "gpu0", 1_000, &stages, &samples);
        assert_eq!(bars.iter().map(|bar| (bar.start_ns, bar.end_ns)).collect::<Vec<_>>(), [(1_000, 1_010)]);
    }
}
