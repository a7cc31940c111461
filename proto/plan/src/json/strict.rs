//! From tree to value, with nothing forgiven that serde would forgive.
//!
//! serde's derived types accept a list in place of an object and `null` for what may be left out, and serde_json's
//! errors know neither their path nor the nearest known key. Hence a deserializer of our own, over the tree.

use super::node::Node;
use super::{FormatError, nearest};
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use std::fmt;

pub(super) fn from_node<T: DeserializeOwned>(node: &Node) -> Result<T, FormatError> {
    T::deserialize(Strict(node)).map_err(|fault| FormatError::Shape { path: fault.path(), problem: fault.problem })
}

/// What is wrong and where; the path grows from the inside out.
#[derive(Debug)]
struct Fault {
    outward: Vec<String>,
    problem: String,
}

impl Fault {
    fn new(problem: String) -> Self {
        Self { outward: Vec::new(), problem }
    }

    fn expected(what: impl fmt::Display, found: &Node) -> Self {
        let found = match found {
            Node::Unsigned(value) => value.to_string(),
            Node::Negative(value) => value.to_string(),
            Node::Float(value) => value.to_string(),
            other => other.kind().to_owned(),
        };
        Self::new(format!("expected {what}, found {found}"))
    }

    fn inside(mut self, step: String) -> Self {
        self.outward.push(step);
        self
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for step in self.outward.iter().rev() {
            if !path.is_empty() && !step.starts_with('[') {
                path.push('.');
            }
            path.push_str(step);
        }
        if path.is_empty() { "file".to_owned() } else { path }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path(), self.problem)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(problem: T) -> Self {
        Self::new(problem.to_string())
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        let hint = match nearest(field, known.iter().copied()) {
            Some(nearest) => format!("; the nearest known one is `{nearest}`"),
            None => String::new(),
        };
        Self::new(format!("unknown field `{field}`{hint}")).inside(field.to_owned())
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(format!("unknown value \"{found}\"; known are \"{}\"", known.join("\", \"")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("field `{field}` is missing")).inside(field.to_owned())
    }
}

/// A node to be read.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a Node);

/// Every float below it that is whole converts exactly.
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

impl<'a> Strict<'a> {
    fn whole(self, max: u64) -> Result<u64, Fault> {
        let value = match *self.0 {
            Node::Unsigned(value) => Some(value),
            Node::Float(value) if (0.0..TWO_TO_64).contains(&value) && value.fract() == 0.0 => Some(value as u64),
            _ => None,
        };
        value.filter(|value| *value <= max).ok_or_else(|| match max {
            u64::MAX => Fault::expected("a whole number that is not negative", self.0),
            max => Fault::expected(format_args!("a whole number from 0 to {max}"), self.0),
        })
    }

    fn text(self) -> Result<&'a str, Fault> {
        match self.0 {
            Node::Text(text) => Ok(text),
            other => Err(Fault::expected("a text", other)),
        }
    }

    fn list(self) -> Result<Elements<'a>, Fault> {
        match self.0 {
            Node::List(nodes) => Ok(Elements { nodes: nodes.iter().enumerate(), length: nodes.len() }),
            other => Err(Fault::expected("a list", other)),
        }
    }

    /// `keeps_note`: the type has a field for it. Otherwise it is passed over.
    fn object(self, keeps_note: bool) -> Result<Entries<'a>, Fault> {
        let entries = self.entries()?;
        if let Some((_, note)) = entries.iter().find(|(key, _)| key == "note") {
            Strict(note).text().map_err(|fault| fault.inside("note".into()))?;
        }
        Ok(Entries { entries: entries.iter(), keeps_note, current: None })
    }

    fn entries(self) -> Result<&'a [(String, Node)], Fault> {
        match self.0 {
            Node::Object(entries) => Ok(entries),
            other => Err(Fault::expected("an object", other)),
        }
    }
}

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Unsigned(value) => visitor.visit_u64(*value),
            Node::Negative(value) => visitor.visit_i64(*value),
            Node::Float(value) => visitor.visit_f64(*value),
            Node::Text(value) => visitor.visit_borrowed_str(value),
            Node::List(_) => visitor.visit_seq(self.list()?),
            // Free data, such as a plan's `why`: its keys are its own.
            Node::Object(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), keeps_note: true, current: None })
            }
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_u64(self.whole(u64::MAX)?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_u64(self.whole(u64::from(u32::MAX))?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match *self.0 {
            Node::Unsigned(value) => visitor.visit_f64(value as f64),
            Node::Negative(value) => visitor.visit_f64(value as f64),
            Node::Float(value) => visitor.visit_f64(value),
            ref other => Err(Fault::expected("a number", other)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Node::Null => Err(Fault::new("null is not a value here: leave the field out".into())),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_seq(self.list()?)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Fault> {
        let list = self.list()?;
        if list.length != length {
            return Err(Fault::new(format!("expected a list of {length}, found one of {}", list.length)));
        }
        visitor.visit_seq(list)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_map(self.object(false)?)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_map(self.object(fields.contains(&"note"))?)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let variant: StrDeserializer<'_, Fault> = self.text()?.into_deserializer();
        visitor.visit_enum(variant)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct tuple_struct identifier
        ignored_any
    }
}

struct Elements<'a> {
    nodes: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    length: usize,
}

impl<'de> SeqAccess<'de> for Elements<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.nodes.next() else {
            return Ok(None);
        };
        seed.deserialize(Strict(node)).map(Some).map_err(|fault| fault.inside(format!("[{index}]")))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.nodes.len())
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (String, Node)>,
    keeps_note: bool,
    current: Option<&'a (String, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.current = self.entries.find(|(key, _)| self.keeps_note || key != "note");
        let Some((key, _)) = self.current else {
            return Ok(None);
        };
        let key: StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = self.current.expect("serde asks for a value after its key");
        seed.deserialize(Strict(node)).map_err(|fault| fault.inside(key.clone()))
    }
}
