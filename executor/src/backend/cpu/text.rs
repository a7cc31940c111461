//! The text that a model is trained on, and the microbatches drawn from it.

use super::{TextError, parameter::mix};
use std::sync::Arc;

/// Longest sequence that [`Text::batch`] cuts.
const SEQUENCE_MAX: usize = 1024;
/// Shortest text: one window of the longest sequence.
const MINIMUM_BYTES: usize = SEQUENCE_MAX + 1;

/// A text, read as bytes. Clones share it.
#[derive(Clone, Debug)]
pub struct Text {
    bytes: Arc<[u8]>,
}

impl Text {
    /// Any bytes will do, as every byte is a token.
    ///
    /// # Errors
    /// Fewer than 1025 of them.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Text, TextError> {
        Text::check(&bytes)?;
        Ok(Text { bytes: bytes.into() })
    }

    /// Whether [`Text::from_bytes`] takes some bytes.
    ///
    /// # Errors
    /// As for it.
    pub fn check(bytes: &[u8]) -> Result<(), TextError> {
        match bytes.len() < MINIMUM_BYTES {
            true => Err(TextError::TooShort { length_bytes: bytes.len(), minimum_bytes: MINIMUM_BYTES }),
            false => Ok(()),
        }
    }

    /// Length in bytes.
    pub fn length_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// `sequence` bytes of a microbatch and, for each, the byte that follows it. A pure function of the text and the
    /// arguments: any process may call it for any microbatch, in any order.
    ///
    /// # Panics
    /// If `sequence` is over 1024.
    pub fn batch(&self, seed: u64, step: u64, microbatch: u32, sequence: usize) -> (Vec<u8>, Vec<u8>) {
        assert!(sequence <= SEQUENCE_MAX, "a sequence of {sequence} bytes, at most {SEQUENCE_MAX}");
        let starts = (self.bytes.len() - sequence) as u64;
        let drawn = mix(mix(mix(seed) ^ step) ^ u64::from(microbatch));
        // The high half of the product is below `starts`, and as even as the draw.
        let start = ((u128::from(drawn) * u128::from(starts)) >> 64) as usize;
        let window = &self.bytes[start..=start + sequence];
        (window[..sequence].to_vec(), window[1..].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn text(length: usize) -> Text {
        Text::from_bytes((0..length).map(|i| (i % 251) as u8).collect()).unwrap()
    }

    #[test]
    fn a_short_text_is_told_the_minimum() {
        let refused = Text::from_bytes(vec![0; MINIMUM_BYTES - 1]).unwrap_err();
        assert_eq!(refused, TextError::TooShort { length_bytes: 1024, minimum_bytes: 1025 });
        assert!(refused.to_string().contains("at least 1025"));
    }

    #[test]
    fn the_shortest_text_serves_the_longest_sequence() {
        let (inputs, targets) = text(MINIMUM_BYTES).batch(1, 2, 3, SEQUENCE_MAX);
        assert_eq!((inputs.len(), targets.len()), (SEQUENCE_MAX, SEQUENCE_MAX));
    }

    #[test]
    fn a_batch_depends_on_its_arguments_alone() {
        let (one, other) = (text(100_000), text(100_000));
        let keys = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (0, 1, 1)];
        let batches: Vec<_> = keys.iter().map(|&(seed, step, m)| one.batch(seed, step, m, 32)).collect();
        for (&(seed, step, m), batch) in keys.iter().zip(&batches).rev() {
            assert_eq!(&other.batch(seed, step, m, 32), batch);
            assert_eq!(batch.0[1..], batch.1[..31], "a target is the next input");
        }
        assert_eq!(batches.iter().collect::<HashSet<_>>().len(), keys.len());
    }

    #[test]
    fn windows_reach_both_ends() {
        let text = text(1100);
        let starts: HashSet<u8> = (0..2000).map(|step| text.batch(7, step, 0, 1024).0[0]).collect();
        assert_eq!(starts, (0..76).collect());
    }
}
