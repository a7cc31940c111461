//! Whatever is sampled, in any order: nothing panics.

use super::*;
use proptest::prelude::*;

fn sample() -> impl Strategy<Value = Sample> {
    let place = (0..40u64, 0..4u64, 0..3u64).prop_map(|(step, epoch, generation)| Place {
        step: Step(step),
        epoch: Epoch(epoch),
        generation: Generation(generation),
    });
    let ns = prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>(), 0..10_000_000u64];
    let mark = prop_oneof![Just(Mark::Warm), Just(Mark::Cold), Just(Mark::Calibration)];
    let phase = (0..Phase::ALL.len()).prop_map(|at| Phase::ALL[at]);
    let work = (place.clone(), 0..6u32, phase, mark.clone(), ns.clone(), ns.clone()).prop_map(
        |(place, layer, phase, mark, start_ns, duration_ns)| Sample::Work {
            place,
            layer: LayerIndex(layer),
            microbatch: Microbatch(0),
            phase,
            mark,
            start_ns,
            duration_ns,
        },
    );
    let transfer =
        (place.clone(), 0..4u32, mark, ns.clone(), ns.clone()).prop_map(|(place, from, mark, bytes, duration_ns)| {
            Sample::Transfer {
                place,
                from: DeviceIndex(from),
                microbatch: Microbatch(0),
                mark,
                bytes,
                start_ns: 0,
                duration_ns,
            }
        });
    let memory =
        (place.clone(), 0..6u32, ns.clone(), ns.clone()).prop_map(|(place, layer, activation_bytes, other)| {
            Sample::LayerMemory {
                place,
                layer: LayerIndex(layer),
                activation_bytes,
                weight_gradient_bytes: other,
                workspace_bytes: other,
            }
        });
    let iteration = (place, ns.clone(), ns).prop_map(|(place, start_ns, duration_ns)| Sample::Iteration {
        place,
        start_ns,
        duration_ns,
        loss_bits: 0,
    });
    prop_oneof![4 => work, 1 => transfer, 1 => memory, 1 => iteration]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nothing_panics_and_every_problem_is_well_formed(
        samples in prop::collection::vec((0..4u32, sample()), 0..400),
        changes in prop::collection::vec((0..4u32, 0..3u32, 0..40u64), 0..6),
    ) {
        let layer = |at: usize| JobLayer {
            name: format!("l{at}"),
            signature: format!("s{}", at % 2),
            parameter_bytes: 0,
            state_bytes: 0,
            output_bytes: 0,
            moved_bytes: 0,
        };
        let card = |at: usize| DeviceCard {
            name: format!("d{at}"),
            kind: format!("k{}", at % 2),
            memory_bytes: 1,
            reserved_bytes: 0,
        };
        let job = JobView {
            layers: (0..5).map(layer).collect(),
            devices: (0..3).map(card).collect(),
            microbatches: MICROBATCHES,
        };
        let mut estimator = Estimator::new(job);
        let mut changes = changes.into_iter();
        for (at, (device, sample)) in samples.iter().enumerate() {
            estimator.absorb(DeviceIndex(*device), sample);
            if at % 60 == 59 && let Some((device, other, from)) = changes.next() {
                estimator.restart_window(Who::Device(DeviceIndex(device)), Step(from));
                estimator.restart_window(Who::Link(DeviceIndex(other), DeviceIndex(device)), Step(from));
            }
        }
        if let Ok(estimated) = estimator.problem() {
            prop_assert!(estimated.problem.check().is_ok(), "{:?}", estimated.problem.check());
            let _ = estimated.draw(1, 1);
            prop_assert!(estimated.problem.devices.iter().all(|device| device.slowdown.is_finite()));
        }
        let _ = (estimator.spread(), estimator.measured(Epoch(1)), estimator.prediction_correction(Epoch(1), 7));
    }
}
