//! What agents measured before training gets to the estimate, in this reign and in the next.

use super::cluster::{Faults, World};
use crate::brain::Event;
use adaptis_proto::Incarnation;
use adaptis_proto::rates::{Calibrated, Rates};
use std::collections::BTreeMap;

fn calibrated(device: &str, agent: u64, rates: Rates) -> Event {
    let readings = rates.readings(Calibrated::Host).collect();
    Event::Calibrated { device: device.into(), agent: Incarnation(agent), readings }
}

/// What the estimate goes by.
fn estimated(world: &World) -> BTreeMap<String, Rates> {
    world.brain.adapt.as_ref().map(|adapt| adapt.estimator.rates().clone()).unwrap_or_default()
}

#[test]
fn rates_count_once_the_kind_is_known_and_outlive_a_reign() {
    let rates = Rates { operations_per_s: Some(50), bytes_per_s: Some(8) };
    let mut world = World::new(2, 40, 3, Faults::default());
    world.feed(calibrated("gpu0", 1, rates));
    assert!(world.brain.rates().is_empty(), "nobody said what kind it is");
    world.run_until("training", |world| world.brain.running.is_some());
    world.feed(calibrated("gpu0", 1, rates));
    world.feed(calibrated("gpu1", 2, Rates { operations_per_s: Some(40), bytes_per_s: Some(9) }));
    world.feed(calibrated("gpu7", 3, Rates { operations_per_s: Some(99), bytes_per_s: None }));
    let best = BTreeMap::from([("cpu".to_owned(), Rates { operations_per_s: Some(50), bytes_per_s: Some(9) })]);
    assert_eq!((world.brain.rates(), &estimated(&world)), (&best, &best));

    world.ledger.held.rates.clone_from(world.brain.rates());
    world.boot();
    assert_eq!((world.brain.rates(), &estimated(&world)), (&best, &best));
}
