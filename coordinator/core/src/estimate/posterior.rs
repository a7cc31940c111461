//! How well the fitted numbers are known together: the normal distribution around the fit.
//!
//! Cells, layers and rows add up in the logarithm, so the weights of the observations, and of what holds rows and layers
//! near something, are its precision. A layer's own terms touch no other layer: given cells and rows they are a block of
//! few numbers, hence only cells and rows are coupled (the Schur complement, whose Cholesky factor is kept).
//!
//! What a layer takes on a device is a sum of three, and known far better than each of them: costs that are all too high
//! by what the slowdowns are too low by predict the same times. So intervals are told of sums, and draws are joint.

use super::fit::{OPTIMIZER, Observation, PHASES};
use super::own::{self, Block};
use super::random::Random;

/// Cells and rows that may be coupled: the work grows with the third power.
const COUPLED_MAX: usize = 512;

/// What the fit was solved with.
pub(super) struct System<'a> {
    pub observations: &'a [Observation],
    /// By observation: its cell, and its weight in the end.
    pub cell_of: Vec<usize>,
    pub weights: &'a [f64],
    pub cells: usize,
    /// By layer: precision of what holds its own terms near 0; none if it has no terms.
    pub layer_priors: Vec<Option<Block>>,
    /// Row, the one before it if it is held near that one, precision of it.
    pub row_priors: Vec<(usize, Option<usize>, f64)>,
    pub rows: usize,
}

/// A layer's own terms, given cells and rows.
#[derive(Clone, Debug, Default, PartialEq)]
struct Own {
    covariance: Block,
    /// L of L L', the covariance.
    lower: Block,
    /// By phase: how far cells and rows pull the term along, by their number.
    pulled: [Vec<(usize, f64)>; PHASES],
}

/// The distribution.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Posterior {
    /// By cell: its number among the coupled ones; none where nothing was seen. Rows follow.
    cells: Vec<Option<usize>>,
    first_row: usize,
    layers: Vec<Own>,
    /// L of L L', the precision of cells and rows.
    lower: Square,
    /// Its inverse.
    covariance: Square,
}

/// The likeliest values.
pub(super) struct Mode {
    /// Of a cell; 0 where nothing was seen.
    pub cells: Vec<f64>,
    pub rows: Vec<f64>,
    /// By layer and phase.
    pub layers: Vec<f64>,
}

/// How far everything is off in one draw.
pub(crate) struct Deviations<'a> {
    of: &'a Posterior,
    coupled: Vec<f64>,
    layers: Vec<f64>,
}

impl Deviations<'_> {
    /// Of a layer's phase on a kind, of whose cell the number is given; none where nothing was seen.
    pub fn cost(&self, cell: usize, layer: usize, phase: usize) -> Option<f64> {
        Some(self.coupled[self.of.cells[cell]?] + self.layers[layer * PHASES + phase])
    }

    /// Of a row.
    pub fn row(&self, row: usize) -> f64 {
        self.coupled[self.of.first_row + row]
    }
}

impl Posterior {
    /// None where too much is coupled.
    pub(super) fn new(system: &System<'_>) -> Option<Self> {
        let mut cells = vec![None; system.cells];
        let mut first_row = 0;
        for &cell in &system.cell_of {
            if cells[cell].is_none() {
                cells[cell] = Some(first_row);
                first_row += 1;
            }
        }
        let size = first_row + system.rows;
        if size > COUPLED_MAX {
            return None;
        }
        let mut precision = Square::zero(size);
        for &(row, before, weight) in &system.row_priors {
            let at = first_row + row;
            *precision.at(at, at) += weight;
            if let Some(before) = before.map(|before| first_row + before) {
                *precision.at(before, before) += weight;
                *precision.at(at, before) -= weight;
                *precision.at(before, at) -= weight;
            }
        }
        let mut sums = vec![(0.0, Vec::new()); system.layer_priors.len() * PHASES];
        for ((seen, &cell), &weight) in system.observations.iter().zip(&system.cell_of).zip(system.weights) {
            // The optimizer says nothing of a row.
            let row = (seen.phase != OPTIMIZER).then_some(first_row + seen.row);
            let of: Vec<usize> = cells[cell].into_iter().chain(row).collect();
            let (sum, pulls) = &mut sums[seen.layer * PHASES + seen.phase];
            *sum += weight;
            for &one in &of {
                add(pulls, one, weight);
                of.iter().for_each(|&other| *precision.at(one, other) += weight);
            }
        }
        let layers = sums.chunks(PHASES).zip(&system.layer_priors).map(|(sums, prior)| {
            let Some(mut block) = *prior else { return Own::default() };
            (0..PHASES).for_each(|phase| block[phase][phase] += sums[phase].0);
            let covariance = own::inverse(&block);
            let pulled: [Vec<(usize, f64)>; PHASES] = std::array::from_fn(|phase| {
                let mut pulled = Vec::new();
                for ((_, pulls), by) in sums.iter().zip(covariance[phase]) {
                    pulls.iter().for_each(|&(of, weight)| add(&mut pulled, of, -by * weight));
                }
                pulled
            });
            for ((_, pulls), pulled) in sums.iter().zip(&pulled) {
                for &(one, by) in pulls {
                    pulled.iter().for_each(|&(other, with)| *precision.at(one, other) += by * with);
                }
            }
            Own { covariance, lower: own::cholesky(&covariance), pulled }
        });
        let layers = layers.collect();
        let lower = precision.cholesky()?;
        let covariance = lower.inverse_of_product();
        Some(Self { cells, first_row, layers, lower, covariance })
    }

    /// Where the distribution has its centre, of the `system` that it was made of. `value` gives what an observation says
    /// of its cell, layer and row together; of the optimizer, without the row.
    pub(super) fn mode(&self, system: &System<'_>, value: impl Fn(&Observation) -> f64) -> Mode {
        let mut right = vec![0.0; self.lower.size];
        let mut sums = vec![0.0; self.layers.len() * PHASES];
        for ((seen, &cell), weight) in system.observations.iter().zip(&system.cell_of).zip(system.weights) {
            let pull = weight * value(seen);
            let row = (seen.phase != OPTIMIZER).then_some(self.first_row + seen.row);
            self.cells[cell].into_iter().chain(row).for_each(|of| right[of] += pull);
            sums[seen.layer * PHASES + seen.phase] += pull;
        }
        for (own, sums) in self.layers.iter().zip(sums.chunks(PHASES)) {
            for (pulled, sum) in own.pulled.iter().zip(sums) {
                pulled.iter().for_each(|&(of, by)| right[of] += by * sum);
            }
        }
        let coupled: Vec<f64> = (0..self.lower.size)
            .map(|at| self.covariance.row(at).iter().zip(&right).map(|(a, b)| a * b).sum())
            .collect();
        let of_layer = |(own, sums): (&Own, &[f64])| {
            std::array::from_fn::<_, PHASES, _>(|phase| {
                let told: f64 = own.covariance[phase].iter().zip(sums).map(|(by, sum)| by * sum).sum();
                told + own.pulled[phase].iter().map(|&(of, by)| by * coupled[of]).sum::<f64>()
            })
        };
        Mode {
            cells: self.cells.iter().map(|cell| cell.map_or(0.0, |cell| coupled[cell])).collect(),
            rows: coupled[self.first_row..].to_vec(),
            layers: self.layers.iter().zip(sums.chunks(PHASES)).flat_map(of_layer).collect(),
        }
    }

    /// Standard deviation of what a layer's phase takes on a row, or without one; none where its cell was never seen.
    pub fn sd(&self, cell: usize, layer: usize, phase: usize, row: Option<usize>) -> Option<f64> {
        let own = &self.layers[layer];
        let mut sum = own.pulled[phase].clone();
        add(&mut sum, self.cells[cell]?, 1.0);
        if let Some(row) = row {
            add(&mut sum, self.first_row + row, 1.0);
        }
        let coupled: f64 = sum
            .iter()
            .flat_map(|&(one, by)| sum.iter().map(move |&(other, with)| (one, other, by * with)))
            .map(|(one, other, weight)| weight * self.covariance.get(one, other))
            .sum();
        Some((coupled.max(0.0) + own.covariance[phase][phase]).sqrt())
    }

    /// Standard deviation of a row alone.
    pub fn row_sd(&self, row: usize) -> f64 {
        let at = self.first_row + row;
        self.covariance.get(at, at).max(0.0).sqrt()
    }

    /// One draw.
    pub fn draw(&self, random: &mut Random) -> Deviations<'_> {
        let coupled = self.lower.solve_transposed((0..self.lower.size).map(|_| random.normal()).collect());
        let of_layer = |own: &Own| {
            let normal: [f64; PHASES] = std::array::from_fn(|_| random.normal());
            std::array::from_fn::<_, PHASES, _>(|phase| {
                let pulled: f64 = own.pulled[phase].iter().map(|&(of, by)| by * coupled[of]).sum();
                pulled + own.lower[phase].iter().zip(normal).map(|(by, normal)| by * normal).sum::<f64>()
            })
        };
        let layers = self.layers.iter().flat_map(of_layer).collect();
        Deviations { of: self, coupled, layers }
    }
}

fn add(sum: &mut Vec<(usize, f64)>, of: usize, by: f64) {
    match sum.iter_mut().find(|(known, _)| *known == of) {
        Some((_, had)) => *had += by,
        None => sum.push((of, by)),
    }
}

/// A square matrix, by rows.
#[derive(Clone, Debug, PartialEq)]
struct Square {
    size: usize,
    of: Vec<f64>,
}

impl Square {
    fn zero(size: usize) -> Self {
        Self { size, of: vec![0.0; size * size] }
    }

    fn at(&mut self, row: usize, column: usize) -> &mut f64 {
        &mut self.of[row * self.size + column]
    }

    fn get(&self, row: usize, column: usize) -> f64 {
        self.of[row * self.size + column]
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.of[row * self.size..(row + 1) * self.size]
    }

    /// L of L L'; none if rounding has made the matrix indefinite.
    fn cholesky(&self) -> Option<Self> {
        let mut lower = Self::zero(self.size);
        for row in 0..self.size {
            for column in 0..=row {
                let known: f64 =
                    lower.row(row)[..column].iter().zip(&lower.row(column)[..column]).map(|(a, b)| a * b).sum();
                let rest = self.get(row, column) - known;
                *lower.at(row, column) = match row == column {
                    true => Some(rest.sqrt()).filter(|root| *root > 0.0)?,
                    false => rest / lower.get(column, column),
                };
            }
        }
        Some(lower)
    }

    /// The inverse of L L'.
    fn inverse_of_product(&self) -> Self {
        // Row c holds column c of L's inverse, which is 0 above c.
        let mut columns = Self::zero(self.size);
        for column in 0..self.size {
            for row in column..self.size {
                let known: f64 =
                    self.row(row)[column..row].iter().zip(&columns.row(column)[column..row]).map(|(a, b)| a * b).sum();
                let unit = if row == column { 1.0 } else { 0.0 };
                *columns.at(column, row) = (unit - known) / self.get(row, row);
            }
        }
        let mut inverse = Self::zero(self.size);
        for row in 0..self.size {
            for column in 0..=row {
                let product: f64 =
                    columns.row(row)[row..].iter().zip(&columns.row(column)[row..]).map(|(a, b)| a * b).sum();
                *inverse.at(row, column) = product;
                *inverse.at(column, row) = product;
            }
        }
        inverse
    }

    /// x of L' x = `right`.
    fn solve_transposed(&self, mut right: Vec<f64>) -> Vec<f64> {
        for at in (0..self.size).rev() {
            right[at] /= self.get(at, at);
            let value = right[at];
            right[..at].iter_mut().zip(&self.row(at)[..at]).for_each(|(of, by)| *of -= by * value);
        }
        right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two layers of one signature on two devices of one kind, the second layer on both.
    fn system(observations: &[Observation], weights: &'static [f64]) -> Posterior {
        let alone = std::array::from_fn(|row| std::array::from_fn(|at| if row == at { 400.0 } else { 0.0 }));
        let system = System {
            observations,
            cell_of: vec![0; observations.len()],
            weights,
            cells: 2,
            layer_priors: vec![Some(alone); 2],
            row_priors: vec![(0, None, 10.0), (1, None, 10.0)],
            rows: 2,
        };
        Posterior::new(&system).expect("small and definite")
    }

    fn seen(row: usize, layer: usize) -> Observation {
        Observation { row, layer, phase: 0, ln_ns: 0.0, sd: 0.01 }
    }

    #[test]
    fn a_sum_is_known_better_than_its_parts() {
        let posterior = system(&[seen(0, 0), seen(0, 1), seen(1, 1)], &[1e4; 3]);
        let sd = |layer, row| posterior.sd(0, layer, 0, row).expect("the cell was seen");
        assert!(sd(0, Some(0)) < 0.01, "{}", sd(0, Some(0)));
        assert!((0.01..0.03).contains(&sd(0, Some(1))), "by way of the other layer: {}", sd(0, Some(1)));
        assert!(sd(0, None) > 0.1, "what its kind takes: {}", sd(0, None));
        assert_eq!(posterior.sd(1, 0, 0, Some(0)), None);
    }

    #[test]
    fn draws_vary_as_told() {
        let posterior = system(&[seen(0, 0), seen(0, 1), seen(1, 1)], &[1e4; 3]);
        let mut squares = [0.0; 3];
        let draws = 4_000;
        let mut random = Random::new(3, 0);
        for _ in 0..draws {
            let drawn = posterior.draw(&mut random);
            let cost = |layer| drawn.cost(0, layer, 0).expect("the cell was seen");
            for (square, value) in
                squares.iter_mut().zip([cost(0) + drawn.row(0), cost(0) + drawn.row(1), cost(1) + drawn.row(1)])
            {
                *square += value * value / f64::from(draws);
            }
        }
        for (square, (layer, row)) in squares.iter().zip([(0, 0), (0, 1), (1, 1)]) {
            let sd = posterior.sd(0, layer, 0, Some(row)).expect("the cell was seen");
            assert!((square.sqrt() / sd - 1.0).abs() < 0.05, "{} {sd}", square.sqrt());
        }
    }
}
