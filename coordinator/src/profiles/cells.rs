//! The list of cells that a prediction is asked for.
//!
//! ```text
//! [ { "kind": "a100-40g", "signature": "block/opt-30/b4/tp2", "phase": "forward" },
//!   { "kind": "A100-40", "model": "OPT-30", "microbatch": 4, "tp": 2, "layer": 7, "phase": "F" } ]
//! ```
//!
//! The second form is for Sailor's files: `layer` is a number as in the file, or what the layer is. An object with such a
//! list as `cells`, and a file of profiles, whose times are then not looked at, are read too. In every form a kind, a
//! phase and a model may be written as others do.

use super::gathered::Gathered;
use super::kind::kind_of;
use super::measurement::{Cell, FORMAT, MeasuredPhase};
use super::sailor::{self, Facts, LayerType};
use serde_json::{Map, Value};

/// A cell as it was asked for, to be echoed, and as it is looked for.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedCell {
    /// Word for word.
    pub asked: Map<String, Value>,
    /// In our terms.
    pub cell: Cell,
}

/// Why a text is no list of cells.
#[derive(Debug, thiserror::Error)]
pub enum CellsError {
    /// Not JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// No list in it.
    #[error("expected a list of {{\"kind\", \"signature\", \"phase\"}}, found {found}")]
    NoList {
        /// What was found.
        found: &'static str,
    },
    /// A cell that can't be understood.
    #[error("cells[{row}]{field}: {problem}")]
    Cell {
        /// Which.
        row: usize,
        /// Where in it, with a dot before; empty for all of it.
        field: String,
        /// What is wrong there and what would be right.
        problem: String,
    },
}

/// Fields of a cell by signature; those of a profile are not looked at.
const BY_SIGNATURE: [&str; 8] = ["kind", "signature", "phase", "note", "seconds", "count", "low", "high"];
/// Fields of a cell in Sailor's terms.
const BY_LAYER: [&str; 7] = ["kind", "model", "microbatch", "tp", "layer", "phase", "note"];

/// Reads a list of cells; models in Sailor's terms are looked up in what was gathered.
///
/// # Errors
/// Not JSON, no list, or a cell that can't be understood.
pub fn read(text: &str, gathered: &Gathered, facts: &Facts) -> Result<Vec<AskedCell>, CellsError> {
    let root: Value = serde_json::from_str(text)?;
    let list = match root {
        Value::Array(list) => list,
        Value::Object(mut object) => {
            let name = if object.get("format").is_some_and(|format| format == FORMAT) { "profiles" } else { "cells" };
            match object.remove(name) {
                Some(Value::Array(list)) => list,
                _ => return Err(CellsError::NoList { found: "an object without one" }),
            }
        }
        _ => return Err(CellsError::NoList { found: "neither a list nor an object" }),
    };
    let read_one = |(row, value): (usize, Value)| {
        let fault = |(field, problem): Fault| CellsError::Cell {
            row,
            field: if field.is_empty() { field } else { format!(".{field}") },
            problem,
        };
        let Value::Object(asked) = value else {
            return Err(fault((String::new(), format!("expected an object, found {value}"))));
        };
        let cell = cell_of(&asked, gathered, facts).map_err(fault)?;
        Ok(AskedCell { asked, cell })
    };
    list.into_iter().enumerate().map(read_one).collect()
}

/// A field and what is wrong with it.
type Fault = (String, String);

fn cell_of(asked: &Map<String, Value>, gathered: &Gathered, facts: &Facts) -> Result<Cell, Fault> {
    let is_by_signature = asked.contains_key("signature") || !asked.contains_key("model");
    let known: &[&str] = if is_by_signature { &BY_SIGNATURE } else { &BY_LAYER };
    if let Some(field) = asked.keys().find(|field| !known.contains(&field.as_str())) {
        let nearest = adaptis_plan::json::nearest(field, known.iter().copied()).unwrap_or("kind");
        return Err((field.clone(), format!("unknown field; the nearest known one is `{nearest}`")));
    }
    let kind = kind_of(text(asked, "kind")?);
    let phase: MeasuredPhase =
        text(asked, "phase")?.parse().map_err(|error| ("phase".to_owned(), format!("{error}")))?;
    let signature = if is_by_signature {
        text(asked, "signature")?.to_owned()
    } else {
        let model = sailor::model_of(text(asked, "model")?);
        let layer = layer(asked, &model, gathered)?;
        sailor::signature(layer, &model, number(asked, "microbatch")?, number(asked, "tp")?, facts)
    };
    Ok(Cell { kind, signature, phase })
}

fn text<'a>(asked: &'a Map<String, Value>, field: &str) -> Result<&'a str, Fault> {
    match asked.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err((field.to_owned(), format!("expected a text, found {other}"))),
        None => Err((String::new(), format!("`{field}` is missing"))),
    }
}

/// A whole number above zero, also as a text, as the keys of Sailor's files are.
fn number(asked: &Map<String, Value>, field: &str) -> Result<u64, Fault> {
    let found = asked.get(field).ok_or_else(|| (String::new(), format!("`{field}` is missing")))?;
    let number = found.as_u64().or_else(|| found.as_str()?.parse().ok());
    let problem = || format!("expected a whole number above zero, found {found}");
    number.filter(|number| *number > 0).ok_or_else(|| (field.to_owned(), problem()))
}

fn layer(asked: &Map<String, Value>, model: &str, gathered: &Gathered) -> Result<LayerType, Fault> {
    const TYPES: [LayerType; 4] = [LayerType::Embedding, LayerType::Block, LayerType::Norm, LayerType::Head];
    let found = asked.get("layer").ok_or_else(|| (String::new(), "`layer` is missing".to_owned()))?;
    let field = || "layer".to_owned();
    let word = found.as_str().map(str::to_ascii_lowercase);
    if let Some(layer) = TYPES.into_iter().find(|layer| word.as_deref() == Some(layer.word())) {
        return Ok(layer);
    }
    let Some(index) = found.as_u64().or_else(|| found.as_str()?.parse().ok()) else {
        return Err((field(), format!("expected a number, or embedding, block, norm or head, found {found}")));
    };
    let layers = gathered.models.get(model).ok_or_else(|| {
        (field(), format!("no file of {model} says what layer {index} is: write embedding, block, norm or head"))
    })?;
    let layer = usize::try_from(index).ok().and_then(|index| layers.get(index));
    layer.copied().ok_or_else(|| (field(), format!("{model} has layers 0 to {}", layers.len() - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(text: &str) -> Result<Vec<Cell>, String> {
        let layers = vec![LayerType::Embedding, LayerType::Block, LayerType::Head];
        let gathered = Gathered { models: [("opt-30".to_owned(), layers)].into(), ..Gathered::default() };
        let read = read(text, &gathered, &Facts::default()).map_err(|error| error.to_string())?;
        Ok(read.into_iter().map(|asked| asked.cell).collect())
    }

    #[test]
    fn one_cell_in_several_spellings() {
        let cell =
            Cell { kind: "a100-40g".into(), signature: "block/opt-30/b4/tp2".into(), phase: MeasuredPhase::Forward };
        for text in [
            r#"[{"kind": "a100-40g", "signature": "block/opt-30/b4/tp2", "phase": "forward"}]"#,
            r#"[{"kind": "A100-40", "signature": "block/opt-30/b4/tp2", "phase": "F", "seconds": 3}]"#,
            r#"{"cells": [{"kind": "a100-40g", "signature": "block/opt-30/b4/tp2", "phase": "fwd"}]}"#,
            r#"{"format": "adaptis.profiles/1",
                "profiles": [{"kind": "a100-40g", "signature": "block/opt-30/b4/tp2", "phase": "F", "seconds": 1}]}"#,
            r#"[{"kind": "A100-40", "model": "OPT-30", "microbatch": 4, "tp": 2, "layer": 1, "phase": "F"}]"#,
            r#"[{"kind": "A100-40", "model": "opt-30", "microbatch": "4", "tp": "2", "layer": "1", "phase": "F"}]"#,
            r#"[{"kind": "A100-40", "model": "opt-30", "microbatch": 4, "tp": 2, "layer": "Block", "phase": "F"}]"#,
        ] {
            assert_eq!(cells(text), Ok(vec![cell.clone()]), "{text}");
        }
        assert_eq!(cells("[]"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let of = |layer: &str| {
            format!(r#"[{{"kind": "k", "model": "m", "microbatch": 1, "tp": 1, "phase": "F", "layer": {layer}}}]"#)
        };
        for (text, said) in [
            ("".to_owned(), "EOF"),
            ("3".to_owned(), "expected a list"),
            ("{}".to_owned(), "expected a list"),
            ("[3]".to_owned(), "cells[0]: expected an object, found 3"),
            (r#"[{"kind": "k", "phase": "F"}]"#.to_owned(), "cells[0]: `signature` is missing"),
            (r#"[{"kind": 1, "signature": "s", "phase": "F"}]"#.to_owned(), "cells[0].kind: expected a text"),
            (r#"[{"kind": "k", "signature": "s", "phase": "G"}]"#.to_owned(), "cells[0].phase: unknown phase"),
            (r#"[{"kinds": "k", "signature": "s", "phase": "F"}]"#.to_owned(), "nearest known one is `kind`"),
            (of("1"), "cells[0].layer: no file of m says what layer 1 is"),
            (of("\"mlp\""), "cells[0].layer: expected a number, or embedding"),
            (of("1").replace("\"m\"", "\"opt-30\"").replace(": 1}", ": 9}"), "opt-30 has layers 0 to 2"),
            (
                of("\"block\"").replace("\"tp\": 1", "\"tp\": 0"),
                "cells[0].tp: expected a whole number above zero, found 0",
            ),
        ] {
            let error = cells(&text).expect_err(&text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
