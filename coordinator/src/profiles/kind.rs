//! Kinds of device as others spell them, in our spelling.

/// Memory sizes of cards that are told apart by it, in GB, are below this; larger numbers are models of a card.
const MEMORY_GB_MAX: u32 = 512;

/// Cards whose size of memory stands in our spelling without its unit, since the number is part of a name in use.
const WITHOUT_UNIT: [&str; 1] = ["gh"];

/// A kind in our spelling: lower case, dashes, the memory in GB with a `g` behind it: `A100-40` and `a100_40GB` are
/// `a100-40g`; `GH-96` stays `gh-96`; `RTX-3090` is `rtx-3090`, its number being no memory. Whatever else stands there is
/// kept in lower case.
///
/// Two texts name the same kind exactly if this makes them equal.
pub fn kind_of(text: &str) -> String {
    let lower = text.trim().to_ascii_lowercase().replace(['_', ' '], "-");
    let Some((card, memory)) = lower.rsplit_once('-') else {
        return lower;
    };
    let digits = memory.trim_end_matches("gib").trim_end_matches("gb").trim_end_matches('g');
    match digits.parse::<u32>() {
        Ok(gigabytes) if !card.is_empty() && (1..=MEMORY_GB_MAX).contains(&gigabytes) => {
            let unit = if WITHOUT_UNIT.contains(&card) { "" } else { "g" };
            format!("{card}-{gigabytes}{unit}")
        }
        _ => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_others_in_our_spelling() {
        for (text, kind) in [
            ("A100-40", "a100-40g"),
            ("A100-80", "a100-80g"),
            ("a100-40g", "a100-40g"),
            ("a100_40GB", "a100-40g"),
            (" V100-16 ", "v100-16g"),
            ("GH-96", "gh-96"),
            ("gh-96g", "gh-96"),
            ("4xA100-40", "4xa100-40g"),
            ("RTX-3090", "rtx-3090"),
            ("rtx-2080", "rtx-2080"),
            ("TITAN-RTX", "titan-rtx"),
            ("Titan RTX", "titan-rtx"),
            ("H100", "h100"),
            ("cpu", "cpu"),
            ("-40", "-40"),
            ("", ""),
        ] {
            assert_eq!(kind_of(text), kind, "{text:?}");
            assert_eq!(kind_of(&kind_of(text)), kind, "{text:?} twice");
        }
    }
}
