//! The known word that an unknown one most likely means.

/// The candidate with the least edit distance to `word`; none if there is no candidate. The first one wins a tie.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates.into_iter().min_by_key(|candidate| distance(word, candidate))
}

/// The candidate that `word` is most likely a slip of the pen for; none if more than half of it would have to change.
pub fn similar<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let longest = |candidate: &str| candidate.chars().count().max(word.chars().count());
    nearest(word, candidates).filter(|candidate| 2 * distance(word, candidate) <= longest(candidate))
}

/// Levenshtein's distance in characters. Words longer than this are cut, so that a hostile key costs little.
const LENGTH_MAX: usize = 64;

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(LENGTH_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(LENGTH_MAX).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("layer", "layers", 1),
            ("output_byte", "output_bytes", 1),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn nearest_takes_the_least_distance_and_the_first_of_equals() {
        assert_eq!(nearest("devize", ["layers", "devices", "device"]), Some("device"));
        assert_eq!(nearest("x", ["a", "b"]), Some("a"));
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn what_has_little_in_common_is_not_similar() {
        let kinds = ["h200-141g", "h100-80g", "a100-40g", "cpu"];
        for (word, expected) in [
            ("h100-80q", Some("h100-80g")),
            ("h100", Some("h100-80g")),
            ("gpu", Some("cpu")),
            ("zzz", None),
            ("", None),
            ("quantum", None),
        ] {
            assert_eq!(similar(word, kinds), expected, "{word}");
        }
    }
}
