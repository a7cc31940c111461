//! The named schedules keep the memory and the bubble that their papers promise, on equal stages and unit times.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use adaptis_plan::audit;
use adaptis_planner::schedule::{Name, named};
use adaptis_planner::simulate::simulate;
use support::{cost, uniform};

/// Iteration in units of F of a whole device, peak in activations of a whole device.
fn measured(name: Name, p: usize, m: u32) -> (f64, f64) {
    // Two layers per device, so that every pattern divides; each holds 4 bytes.
    let problem = uniform(p, 2 * p, m, cost(500, 500, 500), 0);
    let plan = named(&problem, name).unwrap();
    assert_eq!(audit(&problem, &plan), []);
    let timeline = simulate(&problem, &plan).unwrap();
    (timeline.iteration_ns as f64 / 1000.0, timeline.peak_bytes.into_iter().max().unwrap() as f64 / 8.0)
}

#[test]
fn each_has_its_time_and_memory() {
    let (p, m) = (4, 16_u32);
    let work = 3.0 * f64::from(m);
    // Bubble and memory per Qi et al. 2023 (table 1) for the first four.
    assert_eq!(measured(Name::Gpipe, p, m), (work + 3.0 * 3.0, f64::from(m)));
    assert_eq!(measured(Name::OneFOneB, p, m), (work + 3.0 * 3.0, 4.0));
    assert_eq!(measured(Name::ZbH1, p, m), (work + 3.0, 4.0));
    let (time, memory) = measured(Name::ZbH2, p, m);
    assert!(time <= work + 3.0 && memory <= 7.0, "{time} {memory}");
    // No bubble but the warm-up of the last device, on the memory of 1F1B: p - 1 forwards of half a device.
    let (time, memory) = measured(Name::ZbV, p, m);
    assert!(time <= work + 1.5 && memory <= 4.0, "{time} {memory}");
    for (name, most) in [(Name::VHalf, 3.0), (Name::VMin, 2.5)] {
        let (time, memory) = measured(name, p, m);
        assert!(memory <= most, "{name} holds {memory}");
        assert!(time < work + 9.0, "{name} takes {time}");
    }
    let (time, _) = measured(Name::Interleaved, p, m);
    assert_eq!(time, work + 4.5);
}

#[test]
fn names_are_read_with_and_without_hyphens() {
    for name in Name::ALL {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    assert_eq!("zbv".parse(), Ok(Name::ZbV));
    assert_eq!("ZBH1".parse(), Ok(Name::ZbH1));
    assert!("dualpipe".parse::<Name>().is_err());
}
