//! What the costs and slowdowns of a problem are off by, drawn together.

use super::fit;
use super::posterior::{Deviations, Posterior};
use super::random::Random;

/// The fit's distribution, by the names of the problem.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Joint {
    pub posterior: Posterior,
    /// In the fit's order.
    pub kinds: Vec<String>,
    pub signatures: usize,
    pub signature_of: Vec<usize>,
    /// By kind: the row of the device whose slowdown is 1 by convention. What the kind's costs are off by holds for what
    /// was carried over to it as well only if they are told on that device.
    pub bases: Vec<Option<usize>>,
    /// By device: its row, and the standard deviation of what its iterations have beyond it.
    pub rows: Vec<Option<(usize, f64)>>,
}

/// One draw.
pub(crate) struct Drawn<'a> {
    of: &'a Joint,
    deviations: Deviations<'a>,
    common: Vec<f64>,
}

impl Joint {
    pub fn draw(&self, random: &mut Random) -> Drawn<'_> {
        let common = self.rows.iter().map(|row| random.normal() * row.map_or(0.0, |row| row.1));
        let common = common.collect();
        Drawn { of: self, deviations: self.posterior.draw(random), common }
    }
}

impl Drawn<'_> {
    /// Logarithm of the factor of a layer's phase on a kind; none where its cell was never seen there.
    pub fn cost(&self, kind: &str, layer: usize, phase: usize) -> Option<f64> {
        let kind = self.of.kinds.iter().position(|known| known == kind)?;
        let cell = fit::cell(self.of.signatures, kind, self.of.signature_of[layer], phase);
        Some(self.deviations.cost(cell, layer, phase)? + self.base(kind))
    }

    /// Logarithm of the factor of the slowdown of a device of a kind; none of one that never ran anything.
    pub fn slowdown(&self, kind: &str, device: usize) -> Option<f64> {
        let (row, _) = (*self.of.rows.get(device)?)?;
        let base = self.of.kinds.iter().position(|known| known == kind).map_or(0.0, |kind| self.base(kind));
        Some(self.deviations.row(row) - base + self.common[device])
    }

    fn base(&self, kind: usize) -> f64 {
        self.of.bases[kind].map_or(0.0, |row| self.deviations.row(row))
    }
}
