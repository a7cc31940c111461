//! Microbatches that differ in length: their works take as long as their sequences ask for. What is really trained on is as
//! long as ever, so no bit of the result depends on it.
//!
//! A length is log-normal around the shape's and a pure function of the seed, the step and the microbatch: all devices draw
//! the same. A cost of the truth is the mean one.

use super::noise::{mix, normal};
use crate::backend::cpu::LayerType;
use adaptis_proto::Microbatch;
use adaptis_proto::sample::{Phase, Place, Sample};

/// Lengths are within this factor of the usual one, either way.
const FACTOR_MAX: f64 = 8.0;
/// Shares of a layer's time that are fixed and that follow the squared length, the latter of attention alone; the rest
/// follows the length.
const FIXED: f64 = 0.1;
const SQUARES: f64 = 0.4;

/// The lengths of a run's microbatches.
#[derive(Clone, Debug, Default)]
pub struct Lengths {
    seed: u64,
    /// Standard deviation of the logarithm; 0 makes all alike.
    ln_sd: f64,
    /// Tokens of the usual one.
    tokens: f64,
    types: Vec<LayerType>,
}

impl Lengths {
    /// `tokens` is the mean length, `types` are those of the layers.
    pub fn new(seed: u64, ln_sd: f64, tokens: usize, types: Vec<LayerType>) -> Lengths {
        Lengths { seed: mix(mix(seed) ^ u64::from_le_bytes(*b"lengths\0")), ln_sd, tokens: tokens as f64, types }
    }

    /// A length over the mean one.
    fn length(&self, step: u64, microbatch: u32) -> f64 {
        let drawn = mix(mix(self.seed ^ mix(step)) ^ mix(u64::from(microbatch)));
        let ln = self.ln_sd * normal(drawn) - self.ln_sd.powi(2) / 2.0;
        ln.exp().clamp(FACTOR_MAX.recip(), FACTOR_MAX)
    }

    /// Time of a work over what its layer takes in the mean.
    pub fn factor(&self, step: u64, layer: usize, microbatch: u32, phase: Phase) -> f64 {
        if self.ln_sd == 0.0 || phase == Phase::Optimizer {
            return 1.0;
        }
        let length = self.length(step, microbatch);
        let squares = if self.types.get(layer) == Some(&LayerType::Attention) { SQUARES } else { 0.0 };
        // The mean of a squared log-normal length of mean 1.
        let square = length * length / self.ln_sd.powi(2).exp();
        FIXED + (1.0 - FIXED - squares) * length + squares * square
    }

    /// What a rank records of an iteration's microbatches; nothing where all are alike.
    pub fn loads(&self, place: Place, microbatches: u32) -> impl Iterator<Item = Sample> {
        let count = if self.ln_sd == 0.0 { 0 } else { microbatches };
        (0..count).map(move |microbatch| {
            let tokens = (self.length(place.step.0, microbatch) * self.tokens).round() as u64;
            let (microbatch, squares) = (Microbatch(microbatch), tokens * tokens);
            Sample::Load { place, microbatch, tokens, squares, busiest: 0 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_the_mean_one_and_follows_the_length() {
        let lengths = Lengths::new(7, 0.4, 1_000, vec![LayerType::Embedding, LayerType::Attention]);
        let mean = |layer| (0..200_000).map(|step| lengths.factor(step, layer, 3, Phase::Forward)).sum::<f64>() / 2e5;
        assert!((mean(0) - 1.0).abs() < 5e-3 && (mean(1) - 1.0).abs() < 1e-2, "{} {}", mean(0), mean(1));
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for sample in lengths.loads(Place::default(), 64) {
            let Sample::Load { microbatch, tokens, squares, .. } = sample else { unreachable!("loads alone") };
            assert_eq!(squares, tokens * tokens);
            let factor = lengths.factor(0, 0, microbatch.0, Phase::InputGradient);
            assert!((factor - FIXED - (1.0 - FIXED) * tokens as f64 / 1e3).abs() < 1e-3, "{factor} {tokens}");
            assert_eq!(lengths.factor(0, 0, microbatch.0, Phase::Optimizer), 1.0);
            (least, most) = (least.min(factor), most.max(factor));
        }
        assert!(least < 0.7 && most > 1.5, "{least} {most}");
    }

    #[test]
    fn alike_they_change_nothing_and_nothing_is_recorded() {
        let lengths = Lengths::new(7, 0.0, 1_000, vec![LayerType::Attention]);
        assert_eq!(lengths.factor(1, 0, 3, Phase::Forward), 1.0);
        assert_eq!(lengths.loads(Place::default(), 8).count(), 0);
    }
}
