//! What instructions cost besides their layers, in problems and predictions.

use super::*;
use crate::estimate::earlier::{Earlier, OfKind};
use crate::next_job::Overhead;
use adaptis_plan::Problem;

#[test]
fn what_passes_between_instructions_is_in_the_problem_and_in_predictions() {
    let mut cluster = Cluster::new(&MIXED, 16, Noise::Normal(0.03), 1);
    let mut estimator = cluster.trained(6);
    let before = fitted(&estimator);
    assert_eq!((before.problem.stage_ns, before.problem.crossing_ns), (0, 0));
    for step in 3..6 {
        let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
        for (transfers, instructions, own_ns) in [(0, 8, 8 * 30_000), (20, 10, 10 * 30_000 + 20 * 400_000)] {
            for device in 0..MIXED.len() {
                let sample = Sample::Between { place, mark: Mark::Warm, instructions, own_ns, transfers };
                estimator.absorb(DeviceIndex::from(device), &sample);
            }
        }
    }
    let after = fitted(&estimator);
    assert_eq!((after.problem.stage_ns, after.problem.crossing_ns), (30_000, 400_000));
    // 1F1B over four devices: each microbatch has F and B on a device in the middle, with two transfers each.
    let plan = schedule::even(&before.problem);
    let of = |of: &Estimated| simulate::simulate(&of.problem, &plan).expect("an even plan is whole").iteration_ns;
    let longer_ns = of(&after) - of(&before);
    let least_ns = u64::from(MICROBATCHES) * 2 * (30_000 + 400_000);
    assert!((least_ns..4 * least_ns).contains(&longer_ns), "{longer_ns} for at least {least_ns}");
    let drawn: Vec<Problem> = (0..200).map(|index| after.draw(1, index)).collect();
    for (of, ns) in [
        (drawn.iter().map(|of| of.stage_ns).collect::<Vec<_>>(), 30_000.0),
        (drawn.iter().map(|of| of.crossing_ns).collect(), 400_000.0),
    ] {
        let off: Vec<f64> = of.iter().map(|&of| (of as f64 / ns).ln()).collect();
        let sd = (off.iter().map(|off| off * off).sum::<f64>() / off.len() as f64).sqrt();
        assert!((0.16..0.25).contains(&sd), "{sd}");
    }
    // In another membership a device keeps its own; another piece of the kind begins anew.
    let mut devices = estimator.job().devices.clone();
    devices.remove(0);
    estimator.set_devices(devices.clone(), &[]);
    assert_eq!(fitted(&estimator).problem.crossing_ns, 400_000);
    estimator.set_devices(devices, &[0, 1, 2].map(DeviceIndex));
    assert_eq!(fitted(&estimator).problem.crossing_ns, 0);
    // Until it tells, earlier jobs do: the device in the middle counts.
    let mut earlier = Earlier::default();
    for (kind, ns) in [("h100", 200_000), ("a100", 300_000)] {
        let overhead = Some(Overhead { instruction_ns: Some(ns / 10), transfer_ns: Some(ns) });
        earlier.kinds.insert(kind.to_owned(), OfKind { overhead, ..OfKind::default() });
    }
    estimator.set_earlier(earlier);
    let told = fitted(&estimator);
    assert_eq!((told.problem.stage_ns, told.problem.crossing_ns), (30_000, 300_000));
    assert_eq!(told.uncertainty.transfer.source, Source::EarlierJobs);
}
