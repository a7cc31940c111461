//! Where an instant of the device's clock lies on the host's.
//!
//! Two posts along a road are known on a map, each within an arm's length. Of a third thing one knows how many steps it
//! stands from the first. If the steps between the posts are counted as well, one knows how long a step is, and the thing
//! is found as well as the posts are, between them; beyond them the doubt grows like a lever.
//!
//! The posts are anchors: events recorded on an idle stream, which happened between the moments before the call and after
//! the answer. Steps are what `cuEventElapsedTime` counts: milliseconds in 32 bits, so fewer digits the further apart.
//!
//! Pure. Left out on purpose: more than two anchors. The device's clock keeps its rate for longer than two are apart.

/// How far the rates of the two clocks may differ when only one anchor is known.
const DRIFT_PPM: f64 = 200.0;
/// What the driver's own document says an elapsed time is good for.
const RESOLUTION_NS: f64 = 500.0;
/// A 32-bit float is within half a unit of its 24th binary digit.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// An instant on the host's clock, and how far off it may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Placed {
    pub host_ns: f64,
    pub error_ns: f64,
}

/// A line through one or two anchors, the first one being at 0 on the device's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    first: Placed,
    /// Of the second one: device nanoseconds from the first, and where it is.
    second: Option<(f64, Placed)>,
}

impl Line {
    pub fn through_one(first: Placed) -> Self {
        Self { first, second: None }
    }

    /// Through two anchors. If no clock could have run so, the first one alone is believed.
    pub fn through_two(first: Placed, device_ns: f64, second: Placed) -> Self {
        let host_ns = second.host_ns - first.host_ns;
        let doubt_ns = first.error_ns + second.error_ns + reading_error_ns(device_ns) + host_ns * DRIFT_PPM / 1e6;
        let is_possible = device_ns > 0.0 && (host_ns - device_ns).abs() <= doubt_ns;
        Self { first, second: is_possible.then_some((device_ns, second)) }
    }

    /// Both anchors hold.
    pub fn is_measured(&self) -> bool {
        self.second.is_some()
    }

    /// Where an event is that lies so many device nanoseconds behind the first anchor.
    pub fn at(&self, device_ns: f64) -> Placed {
        let reading_ns = reading_error_ns(device_ns);
        match self.second {
            None => Placed {
                host_ns: self.first.host_ns + device_ns,
                error_ns: self.first.error_ns + device_ns.abs() * DRIFT_PPM / 1e6 + reading_ns,
            },
            Some((span_ns, second)) => {
                let weight = device_ns / span_ns;
                let host_ns = self.first.host_ns + weight * (second.host_ns - self.first.host_ns);
                let span_error_ns = weight.abs() * reading_error_ns(span_ns);
                let anchors_ns = (1.0 - weight).abs() * self.first.error_ns + weight.abs() * second.error_ns;
                Placed { host_ns, error_ns: anchors_ns + span_error_ns + reading_ns }
            }
        }
    }
}

/// How far off an elapsed time may be.
pub(crate) fn reading_error_ns(ns: f64) -> f64 {
    RESOLUTION_NS + ns.abs() * ROUNDING
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the driver says of so many nanoseconds: quantised, and 32 bits of milliseconds.
    fn read(ns: f64) -> f64 {
        f64::from(((ns / 500.0).round() * 500.0 / 1e6) as f32) * 1e6
    }

    proptest! {
        #[test]
        fn the_error_bound_holds(
            ppm in -DRIFT_PPM..DRIFT_PPM,
            span_ns in 1e6..30e9,
            at in -0.5..2.5_f64,
            (error_a, off_a) in (100.0..50_000.0, -1.0..1.0_f64),
            (error_b, off_b) in (100.0..50_000.0, -1.0..1.0_f64),
        ) {
            let device = |host: f64| host * (1.0 + ppm / 1e6);
            let a = Placed { host_ns: off_a * error_a, error_ns: error_a };
            let b = Placed { host_ns: span_ns + off_b * error_b, error_ns: error_b };
            let truth = at * span_ns;
            let two = Line::through_two(a, read(device(span_ns)), b);
            prop_assert!(two.is_measured());
            for line in [two, Line::through_one(a)] {
                let placed = line.at(read(device(truth)));
                prop_assert!((placed.host_ns - truth).abs() <= placed.error_ns, "{placed:?} is not {truth}");
            }
        }
    }

    #[test]
    fn between_two_anchors_an_event_is_as_sure_as_they_are() {
        let anchor = |host_ns| Placed { host_ns, error_ns: 4_000.0 };
        let line = Line::through_two(anchor(0.0), 1e9, anchor(1e9));
        assert!(line.at(5e8).error_ns < 5_000.0, "{:?}", line.at(5e8));
        let alone = Line::through_one(anchor(0.0));
        assert!(alone.at(5e8).error_ns > 100_000.0, "{:?}", alone.at(5e8));
    }

    #[test]
    fn a_clock_that_cannot_be_is_not_believed() {
        let anchor = |host_ns| Placed { host_ns, error_ns: 4_000.0 };
        assert!(!Line::through_two(anchor(0.0), 1.1e9, anchor(1e9)).is_measured());
        assert!(!Line::through_two(anchor(0.0), -5.0, anchor(1.0)).is_measured());
    }
}
