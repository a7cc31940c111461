//! Reading and writing the file formats: strict, with the path of what is wrong.
//!
//! ```text
//!   text -- node --> tree, no key twice -- strict --> value -- the format's own check --> value
//! ```
//!
//! 1. Nothing is skipped: an unknown key, a key twice, a `null`, a wrong type, a list in place of an object are refused
//!    by the path to them. Only `note`, a text, may stand in any object.
//! 2. A whole number may be written as a float (`8e10`); a fraction or a sign is refused.
//! 3. `read(write(x)) = x`, floats to the bit.
//!
//! Depth is limited by serde_json (128), so that no text overflows the stack.

mod layout;
mod nearest;
mod node;
mod strict;

pub use nearest::{nearest, similar};

use node::Node;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a text is not a file of a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No such format, or an unknown version of it.
    #[error("format is {found}, expected \"{expected}\"")]
    Format {
        /// What `format` says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// Not JSON, or not of the shape.
    #[error("{path}: {problem}")]
    Shape {
        /// Where.
        path: String,
        /// What is wrong there.
        problem: String,
    },
    /// Of the shape, with a value that makes no sense.
    #[error("{path}: {problem}")]
    Value {
        /// Where.
        path: String,
        /// What is wrong there and what would be right.
        problem: String,
    },
}

impl FormatError {
    pub(crate) fn value(path: impl Into<String>, problem: impl Into<String>) -> Self {
        FormatError::Value { path: path.into(), problem: problem.into() }
    }
}

/// Reads a value of a format, an object whose `format` must be the given one.
///
/// # Errors
/// Not JSON, of another format or version, or not of the shape of `T`: the path to the first such place and what would
/// be right there.
pub fn read<T: DeserializeOwned>(text: &str, format: &'static str) -> Result<T, FormatError> {
    let node = Node::parse(text)?;
    let Node::Object(entries) = &node else {
        return Err(FormatError::Shape {
            path: "file".into(),
            problem: format!("expected an object, found {}", node.kind()),
        });
    };
    match entries.iter().find(|(key, _)| key == "format") {
        Some((_, Node::Text(found))) if found == format => {}
        Some((_, Node::Text(found))) => {
            return Err(FormatError::Format { found: format!("{found:?}"), expected: format });
        }
        Some((_, other)) => return Err(FormatError::Format { found: other.kind().into(), expected: format }),
        None => return Err(FormatError::Format { found: "missing".into(), expected: format }),
    }
    strict::from_node(&node)
}

/// Writes a value as JSON for people: indented, but what stands in a list (a layer, a cost, a stage, a program) takes
/// one line, as does what holds no list or object of its own.
///
/// # Panics
/// Never for the types of the formats: their keys are texts.
pub fn write<T: Serialize>(value: &T) -> String {
    let compact = serde_json::to_string(value).expect("values of our formats have texts as keys");
    layout::lay_out(&compact)
}

pub(crate) fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(crate) fn is_zero(value: &u64) -> bool {
    *value == 0
}
