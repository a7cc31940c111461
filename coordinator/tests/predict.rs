//! Costs that were removed from published profiles, predicted from what is left of them.

mod removal;

use adaptis_coordinator::profiles::{MeasuredPhase, Measurement};
use removal::{Outcome, by_kind_layer_phase, judge, kinds_but_for, layer, measured, singles, summary};
use std::path::Path;

fn profiles(beginning: &str) -> Vec<Measurement> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/sailor");
    measured(&folder, beginning)
}

/// Fails where predictions became worse than these, or their intervals too narrow or too wide.
fn assert_within(what: &str, outcomes: &[Outcome], median_max: f64, p90_max: f64) {
    let found = summary(outcomes).expect("there are outcomes");
    assert!(found.median < median_max && found.p90 < p90_max, "{what}: {found:?}");
    assert!((0.85..=0.97).contains(&found.covered), "{what}: {found:?}");
}

#[test]
fn single_measurements_follow_from_the_rest() {
    let all = profiles("");
    assert!(all.len() > 550, "{}", all.len());
    let outcomes = judge(&all, &singles(&all, 11));
    assert_within("all files", &outcomes, 0.02, 0.11);
    for model in ["GPT-Neo-2.7", "OPT-30"] {
        let of_model = profiles(model);
        assert_within(model, &judge(&of_model, &singles(&of_model, 4)), 0.02, 0.13);
    }
}

#[test]
fn everything_of_a_kind_layer_type_and_phase_follows_from_the_rest() {
    let all = profiles("");
    let outcomes = judge(&all, &by_kind_layer_phase(&all));
    assert_within("all files", &outcomes, 0.06, 0.25);
    // An embedding has one phase to speak of, and hardly follows the arithmetic of its kind.
    let others: Vec<Outcome> = outcomes
        .into_iter()
        .filter(|outcome| layer(&outcome.cell) != "embedding" && outcome.cell.phase != MeasuredPhase::Optimizer)
        .collect();
    let found = summary(&others).expect("there are outcomes");
    assert!(found.median < 0.08 && found.p90 < 0.17, "forward and backward: {found:?}");
}

#[test]
fn of_a_kind_that_hardly_ran_intervals_are_as_wide_as_they_must_be() {
    let all = profiles("");
    // What is kept of GH-96 are optimizers alone, which say nothing of its arithmetic.
    for few in [3, 12] {
        let found = summary(&judge(&all, &kinds_but_for(&all, few))).expect("there are outcomes");
        assert!((0.85..=0.97).contains(&found.covered), "all but {few}: {found:?}");
    }
}
