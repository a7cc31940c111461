//! Scalar functions, written out so that they are vectorised and have the same bits under every C library.

/// Below it `exp` would be subnormal.
const EXP_LOW: f32 = -87.0;
/// Above it `exp` would overflow.
const EXP_HIGH: f32 = 88.0;

/// `e^x` within 3 units in the last place on `[-87, 88]`, and the nearer end's value outside.
///
/// Range reduction to `|r| <= ln(2)/2` and the polynomial of Cephes' `expf`. Adding `1.5 * 2^23` rounds to a whole
/// number and leaves it in the low bits of the mantissa, from where it is shifted into an exponent.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(EXP_LOW, EXP_HIGH);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = x - whole * LN2_HIGH - whole * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let reduced = p * r * r + r + 1.0;
    reduced * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// `1 / (1 + e^-x)`.
#[inline]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Derivative of `silu(x) = x * sigmoid(x)`, from `sigmoid(x)` and `silu(x)`.
#[inline]
pub(super) fn silu_derivative(sigmoid: f32, silu: f32) -> f32 {
    sigmoid + silu * (1.0 - sigmoid)
}

/// Turns `logits` into their softmax. Returns the logarithm of the sum of their exponentials, less the largest logit,
/// and that logit.
pub(super) fn softmax(logits: &mut [f32]) -> Normaliser {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for logit in logits.iter_mut() {
        *logit = exp(*logit - largest);
    }
    let sum = sum(logits);
    let inverse = 1.0 / sum;
    for probability in logits.iter_mut() {
        *probability *= inverse;
    }
    Normaliser { largest, sum }
}

/// What [`softmax`] divided by: `exp(largest) * sum`.
pub(super) struct Normaliser {
    largest: f32,
    sum: f32,
}

impl Normaliser {
    /// Minus the logarithm of the probability of what had `logit`.
    pub(super) fn surprise(&self, logit: f32) -> f32 {
        self.sum.ln() + self.largest - logit
    }
}

/// Partial sums that run side by side; their number is part of the result.
const LANES: usize = 8;

/// Sum of products, in one fixed order that vectorises.
pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (left_chunks, left_rest) = left.as_chunks::<LANES>();
    let (right_chunks, right_rest) = right.as_chunks::<LANES>();
    for (l, r) in left_chunks.iter().zip(right_chunks) {
        for lane in 0..LANES {
            lanes[lane] += l[lane] * r[lane];
        }
    }
    for (lane, (l, r)) in left_rest.iter().zip(right_rest).enumerate() {
        lanes[lane] += l * r;
    }
    fold(lanes)
}

/// Sum, in one fixed order that vectorises.
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        lanes[lane] += value;
    }
    fold(lanes)
}

fn fold(lanes: [f32; LANES]) -> f32 {
    ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_three_units_in_the_last_place() {
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * exact;
            assert!((f64::from(exp(x)) - exact).abs() <= 3.0 * unit, "exp({x}) = {}, not {exact}", exp(x));
        }
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exp(-1e30), exp(EXP_LOW));
        assert!(exp(1e30).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn dot_takes_lengths_that_lanes_do_not_divide() {
        for length in 0..40 {
            let left: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let expected: f32 = left.iter().map(|l| l * l).sum();
            assert_eq!(dot(&left, &left), expected);
            assert_eq!(sum(&left), left.iter().sum::<f32>());
        }
    }
}
