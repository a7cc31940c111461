//! `adaptis status`: where does a run stand?

use crate::{failure, files, keys};
use adaptis_link::{Client, Limits};
use adaptis_planner::export::milliseconds;
use adaptis_proto::message::{Answer, Ask, FromCoordinator, PeakMemory, Status, ToCoordinator};
use adaptis_proto::wire;
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Asks a running coordinator where things stand.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  adaptis status --coordinator tcp://127.0.0.1:29611 --json")]
pub struct Arguments {
    /// Address of the coordinator
    #[arg(long, env = "ADAPTIS_COORDINATOR", default_value = "tcp://127.0.0.1:29611")]
    coordinator: String,
    /// Folder of keys, made by `adaptis keys`
    #[arg(long, env = "ADAPTIS_KEYS", value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Under which name of that folder to ask
    #[arg(long, default_value = "server", value_name = "NAME")]
    name: String,
    /// Print all of it as JSON
    #[arg(long)]
    json: bool,
}

/// What the coordinator gets to answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// What it gets to tell of memory and of figures: one of a version before does not know the question.
const LATER_TIMEOUT: Duration = Duration::from_secs(1);

pub fn run(arguments: Arguments) -> Result<()> {
    let security = keys::security(arguments.keys.as_deref(), &arguments.name)?;
    let identity = format!("status/{}", std::process::id());
    let client = Client::connect(&arguments.coordinator, &identity, &security, Limits::default())
        .map_err(|error| failure::usage(format!("--coordinator: {error}")))?;
    let Some(Answer::Status(status)) = ask(&client, Ask::Status, TIMEOUT)? else {
        return Err(failure::environment(format!(
            "no answer from {} within {} s: is a coordinator running there, and with the same keys?",
            arguments.coordinator,
            TIMEOUT.as_secs()
        )));
    };
    let memory = match ask(&client, Ask::Memory, LATER_TIMEOUT)? {
        Some(Answer::Memory(memory)) => memory,
        _ => Vec::new(),
    };
    let figures = match ask(&client, Ask::Figures, LATER_TIMEOUT)? {
        Some(Answer::Figures(figures)) => figures,
        _ => Vec::new(),
    };
    match arguments.json {
        true => {
            let mut status = serde_json::to_value(&status)?;
            status["memory"] = serde_json::to_value(&memory)?;
            status["figures"] = serde_json::to_value(figures.into_iter().collect::<BTreeMap<_, _>>())?;
            files::print(&format!("{status:#}\n"))
        }
        false => files::print(&table(&status, &memory, &figures)),
    }
}

/// The coordinator's answer; none in time.
fn ask(client: &Client, ask: Ask, timeout: Duration) -> Result<Option<Answer>> {
    client.send(wire::encode(&ToCoordinator::Ask(ask)))?;
    let Some(bytes) = client.receive(timeout)? else { return Ok(None) };
    match wire::decode(&bytes).map_err(failure::environment)? {
        FromCoordinator::Answer(answer) => Ok(Some(answer)),
        _ => Err(failure::environment("the coordinator answered something else")),
    }
}

fn table(status: &Status, memory: &[PeakMemory], figures: &[(String, u64)]) -> String {
    let mut out = String::new();
    if status.iterations == 0 && status.devices.is_empty() && status.failure.is_none() {
        return "no run yet: waiting for ranks\n".to_owned();
    }
    let done = status.iterations_done();
    let of = match status.iterations {
        0 => String::new(),
        all => format!(" of {all}"),
    };
    let _ = writeln!(
        out,
        "run {}: {:?}, {done}{of} iterations done, plan {}, {} switches",
        status.run, status.state, status.place.epoch, status.switches
    );
    if let (Some(duration_ns), Some(predicted_ns)) = (status.duration_ns, status.predicted_ns) {
        let _ = writeln!(out, "{} an iteration, predicted {}", milliseconds(duration_ns), milliseconds(predicted_ns));
    }
    for device in &status.devices {
        let layers: Vec<String> =
            device.stages.iter().map(|(from, to)| format!("{from}-{}", to.saturating_sub(1))).collect();
        let share = device.bubble.map_or("-".to_owned(), |share| format!("{:.0}%", share * 100.0));
        let peak = memory.iter().find(|peak| peak.epoch == status.place.epoch && peak.device == device.name);
        let peak = peak.map_or(String::new(), in_gibibytes);
        let (name, kind, layers) = (&device.name, &device.kind, layers.join(","));
        let _ = writeln!(out, "{name:<10} {kind:<12} idle {share:>4}  {peak}layers {layers}");
    }
    // Where the costs that plans are made by come from: of a device, layer and phase each.
    let figures: Vec<String> =
        figures.iter().map(|(source, count)| format!("{count} {}", source.replace('_', " "))).collect();
    if !figures.is_empty() {
        let _ = writeln!(out, "costs: {}", figures.join(", "));
    }
    if let Some(decision) = &status.last_decision {
        let _ = writeln!(out, "last decision, iteration {}: {decision}", status.last_decision_step.map_or(0, |s| s.0));
    }
    if let Some(failure) = &status.failure {
        let _ = writeln!(out, "failed: {failure}");
    }
    out
}

/// A peak of memory, and by how much it is more than was predicted.
fn in_gibibytes(peak: &PeakMemory) -> String {
    let gibibytes = |bytes: u64| bytes as f64 / (1_u64 << 30) as f64;
    let more = match peak.shortfall_bytes() {
        None | Some(0) => String::new(),
        Some(bytes) if peak.is_close() => format!(" ({:.1} above plan, most of what was left)", gibibytes(bytes)),
        Some(bytes) => format!(" ({:.1} above plan)", gibibytes(bytes)),
    };
    format!("memory {:.1} of {:.1} GiB{more}  ", gibibytes(peak.measured_bytes), gibibytes(peak.memory_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_above_its_plan_is_told() {
        let gib = |of: u64| of << 30;
        let status = Status {
            place: adaptis_proto::sample::Place { epoch: Epoch(2), ..Default::default() },
            devices: vec![DeviceStatus { name: "gpu1".into(), stages: vec![(0, 4)], ..DeviceStatus::default() }],
            ..Status::default()
        };
        let peak = |predicted: Option<u64>, measured_bytes| PeakMemory {
            epoch: Epoch(2),
            device: "gpu1".into(),
            predicted_bytes: predicted.map(gib),
            measured_bytes,
            memory_bytes: gib(40),
        };
        for (of, expected) in [
            (peak(None, gib(30)), "memory 30.0 of 40.0 GiB  layers 0-3"),
            (peak(Some(32), gib(30)), "memory 30.0 of 40.0 GiB  layers"),
            (peak(Some(28), gib(30)), "memory 30.0 of 40.0 GiB (2.0 above plan)  layers"),
            (peak(Some(39), gib(41)), "memory 41.0 of 40.0 GiB (2.0 above plan, most of what was left)  layers"),
            (PeakMemory { epoch: Epoch(1), ..peak(None, 1) }, "idle    -  layers 0-3"),
        ] {
            let table = table(&status, std::slice::from_ref(&of), &[]);
            assert!(table.contains(expected), "{table}");
        }
    }

    #[test]
    fn where_costs_come_from_is_told() {
        let status = Status { iterations: 4, ..Status::default() };
        let figures = [("measured".to_owned(), 7), ("earlier_jobs".to_owned(), 5)];
        let table = table(&status, &[], &figures);
        assert!(table.contains("costs: 7 measured, 5 earlier jobs\n"), "{table}");
    }
    use adaptis_proto::message::{DeviceStatus, State};
    use adaptis_proto::{Epoch, RunId, Step};

    #[test]
    fn a_finished_run_has_done_all_its_iterations() {
        let mut status = Status { run: RunId("one".into()), iterations: 40, ..Status::default() };
        assert!(table(&status, &[], &[]).contains("0 of 40 iterations done"), "{}", table(&status, &[], &[]));
        (status.state, status.place.step, status.duration_ns) = (State::Training, Step(38), Some(1));
        assert!(table(&status, &[], &[]).contains("39 of 40 iterations done"), "{}", table(&status, &[], &[]));
        (status.state, status.duration_ns) = (State::Finished, None);
        assert!(
            table(&status, &[], &[]).starts_with("run one: Finished, 40 of 40 iterations done"),
            "{}",
            table(&status, &[], &[])
        );
        assert_eq!(table(&Status::default(), &[], &[]), "no run yet: waiting for ranks\n");
    }
}
