//! A coordinator that runs and says nothing.
//!
//! It holds nobody up while ranks train. Before and after, nothing goes on without it: it is taken for dead, and started
//! again a few times.

use std::time::{Duration, Instant};

/// Silence that it is started again for the first time.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is started again, each time with twice the patience: it reads what is recorded first.
const RESTARTS_MAX: u32 = 3;
/// A launcher that did not look for so long stood still itself, and heard nobody.
const ASLEEP: Duration = Duration::from_secs(2);

/// For how long nobody could do without the coordinator, and what was done about it.
#[derive(Debug)]
pub(super) struct Silence {
    idle_since: Instant,
    looked: Instant,
    restarts: u32,
}

/// What is to be done about a silent coordinator.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is ended and started again after it has said nothing for so long.
    Restart(Duration),
    /// It has been, and does not answer.
    GiveUp(Duration),
}

impl Silence {
    pub(super) fn begin(now: Instant) -> Silence {
        Silence { idle_since: now, looked: now, restarts: 0 }
    }

    /// Looks once; `heard` is when the coordinator last spoke or was started.
    pub(super) fn look(&mut self, now: Instant, heard: Instant, is_training: bool) -> Option<Verdict> {
        if is_training {
            self.restarts = 0;
        }
        if is_training || now.saturating_duration_since(self.looked) > ASLEEP {
            self.idle_since = now;
        }
        self.looked = now;
        let patience = PATIENCE * (1 << self.restarts);
        if now.saturating_duration_since(heard.max(self.idle_since)) < patience {
            return None;
        }
        if self.restarts == RESTARTS_MAX {
            return Some(Verdict::GiveUp(patience));
        }
        self.restarts += 1;
        self.idle_since = now;
        Some(Verdict::Restart(patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is to be done in so many seconds of looks from `from` on, and when.
    fn looks(
        silence: &mut Silence,
        begun: Instant,
        seconds: std::ops::Range<u64>,
        is_training: bool,
    ) -> Vec<(u64, Verdict)> {
        let look = |at| Some((at, silence.look(begun + Duration::from_secs(at), begun, is_training)?));
        seconds.filter_map(look).collect()
    }

    #[test]
    fn it_is_started_again_with_more_and_more_patience_and_then_given_up() {
        let begun = Instant::now();
        let mut silence = Silence::begin(begun);
        let secs = Duration::from_secs;
        let expected = [(60, 60), (180, 120), (420, 240)].map(|(at, patience)| (at, Verdict::Restart(secs(patience))));
        assert_eq!(looks(&mut silence, begun, 0..900, false), expected);
        assert_eq!(looks(&mut silence, begun, 900..901, false), [(900, Verdict::GiveUp(secs(480)))]);
    }

    #[test]
    fn nobody_needs_it_while_ranks_train() {
        let begun = Instant::now();
        let mut silence = Silence::begin(begun);
        assert_eq!(looks(&mut silence, begun, 0..100, false).len(), 1);
        assert_eq!(looks(&mut silence, begun, 100..10_000, true), []);
        let expected = [(10_059, Verdict::Restart(PATIENCE))];
        assert_eq!(looks(&mut silence, begun, 10_000..10_100, false), expected, "it has its whole patience again");
    }

    #[test]
    fn who_speaks_is_not_silent_and_who_slept_heard_nobody() {
        let begun = Instant::now();
        let mut silence = Silence::begin(begun);
        for at in (0..1_000).map(|at| begun + Duration::from_secs(at)) {
            assert_eq!(silence.look(at, at, false), None);
        }
        let mut silence = Silence::begin(begun);
        assert_eq!(looks(&mut silence, begun, 0..59, false), []);
        assert_eq!(looks(&mut silence, begun, 500..560, false), [], "the launcher stood still for seven minutes");
        assert_eq!(looks(&mut silence, begun, 560..561, false), [(560, Verdict::Restart(PATIENCE))]);
    }
}
