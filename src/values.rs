//! Arguments as people write them, with errors that say what would be right.
//!
//! They stand behind clap's `value_parser`, which names the argument. Each is to be declared with
//! `allow_hyphen_values` or `allow_negative_numbers`, or a value below zero is taken for an unknown option.

use crate::duration::duration;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A time in which something can be done.
pub fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("no time at all: write 500ms, 10s, 2m or 1h".to_owned()),
        time => Ok(time),
    }
}

/// A whole number of a range.
pub fn whole(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| {
        text.parse().ok().filter(|value| range.contains(value)).ok_or_else(|| match *range.end() {
            u64::MAX if *range.start() == 0 => "write a whole number that is not negative".to_owned(),
            u64::MAX => format!("write a whole number from {} on", range.start()),
            end => format!("write a whole number from {} to {end}", range.start()),
        })
    }
}

/// A whole number that is not negative.
pub fn any_whole(text: &str) -> Result<u64, String> {
    whole(0..=u64::MAX)(text)
}

/// A text with something in it.
pub fn text(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it is empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

/// A share, as a number from 0 to 1 or in percent.
pub fn share(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim_end().parse().map(|percent: f64| percent / 100.0).ok(),
        None => text.parse().ok(),
    };
    value
        .filter(|value| (0.0..=1.0).contains(value))
        .ok_or_else(|| "write a share from 0 to 1, or 0% to 100%".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_at_all_is_refused() {
        assert!(some_time("0ms").is_err());
        assert_eq!(some_time("1ms"), Ok(Duration::from_millis(1)));
    }

    #[test]
    fn shares_are_numbers_or_percents() {
        assert_eq!([share("0.1"), share("10%"), share("2.5 %"), share("1")], [Ok(0.1), Ok(0.1), Ok(0.025), Ok(1.0)]);
        for text in ["-0.1", "101%", "10", "nan", "%", "", "much"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_say_their_range() {
        assert_eq!(whole(1..=9)("9"), Ok(9));
        assert_eq!(whole(1..=9)("10"), Err("write a whole number from 1 to 9".to_owned()));
        assert_eq!(whole(1..=u64::MAX)("0"), Err("write a whole number from 1 on".to_owned()));
        assert_eq!(any_whole("-1"), Err("write a whole number that is not negative".to_owned()));
        assert_eq!(any_whole("18446744073709551615"), Ok(u64::MAX));
    }
}
