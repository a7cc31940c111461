//! Devices that share the cores of a host, in problems and predictions.

use super::*;

fn crowded(devices: &[u32], at_once: f64) -> CrowdedHost {
    CrowdedHost { devices: devices.iter().copied().map(DeviceIndex).collect(), at_once }
}

#[test]
fn hosts_are_in_the_problem_and_lengthen_what_is_predicted() {
    let mut cluster = Cluster::new(&MIXED, 16, Noise::Normal(0.03), 1);
    let mut estimator = cluster.trained(6);
    let before = fitted(&estimator);
    assert!(before.problem.hosts.is_empty());
    estimator.crowd(&[crowded(&[0, 1, 2, 3], 1.0)]);
    let after = fitted(&estimator);
    let names: Vec<String> = before.problem.devices.iter().map(|device| device.name.clone()).collect();
    assert_eq!(after.problem.hosts, [Host { devices: names.clone(), at_once: 1.0, note: None }]);
    let plan = schedule::even(&before.problem);
    let timeline = |of: &Estimated| simulate::simulate(&of.problem, &plan).expect("an even plan is whole");
    let work_ns: u64 = timeline(&before).spans.iter().flatten().map(|span| span.end_ns - span.start_ns).sum();
    let (alone_ns, crowded_ns) = (timeline(&before).iteration_ns, timeline(&after).iteration_ns);
    // One core does it all.
    assert!(crowded_ns >= work_ns && work_ns > alone_ns, "{crowded_ns} {work_ns} {alone_ns}");
    assert!(after.draw(1, 0).hosts == after.problem.hosts, "a draw is of the same hosts");

    // What makes no sense is left out; a device has one host.
    let odd = [
        crowded(&[9], 1.0),
        crowded(&[0, 1], f64::NAN),
        crowded(&[2], -1.0),
        crowded(&[3, 9], 0.5),
        crowded(&[3], 2.0),
    ];
    estimator.crowd(&odd);
    assert_eq!(fitted(&estimator).problem.hosts, [Host { devices: vec![names[3].clone()], at_once: 0.5, note: None }]);

    // Who is there in another membership says it anew.
    let devices = estimator.job().devices.clone();
    estimator.set_devices(devices, &[]);
    assert!(fitted(&estimator).problem.hosts.is_empty());
}
