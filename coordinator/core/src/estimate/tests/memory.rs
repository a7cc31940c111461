//! What is reserved on devices, by what plans needed.

use super::*;
use adaptis_plan::peak_bytes;

const GIB: u64 = 1 << 30;

/// Iterations whose peak on a device is by so much beyond the estimate's; what is reserved on all afterwards.
fn reserved(estimator: &mut Estimator, epoch: u64, device: usize, more_bytes: i64) -> Vec<u64> {
    let mut estimated = fitted(estimator);
    let mut plan = schedule::even(&estimated.problem);
    plan.epoch = Epoch(epoch);
    let peaks = peak_bytes(&estimated.problem, &plan).expect("an even plan is whole");
    for step in 0..3 {
        let place = Place { step: Step(step), epoch: Epoch(epoch), generation: Generation(1) };
        let peak_bytes = peaks[device].saturating_add_signed(more_bytes);
        let sample = Sample::DeviceMemory { place, peak_bytes, reserved_bytes: GIB / 2, late_ns: 0 };
        estimator.absorb(DeviceIndex::from(device), &sample);
    }
    estimator.reserve_for(&plan, &mut estimated);
    let now = estimated.problem.devices.iter().map(|device| device.reserved_bytes).collect();
    let again: Vec<u64> = fitted(estimator).problem.devices.iter().map(|device| device.reserved_bytes).collect();
    assert_eq!(now, again, "the next estimate has it, too");
    now
}

#[test]
fn a_shortfall_is_reserved_where_it_was_seen_and_never_less_than_the_card_asks() {
    // A card asks for 1 GiB.
    let mut estimator = Cluster::new(&MIXED, 16, Noise::Normal(0.03), 1).trained(6);
    let more = 3 * GIB;
    assert_eq!(reserved(&mut estimator, 1, 2, more as i64), [GIB, GIB, GIB + more, GIB]);
    assert_eq!(reserved(&mut estimator, 2, 2, 0), [GIB, GIB, GIB + more, GIB], "as predicted, with what is reserved");
    assert_eq!(
        reserved(&mut estimator, 3, 0, -(GIB as i64) / 2),
        [GIB, GIB, GIB + more, GIB],
        "less gives nothing back"
    );
    let mut devices = estimator.job().devices.clone();
    devices.remove(0);
    estimator.set_devices(devices.clone(), &[]);
    let of = |estimator: &Estimator| fitted(estimator).problem.devices[1].reserved_bytes;
    assert_eq!(of(&estimator), GIB + more, "a device keeps its own under another number");
    estimator.set_devices(devices, &[DeviceIndex(1)]);
    assert_eq!(of(&estimator), GIB, "another piece of the kind begins anew");
}

#[test]
fn one_odd_peak_reserves_nothing() {
    let mut estimator = Cluster::new(&MIXED, 16, Noise::Normal(0.03), 1).trained(6);
    let place = Place { step: Step(0), epoch: Epoch(1), generation: Generation(1) };
    let odd = Sample::DeviceMemory { place, peak_bytes: 70 * GIB, reserved_bytes: 0, late_ns: 0 };
    estimator.absorb(DeviceIndex(1), &odd);
    assert_eq!(reserved(&mut estimator, 1, 1, 0), [GIB; 4]);
}
