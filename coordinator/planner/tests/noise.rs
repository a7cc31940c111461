//! Plans on draws of their works' times.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use adaptis_plan::{Plan, Problem};
use adaptis_planner::noise::{Draws, Jitter, Noise, draws};
use adaptis_planner::schedule::{Name, even, named};
use adaptis_planner::simulate::{CannotSimulate, simulate};
use support::{cost, uniform};

/// A device of each layer; F, I and W as in the Zero Bubble paper's first row, in units of 10 us.
fn pipeline(devices: usize, microbatches: u32) -> Problem {
    uniform(devices, devices, microbatches, cost(1_852_200, 1_808_600, 933_700), 60_100)
}

fn longer(problem: &Problem, plan: &Plan, noise: &Noise, count: usize, seed: u64) -> f64 {
    let exact_ns = simulate(problem, plan).unwrap().iteration_ns;
    draws(problem, plan, noise, count, seed).unwrap().mean_ns() as f64 / exact_ns as f64 - 1.0
}

#[test]
fn a_tenth_on_every_instruction_lengthens_1f1b_by_6_to_9_percent() {
    for (devices, microbatches, low, high) in [(8, 32, 0.06, 0.065), (32, 256, 0.08, 0.09)] {
        let problem = uniform(devices, devices, microbatches, cost(1_000_000, 1_000_000, 1_000_000), 0);
        let plan = named(&problem, Name::OneFOneB).unwrap();
        let noise = Noise::of_instructions(devices, 0.1);
        let longer = longer(&problem, &plan, &noise, 32, 1);
        assert!((low..high).contains(&longer), "p{devices} m{microbatches}: {longer:.4}");
    }
}

#[test]
fn without_jitter_every_draw_is_what_the_simulator_says() {
    let mut problem = pipeline(4, 8);
    problem.devices[1].slowdown = 1.37;
    problem.stage_ns = 7;
    problem.crossing_ns = 5;
    let plan = even(&problem);
    let exact_ns = simulate(&problem, &plan).unwrap().iteration_ns;
    let ones = Noise {
        devices: vec![[Jitter::measured([1.0, 1.0]), Jitter::log_normal(0.0), Jitter::default()]],
        together: 0.5,
    };
    for noise in [Noise::default(), Noise::of_instructions(4, 0.0), ones] {
        assert!(noise.is_none());
        assert_eq!(draws(&problem, &plan, &noise, 3, 1).unwrap(), Draws { iteration_ns: vec![exact_ns; 3] });
    }
    // A factor that is the same for all works is a slowdown.
    let slower = Noise {
        devices: vec![[Jitter::measured([1.5]), Jitter::measured([1.5]), Jitter::measured([1.5])]; 4],
        together: 0.3,
    };
    problem.links.default.latency_ns = 0;
    (problem.stage_ns, problem.crossing_ns) = (0, 0);
    let exact_ns = simulate(&problem, &plan).unwrap().iteration_ns as f64;
    let drawn = draws(&problem, &plan, &slower, 1, 1).unwrap();
    assert!((drawn.iteration_ns[0] as f64 / exact_ns - 1.5).abs() < 1e-6, "{drawn:?} {exact_ns}");
}

#[test]
fn draws_repeat_for_a_seed_and_differ_between_draws_and_seeds() {
    let problem = pipeline(4, 8);
    let plan = even(&problem);
    let noise = Noise::of_instructions(4, 0.1);
    let drawn = |seed| draws(&problem, &plan, &noise, 8, seed).unwrap().iteration_ns;
    assert_eq!(drawn(1), drawn(1));
    assert_eq!(draws(&problem, &plan, &noise, 3, 1).unwrap().iteration_ns, drawn(1)[..3]);
    let mut all = [drawn(1), drawn(2)].concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 16);
}

#[test]
fn plans_meet_with_the_same_luck() {
    // Layers that deviate one by one: a boundary that moves leaves all others their luck.
    let problem = uniform(4, 16, 8, cost(1_000_000, 1_000_000, 1_000_000), 0);
    let one_by_one = Noise { together: 0.0, ..Noise::of_instructions(4, 0.1) };
    let mut moved = even(&problem);
    moved.stages[0].layers[1] -= 1;
    moved.stages[1].layers[0] -= 1;
    for together in [0.0, 1.0] {
        let noise = Noise { together, ..one_by_one.clone() };
        let of = |plan: &Plan, seed| draws(&problem, plan, &noise, 64, seed).unwrap().iteration_ns;
        let deviation = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
        };
        let apart = |before: Vec<u64>, after: Vec<u64>| {
            deviation(&before.iter().zip(&after).map(|(&a, &b)| a as f64 - b as f64).collect::<Vec<_>>())
        };
        let same = apart(of(&even(&problem), 1), of(&moved, 1));
        let other = apart(of(&even(&problem), 1), of(&moved, 2));
        assert!(same < 0.75 * other, "{together}: {same:.0} {other:.0}");
    }
    // What is told apart averages out within an instruction.
    let plan = even(&problem);
    let together = longer(&problem, &plan, &Noise { together: 1.0, ..one_by_one.clone() }, 32, 1);
    let apart = longer(&problem, &plan, &one_by_one, 32, 1);
    assert!(apart > 0.01 && apart < 0.7 * together, "{apart:.4} {together:.4}");
}

#[test]
fn one_noisy_device_is_noisy_by_itself() {
    let problem = pipeline(4, 16);
    let plan = even(&problem);
    let none = [Jitter::default(), Jitter::default(), Jitter::default()];
    let mut noise = Noise { devices: vec![none; 4], together: 1.0 };
    noise.devices[2][1] = Jitter::log_normal(0.3);
    let one = longer(&problem, &plan, &noise, 32, 1);
    let all = longer(&problem, &plan, &Noise::of_instructions(4, 0.3), 32, 1);
    assert!(one > 0.005 && one < 0.5 * all, "{one:.4} {all:.4}");
}

#[test]
fn figures_of_draws() {
    let draws = Draws { iteration_ns: vec![40, 10, 20, 31] };
    assert_eq!((draws.mean_ns(), draws.median_ns()), (25, 26));
    assert_eq!((draws.quantile_ns(0.0), draws.quantile_ns(1.0), draws.quantile_ns(0.95)), (10, 40, 39));
    let none = Draws { iteration_ns: Vec::new() };
    assert_eq!((none.mean_ns(), none.quantile_ns(0.5)), (0, 0));
}

#[test]
fn what_cannot_run_has_no_draws() {
    let problem = pipeline(2, 2);
    let mut plan = even(&problem);
    plan.programs[0].pop();
    let error = draws(&problem, &plan, &Noise::of_instructions(2, 0.1), 1, 1).unwrap_err();
    assert!(matches!(error, CannotSimulate::Missing { .. }), "{error}");
}
