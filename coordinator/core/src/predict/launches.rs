//! Works that are no more than their launch: a backward of an embedding without a gradient to give.
//!
//! They take a few microseconds whatever the sizes and the kind, timed by a clock that is as coarse as they are, so they
//! tell nothing about other works and nothing tells about them but their like.

use super::measurement::Measurement;
use super::place::Place;

/// Shorter works are launches.
const SECONDS_MAX: f64 = 2e-5;
/// What a launch may differ from another, as a factor either way.
const APART: f64 = 3.0;

/// Launches, kept apart from the model.
#[derive(Clone, Debug, Default)]
pub(super) struct Launches(Vec<(Place, f64)>);

impl Launches {
    pub fn is_one(found: &Measurement) -> bool {
        found.seconds < SECONDS_MAX
    }

    pub fn push(&mut self, place: Place, seconds: f64) {
        self.0.push((place, seconds));
    }

    /// The launch that was measured at a place.
    pub fn at(&self, place: &Place) -> Option<f64> {
        self.0.iter().find(|(other, _)| other == place).map(|(_, seconds)| *seconds)
    }

    /// Time and bounds of a cell whose nearest like are launches; none where a longer work is as near.
    pub fn like(&self, place: &Place, works: &[Place]) -> Option<[f64; 3]> {
        let nearness: [fn(&Place, &Place) -> bool; 3] = [Place::shares_curve, Place::shares_group, |one, other| {
            (one.layer, one.phase) == (other.layer, other.phase)
        }];
        for is_like in nearness {
            if works.iter().any(|work| is_like(work, place)) {
                return None;
            }
            let mut like: Vec<f64> =
                self.0.iter().filter(|(other, _)| is_like(other, place)).map(|(_, seconds)| *seconds).collect();
            like.sort_by(f64::total_cmp);
            if let (Some(least), Some(most)) = (like.first(), like.last()) {
                return Some([like[like.len() / 2], least / APART, most * APART]);
            }
        }
        None
    }
}
