//! Profiles in the format of Sailor (SOSP'25): `MODEL.GPU.json`, times of every layer of a model on one kind of GPU.
//!
//! ```text
//! { "<microbatch>": { "<tensor parallel>": { "<layer>": [forward_s, backward_s, update_s] } } }
//! ```
//!
//! The layers are not named: the first is the embedding, the last the head, those between are blocks; where the one
//! before the head costs far less than the others, it is the norm that stands there. A layer's signature is
//!
//! ```text
//! <type>/<model>/b<microbatch>/tp<N>                        block/opt-30/b4/tp2, without /tp1
//! <type>/<model>/<dtype>/b<microbatch>xs<sequence>/tp<N>    where dtype and sequence are given: the files lack them
//! ```
//!
//! All blocks of a model have one signature, so a file holds as many measurements of it as there are blocks.
//!
//! 1. What is absent, null or zero was not measured. Anything else that is no time is refused with the path to it.
//! 2. How many layers the model has is taken from the whole file, so that entries may be missing.

use super::kind::kind_of;
use super::measurement::{Cell, MeasuredPhase, Measurement};
use super::text::{self, NoJson};
use serde_json::Value;
use std::fmt;

/// Longest time that is believed: an hour for one layer is a mistake in the unit.
const SECONDS_MAX: f64 = 3600.0;
/// More layers, microbatches or ways of splitting than any model has.
const NUMBER_MAX: u64 = 100_000;
/// A layer before the head that costs less than this part of the other inner layers is no block.
const NORM_PART_MAX: f64 = 1.0 / 3.0;
/// The phases of an entry, in order.
const PHASES: [MeasuredPhase; 3] = [MeasuredPhase::Forward, MeasuredPhase::Backward, MeasuredPhase::Optimizer];

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerType {
    /// The first.
    Embedding,
    /// Those between.
    Block,
    /// The one before the head, in some models.
    Norm,
    /// The last.
    Head,
}

impl LayerType {
    /// The word for it in a signature.
    pub fn word(self) -> &'static str {
        match self {
            LayerType::Embedding => "embedding",
            LayerType::Block => "block",
            LayerType::Norm => "norm",
            LayerType::Head => "head",
        }
    }
}

impl fmt::Display for LayerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What the files lack and a user may know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Number format, `fp16`.
    pub dtype: Option<String>,
    /// Tokens of a sequence.
    pub sequence: Option<u64>,
}

/// A file's content.
#[derive(Clone, Debug, PartialEq)]
pub struct SailorFile {
    /// The model in lower case, `opt-30`.
    pub model: String,
    /// The kind in our spelling, `a100-40g`.
    pub kind: String,
    /// What each layer is.
    pub layers: Vec<LayerType>,
    /// One for each entry that holds a time, in the order of microbatch, tensor parallel, layer, phase.
    pub measurements: Vec<Measurement>,
}

/// Why a file is not Sailor's.
#[derive(Debug, thiserror::Error)]
pub enum SailorError {
    /// Its name does not say what was measured.
    #[error("the name does not say what was measured: name it MODEL.GPU.json, as in OPT-30.A100-40.json")]
    Name,
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] NoJson),
    /// Not of the shape.
    #[error("{path}: expected {expected}, found {found}")]
    Shape {
        /// Where.
        path: String,
        /// What belongs there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// Nothing in it.
    #[error(
        "no layer has an entry: expected {{\"<microbatch>\": {{\"<tensor parallel>\": {{\"<layer>\": [s, s, s]}}}}}}"
    )]
    Empty,
}

/// Times of one layer, by phase; none where not measured.
type Times = [Option<f64>; 3];

/// The entries of one microbatch size and way of splitting.
struct Setting {
    microbatch: u64,
    tensor_parallel: u64,
    layers: Vec<(usize, Times)>,
}

/// Model and kind by the name of a file, `OPT-30.A100-40.json`, folders before it aside.
pub fn named(name: &str) -> Option<(String, String)> {
    let name = name.rsplit(['/', '\\']).next()?;
    let (model, kind) = name.strip_suffix(".json")?.rsplit_once('.')?;
    let is_given = !model.trim().is_empty() && !kind.trim().is_empty();
    is_given.then(|| (model_of(model), kind_of(kind)))
}

/// A model in our spelling: lower case, dashes.
pub fn model_of(text: &str) -> String {
    text.trim().to_ascii_lowercase().replace([' ', '_', '/'], "-")
}

/// The signature of a layer.
pub fn signature(layer: LayerType, model: &str, microbatch: u64, tensor_parallel: u64, facts: &Facts) -> String {
    let dtype = facts.dtype.as_ref().map_or(String::new(), |dtype| format!("/{dtype}"));
    let sequence = facts.sequence.map_or(String::new(), |tokens| format!("xs{tokens}"));
    let split = if tensor_parallel == 1 { String::new() } else { format!("/tp{tensor_parallel}") };
    format!("{layer}/{model}{dtype}/b{microbatch}{sequence}{split}")
}

/// Reads a file by its name and text.
///
/// # Errors
/// The name does not say model and kind, or the text is not of the format: the path to the first such place.
pub fn read(name: &str, text: &str, facts: &Facts) -> Result<SailorFile, SailorError> {
    read_as(name, text, facts, &[])
}

/// [`read`], where another file has told what the model's first layers are.
///
/// # Errors
/// As of [`read`].
pub fn read_as(name: &str, text: &str, facts: &Facts, known: &[LayerType]) -> Result<SailorFile, SailorError> {
    let (model, kind) = named(name).ok_or(SailorError::Name)?;
    let root = text::json(text)?;
    let settings = settings(&root)?;
    let mut layers = types(&settings);
    if layers.is_empty() {
        return Err(SailorError::Empty);
    }
    layers.splice(..known.len().min(layers.len()), known.iter().copied());
    let mut measurements = Vec::new();
    for setting in &settings {
        for (layer, times) in &setting.layers {
            let signature = signature(layers[*layer], &model, setting.microbatch, setting.tensor_parallel, facts);
            for (phase, seconds) in PHASES.into_iter().zip(times) {
                let Some(seconds) = *seconds else { continue };
                let cell = Cell { kind: kind.clone(), signature: signature.clone(), phase };
                measurements.push(Measurement { cell, seconds, count: 1 });
            }
        }
    }
    Ok(SailorFile { model, kind, layers, measurements })
}

fn settings(root: &Value) -> Result<Vec<Setting>, SailorError> {
    let mut settings = Vec::new();
    for (microbatch, path, splits) in entries(root, "", 1)? {
        for (tensor_parallel, path, layers) in entries(splits, &path, 1)? {
            let mut setting = Setting { microbatch, tensor_parallel, layers: Vec::new() };
            for (layer, path, entry) in entries(layers, &path, 0)? {
                let layer = usize::try_from(layer).expect("at most NUMBER_MAX");
                setting.layers.push((layer, times(entry, &path)?));
            }
            settings.push(setting);
        }
    }
    Ok(settings)
}

/// The entries of an object whose keys are numbers from `least`, by number, each with its path. Null holds none.
fn entries<'a>(value: &'a Value, path: &str, least: u64) -> Result<Vec<(u64, String, &'a Value)>, SailorError> {
    const EXPECTED: &str = "an object with whole numbers as keys";
    let object = match value {
        Value::Object(object) => object,
        Value::Null if !path.is_empty() => return Ok(Vec::new()),
        other => return Err(shape(if path.is_empty() { "file" } else { path }, EXPECTED, kind_in_json(other))),
    };
    let mut found = Vec::with_capacity(object.len());
    for (key, value) in object {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match key.parse() {
            Ok(number) if (least..=NUMBER_MAX).contains(&number) => found.push((number, path, value)),
            _ => return Err(shape(&path, "a whole number as key", format!("{key:?}"))),
        }
    }
    found.sort_by_key(|(number, ..)| *number);
    Ok(found)
}

fn times(entry: &Value, path: &str) -> Result<Times, SailorError> {
    const EXPECTED: &str = "a list of forward, backward and update in seconds";
    let list = match entry {
        Value::Array(list) if list.len() <= PHASES.len() => list.as_slice(),
        Value::Array(list) => return Err(shape(path, EXPECTED, format!("{} entries", list.len()))),
        Value::Null => &[],
        other => return Err(shape(path, EXPECTED, kind_in_json(other))),
    };
    let mut times = [None; 3];
    for (index, (value, time)) in list.iter().zip(&mut times).enumerate() {
        *time = match (value, value.as_f64()) {
            (Value::Null, _) => None,
            (_, Some(seconds)) if (0.0..=SECONDS_MAX).contains(&seconds) => (seconds > 0.0).then_some(seconds),
            (other, _) => {
                return Err(shape(&format!("{path}[{index}]"), "seconds from 0 to 3600, or null", other.to_string()));
            }
        };
    }
    Ok(times)
}

fn shape(path: &str, expected: &'static str, found: impl Into<String>) -> SailorError {
    SailorError::Shape { path: path.to_owned(), expected, found: found.into() }
}

fn kind_in_json(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What each layer is, by its place and, for the one before the last, by its cost.
fn types(settings: &[Setting]) -> Vec<LayerType> {
    let indices = settings.iter().flat_map(|setting| setting.layers.iter().map(|(layer, _)| *layer));
    let Some(last) = indices.max() else {
        return Vec::new();
    };
    let mut types = vec![LayerType::Block; last + 1];
    types[last] = LayerType::Head;
    types[0] = LayerType::Embedding;
    if last >= 3 && has_norm(settings, last - 1) {
        types[last - 1] = LayerType::Norm;
    }
    types
}

/// Whether a layer is far cheaper forwards or backwards than the inner layers before it, in most settings that tell.
fn has_norm(settings: &[Setting], layer: usize) -> bool {
    let mut votes = 0_i64;
    for setting in settings {
        for phase in 0..2 {
            let time = |entry: &(usize, Times)| entry.1[phase];
            let this = setting.layers.iter().find(|(index, _)| *index == layer).and_then(time);
            let mut others: Vec<f64> =
                setting.layers.iter().filter(|(index, _)| (1..layer).contains(index)).filter_map(time).collect();
            others.sort_by(f64::total_cmp);
            if let (Some(this), Some(typical)) = (this, others.get(others.len() / 2)) {
                votes += if this < NORM_PART_MAX * typical { 1 } else { -1 };
            }
        }
    }
    votes > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{ "4": { "2": { "0": [0.0023, 0.0, 0.0], "1": [0.08, 0.17, 0.006], "2": [0.09, 0.18],
        "3": [0.0007, null, 0], "4": [0.04, 0.09, 0.006] }, "1": null }, "1": { "1": { "1": [0.05] } } }"#;

    fn small(name: &str) -> SailorFile {
        read(name, SMALL, &Facts::default()).expect("of the format")
    }

    #[test]
    fn a_file_by_its_name() {
        for (name, expected) in [
            ("OPT-30.A100-40.json", Some(("opt-30", "a100-40g"))),
            ("a/b.c/GPT-Neo-2.7.GH-96.json", Some(("gpt-neo-2.7", "gh-96"))),
            ("OPT-30.json", None),
            ("OPT-30.A100-40.csv", None),
            (".A100-40.json", None),
        ] {
            let found = named(name);
            let found = found.as_ref().map(|(model, kind)| (model.as_str(), kind.as_str()));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn entries_that_hold_a_time_become_measurements() {
        let file = small("LLAMA-3-8.A100-40.json");
        assert_eq!((file.model.as_str(), file.kind.as_str()), ("llama-3-8", "a100-40g"));
        let [embedding, block, norm, head] = [LayerType::Embedding, LayerType::Block, LayerType::Norm, LayerType::Head];
        assert_eq!(file.layers, [embedding, block, block, norm, head]);
        let found: Vec<_> = file
            .measurements
            .iter()
            .map(|found| (found.cell.signature.as_str(), found.cell.phase.word(), found.seconds))
            .collect();
        let expected = [
            ("block/llama-3-8/b1", "forward", 0.05),
            ("embedding/llama-3-8/b4/tp2", "forward", 0.0023),
            ("block/llama-3-8/b4/tp2", "forward", 0.08),
            ("block/llama-3-8/b4/tp2", "backward", 0.17),
            ("block/llama-3-8/b4/tp2", "optimizer", 0.006),
            ("block/llama-3-8/b4/tp2", "forward", 0.09),
            ("block/llama-3-8/b4/tp2", "backward", 0.18),
            ("norm/llama-3-8/b4/tp2", "forward", 0.0007),
            ("head/llama-3-8/b4/tp2", "forward", 0.04),
            ("head/llama-3-8/b4/tp2", "backward", 0.09),
            ("head/llama-3-8/b4/tp2", "optimizer", 0.006),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn dtype_and_sequence_stand_in_the_signature_where_they_are_given() {
        let facts = Facts { dtype: Some("fp16".into()), sequence: Some(2048) };
        assert_eq!(signature(LayerType::Head, "opt-30", 8, 4, &facts), "head/opt-30/fp16/b8xs2048/tp4");
        assert_eq!(signature(LayerType::Head, "opt-30", 8, 1, &Facts::default()), "head/opt-30/b8");
    }

    #[test]
    fn damage_is_refused_with_its_place() {
        for (text, said) in [
            ("", "the file ends in the middle"),
            ("[]", "file: expected an object with whole numbers as keys, found a list"),
            ("null", "file: expected an object"),
            ("{}", "no layer has an entry"),
            ("{\"1\": {\"1\": {}}}", "no layer has an entry"),
            ("{\"one\": {}}", "one: expected a whole number as key, found \"one\""),
            ("{\"0\": {}}", "0: expected a whole number as key"),
            ("{\"1\": {\"2\": {\"-1\": []}}}", "1.2.-1: expected a whole number as key"),
            ("{\"1\": {\"2\": {\"0\": 3}}}", "1.2.0: expected a list"),
            ("{\"1\": {\"2\": {\"0\": [1, 2, 3, 4]}}}", "1.2.0: expected a list of forward, backward and update"),
            ("{\"1\": {\"2\": {\"0\": [1, -2]}}}", "1.2.0[1]: expected seconds from 0 to 3600, or null, found -2"),
            ("{\"1\": {\"2\": {\"0\": [\"1\"]}}}", "1.2.0[0]: expected seconds"),
            ("{\"1\": {\"2\": {\"0\": [3601]}}}", "1.2.0[0]: expected seconds"),
            ("{\"1\": {\"2\": {\"99999999999\": []}}}", "1.2.99999999999: expected a whole number as key"),
        ] {
            let error = read("M.A100-40.json", text, &Facts::default()).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(matches!(read("M.json", SMALL, &Facts::default()), Err(SailorError::Name)));
    }
}
