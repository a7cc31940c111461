//! One problem: every baseline, a search per seed, and a check of each plan by the audit's own clock and memory walk.

use super::problems::Named;
use adaptis_plan::{Plan, Problem, audit, iteration_ns, peak_bytes};
use adaptis_planner::bounds::lower_bound_ns;
use adaptis_planner::schedule::{Name, even, named};
use adaptis_planner::search::{Control, Options, Progress, search};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Name of the baseline that everybody has: 1F1B, layers split evenly by count.
pub const EVEN: &str = "even 1f1b";

/// A baseline on a problem.
#[derive(Clone, Debug, Serialize)]
pub struct Baseline {
    pub name: String,
    /// None where no plan of its kind fits.
    pub iteration_ns: Option<u64>,
}

/// A search with one seed.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub seed: u64,
    pub iteration_ns: u64,
    pub evaluations: u64,
    /// Instructions of the plan.
    pub operations: usize,
    /// Of the process, all its threads together.
    pub cpu_ns: u64,
    /// Of it, until there was a plan.
    pub first_plan_ns: u64,
    pub wall_ns: u64,
    /// The most memory that the process held during the search, where the system tells.
    pub memory_max_bytes: Option<u64>,
    #[serde(skip)]
    pub plan: Plan,
}

/// What came of a problem.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub problem: String,
    pub devices: usize,
    pub layers: usize,
    pub microbatches: u32,
    /// Devices or layers differ in what they take.
    pub is_unequal: bool,
    pub lower_bound_ns: u64,
    pub baselines: Vec<Baseline>,
    pub runs: Vec<Run>,
    /// Why there is no plan.
    pub refusal: Option<String>,
    /// What a check found wrong; empty.
    pub wrong: Vec<String>,
}

impl Row {
    /// The best baseline that fits.
    pub fn best_baseline(&self) -> Option<(&str, u64)> {
        let fitting = self.baselines.iter().filter_map(|of| Some((of.name.as_str(), of.iteration_ns?)));
        fitting.min_by_key(|(_, iteration_ns)| *iteration_ns)
    }

    /// Of the even 1F1B split, if it fits.
    pub fn even_ns(&self) -> Option<u64> {
        self.baselines.iter().find(|of| of.name == EVEN)?.iteration_ns
    }

    /// The run in the middle: as many are better as are worse.
    pub fn median(&self) -> Option<&Run> {
        let mut runs: Vec<&Run> = self.runs.iter().collect();
        runs.sort_by_key(|run| run.iteration_ns);
        runs.get(runs.len().checked_sub(1)? / 2).copied()
    }

    /// Time of the middle run over that of the best baseline.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.median()?.iteration_ns as f64 / self.best_baseline()?.1.max(1) as f64)
    }

    /// How far the middle run can be above the best plan there is, as a share of the bound.
    pub fn gap(&self) -> Option<f64> {
        Some(self.median()?.iteration_ns as f64 / self.lower_bound_ns.max(1) as f64 - 1.0)
    }

    /// Slowest over fastest seed, less one; none with fewer than two.
    pub fn spread(&self) -> Option<f64> {
        if self.runs.len() < 2 {
            return None;
        }
        let times = || self.runs.iter().map(|run| run.iteration_ns);
        Some(times().max()? as f64 / times().min()?.max(1) as f64 - 1.0)
    }
}

/// Time that all threads of this process ran so far. On a shared machine the wall's clock would measure the others.
fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec.unsigned_abs() as u32)
}

/// Measures a problem. `tick` is told of every search's progress and may end it.
pub fn measure(
    of: &Named,
    time: Duration,
    seeds: u64,
    tick: &mut dyn FnMut(u64, Duration, &Progress) -> Control,
) -> Row {
    let problem = &of.problem;
    let mut row = Row {
        problem: of.name.clone(),
        devices: problem.devices.len(),
        layers: problem.layers.len(),
        microbatches: problem.microbatches,
        is_unequal: of.is_unequal(),
        lower_bound_ns: lower_bound_ns(problem),
        baselines: Vec::new(),
        runs: Vec::new(),
        refusal: None,
        wrong: Vec::new(),
    };
    for seed in 1..=seeds {
        let (cpu_start, wall_start) = (cpu(), Instant::now());
        forget_memory_max();
        let (mut stopped, mut first_plan) = (false, None);
        let found = search(problem, None, &Options { seed, ..Options::default() }, &mut |progress| {
            let spent = cpu() - cpu_start;
            if progress.best_ns != u64::MAX {
                first_plan.get_or_insert(spent);
            }
            stopped |= tick(seed, spent, progress) == Control::Stop;
            if stopped || spent >= time { Control::Stop } else { Control::Go }
        });
        let (cpu_ns, wall_ns) = (nanoseconds(cpu() - cpu_start), nanoseconds(wall_start.elapsed()));
        let (memory_max_bytes, first_plan_ns) = (memory_max_bytes(), first_plan.map_or(cpu_ns, nanoseconds));
        match found {
            Ok(outcome) => {
                let (plan, evaluations) = (outcome.plan, outcome.evaluations);
                let iteration_ns = row.checked(problem, &format!("search, seed {seed}"), &plan);
                let operations = plan.programs.iter().map(Vec::len).sum();
                row.runs.push(Run {
                    seed,
                    iteration_ns,
                    evaluations,
                    operations,
                    cpu_ns,
                    first_plan_ns,
                    wall_ns,
                    memory_max_bytes,
                    plan,
                });
            }
            Err(refusal) => row.refusal = Some(refusal.to_string()),
        }
        if stopped {
            return row;
        }
        if row.refusal.is_some() {
            break;
        }
    }
    // Behind the searches, whose memory is measured.
    let even = even(problem);
    row.add_baseline(problem, EVEN, Some(even).filter(|plan| audit(problem, plan).is_empty()));
    for name in Name::ALL {
        row.add_baseline(problem, name.text(), named(problem, name).ok());
    }
    if let (Some(refusal), Some((name, _))) = (&row.refusal, row.best_baseline()) {
        row.wrong.push(format!("{name} fits, and the search says: {refusal}"));
    }
    row
}

/// The most memory that this process has held since it was last forgotten.
fn memory_max_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// From here on; where the system does not let it, from the start of the process.
fn forget_memory_max() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Row {
    fn add_baseline(&mut self, problem: &Problem, name: &str, plan: Option<Plan>) {
        let iteration_ns = plan.map(|plan| self.checked(problem, name, &plan));
        self.baselines.push(Baseline { name: name.to_owned(), iteration_ns });
    }

    /// The time that a plan claims. Whatever an independent look at it finds wrong is noted.
    fn checked(&mut self, problem: &Problem, name: &str, plan: &Plan) -> u64 {
        let claimed = plan.predicted.clone().unwrap_or_default();
        let findings = audit(problem, plan);
        self.wrong.extend(findings.iter().map(|finding| format!("{name}: {}: {finding}", finding.rule())));
        if let Ok(replayed_ns) = iteration_ns(problem, plan) {
            if replayed_ns != claimed.iteration_ns {
                self.wrong.push(format!("{name}: claims {} ns, and takes {replayed_ns} ns", claimed.iteration_ns));
            }
            if self.lower_bound_ns > replayed_ns {
                let bound_ns = self.lower_bound_ns;
                self.wrong.push(format!("{name}: takes {replayed_ns} ns, under the bound of {bound_ns} ns"));
            }
        }
        if let Ok(peaks) = peak_bytes(problem, plan)
            && peaks != claimed.peak_bytes
        {
            self.wrong.push(format!("{name}: claims peaks of {:?} bytes, and has {peaks:?}", claimed.peak_bytes));
        }
        claimed.iteration_ns
    }
}
