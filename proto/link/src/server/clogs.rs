//! How long to wait for a peer that takes no more.
//!
//! One peer that reads slowly may slow the others down a little, or a burst to a healthy peer would be lost. One that
//! does not read must not stop them: after the patience it is clogged, and for [`REST`] times as long its messages are
//! dropped at once. So a clogged peer costs the others at most one part in [`REST`] + 1 of their time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::PeerId;

/// How many patiences a clogged peer is left alone for.
const REST: u32 = 10;

/// What to do with a message whose peer is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Wait,
    Drop,
}

pub(super) struct Clogs {
    patience: Duration,
    until: HashMap<PeerId, Instant>,
}

impl Clogs {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, until: HashMap::new() }
    }

    /// `since` is when this message was first found to have no room.
    pub(super) fn judge(&mut self, peer: &PeerId, since: Instant, now: Instant) -> Verdict {
        if self.until.get(peer).is_some_and(|&until| until > now) {
            return Verdict::Drop;
        }
        if now.duration_since(since) < self.patience {
            return Verdict::Wait;
        }
        // Those that are over go, so that the table holds no more than were clogged of late.
        self.until.retain(|_, until| *until > now);
        self.until.insert(peer.clone(), now + self.patience * REST);
        Verdict::Drop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_once_then_rests() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clogs = Clogs::new(Duration::from_millis(100));
        let (deaf, other) = (PeerId::from("deaf"), PeerId::from("other"));
        let table = [
            (&deaf, 0, 0, Verdict::Wait),
            (&deaf, 0, 99, Verdict::Wait),
            (&deaf, 0, 100, Verdict::Drop),
            (&deaf, 101, 101, Verdict::Drop),
            (&other, 101, 101, Verdict::Wait),
            (&deaf, 1099, 1099, Verdict::Drop),
            (&deaf, 1100, 1100, Verdict::Wait),
            (&other, 1100, 1300, Verdict::Drop),
        ];
        for (peer, since, now, expected) in table {
            assert_eq!(clogs.judge(peer, at(since), at(now)), expected, "{peer} at {now}");
        }
        assert_eq!(clogs.until.len(), 1, "the first one's rest is over");
    }
}
