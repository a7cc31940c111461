//! Texts as JSON, with the place of what is none.

use serde_json::Value;

/// Why a text is no JSON.
#[derive(Debug, thiserror::Error)]
pub enum NoJson {
    /// It ends too early.
    #[error("line {line}, column {column}: the file ends in the middle{}: take a copy that is whole", after(.path))]
    Cut {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The entry that it ends in; empty for none.
        path: String,
    },
    /// A word that JSON has not.
    #[error("line {line}, column {column}{}: `{word}` is no JSON: write null for what was not measured", within(.path))]
    Word {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The entry.
        path: String,
        /// What stands there.
        word: String,
    },
    /// Anything else.
    #[error("line {line}, column {column}{}: {problem}", within(.path))]
    Other {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The entry.
        path: String,
        /// What the reader says.
        problem: String,
    },
}

fn after(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(", in {path}") }
}

fn within(path: &str) -> String {
    after(path)
}

/// Reads a text as JSON.
///
/// # Errors
/// The place of what is none.
pub(super) fn json(text: &str) -> Result<Value, NoJson> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read: Result<Value, _> = serde_path_to_error::deserialize(&mut deserializer);
    let (path, error) = match read {
        Ok(value) => match deserializer.end() {
            Ok(()) => return Ok(value),
            Err(error) => (String::new(), error),
        },
        Err(error) => (error.path().to_string(), error.into_inner()),
    };
    let path = if path == "." || path == "?" { String::new() } else { path };
    let (line, column) = (error.line(), error.column());
    if error.is_eof() {
        return Err(NoJson::Cut { line, column, path });
    }
    // The place is that of the word's first letter, or of the one before.
    let here = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let from = here.get(column.saturating_sub(2)..).unwrap_or_default();
    let from = from.trim_start_matches(|letter: char| !letter.is_ascii_alphabetic() && letter != '-');
    let word: String = from.chars().take_while(|letter| letter.is_ascii_alphabetic() || *letter == '-').collect();
    if ["nan", "-nan", "inf", "-inf", "infinity", "-infinity", "none"].contains(&word.to_ascii_lowercase().as_str()) {
        return Err(NoJson::Word { line, column, path, word });
    }
    let problem = error.to_string();
    let problem = problem.split(" at line ").next().unwrap_or_default().to_owned();
    Err(NoJson::Other { line, column, path, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_named_with_its_place() {
        for (text, said) in [
            ("{\"1\": {\"1\": {\"0\": [0.1, ", "line 1, column 24: the file ends in the middle, in 1.1.0"),
            ("{\n\"1\": {\"1\": {\"0\": [0.1, NaN, 0]}}}", "line 2, column 24, in 1.1.0[1]: `NaN` is no JSON"),
            ("{\"1\": -Infinity}", "`-Infinity` is no JSON"),
            ("{\"1\": Inf}", "in 1: `Inf` is no JSON"),
            ("{\"1\": 3]", "line 1, column 8: expected"),
            ("{} {}", "line 1, column 4: trailing characters"),
            ("", "ends in the middle"),
        ] {
            let error = json(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(json("[1, null]").is_ok());
    }
}
