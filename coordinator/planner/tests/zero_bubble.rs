//! The 1F1B bubble rates of the Zero Bubble paper (Qi et al. 2023, table 4), to four digits.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use adaptis_planner::schedule::even;
use adaptis_planner::simulate::simulate;

/// Milliseconds of F, I, W and communication.
fn rate(p: usize, m: u32, [forward, input, weight, latency]: [f64; 4]) -> f64 {
    let ns = |milliseconds: f64| (milliseconds * 1e6).round() as u64;
    let cost = support::cost(ns(forward), ns(input), ns(weight));
    let problem = support::uniform(p, p, m, cost, ns(latency));
    let timeline = simulate(&problem, &even(&problem)).unwrap();
    timeline.bubble[0]
}

#[test]
fn one_f_one_b_has_the_published_bubble() {
    let table = [
        (8, 24, [18.522, 18.086, 9.337, 0.601], 0.2431),
        (32, 256, [10.402, 10.248, 7.698, 0.460], 0.1352),
        (16, 64, [11.307, 11.254, 8.101, 0.379], 0.2082),
    ];
    for (p, m, times, published) in table {
        let rate = rate(p, m, times);
        assert!((rate - published).abs() < 0.00005, "p{p} m{m}: {rate:.5}, published {published}");
    }
}
