//! Whether readings rose little by little rather than at once: a ramp is fitted beside the step, by least squares of
//! clipped residuals, and must explain clearly more.

/// Iterations at the end that tell where a gradual drift has got to.
pub(super) const LATEST: usize = 4;
/// Iterations below which a rise is taken for a step.
const LENGTH_MIN: usize = 10;
/// By how much a ramp must explain the readings better, in squares of their standard deviation.
const BETTER: f64 = 9.0;
/// Residuals beyond this many standard deviations count as this many.
const CLIP_SD: f64 = 3.0;

/// A gradual rise of readings, in their direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ramp {
    /// Index of the last reading before it.
    pub from: usize,
    /// Rise from a reading to the next.
    pub slope: f64,
    /// Level at the last reading.
    pub reached: f64,
}

/// The ramp that explains readings better than a step to `size` at `onset` does, if one does.
pub(super) fn find(off: &[f64], onset: usize, size: f64, sd: f64) -> Option<Ramp> {
    let clipped = |residual: f64| residual.powi(2).min((CLIP_SD * sd).powi(2));
    let step: f64 = off.iter().enumerate().map(|(at, off)| clipped(off - if at >= onset { size } else { 0.0 })).sum();
    let last = off.len().checked_sub(LENGTH_MIN + 1)?;
    let ramp = |from: usize| {
        let rise = |at: usize| at.saturating_sub(from) as f64;
        let (products, squares) = off.iter().enumerate().fold((0.0, 0.0), |(products, squares), (at, off)| {
            (products + off.min(2.0 * size) * rise(at), squares + rise(at).powi(2))
        });
        let slope = products / squares;
        let rest: f64 = off.iter().enumerate().map(|(at, off)| clipped(off - slope * rise(at))).sum();
        (rest, Ramp { from, slope, reached: slope * rise(off.len() - 1) })
    };
    let (rest, best) = (0..=last).map(ramp).min_by(|a, b| a.0.total_cmp(&b.0))?;
    (step - rest > BETTER * sd.powi(2) && best.slope > 0.0).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::random::Random;

    /// Readings that rise to 0.1 within so many iterations, 40 of them in all.
    fn rising(iterations: usize, sd: f64, seed: u64) -> Vec<f64> {
        let mut random = Random::new(seed, 0);
        let level = |at: usize| 0.1 * (at.saturating_sub(40 - iterations) as f64 / iterations as f64).min(1.0);
        (0..40).map(|at| level(at) + sd * random.normal()).collect()
    }

    #[test]
    fn a_ramp_is_told_from_a_step() {
        let (mut ramps, mut steps) = (0, 0);
        for seed in 0..100 {
            let ramp = rising(30, 0.01, seed);
            let found = find(&ramp, 25, 0.07, 0.01);
            ramps +=
                usize::from(found.is_some_and(|ramp| (ramp.reached - 0.1).abs() < 0.02 && ramp.from.abs_diff(10) < 8));
            let mut random = Random::new(seed, 1);
            let step: Vec<f64> = (0..40).map(|at| if at < 30 { 0.0 } else { 0.1 } + 0.01 * random.normal()).collect();
            steps += usize::from(find(&step, 30, 0.1, 0.01).is_none());
        }
        assert!(ramps >= 95 && steps >= 98, "{ramps} ramps, {steps} steps of 100");
        assert_eq!(find(&[0.0, 0.1, 0.2], 1, 0.1, 0.01), None);
    }
}
