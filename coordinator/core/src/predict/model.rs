//! The model: fitted to measurements, asked for cells.

use super::calibration::Calibration;
use super::covariance::Covariance;
use super::launches::Launches;
use super::matrix::{Matrix, dot};
use super::measurement::{Cell, MeasuredPhase, Measurement, condense};
use super::noise;
use super::place::{Names, Place};
use crate::estimate::ratio_of_rates;
use adaptis_proto::rates::Rates;
use std::collections::BTreeMap;

/// Standard deviations from the middle of a normal distribution to the ends of the central 90%.
const CENTRAL_90_SD: f64 = 1.645;
/// Measurements that are fitted together; of more, those that have most in common with what is asked for.
const MEASUREMENTS_MAX: usize = 1_200;
/// Fits of the weights of outliers.
const ROUNDS: usize = 3;
/// Degrees of freedom of the scatter: as heavy as its tails are.
const FREEDOM: f64 = 4.0;

/// What a cell costs, with an interval in which nine of ten lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The median.
    pub seconds: f64,
    /// 5th percentile.
    pub low: f64,
    /// 95th percentile.
    pub high: f64,
    /// What it rests on.
    pub source: Source,
}

/// What a prediction rests on, the nearest that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The cell.
    Measured,
    /// The same layer and phase on this kind, of other sizes of microbatch or splits.
    SameCurve,
    /// Works of its like, no longer than their launch.
    Launch,
    /// Another phase of the same layer on this kind, with the ratio of both elsewhere.
    OtherPhase,
    /// Layers of this type on this kind, of other shapes.
    OtherShape,
    /// The layer on other kinds, with the ratio of the kinds on what both ran.
    OtherKinds,
    /// Layers of this type on other kinds, and what else this kind ran.
    OtherLayers,
    /// Layers of this type on other kinds, and what this kind and those did in calibrations. Nothing was measured on this
    /// one.
    Rates,
    /// Layers of this type on other kinds. Nothing was measured on this one.
    UnknownKind,
}

impl Source {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Source::Measured => "measured",
            Source::SameCurve => "same curve",
            Source::Launch => "launch",
            Source::OtherPhase => "other phase",
            Source::OtherShape => "other shape",
            Source::OtherKinds => "other kinds",
            Source::OtherLayers => "other layers",
            Source::Rates => "calibrated rates",
            Source::UnknownKind => "unknown kind",
        }
    }
}

/// Why nothing can be said about a cell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum CannotPredict {
    /// Nothing was measured at all.
    #[error("there is no measurement")]
    Nothing,
    /// Its layer is like none.
    #[error("no layer of type {layer:?} was measured on any kind: measure {signature:?} or one of its type")]
    Layer {
        /// The type.
        layer: String,
        /// The signature.
        signature: String,
    },
    /// Its phase is like none.
    #[error("no {phase} was measured on any kind: measure one, of any layer")]
    Phase {
        /// Which.
        phase: MeasuredPhase,
    },
}

/// Measurements, fitted.
#[derive(Clone, Debug)]
pub struct Predictor {
    names: Names,
    places: Vec<Place>,
    measurements: Vec<Measurement>,
    launches: Launches,
    covariance: Covariance,
    /// By kind and family: what its source rounds to.
    steps: BTreeMap<(u32, u32), f64>,
    /// Of the log of the optimizer's times, and of all others.
    centres: [f64; 2],
    fit: Fit,
    calibration: Calibration,
    /// By kind: what its devices did in calibrations.
    rates: BTreeMap<String, Rates>,
}

/// The solved system.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    /// Inverse of the covariance of the measurements, scatter included.
    pub inverse: Matrix,
    /// It times their logs, off centre.
    pub weights: Vec<f64>,
    /// Variance of the scatter that a measurement of the place would have.
    pub scatter: Vec<f64>,
    /// That which was taken for this measurement: larger for outliers.
    pub scatter_taken: Vec<f64>,
}

impl Predictor {
    /// Fits measurements; what will be asked for tells which ones matter where there are very many.
    ///
    /// Times that are not positive and finite are left out.
    pub fn fit(measurements: &[Measurement], asked: &[Cell]) -> Self {
        let is_time = |found: &&Measurement| found.seconds > 0.0 && found.seconds.is_finite();
        let usable: Vec<Measurement> = measurements.iter().filter(is_time).cloned().collect();
        let mut names = Names::default();
        let (short, works): (Vec<_>, Vec<_>) = condense(&usable).into_iter().partition(Launches::is_one);
        let mut launches = Launches::default();
        for found in short {
            launches.push(names.learn(&found.cell), found.seconds);
        }
        let (measurements, places) = nearest(works, &mut names, asked);
        let mut sources: BTreeMap<(u32, u32), Vec<f64>> = BTreeMap::new();
        for (place, found) in places.iter().zip(&measurements) {
            sources.entry((place.kind, place.family)).or_default().push(found.seconds);
        }
        let steps: BTreeMap<_, _> =
            sources.into_iter().map(|(source, times)| (source, noise::step_of(&times))).collect();
        let covariance = Covariance::new(noise::between_layers(&places, &measurements));
        let centres = [true, false].map(|is_optimizer| {
            let of = |(place, _): &(&Place, &Measurement)| (place.phase == MeasuredPhase::Optimizer) == is_optimizer;
            let mut logs: Vec<f64> =
                places.iter().zip(&measurements).filter(of).map(|(_, found)| found.seconds.ln()).collect();
            logs.sort_by(f64::total_cmp);
            logs.get(logs.len() / 2).copied().unwrap_or(0.0)
        });
        let off_centre: Vec<f64> = places
            .iter()
            .zip(&measurements)
            .map(|(place, found)| found.seconds.ln() - centre(&centres, place))
            .collect();
        let step = |place: &Place| steps.get(&(place.kind, place.family)).copied().unwrap_or(0.0);
        let scatter = places.iter().zip(&measurements);
        let scatter: Vec<f64> =
            scatter.map(|(place, found)| noise::variance(place, found.seconds, step(place))).collect();
        let fit = Fit::of(&covariance, &places, &off_centre, scatter);
        let calibration = Calibration::of(&fit, &places, &measurements);
        let rates = BTreeMap::new();
        Self { names, places, measurements, launches, covariance, steps, centres, fit, calibration, rates }
    }

    /// Knows besides what kinds did in calibrations, which counts for kinds on which nothing was measured.
    pub fn with_rates(mut self, rates: BTreeMap<String, Rates>) -> Self {
        self.rates = rates;
        self
    }

    /// What a cell costs.
    ///
    /// # Errors
    /// Nothing that was measured has to do with it.
    pub fn predict(&self, cell: &Cell) -> Result<Prediction, CannotPredict> {
        let place = self.names.find(cell);
        if let Some(seconds) = self.launches.at(&place) {
            return Ok(self.scattered(&place, seconds, 1));
        }
        if let Some([seconds, low, high]) = self.launches.like(&place, &self.places) {
            return Ok(Prediction { seconds, low, high, source: Source::Launch });
        }
        let source = self.source(&place, cell)?;
        if source == Source::Measured {
            return Ok(self.measured(&place));
        }
        if source == Source::UnknownKind
            && let Some(predicted) = self.by_rates(cell)
        {
            return Ok(predicted);
        }
        let shared: Vec<f64> = self.places.iter().map(|other| self.covariance.between(&place, other)).collect();
        let log = centre(&self.centres, &place) + dot(&shared, &self.fit.weights);
        let known = dot(&shared, &self.fit.inverse.times(&shared));
        let seconds = log.exp();
        let own = (self.covariance.between(&place, &place) - known).max(0.0);
        let deviation = (own + noise::variance(&place, seconds, self.step(&place))).sqrt();
        let widest = self.calibration.factor(&place, &self.places) * deviation;
        Ok(Prediction { seconds, low: seconds * (-widest).exp(), high: seconds * widest.exp(), source })
    }

    /// A cell of a kind on which nothing was measured, by the ratio of its rates to those of each kind that was: the mean
    /// of them, each by how well it is known, which is not taken to be better known than the best of them.
    fn by_rates(&self, cell: &Cell) -> Option<Prediction> {
        let here = (cell.kind.as_str(), self.rates.get(&cell.kind)?);
        let layer = cell.signature.split('/').next().unwrap_or_default();
        let is_optimizer = cell.phase == MeasuredPhase::Optimizer;
        let (mut sum, mut weight, mut best) = (0.0, 0.0, f64::INFINITY);
        for (kind, rates) in self.rates.iter().filter(|(kind, _)| **kind != cell.kind) {
            let Some((ratio, ratio_sd)) = ratio_of_rates(here, (kind, rates), layer, is_optimizer) else { continue };
            let Ok(there) = self.predict_measured(&Cell { kind: kind.clone(), ..cell.clone() }) else { continue };
            let sd = ratio_sd.hypot((there.high / there.low).ln() / (2.0 * CENTRAL_90_SD));
            sum += (there.seconds.ln() + ratio) * sd.powi(-2);
            weight += sd.powi(-2);
            best = best.min(sd);
        }
        let widest = (CENTRAL_90_SD * best).exp();
        let seconds = (weight > 0.0).then(|| (sum / weight).exp())?;
        Some(Prediction { seconds, low: seconds / widest, high: seconds * widest, source: Source::Rates })
    }

    /// What a cell costs on a kind that ran something.
    fn predict_measured(&self, cell: &Cell) -> Result<Prediction, CannotPredict> {
        match self.source(&self.names.find(cell), cell)? {
            Source::UnknownKind => Err(CannotPredict::Nothing),
            _ => self.predict(cell),
        }
    }

    fn step(&self, place: &Place) -> f64 {
        self.steps.get(&(place.kind, place.family)).copied().unwrap_or(0.0)
    }

    fn measured(&self, place: &Place) -> Prediction {
        let index = self.places.iter().position(|other| other == place).expect("a measured place is in the list");
        self.scattered(place, self.measurements[index].seconds, self.measurements[index].count)
    }

    /// A measurement as a prediction: the cell's true median lies around it.
    fn scattered(&self, place: &Place, seconds: f64, count: u64) -> Prediction {
        let variance = noise::variance(place, seconds, self.step(place));
        let widest = self.calibration.factor(place, &self.places) * (variance / (count as f64).min(1e6)).sqrt();
        let (low, high) = (seconds * (-widest).exp(), seconds * widest.exp());
        Prediction { seconds, low, high, source: Source::Measured }
    }

    fn source(&self, place: &Place, cell: &Cell) -> Result<Source, CannotPredict> {
        if self.places.is_empty() {
            return Err(CannotPredict::Nothing);
        }
        // Of works an optimizer tells nothing.
        let tells = |other: &Place| !place.is_work() || other.is_work();
        let any = |is_such: &dyn Fn(&Place) -> bool| self.places.iter().any(|other| tells(other) && is_such(other));
        if !any(&|other| other.layer == place.layer) {
            let layer = super::place::Parts::of(&cell.signature).layer.to_owned();
            return Err(CannotPredict::Layer { layer, signature: cell.signature.clone() });
        }
        if !any(&|other| other.phase == place.phase) {
            return Err(CannotPredict::Phase { phase: place.phase });
        }
        let shares_layer = |other: &Place| (other.family, other.layer) == (place.family, place.layer);
        Ok(if any(&|other| other == place) {
            Source::Measured
        } else if any(&|other| other.shares_curve(place)) {
            Source::SameCurve
        } else if any(&|other| other.kind == place.kind && shares_layer(other)) {
            Source::OtherPhase
        } else if any(&|other| other.shares_group(place)) {
            Source::OtherShape
        } else if !any(&|other| other.kind == place.kind) {
            Source::UnknownKind
        } else if any(&|other| other.phase == place.phase && shares_layer(other)) {
            Source::OtherKinds
        } else {
            Source::OtherLayers
        })
    }
}

fn centre(centres: &[f64; 2], place: &Place) -> f64 {
    centres[usize::from(place.phase != MeasuredPhase::Optimizer)]
}

/// The measurements to fit, with their places: all, or of too many those with most in common with an asked cell.
fn nearest(mut found: Vec<Measurement>, names: &mut Names, asked: &[Cell]) -> (Vec<Measurement>, Vec<Place>) {
    if found.len() > MEASUREMENTS_MAX {
        let mut all = Names::default();
        let places: Vec<Place> = found.iter().map(|found| all.learn(&found.cell)).collect();
        let asked: Vec<Place> = asked.iter().map(|cell| all.find(cell)).collect();
        let covariance = Covariance::new(1.0);
        let in_common =
            |place: &Place| asked.iter().map(|cell| covariance.between(place, cell)).fold(f64::NEG_INFINITY, f64::max);
        let mut ranked: Vec<(f64, usize)> = places.iter().map(in_common).zip(0..).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut kept: Vec<usize> = ranked[..MEASUREMENTS_MAX].iter().map(|(_, index)| *index).collect();
        kept.sort_unstable();
        found = kept.into_iter().map(|index| found[index].clone()).collect();
    }
    let places = found.iter().map(|found| names.learn(&found.cell)).collect();
    (found, places)
}

impl Fit {
    /// Solves for the weights, and again with the scatter of each outlier as large as it makes likely.
    fn of(covariance: &Covariance, places: &[Place], off_centre: &[f64], scatter: Vec<f64>) -> Self {
        let size = places.len();
        let plain = Matrix::symmetric(size, |row, column| covariance.between(&places[row], &places[column]));
        let solve = |taken: Vec<f64>| {
            let mut system = plain.clone();
            for (index, variance) in taken.iter().enumerate() {
                system.values[index * size + index] += variance;
            }
            let inverse = system.inverse().expect("a covariance with scatter on its diagonal is positive definite");
            let weights = inverse.times(off_centre);
            Fit { inverse, weights, scatter: scatter.clone(), scatter_taken: taken }
        };
        let mut fit = solve(scatter.clone());
        for _ in 1..ROUNDS {
            let taken = (0..size).map(|index| {
                let (off, deviation) = fit.without(index);
                let size = (off / deviation).powi(2);
                scatter[index] * ((1.0 + size / FREEDOM) / (1.0 + 1.0 / FREEDOM)).max(1.0)
            });
            fit = solve(taken.collect());
        }
        fit
    }

    /// How far a measurement lies from what all others say of it, and the deviation that was to be expected.
    pub fn without(&self, index: usize) -> (f64, f64) {
        let information = self.inverse.at(index, index);
        let variance = 1.0 / information - self.scatter_taken[index] + self.scatter[index];
        (self.weights[index] / information, variance.max(self.scatter[index]).sqrt())
    }

    /// The same for several, each from what all but these say of it.
    pub fn without_all(&self, indices: &[usize]) -> Vec<(f64, f64)> {
        if let [index] = indices {
            return vec![self.without(*index)];
        }
        let spread = self.inverse.part(indices).inverse();
        let spread = spread.expect("a part of a positive definite matrix is such");
        let weights: Vec<f64> = indices.iter().map(|&index| self.weights[index]).collect();
        let off = spread.times(&weights);
        let of = |(row, &index): (usize, &usize)| {
            let variance = spread.at(row, row) - self.scatter_taken[index] + self.scatter[index];
            (off[row], variance.max(self.scatter[index]).sqrt())
        };
        indices.iter().enumerate().map(of).collect()
    }
}
