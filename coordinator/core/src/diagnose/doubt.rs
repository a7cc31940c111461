//! Whether the replay explains the recording, and if not, why not.
//!
//! What a cause costs is told by a replay, so it is worth as much as the replay is: that it gives the recorded times back
//! comes before anything concluded from it.

use super::interval;
use super::recording::{Exchange, Recording, Work};
use serde::Serialize;
use std::collections::BTreeSet;

/// Part of a measured iteration by which the replay may be off.
pub(super) const OFF_MAX: f64 = 0.05;
/// Least share of iterations that it is no farther off from.
pub(super) const WITHIN_MIN: f64 = 0.95;
/// Share of a compute from which on the resolution of instants matters.
const COARSE: f64 = 0.1;
/// Share of operations from which on it matters that they lack something.
const MANY: f64 = 0.05;

/// What speaks against the conclusions from a recording.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Doubt {
    /// The replay does not give the recorded times back: nothing concluded from it is to be relied on.
    Unexplained {
        /// Middle of what it is off by, as a share of the iteration.
        error: f64,
        /// Share of the iterations that it is within 5% of.
        within: f64,
    },
    /// Too few to tell what is slow from noise.
    Few {
        /// How many there are.
        iterations: usize,
        /// How many it takes.
        least: usize,
    },
    /// An iteration loses more than noise and what is told explain.
    Untold {
        /// About how much.
        ns: u64,
    },
    /// Rows that were there before in all; each counted once.
    Duplicates {
        /// How many were left out.
        rows: usize,
    },
    /// Iterations that lack computes which others have; too many to set them aside.
    Incomplete {
        /// How many.
        iterations: usize,
        /// Of how many.
        of: usize,
    },
    /// Instants are too coarse to tell what came first.
    Coarse {
        /// The least difference of two instants.
        resolution_ns: u64,
        /// The median compute.
        compute_ns: u64,
    },
    /// The clocks of a replica's workers differ; the replay sets them right, and the measured times have it in them.
    Clocks {
        /// By how much at most.
        apart_ns: u64,
    },
    /// Computes that took no time.
    Zero {
        /// How many.
        computes: usize,
        /// Of how many.
        of: usize,
    },
    /// More than one stage and no send or receive: who waited for whom is not recorded.
    NoExchange,
    /// Sends or receives whose other side is not recorded.
    Unpaired {
        /// How many.
        exchanges: usize,
        /// Of how many.
        of: usize,
    },
    /// Stages of which nothing is recorded.
    NoStage {
        /// Which.
        stages: Vec<u32>,
    },
    /// The host of emulated devices was held up: these works show it and not the device; others of their layer stand for
    /// them, and iterations took longer than their works.
    HeldUp {
        /// Share of works.
        works: f64,
    },
}

impl Doubt {
    /// What came before what is not known, so no replay shows anything, however well it fits.
    pub(super) fn is_orderless(&self) -> bool {
        matches!(self, Doubt::Coarse { resolution_ns, compute_ns } if resolution_ns > compute_ns)
    }
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        match self {
            Doubt::Unexplained { error, within } => write!(
                f,
                "the replay does not explain the recording: off by {} in the middle, within 5% of {} of the iterations",
                percent(*error),
                percent(*within),
            ),
            Doubt::Few { iterations, least } => write!(
                f,
                "too few iterations to tell what is slow from noise: {iterations}, and it takes {least}; record more"
            ),
            Doubt::Untold { ns } => write!(
                f,
                "about {:.0} ms of an iteration are lost to more than noise and nothing that is told here: to what was slow for \
                 a part of the recording only, or to workers that differ all over",
                *ns as f64 / 1e6
            ),
            Doubt::Duplicates { rows } => write!(f, "{rows} rows stand twice: counted once"),
            Doubt::Incomplete { iterations, of } => {
                write!(f, "{iterations} of {of} iterations lack computes that others have: record all of them")
            }
            Doubt::Coarse { resolution_ns, compute_ns } => write!(
                f,
                "instants (start_ts) are exact to {:.3} ms only, where a compute takes {:.3} ms: write them as 64-bit numbers \
                 from the start of the job on",
                *resolution_ns as f64 / 1e6,
                *compute_ns as f64 / 1e6,
            ),
            Doubt::Clocks { apart_ns } => write!(
                f,
                "the workers' clocks (start_ts) are {:.0} ms apart, and the measured times longer for it: the replay sets them right",
                *apart_ns as f64 / 1e6
            ),
            Doubt::Zero { computes, of } => write!(f, "{computes} of {of} computes took no time (duration)"),
            Doubt::NoExchange => {
                f.write_str("no send or receive is recorded (optype): who waited for whom is not known")
            }
            Doubt::Unpaired { exchanges, of } => {
                write!(f, "{exchanges} of {of} sends and receives lack their other side: record all stages")
            }
            Doubt::NoStage { stages } => {
                let stages: Vec<String> = stages.iter().map(u32::to_string).collect();
                write!(f, "nothing is recorded of stage {}", stages.join(", "))
            }
            Doubt::HeldUp { works } => write!(
                f,
                "the host was held up in {} of the works, and iterations took longer than their works: use a machine with \
                 nothing else to do",
                percent(*works)
            ),
        }
    }
}

/// What the replay is off by, over the iterations; nothing if it explains them.
pub(super) fn unexplained(simulated_ns: &[u64], measured_ns: &[u64]) -> Option<Doubt> {
    let (error, within) = fit(simulated_ns, measured_ns)?;
    (error > OFF_MAX || within < WITHIN_MIN).then_some(Doubt::Unexplained { error, within })
}

/// Middle of what it is off by, and the share of iterations that it is near to.
pub(super) fn fit(simulated_ns: &[u64], measured_ns: &[u64]) -> Option<(f64, f64)> {
    let off = |(&simulated, &measured): (&u64, &u64)| (simulated as f64 / (measured as f64).max(1.0) - 1.0).abs();
    let mut off: Vec<f64> = simulated_ns.iter().zip(measured_ns).map(off).collect();
    let within = off.iter().filter(|off| **off <= OFF_MAX).count() as f64 / off.len().max(1) as f64;
    Some((crate::estimate::robust::median(&mut off)?, within))
}

/// Too few iterations.
pub(super) fn few(iterations: usize) -> Option<Doubt> {
    let least = interval::SPREAD_ITERATIONS_MIN;
    (iterations < least).then_some(Doubt::Few { iterations, least })
}

/// Clocks so far apart that measured times show it.
pub(super) fn clocks(apart_ns: u64, measured_ns: &[u64]) -> Option<Doubt> {
    let is_far = apart_ns as f64 > OFF_MAX * interval::median_ns(measured_ns) as f64;
    is_far.then_some(Doubt::Clocks { apart_ns })
}

/// What a recording lacks that a replay needs; `paired` of its sends and receives have their other side.
pub(super) fn lacks(recording: &Recording, paired: usize) -> Vec<Doubt> {
    let operations = || recording.iterations.iter().flat_map(|iteration| &iteration.operations);
    let computes: Vec<f64> =
        operations().filter(|of| matches!(of.work, Work::Compute { .. })).map(|of| of.duration_ns as f64).collect();
    let mut doubts = Vec::new();
    let zero = computes.iter().filter(|ns| **ns == 0.0).count();
    if zero as f64 > MANY * computes.len() as f64 {
        doubts.push(Doubt::Zero { computes: zero, of: computes.len() });
    }
    let known: Vec<f64> = computes.into_iter().filter(|ns| *ns > 0.0).collect();
    let compute_ns = crate::estimate::robust::median(&mut known.clone()).unwrap_or(0.0);
    let instants: BTreeSet<i64> = operations().map(|of| of.start_ns).collect();
    let steps = instants.iter().zip(instants.iter().skip(1)).map(|(one, next)| next.abs_diff(*one));
    // Where all began at once, it is the longest that they took at least.
    let longest_ns = operations().map(|of| of.duration_ns).max().filter(|_| known.len() > 1);
    if let Some(resolution_ns) = steps.min().or(longest_ns)
        && compute_ns > 0.0
        && resolution_ns as f64 > COARSE * compute_ns
    {
        doubts.push(Doubt::Coarse { resolution_ns, compute_ns: compute_ns as u64 });
    }
    let stages: BTreeSet<u32> = recording.workers.iter().map(|worker| worker.stage).collect();
    let missing: Vec<u32> = (0..recording.stages() as u32).filter(|stage| !stages.contains(stage)).collect();
    if !missing.is_empty() {
        doubts.push(Doubt::NoStage { stages: missing });
    }
    let sides = |of: Exchange| [of.sends, of.receives].concat().into_iter().filter(|is| *is).count();
    let exchange = |work: Work| if let Work::Exchange(of) = work { sides(of) } else { 0 };
    let exchanges: usize = operations().map(|of| exchange(of.work)).sum();
    if exchanges == 0 && recording.stages() > 1 {
        doubts.push(Doubt::NoExchange);
    } else if exchanges.saturating_sub(paired) as f64 > MANY * exchanges as f64 {
        doubts.push(Doubt::Unpaired { exchanges: exchanges - paired, of: exchanges });
    }
    doubts
}
