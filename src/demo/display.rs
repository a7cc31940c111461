//! The live display of a demo: a calm block on a terminal, one line now and then elsewhere.

use crate::files;
use adaptis_planner::export::{milliseconds, ranges_text};
use adaptis_proto::Step;
use adaptis_proto::message::{State, Status};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Off a terminal, one line per so many iterations.
const LINE_EVERY: u64 = 10;
/// Lines that the last decision may take.
const DECISION_LINES: usize = 3;
/// Columns before a line of the block.
const INDENT: usize = 2;

/// Shows where a demo stands.
pub struct Display {
    block: Option<Block>,
    last_line: Option<u64>,
    last_decision: Option<(Option<Step>, String)>,
    /// Off a terminal: it was said that the coordinator is away.
    is_away: bool,
}

struct Block {
    progress: MultiProgress,
    head: ProgressBar,
    devices: Vec<ProgressBar>,
    decision: [ProgressBar; DECISION_LINES],
}

impl Display {
    /// For so many devices and iterations.
    pub fn new(devices: usize, iterations: u64) -> Display {
        let block = std::io::stderr().is_terminal().then(|| {
            let progress = MultiProgress::new();
            let style = |template| ProgressStyle::with_template(template).expect("the template is well formed");
            let head = progress.add(ProgressBar::new(iterations));
            head.set_style(style("{bar:30} {pos:>4} of {len}  {msg}").progress_chars("=> "));
            let line = || {
                let bar = progress.add(ProgressBar::new_spinner());
                bar.set_style(style("  {wide_msg}"));
                bar
            };
            let devices = (0..devices).map(|_| line()).collect();
            Block { decision: std::array::from_fn(|_| line()), devices, head, progress }
        });
        Display { block, last_line: None, last_decision: None, is_away: false }
    }

    /// Says a thing once, above the block.
    pub fn say(&self, text: &str) {
        match &self.block {
            Some(block) => drop(block.progress.println(text)),
            None => files::say(text),
        }
    }

    /// Shows a status. `step` is what the ranks themselves say, also while the coordinator is away.
    pub fn show(&mut self, status: &Status, step: u64, away: bool) {
        let decision = status.last_decision.clone().map(|text| (status.last_decision_step, text));
        if decision.is_some() && decision != self.last_decision {
            if self.block.is_none()
                && let Some((at, text)) = &decision
            {
                files::say(&format!("iteration {:>4}  {text}", at.map_or(0, |at| at.0)));
            }
            self.last_decision = decision;
        }
        match &self.block {
            Some(block) => block.show(status, step, away, self.last_decision.as_ref()),
            None if away != self.is_away && step > 0 => {
                self.is_away = away;
                let text = if away { head_text(status, step, away) } else { "the coordinator is back".to_owned() };
                files::say(&format!("iteration {step:>4}  {text}"));
            }
            None if step >= self.last_line.map_or(0, |last| last + LINE_EVERY) && step > 0 => {
                self.last_line = Some(step);
                files::say(&format!("iteration {step:>4}  {}", head_text(status, step, away)));
            }
            None => {}
        }
    }

    /// Takes the block away.
    pub fn end(&self) {
        if let Some(block) = &self.block {
            let _ = block.progress.clear();
        }
    }
}

impl Block {
    fn show(&self, status: &Status, step: u64, away: bool, decision: Option<&(Option<Step>, String)>) {
        self.head.set_position(step.max(status.iterations_done()));
        self.head.set_message(head_text(status, step, away));
        for (bar, device) in self.devices.iter().zip(&status.devices) {
            bar.set_message(format!(
                "{:<8} {:<12} idle {:>4}  takes {:>5} its kind's time  layers {}",
                device.name,
                device.kind,
                device.bubble.map_or("-".into(), |share| format!("{:.0}%", share * 100.0)),
                device.slowdown.map_or("-".into(), |factor| format!("{factor:.2}x")),
                ranges_text(device.stages.iter().copied()),
            ));
        }
        let decision = match decision {
            Some((at, text)) => format!("last decision, iteration {}: {text}", at.map_or(0, |at| at.0)),
            None => "no decision yet: measuring".to_owned(),
        };
        let lines = textwrap::wrap(&decision, textwrap::termwidth().saturating_sub(INDENT));
        for (at, bar) in self.decision.iter().enumerate() {
            bar.set_message(lines.get(at).map_or(String::new(), |line| line.clone().into_owned()));
        }
    }
}

fn head_text(status: &Status, step: u64, away: bool) -> String {
    if away && status.iterations > 0 && step + 1 >= status.iterations {
        return "the coordinator is away; its return is awaited to record the end".to_owned();
    }
    if away {
        return "the coordinator is away; training goes on".to_owned();
    }
    let doing = match status.state {
        State::Waiting => "waiting for ranks",
        State::Training => "training",
        State::Searching => "searching a plan",
        State::Preparing => "preparing a plan",
        State::Finished => "finished",
        State::Failed => "failed",
    };
    let mut parts = Vec::new();
    parts.extend(status.loss.map(|loss| format!("loss {loss:.3}")));
    parts.extend(status.duration_ns.map(milliseconds));
    parts.extend(status.predicted_ns.map(|ns| format!("predicted {}", milliseconds(ns))));
    parts.extend(bubble(status).map(|share| format!("idle {:.0}%", share * 100.0)));
    parts.push(format!("plan {}", status.place.epoch));
    parts.push(doing.to_owned());
    parts.join("  ")
}

/// The mean bubble over the devices.
fn bubble(status: &Status) -> Option<f64> {
    let shares: Vec<f64> = status.devices.iter().filter_map(|device| device.bubble).collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}
