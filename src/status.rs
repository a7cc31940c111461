//! `adaptis status`: where does a run stand?

use crate::{failure, files, keys};
use adaptis_link::{Client, Limits};
use adaptis_planner::export::milliseconds;
use adaptis_proto::message::{Answer, Ask, FromCoordinator, Status, ToCoordinator};
use adaptis_proto::wire;
use anyhow::Result;
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

pub fn run(arguments: Arguments) -> Result<()> {
    let security = keys::security(arguments.keys.as_deref(), &arguments.name)?;
    let identity = format!("status/{}", std::process::id());
    let client = Client::connect(&arguments.coordinator, &identity, &security, Limits::default())
        .map_err(|error| failure::usage(format!("--coordinator: {error}")))?;
    client.send(wire::encode(&ToCoordinator::Ask(Ask::Status)))?;
    let bytes = client.receive(TIMEOUT)?.ok_or_else(|| {
        failure::environment(format!(
            "no answer from {} within {} s: is a coordinator running there, and with the same keys?",
            arguments.coordinator,
            TIMEOUT.as_secs()
        ))
    })?;
    let status = match wire::decode(&bytes).map_err(failure::environment)? {
        FromCoordinator::Answer(Answer::Status(status)) => status,
        _ => return Err(failure::environment("the coordinator answered something else")),
    };
    match arguments.json {
        true => files::print(&format!("{:#}\n", serde_json::to_value(&status)?)),
        false => files::print(&table(&status)),
    }
}

fn table(status: &Status) -> String {
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
        let _ = writeln!(out, "{:<10} {:<12} idle {share:>4}  layers {}", device.name, device.kind, layers.join(","));
    }
    let figures: Vec<String> = figures(status).map(|(source, count)| format!("{count} {source}")).collect();
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

/// Where the costs that plans are made by come from: of a device, layer and phase each.
fn figures(status: &Status) -> impl Iterator<Item = (String, u64)> {
    let of_source = |(name, count): &(String, u64)| Some((name.strip_prefix("figures.")?.replace('_', " "), *count));
    status.counters.iter().filter_map(of_source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::message::State;
    use adaptis_proto::{RunId, Step};

    #[test]
    fn a_finished_run_has_done_all_its_iterations() {
        let mut status = Status { run: RunId("one".into()), iterations: 40, ..Status::default() };
        assert!(table(&status).contains("0 of 40 iterations done"), "{}", table(&status));
        (status.state, status.place.step, status.duration_ns) = (State::Training, Step(38), Some(1));
        assert!(table(&status).contains("39 of 40 iterations done"), "{}", table(&status));
        (status.state, status.duration_ns) = (State::Finished, None);
        assert!(table(&status).starts_with("run one: Finished, 40 of 40 iterations done"), "{}", table(&status));
        assert_eq!(table(&Status::default()), "no run yet: waiting for ranks\n");
    }
}
