//! What of the computes may be slow: stages, workers, replicas, and the lengths of sequences.

use super::findings::{Candidate, Cause, FACTOR_MIN};
use super::levels::Levels;
use super::recording::{Direction, Recording, Worker};
use super::times::DIRECTIONS;
use super::{Kind, Place, interval, onset};
use crate::estimate::robust::{MAD_TO_SD, lower_median};

/// Standard deviations of what workers differ by, beyond which one is no longer like the others.
const UNLIKE_SD: f64 = 4.0;
/// Standard deviation of the logarithm that workers of a kind differ by at most, lengths aside: where many are slow, they
/// are no measure of it themselves.
const LIKE_SD_MAX: f64 = 0.03;
/// Root mean square of lengths' logarithms up to which sequences count as even.
const EVEN_LENGTHS: f64 = 0.05;
/// F and B differ by less than this where only one of them is slow.
const OTHER_WAY_LN: f64 = 0.03;
/// Lengths count only where F and B agree on at least this share of their variance.
const LENGTH_SHARE_MIN: f64 = 0.5;
const BOTH: [usize; DIRECTIONS] = [0, 1];

/// Stages, workers, replicas and lengths.
pub(super) fn candidates(recording: &Recording, levels: &Levels) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    if levels.times.stages > 1 {
        for stage in 0..levels.times.stages {
            let own = |at, chunk, way| levels.of_replicas(at, chunk, way, None);
            let other = |at, _, way| levels.of_other_stages(at, stage, way);
            let factors = levels.ratios(&levels.times.chunks_of(stage), &BOTH, own, other);
            let place = Place { stage: Some(stage as u32), ..Place::default() };
            candidates.push(Candidate::new(Cause::Stage(stage), Kind::Stage, place, factors));
        }
    }
    if levels.times.replicas > 1 {
        let worker = |worker: &Worker| Candidate {
            common_sd: levels.worker_sd(),
            ..of_worker(levels, worker.dp_rank, worker.stage)
        };
        let steady: Vec<Candidate> = recording.workers.iter().map(worker).collect();
        let unsteady = recording.workers.iter().zip(&steady).map(|(worker, steady)| of_times(levels, *worker, steady));
        let unsteady: Vec<Candidate> =
            beyond_their_like(unsteady.collect(), f64::INFINITY).into_iter().filter(|of| of.is_unsteady).collect();
        let since: Vec<Candidate> = recording.workers.iter().filter_map(|of| since(recording, levels, *of)).collect();
        // A worker that became slow is that, and neither slow all along nor at times.
        let is_told = |of: &Candidate| {
            let place = |of: &Candidate| (of.place.dp_rank, of.place.stage);
            since.iter().any(|since| place(since) == place(of))
        };
        let steady = beyond_their_like(steady, like_sd_max(levels));
        let others = unsteady.into_iter().chain(steady).filter(|of| !is_told(of));
        candidates.extend(others.collect::<Vec<_>>());
        candidates.extend(since);
    }
    let lengths = levels.length_factors();
    if levels.length_share >= LENGTH_SHARE_MIN {
        candidates.push(Candidate::new(Cause::Length, Kind::Length, Place::default(), lengths));
    } else if levels.times.replicas > 1 && levels.times.stages > 1 {
        let ranks: std::collections::BTreeSet<u32> = recording.workers.iter().map(|worker| worker.dp_rank).collect();
        for dp_rank in ranks {
            let place = Place { dp_rank: Some(dp_rank), ..Place::default() };
            let factors = levels.replica_factors(levels.times.replica(dp_rank));
            candidates.push(Candidate::new(Cause::Replica(dp_rank), Kind::Worker, place, factors));
        }
    }
    candidates
}

/// What workers differ by at most where nobody is slow. With one stage and uneven sequences nothing is known of it: their
/// middle may be a long one for some and a short one for others.
fn like_sd_max(levels: &Levels) -> f64 {
    let lengths_hide = levels.times.stages < 2 && levels.length_rms() > EVEN_LENGTHS;
    if lengths_hide { f64::INFINITY } else { LIKE_SD_MAX.hypot(levels.worker_sd()) }
}

/// Those that differ by more than most of them do, or by more than `sd_max` allows.
fn beyond_their_like(mut workers: Vec<Candidate>, sd_max: f64) -> Vec<Candidate> {
    let ln = |worker: &Candidate| worker.ln().0;
    let scale = MAD_TO_SD * lower_median(&mut workers.iter().map(|of| ln(of).abs()).collect::<Vec<_>>()).unwrap_or(0.0);
    workers.retain(|worker| ln(worker) > UNLIKE_SD * scale.min(sd_max));
    workers
}

/// A worker against the others of its stage; one type of operation of it, if only that one is slow.
fn of_worker(levels: &Levels, dp_rank: u32, stage: u32) -> Candidate {
    let (replica, chunks) = (levels.times.replica(dp_rank), levels.times.chunks_of(stage as usize));
    let factors = |ways: &[usize]| {
        let own = |at, chunk, way| levels.usual(at, replica, chunk, way);
        let other = |at, chunk, way| levels.of_replicas(at, chunk, way, Some(replica));
        levels.ratios(&chunks, ways, own, other)
    };
    let by_way = Direction::ALL.map(|direction| factors(&[direction as usize]));
    let ln = by_way.each_ref().map(|factors| interval::ln_median(factors).map_or(0.0, |(ln, _)| ln));
    let slow = if ln[0] > ln[1] { Direction::Forward } else { Direction::Backward };
    let other = 1 - slow as usize;
    let mut place = Place { dp_rank: Some(dp_rank), stage: Some(stage), ..Place::default() };
    if ln[slow as usize] > 2.0 * OTHER_WAY_LN && ln[other].abs() < OTHER_WAY_LN {
        place.operation = Some(slow.operation().to_owned());
        let cause = Cause::Worker(dp_rank, stage, Some(slow));
        let [forward, backward] = by_way;
        let factors = if slow == Direction::Forward { forward } else { backward };
        return Candidate::new(cause, Kind::Operation, place, factors);
    }
    Candidate::new(Cause::Worker(dp_rank, stage, None), Kind::Worker, place, factors(&BOTH))
}

/// A worker by the mean of its times, where most of what it is slower by does not show in the middle of them.
fn of_times(levels: &Levels, worker: Worker, steady: &Candidate) -> Candidate {
    let Worker { dp_rank, stage } = worker;
    let factors = levels.mean_factors(levels.times.replica(dp_rank), stage as usize);
    let ln = interval::ln_mean(&factors).map_or(0.0, |(ln, _)| ln);
    let place = Place { dp_rank: Some(dp_rank), stage: Some(stage), ..Place::default() };
    Candidate {
        is_unsteady: steady.ln().0 < 0.5 * ln,
        common_sd: steady.common_sd,
        ..Candidate::new(Cause::Unsteady(dp_rank, stage, ln), Kind::Worker, place, factors)
    }
}

/// A worker that became slower within the recording, or recovered: what it takes over the others of its stage is more from
/// an iteration on, or up to one, and little in the others. One that they were slower than before did not change itself.
fn since(recording: &Recording, levels: &Levels, worker: Worker) -> Option<Candidate> {
    let Worker { dp_rank, stage } = worker;
    let (replica, chunks) = (levels.times.replica(dp_rank), levels.times.chunks_of(stage as usize));
    let own = |at, chunk, way| levels.usual(at, replica, chunk, way);
    let other = |at, chunk, way| levels.of_replicas(at, chunk, way, Some(replica));
    let ln: Vec<f64> = levels.ratios(&chunks, &BOTH, own, other).into_iter().map(f64::ln).collect();
    // One without a value would move the places of those behind it.
    if ln.len() != levels.times.iterations {
        return None;
    }
    let candidate = |found: onset::Onset| {
        let before = found.before.max(0.0);
        let (change, ends) = (found.after - before, [found.places.start, found.places.end - 1]);
        let [first, last] = ends.map(|at| u64::try_from(recording.iterations[at].number).ok());
        let place = Place {
            dp_rank: Some(dp_rank),
            stage: Some(stage),
            iteration: first.filter(|_| found.places.start > 0),
            last_iteration: last.filter(|_| found.places.end < ln.len()),
            ..Place::default()
        };
        let factors = ln[found.places.clone()].iter().map(|ln| (ln - before).exp()).collect();
        let recovered = found.places.end < ln.len();
        // A run of longer sequences looks like it, and of many stretches one may well have one.
        let by_length = match recovered || levels.times.stages < 2 {
            true => levels.worker_sd() * (ln.len() as f64 / found.places.len() as f64).sqrt(),
            false => 0.0,
        };
        let candidate = Candidate {
            common_sd: found.before_sd.hypot(by_length),
            ..Candidate::new(Cause::Since(dp_rank, stage, found.places.clone(), change), Kind::Worker, place, factors)
        };
        // It could have begun in any iteration, and ended in any.
        let last_ones = if recovered { levels.times.iterations } else { 1 };
        let among = recording.workers.len() * levels.times.iterations * last_ones;
        let is_slow = found.after > FACTOR_MIN.ln() && before < 0.5 * found.after;
        (is_slow && candidate.is_beyond_noise(among)).then_some(candidate)
    };
    onset::stretch(&ln).and_then(candidate).or_else(|| onset::of(&ln).and_then(candidate))
}
