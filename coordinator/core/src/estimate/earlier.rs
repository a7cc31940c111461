//! What earlier jobs measured of kinds of devices, and how far this job may differ from them: the first prior.
//!
//! Two jobs of one kind differ in all that they measure (another host, power limit, clock) and in each time besides
//! (another library's kernels). Both are told by the jobs where there are several, and taken to be as usual where there
//! are few. So a time that many samples tell to a thousandth is not known to a thousandth here.

use super::figures::PHASES;
use super::{link, robust};
use crate::next_job::{LayerMemory, Overhead, Transfers};
use adaptis_plan::Link;
use adaptis_proto::sample::Phase;
use std::collections::{BTreeMap, BTreeSet};

/// What all times of a kind have in common from one job to another: standard deviation of the logarithm, and how many
/// jobs that counts for. It was chosen, not measured: hosts, power limits and drivers of one card differ by some percent.
const LEVEL_SD: f64 = 0.08;
const LEVEL_WORTH: f64 = 4.0;
/// What a time differs by besides, about what measurements of one cell scatter by on the profiles that `predict` names;
/// and how many times that counts for.
const OWN_SD: f64 = 0.04;
const OWN_WORTH: f64 = 12.0;
/// What a link differs by: jobs stand on other nodes of a cluster, and others use its network.
const LINK_SD: f64 = 0.3;
/// Rounds in which levels of jobs and times are told apart.
const ROUNDS: usize = 6;

/// A time of earlier jobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time {
    /// Logarithm of nanoseconds.
    pub ln_ns: f64,
    /// Standard deviation of what this job's may differ by.
    pub ln_sd: f64,
}

/// What is known of a kind of device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfKind {
    /// By signature and phase, as in [`PHASES`]: measured on the kind, each with what it may be off by itself.
    pub measured: BTreeMap<String, [Option<Time>; 4]>,
    /// What all of them may be off by together: standard deviation of the logarithm.
    pub level_sd: f64,
    /// What was never measured on the kind, predicted from what was, or from other kinds.
    pub predicted: BTreeMap<String, [Option<Time>; 4]>,
    /// By signature.
    pub memories: BTreeMap<String, LayerMemory>,
    /// Memory of a device that is never available to layers.
    pub reserved_bytes: Option<u64>,
    /// What an instruction costs besides its layers.
    pub overhead: Option<Overhead>,
}

/// What is known of links.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OfLink {
    /// As earlier jobs measured it.
    pub link: Link,
    /// Standard deviation of the logarithm of a transfer's time.
    pub ln_sd: f64,
    /// Latency and bandwidth were told apart.
    pub separated: bool,
}

/// What earlier jobs tell of the kinds and signatures of this one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Earlier {
    /// By kind.
    pub kinds: BTreeMap<String, OfKind>,
    /// By kinds of sender and receiver.
    pub links: BTreeMap<(String, String), OfLink>,
}

/// What one earlier job measured of one kind under one software.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Job {
    /// By signature and phase: logarithm of the median in nanoseconds, and standard deviation of that median.
    pub times: BTreeMap<(String, Phase), Time>,
}

impl OfKind {
    /// From the jobs that ran on the kind.
    pub fn of_jobs(jobs: &[Job]) -> Self {
        let sets = Sets::of(jobs);
        let (levels, middles) = apart(jobs, &sets);
        let squares: f64 = levels.iter().map(|level| level * level).sum();
        let level_variance = (LEVEL_WORTH * LEVEL_SD.powi(2) + squares) / (LEVEL_WORTH + sets.compared(jobs));
        let own_variance = own_variance(jobs, &levels, &middles, &sets);
        // What this job is off by is common to all times. What the jobs of a set are off by is so only in their own.
        let of_set = |set: usize| level_variance / sets.sizes[set];
        let (common_variance, is_one) = match sets.sizes.len() {
            0 | 1 => (another(level_variance, jobs.len() as f64), true),
            _ => (level_variance, false),
        };
        let mut of_kind = OfKind { level_sd: common_variance.sqrt(), ..OfKind::default() };
        for (key @ (signature, phase), &ln_ns) in &middles {
            let Some(at) = PHASES.iter().position(|known| known == phase) else { continue };
            let found: Vec<(usize, &Time)> =
                jobs.iter().enumerate().filter_map(|(at, job)| Some((at, job.times.get(key)?))).collect();
            let Some(&(first, _)) = found.first() else { continue };
            let precision: f64 = found.iter().map(|(_, time)| time.ln_sd.max(f64::EPSILON).powi(-2)).sum();
            let of_set = if is_one { 0.0 } else { of_set(sets.of[first]) };
            let ln_sd = (another(own_variance, found.len() as f64) + precision.recip() + of_set).sqrt();
            of_kind.measured.entry(signature.clone()).or_default()[at] = Some(Time { ln_ns, ln_sd });
        }
        of_kind
    }

    /// Takes what was predicted of a time, so well by itself. Without a time of the kind it may be off besides as jobs
    /// usually are.
    pub fn predict(&mut self, signature: &str, phase: Phase, time: Time) {
        let Some(at) = PHASES.iter().position(|known| *known == phase) else { return };
        let usual_sd = if self.measured.is_empty() { another(LEVEL_SD.powi(2), 1.0).sqrt() } else { 0.0 };
        let time = Time { ln_sd: time.ln_sd.hypot(usual_sd), ..time };
        self.predicted.entry(signature.to_owned()).or_default()[at] = Some(time);
    }

    pub(super) fn measured(&self, signature: &str, phase: usize) -> Option<Time> {
        self.measured.get(signature)?[phase]
    }

    pub(super) fn predicted(&self, signature: &str, phase: usize) -> Option<Time> {
        self.predicted.get(signature)?[phase]
    }
}

impl OfLink {
    /// From transfers of some sizes; none without any.
    pub fn of_transfers(sizes: &[Transfers]) -> Option<Self> {
        let (link, separated) = link::fit_sizes(sizes)?;
        Some(Self { link, ln_sd: LINK_SD, separated })
    }
}

/// Variance of one more value around the mean of so many.
fn another(variance: f64, count: f64) -> f64 {
    variance * (1.0 + count.max(1.0).recip())
}

/// Jobs that have a time in common, directly or by way of others: how far one is off is told by the rest of its set alone.
struct Sets {
    /// By job: the number of its set.
    of: Vec<usize>,
    /// By set: how many jobs it has.
    sizes: Vec<f64>,
}

impl Sets {
    fn of(jobs: &[Job]) -> Self {
        let mut of: Vec<usize> = (0..jobs.len()).collect();
        let mut first: BTreeMap<&(String, Phase), usize> = BTreeMap::new();
        for (at, key) in jobs.iter().enumerate().flat_map(|(at, job)| job.times.keys().map(move |key| (at, key))) {
            let (one, other) = (of[*first.entry(key).or_insert(at)], of[at]);
            if one != other {
                of.iter_mut().filter(|set| **set == other).for_each(|set| *set = one);
            }
        }
        let numbers: BTreeMap<usize, usize> =
            of.iter().collect::<BTreeSet<_>>().into_iter().enumerate().map(|(number, set)| (*set, number)).collect();
        of.iter_mut().for_each(|set| *set = numbers[set]);
        let mut sizes = vec![0.0; numbers.len()];
        of.iter().for_each(|set| sizes[*set] += 1.0);
        Self { of, sizes }
    }

    /// How many jobs are told apart from another: of each set all but one.
    fn compared(&self, jobs: &[Job]) -> f64 {
        (jobs.len() - self.sizes.len()) as f64
    }
}

/// By job: how far it is off in all it measured; by time: its middle. Levels of a set have the median 0, so that of several
/// jobs one on a throttled device does not count as what the kind is like.
fn apart(jobs: &[Job], sets: &Sets) -> (Vec<f64>, BTreeMap<(String, Phase), f64>) {
    let mut levels = vec![0.0; jobs.len()];
    let mut middles = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut found: BTreeMap<(String, Phase), Vec<f64>> = BTreeMap::new();
        for (job, level) in jobs.iter().zip(&levels) {
            for (key, time) in &job.times {
                found.entry(key.clone()).or_default().push(time.ln_ns - level);
            }
        }
        let alone: BTreeMap<(String, Phase), bool> =
            found.iter().map(|(key, values)| (key.clone(), values.len() < 2)).collect();
        let middle = |(key, mut values): (_, Vec<f64>)| Some((key, robust::median(&mut values)?));
        middles = found.into_iter().filter_map(middle).collect();
        let level = |(job, level): (&Job, &f64)| {
            let shared = job.times.iter().filter(|(key, _)| !alone[*key]);
            let mut off: Vec<f64> = shared.map(|(key, time)| time.ln_ns - middles[key]).collect();
            robust::median(&mut off).unwrap_or(*level)
        };
        levels = jobs.iter().zip(&levels).map(level).collect();
        let mut of_set = vec![Vec::new(); sets.sizes.len()];
        levels.iter().zip(&sets.of).for_each(|(level, set)| of_set[*set].push(*level));
        let centres: Vec<f64> = of_set.iter_mut().map(|levels| robust::median(levels).unwrap_or(0.0)).collect();
        levels.iter_mut().zip(&sets.of).for_each(|(level, set)| *level -= centres[*set]);
    }
    (levels, middles)
}

fn own_variance(jobs: &[Job], levels: &[f64], middles: &BTreeMap<(String, Phase), f64>, sets: &Sets) -> f64 {
    let (mut squares, mut free) = (0.0, -sets.compared(jobs));
    for (key, middle) in middles {
        let found = jobs.iter().zip(levels).filter_map(|(job, level)| Some((job.times.get(key)?, level)));
        let off: Vec<f64> = found.map(|(time, level)| time.ln_ns - level - middle).collect();
        squares += off.iter().map(|off| off * off).sum::<f64>();
        free += off.len() as f64 - 1.0;
    }
    (OWN_WORTH * OWN_SD.powi(2) + squares) / (OWN_WORTH + free.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::random::Random;

    fn job(level: f64, own_sd: f64, times: usize, random: &mut Random) -> Job {
        let time = |at: usize| {
            let ln_ns = 14.0 + at as f64 / 10.0 + level + own_sd * random.normal();
            ((format!("s{at}"), Phase::Forward), Time { ln_ns, ln_sd: 0.001 })
        };
        Job { times: (0..times).map(time).collect() }
    }

    #[test]
    fn one_job_is_as_uncertain_as_jobs_usually_are() {
        let of = OfKind::of_jobs(&[job(0.0, 0.0, 5, &mut Random::new(1, 0))]);
        assert!((0.08..0.13).contains(&of.level_sd), "{}", of.level_sd);
        let time = of.measured("s2", 0).expect("measured");
        assert!((time.ln_ns - 14.2).abs() < 1e-9 && (0.04..0.07).contains(&time.ln_sd), "{time:?}");
        assert_eq!((of.measured("s2", 1), of.predicted("s2", 0)), (None, None));
    }

    #[test]
    fn several_jobs_tell_how_far_they_differ() {
        let mut random = Random::new(2, 0);
        let mut of = |level_sd: f64, own_sd: f64| {
            let jobs: Vec<Job> = (0..12).map(|_| job(level_sd * random.normal(), own_sd, 20, &mut random)).collect();
            let of = OfKind::of_jobs(&jobs);
            (of.level_sd, of.measured("s3", 0).expect("measured").ln_sd)
        };
        let (close, far, scattered) = (of(0.01, 0.005), of(0.25, 0.005), of(0.01, 0.15));
        assert!(close.0 < 0.06 && close.1 < 0.02, "{close:?}");
        assert!((0.13..0.4).contains(&far.0) && far.1 < 0.02, "{far:?}");
        assert!(scattered.0 < 0.08 && (0.1..0.2).contains(&scattered.1), "{scattered:?}");
    }

    #[test]
    fn jobs_that_have_no_time_in_common_tell_nothing_of_how_far_they_differ() {
        let mut random = Random::new(4, 0);
        let mut apart = |at: usize, level: f64| {
            let times = job(level, 0.01, 4, &mut random).times.into_iter();
            Job {
                times: times.map(|((signature, phase), time)| ((format!("{signature}/{at}"), phase), time)).collect(),
            }
        };
        let of = OfKind::of_jobs(&(0..10).map(|at| apart(at, 0.0)).collect::<Vec<_>>());
        let sd = of.measured("s1/3", 0).expect("measured").ln_sd;
        assert!(of.level_sd >= LEVEL_SD && of.level_sd.hypot(sd) > 0.11, "{} {sd}", of.level_sd);
        // Three that are alike, one of them throttled, beside others that share nothing.
        let mut random = Random::new(5, 0);
        let mut jobs: Vec<Job> = [0.3, 0.3, 1.0].map(|level| job(level, 0.001, 4, &mut random)).into();
        let before = OfKind::of_jobs(&jobs).measured("s2", 0).expect("measured").ln_ns;
        jobs.extend((0..6).map(|at| apart(at, 0.0)));
        let of = OfKind::of_jobs(&jobs);
        let time = of.measured("s2", 0).expect("measured");
        assert!((before - 14.5).abs() < 0.01 && (time.ln_ns - before).abs() < 0.01, "{before} {time:?}");
        assert!(of.level_sd > 0.25, "two of nine are told apart from another: {}", of.level_sd);
    }

    #[test]
    fn one_throttled_job_of_several_widens_and_does_not_move() {
        let mut random = Random::new(3, 0);
        let jobs: Vec<Job> = [0.0, 0.7, 0.01, -0.01].map(|level| job(level, 0.01, 8, &mut random)).into();
        let of = OfKind::of_jobs(&jobs);
        let time = of.measured("s4", 0).expect("measured");
        assert!((time.ln_ns - 14.4).abs() < 0.03 && of.level_sd > 0.2, "{time:?} {}", of.level_sd);
    }
}
