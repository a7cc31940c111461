//! What earlier jobs measured gets to the estimate before anything ran, and to the first search.

use super::cluster::{World, plan_in};
use super::decisions::{DEVICES, of, world_of_two_kinds};
use super::regret::{Scenario, Tally, best, scenarios};
use crate::brain::Event;
use crate::estimate::Source;
use crate::estimate::earlier::{Earlier, Job, OfKind, OfLink, Time};
use crate::estimate::random::Random;
use crate::ledger::Verdict;
use crate::next_job::LayerMemory;
use adaptis_plan::{Link, Plan, Problem};
use adaptis_planner::search::{Control, Options, search};
use adaptis_planner::simulate::simulate;
use adaptis_proto::Epoch;
use adaptis_proto::message::JobLayer;
use adaptis_proto::sample::Phase;
use std::collections::BTreeMap;

/// What jobs on the same kinds measured, `factor` times as long as it takes now, by kind, signature and phase.
fn recalled(truth: &Problem, layers: &[JobLayer], mut factor: impl FnMut(&str, &str, Phase) -> f64) -> Event {
    let mut earlier = Earlier::default();
    for (kind, costs) in &truth.costs {
        let mut job = Job::default();
        for (layer, cost) in layers.iter().zip(costs) {
            let phases = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];
            let times = [cost.forward_ns, cost.input_gradient_ns, cost.weight_gradient_ns];
            for (phase, ns) in phases.into_iter().zip(times) {
                let ln_ns = (ns as f64 * factor(kind, &layer.signature, phase)).ln();
                let time = Time { ln_ns, ln_sd: 0.002 };
                job.times.insert((layer.signature.clone(), phase), time);
            }
        }
        let mut of_kind = OfKind::of_jobs(&[job]);
        for (layer, cost) in layers.iter().zip(costs) {
            let memory = LayerMemory {
                activation_bytes: cost.activation_bytes,
                weight_gradient_bytes: Some(cost.weight_gradient_bytes),
                workspace_bytes: 0,
            };
            of_kind.memories.insert(layer.signature.clone(), memory);
        }
        earlier.kinds.insert(kind.clone(), of_kind);
    }
    for from in truth.costs.keys() {
        for to in truth.costs.keys() {
            let Link { latency_ns, bytes_per_second, .. } = truth.links.default;
            let link = Link {
                latency_ns,
                bytes_per_second: bytes_per_second / factor("link", from, Phase::Forward),
                note: (),
            };
            earlier.links.insert((from.clone(), to.clone()), OfLink { link, ln_sd: 0.3, separated: true });
        }
    }
    Event::Recalled(Box::new(earlier))
}

/// A run that is told of earlier jobs, whose times were so many times as long; none: of none.
fn told(factor: Option<f64>, iterations: u64) -> World {
    let mut world = world_of_two_kinds(iterations);
    world.run_until("training", |world| world.brain.running.is_some());
    if let Some(factor) = factor {
        let truth = world.truth.as_ref().expect("the world has one").problem.clone();
        let layers = world.ranks[0].job.layers.clone();
        world.feed(recalled(&truth, &layers, |_, _, _| factor));
    }
    world
}

/// By how much longer a plan takes than the best that a long search finds for the truth.
fn above_best(world: &World, plan: &Plan) -> f64 {
    let truth = &world.truth.as_ref().expect("the world has one").problem;
    let options = Options { seed: 5, evaluations: Some(20_000), ..Options::default() };
    let best = search(truth, None, &options, &mut |_| Control::Go).expect("there is a plan").plan;
    let ns = |plan: &Plan| simulate(truth, plan).expect("it can be simulated").iteration_ns as f64;
    ns(plan) / ns(&best)
}

fn count(world: &World, source: Source) -> u64 {
    world.brain.figures_by_source().find(|(of, _)| *of == source.word()).map_or(0, |(_, count)| count)
}

#[test]
fn before_anything_ran_the_figures_and_the_prediction_are_of_earlier_jobs() {
    let world = told(Some(1.0), 40);
    assert_eq!(world.brain.status().duration_ns, None, "nothing ran");
    // Of each device and layer: F, I and W; nobody measured an optimizer.
    let all = (DEVICES * DEVICES) as u64;
    assert_eq!((count(&world, Source::EarlierJobs), count(&world, Source::None)), (3 * all, all));
    let plan = world.brain.running.as_ref().expect("it trains");
    let truth = simulate(&world.truth.as_ref().expect("the world has one").problem, plan).expect("it can be simulated");
    let predicted_ns = world.brain.status().predicted_ns.expect("earlier jobs tell enough");
    let ratio = predicted_ns as f64 / truth.iteration_ns as f64;
    assert!((ratio - 1.0).abs() < 0.02, "{ratio}");
    assert!(world.announced.iter().any(|said| said.starts_with("earlier jobs tell")), "{:?}", world.announced);
    assert_eq!(told(None, 40).brain.status().predicted_ns, None);
}

#[test]
fn of_a_plan_that_can_not_be_simulated_no_time_is_told() {
    let mut world = world_of_two_kinds(40);
    world.run_until("training", |world| world.brain.running.is_some());
    let truth = world.truth.as_ref().expect("the world has one").problem.clone();
    let layers = world.ranks[0].job.layers.clone();
    if let Some(plan) = &mut world.brain.running {
        plan.programs[0].clear();
    }
    world.feed(recalled(&truth, &layers, |_, _, _| 1.0));
    let said = world.announced.iter().find(|said| said.starts_with("earlier jobs tell")).expect("it is told");
    assert!(!said.contains(" ms"), "{said}");
    assert_eq!(world.brain.status().predicted_ns, None);
}

#[test]
fn the_first_search_knows_what_only_earlier_jobs_ran() {
    let head = DEVICES - 1;
    let mut found = Vec::new();
    for factor in [None, Some(1.0), Some(2.0)] {
        let mut world = told(factor, 90);
        world.run_until("a search", |world| world.searched > 0);
        let problem = world.searches[0].1.problem.clone();
        let truth = world.truth.as_ref().expect("the world has one").problem.costs["fast"][head].clone();
        let off = problem.costs["fast"][head].forward_ns as f64 / truth.forward_ns as f64;
        let source = world.brain.estimated().expect("it was fitted").uncertainty.figures[0][head][0].source;
        world.run_until("the end", |world| world.done);
        let first = of(&world, Verdict::Switch)[0].epoch.expect("a switch has a plan");
        let plan = Plan::read(&world.ledger.held.plans[&first].text).expect("a plan");
        println!(
            "{factor:?}: the head on the fast kind {off:.3} of the truth, first plan {:.4}",
            above_best(&world, &plan)
        );
        let held = &world.ledger.held;
        assert!(held.phases.iter().all(|phase| phase.change.is_none()), "{factor:?}: {:#?}", held.phases);
        assert!(world.brain.slowdown(0).is_some_and(|slowdown| (slowdown - 1.0).abs() < 0.03), "{factor:?}");
        found.push((off, source));
    }
    let [without, with, wrong] = found[..] else { unreachable!() };
    assert!(without.0 > 1.5 && without.1 == Source::OtherKind, "{without:?}");
    assert!((with.0 - 1.0).abs() < 0.05 && with.1 == Source::EarlierJobs, "{with:?}");
    // What ran tells that all of them were slower.
    assert!((wrong.0 - 1.0).abs() < 0.1, "{wrong:?}");
}

/// Earlier jobs that differ from this one as jobs usually do: 8% in all of a kind, 4% in each time.
fn scattered(scenario: &Scenario, seed: u64) -> Event {
    let mut random = Random::new(seed, 91);
    let levels: BTreeMap<String, f64> =
        scenario.truth.costs.keys().map(|kind| (kind.clone(), 0.08 * random.normal())).collect();
    recalled(&scenario.truth, &scenario.job.layers, |kind, _, _| {
        let level = levels.get(kind).copied().unwrap_or(0.0);
        (level + 0.04 * random.normal()).exp()
    })
}

/// By how much longer the plan of the first switch of a run takes than the best; the plan that it began on, where there is
/// none.
fn first_replan(scenario: &Scenario, seed: u64, earlier: Option<Event>) -> f64 {
    let world = scenario.run(seed, earlier);
    let switches = of(&world, Verdict::Switch);
    let epoch = switches.first().and_then(|decision| decision.epoch).unwrap_or(Epoch(1));
    let plan = plan_in(&world, epoch);
    let ns = |plan: &Plan| simulate(&scenario.truth, plan).expect("it can be simulated").iteration_ns as f64;
    ns(&plan) / ns(&best(&scenario.truth, &plan)) - 1.0
}

/// For the figures: `SCENARIOS=24 cargo test -p adaptis-coordinator-core first_replan -- --nocapture`.
#[test]
fn the_first_replan_is_no_worse_with_earlier_jobs() {
    let (count, mut sums) = (scenarios(4), [0.0; 2]);
    for seed in 1..=count {
        let mut scenario = Scenario::draw(seed);
        (scenario.job.start_plan, scenario.job.iterations) = (None, 16);
        let [without, with] = [None, Some(scattered(&scenario, seed))].map(|of| first_replan(&scenario, seed, of));
        println!(
            "{seed:4} first plan above the best: without earlier jobs {:.2}%, with {:.2}%",
            100.0 * without,
            100.0 * with
        );
        (sums[0], sums[1]) = (sums[0] + without, sums[1] + with);
    }
    let [without, with] = sums.map(|sum| sum / count as f64);
    println!("mean: without {:.2}%, with {:.2}%", 100.0 * without, 100.0 * with);
    assert!(with < without + 0.005, "{with} {without}");
}

/// Wrong ones are 2 times off in all of one kind and in every link.
#[test]
fn earlier_jobs_right_or_wrong_cost_no_decision() {
    let count = scenarios(1);
    for (what, is_wrong) in [("as jobs differ", false), ("off by two", true)] {
        let mut tally = Tally::default();
        for seed in 1..=count {
            let scenario = Scenario::draw(seed);
            let wrong = |kind: &str, _: &str, _: Phase| if kind == "slow" { 1.0 } else { 2.0 };
            let earlier = match is_wrong {
                true => recalled(&scenario.truth, &scenario.job.layers, wrong),
                false => scattered(&scenario, seed),
            };
            tally.add(&scenario, seed, Some(earlier));
        }
        tally.say(what);
        let mean = tally.regrets.iter().sum::<f64>() / tally.regrets.len() as f64;
        assert!(mean < 0.05 && tally.switches.percent() >= 95.0, "{what}: {tally:?}");
    }
}

/// Transfers take about as long as works do, and earlier jobs say that they take a part of it.
#[test]
fn on_a_network_that_is_slower_than_earlier_jobs_say_no_link_is_tried_after_another() {
    for seed in 1..=scenarios(3) {
        let run = |factor: f64| {
            let mut scenario = Scenario::draw(seed).on_network(2e9);
            (scenario.job.start_plan, scenario.job.iterations) = (None, 120);
            let wrong = |kind: &str, _: &str, _: Phase| if kind == "link" { factor } else { 1.0 };
            let world = scenario.run(seed, Some(recalled(&scenario.truth, &scenario.job.layers, wrong)));
            let corrected =
                world.announced.iter().filter(|said| said.contains("the link") && said.contains("corrected"));
            let plan = plan_in(&world, world.head().epoch);
            let ns = |plan: &Plan| simulate(&scenario.truth, plan).expect("it can be simulated").iteration_ns as f64;
            let above = ns(&plan) / ns(&best(&scenario.truth, &plan)) - 1.0;
            (of(&world, Verdict::Switch).len(), corrected.count(), above)
        };
        let [right, wrong, far] = [1.0, 0.25, 0.1].map(run);
        println!("{seed:4} switches, links corrected, last plan above the best: {right:?} {wrong:?} {far:?}");
        for found in [wrong, far] {
            assert!(found.0 <= right.0 && found.1 == 0 && found.2 < 0.02, "{seed}: {right:?} {found:?}");
        }
    }
}
