//! What makes a recorded job slow, how much of its time that costs, and what would win it back.
//!
//! Everyday picture: to see what a traffic light costs, drive the same route on a map where it is green. A recording is
//! replayed as it was, then with one thing made even, and the difference is what that thing costs.
//!
//! ```text
//!   recording -> screen (iterations unlike the others are set aside)
//!             -> levels (stage, worker, length: what each operation should take, and why it does not)
//!             -> graph  (what waits for what) -> replay: as recorded, even, one cause at a time -> findings -> remedy
//! ```
//!
//! A run of ours is diagnosed by [`run`], from its samples.
//!
//! 1. A cause is named only if it shows against what noise explains, over all iterations, and if it costs time.
//! 2. A stage that is slow in all replicas is a stage; what one replica has beyond the others is a worker; what all
//!    stages of a replica share from microbatch to microbatch is length.
//! 3. What a cause costs is the mean of two replays: the even job with this cause alone, and the recording without it.
//!    So neither two equal culprits hide each other, nor does one count twice.
//! 4. Intervals are of 90%, by resampling whole iterations; the same seed gives the same answer.
//!
//! 5. A worker that became slow is told with its first iteration, one that recovered with its last one, and one that is slow
//!    at times only by its mean; of all else, medians count.
//! 6. A replay that does not give the recorded times back explains nothing: what was found is then marked, its intervals are
//!    wider by what the replay is off by, and no better plan is told.
//!
//! 7. What is lost beyond noise and beyond what is told is told as such, so that nobody takes silence for health.
//!
//! Left out on purpose: other causes that come and go within a recording, and a type of operation that is slow everywhere, which no recording tells from one that has to be.

mod computes;
mod doubt;
mod findings;
mod graph;
mod interval;
mod levels;
mod onset;
mod recording;
mod remedy;
pub mod run;
mod screen;
#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod tests;
mod times;
mod transfers;

pub use doubt::Doubt;
pub use recording::{Direction, Exchange, Iteration, Operation, Recording, Work, Worker};
pub use screen::{Compute, Oddity, SetAside};

use serde::Serialize;

/// Name and version in every file of this format.
pub const FORMAT: &str = "adaptis.diagnosis/1";
/// Cells of the table of computes; a recording that would have more is refused.
const CELLS_MAX: usize = 1 << 27;

/// How to diagnose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Equal layers that a recorded chunk of the model is taken to have; a better plan moves such layers.
    pub layers: u32,
    /// Of the resampling and of the search.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { layers: 8, seed: 1 }
    }
}

/// Why a recording can't be diagnosed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It holds nothing that a pipeline computes.
    #[error("no {operation} in it: record the pipeline's computes")]
    Nothing {
        /// What is missing.
        operation: &'static str,
    },
    /// Its operations wait for one another.
    #[error(
        "iteration {iteration}: its sends and receives wait for one another in a circle: are its instants those of one clock \
         a worker?"
    )]
    Circle {
        /// Which one.
        iteration: i64,
    },
    /// More than a replay holds.
    #[error(
        "{cells} combinations of iteration, worker, chunk and microbatch are more than {CELLS_MAX}: record fewer iterations"
    )]
    TooLarge {
        /// How many.
        cells: usize,
    },
}

/// What is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A worker, beyond the others of its stage.
    Worker,
    /// A stage, in all replicas.
    Stage,
    /// One type of operation of a worker.
    Operation,
    /// A directed pair of workers.
    Link,
    /// Uneven sequences.
    Length,
}

/// Where it is; what does not apply is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dp_rank: Option<u32>,
    /// Position in the pipeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<u32>,
    /// Type of operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Sender's stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_stage: Option<u32>,
    /// Receiver's stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_stage: Option<u32>,
    /// Name of a device, where they have names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The sender's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_device: Option<String>,
    /// The receiver's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_device: Option<String>,
    /// First iteration that it shows in, where it began within the recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iteration: Option<u64>,
    /// Last iteration that it shows in, where it ended within the recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_iteration: Option<u64>,
}

/// A cause of lost time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Where.
    #[serde(rename = "where")]
    pub place: Place,
    /// Its time over what is even: of lengths, the longest microbatch over the mean of its iteration.
    pub factor: f64,
    /// 5 in 100 true factors lie below.
    pub factor_low: f64,
    /// 5 in 100 lie above.
    pub factor_high: f64,
    /// Share of the time above an even job that it explains.
    pub lost_share: f64,
    /// Whether the replay that it rests on explains the recording.
    #[serde(rename = "reliable")]
    pub is_reliable: bool,
    /// What an iteration would take without it, in the middle.
    #[serde(skip)]
    pub without_ns: u64,
}

/// What would win time back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BetterPlan {
    /// An iteration, in the middle.
    pub iteration_ns: u64,
    /// 5 in 100 lie below.
    pub low_ns: u64,
    /// 5 in 100 lie above.
    pub high_ns: u64,
    /// In words.
    pub change: String,
    /// What an iteration takes today, in the middle of those that it is compared with.
    pub instead_of_ns: u64,
}

/// Iterations of one plan, of a run of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// First iteration.
    pub from: u64,
    /// Last one.
    pub to: u64,
    /// The plan.
    pub epoch: u64,
    /// In the middle, the cold ones aside.
    pub measured_median_ns: u64,
    /// The replay of the same iterations.
    pub simulated_median_ns: u64,
}

/// What a recording says, `adaptis.diagnosis/1`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// [`FORMAT`].
    pub format: &'static str,
    /// How many.
    pub iterations: usize,
    /// As recorded.
    pub measured_median_ns: u64,
    /// The replay of the same operations.
    pub simulated_median_ns: u64,
    /// By iteration.
    pub simulated_ns: Vec<u64>,
    /// By iteration.
    pub measured_ns: Vec<u64>,
    /// Most lost time first; empty: nothing is wrong.
    pub findings: Vec<Finding>,
    /// None where nothing was found that wins time back.
    pub better_plan: Option<BetterPlan>,
    /// Whether the replay explains the recording; where not, nothing here is to be relied on.
    #[serde(rename = "reliable")]
    pub is_reliable: bool,
    /// What speaks against what is said here.
    pub doubts: Vec<Doubt>,
    /// Iterations that nothing was concluded from.
    pub set_aside: Vec<SetAside>,
    /// By plan, of a run of ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
    /// An even job's iteration, in the middle.
    #[serde(skip)]
    pub even_ns: u64,
}

/// Diagnoses a recording.
///
/// # Errors
/// It holds no pipeline, or one that can't have run.
pub fn diagnose(recording: &Recording, options: &Options) -> Result<Diagnosis, Refusal> {
    check(recording)?;
    let screen::Screened { recording, set_aside, mut doubts } = screen::screen(recording);
    check_size(&recording)?;
    let recording = &recording;
    let levels = levels::Levels::fit(times::Times::of(recording));
    let pipeline = graph::Pipeline::of(recording);
    let replayed = findings::replay(recording, &pipeline, &levels)?;
    let measured_ns: Vec<u64> = recording.iterations.iter().map(Iteration::measured_ns).collect();
    let findings::Concluded { findings, better: better_plan, untold_ns } =
        replayed.conclude(recording, &levels, &measured_ns, options);
    // What clocks are apart is in the measured times, and no fault of the replay.
    let on_one_clock: Vec<u64> = recording.iterations.iter().map(|iteration| pipeline.measured_ns(iteration)).collect();
    let unexplained = doubt::unexplained(&replayed.simulated_ns, &on_one_clock);
    doubts.extend(doubt::clocks(pipeline.apart_ns(), &on_one_clock));
    let few = doubt::few(recording.iterations.len());
    doubts.extend(untold_ns.filter(|_| few.is_none()).map(|ns| Doubt::Untold { ns }));
    doubts.extend(few);
    let lacks = doubt::lacks(recording, pipeline.paired(recording));
    let is_orderless = lacks.iter().any(Doubt::is_orderless);
    doubts.extend(lacks);
    let mut diagnosis = Diagnosis {
        format: FORMAT,
        iterations: recording.iterations.len(),
        measured_median_ns: interval::median_ns(&measured_ns),
        simulated_median_ns: interval::median_ns(&replayed.simulated_ns),
        even_ns: interval::median_ns(&replayed.even_ns),
        simulated_ns: replayed.simulated_ns,
        measured_ns,
        findings,
        better_plan,
        is_reliable: true,
        doubts,
        set_aside,
        phases: Vec::new(),
    };
    if let Some(unexplained) = unexplained {
        diagnosis.unexplain(unexplained);
    } else if is_orderless {
        diagnosis.mark();
    }
    Ok(diagnosis)
}

impl Diagnosis {
    /// The replay does not give the recorded times back: factors are uncertain by as much.
    fn unexplain(&mut self, unexplained: Doubt) {
        if let Doubt::Unexplained { error, .. } = unexplained {
            for Finding { factor_low, factor_high, .. } in &mut self.findings {
                (*factor_low, *factor_high) = (*factor_low / (1.0 + error), *factor_high * (1.0 + error));
            }
        }
        self.mark();
        self.doubts.insert(0, unexplained);
    }

    /// Nothing in it is to be relied on.
    fn mark(&mut self) {
        self.findings.iter_mut().for_each(|finding| finding.is_reliable = false);
        self.is_reliable = false;
        self.better_plan = None;
    }
}

fn check(recording: &Recording) -> Result<(), Refusal> {
    for direction in Direction::ALL {
        let is_there = recording
            .iterations
            .iter()
            .flat_map(|iteration| &iteration.operations)
            .any(|operation| matches!(operation.work, Work::Compute { direction: of, .. } if of == direction));
        if !is_there {
            return Err(Refusal::Nothing { operation: direction.operation() });
        }
    }
    Ok(())
}

fn check_size(recording: &Recording) -> Result<(), Refusal> {
    let cells = times::Times::cells(recording);
    if cells > CELLS_MAX { Err(Refusal::TooLarge { cells }) } else { Ok(()) }
}
