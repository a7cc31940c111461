//! The crate seen from outside.

mod clock;
mod files;
mod mapping;
mod properties;
mod ranges;
mod reading;
mod rows;
mod rules;
mod support;
