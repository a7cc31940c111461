//! A layer's own terms: how far it is from its signature's cell in each phase, and how these hang together.
//!
//! A layer that is wider, or whose experts are busier, than others of its signature takes longer in F, I and W alike: its
//! terms are a part that all phases of compute share and one of each phase's own. Taken to be independent, three phases
//! would say three times of a device what they say once: that its few layers are odd, or that it is slow.
//!
//! Both parts follow Student's t, as normal distributions at the present values (expectation maximisation): a few odd
//! layers, or odd phases, keep theirs although the others have none.

use super::fit::{OPTIMIZER, PHASES};
use super::robust;

/// How far a layer may be from its signature's cell: standard deviation of the logarithm, learned within this range.
const SD_RANGE: (f64, f64) = (0.01, 0.1);
/// The same of what its phases share, and of what each has for itself.
const PART_RANGE: (f64, f64) = (0.005, 0.1);
/// Degrees of freedom.
const FREEDOM: f64 = 3.0;

/// A symmetric matrix over a layer's phases.
pub(super) type Block = [[f64; PHASES]; PHASES];

/// Standard deviations of the two parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    shared: f64,
    apart: f64,
}

/// A layer's deviation in one phase, before anything holds it near 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deviation {
    pub layer: usize,
    pub phase: usize,
    pub value: f64,
    /// Variance of what noise makes of it.
    pub noise: f64,
}

impl Spread {
    /// As wide as may be: nothing is known.
    pub fn widest() -> Self {
        Self { shared: SD_RANGE.1 / 2_f64.sqrt(), apart: SD_RANGE.1 / 2_f64.sqrt() }
    }

    /// What deviations vary by beyond their noise, those of one layer standing side by side.
    pub fn learned(deviations: &[Deviation]) -> Self {
        let values: Vec<f64> = deviations.iter().map(|one| one.value).collect();
        let whole = beyond_noise(&values, &mut deviations.iter().map(|one| one.noise).collect::<Vec<_>>());
        let (mut apart, mut noise) = (Vec::new(), Vec::new());
        for (at, one) in deviations.iter().enumerate().filter(|(_, one)| one.phase != OPTIMIZER) {
            let others = deviations[at + 1..].iter().take_while(|other| other.layer == one.layer);
            for other in others.filter(|other| other.phase != OPTIMIZER) {
                apart.push((one.value - other.value) / 2_f64.sqrt());
                noise.push((one.noise + other.noise) / 2.0);
            }
        }
        let whole = whole.clamp(SD_RANGE.0.powi(2), SD_RANGE.1.powi(2));
        let part = |variance: f64| variance.max(0.0).sqrt().clamp(PART_RANGE.0, PART_RANGE.1);
        let apart = if apart.is_empty() { whole / 2.0 } else { beyond_noise(&apart, &mut noise).min(whole) };
        Self { shared: part(whole - apart), apart: part(apart) }
    }

    /// Precision of what holds a layer's terms near 0, at their present values.
    pub fn prior(self, terms: [f64; PHASES]) -> Block {
        let compute = |phase: &usize| *phase != OPTIMIZER;
        let precision = |value: f64, sd: f64| (FREEDOM + 1.0) / (FREEDOM * sd.powi(2) + value.powi(2));
        let count = (PHASES - 1) as f64;
        let sum: f64 = (0..PHASES).filter(compute).map(|phase| terms[phase]).sum();
        let shared = sum * self.apart.powi(-2) / (self.shared.powi(-2) + count * self.apart.powi(-2));
        let of_shared = precision(shared, self.shared);
        let own: [f64; PHASES] = std::array::from_fn(|phase| match phase {
            OPTIMIZER => precision(terms[phase], self.shared.hypot(self.apart)),
            _ => precision(terms[phase] - shared, self.apart),
        });
        // The inverse of what both parts vary by together (Sherman and Morrison).
        let all = of_shared + (0..PHASES).filter(compute).map(|phase| own[phase]).sum::<f64>();
        std::array::from_fn(|phase| {
            std::array::from_fn(|other| {
                let tie = if compute(&phase) && compute(&other) { own[phase] * own[other] / all } else { 0.0 };
                if phase == other { own[phase] - tie } else { -tie }
            })
        })
    }
}

fn beyond_noise(values: &[f64], noise: &mut [f64]) -> f64 {
    let seen = robust::scale_around(values, 0.0).unwrap_or(0.0);
    (seen.powi(2) - robust::median(noise).unwrap_or(0.0)).max(0.0)
}

/// L of L L'. The block is positive definite, as is every prior and what observations add to it.
pub(super) fn cholesky(block: &Block) -> Block {
    let mut lower = [[0.0; PHASES]; PHASES];
    for row in 0..PHASES {
        for column in 0..=row {
            let known: f64 = (0..column).map(|at| lower[row][at] * lower[column][at]).sum();
            let rest = block[row][column] - known;
            lower[row][column] =
                if row == column { rest.max(f64::MIN_POSITIVE).sqrt() } else { rest / lower[column][column] };
        }
    }
    lower
}

/// The inverse of a block.
pub(super) fn inverse(block: &Block) -> Block {
    let lower = cholesky(block);
    // Symmetric: its columns are its rows.
    std::array::from_fn(|column| {
        let mut solved: [f64; PHASES] = std::array::from_fn(|row| if row == column { 1.0 } else { 0.0 });
        for row in 0..PHASES {
            let known: f64 = (0..row).map(|at| lower[row][at] * solved[at]).sum();
            solved[row] = (solved[row] - known) / lower[row][row];
        }
        for row in (0..PHASES).rev() {
            let known: f64 = (row + 1..PHASES).map(|at| lower[at][row] * solved[at]).sum();
            solved[row] = (solved[row] - known) / lower[row][row];
        }
        solved
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::random::Random;

    /// Two blocks multiplied, the second one transposed.
    fn product(one: &Block, other: &Block) -> Block {
        one.map(|row| other.map(|column| row.iter().zip(column).map(|(a, b)| a * b).sum()))
    }

    fn near(one: &Block, other: &Block) -> bool {
        one.iter().flatten().zip(other.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn an_inverse_undoes_its_block() {
        let block = Spread { shared: 0.03, apart: 0.01 }.prior([0.02, 0.03, -0.01, 0.05]);
        let inverse = inverse(&block);
        let unit = std::array::from_fn(|row| std::array::from_fn(|at| f64::from(u8::from(row == at))));
        assert!(near(&product(&block, &inverse), &unit), "{inverse:?}");
        let lower = cholesky(&inverse);
        assert!(near(&product(&lower, &lower), &inverse), "{lower:?}");
    }

    #[test]
    fn both_parts_are_learned() {
        let mut random = Random::new(1, 0);
        for (shared, apart) in [(0.04, 0.01), (0.01, 0.04), (0.03, 0.03)] {
            let mut deviations = Vec::new();
            for layer in 0..400 {
                let of_all = shared * random.normal();
                for phase in 0..OPTIMIZER {
                    let value = of_all + apart * random.normal() + 0.01 * random.normal();
                    deviations.push(Deviation { layer, phase, value, noise: 1e-4 });
                }
            }
            let learned = Spread::learned(&deviations);
            let near = |found: f64, true_sd: f64| (found - true_sd).abs() < 0.006;
            assert!(near(learned.shared, shared) && near(learned.apart, apart), "{learned:?} {shared} {apart}");
        }
    }

    #[test]
    fn what_one_phase_tells_the_others_heed_as_far_as_they_share() {
        // One phase was seen to be 5% slower, exactly.
        let told = |spread: Spread| {
            let mut block = spread.prior([0.0; PHASES]);
            block[0][0] += 1e8;
            let covariance = inverse(&block);
            std::array::from_fn::<f64, PHASES, _>(|phase| covariance[phase][0] * 1e8 * 0.05)
        };
        let alike = told(Spread { shared: 0.04, apart: 0.005 });
        assert!((0.045..0.05).contains(&alike[1]) && alike[OPTIMIZER] == 0.0, "{alike:?}");
        let unlike = told(Spread { shared: 0.005, apart: 0.04 });
        assert!((0.0..0.003).contains(&unlike[1]), "{unlike:?}");
    }
}
