//! Made-up jobs with something slow in them, and what is named.

mod doubts;

use super::synthetic::Job;
use super::*;

const SEEDS: u64 = 6;

fn diagnosed(job: &Job, seed: u64) -> Diagnosis {
    diagnose(&job.record(seed), &Options::default()).expect("a whole job")
}

/// Kind and place of each finding, short.
fn named(diagnosis: &Diagnosis) -> Vec<String> {
    let one = |finding: &Finding| {
        let Place { dp_rank, stage, operation, from_stage, to_stage, .. } = &finding.place;
        let numbers = [dp_rank, stage, from_stage, to_stage].map(|number| number.map(|number| number.to_string()));
        let numbers: Vec<String> = numbers.into_iter().flatten().chain(operation.clone()).collect();
        format!("{:?} {}", finding.kind, numbers.join(" ")).trim_end().to_owned()
    };
    diagnosis.findings.iter().map(one).collect()
}

/// The jobs and what is to be named.
fn stories() -> Vec<(&'static str, Job, Vec<&'static str>)> {
    let job = |replicas, stages| Job::new(replicas, stages, 8);
    vec![
        ("even", job(4, 4), vec![]),
        ("even, one replica", job(1, 4), vec![]),
        ("even, noisy", Job { noise: 0.1, is_heavy: true, common: 0.05, ..job(2, 4) }, vec![]),
        ("worker", Job { workers: vec![(2, 1, [2.3, 2.3])], ..job(4, 4) }, vec!["Worker 2 1"]),
        ("worker of two replicas", Job { workers: vec![(1, 3, [1.2, 1.2])], ..job(2, 4) }, vec!["Worker 1 3"]),
        (
            "worker, noisy",
            Job { workers: vec![(0, 2, [1.2, 1.2])], noise: 0.1, is_heavy: true, common: 0.05, ..job(4, 4) },
            vec!["Worker 0 2"],
        ),
        (
            "two workers alike",
            Job { workers: vec![(0, 2, [1.5, 1.5]), (3, 1, [1.5, 1.5])], ..job(4, 4) },
            vec!["Worker 0 2", "Worker 3 1"],
        ),
        ("worker without a pipeline", Job { workers: vec![(1, 0, [1.5, 1.5])], ..job(2, 1) }, vec!["Worker 1 0"]),
        (
            "many workers",
            Job {
                workers: [(0, 0), (1, 1), (0, 2)].map(|(dp_rank, stage)| (dp_rank, stage, [1.5, 1.5])).to_vec(),
                ..job(2, 4)
            },
            vec!["Worker 0 0", "Worker 0 2", "Worker 1 1"],
        ),
        (
            "worker of two stages, later",
            Job { workers: vec![(1, 1, [1.5, 1.5])], from: 12, ..job(2, 2) },
            vec!["Worker 1 1"],
        ),
        ("uneven length without a pipeline", Job { length: 0.8, ..job(8, 1) }, vec!["Length"]),
        ("worker at times", Job { workers: vec![(2, 1, [2.5, 2.5])], at_times: 0.3, ..job(4, 4) }, vec!["Worker 2 1"]),
        ("stage", Job { slow_stages: vec![(3, 1.6)], ..job(2, 4) }, vec!["Stage 3"]),
        ("stage of two", Job { slow_stages: vec![(1, 1.5)], ..job(3, 2) }, vec!["Stage 1"]),
        ("operation", Job { workers: vec![(1, 2, [1.0, 1.8])], ..job(4, 4) }, vec!["Operation 1 2 backward-compute"]),
        ("link", Job { links: vec![(1, 1, 2, 60.0)], ..job(4, 4) }, vec!["Link 1 1 2"]),
        ("length", Job { length: 0.4, ..job(4, 4) }, vec!["Length"]),
        ("length, noisy", Job { length: 0.4, noise: 0.1, is_heavy: true, common: 0.05, ..job(4, 4) }, vec!["Length"]),
        ("length without a pipeline", Job { length: 0.4, ..job(4, 1) }, vec!["Length"]),
        (
            "length and a worker",
            Job { length: 0.3, workers: vec![(2, 2, [1.8, 1.8])], ..job(4, 4) },
            vec!["Length", "Worker 2 2"],
        ),
    ]
}

#[test]
fn what_is_slow_is_named_and_nothing_else() {
    let mut wrong = Vec::new();
    for (story, job, expected) in stories() {
        for seed in 0..SEEDS {
            let diagnosis = diagnosed(&job, seed);
            let mut named = named(&diagnosis);
            named.sort();
            if named != expected {
                wrong.push(format!("{story}, seed {seed}: {named:?} {:?}", diagnosis.findings));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_worker_that_recovered_is_named_with_its_iterations() {
    for (from, until, expected) in [(4, 12, (Some(4), Some(11))), (0, 12, (None, Some(11))), (14, 24, (Some(14), None))]
    {
        for seed in 0..SEEDS {
            let job = Job { workers: vec![(1, 1, [1.6, 1.6])], from, until: Some(until), ..Job::new(2, 4, 8) };
            let diagnosis = diagnosed(&job, seed);
            assert_eq!(named(&diagnosis), ["Worker 1 1"], "from {from}, seed {seed}: {diagnosis:?}");
            let finding = &diagnosis.findings[0];
            assert_eq!((finding.place.iteration, finding.place.last_iteration), expected, "seed {seed}");
            assert!((finding.factor / 1.6 - 1.0).abs() < 0.03, "{finding:?}");
        }
    }
}

#[test]
fn silence_is_not_taken_for_health() {
    let is_untold = |job: &Job, seed: u64| {
        let doubts = diagnosed(job, seed).doubts;
        doubts.iter().any(|doubt| matches!(doubt, Doubt::Untold { .. }))
    };
    for seed in 0..SEEDS {
        // All of a replica for a third of the iterations, which nothing names.
        let workers = (0..4).map(|stage| (1, stage, [1.6, 1.6])).collect();
        let recovered = Job { workers, from: 4, until: Some(12), ..Job::new(2, 4, 8) };
        assert!(is_untold(&recovered, seed), "seed {seed}: {:?}", diagnosed(&recovered, seed));
        for (story, job, _) in stories() {
            assert!(!is_untold(&job, seed), "{story}, seed {seed}: {:?}", diagnosed(&job, seed));
        }
    }
}

#[test]
fn factors_lie_in_their_intervals_and_shares_add_up() {
    let mut inside = 0;
    for seed in 0..40 {
        let job = Job { workers: vec![(1, 1, [1.5, 1.5])], noise: 0.05, ..Job::new(3, 4, 8) };
        let diagnosis = diagnosed(&job, seed);
        let finding = &diagnosis.findings[0];
        assert!((finding.factor / 1.5 - 1.0).abs() < 0.03, "{finding:?}");
        inside += usize::from((finding.factor_low..=finding.factor_high).contains(&1.5));
        let total: f64 = diagnosis.findings.iter().map(|finding| finding.lost_share).sum();
        assert!((0.8..=1.0 + 1e-9).contains(&total), "{diagnosis:?}");
    }
    assert!(inside >= 32, "{inside} of 40");
}

#[test]
fn a_replay_takes_as_long_as_the_recording_whatever_the_clocks() {
    for clocks_ns in [0, 3_000_000] {
        let job = Job { noise: 0.1, is_heavy: true, length: 0.3, clocks_ns, ..Job::new(2, 4, 6) };
        let diagnosis = diagnosed(&job, 5);
        for (simulated, measured) in diagnosis.simulated_ns.iter().zip(&diagnosis.measured_ns) {
            let ratio = *simulated as f64 / *measured as f64;
            assert!((ratio - 1.0).abs() < 0.01, "{clocks_ns}: {ratio}");
        }
    }
}

#[test]
fn a_slow_stage_gets_a_plan_that_moves_its_layers() {
    let job = Job { slow_stages: vec![(2, 1.5)], ..Job::new(2, 4, 8) };
    let better = diagnosed(&job, 1).better_plan.expect("there is a better one");
    let measured_ns = diagnosed(&job, 1).measured_median_ns;
    assert!(better.change.contains("off stage 2"), "{}", better.change);
    assert!(better.low_ns <= better.iteration_ns && better.iteration_ns <= better.high_ns);
    assert!((better.high_ns as f64) < 0.9 * measured_ns as f64, "{better:?} of {measured_ns}");
}

#[test]
fn a_slow_worker_is_worth_replacing() {
    let job = Job { workers: vec![(1, 2, [2.0, 2.0])], ..Job::new(4, 4, 8) };
    let even = diagnosed(&Job::new(4, 4, 8), 3).measured_median_ns as f64;
    let better = diagnosed(&job, 3).better_plan.expect("there is a better one");
    assert!(better.change.contains("dp rank 1, stage 2"), "{}", better.change);
    assert!((better.iteration_ns as f64 / even - 1.0).abs() < 0.02, "{better:?} of {even}");
}

#[test]
fn the_same_recording_is_told_the_same() {
    let job = Job { slow_stages: vec![(0, 1.3)], workers: vec![(1, 1, [1.4, 1.4])], ..Job::new(2, 3, 4) };
    assert_eq!(diagnosed(&job, 1), diagnosed(&job, 1));
}

#[test]
fn recordings_without_a_pipeline_are_refused() {
    let mut recording = Job::new(2, 2, 2).record(1);
    for iteration in &mut recording.iterations {
        iteration
            .operations
            .retain(|operation| !matches!(operation.work, Work::Compute { direction: Direction::Backward, .. }));
    }
    let refused = diagnose(&recording, &Options::default());
    assert_eq!(refused, Err(Refusal::Nothing { operation: "backward-compute" }));
    let refused = diagnose(&Recording::default(), &Options::default());
    assert_eq!(refused, Err(Refusal::Nothing { operation: "forward-compute" }));
}

#[test]
fn a_device_that_slows_down_is_named_with_its_iteration() {
    use crate::drift::Who;
    use crate::estimate::synthetic::{Cluster, Noise};
    use adaptis_proto::sample::Mark;
    use adaptis_proto::{DeviceIndex, Step};
    for (seed, factor) in [(1, 1.8), (2, 1.2), (3, 1.0)] {
        let mut cluster = Cluster::new(&["h100", "h100", "a100", "a100"], 48, Noise::Heavy(0.1), seed);
        let mut watch = run::Watch::new(cluster.job.clone());
        cluster.calibrate().iter().for_each(|(device, sample)| watch.absorb(*device, sample));
        for step in 0..70 {
            cluster.slowdown[1] = if (40..60).contains(&step) { factor } else { 1.0 };
            let mark = if step < 3 { Mark::Cold } else { Mark::Warm };
            cluster.iteration(step, mark).iter().for_each(|(device, sample)| watch.absorb(*device, sample));
        }
        let slowdowns = watch.finish().slowdowns;
        if factor == 1.0 {
            assert_eq!(slowdowns, []);
            continue;
        }
        let [slowdown] = &slowdowns[..] else { panic!("{slowdowns:?}") };
        let place = (slowdown.who, slowdown.from, slowdown.until);
        assert_eq!(place, (Who::Device(DeviceIndex(1)), Step(40), Some(Step(60))));
        assert!((slowdown.factor() / factor - 1.0).abs() < 0.03, "{slowdown:?}");
    }
}
