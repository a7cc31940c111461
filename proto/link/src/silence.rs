//! When a peer has been silent for so long that people should hear of it, and how often: soon, then ever less often.
//!
//! A link to nobody, or to a peer with other keys, looks like a link to one that is busy: nothing comes. Only time tells
//! them apart, so whoever waits for an answer asks this.

use std::time::{Duration, Instant};

/// A shorter silence is the network's, or a restart.
const FIRST: Duration = Duration::from_secs(5);
/// The longest pause between two mentions of one silence.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a peer has been silent.
#[derive(Debug, Clone)]
pub struct Silence {
    since: Instant,
    mention_at: Instant,
    pause: Duration,
    is_mentioned: bool,
}

impl Silence {
    /// Waits from now on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { since: now, mention_at: now + FIRST, pause: FIRST, is_mentioned: false }
    }

    /// The peer has been heard. Answers the silence that this ends, if it was mentioned.
    pub fn heard(&mut self, now: Instant) -> Option<Duration> {
        let ended = self.is_mentioned.then(|| now.saturating_duration_since(self.since));
        *self = Self::new(now);
        ended
    }

    /// How long the silence has lasted, when it is time to mention it.
    pub fn due(&mut self, now: Instant) -> Option<Duration> {
        if now < self.mention_at {
            return None;
        }
        self.is_mentioned = true;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        self.mention_at = now + self.pause;
        Some(now.saturating_duration_since(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_mentioned_soon_and_then_ever_less_often() {
        let begun = Instant::now();
        let mut silence = Silence::new(begun);
        let mentioned: Vec<u64> =
            (0..300).filter(|&second| silence.due(begun + Duration::from_secs(second)).is_some()).collect();
        assert_eq!(mentioned, [5, 15, 35, 75, 135, 195, 255]);
    }

    #[test]
    fn a_word_ends_it() {
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        let mut silence = Silence::new(begun);
        assert_eq!(silence.heard(at(4)), None, "nobody was told of it");
        assert_eq!(silence.due(at(8)), None);
        assert_eq!(silence.due(at(9)), Some(FIRST));
        assert_eq!(silence.heard(at(10)), Some(Duration::from_secs(6)));
        assert_eq!(silence.due(at(15)), Some(FIRST));
    }
}
