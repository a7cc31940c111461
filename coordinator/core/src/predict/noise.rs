//! How far measurements of one cell scatter: what no model of cells explains.

use super::measurement::{MeasuredPhase, Measurement};
use super::place::Place;

/// Deviation of the log of a time: of a forward, of look-ups, of the gradients, of the optimizer.
const FORWARD: f64 = 0.035;
const LOOKUP: f64 = 0.035;
const GRADIENT: f64 = 0.018;
const OPTIMIZER: f64 = 0.001;
/// What launching and timing add to a work, deviation in seconds.
const LAUNCH_SECONDS: f64 = 5e-6;
/// Fewer times may share a step by chance.
const TIMES_MIN: usize = 6;
/// Steps that sources round to, in seconds, from coarse to fine.
const STEPS: [f64; 4] = [1e-3, 1e-4, 1e-5, 1e-6];

/// The step that all times of one source are rounded to; 0 if there is none. A median may lie half a step off.
pub(super) fn step_of(seconds: &[f64]) -> f64 {
    let is_rounded_to = |step: f64| {
        let is_whole = |seconds: &f64| {
            let halves = seconds / step * 2.0;
            (halves - halves.round()).abs() < 1e-9 * halves.max(1.0)
        };
        seconds.iter().all(is_whole)
    };
    if seconds.len() < TIMES_MIN { 0.0 } else { STEPS.into_iter().find(|step| is_rounded_to(*step)).unwrap_or(0.0) }
}

/// The variance of the log of a time, of a source that rounds to `step`.
pub(super) fn variance(place: &Place, seconds: f64, step: f64) -> f64 {
    let (own, launch) = match place.phase {
        MeasuredPhase::Optimizer => (OPTIMIZER, 0.0),
        _ if place.is_lookup => (LOOKUP, LAUNCH_SECONDS),
        MeasuredPhase::Forward | MeasuredPhase::Recompute => (FORWARD, LAUNCH_SECONDS),
        _ => (GRADIENT, LAUNCH_SECONDS),
    };
    // A time rounded to a step is off by at most half of it, evenly.
    let rounded = step * step / 12.0;
    own * own + (launch * launch + rounded) / (seconds * seconds)
}

/// How much the optimizer's times of different layers differ in one setting: the deviation of their logs. With no setting
/// that has two of them, as much as layers may.
pub(super) fn between_layers(places: &[Place], measurements: &[Measurement]) -> f64 {
    const UNSEEN: f64 = 0.5;
    const LEAST: f64 = 0.002;
    let is_optimizer = |index: &usize| places[*index].phase == MeasuredPhase::Optimizer;
    let (mut squares, mut count) = (0.0, 0_u32);
    for index in (0..places.len()).filter(is_optimizer) {
        let same = (0..places.len()).filter(is_optimizer).filter(|&other| places[other].shares_setting(&places[index]));
        let logs: Vec<f64> = same.map(|other| measurements[other].seconds.ln()).collect();
        if logs.len() > 1 {
            let mean = logs.iter().sum::<f64>() / logs.len() as f64;
            squares += (measurements[index].seconds.ln() - mean).powi(2);
            count += 1;
        }
    }
    if count == 0 { UNSEEN } else { (squares / f64::from(count)).sqrt().clamp(LEAST, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_that_times_are_rounded_to() {
        for (seconds, step) in [
            (&[0.0023, 0.0886, 0.1784, 0.0007, 0.0024, 0.0911][..], 1e-4),
            (&[0.0023, 0.08865, 0.1784, 0.0007, 0.0024, 0.0911], 1e-4), // one between two
            (&[0.003114, 0.000003, 0.00655, 0.005173, 0.011632, 0.01], 1e-6),
            (&[0.1, 0.2, 0.1, 0.3, 0.5, 0.001], 1e-3),
            (&[0.1, 0.2], 0.0),
            (&[0.1, 0.2, 1.0 / 3.0, 0.5, 0.7, 0.9], 0.0),
        ] {
            assert_eq!(step_of(seconds), step, "{seconds:?}");
        }
    }
}
