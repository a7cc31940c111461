//! Rates from counters that wrap, start anew, or are too narrow for what they count.
//!
//! Two looks at a counter tell how far it went only if it cannot have gone round more often than the difference shows,
//! and only if the difference could have been made in the time between. What could not be is no rate: the counter was
//! reset, or it wraps too fast, and nobody is told a number.

/// A counter of so many bits, and the most it can count in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Meter {
    most_per_s: f64,
    last: Option<(u64, u64)>,
}

impl Meter {
    /// Of something that never counts more than so much in a second.
    pub fn new(most_per_s: f64) -> Self {
        Self { most_per_s, last: None }
    }

    /// Takes a reading of a counter of so many bits at a time; gives the rate per second since the one before.
    ///
    /// None for the first one, after a reset, after a gap in which the counter may have gone round more than once, and
    /// where no time has passed.
    pub fn rate(&mut self, at_ns: u64, count: u64, bits: u32) -> Option<f64> {
        let (before_ns, before) = self.last.replace((at_ns, count))?;
        let seconds = at_ns.checked_sub(before_ns).filter(|ns| *ns > 0)? as f64 / 1e9;
        let mask = u64::MAX >> (64 - bits.clamp(1, 64));
        let counted = (count.wrapping_sub(before) & mask) as f64;
        let possible = self.most_per_s * seconds;
        let is_certain = possible < mask as f64 && counted <= possible;
        is_certain.then_some(counted / seconds)
    }

    /// The next reading is the first one again.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn readings_become_rates_where_they_can() {
        const WIDE: u64 = u64::MAX;
        const NARROW: u64 = u32::MAX as u64;
        type Row = (u32, f64, &'static [(u64, u64)], Option<f64>);
        // Bits, most per second, then (seconds, count) and the rate expected.
        let rows: [Row; 8] = [
            (64, 1e9, &[(1, 500)], None),
            (64, 1e9, &[(1, 500), (3, 900)], Some(200.0)),
            (64, 1e9, &[(1, WIDE - 99), (2, 100)], Some(200.0)),
            (32, 1e9, &[(1, NARROW - 99), (2, 100)], Some(200.0)),
            // Started anew: the way round would have been too long.
            (64, 1e9, &[(1, 5_000), (2, 100)], None),
            (32, 1e9, &[(1, 5_000), (2, 100)], None),
            // Four seconds at most of a gigabyte a second are once round: after five it may be twice.
            (32, 1e9, &[(1, 0), (6, 100)], None),
            (64, 1e9, &[(1, 0), (1, 100)], None),
        ];
        for (bits, most, readings, expected) in rows {
            let mut meter = Meter::new(most);
            let rates: Vec<_> = readings.iter().map(|(s, count)| meter.rate(s * SECOND, *count, bits)).collect();
            assert_eq!(rates.last().copied().flatten(), expected, "{readings:?}");
        }
    }

    #[test]
    fn after_a_reset_the_next_rate_is_right() {
        let mut meter = Meter::new(1e6);
        assert_eq!(meter.rate(SECOND, 1_000, 64), None);
        assert_eq!(meter.rate(2 * SECOND, 0, 64), None);
        assert_eq!(meter.rate(3 * SECOND, 70, 64), Some(70.0));
        meter.forget();
        assert_eq!(meter.rate(4 * SECOND, 80, 64), None);
    }
}
