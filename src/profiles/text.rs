//! Profiles as people read them.

use std::fmt::Write;

/// A time with its unit, three digits or more.
pub fn time(seconds: f64) -> String {
    match seconds {
        0.0 => "0".to_owned(),
        of if of < 1e-6 => format!("{:.0} ns", of * 1e9),
        of if of < 1e-3 => format!("{:.1} us", of * 1e6),
        of if of < 1.0 => format!("{:.3} ms", of * 1e3),
        of => format!("{of:.3} s"),
    }
}

/// So many of a thing.
pub fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A day and minute of universal time.
pub fn instant(seconds: u64) -> String {
    if seconds == 0 {
        return "-".to_owned();
    }
    // Days since 1970 to a date of the Gregorian calendar, in eras of 400 years that begin in March.
    let (days, minute) = (seconds / 86_400 + 719_468, seconds % 86_400 / 60);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", minute / 60, minute % 60)
}

/// Columns as wide as what stands in them; those of numbers are flush right.
pub fn table(head: &[&str], are_numbers: &[bool], rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([head[at].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let head = head.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(&widths).zip(are_numbers).map(|((cell, &width), is_number)| match is_number {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_dates() {
        for (seconds, text) in [
            (0, "-"),
            (1, "1970-01-01 00:00"),
            (951_782_400, "2000-02-29 00:00"),
            (1_700_000_000, "2023-11-14 22:13"),
            (4_107_542_399, "2100-02-28 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(instant(seconds), text);
        }
    }

    #[test]
    fn times_have_units() {
        let times = [0.0, 5e-7, 1.25e-5, 0.0886, 3.5].map(time);
        assert_eq!(times, ["0", "500 ns", "12.5 us", "88.600 ms", "3.500 s"]);
    }
}
