//! What a solved model comes to: its numbers, how well each is known, and what the model leaves out.

use super::{Fit, OPTIMIZER, Observation, Origin, PHASES, Posterior, Solver, System, cell};
use crate::estimate::robust;

/// Residuals below which nothing is said of what the model leaves out.
const RESIDUALS_MIN: usize = 24;
/// Share of an observation's variance that the fit does not follow, below which its residual says nothing.
const FREE_MIN: f64 = 0.2;
/// Where fewer numbers are coupled than there are: no part of the model is taken to be better known than this.
const PART_SD_MIN: f64 = 0.008;

impl Solver<'_> {
    /// What residuals vary by beyond the errors of the observations: works of a layer that take longer on one device
    /// than its kind, its own term and the device's slowdown say, and that no iteration averages out.
    pub(super) fn left_out_sd(&self) -> f64 {
        // What is odd counts in full: it is what is looked for.
        let full: Vec<f64> = self.observations.iter().map(|seen| seen.sd.powi(-2)).collect();
        let Some(posterior) = Posterior::new(&System { weights: &full, ..self.system() }) else { return 0.0 };
        let (mut residuals, mut variances) = (Vec::new(), Vec::new());
        let trained = |seen: &&Observation| seen.phase != OPTIMIZER && self.rows[seen.row].origin == Origin::Training;
        for seen in self.observations.iter().filter(trained) {
            let fitted = posterior.sd(self.cell_of(seen), seen.layer, seen.phase, Some(seen.row)).unwrap_or(0.0);
            let free = seen.sd.powi(2) - fitted.powi(2);
            if free > FREE_MIN * seen.sd.powi(2) {
                residuals.push(self.residual(seen) / free.sqrt());
                variances.push(seen.sd.powi(2));
            }
        }
        if residuals.len() < RESIDUALS_MIN {
            return 0.0;
        }
        let scale = robust::scale_around(&residuals, 0.0).unwrap_or(0.0);
        let variance = robust::median(&mut variances).unwrap_or(0.0);
        (robust::beyond_chance(scale, residuals.len()) * variance).sqrt()
    }

    /// By cell that nothing but earlier jobs tell of: what stands for its signature, and their row.
    fn of_earlier_alone(&self) -> Vec<Option<(usize, usize)>> {
        let (mut of_earlier, mut is_own) = (vec![None; self.cell.len()], vec![false; self.cell.len()]);
        for seen in self.observations {
            let cell = self.cell_of(seen);
            match self.is_earlier(seen) {
                true => of_earlier[cell] = Some((seen.layer, seen.row)),
                false => is_own[cell] = true,
            }
        }
        of_earlier.into_iter().zip(is_own).map(|(of, is_own)| of.filter(|_| !is_own)).collect()
    }

    /// What earlier jobs may be off by in all they tell: as all is known together, else as was said before.
    fn level_sd(&self, row: usize, posterior: Option<&Posterior>) -> Option<f64> {
        match self.rows[row].origin {
            Origin::Earlier { level_sd } => Some(posterior.map_or(level_sd, |posterior| posterior.row_sd(row))),
            Origin::Training | Origin::Calibration => None,
        }
    }

    /// The fit as it is told.
    pub(super) fn result(&self, posterior: Option<Posterior>, model_sd: f64) -> Fit {
        let (cells, layers, rows) = (self.cell_means(), self.layer_terms(), self.row_means());
        let of_earlier = self.of_earlier_alone();
        let cell_sd = |at: usize, phase: usize| {
            let sd = cells[at].sd().max(PART_SD_MIN);
            let Some((layer, row)) = of_earlier[at] else { return sd };
            let together = posterior.as_ref().and_then(|posterior| posterior.sd(at, layer, phase, None));
            together.unwrap_or_else(|| sd.hypot(self.level_sd(row, None).unwrap_or(0.0)))
        };
        let rows = rows.into_iter().enumerate().map(|(at, mean)| {
            let sd = self.level_sd(at, posterior.as_ref()).unwrap_or_else(|| mean.sd().max(PART_SD_MIN));
            (self.row[at], sd)
        });
        let cells = (0..self.kinds).map(|kind| {
            let of_signature = |signature: usize| {
                std::array::from_fn(|phase| {
                    let at = cell(self.signatures, kind, signature, phase);
                    cells[at].get().map(|_| (self.cell[at], cell_sd(at, phase)))
                })
            };
            (0..self.signatures).map(of_signature).collect()
        });
        let layers = (0..self.job_layers).map(|layer| {
            std::array::from_fn(|phase| {
                let at = layer * PHASES + phase;
                (self.layer[at], layers[at].1)
            })
        });
        Fit {
            cells: cells.collect(),
            layers: layers.collect(),
            rows: rows.collect(),
            bases: self.bases.clone(),
            posterior,
            model_sd,
            signatures: self.signatures,
        }
    }
}
