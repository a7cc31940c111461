//! Profiles of another clock than the job's: emulated devices have one of their own.

use adaptis_coordinator::profiles::evidence::LeftOut;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What a job's devices were, and which profiles can't stand beside theirs.
pub struct Clocks {
    /// The job's devices were emulated.
    pub is_emulated: bool,
    /// Of other clocks.
    pub left_out: Vec<LeftOut>,
}

impl Clocks {
    /// What was left out and why, a line for each clock.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for is_emulated in [false, true] {
            let of = |left_out: &&LeftOut| left_out.is_emulated == is_emulated;
            let all: Vec<&LeftOut> = self.left_out.iter().filter(of).collect();
            if all.is_empty() {
                continue;
            }
            let kinds: Vec<String> = all.iter().map(|of| format!("{} of {}", of.profiles, of.kind)).collect();
            let why = match (is_emulated, self.is_emulated) {
                (false, _) => "they are of real devices, and the job's were emulated, on a clock of their own",
                (true, true) => "they are of devices that were emulated otherwise than the job's, on another clock",
                (true, false) => "they are of emulated devices, whose times are no card's, and the job's were real",
            };
            out += &format!("left out: profiles, {}: {why}\n", kinds.join(", "));
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let row = |of: &LeftOut| json!({ "kind": of.kind, "emulated": of.is_emulated, "profiles": of.profiles });
        self.left_out.iter().map(row).collect()
    }

    /// What helps where times of these kinds are missing; none where their clock is not why.
    pub fn advice(&self, missing: &BTreeSet<&str>, known: &str, devices: &str) -> Option<String> {
        if missing.is_empty() {
            return None;
        }
        if self.is_emulated {
            let demo = if devices.ends_with(".toml") { "FILE" } else { devices };
            return Some(format!(
                "the job's devices were emulated, so that no import and no other run helps: plan for kinds that it ran on \
                 ({known}), record a run that emulates all of them (`adaptis demo --devices {demo} --out RUN`) and give that to \
                 --job, or give a job that ran on real devices"
            ));
        }
        let is_missed = |of: &&LeftOut| missing.contains(of.kind.as_str());
        self.left_out.iter().find(is_missed).map(|of| {
            format!(
                "what is there of {} is of emulated devices: measure it on real ones, or import what others measured",
                of.kind
            )
        })
    }
}
