//! One type per id. The inner number is public: an id is a name, not an invariant.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    )*};
}

macro_rules! indices {
    ($($name:ident)*) => {$(
        impl $name {
            /// As a slice index.
            #[inline]
            pub fn index(self) -> usize { self.0 as usize }
        }
        impl From<usize> for $name {
            /// # Panics
            /// Over `u32::MAX`: no model, cluster or batch comes near.
            fn from(index: usize) -> Self { Self(u32::try_from(index).expect("an index fits in 32 bits")) }
        }
    )*};
}

macro_rules! counters {
    ($($name:ident)*) => {$(
        impl $name {
            /// The number after this one. The last number has none and stays: who reads numbers from outside refuses it.
            #[must_use]
            pub fn next(self) -> Self { Self(self.0.saturating_add(1)) }
        }
    )*};
}

ids! {
    /// Position of a layer in the model.
    LayerIndex(u32);
    /// Position of a stage in a plan's list of stages.
    StageIndex(u32);
    /// Position of a device in a problem's list of devices; a plan has the same order. It is also the rank's number in
    /// a generation.
    DeviceIndex(u32);
    /// Number of a microbatch within its iteration.
    Microbatch(u32);
    /// Number of an iteration: how many optimizer steps came before it.
    Step(u64);
    /// Number of a plan. Grows, never used twice; those of aborted plans are skipped.
    Epoch(u64);
    /// Number of a membership. Grows with every loss or join, never used twice.
    Generation(u64);
    /// Number of a coordinator's reign. Grows with every start of one.
    Term(u64);
    /// Drawn anew by each start of a process, so that a restarted one is never mistaken for the one before.
    Incarnation(u64);
}
indices!(LayerIndex StageIndex DeviceIndex Microbatch);
counters!(Step Epoch Generation Term);

/// Name of a run, chosen by the user, the cluster manager or drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A 256-bit BLAKE3 digest.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits")]
pub struct BadDigest;

impl std::str::FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Digest, BadDigest> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(BadDigest);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| BadDigest)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| BadDigest)?;
        }
        Ok(Digest(bytes))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = Digest(std::array::from_fn(|at| (at * 9) as u8));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for wrong in ["", "ab", &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert_eq!(wrong.parse::<Digest>(), Err(BadDigest), "{wrong}");
        }
    }
}
