use super::*;
use adaptis_proto::rates::Rates;

/// Times of two models on three kinds, made of effects: every ratio holds exactly.
fn table() -> Vec<Measurement> {
    let mut measurements = Vec::new();
    for (kind, slower) in [("a", 1.0), ("b", 1.6), ("c", 0.4)] {
        for (model, larger) in [("m", 1.0), ("n", 2.5)] {
            for (layer, part) in [("block", 1.0), ("head", 0.5)] {
                for (phase, times) in [(MeasuredPhase::Forward, 1.0), (MeasuredPhase::Backward, 2.1)] {
                    for microbatch in [1_u32, 2, 4, 8] {
                        let seconds = 0.01 * slower * larger * part * times * f64::from(microbatch).powf(0.95);
                        let signature = format!("{layer}/{model}/b{microbatch}");
                        let cell = Cell { kind: kind.into(), signature, phase };
                        measurements.push(Measurement { cell, seconds, count: 1 });
                    }
                }
            }
        }
    }
    measurements
}

fn cell(kind: &str, signature: &str, phase: MeasuredPhase) -> Cell {
    Cell { kind: kind.into(), signature: signature.into(), phase }
}

/// Off by, at most, as a share; and what the prediction rests on.
fn without(is_removed: impl Fn(&Cell) -> bool) -> (f64, Vec<Source>) {
    let (removed, kept): (Vec<_>, Vec<_>) = table().into_iter().partition(|found| is_removed(&found.cell));
    let predictor = Predictor::fit(&kept, &[]);
    let mut worst = 0.0_f64;
    let mut sources = Vec::new();
    for found in removed {
        let predicted = predictor.predict(&found.cell).expect("a prediction");
        assert!(predicted.low < predicted.seconds && predicted.seconds < predicted.high, "{predicted:?}");
        worst = worst.max((predicted.seconds / found.seconds - 1.0).abs());
        sources.push(predicted.source);
    }
    sources.sort_unstable();
    sources.dedup();
    (worst, sources)
}

#[test]
fn a_missing_field_follows_from_the_nearest_that_is_there() {
    let is_forward = |found: &Cell| found.phase == MeasuredPhase::Forward;
    for (removed, off_max, source) in [
        (
            &(|found: &Cell| *found == cell("a", "block/m/b4", MeasuredPhase::Forward)) as &dyn Fn(&Cell) -> bool,
            0.02,
            Source::SameCurve,
        ),
        (
            &|found| found.kind == "b" && found.signature.starts_with("block/m") && is_forward(found),
            0.05,
            Source::OtherPhase,
        ),
        (
            &|found| found.kind == "b" && found.signature.starts_with("block/") && is_forward(found),
            0.1,
            Source::OtherPhase,
        ),
        (&|found| found.kind == "b" && found.signature.starts_with("block/m"), 0.1, Source::OtherShape),
        (&|found| found.kind == "b" && found.signature.starts_with("block/"), 0.3, Source::OtherKinds),
        (
            &|found| {
                found.signature.starts_with("block/m") || (found.kind == "c" && found.signature.starts_with("block/"))
            },
            0.9,
            Source::OtherLayers,
        ),
        (&|found| found.kind == "c", 4.0, Source::UnknownKind),
    ] {
        let (worst, sources) = without(removed);
        assert!(worst < off_max && sources.contains(&source), "{source:?}: off by {worst}, {sources:?}");
    }
}

#[test]
fn what_is_known_less_has_a_wider_interval() {
    let kept: Vec<_> =
        table().into_iter().filter(|found| found.cell != cell("a", "block/m/b2", MeasuredPhase::Forward)).collect();
    let predictor = Predictor::fit(&kept, &[]);
    let width = |kind: &str, signature: &str| {
        let predicted = predictor.predict(&cell(kind, signature, MeasuredPhase::Forward)).expect("a prediction");
        predicted.high / predicted.low
    };
    let widths = [
        width("a", "block/m/b4"),  // measured
        width("a", "block/m/b2"),  // between others
        width("a", "block/m/b64"), // beyond them
        width("a", "block/o/b2"),  // another shape
        width("d", "block/o/b2"),  // of which and on which nothing is known
    ];
    assert!(widths.is_sorted(), "{widths:?}");
    assert!(widths[0] < 1.2 && widths[4] > 10.0, "{widths:?}");
}

#[test]
fn a_measured_cell_is_answered_with_its_measurement() {
    let predictor = Predictor::fit(&table(), &[]);
    for found in table() {
        let predicted = predictor.predict(&found.cell).expect("a prediction");
        assert_eq!((predicted.seconds, predicted.source), (found.seconds, Source::Measured));
    }
    let split = predictor.predict(&cell("a", "block/m/b4/tp1", MeasuredPhase::Forward)).expect("a prediction");
    assert_eq!(split.source, Source::Measured, "a split of one is none");
}

#[test]
fn an_outlier_does_not_pull_its_neighbours() {
    let mut measurements = table();
    let far = measurements.iter_mut().find(|found| found.cell == cell("a", "block/m/b4", MeasuredPhase::Forward));
    far.expect("it is in the table").seconds *= 4.0;
    measurements.retain(|found| found.cell != cell("a", "block/m/b2", MeasuredPhase::Forward));
    let predicted = Predictor::fit(&measurements, &[]).predict(&cell("a", "block/m/b2", MeasuredPhase::Forward));
    let off = predicted.expect("a prediction").seconds / (0.01 * 2_f64.powf(0.95)) - 1.0;
    assert!(off.abs() < 0.1, "{off}");
}

#[test]
fn the_order_of_measurements_does_not_matter() {
    let asked = cell("a", "block/m/b16/tp2", MeasuredPhase::Backward);
    let mut turned = table();
    turned.reverse();
    let [one, other] = [table(), turned].map(|all| Predictor::fit(&all, &[]).predict(&asked));
    assert_eq!(one, other);
}

#[test]
fn texts_of_no_form_are_compared_as_a_whole() {
    let measured = |kind: &str, signature: &str, seconds| Measurement {
        cell: cell(kind, signature, MeasuredPhase::Forward),
        seconds,
        count: 1,
    };
    let all = [measured("a", "OPT-30/block", 0.3), measured("b", "OPT-30/block", 0.6), measured("a", "head", 0.1)];
    let predicted =
        Predictor::fit(&all, &[]).predict(&cell("b", "head", MeasuredPhase::Forward)).expect("a prediction");
    assert!((0.12..0.25).contains(&predicted.seconds), "{predicted:?}");
    assert_eq!(predicted.source, Source::OtherKinds);
}

#[test]
fn nothing_can_be_said_where_nothing_like_it_was_measured() {
    let predictor = Predictor::fit(&table(), &[]);
    let error =
        |signature, phase| predictor.predict(&cell("a", signature, phase)).expect_err("nothing is known").to_string();
    assert!(error("mlp/m/b4", MeasuredPhase::Forward).contains("no layer of type \"mlp\""));
    assert!(error("block/m/b4", MeasuredPhase::Optimizer).contains("no optimizer was measured"));
    let empty = Predictor::fit(&[], &[]).predict(&cell("a", "block/m/b4", MeasuredPhase::Forward));
    assert_eq!(empty, Err(CannotPredict::Nothing));
}

#[test]
fn of_a_kind_that_ran_but_optimizers_works_are_unknown() {
    let optimizer = |kind: &str, seconds| Measurement {
        cell: cell(kind, "block/m/b4", MeasuredPhase::Optimizer),
        seconds,
        count: 1,
    };
    let mut measurements = table();
    measurements.extend([optimizer("a", 0.004), optimizer("d", 0.006)]);
    let forward = |kind: &str, measurements: &[Measurement]| {
        let asked = cell(kind, "block/m/b4", MeasuredPhase::Forward);
        Predictor::fit(measurements, &[]).predict(&asked).expect("a prediction")
    };
    let [of_optimizer, of_nothing] = ["d", "e"].map(|kind| forward(kind, &measurements));
    assert_eq!((of_optimizer.source, of_nothing.source), (Source::UnknownKind, Source::UnknownKind));
    let width = |predicted: Prediction| predicted.high / predicted.low;
    assert!(width(of_optimizer) > 0.8 * width(of_nothing), "{of_optimizer:?} {of_nothing:?}");

    // One backward tells the kind's speed, and one work is not much to go by.
    let backward = cell("d", "block/m/b4", MeasuredPhase::Backward);
    measurements.push(Measurement { cell: backward, seconds: 0.021 * 4_f64.powf(0.95), count: 1 });
    let known = forward("d", &measurements);
    assert_eq!(known.source, Source::OtherPhase);
    assert!((known.seconds / (0.01 * 4_f64.powf(0.95)) - 1.0).abs() < 0.1, "{known:?}");
    let all = forward(
        "a",
        &table()
            .into_iter()
            .filter(|found| found.cell != cell("a", "block/m/b4", MeasuredPhase::Forward))
            .collect::<Vec<_>>(),
    );
    assert!(width(known) > width(all) && width(known) < width(of_nothing), "{known:?} {all:?}");
}

#[test]
fn of_very_many_measurements_those_that_matter_are_fitted() {
    let mut many = table();
    for number in 0..1_500 {
        let other = cell("z", &format!("other{number}/z/b1"), MeasuredPhase::Optimizer);
        many.push(Measurement { cell: other, seconds: 0.001, count: 1 });
    }
    let asked = cell("b", "block/m/b4", MeasuredPhase::Forward);
    many.retain(|found| found.cell != asked);
    let predicted = Predictor::fit(&many, std::slice::from_ref(&asked)).predict(&asked).expect("a prediction");
    assert!((predicted.seconds / (0.016 * 4_f64.powf(0.95)) - 1.0).abs() < 0.02, "{predicted:?}");
}

#[test]
fn a_launch_is_told_by_its_like_alone_and_tells_nothing_of_works() {
    let backward = |kind: &str, microbatch: u32| {
        let asked = cell(kind, &format!("embedding/m/b{microbatch}"), MeasuredPhase::Backward);
        Measurement { cell: asked, seconds: 3e-6, count: 1 }
    };
    let launches = [backward("a", 1), backward("a", 2), backward("b", 1)];
    let with: Vec<_> = table().into_iter().chain(launches.clone()).collect();
    let (plain, with) = (Predictor::fit(&table(), &[]), Predictor::fit(&with, &[]));
    for (asked, source) in [("a", Source::Launch), ("c", Source::Launch), ("d", Source::Launch)] {
        let predicted = with.predict(&backward(asked, 8).cell).expect("a prediction");
        assert_eq!((predicted.seconds, predicted.source), (3e-6, source));
    }
    assert_eq!(with.predict(&launches[0].cell).expect("a prediction").source, Source::Measured);
    let work = cell("b", "block/n/b16", MeasuredPhase::Backward);
    assert_eq!(plain.predict(&work), with.predict(&work));
}

/// The third kind is 2.5 times as fast as the first, and its rates say 2; nothing was measured on it.
#[test]
fn a_kind_that_nobody_ran_follows_what_was_calibrated_on_it() {
    let rates = |operations_per_s: u64| Rates { operations_per_s: Some(operations_per_s), bytes_per_s: None };
    let kept: Vec<_> = table().into_iter().filter(|found| found.cell.kind != "c").collect();
    let asked = cell("c", "block/m/b4", MeasuredPhase::Backward);
    let truth = table().into_iter().find(|found| found.cell == asked).expect("it is in the table").seconds;
    let of = |known: &[(&str, u64)]| {
        let rates = known.iter().map(|&(kind, operations)| (kind.to_owned(), rates(operations))).collect();
        Predictor::fit(&kept, &[]).with_rates(rates).predict(&asked).expect("a prediction")
    };
    let blind = of(&[]);
    for told in [&[("a", 300), ("b", 190), ("c", 600)][..], &[("a", 300), ("c", 600)]] {
        let predicted = of(told);
        assert_eq!(predicted.source, Source::Rates);
        assert!((predicted.seconds / truth / 1.25 - 1.0).abs() < 0.06, "{predicted:?} {truth}");
        assert!(predicted.low < truth && truth < predicted.high, "{predicted:?} {truth}");
        // As wide as ratios of products miss, which is less than knowing nothing.
        assert!((8.0..25.0).contains(&(predicted.high / predicted.low)), "{predicted:?}");
        assert!(predicted.high / predicted.low < blind.high / blind.low, "{predicted:?} {blind:?}");
    }
    // Alone, or of groups of another size, they tell nothing.
    assert_eq!(of(&[("c", 600)]), blind);
    assert_eq!(of(&[("4xa", 300), ("c", 600)]), blind);
    let known =
        Predictor::fit(&table(), &[]).with_rates([("a".to_owned(), rates(1)), ("c".to_owned(), rates(1))].into());
    assert_eq!(known.predict(&asked).expect("a prediction").source, Source::Measured);
}
