//! What a demo is made of: the cluster, the truth about its costs, and the plan to start on.

use super::Arguments;
use crate::signals::Stop;
use crate::{failure, files};
use adaptis_executor::backend::cpu::Text;
use adaptis_executor::emulation::{self, Emulation, Sizes};
use adaptis_executor::launcher::{Fault, What};
use adaptis_executor::preset::cluster::{Cluster, ClusterError};
use adaptis_executor::preset::{self, model, model::Preset};
use adaptis_plan::{Pair, Plan, Problem};
use adaptis_planner::export::milliseconds;
use adaptis_planner::schedule::{self, Name};
use adaptis_planner::search::{Control, Options, Progress, search};
use adaptis_planner::simulate::simulate;
use adaptis_proto::RunId;
use anyhow::Result;
use std::io::Read;
use std::path::Path;

/// What a good plan's iteration takes once time is scaled.
const TARGET_NS: f64 = 500e6;
/// Microbatches of an iteration.
pub const MICROBATCHES: u32 = 16;
/// A longer text is not taken: every rank holds all of it.
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// Candidate plans looked at to know what a good plan takes.
const SCALING_EVALUATIONS: u64 = 3_000;

/// The project's own sources and documents: what the model reads unless told otherwise.
const OWN_TEXT: [&str; 10] = [
    include_str!("../../README.md"),
    include_str!("../../proto/src/ids.rs"),
    include_str!("../../proto/src/message/rank.rs"),
    include_str!("../../proto/src/sample.rs"),
    include_str!("../../proto/src/wire.rs"),
    include_str!("../../proto/plan/src/problem.rs"),
    include_str!("../../proto/plan/src/plan.rs"),
    include_str!("../../proto/plan/src/instruction.rs"),
    include_str!("../../executor/src/preset/model.rs"),
    include_str!("../../executor/src/preset/cluster.rs"),
];

/// An emulated cluster with a model on it.
pub struct Stage {
    /// What everything costs, in the time of the demo.
    pub truth: Problem,
    /// The layers that stand for the preset's.
    pub layers: Vec<model::PresetLayer>,
    /// Demo time over the cluster's own.
    pub time_scale: f64,
    /// The plan to start on, if the even split does not fit.
    pub start: Option<Plan>,
    /// What the even (or start) plan is, in words.
    pub start_text: &'static str,
}

/// The devices that a person asked for: a list, or a TOML file.
pub fn cluster(devices: &str) -> Result<Cluster> {
    let path = Path::new(devices);
    match path.extension().is_some_and(|extension| extension == "toml") {
        true => {
            let text = files::text(path).map_err(|error| failure::usage(format!("--devices {error}")))?;
            Cluster::from_toml(devices, &text).map_err(|error| match error {
                ClusterError::File { .. } => failure::usage(format!("--devices {error}")),
                other => failure::usage(format!("--devices {devices}: {other}")),
            })
        }
        false => Cluster::parse(devices).map_err(|error| {
            let hint = if path.is_file() { "; a file of devices is taken for one by its ending, .toml" } else { "" };
            failure::usage(format!("--devices {devices}: {error}{hint}"))
        }),
    }
}

/// The text to train on.
pub fn text(given: Option<&Path>) -> Result<Vec<u8>> {
    match given {
        None => Ok(OWN_TEXT.concat().into_bytes()),
        Some(path) => {
            let fail = |error: std::io::Error| failure::usage(format!("--text {}: {error}", path.display()));
            let file = std::fs::File::open(path).map_err(fail)?;
            let mut bytes = Vec::new();
            file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fail)?;
            if bytes.len() as u64 > TEXT_BYTES_MAX {
                let path = path.display();
                return Err(failure::usage(format!(
                    "--text {path}: more than {TEXT_BYTES_MAX} bytes; take a part of it"
                )));
            }
            Text::check(&bytes).map_err(|error| failure::usage(format!("--text {}: {error}", path.display())))?;
            Ok(bytes)
        }
    }
}

/// Puts a preset on a cluster and scales time so that a good plan takes half a second.
///
/// # Errors
/// The model does not fit, or it was asked to stop.
pub fn stage(preset: Preset, cluster: &Cluster, seed: u64, stop: &Stop) -> Result<Stage> {
    let layers = model::layers(preset);
    let problem = preset::problem(&layers, cluster, MICROBATCHES);
    problem.check().map_err(failure::usage)?;
    let options = Options { seed, evaluations: Some(SCALING_EVALUATIONS), ..Options::default() };
    let mut look = |_: &Progress| if stop.asked().is_some() { Control::Stop } else { Control::Go };
    let found = search(&problem, None, &options, &mut look);
    if let Some(signal) = stop.asked() {
        return Err(failure::Failure::Interrupted(signal).into());
    }
    let good =
        found.map_err(|infeasible| failure::negative(format!("the model does not fit these devices: {infeasible}")))?;
    let good_ns = simulate(&problem, &good.plan).map_err(failure::negative)?.iteration_ns;
    let time_scale = TARGET_NS / good_ns.max(1) as f64;
    let truth = preset::scale_time(&problem, time_scale);
    let fits = |plan: &Plan| simulate(&truth, plan).is_ok_and(|timeline| timeline.fits);
    let even = schedule::even(&truth);
    let is_eased = even.stages.iter().any(|stage| !stage.recompute.is_empty());
    let (start, start_text) = if fits(&even) && !is_eased {
        (None, "1F1B, layers split evenly by count")
    } else if fits(&even) {
        // The coordinator knows no activations before it has measured some, so it can't find this one by itself.
        let plan = Plan { predicted: None, ..even };
        (Some(plan), "1F1B, layers split evenly by count, all recomputed since they do not fit otherwise")
    } else if let Some(plan) = schedule::named(&truth, Name::OneFOneB).ok().filter(&fits) {
        (Some(plan), "1F1B on a partition by time, since the even split needs more memory than there is")
    } else {
        (Some(good.plan), "a searched plan, since no 1F1B plan fits the memory")
    };
    Ok(Stage { truth, layers, time_scale, start, start_text })
}

/// Sizes of the model that is really trained in the preset's place: small, since all devices share this machine.
const SHAPE: Sizes = Sizes { width: 32, heads: 4, hidden: 64, experts: 4, state: 32, sequence: 32, vocabulary: 256 };

impl Stage {
    /// The file that every rank reads.
    pub fn emulation(&self, arguments: &Arguments, dir: &Path, faults: &[Fault]) -> Emulation {
        let faults = faults.iter().filter_map(|fault| {
            let iteration = fault.iteration;
            match &fault.what {
                What::Throttle { device, factor } => {
                    Some(emulation::Fault::Throttle { iteration, device: device.clone(), factor: *factor })
                }
                What::SlowLink { between, factor } => {
                    Some(emulation::Fault::SlowLink { iteration, between: between.clone(), factor: *factor })
                }
                _ => None,
            }
        });
        let run = dir.file_name().map_or_else(|| "demo".into(), |name| name.to_string_lossy().into_owned());
        Emulation {
            format: emulation::FORMAT.to_owned(),
            note: Some(format!("{} on {}; {}", arguments.model, arguments.devices, self.scale_text())),
            job: emulation::Run { run: RunId(run), iterations: arguments.iterations },
            truth: self.truth.clone(),
            layer_types: self.layers.iter().map(|layer| layer.layer_type.to_string()).collect(),
            shape: SHAPE,
            seed: arguments.seed,
            text: dir.join("text.bin"),
            noise: arguments.noise,
            lengths: arguments.lengths,
            faults: faults.collect(),
            start_plan: self.start.clone(),
        }
    }

    /// The truth in force after so many iterations.
    pub fn truth_after(&self, faults: &[Fault], iterations: u64) -> Problem {
        let mut truth = self.truth.clone();
        for fault in faults.iter().filter(|fault| fault.iteration <= iterations) {
            match &fault.what {
                What::Throttle { device, factor } => {
                    if let Some(index) = truth.device_index(device) {
                        truth.devices[index].slowdown = self.truth.devices[index].slowdown * factor;
                    }
                }
                What::SlowLink { between: [a, b], factor } => {
                    self.slow_down(&mut truth, a, b, *factor);
                    self.slow_down(&mut truth, b, a, *factor);
                }
                What::KillRank { .. } | What::KillCoordinator | What::KillAgent { .. } | What::Pause { .. } => {}
            }
        }
        truth
    }

    fn slow_down(&self, truth: &mut Problem, from: &str, to: &str, factor: f64) {
        let (Some(sender), Some(receiver)) = (self.truth.device_index(from), self.truth.device_index(to)) else {
            return;
        };
        let link = self.truth.link(sender, receiver);
        truth.links.pairs.retain(|pair| pair.from != from || pair.to != to);
        truth.links.pairs.push(Pair {
            from: from.to_owned(),
            to: to.to_owned(),
            latency_ns: link.latency_ns,
            bytes_per_second: link.bytes_per_second / factor,
            note: None,
        });
    }

    /// The scale in words.
    pub fn scale_text(&self) -> String {
        let real_ns = (TARGET_NS / self.time_scale) as u64;
        format!(
            "1 s here is {:.3} s on that cluster (a good iteration there: {})",
            1.0 / self.time_scale,
            milliseconds(real_ns)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_plan::{Cost, audit};

    #[test]
    fn the_plan_that_ranks_start_on_fits() {
        for devices in [crate::demo::DEVICES, "2xa100-40g", "4xa100-40g"] {
            let cluster = Cluster::parse(devices).expect("devices");
            let stage = stage(Preset::Llama, &cluster, 1, &Stop::never()).expect("it fits");
            // What the coordinator makes of the even split: it knows no costs.
            let nothing = stage.truth.costs.iter().map(|(kind, of)| (kind.clone(), vec![Cost::default(); of.len()]));
            let blind = Problem { costs: nothing.collect(), ..stage.truth.clone() };
            let start = stage.start.clone().unwrap_or_else(|| schedule::even(&blind));
            assert!(audit(&stage.truth, &start).is_empty(), "{devices}: {}", stage.start_text);
        }
    }

    #[test]
    fn every_model_still_fits_when_any_one_device_is_lost() {
        for (name, preset) in Preset::NAMES {
            let cluster = Cluster::parse(crate::demo::DEVICES).expect("the default devices are devices");
            let whole = preset::problem(&model::layers(preset), &cluster, MICROBATCHES);
            for lost in 0..whole.devices.len() {
                let mut left = whole.clone();
                let gone = left.devices.remove(lost).name;
                left.links.pairs.retain(|pair| pair.from != gone && pair.to != gone);
                let options = Options { evaluations: Some(200), ..Options::default() };
                let found = search(&left, None, &options, &mut |_| Control::Go);
                let outcome = found.unwrap_or_else(|error| panic!("{name} without {gone}: {error}"));
                assert!(audit(&left, &outcome.plan).is_empty(), "{name} without {gone}");
            }
        }
    }
}
