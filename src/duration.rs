//! Times as people write them.

use std::time::Duration;

/// A time as people write it: `10s`, `500ms`, `2m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    const RIGHT: &str = "write 500ms, 10s, 2m or 1h";
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    if number.is_empty() {
        return Err(format!("`{text}` is not a time: {RIGHT}"));
    }
    let unit = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is not a unit of time: {RIGHT}")),
    };
    let seconds = number.parse::<f64>().map_err(|_| format!("`{text}` is not a time: {RIGHT}"))?;
    Duration::try_from_secs_f64(seconds * unit).map_err(|_| format!("`{text}` is more time than there is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in
            [("500ms", 500), ("10s", 10_000), ("10", 10_000), ("0.5m", 30_000), ("1h", 3_600_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1 parsec", "1.2.3s", "99999999999999999999s", "nan"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
