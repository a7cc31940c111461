//! Measurements gathered from several files, each in Sailor's format or our own.
//!
//! A file of Sailor's whose model has another number of layers than most of its files is not that model's, whatever its
//! name says: it is left out, and told. A file that lacks only the last layers is short of entries.

use super::measurement::{self, Measurement, ProfilesError};
use super::sailor::{self, Facts, LayerType, SailorError, SailorFile};
use std::collections::BTreeMap;

/// Layers that a file may lack at the end: norm and head.
const SHORT_BY_MAX: usize = 2;

/// A file as it was found.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// Its name, with or without folders.
    pub name: &'a str,
    /// What stands in it.
    pub text: &'a str,
}

/// What files hold together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gathered {
    /// All measurements, kinds in our spelling.
    pub measurements: Vec<Measurement>,
    /// What each layer of a model is, for models in Sailor's files.
    pub models: BTreeMap<String, Vec<LayerType>>,
    /// Files that were left out.
    pub left_out: Vec<LeftOut>,
}

/// A file that is not what its name says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {layers} layers, where other files of {model} have {expected}: another model's, left out")]
pub struct LeftOut {
    /// The file.
    pub name: String,
    /// By its name.
    pub model: String,
    /// How many it has.
    pub layers: usize,
    /// How many the others have.
    pub expected: usize,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// In its own terms.
    #[error("{name}: {source}")]
    Sailor {
        /// The file.
        name: String,
        /// Why.
        source: SailorError,
    },
    /// In its own terms.
    #[error("{name}: {source}")]
    Profiles {
        /// The file.
        name: String,
        /// Why.
        source: ProfilesError,
    },
}

/// Reads files. What is named as Sailor's files are and says no format is read as such, all else as our own.
///
/// # Errors
/// The first file that is of neither format, with what is wrong in it.
pub fn gather(files: &[Text<'_>], facts: &Facts) -> Result<Gathered, GatherError> {
    let mut gathered = Gathered::default();
    let mut sailors: Vec<(Text<'_>, SailorFile)> = Vec::new();
    for file in files {
        let name = || file.name.to_owned();
        if sailor::named(file.name).is_some() && !says_a_format(file.text) {
            let read = sailor::read(file.name, file.text, facts);
            sailors.push((*file, read.map_err(|source| GatherError::Sailor { name: name(), source })?));
        } else {
            let read = measurement::read(file.text);
            let found = read.map_err(|source| GatherError::Profiles { name: name(), source })?;
            gathered.measurements.extend(found.into_iter().map(spelled));
        }
    }
    let mut models: BTreeMap<String, BTreeMap<usize, Vec<&SailorFile>>> = BTreeMap::new();
    for (_, file) in &sailors {
        models.entry(file.model.clone()).or_default().entry(file.layers.len()).or_default().push(file);
    }
    for (model, by_length) in models {
        // Most files; of as many, the longer ones.
        let usual = by_length.iter().max_by_key(|(length, files)| (files.len(), **length));
        if let Some((_, files)) = usual {
            gathered.models.insert(model, files[0].layers.clone());
        }
    }
    for (text, file) in sailors {
        let layers = &gathered.models[&file.model];
        let (found, expected) = (file.layers.len(), layers.len());
        if found == expected {
            gathered.measurements.extend(file.measurements);
        } else if found < expected && found + SHORT_BY_MAX >= expected {
            let again = sailor::read_as(text.name, text.text, facts, layers);
            let again = again.map_err(|source| GatherError::Sailor { name: text.name.to_owned(), source })?;
            gathered.measurements.extend(again.measurements);
        } else {
            let name = text.name.to_owned();
            gathered.left_out.push(LeftOut { name, model: file.model, layers: found, expected });
        }
    }
    Ok(gathered)
}

fn spelled(mut measurement: Measurement) -> Measurement {
    measurement.cell.kind = super::kind::kind_of(&measurement.cell.kind);
    measurement
}

/// Whether a text is an object that names its format, as ours do.
fn says_a_format(text: &str) -> bool {
    let parsed: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(text);
    parsed.is_ok_and(|object| object.contains_key("format"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sailor_file(layers: usize) -> String {
        let entries: Vec<String> = (0..layers).map(|layer| format!("\"{layer}\": [0.01, 0.02, 0.0]")).collect();
        format!("{{\"1\": {{\"1\": {{{}}}}}}}", entries.join(", "))
    }

    fn of(files: &[(&str, &str)]) -> Result<Gathered, GatherError> {
        let texts: Vec<_> = files.iter().map(|&(name, text)| Text { name, text }).collect();
        gather(&texts, &Facts::default())
    }

    fn heads(gathered: &Gathered) -> usize {
        let is_head = |found: &&Measurement| found.cell.signature.starts_with("head/");
        gathered.measurements.iter().filter(is_head).count()
    }

    #[test]
    fn a_file_of_another_model_is_left_out_and_told() {
        let (long, short) = (sailor_file(34), sailor_file(26));
        let gathered = of(&[("M.A-1.json", &long), ("x/M.GH-96.json", &short), ("M.C-3.json", &long)]);
        let gathered = gathered.expect("of the format");
        assert_eq!(gathered.measurements.len(), 2 * 2 * 34);
        let said: Vec<String> = gathered.left_out.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["x/M.GH-96.json: 26 layers, where other files of m have 34: another model's, left out"]);
    }

    #[test]
    fn a_file_short_of_its_head_is_kept_without_one() {
        let (whole, short) = (sailor_file(6), sailor_file(5));
        let gathered = of(&[("M.A-1.json", &whole), ("M.B-2.json", &short)]).expect("of the format");
        assert_eq!((gathered.left_out.len(), heads(&gathered)), (0, 2), "forward and backward of one head");
        assert_eq!(gathered.measurements.len(), 2 * (6 + 5));
    }

    #[test]
    fn both_formats_together_with_kinds_in_one_spelling() {
        let ours = r#"{"format": "adaptis.profiles/1",
            "profiles": [{"kind": "A100-40", "signature": "head/m/b1", "phase": "F", "seconds": 0.5}]}"#;
        let gathered = of(&[("M.A100-40.json", &sailor_file(3)), ("ours.json", ours)]).expect("of the formats");
        assert_eq!(heads(&gathered), 3);
        assert!(gathered.measurements.iter().all(|found| found.cell.kind == "a100-40g"));
    }

    #[test]
    fn an_error_names_the_file() {
        for (name, text, said) in [
            ("M.A-1.json", "{\"1\": 2}", "M.A-1.json: 1: expected an object"),
            ("m.json", "{\"1\": {}}", "m.json: "),
            ("M.A-1.json", "{\"format\": \"adaptis.profiles/2\", \"profiles\": []}", "adaptis.profiles/2"),
        ] {
            let error = of(&[(name, text)]).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
