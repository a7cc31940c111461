//! A job to come, from profiles: what is measured, what is predicted, what is guessed, what is refused.

use adaptis_coordinator_core::next_job::{
    Known, LayerMemory, Missing, NextJob, NoPrediction, Overhead, Profiles, Refused, Remark, Request, Transfers,
    Wanted, next_job,
};
use adaptis_coordinator_core::predict::{CannotPredict, Cell, MeasuredPhase, Prediction, Source};
use adaptis_plan::{Action, Device, Instruction, Link, Plan, Problem, Stage};
use adaptis_planner::simulate::simulate;
use adaptis_proto::message::JobLayer;
use adaptis_proto::sample::Phase;

const UNSEEN: Link = Link { latency_ns: 7, bytes_per_second: 3e9, note: () };
const TRAINED: [Phase; 3] = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];

fn layers() -> Vec<JobLayer> {
    let layer = |name: &str, signature: &str| JobLayer {
        name: name.into(),
        signature: signature.into(),
        parameter_bytes: 1,
        state_bytes: 9,
        output_bytes: 2,
        moved_bytes: 7,
    };
    vec![layer("embed", "embedding"), layer("a", "mlp"), layer("b", "mlp")]
}

fn wanted(name: &str, kind: &str) -> Wanted {
    let device = Device {
        name: name.to_owned(),
        kind: kind.to_owned(),
        memory_bytes: 1_000,
        slowdown: 1.0,
        reserved_bytes: 0,
        note: None,
    };
    Wanted { device, node: kind.to_owned() }
}

fn known(ms: f64) -> Known {
    Known { seconds: ms / 1e3, low: ms / 2e3, high: ms / 5e2, count: 10 }
}

/// Everything on `left`; embeddings have no input gradient.
fn profiles() -> Profiles {
    let mut profiles = Profiles::default();
    for (at, phase) in TRAINED.into_iter().enumerate() {
        profiles.times.insert(("left".into(), "mlp".into(), phase), known(1.0 + at as f64));
    }
    for phase in [Phase::Forward, Phase::WeightGradient, Phase::Optimizer] {
        profiles.times.insert(("left".into(), "embedding".into(), phase), known(5.0));
    }
    for (signature, weight_gradient_bytes) in [("mlp", Some(4)), ("embedding", None)] {
        let memory = LayerMemory { activation_bytes: 10, weight_gradient_bytes, workspace_bytes: 1 };
        profiles.memories.insert((signature.into(), "left".into()), memory);
    }
    profiles
}

fn asked(
    profiles: &Profiles,
    kinds: &[&str],
    predict: &dyn Fn(&Cell) -> Result<Prediction, CannotPredict>,
) -> Result<NextJob, Refused> {
    let devices: Vec<Wanted> = kinds.iter().enumerate().map(|(at, kind)| wanted(&format!("gpu{at}"), kind)).collect();
    let layers = layers();
    let request = Request {
        layers: &layers,
        microbatches: 4,
        devices: &devices,
        within_node: None,
        between_nodes: None,
        unseen_link: UNSEEN,
    };
    next_job(&request, profiles, predict)
}

fn nobody(_: &Cell) -> Result<Prediction, CannotPredict> {
    Err(CannotPredict::Nothing)
}

/// Half and twice as long at the ends of its interval.
fn prediction(ms: f64, source: Source) -> Prediction {
    Prediction { seconds: ms / 1e3, low: ms / 2e3, high: ms / 5e2, source }
}

#[test]
fn what_was_measured_is_taken_as_it_was() {
    let found = asked(&profiles(), &["left"], &nobody).unwrap();
    let costs = &found.problem.costs["left"];
    let times = |at: usize| (costs[at].forward_ns, costs[at].input_gradient_ns, costs[at].weight_gradient_ns);
    assert_eq!([times(0), times(1)], [(5_000_000, 0, 5_000_000), (1_000_000, 2_000_000, 3_000_000)]);
    assert_eq!(costs[1], costs[2]);
    assert_eq!(found.problem.optimizer_ns["left"], [5_000_000, 0, 0]);
    assert_eq!((costs[0].weight_gradient_bytes, costs[1].weight_gradient_bytes), (10, 4));
    let expected = [
        Remark::HeldUntilW { signature: "embedding".into() },
        Remark::NoOptimizer { kind: "left".into(), signatures: 1 },
    ];
    assert_eq!(found.remarks, expected);
    assert_eq!(found.measured["left"], (6, 60));
}

#[test]
fn what_was_not_measured_is_predicted_or_refused_with_all_that_is_missing() {
    let times = |missing: &[Phase], signature: &str, why: &NoPrediction| {
        let time = |&phase: &Phase| {
            let (kind, signature, why) = ("right".into(), signature.into(), why.clone());
            Missing::Time { kind, signature, phase, why }
        };
        missing.iter().map(time).collect::<Vec<_>>()
    };
    let unknown = |_: &Cell| Ok(prediction(1.0, Source::UnknownKind));
    let nothing = NoPrediction::Nothing(CannotPredict::Nothing);
    for (predict, why) in [
        (&nobody as &dyn Fn(&Cell) -> Result<Prediction, CannotPredict>, &nothing),
        (&unknown, &NoPrediction::UnknownKind),
    ] {
        let refused = asked(&profiles(), &["left", "right"], predict).unwrap_err();
        let embedding = times(&[Phase::Forward, Phase::WeightGradient], "embedding", why);
        let missing = [embedding, times(&TRAINED, "mlp", why)].concat();
        assert_eq!(refused, Refused::Missing(missing), "an embedding has no input gradient on any kind");
    }

    let found = asked(&profiles(), &["left", "right"], &on_right).unwrap();
    assert_eq!(found.problem.costs["right"][1].input_gradient_ns, 30_000_000);
    assert_eq!(found.problem.costs["right"][0].input_gradient_ns, 0);
    assert_eq!(found.problem.optimizer_ns["right"], [30_000_000, 0, 0], "of the mlp no kind knows a step");
    let told: Vec<_> =
        found.predicted.iter().map(|found| (found.kind.as_str(), &*found.signature, found.phase)).collect();
    let of = |signature, phases: &[Phase]| phases.iter().map(|phase| ("right", signature, *phase)).collect::<Vec<_>>();
    let embedding = of("embedding", &[Phase::Forward, Phase::WeightGradient, Phase::Optimizer]);
    assert_eq!(told, [embedding, of("mlp", &TRAINED)].concat());
    let of_other = Remark::MemoryOfOtherKind { signature: "mlp".into(), kind: "right".into(), measured: "left".into() };
    assert!(found.remarks.contains(&of_other), "{:?}", found.remarks);
    assert!(!found.measured.contains_key("right"));

    let mut forgetful = profiles();
    forgetful.memories.remove(&("mlp".into(), "left".into()));
    let refused = asked(&forgetful, &["left"], &nobody).unwrap_err();
    assert_eq!(refused, Refused::Missing(vec![Missing::Memory { signature: "mlp".into() }]));
}

/// Everything takes 30 ms on `right`; where two things of it do, the forward of `mlp` is the one less sure.
fn on_right(cell: &Cell) -> Result<Prediction, CannotPredict> {
    let is_unsure = cell.signature == "mlp" && cell.phase == MeasuredPhase::Forward;
    let sure = prediction(30.0, Source::OtherKinds);
    match cell.kind.as_str() {
        "right" if is_unsure => Ok(Prediction { high: 0.12, ..sure }),
        "right" => Ok(sure),
        _ => Err(CannotPredict::Nothing),
    }
}

/// One stage on each of two devices, layers split at `cut`, four microbatches all forward and then all back.
fn plan(problem: &Problem, cut: u32) -> Plan {
    let stage = |layers, device| Stage { layers, device, recompute: Vec::new(), note: None };
    let program = |stage: usize| {
        let row = |action| (0..4).map(move |at| Instruction::new(stage, action, at));
        row(Action::Forward).chain(row(Action::Backward)).collect::<Vec<_>>()
    };
    Plan::new(problem, vec![stage([0, cut], 0), stage([cut, 3], 1)], vec![program(0), program(1)])
}

#[test]
fn a_plan_tells_how_far_it_rests_on_predictions() {
    let found = asked(&profiles(), &["left", "right"], &on_right).unwrap();
    // On the left 10 + 5 and 6 ms, on the right 90 ms of each mlp, four times, and 5 ms of optimizer once.
    for (cut, measured_ms, predicted_ms) in [(1, 4.0 * 10.0 + 5.0, 4.0 * 180.0), (2, 4.0 * 16.0 + 5.0, 4.0 * 90.0)] {
        let plan = plan(&found.problem, cut);
        let reliance = found.reliance(&plan).unwrap().expect("the right was never measured");
        assert!((reliance.share - predicted_ms / (predicted_ms + measured_ms)).abs() < 1e-9, "{reliance:?}");
        assert_eq!((&*reliance.widest.signature, reliance.widest.phase), ("mlp", Phase::Forward));
        let iteration_ns = simulate(&found.problem, &plan).unwrap().iteration_ns;
        let (low, high) = (reliance.low_ns as f64, reliance.high_ns as f64);
        // The right one does nearly all: its ends are half and (120 + 60 + 60) / 90 of what is said.
        let ends = [low, high].map(|ns| ns / iteration_ns as f64);
        assert!((0.5..0.56).contains(&ends[0]) && (2.4..2.67).contains(&ends[1]), "{ends:?}");
    }
    let all_left = asked(&profiles(), &["left", "left"], &on_right).unwrap();
    assert_eq!(all_left.reliance(&plan(&all_left.problem, 1)).unwrap(), None);
}

#[test]
fn links_are_measured_or_told_to_be_guesses() {
    let mut profiles = profiles();
    let all: Vec<_> = profiles.times.clone().into_iter().collect();
    for ((_, signature, phase), time) in all {
        profiles.times.insert(("right".into(), signature, phase), time);
    }
    let transfers = |bytes: u64, ns: f64| Transfers { bytes, median_ns: ns, count: 9, ln_spread: 0.01 };
    // 1 us and 1 GB/s.
    let two_sizes = vec![transfers(1_000, 2_000.0), transfers(10_000, 11_000.0)];
    profiles.transfers.insert(("left".into(), "right".into()), two_sizes);
    profiles.transfers.insert(("left".into(), "left".into()), vec![transfers(1_000, 500.0)]);
    let found = asked(&profiles, &["left", "left", "right", "right"], &nobody).unwrap();
    let link = |from, to| {
        let link: Link = found.problem.link(from, to);
        (link.latency_ns, link.bytes_per_second.round())
    };
    assert_eq!(link(0, 2), (1_000, 1e9));
    assert_eq!(link(2, 0), (1_000, 1e9), "as the one back");
    assert_eq!(link(0, 1), (0, 2e9));
    assert_eq!(link(2, 3), (7, 3e9));
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    let ((from, to), (alone, same), (right, other)) =
        (pair("right", "left"), pair("left", "left"), pair("right", "right"));
    for remark in [
        Remark::LinkOfOtherDirection { from, to },
        Remark::LinkOfOneSize { from: alone, to: same, bytes: 1_000 },
        Remark::LinkAssumed { from: right, to: other, link: UNSEEN },
    ] {
        assert_eq!(found.remarks.iter().filter(|told| **told == remark).count(), 1, "{remark:?}");
    }
}

#[test]
fn an_instruction_costs_what_it_did_on_these_kinds() {
    let mut profiles = profiles();
    let all: Vec<_> = profiles.times.clone().into_iter().collect();
    for kind in ["right", "far"] {
        let of_kind = all.iter().map(|((_, signature, phase), time)| ((kind.into(), signature.clone(), *phase), *time));
        profiles.times.extend(of_kind);
    }
    let transfers = |bytes: u64, ns: f64| Transfers { bytes, median_ns: ns, count: 9, ln_spread: 0.01 };
    let two_sizes = vec![transfers(1_000, 2_000.0), transfers(10_000, 11_000.0)];
    profiles.transfers.insert(("left".into(), "right".into()), two_sizes);
    let kinds = ["left", "right", "far"];
    let costs = |profiles: &Profiles| {
        let found = asked(profiles, &kinds, &nobody).unwrap();
        let link: Link = found.problem.link(0, 1);
        let is_guess = |remark: &&Remark| matches!(remark, Remark::OverheadOfOtherKind { .. });
        let guesses = found.remarks.iter().filter(is_guess).count();
        ([found.problem.stage_ns, found.problem.crossing_ns, link.latency_ns], guesses)
    };
    assert_eq!(costs(&profiles), ([0, 0, 1_000], 0));
    let overhead = |ns, transfer_ns| Overhead { instruction_ns: Some(ns), transfer_ns };
    profiles.overheads.insert("left".into(), overhead(30, None));
    assert_eq!(costs(&profiles), ([30, 0, 1_000], 2));
    // A measured link is without what both of its ends pay for.
    profiles.overheads.insert("right".into(), overhead(50, Some(200)));
    profiles.overheads.insert("far".into(), overhead(40, Some(100)));
    // Of two numbers the mean; that transfers on the left cost as much is a guess.
    assert_eq!(costs(&profiles), ([40, 150, 700], 1));
    profiles.overheads.insert("left".into(), overhead(30, Some(300)));
    assert_eq!(costs(&profiles), ([40, 200, 600], 0));
}

#[test]
fn of_two_words_on_an_overhead_the_later_counts_unless_it_tells_less() {
    let of = |instruction_ns, transfer_ns| Overhead { instruction_ns, transfer_ns };
    let (both, alone, carried) = (of(Some(40), Some(300)), of(Some(50), None), of(None, Some(340)));
    assert_eq!(both.or_later(alone), both);
    assert_eq!(both.or_later(carried), both);
    assert_eq!(alone.or_later(both), both);
    assert_eq!(carried.or_later(alone), alone);
    assert_eq!(both.or_later(of(Some(1), Some(2))), of(Some(1), Some(2)));
    assert_eq!(Overhead::middle(&[Overhead::default()]), None);
    assert_eq!(Overhead::middle(&[both, alone, carried]), Some(of(Some(45), Some(320))));
}

#[test]
fn numbers_that_make_no_problem_are_refused() {
    let mut profiles = profiles();
    profiles.times.insert(("left".into(), "mlp".into(), Phase::Forward), known(1e300));
    assert!(matches!(asked(&profiles, &["left"], &nobody), Err(Refused::Implausible(_))));
}
