//! Recordings with something wrong in them, or too little, and what is said of them.

use super::super::synthetic::Job;
use super::super::*;
use super::named;

/// What is slow is stage 3.
fn slow() -> Recording {
    Job { slow_stages: vec![(3, 1.6)], ..Job::new(2, 4, 8) }.record(1)
}

fn of(recording: &Recording) -> Diagnosis {
    diagnose(recording, &Options::default()).expect("a pipeline")
}

/// Changes the first compute of an iteration that is one of some stage.
fn change(recording: &mut Recording, iteration: usize, stage: u32, change: impl Fn(&mut u32, &mut u32)) {
    let workers = recording.workers.clone();
    let operations = &mut recording.iterations[iteration].operations;
    let own = operations.iter_mut().filter(|of| workers[of.worker as usize].stage == stage);
    let mut computes = own.filter_map(|of| match &mut of.work {
        Work::Compute { chunk, microbatch, .. } => Some((chunk, microbatch)),
        Work::Exchange(_) => None,
    });
    let (chunk, microbatch) = computes.next().expect("there is one");
    change(chunk, microbatch);
}

#[test]
fn a_wrong_cell_sets_its_iteration_aside_and_the_rest_is_told_as_before() {
    let told = of(&slow());
    for stage in 0..4 {
        for wrong in [0, 1, 3, 4, 7, 126, 30_000] {
            let mut recording = slow();
            if wrong != stage {
                change(&mut recording, 7, stage, |chunk, _| *chunk = wrong);
            } else {
                change(&mut recording, 7, stage, |_, microbatch| *microbatch = 30_000);
            }
            let diagnosis = of(&recording);
            assert_eq!(named(&diagnosis), ["Stage 3"], "{wrong} on {stage}");
            assert!((diagnosis.findings[0].factor / told.findings[0].factor - 1.0).abs() < 0.01);
            assert!(diagnosis.better_plan.is_some() && diagnosis.is_reliable);
            let [set_aside] = diagnosis.set_aside[..] else { panic!("{:?}", diagnosis.set_aside) };
            let Oddity::Stray(compute) = set_aside.oddity else { panic!("{set_aside}") };
            assert_eq!((set_aside.iteration, compute.stage), (7, stage));
            assert_eq!(diagnosis.measured_ns.len(), told.iterations - 1);
        }
    }
}

#[test]
fn a_microbatch_numbered_as_another_and_a_stray_worker_are_set_aside() {
    let mut recording = slow();
    change(&mut recording, 3, 2, |_, microbatch| *microbatch = 5);
    let diagnosis = of(&recording);
    assert_eq!(named(&diagnosis), ["Stage 3"]);
    assert!(matches!(diagnosis.set_aside[..], [SetAside { iteration: 3, oddity: Oddity::Twice(_) }]));

    let mut recording = slow();
    recording.workers.push(Worker { dp_rank: 60, stage: 60 });
    recording.iterations[4].operations[0].worker = recording.workers.len() as u32 - 1;
    let diagnosis = of(&recording);
    assert_eq!((named(&diagnosis), diagnosis.set_aside.len()), (vec!["Stage 3".to_owned()], 1));
}

#[test]
fn a_first_iteration_that_was_recorded_in_part_is_set_aside_and_the_better_plan_stays() {
    let mut recording = slow();
    let first = &mut recording.iterations[0].operations;
    let begin = first.iter().map(|of| of.start_ns).min().expect("operations");
    first.retain(|of| of.start_ns > begin + 400_000_000);
    let diagnosis = of(&recording);
    assert_eq!(diagnosis.set_aside.iter().map(|of| of.iteration).collect::<Vec<_>>(), [0]);
    assert!(matches!(diagnosis.set_aside[0].oddity, Oddity::Missing(_)), "{:?}", diagnosis.set_aside);
    assert!(diagnosis.better_plan.expect("a plan").change.contains("off stage 3"));
}

#[test]
fn rows_that_stand_twice_count_once() {
    let mut recording = slow();
    for iteration in &mut recording.iterations {
        iteration.operations = iteration.operations.iter().flat_map(|of| [*of, *of]).collect();
    }
    let (diagnosis, told) = (of(&recording), of(&slow()));
    assert!(diagnosis.is_reliable && diagnosis.set_aside.is_empty());
    assert!(matches!(diagnosis.doubts[..], [Doubt::Duplicates { rows }] if rows > 1_000));
    assert_eq!((diagnosis.findings, diagnosis.simulated_ns), (told.findings, told.simulated_ns));
}

/// Doubts by name, where the replay does not explain the recording.
fn doubted(edit: impl Fn(&mut Operation, u32) -> bool) -> Vec<Doubt> {
    let mut recording = slow();
    let workers = recording.workers.clone();
    for iteration in &mut recording.iterations {
        iteration.operations.retain_mut(|of| edit(of, workers[of.worker as usize].stage));
    }
    let diagnosis = of(&recording);
    assert!(!diagnosis.is_reliable && diagnosis.better_plan.is_none(), "{diagnosis:?}");
    assert!(diagnosis.findings.iter().all(|of| !of.is_reliable));
    let is_reason = |of: &Doubt| matches!(of, Doubt::Unexplained { .. } | Doubt::Coarse { .. });
    assert!(is_reason(&diagnosis.doubts[0]), "{:?}", diagnosis.doubts);
    diagnosis.doubts
}

#[test]
fn a_replay_that_explains_nothing_says_so_and_why() {
    // Seconds since 1970 in 32 bits: 128 s apart.
    let coarse = doubted(|of, _| {
        of.start_ns = (of.start_ns / 128_000_000_000) * 128_000_000_000;
        of.start_ns += i64::from(of.worker % 2) * 128_000_000_000;
        true
    });
    assert!(coarse.iter().any(|of| matches!(of, Doubt::Coarse { resolution_ns: 128_000_000_000, .. })), "{coarse:?}");
    let at_once = doubted(|of, _| {
        of.start_ns = 0;
        true
    });
    assert!(at_once.iter().any(|of| matches!(of, Doubt::Coarse { .. })), "{at_once:?}");
    let alone = doubted(|_, stage| stage == 1);
    assert!(alone.contains(&Doubt::NoStage { stages: vec![0] }), "{alone:?}");
    assert!(alone.iter().any(|of| matches!(of, Doubt::Unpaired { .. })), "{alone:?}");
    let silent = doubted(|of, _| matches!(of.work, Work::Compute { .. }));
    assert!(silent.contains(&Doubt::NoExchange), "{silent:?}");
    let zero = doubted(|of, _| {
        of.duration_ns = 0;
        true
    });
    assert!(zero.iter().any(|of| matches!(of, Doubt::Zero { computes, of } if computes == of)), "{zero:?}");
}

#[test]
fn clocks_that_are_apart_are_set_right_and_told() {
    let job = Job { clocks_ns: 500_000_000, workers: vec![(1, 2, [1.4, 1.4])], ..Job::new(2, 4, 8) };
    let diagnosis = of(&job.record(1));
    assert!(diagnosis.is_reliable, "{:?}", diagnosis.doubts);
    assert_eq!(named(&diagnosis), ["Worker 1 2"]);
    let [Doubt::Clocks { apart_ns }] = diagnosis.doubts[..] else { panic!("{:?}", diagnosis.doubts) };
    assert!(apart_ns.abs_diff(1_500_000_000) < 1_000_000, "{apart_ns}");
}

#[test]
fn one_or_two_iterations_are_too_few_and_their_intervals_wide() {
    for iterations in 1..=3 {
        let quiet = diagnose(&Job { iterations, ..Job::new(2, 4, 8) }.record(1), &Options::default()).expect("a job");
        assert_eq!(
            (quiet.findings.len(), &quiet.doubts[..]),
            (0, &[Doubt::Few { iterations: iterations as usize, least: 4 }][..])
        );
        let job = Job { iterations, workers: vec![(1, 2, [2.0, 2.0])], ..Job::new(4, 4, 8) };
        let slow = diagnose(&job.record(1), &Options::default()).expect("a job");
        let finding = &slow.findings[0];
        assert!(finding.factor_low < 0.9 * finding.factor && finding.factor_high > 1.1 * finding.factor, "{finding:?}");
        let better = slow.better_plan.expect("to mend it");
        assert!(better.low_ns < better.iteration_ns && better.iteration_ns < better.high_ns, "{better:?}");
    }
}

#[test]
fn workers_that_differ_from_iteration_to_iteration_are_blamed_for_nothing() {
    let mut blamed = 0;
    for seed in 0..10 {
        for iterations in [4, 5, 8] {
            blamed +=
                u32::from(!of(&Job { iterations, own: 0.1, ..Job::new(2, 4, 8) }.record(seed)).findings.is_empty());
        }
    }
    assert!(blamed <= 1, "{blamed} of 30");
}

#[test]
fn a_worker_that_becomes_slow_is_told_with_its_iteration_and_what_it_costs_since() {
    for (seed, (from, count, factor)) in
        [(12, 24, 1.5), (17, 32, 2.0), (20, 32, 1.3), (8, 24, 1.5), (26, 32, 1.5)].into_iter().enumerate()
    {
        let quiet = Job { iterations: count, ..Job::new(3, 4, 8) };
        let job = Job { workers: vec![(1, 2, [factor, factor])], from, ..quiet.clone() };
        let diagnosis = diagnose(&job.record(seed as u64), &Options::default()).expect("a job");
        assert_eq!(named(&diagnosis), ["Worker 1 2"], "{from} of {count}: {diagnosis:?}");
        let finding = &diagnosis.findings[0];
        assert_eq!(finding.place.iteration, Some(u64::from(from)));
        assert!((finding.factor / factor - 1.0).abs() < 0.03, "{finding:?}");
        assert!(finding.lost_share > 0.7, "{finding:?}");
        let even = diagnose(&quiet.record(9), &Options::default()).expect("a job").measured_median_ns as f64;
        assert!((finding.without_ns as f64 / even - 1.0).abs() < 0.03, "{finding:?} of {even}");
        let better = diagnosis.better_plan.expect("to mend it");
        assert!((better.instead_of_ns as f64) > 1.1 * even, "{better:?} of {even}");
    }
}

#[test]
fn a_worker_whose_twin_recovers_did_not_become_slow() {
    for replicas in [2, 3] {
        let quiet = Job { iterations: 32, ..Job::new(replicas, 4, 8) };
        let job = Job { workers: vec![(1, 2, [1.6, 1.6])], ..quiet.clone() };
        let mut recording = job.record(5);
        // Slow in the first half.
        recording.iterations.truncate(16);
        recording.iterations.extend(quiet.record(6).iterations.drain(16..));
        let diagnosis = diagnose(&recording, &Options::default()).expect("a job");
        for finding in &diagnosis.findings {
            let is_other = finding.place.dp_rank.is_some_and(|dp_rank| dp_rank != 1);
            assert!(!is_other && finding.place.iteration.is_none(), "{replicas}: {finding:?}");
        }
    }
}

#[test]
fn what_sends_do_not_block_is_not_held_up_by_them() {
    let quiet = Job { is_async: true, noise: 0.01, ..Job::new(2, 4, 8) };
    let even = of(&quiet.record(3)).measured_median_ns as f64;
    for (dp_rank, stage) in [(1, 2), (0, 0), (1, 3)] {
        let job = Job { workers: vec![(dp_rank, stage, [1.4, 1.4])], ..quiet.clone() };
        let diagnosis = of(&job.record(3));
        let [finding] = &diagnosis.findings[..] else { panic!("{diagnosis:?}") };
        assert_eq!((finding.place.dp_rank, finding.place.stage), (Some(dp_rank), Some(stage)));
        assert!((finding.without_ns as f64 / even - 1.0).abs() < 0.02, "{finding:?} of {even}");
    }
}
