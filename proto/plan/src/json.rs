//! Reading and writing the file formats: strict, with the path of what is wrong.

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

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

/// Reads a value of a format.
pub(crate) fn read<T: DeserializeOwned>(text: &str, format: &'static str) -> Result<T, FormatError> {
    #[derive(Deserialize)]
    struct Head {
        format: Option<serde_json::Value>,
    }
    let head: Head = serde_json::from_str(text)
        .map_err(|error| FormatError::Shape { path: "file".into(), problem: error.to_string() })?;
    match head.format {
        Some(serde_json::Value::String(found)) if found == format => {}
        other => {
            let found = other.map_or("missing".to_owned(), |value| value.to_string());
            return Err(FormatError::Format { found, expected: format });
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| FormatError::Shape { path: error.path().to_string(), problem: error.inner().to_string() })
}

/// Writes a value.
pub(crate) fn write<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("values of our formats have string keys and finite numbers")
}

pub(crate) fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(crate) fn is_zero(value: &u64) -> bool {
    *value == 0
}

struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number that is not negative")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Whole, E> {
                u64::try_from(value).map(Whole).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Whole, E> {
                // Every whole f64 below 2^64 converts exactly.
                if value >= 0.0 && value < 18_446_744_073_709_551_616.0 && value.fract() == 0.0 {
                    Ok(Whole(value as u64))
                } else {
                    Err(E::invalid_value(de::Unexpected::Float(value), &self))
                }
            }
        }
        deserializer.deserialize_any(Number)
    }
}

pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(Whole::deserialize(deserializer)?.0)
}

pub(crate) fn optional_whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Whole>::deserialize(deserializer)?.map(|whole| whole.0))
}

fn narrow<E: de::Error>(Whole(value): Whole) -> Result<u32, E> {
    u32::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &"a number below 2^32"))
}

pub(crate) fn whole_u32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    narrow(Whole::deserialize(deserializer)?)
}

pub(crate) fn range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u32; 2], D::Error> {
    let [from, to] = <[Whole; 2]>::deserialize(deserializer)?;
    Ok([narrow(from)?, narrow(to)?])
}

pub(crate) fn list_of_indices<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    Vec::<Whole>::deserialize(deserializer)?.into_iter().map(narrow).collect()
}

pub(crate) fn lists_of_indices<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u32>>, D::Error> {
    Vec::<Vec<Whole>>::deserialize(deserializer)?
        .into_iter()
        .map(|list| list.into_iter().map(narrow).collect())
        .collect()
}

pub(crate) fn list_of_whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    Ok(Vec::<Whole>::deserialize(deserializer)?.into_iter().map(|whole| whole.0).collect())
}

pub(crate) fn ignored_note<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    String::deserialize(deserializer).map(drop)
}

pub(crate) fn map_with_note<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Map<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
        type Value = BTreeMap<String, T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object with one entry per kind of device")
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                if key == "note" {
                    map.next_value::<String>()?;
                } else {
                    entries.insert(key, map.next_value()?);
                }
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_map(Map(std::marker::PhantomData))
}

pub(crate) fn map_of_whole_lists<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Vec<u64>>, D::Error> {
    let lists: BTreeMap<String, Vec<Whole>> = map_with_note(deserializer)?;
    Ok(lists.into_iter().map(|(kind, list)| (kind, list.into_iter().map(|whole| whole.0).collect())).collect())
}
