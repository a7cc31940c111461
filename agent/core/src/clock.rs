//! Offset of this host's clock to the coordinator's.
//!
//! Ask a friend over a slow line what time it is: the answer is off by at most the time the call took. So of many calls
//! believe the shortest, and take half of its length, either way, as the doubt. An old call is doubted a little more
//! for every second since, because two clocks drift apart. When an answer cannot agree with the one believed, somebody
//! has changed clocks (another coordinator, another host), and what was learnt before is forgotten.
//!
//! Left out on purpose: estimating the drift itself, and asymmetric paths, which no exchange can tell from an offset:
//! half the round trip covers them.

use adaptis_proto::message::ClockOffset;
use std::collections::VecDeque;

/// How far two clocks may drift apart: more than quartz and an NTP daemon at peace do.
const DRIFT_PPM: u64 = 50;
/// Exchanges older than this are forgotten.
const WINDOW_NS: u64 = 60_000_000_000;
/// Exchanges kept; the oldest gives way.
const EXCHANGES_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Exchange {
    at_ns: u64,
    offset_ns: i64,
    error_ns: u64,
}

impl Exchange {
    fn error_at(&self, now_ns: u64) -> u64 {
        self.error_ns + now_ns.saturating_sub(self.at_ns) * DRIFT_PPM / 1_000_000
    }
}

/// The least-delay estimate over a sliding window.
#[derive(Clone, Debug, Default)]
pub struct ClockEstimate {
    exchanges: VecDeque<Exchange>,
}

impl ClockEstimate {
    /// Learns from an exchange: asked at `sent_ns` and answered at `now_ns` on our clock, the other clock having shown
    /// `received_ns` in between. One that cannot be is ignored.
    pub fn learn(&mut self, now_ns: u64, sent_ns: u64, received_ns: u64) {
        let Some(round_trip_ns) = now_ns.checked_sub(sent_ns) else { return };
        let middle_ns = sent_ns + round_trip_ns / 2;
        let Ok(offset_ns) = i64::try_from(i128::from(received_ns) - i128::from(middle_ns)) else { return };
        let new = Exchange { at_ns: now_ns, offset_ns, error_ns: round_trip_ns.div_ceil(2) };
        if let Some(best) = self.best(now_ns)
            && best.offset_ns.abs_diff(new.offset_ns) > best.error_at(now_ns).saturating_add(new.error_ns)
        {
            self.exchanges.clear();
        }
        self.exchanges.retain(|old| now_ns.saturating_sub(old.at_ns) <= WINDOW_NS);
        if self.exchanges.len() == EXCHANGES_MAX {
            self.exchanges.pop_front();
        }
        self.exchanges.push_back(new);
    }

    /// The offset with the smallest error bound now; none before an exchange. Beyond the window the last one known
    /// stands, with a bound that goes on growing.
    pub fn offset(&self, now_ns: u64) -> Option<ClockOffset> {
        let best = self.best(now_ns)?;
        Some(ClockOffset { offset_ns: best.offset_ns, error_ns: best.error_at(now_ns) })
    }

    fn best(&self, now_ns: u64) -> Option<Exchange> {
        self.exchanges.iter().copied().min_by_key(|exchange| exchange.error_at(now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn estimate(exchanges: &[(u64, u64, u64)]) -> Option<ClockOffset> {
        let mut clock = ClockEstimate::default();
        for &(now, sent, received) in exchanges {
            clock.learn(now, sent, received);
        }
        clock.offset(exchanges.last().map_or(0, |&(now, ..)| now))
    }

    #[test]
    fn tables() {
        let offset = |offset_ns, error_ns| Some(ClockOffset { offset_ns, error_ns });
        for (what, exchanges, expected) in [
            ("nothing yet", vec![], None),
            ("one, odd", vec![(107, 100, 1_103)], offset(1_000, 4)),
            ("behind us", vec![(5_000, 4_000, 500)], offset(-4_000, 500)),
            ("the shorter wins", vec![(200, 100, 1_150), (10_000, 2_000, 9_000)], offset(1_000, 50)),
            ("an answer before the question", vec![(100, 200, 1_000)], None),
            ("a stepped clock", vec![(200, 100, 1_150), (400, 300, 90_000)], offset(89_650, 50)),
        ] {
            assert_eq!(estimate(&exchanges), expected, "{what}");
        }
    }

    #[test]
    fn an_old_exchange_is_doubted_more_and_then_forgotten() {
        let mut clock = ClockEstimate::default();
        clock.learn(1_000, 0, 500);
        assert_eq!(clock.offset(1_000).unwrap().error_ns, 500);
        assert_eq!(clock.offset(1_000 + 1_000 * MS).unwrap().error_ns, 500 + 50_000);
        clock.learn(61_000 * MS, 60_000 * MS, 60_500 * MS);
        assert_eq!(clock.exchanges.len(), 1);
    }

    proptest! {
        /// With clocks that drift within the allowance, the truth is always within the bound.
        #[test]
        fn the_bound_holds(
            offset in -1_000_000_000_000_i64..1_000_000_000_000,
            drift_ppm in -25_i64..25,
            delays in prop::collection::vec((1_u64..50 * MS, 1_u64..50 * MS, 1_u64..5_000 * MS), 1..40),
        ) {
            let theirs = |ours: u64| {
                let drift = i128::from(ours) * i128::from(drift_ppm) / 1_000_000;
                u64::try_from(i128::from(ours) + i128::from(offset) + drift).unwrap()
            };
            let mut clock = ClockEstimate::default();
            let mut now = 2_000_000_000_000;
            for (there, back, pause) in delays {
                let sent = now;
                now += there + back;
                clock.learn(now, sent, theirs(sent + there));
                let known = clock.offset(now).unwrap();
                let truth = i64::try_from(i128::from(theirs(now)) - i128::from(now)).unwrap();
                // Drift within the exchange itself and rounding: microseconds at most.
                prop_assert!(known.offset_ns.abs_diff(truth) <= known.error_ns + 5_000, "{known:?} {truth}");
                now += pause;
            }
        }
    }
}
