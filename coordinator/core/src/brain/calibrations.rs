//! What agents measured of their devices before training: attributed to kinds, handed to the estimate.

use super::Brain;
use adaptis_proto::Incarnation;
use adaptis_proto::message::DeviceCard;
use adaptis_proto::rates::{Calibrated, Rates};
use std::collections::BTreeMap;

/// The best rates of each kind, and whose were taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Calibrations {
    of_kind: BTreeMap<String, Rates>,
    /// By device of the job: the agent whose calibration counts. It calibrates once, so what it repeats after another kind
    /// took the device's place is of the kind before.
    taken: BTreeMap<String, Incarnation>,
}

impl Calibrations {
    pub(super) fn of_kind(&self) -> &BTreeMap<String, Rates> {
        &self.of_kind
    }

    /// What an earlier reign knew.
    pub(super) fn recover(&mut self, of_kind: BTreeMap<String, Rates>) {
        self.of_kind = of_kind;
    }

    /// Takes an agent's readings of a device; whether they tell anything new of its kind.
    fn take(&mut self, card: &DeviceCard, agent: Incarnation, readings: &[(String, f64)]) -> bool {
        let rates = Rates::of_readings(readings, Calibrated::of_kind(&card.kind));
        if rates.is_empty() || self.taken.get(&card.name) == Some(&agent) {
            return false;
        }
        self.taken.insert(card.name.clone(), agent);
        let known = self.of_kind.entry(card.kind.clone()).or_default();
        let best = known.best(rates);
        std::mem::replace(known, best) != best
    }
}

impl Brain {
    /// By kind: the best rates that agents measured.
    pub fn rates(&self) -> &BTreeMap<String, Rates> {
        self.calibrations.of_kind()
    }

    pub(super) fn on_calibrated(&mut self, device: &str, agent: Incarnation, readings: &[(String, f64)]) {
        // Before all ranks are there it is not known what kind a device is: agents repeat what they measured.
        let Some(generation) = &self.generation else { return };
        let Some(card) = generation.cards.iter().find(|card| card.name == device) else { return };
        if self.calibrations.take(card, agent, readings) {
            self.hand_priors_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(name: &str, kind: &str) -> DeviceCard {
        DeviceCard { name: name.into(), kind: kind.into(), memory_bytes: 1, reserved_bytes: 0 }
    }

    #[test]
    fn a_calibration_is_of_the_kind_that_the_device_had() {
        let told = |operations_per_s: u64| {
            let rates = Rates { operations_per_s: Some(operations_per_s), bytes_per_s: None };
            rates.readings(Calibrated::Card).collect::<Vec<_>>()
        };
        let mut calibrations = Calibrations::default();
        assert!(calibrations.take(&card("gpu0", "a100-40g"), Incarnation(1), &told(250)));
        assert!(!calibrations.take(&card("gpu0", "l40s-48g"), Incarnation(1), &told(250)), "measured before");
        assert!(calibrations.take(&card("gpu0", "l40s-48g"), Incarnation(2), &told(180)));
        assert!(!calibrations.take(&card("gpu1", "l40s-48g"), Incarnation(3), &told(90)), "a slower one of the kind");
        assert!(!calibrations.take(&card("gpu2", "cpu"), Incarnation(4), &told(7)), "a card's rates are no host's");
        let of = |kind: &str| calibrations.of_kind[kind].operations_per_s;
        assert_eq!((calibrations.of_kind.len(), of("a100-40g"), of("l40s-48g")), (2, Some(250), Some(180)));
    }
}
