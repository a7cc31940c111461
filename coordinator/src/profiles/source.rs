//! Sources: runs, and files that were imported.
//!
//! The id of a file's reading has two parts: `<digest of the bytes>-<digest of what they were taken to mean>`. One file is
//! one measurement, so of its readings one counts, the last that somebody asked for; the same reading again is the same
//! source, whatever the file is called by then.

/// Digits of the digest of bytes in an id.
pub(super) const CONTENT_DIGITS: usize = 32;
/// Digits of the digest of a reading in an id.
const READING_DIGITS: usize = 8;
/// Beginning of what is said of a file.
const IMPORT: &str = "import ";

/// Where profiles come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Tells it from every other: drawn when a run's store is made; of a file, the digests of its bytes and of `how`.
    pub id: String,
    /// The run's name, or the file's.
    pub name: String,
    /// How it came here, in words: `run`, or all that says what a file's bytes mean, `import sailor, model opt-30, kind
    /// a100-40g, unit s, backward split 0.5:0.5`.
    pub how: String,
    /// Samples that were taken of it: a run only grows.
    pub samples: u64,
    /// When its first sample came, in seconds since 1970; of a file, when it was imported.
    pub first_seen: u64,
    /// When its last one came.
    pub last_seen: u64,
    /// When it was merged last; 0 in a run's own store.
    pub merged: u64,
}

/// The digest of a file's bytes.
pub fn content_of(bytes: &[u8]) -> String {
    digits(&blake3::hash(bytes), CONTENT_DIGITS)
}

pub(super) fn digits(hash: &blake3::Hash, digits: usize) -> String {
    hash.to_hex()[..digits].to_owned()
}

impl Source {
    /// A file by the digest of its bytes, read as `reading` says after the word `import`, at `now`.
    pub(super) fn of_file(content: &str, name: &str, reading: &str, now: u64) -> Source {
        let how = format!("{IMPORT}{reading}");
        let id = format!("{content}-{}", digits(&blake3::hash(how.as_bytes()), READING_DIGITS));
        Source { id, name: name.to_owned(), how, samples: 0, first_seen: now, last_seen: now, merged: 0 }
    }

    /// Whether it is a file, and not a run.
    pub fn is_file(&self) -> bool {
        self.how.starts_with(IMPORT)
    }

    /// What all readings of a file share, and no two other sources. Builds before told readings apart by nothing: their
    /// ids are this part alone.
    pub fn origin(&self) -> &str {
        let is_digest =
            |text: &str, digits: usize| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match self.id.split_once('-') {
            Some((content, reading)) if is_digest(content, CONTENT_DIGITS) && is_digest(reading, READING_DIGITS) => {
                content
            }
            _ => &self.id,
        }
    }
}

/// Parts of what is said of a file's reading, those that are there.
pub(super) fn reading<'a>(format: &str, parts: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let said = parts.into_iter().filter_map(|(name, value)| Some(format!(", {name} {}", value?)));
    format!("{format}{}", said.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_of_one_file_share_their_origin() {
        let of = |bytes: &[u8], name: &str, how: &str| Source::of_file(&content_of(bytes), name, how, 5);
        let (one, again, other) =
            (of(b"x", "a", "sailor, kind k"), of(b"x", "b", "sailor, kind k"), of(b"x", "a", "y"));
        assert_eq!(one.id, again.id, "whatever it is called");
        assert!(one.id != other.id && one.origin() == other.origin() && one.is_file());
        assert_ne!(one.origin(), of(b"z", "a", "y").origin());
        let plain = |id: &str| Source { id: id.into(), ..Source::default() };
        for id in ["run-7", "", "-", &content_of(b"x"), &format!("{}-123", content_of(b"x"))] {
            assert_eq!(plain(id).origin(), id);
        }
        assert_eq!(plain(&content_of(b"x")).origin(), one.origin(), "of an older build");
    }

    #[test]
    fn what_is_said_of_a_reading_is_what_was_given() {
        let parts = [("kind", Some("k".to_owned())), ("dtype", None), ("unit", Some("us".to_owned()))];
        assert_eq!(reading("aceso", parts), "aceso, kind k, unit us");
    }
}
