//! What the plan of a recorded job stands on: measured, predicted, guessed.

use super::clocks::Clocks;
use crate::failure;
use adaptis_coordinator::next_job::{NextJob, Predicted};
use adaptis_coordinator::profiles::MeasuredPhase;
use adaptis_coordinator::profiles::evidence::Chosen;
use adaptis_plan::{Plan, Problem};
use adaptis_planner::export::milliseconds;
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Layers of a signature that a text names; more are counted.
const NAMED_MAX: usize = 2;

/// A problem and what it stands on.
pub struct Basis {
    pub(super) next: NextJob,
    pub(super) run: String,
    pub(super) stores: Vec<String>,
    pub(super) chosen: Vec<Chosen>,
    /// By kind: where its memory is from.
    pub(super) memory: BTreeMap<String, &'static str>,
    /// Which profiles did not count.
    pub(super) clocks: Clocks,
}

impl Basis {
    /// What is to be planned.
    pub fn problem(&self) -> &Problem {
        &self.next.problem
    }

    /// What was measured, predicted and guessed, in words.
    pub fn text(&self) -> String {
        let mut out = format!("job {}, profiles of {}\n", self.run, self.stores.join(" and "));
        for (kind, (times, samples)) in &self.next.measured {
            out += &format!("measured: {times} times on {kind}, {samples} samples\n");
        }
        for (kind, origin) in &self.memory {
            out += &format!("memory of {kind}: by {origin}\n");
        }
        for chosen in &self.chosen {
            let software = if chosen.software.is_empty() { "without a name" } else { &chosen.software };
            out += &format!("of several softwares on {}: the newest, {software}\n", chosen.kind);
        }
        out += &self.clocks.text();
        let is_one = |a: &Predicted, b: &Predicted| (&a.kind, &a.signature) == (&b.kind, &b.signature);
        for of_layers in self.next.predicted.chunk_by(is_one) {
            let Predicted { kind, signature, .. } = &of_layers[0];
            let times = of_layers.iter().map(interval).collect::<Vec<_>>().join(", ");
            out += &format!("predicted: {} on {kind}, in ms at 90%: {times}\n", self.layers_text(signature));
        }
        for remark in &self.next.remarks {
            out += &format!("{remark}\n");
        }
        out + "guessed: a boundary takes no time, and no device is slower than its kind\n"
    }

    /// How far a plan rests on predictions, in words.
    pub fn reliance(&self, plan: &Plan) -> Result<String> {
        let Some(reliance) = self.next.reliance(plan).map_err(failure::negative)? else {
            return Ok("no time of the plan is predicted: all were measured on their kinds\n".to_owned());
        };
        let widest = reliance.widest;
        Ok(format!(
            "{:.0}% of the work in an iteration rests on predicted times; were all of them at the lower end of their \
             intervals, it would take {}, at the upper end {}\nwidest: {} of {} on {} ms, {:.1} times from end to end\n",
            reliance.share * 100.0,
            milliseconds(reliance.low_ns),
            milliseconds(reliance.high_ns),
            interval(widest),
            widest.signature,
            widest.kind,
            widest.width(),
        ))
    }

    /// All of it for programs.
    pub fn json(&self, plan: &Plan) -> Result<Value> {
        let measured = self.next.measured.iter();
        let measured =
            measured.map(|(kind, (times, samples))| (kind.clone(), json!({ "times": times, "samples": samples })));
        let reliance = self.next.reliance(plan).map_err(failure::negative)?;
        let guessed: Vec<String> = self.next.remarks.iter().map(ToString::to_string).collect();
        Ok(json!({
            "job": self.run,
            "stores": self.stores,
            "measured": Value::Object(measured.collect()),
            "memory": self.memory,
            "predicted": self.next.predicted.iter().map(|predicted| self.predicted_json(predicted)).collect::<Vec<_>>(),
            "predicted_share": reliance.as_ref().map_or(0.0, |reliance| reliance.share),
            "predicted_iteration": reliance.as_ref().map(|reliance| json!({ "low_ns": reliance.low_ns, "high_ns": reliance.high_ns })),
            "predicted_widest": reliance.as_ref().map(|reliance| self.predicted_json(reliance.widest)),
            "guessed": guessed,
            "left_out": self.clocks.json(),
        }))
    }

    fn predicted_json(&self, predicted: &Predicted) -> Value {
        let Predicted { kind, signature, phase, time } = predicted;
        json!({
            "kind": kind,
            "signature": signature,
            "phase": MeasuredPhase::from(*phase).word(),
            "layers": self.layers(signature),
            "seconds": time.seconds,
            "low": time.low,
            "high": time.high,
            "source": time.source.word(),
        })
    }

    /// The names of the layers of a signature.
    fn layers(&self, signature: &str) -> Vec<&str> {
        let layers = self.next.problem.layers.iter().filter(|layer| layer.signature == signature);
        layers.map(|layer| layer.name.as_str()).collect()
    }

    fn layers_text(&self, signature: &str) -> String {
        match self.layers(signature)[..] {
            ref few if few.len() <= NAMED_MAX => format!("{signature} ({})", few.join(", ")),
            [first, .., last] => format!("{signature} ({} layers, {first} to {last})", self.layers(signature).len()),
            _ => signature.to_owned(),
        }
    }
}

/// A time with its interval, in milliseconds, and what it rests on.
fn interval(predicted: &Predicted) -> String {
    let Predicted { phase, time, .. } = predicted;
    let [seconds, low, high] = [time.seconds, time.low, time.high].map(|seconds| seconds * 1e3);
    format!("{} {seconds:.3} ({low:.3} to {high:.3}, from {})", MeasuredPhase::from(*phase), time.source.word())
}
