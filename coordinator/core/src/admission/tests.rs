use super::{Admission, Because, Candidate, Decision, Input, Judgement, Policy, Reason, Trigger, Verdict};
use crate::estimate::synthetic::{Cluster, Noise};
use crate::estimate::{Estimated, Measured};
use adaptis_plan::{Action, Instruction, Plan, Stage, plan};
use adaptis_proto::{Epoch, Step};

const LAYERS: u32 = 16;
const SECOND_NS: u64 = 1_000_000_000;

/// GPipe on two devices, the first one holding the layers before `cut`.
fn two_stages(cut: u32) -> Plan {
    let stage = |device, layers| Stage { layers, device, recompute: Vec::new(), note: None };
    let microbatches = crate::estimate::synthetic::MICROBATCHES as usize;
    let program = |stage: usize| {
        let all = |action| (0..microbatches).map(move |m| Instruction::new(stage, action, m));
        all(Action::Forward).chain(all(Action::Backward)).collect()
    };
    Plan {
        format: plan::FORMAT.to_owned(),
        note: None,
        epoch: Epoch(1),
        parent: Epoch(0),
        layers: LAYERS,
        devices: vec!["gpu0".into(), "gpu1".into()],
        stages: vec![stage(0, [0, cut]), stage(1, [cut, LAYERS])],
        programs: vec![program(0), program(1)],
        predicted: None,
        why: None,
    }
}

fn candidate(cut: u32, transfer_ns: u64) -> Candidate {
    Candidate { plan: two_stages(cut), transfer_ns }
}

/// Two equal devices, the second slowed down.
fn estimated(slowdown: f64, noise: f64) -> Estimated {
    let mut cluster = Cluster::new(&["h100", "h100"], LAYERS as usize, Noise::Normal(noise), 3);
    cluster.slowdown[1] = slowdown;
    cluster.trained(8).problem().expect("there are samples of everything")
}

fn input<'a>(estimated: &'a Estimated, running: &'a Plan, candidates: &'a [Candidate]) -> Input<'a> {
    Input {
        step: Step(50),
        now_ns: 100 * SECOND_NS,
        trigger: Trigger::Drift,
        estimated,
        running,
        candidates,
        horizon_iterations: 1_000,
        correction: 1.0,
        seed: 1,
    }
}

fn switched(admission: &mut Admission, step: u64, decision: &Decision, before: &Plan, after: &Plan) {
    let measured = Measured { median_ns: decision.predicted_before_ns, iterations: 8 };
    admission.switched(step * SECOND_NS, Step(step), decision, before, Some(measured), after, 0, 1_000_000);
}

fn measured(ns: f64, iterations: usize) -> Option<Measured> {
    Some(Measured { median_ns: ns.round() as u64, iterations })
}

#[test]
fn a_promise_under_which_nothing_was_gained_does_not_read_as_a_gain() {
    let judged = |gain_ns| Judgement::Kept { ratio: 1.05, gain_ns }.to_string();
    assert_eq!(judged(2_000_000), "kept: 2.00 ms gained an iteration, +5.0% off the prediction");
    assert_eq!(judged(-20_000), "not broken, but nothing gained: 0.02 ms lost, +5.0% off the prediction");
}

#[test]
fn a_clear_gain_is_taken() {
    let (estimated, running) = (estimated(1.8, 0.05), two_stages(8));
    let candidates = [candidate(10, 20_000_000)];
    let decision = Admission::new(Policy::default()).decide(&input(&estimated, &running, &candidates));
    let Verdict::Switch { candidate: 0, because: Because::Pays { gain_low_ns, cost_ns, .. } } = decision.verdict else {
        panic!("{decision:?}")
    };
    assert!(decision.predicted_after_ns < decision.predicted_before_ns);
    let gain_ns = (decision.predicted_before_ns - decision.predicted_after_ns) as i64;
    assert!(gain_low_ns > 0 && gain_low_ns <= gain_ns, "{decision:?}");
    // Before any switch was seen: 2 ms and ten percent more than the transfer.
    assert_eq!(cost_ns, 24_000_000);
    assert_eq!(decision, Admission::new(Policy::default()).decide(&input(&estimated, &running, &candidates)));
}

#[test]
fn reasons_to_stay() {
    let (slow, even, running) = (estimated(1.8, 0.02), estimated(1.0, 0.02), two_stages(8));
    let good = [candidate(10, 20_000_000)];
    let decide = |policy: Policy, input: &Input<'_>| match Admission::new(policy).decide(input).verdict {
        Verdict::Keep(reason) => reason,
        verdict => panic!("{verdict:?}"),
    };
    let usual = Policy::default();
    assert_eq!(decide(Policy { frozen: true, ..usual }, &input(&slow, &running, &good)), Reason::Frozen);
    assert_eq!(
        decide(Policy { switches_per_hour: 0, ..usual }, &input(&slow, &running, &good)),
        Reason::RateLimited { switches: 0, limit: 0 }
    );
    assert_eq!(decide(usual, &input(&slow, &running, &[])), Reason::NoCandidate);
    let worse = decide(usual, &input(&slow, &running, &[candidate(4, 0)]));
    assert!(matches!(worse, Reason::NoBetterPlan { .. }), "{worse:?}");
    let same = decide(usual, &input(&even, &running, &[candidate(8, 0)]));
    assert!(matches!(same, Reason::NoBetterPlan { .. }), "{same:?}");
    let short = Input { horizon_iterations: 2, ..input(&slow, &running, &good) };
    let dear = [candidate(10, 10 * SECOND_NS)];
    let dear = decide(usual, &Input { candidates: &dear, ..short });
    assert!(matches!(dear, Reason::GainBelowCost { horizon_iterations: 2, .. }), "{dear:?}");
    let other_devices = Plan { devices: vec!["a".into(), "b".into()], ..running.clone() };
    assert_eq!(decide(usual, &input(&slow, &other_devices, &good)), Reason::Unpredictable);
}

#[test]
fn a_small_gain_needs_a_cause() {
    // Devices so far apart that the ninth layer is at home on either.
    let running = two_stages(8);
    let candidates = [candidate(9, 0)];
    let mut verdicts = Vec::new();
    for percent in 0..20 {
        let estimated = estimated(0.8 + f64::from(percent) / 200.0, 0.01);
        let verdict = |trigger| {
            let input = Input { trigger, ..input(&estimated, &running, &candidates) };
            let decision = Admission::new(Policy::default()).decide(&input);
            let share = decision.gain_low_ns as f64 / decision.predicted_before_ns as f64;
            (matches!(decision.verdict, Verdict::Switch { .. }), share)
        };
        let ((drift, gain), (routine, _)) = (verdict(Trigger::Drift), verdict(Trigger::Routine));
        assert!(drift || !routine, "what pays on a quiet day pays after a change");
        assert_eq!((drift, routine), (gain > 0.015, gain > 0.05), "{percent} {gain}");
        verdicts.push((drift, routine));
    }
    assert!(
        verdicts.contains(&(true, false)) && verdicts.contains(&(true, true)) && verdicts.contains(&(false, false))
    );
}

#[test]
fn an_uncertain_gain_is_not_taken() {
    let (mut estimated, running) = (estimated(0.88, 0.02), two_stages(8));
    let candidates = [candidate(9, 0)];
    let admission = Admission::new(Policy::default());
    let sure = admission.decide(&input(&estimated, &running, &candidates));
    assert!(matches!(sure.verdict, Verdict::Switch { .. }), "{sure:?}");
    // Known by no fit, and badly.
    estimated.uncertainty.joint = None;
    estimated.uncertainty.slowdown_ln_sd[1] = 0.3;
    let unsure = admission.decide(&input(&estimated, &running, &candidates));
    assert!(matches!(unsure.verdict, Verdict::Keep(Reason::GainBelowModelError { .. })), "{unsure:?}");
    assert_eq!(sure.predicted_after_ns, unsure.predicted_after_ns);
}

#[test]
fn the_cheapest_change_that_gives_most_of_the_gain_wins() {
    let (estimated, running) = (estimated(1.8, 0.02), two_stages(8));
    let chosen = |candidates: &[Candidate]| match Admission::new(Policy::default())
        .decide(&input(&estimated, &running, candidates))
        .verdict
    {
        Verdict::Switch { candidate, .. } => candidate,
        verdict => panic!("{verdict:?}"),
    };
    // The same plan for less; a plan that gives far less for nothing.
    assert_eq!(chosen(&[candidate(10, 3 * SECOND_NS), candidate(10, 0)]), 1);
    assert_eq!(chosen(&[candidate(9, 0), candidate(11, 1_000_000)]), 1);
    // So dear that over the horizon the smaller gain is the better one.
    assert_eq!(chosen(&[candidate(9, 0), candidate(11, 140 * SECOND_NS)]), 0);
}

#[test]
fn promises_are_kept_or_broken() {
    let (estimated, running) = (estimated(1.8, 0.02), two_stages(8));
    let candidates = [candidate(10, 0)];
    let mut admission = Admission::new(Policy::default());
    let decision = admission.decide(&input(&estimated, &running, &candidates));
    assert_eq!(admission.judge(Step(50), None), Judgement::NothingPromised);
    switched(&mut admission, 52, &decision, &running, &candidates[0].plan);
    assert_eq!(admission.judge(Step(53), None), Judgement::Waiting { iterations: 0 });
    let (before, after) = (decision.predicted_before_ns as f64, decision.predicted_after_ns as f64);
    assert_eq!(admission.judge(Step(57), measured(after, 3)), Judgement::Waiting { iterations: 3 });
    let waiting = Input { trigger: Trigger::Routine, step: Step(57), ..input(&estimated, &running, &candidates) };
    assert_eq!(admission.decide(&waiting).verdict, Verdict::Keep(Reason::PromiseOpen { iterations: 5 }));
    let kept = admission.clone().judge(Step(58), measured(after * 1.04, 4));
    assert!(matches!(kept, Judgement::Kept { ratio, gain_ns } if (ratio - 1.04).abs() < 1e-6 && gain_ns > 0));
    let broken = admission.judge(Step(58), measured(before * 1.05, 4));
    assert!(matches!(broken, Judgement::Broken { loss_ns, .. } if loss_ns as f64 > 0.04 * before), "{broken:?}");
    assert_eq!(admission.judge(Step(59), measured(before, 9)), Judgement::NothingPromised);
    let again = admission.decide(&Input { step: Step(60), ..input(&estimated, &running, &candidates) });
    let expected = Reason::InQuarantine { candidates: 1, remaining_iterations: 498 };
    assert_eq!(again.verdict, Verdict::Keep(expected));
    let later = admission.decide(&Input { step: Step(600), ..input(&estimated, &running, &candidates) });
    assert!(matches!(later.verdict, Verdict::Switch { .. }), "{later:?}");
    admission.changed();
    let changed = admission.decide(&Input { step: Step(61), ..input(&estimated, &running, &candidates) });
    assert!(matches!(changed.verdict, Verdict::Switch { .. }), "{changed:?}");
    // The broken promise makes the next prediction more careful.
    assert!(changed.predicted_after_ns > decision.predicted_after_ns);
}

#[test]
fn one_refinement_and_no_way_back() {
    // The plan in force is one layer short of the best: worth 3% to 4.5%.
    let (running, left) = (two_stages(8), two_stages(7));
    let candidates = [candidate(9, 0)];
    let quiet = |admission: &Admission, estimated: &Estimated, candidates: &[Candidate]| {
        let step = Step(65);
        admission.decide(&Input { trigger: Trigger::Routine, step, ..input(estimated, &running, candidates) })
    };
    let fresh = Admission::new(Policy::default());
    let small = (0..20)
        .map(|percent| estimated(0.8 + f64::from(percent) / 200.0, 0.01))
        .find(|estimated| {
            let decision = quiet(&fresh, estimated, &candidates);
            (0.03..0.045).contains(&(decision.gain_low_ns as f64 / decision.predicted_before_ns as f64))
        })
        .expect("some slowdown makes the gain small");
    let start = Decision { predicted_before_ns: 120, predicted_after_ns: 100, ..Decision::keep(Reason::NoCandidate) };
    let judged = |ratio: f64, left: &Plan| {
        let mut admission = Admission::new(Policy::default());
        switched(&mut admission, 50, &start, left, &running);
        assert!(matches!(admission.judge(Step(58), measured(100.0 * ratio, 4)), Judgement::Kept { .. }));
        admission
    };
    let refines =
        |decision: &Decision| matches!(decision.verdict, Verdict::Switch { because: Because::Refines { .. }, .. });
    let exact = quiet(&judged(1.0, &left), &small, &candidates);
    assert!(refines(&exact), "the estimate has settled: {exact:?}");
    let mut admission = judged(1.06, &left);
    let decision = quiet(&admission, &small, &candidates);
    assert!(refines(&decision), "{decision:?}");
    let back = quiet(&judged(1.06, &candidates[0].plan), &small, &candidates);
    assert!(matches!(back.verdict, Verdict::Keep(Reason::GainBelowModelError { .. })), "{back:?}");
    switched(&mut admission, 66, &decision, &running, &candidates[0].plan);
    let off = measured(1.06 * decision.predicted_after_ns as f64, 4);
    assert!(matches!(admission.judge(Step(72), off), Judgement::Kept { .. } | Judgement::Broken { .. }));
    admission.changed();
    let mut twice = judged(1.06, &left);
    twice.refined = true;
    assert!(!refines(&quiet(&twice, &small, &candidates)), "once is enough");
    let late = Input { trigger: Trigger::Routine, step: Step(90), ..input(&small, &running, &candidates) };
    assert!(!refines(&judged(1.06, &left).decide(&late)), "too late");
}

#[test]
fn switches_are_limited_by_the_hour_and_their_cost_is_learned() {
    let (estimated, running) = (estimated(1.8, 0.02), two_stages(8));
    let candidates = [candidate(10, 0)];
    let mut admission = Admission::new(Policy { switches_per_hour: 2, ..Policy::default() });
    let decision = admission.decide(&input(&estimated, &running, &candidates));
    for (transfer_ns, pause_ns) in [(0, 4_000_000), (100_000_000, 254_000_000)] {
        let (now_ns, after) = (10 * SECOND_NS, &candidates[0].plan);
        admission.switched(now_ns, Step(1), &decision, &running, None, after, transfer_ns, pause_ns);
    }
    let limited = Verdict::Keep(Reason::RateLimited { switches: 2, limit: 2 });
    assert_eq!(admission.decide(&input(&estimated, &running, &candidates)).verdict, limited);
    let mut reverting = Admission::new(Policy { switches_per_hour: 2, ..Policy::default() });
    (0..2).for_each(|_| reverting.reverted(10 * SECOND_NS));
    assert_eq!(reverting.decide(&input(&estimated, &running, &candidates)).verdict, limited, "a way back counts");
    assert_eq!(admission.cost_ns(0), 4_000_000);
    assert_eq!(admission.cost_ns(200_000_000), 504_000_000);
    let an_hour_later = Input { now_ns: 3_700 * SECOND_NS, ..input(&estimated, &running, &candidates) };
    assert!(matches!(admission.decide(&an_hour_later).verdict, Verdict::Switch { .. }));
}

#[test]
fn reasons_are_objects_and_read_as_sentences() {
    for (reason, json, text) in [
        (
            Reason::GainBelowModelError { gain_low_ns: 1_500_000, error_ns: 7_500_000 },
            r#"{"GainBelowModelError":{"gain_low_ns":1500000,"error_ns":7500000}}"#,
            "the sure gain is 1.50 ms an iteration, the model may be wrong by 7.50 ms",
        ),
        (
            Reason::GainBelowCost { gain_low_ns: 1_000_000, cost_ns: 2_000_000, horizon_iterations: 3 },
            r#"{"GainBelowCost":{"gain_low_ns":1000000,"cost_ns":2000000,"horizon_iterations":3}}"#,
            "the sure gain is 1.00 ms over 3 iterations, the switch costs 2.00 ms",
        ),
        (Reason::Frozen, r#""Frozen""#, "an operator froze the plan"),
    ] {
        assert_eq!(serde_json::to_string(&reason).expect("a reason serialises"), json);
        assert_eq!(reason.to_string(), text);
    }
}

#[test]
fn extremes_do_no_harm() {
    let (estimated, running) = (estimated(1.8, 0.02), two_stages(8));
    let candidates = [candidate(10, u64::MAX), candidate(9, 0)];
    for (horizon_iterations, correction, now_ns) in
        [(0, 1.0, 0), (u64::MAX, 1e12, u64::MAX), (1, 0.0, 1), (5, f64::MAX, 7)]
    {
        let mut admission = Admission::new(Policy::default());
        let decision = admission.decide(&Input {
            horizon_iterations,
            correction,
            now_ns,
            ..input(&estimated, &running, &candidates)
        });
        let none = Measured { median_ns: 0, iterations: usize::MAX };
        let (step, after) = (Step(u64::MAX), &candidates[0].plan);
        admission.switched(now_ns, step, &decision, &running, Some(none), after, u64::MAX, u64::MAX);
        let _ = (admission.judge(step, Some(none)), admission.cost_ns(u64::MAX));
    }
}
