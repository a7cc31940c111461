//! The end of a run: pictures, and a table of what happened.

use super::gains::{self, Gain};
use super::pictures::{self, Wanted};
use crate::{failure, files};
use adaptis_plan::Plan;
use adaptis_planner::export::{Panel, milliseconds, perfetto, svg};
use adaptis_proto::rates::Calibrated;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;

/// From this share of late time on, the summary says what it does to the figures.
const LATE_SHARE_NOTED: f64 = 0.01;

/// What this reads of an `adaptis.report/1`.
#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    configuration: Configuration,
    devices: Vec<Device>,
    iterations: Vec<Iteration>,
    final_state_digest: Option<String>,
    #[serde(default)]
    failure: Option<String>,
    faults: Vec<Fault>,
    decisions: Vec<Decision>,
    switches: Vec<Switch>,
    phases: Vec<Phase>,
    #[serde(default)]
    counters: serde_json::Map<String, serde_json::Value>,
}

#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    mode: String,
}

#[derive(Deserialize)]
struct Device {
    kind: String,
}

#[derive(Deserialize)]
struct Iteration {
    index: u64,
    epoch: u64,
    duration_ns: u64,
    loss: Option<f64>,
}

#[derive(Deserialize)]
struct Fault {
    iteration: u64,
    text: String,
}

impl Fault {
    /// A device or link is slower from here on: this is what iterations show.
    fn is_slow(&self) -> bool {
        self.text.starts_with("throttle") || self.text.starts_with("slowlink")
    }
}

#[derive(Deserialize)]
struct Decision {
    iteration: u64,
    text: String,
}

#[derive(Deserialize)]
struct Switch {
    iteration: u64,
    from: u64,
    to: u64,
    layers_moved: u64,
    bytes_moved: u64,
    pause_ns: u64,
}

#[derive(Deserialize)]
struct Phase {
    from: u64,
    to: u64,
    epoch: u64,
    measured_median_ns: Option<u64>,
    predicted_ns: Option<u64>,
    #[serde(default)]
    change: Option<String>,
}

impl Report {
    /// Nothing was to be decided.
    fn is_observed(&self) -> bool {
        self.configuration.mode == "observe"
    }
}

/// Draws the pictures and prints the table.
pub fn finish(dir: &Path, json: bool) -> Result<()> {
    let path = dir.join("report.json");
    let report: Report = serde_json::from_str(&files::text(&path)?)
        .map_err(|error| failure::environment(format!("{}: {error}", path.display())))?;
    // The table is worth more than its pictures.
    let drawn = draw(dir, &report).context("no pictures");
    if json {
        let answer = serde_json::json!({
            "report": path,
            "switches": report.switches.len(),
            "final_state_digest": report.final_state_digest,
            "is_to_the_bit": dir.join("truth.json").exists() || is_of_hosts(&report),
            "last_phase_median_ns": report.phases.last().and_then(|phase| phase.measured_median_ns),
            "last_phase_predicted_ns": report.phases.last().and_then(|phase| phase.predicted_ns),
        });
        files::print(&format!("{answer:#}\n"))?;
    } else {
        files::print(&text(dir, &report))?;
    }
    drawn
}

/// So many iterations before one that is worth a picture may stand for it: some have their layers measured, not all.
const STANDS_FOR: u64 = 256;

/// An iteration worth a picture.
struct Shown {
    step: u64,
    /// The first one that shows the same, on the same plan.
    since: u64,
    title: String,
}

/// The iterations worth a picture, with what they show.
fn worth_showing(report: &Report) -> Vec<Shown> {
    let last = report.iterations.last().map_or(0, |row| row.index);
    let happened = || report.faults.iter().filter(|fault| fault.iteration <= last && fault.iteration > 0);
    let fault = happened().find(|fault| fault.is_slow()).or_else(|| happened().next());
    let mut shown = Vec::new();
    let mut show = |step, since, title: &str| shown.push(Shown { step, since, title: title.to_owned() });
    match fault {
        Some(fault) => {
            let switch = report.switches.iter().find(|switch| switch.iteration > fault.iteration);
            show(fault.iteration - 1, 0, "before");
            // The last one under the fault on the old plan.
            let under = switch.map_or(last, |switch| switch.iteration - 1);
            show(under, fault.iteration, &format!("under the fault ({}), on the old plan", fault.text));
            if let Some(switch) = switch {
                let next = report.switches.iter().find(|next| next.iteration > switch.iteration);
                let settled = next.map_or(last, |next| next.iteration - 1);
                let after = settled.min(switch.iteration + 3);
                show(after, switch.iteration, "under the fault, on the new plan");
            }
        }
        None => {
            if let Some(switch) = report.switches.first() {
                show(switch.iteration.saturating_sub(1), 0, "on the start plan");
            }
            show(last, 0, "at the end");
        }
    }
    shown
}

fn draw(dir: &Path, report: &Report) -> Result<()> {
    let kinds: Vec<String> = report.devices.iter().map(|device| device.kind.clone()).collect();
    let mut panels: Vec<Panel> = Vec::new();
    for Shown { step, since, title } in worth_showing(report) {
        let Some(row) = report.iterations.iter().rev().find(|row| row.index == step) else { continue };
        let path = dir.join("plans").join(format!("epoch-{}.json", row.epoch));
        let plan = Plan::read(&files::text(&path)?).with_context(|| path.display().to_string())?;
        let alike = report.iterations.iter().filter(|other| other.epoch == row.epoch).map(|other| other.index);
        let first = alike.filter(|&index| index >= since.max(step.saturating_sub(STANDS_FOR))).min().unwrap_or(step);
        let samples = |steps| adaptis_coordinator::work_of(dir, steps).map_err(failure::environment);
        let mut found = samples(step..=step)?;
        let step = match pictures::measured(&plan, &found, step) {
            Some(step) => step,
            None => {
                found = samples(first..=step)?;
                pictures::measured(&plan, &found, step).unwrap_or(step)
            }
        };
        panels.extend(pictures::panel(&Wanted { step, title: &title, plan: &plan }, &kinds, &found));
    }
    files::write(&dir.join("timeline.svg"), svg::draw("Measured iterations", &panels).as_bytes())?;
    files::write(&dir.join("trace.json"), perfetto::write(&panels).as_bytes())
}

fn text(dir: &Path, report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "\n{:<34} {:>10} {:>5} {:>12} {:>12} {:>7}",
        "phase", "iterations", "plan", "measured", "predicted", "off"
    );
    for (index, phase) in report.phases.iter().enumerate() {
        let off = match (phase.measured_median_ns, phase.predicted_ns) {
            (Some(measured), Some(predicted)) if measured > 0 => {
                signed_percent(predicted as f64 / measured as f64 - 1.0)
            }
            _ => "-".to_owned(),
        };
        let time = |ns: Option<u64>| ns.map_or("-".to_owned(), milliseconds);
        let _ = writeln!(
            out,
            "{:<34} {:>10} {:>5} {:>12} {:>12} {:>7}",
            title(report, index),
            format!("{}-{}", phase.from, phase.to),
            phase.epoch,
            time(phase.measured_median_ns),
            time(phase.predicted_ns),
            off
        );
    }
    gains(&mut out, report);
    out.push('\n');
    for (iteration, text) in events(report) {
        let _ = writeln!(out, "{}", folded(&format!("iteration {iteration:>4}  {text}")));
    }
    closing(&mut out, dir, report);
    out
}

/// A share as a percentage with its sign, where it has one.
fn signed_percent(share: f64) -> String {
    match format!("{:+.1}%", share * 100.0) {
        zero if zero == "-0.0%" || zero == "+0.0%" => "0.0%".to_owned(),
        other => other,
    }
}

/// What happened, in order: faults, decisions or what they would be about, switches.
fn events(report: &Report) -> Vec<(u64, String)> {
    let last = report.iterations.last().map_or(0, |row| row.index);
    let happened = report.faults.iter().filter(|fault| fault.iteration <= last);
    let faults = happened.map(|fault| (fault.iteration, format!("fault made on purpose: {}", fault.text)));
    let decisions = report.decisions.iter().map(|decision| (decision.iteration, decision.text.clone()));
    let switches = report.switches.iter().map(|switch| {
        let text = format!(
            "plan {} -> {}: {} layers moved, {:.2} GB, training paused for {}",
            switch.from,
            switch.to,
            switch.layers_moved,
            switch.bytes_moved as f64 / 1e9,
            milliseconds(switch.pause_ns)
        );
        (switch.iteration, text)
    });
    // A decision says what it is made for; where none is made, changes are told by themselves.
    let untold = report.phases.iter().filter(|_| report.is_observed());
    let changes = untold.filter_map(|phase| Some((phase.from, phase.change.clone()?)));
    let mut events: Vec<(u64, String)> = faults.chain(decisions).chain(switches).chain(changes).collect();
    events.sort_by_key(|&(iteration, _)| iteration);
    events
}

/// A line that a terminal would cut, cut at words; as it is elsewhere.
fn folded(line: &str) -> String {
    match std::io::stdout().is_terminal() {
        true => textwrap::fill(line, textwrap::Options::with_termwidth().subsequent_indent("                ")),
        false => line.to_owned(),
    }
}

/// What a phase was, in words.
fn title(report: &Report, index: usize) -> String {
    let phase = &report.phases[index];
    let fault = report.faults.iter().rfind(|fault| fault.is_slow() && fault.iteration <= phase.from + 1);
    let plan = match report.phases[..index].last() {
        None => "start plan",
        Some(before) if before.epoch == phase.epoch => "same plan",
        Some(_) => "new plan",
    };
    match fault {
        Some(fault) => format!("{} {plan}", fault.text),
        None => plan.to_owned(),
    }
}

fn gains(out: &mut String, report: &Report) {
    let durations = |phase: &Phase| -> Vec<u64> {
        let of = report.iterations.iter().filter(|row| (phase.from..=phase.to).contains(&row.index));
        of.map(|row| row.duration_ns).filter(|&ns| ns > 0).collect()
    };
    for (before, after) in report.phases.iter().zip(report.phases.iter().skip(1)) {
        if after.epoch == before.epoch {
            continue;
        }
        let Some(Gain { ratio, is_sure }) = gains::gain(&durations(before), &durations(after)) else { continue };
        let plans = format!("plan {} -> {}", before.epoch, after.epoch);
        let _ = match is_sure {
            true => {
                writeln!(out, "{plans}: an iteration takes {ratio:.2} of what it took ({:.2}x as fast)", ratio.recip())
            }
            false => writeln!(
                out,
                "{plans}: an iteration takes about what it took ({ratio:.2} of it, and they differ by that much of themselves)"
            ),
        };
    }
}

/// Whether all that computed were hosts, whose kernels add up in one order.
fn is_of_hosts(report: &Report) -> bool {
    report.devices.iter().all(|device| Calibrated::of_kind(&device.kind) == Calibrated::Host)
}

/// How far losses and state are those of a run without changes of plan.
fn sameness(is_to_the_bit: bool) -> &'static str {
    match is_to_the_bit {
        true => {
            "losses and state are those without changes of plan, to the bit, where what layers keep is their own \
             (of a parameter that layers share the sum follows the plan's order)"
        }
        false => {
            "losses and state are those without changes of plan, but for the order in which kernels of GPUs add up; to the \
             bit where the job calls torch.use_deterministic_algorithms(True)"
        }
    }
}

fn closing(out: &mut String, dir: &Path, report: &Report) {
    let loss = |row: Option<&Iteration>| row.and_then(|row| row.loss);
    let losses = match (loss(report.iterations.first()), loss(report.iterations.last())) {
        (Some(first), Some(last)) => format!(", loss {first:.3} -> {last:.3}"),
        _ => String::new(),
    };
    let total_ns: u64 = report.iterations.iter().map(|row| row.duration_ns).sum();
    if report.iterations.is_empty() {
        let _ = writeln!(out, "\nno iteration was measured: the job ended before it was followed");
    } else {
        let mode = Some(&report.configuration.mode).filter(|mode| !mode.is_empty());
        let mode = mode.map_or_else(String::new, |mode| format!(", mode {mode}"));
        let _ = writeln!(out, "\n{} iterations in {}{losses}{mode}", report.iterations.len(), milliseconds(total_ns));
    }
    let end = match (&report.failure, &report.final_state_digest) {
        (Some(failure), _) => format!("the run failed: {failure}"),
        (None, Some(digest)) => format!("final state {digest}"),
        (None, None) => "how it ended was not recorded: a rank was gone without a word, or all were".to_owned(),
    };
    let _ = writeln!(out, "{end}");
    let is_emulated = dir.join("truth.json").exists();
    if report.failure.is_none() && report.final_state_digest.is_some() && !report.switches.is_empty() {
        let _ = writeln!(out, "{}", sameness(is_emulated || is_of_hosts(report)));
    }
    if is_emulated {
        pace(out, report, total_ns);
    }
    if report.is_observed() && !report.iterations.is_empty() {
        let _ = writeln!(
            out,
            "it was observed: with --mode advise you are told what plan would be better, with --mode adapt a script that trains \
             with adaptis.Schedule goes over to it"
        );
    }
    let advice = dir.join("advice");
    if advice.join("plan.json").exists() {
        let at = advice.display();
        let _ = writeln!(out, "a better plan: adaptis export {at}/problem.json {at}/plan.json --to torch");
    }
    let shown = std::env::current_dir().ok().and_then(|here| dir.strip_prefix(here).ok().map(Path::to_path_buf));
    let shown = shown.unwrap_or_else(|| dir.to_path_buf());
    let _ = writeln!(
        out,
        "files in {}: report.json, timeline.svg, trace.json (ui.perfetto.dev), {}plans, store.db, logs",
        shown.display(),
        if is_emulated { "truth.json, " } else { "" }
    );
}

/// How far the host kept the pace of emulated devices.
fn pace(out: &mut String, report: &Report, total_ns: u64) {
    let late_ns: u64 = report
        .counters
        .iter()
        .filter(|(name, _)| name.ends_with(".late_ns"))
        .filter_map(|(_, value)| value.as_u64())
        .sum();
    let late_share = late_ns as f64 / (total_ns.max(1) * report.devices.len().max(1) as u64) as f64;
    let _ = writeln!(
        out,
        "work too slow for its pace: {} over all devices ({:.2}% of their time)",
        milliseconds(late_ns),
        late_share * 100.0
    );
    if late_share > LATE_SHARE_NOTED {
        out.push_str(
            "  this machine was too busy to keep the pace of the emulated devices: the times above are partly its own; \
             run again when it is quiet, or with fewer devices\n",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_that_round_to_nothing_have_no_sign() {
        for (share, text) in [(0.0004, "0.0%"), (-0.0004, "0.0%"), (-0.012, "-1.2%"), (0.03, "+3.0%")] {
            assert_eq!(signed_percent(share), text);
        }
    }

    /// A report of switches at some iterations, with an iteration at the end.
    fn report(last: u64, faults: serde_json::Value, decisions: serde_json::Value, switches: &[u64]) -> Report {
        let switch = |(at, iteration): (usize, &u64)| {
            let (from, to) = (at + 1, at + 2);
            serde_json::json!({
                "iteration": iteration, "from": from, "to": to, "layers_moved": 1, "bytes_moved": 0, "pause_ns": 7
            })
        };
        serde_json::from_value(serde_json::json!({
            "devices": [{ "kind": "cpu" }],
            "iterations": [{ "index": last, "epoch": 2, "duration_ns": 5, "loss": 1.5 }],
            "final_state_digest": null,
            "faults": faults,
            "decisions": decisions,
            "switches": switches.iter().enumerate().map(switch).collect::<Vec<_>>(),
            "phases": []
        }))
        .expect("a report")
    }

    #[test]
    fn how_a_run_ended_is_told() {
        let none = serde_json::json!([]);
        let mut ended = report(3, none.clone(), none, &[]);
        let told = |report: &Report| text(Path::new("run"), report);
        assert!(told(&ended).contains("how it ended was not recorded"));
        ended.final_state_digest = Some("5a7b".to_owned());
        assert!(told(&ended).contains("final state 5a7b") && !told(&ended).contains("not recorded"));
        assert!(!told(&ended).contains("without changes of plan"), "there was none");
        let mut changed = report(3, serde_json::json!([]), serde_json::json!([]), &[2]);
        changed.final_state_digest = Some("5a7b".to_owned());
        assert!(told(&changed).contains("those without changes of plan, to the bit"));
        changed.devices[0].kind = "h100-80g".to_owned();
        assert!(told(&changed).contains("in which kernels of GPUs add up; to the bit where"));
        ended.failure = Some("rank1 did not answer within 30.0 s".to_owned());
        assert!(told(&ended).contains("the run failed: rank1 did not answer") && !told(&ended).contains("5a7b"));
    }

    #[test]
    fn the_picture_is_of_the_fault_that_slows_something() {
        let faults = serde_json::json!([
            { "iteration": 10, "text": "kill:coordinator" },
            { "iteration": 24, "text": "throttle:gpu1:1.8" }
        ]);
        let shown = worth_showing(&report(45, faults, serde_json::json!([]), &[8, 28]));
        let spans: Vec<(u64, u64)> = shown.iter().map(|shown| (shown.since, shown.step)).collect();
        assert_eq!(spans, [(0, 23), (24, 27), (28, 31)]);
        assert!(shown[1].title.contains("throttle:gpu1:1.8"), "{}", shown[1].title);
    }

    #[test]
    fn a_fault_that_no_phase_shows_stands_among_the_events() {
        let faults = serde_json::json!([
            { "iteration": 4, "text": "throttle:gpu1:1.8" },
            { "iteration": 20, "text": "kill:gpu0" }
        ]);
        let decisions = serde_json::json!([{ "iteration": 3, "text": "switch" }, { "iteration": 8, "text": "keep" }]);
        let events = events(&report(9, faults, decisions, &[5]));
        let iterations: Vec<u64> = events.iter().map(|&(iteration, _)| iteration).collect();
        assert_eq!(iterations, [3, 4, 5, 8], "in order, without what never happened");
        assert!(events[1].1.contains("throttle:gpu1:1.8"), "{}", events[1].1);
    }
}
