//! Durations, sizes and shares as people write them: `14d`, `500ms`, `1GiB`, `100MB`, `70%`.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serializer;

/// What a duration looks like, for messages.
pub(crate) const DURATION_EXAMPLE: &str = "a duration such as 500ms, 30s, 5min, 2h or 14d";
/// What a size looks like, for messages.
pub(crate) const SIZE_EXAMPLE: &str = "a size such as 512kB, 100MB or 1GiB";

/// Splits a number from the unit after it.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

/// Reads a duration: a number and `us`, `ms`, `s`, `min` (or `m`), `h`, `d`, `w`; several in a row add up
/// (`1h30min`). `0` needs no unit. Days have 24 hours.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = 0.0;
    let mut parts = 0;
    while !rest.is_empty() {
        let (number, after) = split(rest)?;
        let end = after
            .find(|character: char| character.is_ascii_digit() || character.is_whitespace())
            .unwrap_or(after.len());
        let factor = match &after[..end] {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            "" if number == 0.0 && parts == 0 && after.is_empty() => 1.0,
            _ => return None,
        };
        total += number * factor;
        parts += 1;
        rest = after[end..].trim_start();
    }
    if parts == 0 {
        return None;
    }
    // Whole microseconds: binary fractions of a day are not what was meant.
    let microseconds = (total * 1e6).round();
    (microseconds <= 9e18).then(|| Duration::from_micros(microseconds as u64))
}

/// Reads a size in bytes: a number and `B`, `kB`, `MB`, `GB`, `TB` or their `i` forms, all powers of 1024 as
/// PostgreSQL has them (documentation, section "Setting Parameters"). A bare number is bytes.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let power = match unit {
        "" | "B" => 0,
        "kB" | "KB" | "KiB" | "k" | "K" => 1,
        "MB" | "MiB" | "M" => 2,
        "GB" | "GiB" | "G" => 3,
        "TB" | "TiB" | "T" => 4,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(power);
    (bytes <= 9e18).then_some(bytes as u64)
}

/// Reads a share: `70%` is 0.7.
pub fn share(text: &str) -> Option<f64> {
    let (number, unit) = split(text)?;
    (unit == "%").then_some(number / 100.0)
}

/// A duration in the fewest whole units, as [`duration`] reads it: `14d`, `1h30min`, `500ms`.
pub fn duration_text(duration: Duration) -> String {
    let mut left = duration.as_micros();
    if left == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, size) in [
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("min", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1000),
        ("us", 1),
    ] {
        if left >= size {
            let _ = write!(text, "{}{unit}", left / size);
            left %= size;
        }
    }
    text
}

/// A size in the largest unit that divides it, as [`size`] reads it.
pub fn size_text(bytes: u64) -> String {
    for (unit, power) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes > 0 && bytes.is_multiple_of(1 << power) {
            return format!("{}{unit}", bytes >> power);
        }
    }
    format!("{bytes}B")
}

#[expect(clippy::ref_option, reason = "serde's serialize_with asks for it")]
pub(crate) fn serialize_duration<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_str(&duration_text(*duration)),
        None => serializer.serialize_none(),
    }
}

#[expect(clippy::ref_option, reason = "serde's serialize_with asks for it")]
pub(crate) fn serialize_size<S: Serializer>(size: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match size {
        Some(size) => serializer.serialize_str(&size_text(*size)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("14d", 1_209_600_000),
            ("500ms", 500),
            ("0", 0),
            ("1.5h", 5_400_000),
            ("1h30min", 5_400_000),
            ("1h 30m", 5_400_000),
            ("2w", 1_209_600_000),
            ("5 min", 300_000),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "5", "d", "5x", "-5s", "5s6", "1:30", "5s 6"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_and_shares_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("100MB", 100 << 20),
            ("1GiB", 1 << 30),
            ("0.5TB", 1 << 39),
            ("17", 17),
            ("8 kB", 8192),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "MB", "1XB", "-1MB", "99999999TB"] {
            assert_eq!(size(text), None, "{text}");
        }
        assert_eq!(share("70%"), Some(0.7));
        assert_eq!(share("70"), None);
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_is_read_back(microseconds in 0_u64..10_000_000_000_000, bytes in 0_u64..1 << 50) {
            let time = Duration::from_micros(microseconds);
            proptest::prop_assert_eq!(duration(&duration_text(time)), Some(time));
            proptest::prop_assert_eq!(size(&size_text(bytes)), Some(bytes));
        }
    }
}
