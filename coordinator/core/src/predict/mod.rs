//! What a layer phase costs on a kind of device where it was never measured, with an interval.
//!
//! A picture: a table with a sheet for each model, a row for each kind of device, a column for each layer and phase, and
//! in each field a curve over the size of the microbatch and the split. Fields are missing. One is filled by the curve's
//! other points; else by the row's other columns, in the ratio that the columns have in other rows; else by the column's
//! other rows, and so on. All of that at once, each by how well it is known to hold, is a Gaussian process over the logs
//! of the times: `covariance` says what two fields share, `noise` how far a measurement scatters, `model` solves.
//!
//! 1. Outliers are told by the rest and weigh less: the scatter has heavy tails.
//! 2. Intervals are as wide as the measurements, each predicted without itself and without its like, show them to have to
//!    be (`calibration`).
//! 3. The same measurements in any order give the same predictions.
//!
//! Left out on purpose: learning the covariance anew from what is given, which is too little to learn it from.

mod calibration;
mod covariance;
mod launches;
mod matrix;
pub mod measurement;
mod model;
mod noise;
mod place;

pub use measurement::{Cell, MeasuredPhase, Measurement, UnknownPhase, condense};
pub use model::{CannotPredict, Prediction, Predictor, Source};

#[cfg(test)]
mod tests;
