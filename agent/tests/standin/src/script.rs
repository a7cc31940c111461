//! What a stand-in answers: lines of a key and a value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Names the script to the stand-ins of a process.
pub(crate) const VARIABLE: &str = "ADAPTIS_STANDIN_SCRIPT";

/// Where the script of this process lies, if it is a test's.
pub fn script_path() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// A script. What it does not name is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script(BTreeMap<String, String>);

impl Script {
    /// Reads the script of this process anew; an empty one without.
    pub fn read() -> Self {
        let text = script_path().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        Self::parse(&text)
    }

    /// A key and a value a line; the last line of a key counts.
    pub fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.trim().split_once(' '));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
    }

    /// The value of a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The value of a key, as a number of any integer type.
    ///
    /// # Panics
    /// If it is none: the test is wrong.
    pub fn number<T: TryFrom<i128>>(&self, key: &str) -> Option<T> {
        let text = self.text(key)?;
        let number: Option<i128> = text.parse().ok();
        Some(
            number
                .and_then(|number| T::try_from(number).ok())
                .unwrap_or_else(|| panic!("{key} {text}: no such number")),
        )
    }

    /// All pairs whose key begins with a prefix, without it.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_str())))
    }

    /// Puts a script in the place of another, whole.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write(path: &Path, text: &str) -> std::io::Result<()> {
        let new = path.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_keys_and_values_and_the_last_counts() {
        let script = Script::parse("a.x 1\n  a.y  two words \n\na.x -3\nalone\n");
        assert_eq!(script.number::<i64>("a.x"), Some(-3));
        assert_eq!(script.text("a.y"), Some("two words"));
        assert_eq!(script.number::<u32>("alone"), None);
        assert_eq!(script.under("a.").collect::<Vec<_>>(), [("x", "-3"), ("y", "two words")]);
    }

    #[test]
    #[should_panic(expected = "a -1: no such number")]
    fn a_number_out_of_range_is_the_tests_mistake() {
        let _ = Script::parse("a -1").number::<u32>("a");
    }
}
