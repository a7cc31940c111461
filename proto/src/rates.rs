//! What a device can do at best: rates of a few kernels that its agent ran when it joined.
//!
//! They travel as readings of [`Health`](crate::message::Health), by name with the unit last: an older coordinator shows
//! them as it shows any reading, and an older agent has none.

use serde::{Deserialize, Serialize};

/// What the kernels ran on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calibrated {
    /// The GPU that the agent was told of.
    Card,
    /// The processor of the agent's host.
    Host,
}

impl Calibrated {
    /// What says something of a kind of device: `cpu` is a host, any other kind a card.
    pub fn of_kind(kind: &str) -> Self {
        if kind == "cpu" { Calibrated::Host } else { Calibrated::Card }
    }

    /// Names of the readings: operations, bytes.
    fn names(self) -> [&'static str; 2] {
        match self {
            Calibrated::Card => ["calibrated_operations_per_s", "calibrated_bytes_per_s"],
            Calibrated::Host => ["calibrated_host_operations_per_s", "calibrated_host_bytes_per_s"],
        }
    }
}

/// No device does more of anything in a second, and none less than one: beyond, a reading is no rate.
const RATE_MAX: f64 = 1e18;

/// The rates of a device, or the best ones of a kind. None where it was not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Of a large matrix product, two for each multiplication and addition.
    pub operations_per_s: Option<u64>,
    /// Of a large copy within the device's memory.
    pub bytes_per_s: Option<u64>,
}

impl Rates {
    /// Nothing was measured.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As readings by name.
    pub fn readings(&self, of: Calibrated) -> impl Iterator<Item = (String, f64)> + use<> {
        let rates = [self.operations_per_s, self.bytes_per_s];
        of.names().into_iter().zip(rates).filter_map(|(name, rate)| Some((name.to_owned(), rate? as f64)))
    }

    /// What readings say; what can be no rate is left out.
    pub fn of_readings(readings: &[(String, f64)], of: Calibrated) -> Self {
        let [operations_per_s, bytes_per_s] = of.names().map(|name| {
            let rate = readings.iter().find(|(known, _)| known == name).map(|(_, rate)| *rate);
            rate.filter(|rate| (1.0..=RATE_MAX).contains(rate)).map(|rate| rate.round() as u64)
        });
        Self { operations_per_s, bytes_per_s }
    }

    /// Whether there are such readings at all.
    pub fn are_in(readings: &[(String, f64)]) -> bool {
        [Calibrated::Card, Calibrated::Host].into_iter().any(|of| !Self::of_readings(readings, of).is_empty())
    }

    /// The better of each: what holds a device up makes it slower, never faster.
    #[must_use]
    pub fn best(self, other: Self) -> Self {
        let best = |a: Option<u64>, b: Option<u64>| a.max(b);
        Self {
            operations_per_s: best(self.operations_per_s, other.operations_per_s),
            bytes_per_s: best(self.bytes_per_s, other.bytes_per_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_read_again_and_what_is_no_rate_is_not() {
        let rates = Rates { operations_per_s: Some(600_000_000_000_000), bytes_per_s: Some(2_900_000_000_000) };
        let readings: Vec<(String, f64)> = rates.readings(Calibrated::Card).collect();
        assert_eq!(readings[0].0, "calibrated_operations_per_s");
        assert_eq!(Rates::of_readings(&readings, Calibrated::Card), rates);
        assert!(Rates::are_in(&readings) && !Rates::are_in(&[("power_w".to_owned(), 300.0)]));
        assert!(Rates::of_readings(&readings, Calibrated::Host).is_empty(), "a card tells nothing of its host");
        for wrong in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e22] {
            let readings = [("calibrated_host_bytes_per_s".to_owned(), wrong)];
            assert!(Rates::of_readings(&readings, Calibrated::Host).is_empty(), "{wrong}");
        }
        let half = Rates { operations_per_s: Some(700_000_000_000_000), bytes_per_s: None };
        assert_eq!(rates.best(half), Rates { operations_per_s: half.operations_per_s, bytes_per_s: rates.bytes_per_s });
        assert_eq!(half.best(rates), rates.best(half));
        assert_eq!((Calibrated::of_kind("cpu"), Calibrated::of_kind("l40s-48g")), (Calibrated::Host, Calibrated::Card));
    }
}
