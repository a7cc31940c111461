//! Jitter of operations: independent, heavy-tailed, and a pure function of what it is drawn for.
//!
//! A factor is `1 + noise x t / sqrt(2)` with Student's t of 4 degrees of freedom, whose variance is 2; it is not less
//! than [`FACTOR_MIN`].

use adaptis_proto::sample::Phase;

/// Least factor: no operation takes less than a fifth of its time.
pub const FACTOR_MIN: f64 = 0.2;

/// Draws the factors of one device.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    seed: u64,
    amount: f64,
}

impl Noise {
    /// `amount` is the standard deviation of a factor; 0 makes every factor exactly 1.
    pub fn new(seed: u64, device: usize, amount: f64) -> Noise {
        Noise { seed: mix(mix(seed) ^ device as u64), amount }
    }

    /// The factor on one operation.
    pub fn factor(&self, step: u64, layer: usize, microbatch: u32, phase: Phase) -> f64 {
        if self.amount == 0.0 {
            return 1.0;
        }
        let key = [step, layer as u64, u64::from(microbatch), phase as u64];
        let drawn = key.into_iter().fold(self.seed, |state, part| mix(state ^ mix(part)));
        (1.0 + self.amount * student_t4(drawn) / std::f64::consts::SQRT_2).max(FACTOR_MIN)
    }
}

/// `Z / sqrt(V / 4)` with Z normal and V chi-square of 4 degrees, `-2 ln(u v)`.
fn student_t4(seed: u64) -> f64 {
    normal(seed) / (-(uniform(seed, 3) * uniform(seed, 4)).ln() / 2.0).sqrt()
}

/// Standard normal (Box and Muller).
pub(super) fn normal(seed: u64) -> f64 {
    (-2.0 * uniform(seed, 1).ln()).sqrt() * (std::f64::consts::TAU * uniform(seed, 2)).cos()
}

/// 53 bits, above 0 so that the logarithm is finite.
fn uniform(seed: u64, number: u64) -> f64 {
    ((mix(seed.wrapping_add(number)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// SplitMix64's finaliser.
pub(super) fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_have_the_mean_deviation_and_tails_of_student() {
        let noise = Noise::new(7, 1, 0.1);
        let drawn: Vec<f64> = (0..200_000).map(|step| noise.factor(step, 3, 5, Phase::Forward)).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        let deviation = (drawn.iter().map(|f| (f - mean).powi(2)).sum::<f64>() / drawn.len() as f64).sqrt();
        assert!((mean - 1.0).abs() < 2e-3, "{mean}");
        assert!((deviation - 0.1).abs() < 0.01, "{deviation}");
        // P(|t4| > 4.604) = 0.01; a normal one has 4e-6 there.
        let beyond = drawn.iter().filter(|f| (*f - 1.0).abs() > 0.1 * 4.604 / std::f64::consts::SQRT_2).count();
        assert!((1500..2500).contains(&beyond), "{beyond}");
    }

    #[test]
    fn no_noise_is_exactly_one_and_large_noise_is_clipped() {
        assert_eq!(Noise::new(1, 0, 0.0).factor(1, 2, 3, Phase::Optimizer), 1.0);
        let wild = Noise::new(1, 0, 1.0);
        let least = (0..1000).map(|step| wild.factor(step, 0, 0, Phase::Forward)).fold(9.0, f64::min);
        assert_eq!(least, FACTOR_MIN);
    }
}
