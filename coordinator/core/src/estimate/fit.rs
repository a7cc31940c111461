//! The cost model: log cost = cell(kind, signature, phase) + layer(layer, phase) + slowdown(row).
//!
//! A row is a stretch of one device's history within which its speed stood still. All three are fitted together, so that
//! a throttled device shows as a slow row and not as slow layers: a row has one number for dozens of works, and a
//! layer's own term is held near 0.
//!
//! 1. Within a kind the lower median of what its devices trained at before they first changed is 0: the fastest of two
//!    is what its kind costs. A calibration is a few works of a machine that just woke; it counts only until there are
//!    works of training.
//! 2. A row is held near the one before it, loosely after a detected change.
//! 3. Residuals beyond two standard deviations count less (Huber), so one odd layer does not become a slowdown.
//! 4. What earlier jobs measured of a kind stands in a row of its own, as if they were one more device of it. How far jobs
//!    differ in all that they measured is that row's, and what is far off what is measured now counts next to nothing
//!    (Student's t), so that a store that is wrong makes no device slow.
//!
//! Solved by going round the three in turn until nothing moves: each step is a weighted mean. Cells and rows that hardly
//! anything ties to others move slowly that way, so what is reached is then solved at once, as it is weighted.

mod outcome;

use super::own::{self, Block, Deviation};
use super::posterior::{Posterior, System};
use super::robust;

/// Phases, as in [`super::PHASES`].
pub(super) const PHASES: usize = 4;
/// Index of the optimizer, which says nothing of a device's compute.
pub(super) const OPTIMIZER: usize = 3;
/// Rounds in which the layers' standard deviations are learned.
const LEARNING_ROUNDS: usize = 12;
/// How far a row may be from the one before it, of the same device.
const STEADY_SD: f64 = 0.1;
/// The same behind a detected change.
const CHANGED_SD: f64 = 1.0;
/// How far a device's first row may be from its kind, and degrees of freedom of it: most devices are as their kind, a few
/// are throttled from the start.
const FIRST_SD: f64 = 0.03;
const FIRST_FREEDOM: f64 = 3.0;
/// Degrees of freedom of what earlier jobs are off by.
const EARLIER_FREEDOM: f64 = 3.0;
/// Times that all is solved at once.
const AT_ONCE: usize = 4;
/// Rounds at most; the estimate is what they reached.
const ROUNDS: usize = 400;
/// A round that moves nothing by more than this is the last.
const SETTLED: f64 = 1e-6;

/// Where a row comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Origin {
    /// Training.
    Training,
    /// Measured on purpose, outside training.
    Calibration,
    /// Earlier jobs, which may differ from this one in all they measured: standard deviation of the logarithm.
    Earlier { level_sd: f64 },
}

/// A stretch of one device's history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Of the device.
    pub kind: usize,
    /// The row before it, of the same device.
    pub before: Option<usize>,
    /// A change was detected between them.
    pub after_change: bool,
    pub origin: Origin,
}

/// What a row says of a layer and phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub row: usize,
    /// The numbers behind those of the job's layers stand for all layers of a signature, in their order.
    pub layer: usize,
    pub phase: usize,
    /// Logarithm of the time.
    pub ln_ns: f64,
    /// Its standard deviation.
    pub sd: f64,
}

/// A fitted number and its standard deviation; none where nothing was seen.
pub(crate) type Fitted = Option<(f64, f64)>;

/// The fitted model.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    /// By kind, signature, phase.
    pub cells: Vec<Vec<[Fitted; PHASES]>>,
    /// By layer, phase: 0 with its full standard deviation where nothing was seen.
    pub layers: Vec<[(f64, f64); PHASES]>,
    /// By row.
    pub rows: Vec<(f64, f64)>,
    /// By kind: the row that invariant 1 makes 0, of the device that the others are told by.
    pub bases: Vec<Option<usize>>,
    /// How well all of it is known together; none where that is too much.
    pub posterior: Option<Posterior>,
    /// What the model leaves out, as its residuals tell: standard deviation of what a layer's phase takes on a row.
    pub model_sd: f64,
    signatures: usize,
}

impl Fit {
    /// Standard deviation of what a layer of a signature takes in a phase on a row of a kind.
    pub fn sd(&self, (kind, signature, phase): (usize, usize, usize), layer: usize, row: usize) -> Option<f64> {
        self.posterior.as_ref()?.sd(cell(self.signatures, kind, signature, phase), layer, phase, Some(row))
    }
}

/// Number of a cell.
pub(super) fn cell(signatures: usize, kind: usize, signature: usize, phase: usize) -> usize {
    (kind * signatures + signature) * PHASES + phase
}

/// Precision of what holds a value near 0 that is normal with `sd` while it is small, and has heavy tails: the normal
/// distribution of Student's t at the present value.
fn student(value: f64, sd: f64) -> f64 {
    (sd.powi(2) + value.powi(2) / (EARLIER_FREEDOM + 1.0)).recip()
}

/// A running weighted mean.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.weight += weight;
    }

    fn get(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    fn sd(self) -> f64 {
        self.weight.max(f64::MIN_POSITIVE).sqrt().recip()
    }
}

struct Solver<'a> {
    rows: &'a [Row],
    observations: &'a [Observation],
    /// Of the job's layers, and of what stands for all layers of a signature.
    signature_of: Vec<usize>,
    /// How many of them are layers of the job.
    job_layers: usize,
    /// Whether a layer shares its signature, without which it has no term of its own.
    shares: Vec<bool>,
    signatures: usize,
    kinds: usize,
    cell: Vec<f64>,
    layer: Vec<f64>,
    row: Vec<f64>,
    own: own::Spread,
    weights: Vec<f64>,
    bases: Vec<Option<usize>>,
}

/// Fits the model; again, with what it leaves out, if its residuals are larger than the observations' errors.
/// `signature_of` gives each layer's signature.
pub(crate) fn fit(
    kinds: usize,
    signatures: usize,
    signature_of: &[usize],
    rows: &[Row],
    observations: &[Observation],
) -> Fit {
    let first = solve(kinds, signatures, signature_of, rows, observations);
    let model_sd = first.left_out_sd();
    if model_sd == 0.0 {
        return first.result(first.posterior(), model_sd);
    }
    let wider: Vec<Observation> =
        observations.iter().map(|seen| Observation { sd: seen.sd.hypot(model_sd), ..*seen }).collect();
    let second = solve(kinds, signatures, signature_of, rows, &wider);
    second.result(second.posterior(), model_sd)
}

fn solve<'a>(
    kinds: usize,
    signatures: usize,
    signature_of: &[usize],
    rows: &'a [Row],
    observations: &'a [Observation],
) -> Solver<'a> {
    let mut layers_of = vec![0; signatures];
    signature_of.iter().for_each(|&signature| layers_of[signature] += 1);
    let shares = signature_of.iter().map(|&signature| layers_of[signature] > 1);
    let mut solver = Solver {
        rows,
        observations,
        shares: shares.chain(std::iter::repeat_n(false, signatures)).collect(),
        signature_of: signature_of.iter().copied().chain(0..signatures).collect(),
        job_layers: signature_of.len(),
        signatures,
        kinds,
        cell: vec![0.0; kinds * signatures * PHASES],
        layer: vec![0.0; (signature_of.len() + signatures) * PHASES],
        row: vec![0.0; rows.len()],
        own: own::Spread::widest(),
        weights: observations.iter().map(|seen| seen.sd.powi(-2)).collect(),
        bases: vec![None; kinds],
    };
    solver.start();
    for round in 0..ROUNDS {
        let moved = solver.round();
        if round < LEARNING_ROUNDS {
            solver.learn_own();
        } else if moved < SETTLED {
            break;
        }
    }
    solver.solve_at_once();
    solver.anchor();
    solver
}

impl Solver<'_> {
    fn cell_of(&self, seen: &Observation) -> usize {
        cell(self.signatures, self.rows[seen.row].kind, self.signature_of[seen.layer], seen.phase)
    }

    fn is_earlier(&self, seen: &Observation) -> bool {
        matches!(self.rows[seen.row].origin, Origin::Earlier { .. })
    }

    /// Cells at the weighted medians, so that the first residuals already tell which observations are odd; of earlier jobs
    /// only where there is nothing else.
    fn start(&mut self) {
        let mut values = [vec![Vec::new(); self.cell.len()], vec![Vec::new(); self.cell.len()]];
        for (seen, weight) in self.observations.iter().zip(&self.weights) {
            values[usize::from(self.is_earlier(seen))][self.cell_of(seen)].push((seen.ln_ns, *weight));
        }
        let [own, earlier] = &mut values;
        for (cell, (own, earlier)) in self.cell.iter_mut().zip(own.iter_mut().zip(earlier)) {
            let middle = robust::weighted_median(own).or_else(|| robust::weighted_median(earlier));
            *cell = middle.unwrap_or(0.0);
        }
    }

    /// The observation less what the model says.
    fn residual(&self, seen: &Observation) -> f64 {
        seen.ln_ns - self.cell[self.cell_of(seen)] - self.layer[seen.layer * PHASES + seen.phase] - self.row[seen.row]
    }

    /// Once round rows, cells and layers; the largest move of a row or layer.
    fn round(&mut self) -> f64 {
        self.weigh();
        let mut largest: f64 = 0.0;
        for (at, mean) in self.row_means().into_iter().enumerate() {
            let value = mean.get().unwrap_or(0.0);
            largest = largest.max((value - self.row[at]).abs());
            self.row[at] = value;
        }
        for (at, mean) in self.cell_means().into_iter().enumerate() {
            self.cell[at] = mean.get().unwrap_or(0.0);
        }
        for (at, (value, _)) in self.layer_terms().into_iter().enumerate() {
            largest = largest.max((value - self.layer[at]).abs());
            self.layer[at] = value;
        }
        largest
    }

    fn row_means(&self) -> Vec<Mean> {
        let mut means = vec![Mean::default(); self.rows.len()];
        for (seen, weight) in self.observations.iter().zip(&self.weights) {
            if seen.phase != OPTIMIZER {
                means[seen.row].add(self.residual(seen) + self.row[seen.row], *weight);
            }
        }
        for (at, before, tie) in self.row_priors() {
            means[at].add(before.map_or(0.0, |before| self.row[before]), tie);
            if let Some(before) = before {
                means[before].add(self.row[at], tie);
            }
        }
        means
    }

    /// Each row, the one before it, and the precision with which it is held near that one, or near 0.
    fn row_priors(&self) -> impl Iterator<Item = (usize, Option<usize>, f64)> {
        self.rows.iter().zip(&self.row).enumerate().map(|(at, (row, value))| {
            let precision = match row.before {
                None if let Origin::Earlier { level_sd } = row.origin => student(*value, level_sd),
                None => (FIRST_FREEDOM + 1.0) / (FIRST_FREEDOM * FIRST_SD.powi(2) + value.powi(2)),
                Some(_) if row.after_change => CHANGED_SD.powi(-2),
                Some(_) => STEADY_SD.powi(-2),
            };
            (at, row.before, precision)
        })
    }

    /// The likeliest values for the weights that are reached; the first time with all devices as their kinds, so that
    /// what nothing tells of a device is not taken for its slowdown.
    fn solve_at_once(&mut self) {
        let mut reached = std::mem::replace(&mut self.row, vec![0.0; self.rows.len()]);
        for _ in 0..AT_ONCE {
            let system = self.system();
            let Some(posterior) = Posterior::new(&system) else {
                self.row = reached;
                return;
            };
            let mode = posterior.mode(&system, |seen| match seen.phase {
                OPTIMIZER => seen.ln_ns - reached[seen.row],
                _ => seen.ln_ns,
            });
            reached.clone_from(&mode.rows);
            (self.cell, self.row, self.layer) = (mode.cells, mode.rows, mode.layers);
            self.weigh();
        }
    }

    fn weigh(&mut self) {
        for at in 0..self.observations.len() {
            let seen = &self.observations[at];
            self.weights[at] = match self.is_earlier(seen) {
                true => student(self.residual(seen), seen.sd),
                false => seen.sd.powi(-2) * robust::huber(self.residual(seen) / seen.sd),
            };
        }
    }

    fn cell_means(&self) -> Vec<Mean> {
        let mut means = vec![Mean::default(); self.cell.len()];
        for (seen, weight) in self.observations.iter().zip(&self.weights) {
            let cell = self.cell_of(seen);
            means[cell].add(self.residual(seen) + self.cell[cell], *weight);
        }
        means
    }

    /// Weighted sums of the layers' own deviations, without their prior.
    fn layer_sums(&self) -> Vec<Mean> {
        let mut means = vec![Mean::default(); self.layer.len()];
        for (seen, weight) in self.observations.iter().zip(&self.weights) {
            if self.shares[seen.layer] {
                let layer = seen.layer * PHASES + seen.phase;
                means[layer].add(self.residual(seen) + self.layer[layer], *weight);
            }
        }
        means
    }

    /// The layers' own terms and their standard deviations, given cells and rows.
    fn layer_terms(&self) -> Vec<(f64, f64)> {
        let sums = self.layer_sums();
        let of_layer = |(layer, sums): (usize, &[Mean])| {
            let mut block = self.layer_prior(layer);
            (0..PHASES).for_each(|phase| block[phase][phase] += sums[phase].weight);
            let covariance = own::inverse(&block);
            let value = |of: [f64; PHASES]| of.iter().zip(sums).map(|(by, mean)| by * mean.sum).sum::<f64>();
            std::array::from_fn::<_, PHASES, _>(|at| (value(covariance[at]), covariance[at][at].sqrt()))
        };
        sums.chunks(PHASES).enumerate().flat_map(of_layer).collect()
    }

    /// Precision of what holds a layer's terms near 0.
    fn layer_prior(&self, layer: usize) -> Block {
        self.own.prior(std::array::from_fn(|phase| self.layer[layer * PHASES + phase]))
    }

    /// What the layers' deviations vary by beyond their noise.
    fn learn_own(&mut self) {
        let sums = self.layer_sums();
        // Of a few layers, their cell takes a part of what they deviate by.
        let mut seen = vec![0.0; self.signatures * PHASES];
        for (at, _) in sums.iter().enumerate().filter(|(_, mean)| mean.weight > 0.0) {
            seen[self.signature_of[at / PHASES] * PHASES + at % PHASES] += 1.0;
        }
        let deviation = |(at, mean): (usize, Mean)| {
            let (layer, phase) = (at / PHASES, at % PHASES);
            let layers: f64 = seen[self.signature_of[layer] * PHASES + phase];
            let kept = 1.0 - layers.max(1.0).recip();
            let value = (kept > 0.0).then_some(()).and(mean.get())?;
            Some(Deviation { layer, phase, value: value / kept.sqrt(), noise: mean.weight.recip() })
        };
        let deviations: Vec<Deviation> = sums.into_iter().enumerate().filter_map(deviation).collect();
        self.own = own::Spread::learned(&deviations);
    }

    /// Moves what rows and cells of a kind share, so that invariant 1 holds.
    fn anchor(&mut self) {
        let unchanged = self.unchanged();
        for kind in 0..self.kinds {
            let of_kind = |row: &Row| row.kind == kind;
            let mut unchanged: Vec<(f64, usize)> =
                unchanged.iter().filter(|(of, ..)| *of == kind).map(|&(_, ln, row)| (ln, row)).collect();
            unchanged.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let Some(&(base, base_row)) = unchanged.get(unchanged.len().saturating_sub(1) / 2) else { continue };
            self.bases[kind] = Some(base_row);
            for (row, value) in self.rows.iter().zip(&mut self.row) {
                if of_kind(row) {
                    *value -= base;
                }
            }
            let cells = self.signatures * PHASES;
            self.cell[kind * cells..(kind + 1) * cells].iter_mut().for_each(|cell| *cell += base);
        }
    }

    /// By device: its kind, and the mean of its rows of training before the first change; of its calibration while there
    /// are none. And the last of these rows.
    fn unchanged(&self) -> Vec<(usize, f64, usize)> {
        let mut works = vec![0.0; self.rows.len()];
        for (seen, weight) in self.observations.iter().zip(&self.weights) {
            if seen.phase != OPTIMIZER {
                works[seen.row] += weight;
            }
        }
        let mut devices: Vec<(usize, Mean, Mean, usize)> = Vec::new();
        // By row: its device, until the first change.
        let mut of: Vec<Option<usize>> = Vec::with_capacity(self.rows.len());
        for (at, row) in self.rows.iter().enumerate() {
            let device = match row.before {
                None if matches!(row.origin, Origin::Earlier { .. }) => None,
                None => {
                    devices.push((row.kind, Mean::default(), Mean::default(), at));
                    Some(devices.len() - 1)
                }
                Some(before) => of[before].filter(|_| !row.after_change),
            };
            of.push(device);
            if let Some((_, calibrated, trained, last)) = device.map(|device| &mut devices[device]) {
                *last = at;
                let mean = if row.origin == Origin::Calibration { calibrated } else { trained };
                mean.add(self.row[at], works[at].max(f64::MIN_POSITIVE));
            }
        }
        let level = |(kind, calibrated, trained, last): (usize, Mean, Mean, usize)| {
            Some((kind, trained.get().or(calibrated.get())?, last))
        };
        devices.into_iter().filter_map(level).collect()
    }

    fn posterior(&self) -> Option<Posterior> {
        Posterior::new(&self.system())
    }

    fn system(&self) -> System<'_> {
        let prior = |(layer, shares): (usize, &bool)| shares.then(|| self.layer_prior(layer));
        System {
            observations: self.observations,
            cell_of: self.observations.iter().map(|seen| self.cell_of(seen)).collect(),
            weights: &self.weights,
            cells: self.cell.len(),
            layer_priors: self.shares.iter().enumerate().map(prior).collect(),
            row_priors: self.row_priors().collect(),
            rows: self.rows.len(),
        }
    }
}
