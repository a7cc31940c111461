//! Times as people write them.

use std::time::Duration;

/// A time as people write it: `10s`, `500ms`, `2m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is not a unit of time: write 500ms, 10s, 2m or 1h")),
    };
    let seconds = number.parse::<f64>().map_err(|_| format!("`{text}` is not a time: write 500ms, 10s, 2m or 1h"))?;
    Duration::try_from_secs_f64(seconds * unit).map_err(|_| format!("`{text}` is out of range"))
}
