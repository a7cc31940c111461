//! What the model's edges refuse.

use thiserror::Error;

/// A layer type's name that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown layer type `{name}`: one of embedding, attention, mlp, moe, ssm, head")]
pub struct LayerTypeError {
    /// As it was given.
    pub name: String,
}

/// Exported state that does not fit the layer it is to be imported into. The layer is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// The bytes do not begin with the format's mark.
    #[error("not an exported layer: it begins with {found:02x?}")]
    Format {
        /// The first bytes.
        found: [u8; 4],
    },
    /// The format's version is another one.
    #[error("exported layer of format version {found}, this program reads {expected}")]
    Version {
        /// In the bytes.
        found: u32,
        /// What this program reads and writes.
        expected: u32,
    },
    /// The bytes end early.
    #[error("exported layer ends early: {needed} bytes needed, {available} left")]
    Truncated {
        /// Bytes that the next field takes.
        needed: usize,
        /// Bytes that are left.
        available: usize,
    },
    /// Bytes are left behind the last parameter.
    #[error("{bytes} bytes left behind the last parameter of an exported layer")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A parameter of another name stands where this layer's comes next.
    #[error("exported layer holds `{found}` where this layer has `{expected}`")]
    Name {
        /// In the bytes, unprintable bytes replaced.
        found: String,
        /// This layer's.
        expected: &'static str,
    },
    /// A parameter has another number of elements.
    #[error("`{name}` has {found} elements in the exported layer and {expected} in this one")]
    Count {
        /// The parameter.
        name: &'static str,
        /// In the bytes.
        found: u64,
        /// This layer's.
        expected: u64,
    },
}

/// A text that cannot be trained on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TextError {
    /// Shorter than the shortest text that serves every sequence length.
    #[error("a text of {length_bytes} bytes is too short: at least {minimum_bytes} are needed")]
    TooShort {
        /// Of the text.
        length_bytes: usize,
        /// The minimum.
        minimum_bytes: usize,
    },
}
