//! Measured values: a number and its unit, as people write and read it.
//!
//! Values are held in base units (seconds, bytes, shares of one), so that thresholds, performance data and
//! metrics need no conversion.

use std::fmt;

use serde::{Deserialize, Serialize};

const KIB: f64 = 1024.0;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Things.
    Count,
    /// A share: 1 is all. Written in percent.
    Ratio,
    /// Bytes. Written with PostgreSQL's multiples of 1024.
    Bytes,
    /// Seconds. Written with the multiple that fits.
    Seconds,
    /// Transaction ids.
    Transactions,
    /// Events an hour.
    PerHour,
    /// Events a minute.
    PerMinute,
    /// How many times as much. Written with a ×.
    Factor,
}

/// Why a written value was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct MeasureError {
    text: String,
    expected: &'static str,
}

impl Unit {
    /// What a value of this unit looks like, for messages.
    pub fn example(self) -> &'static str {
        match self {
            Self::Count => "a whole number such as 20",
            Self::Ratio => "a percentage such as 80%",
            Self::Bytes => "a size such as 64MB or 1GB",
            Self::Seconds => "a duration such as 500ms, 30s, 5min, 2h or 7d",
            Self::Transactions => "a number of transactions such as 200000000",
            Self::PerHour => "a number an hour such as 10",
            Self::PerMinute => "a number a minute such as 10",
            Self::Factor => "a factor such as 2 or 1.5x",
        }
    }

    /// The word for metric names and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Ratio => "ratio",
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Transactions => "transactions",
            Self::PerHour => "per_hour",
            Self::PerMinute => "per_minute",
            Self::Factor => "factor",
        }
    }

    /// Reads a value as people write it: `80%`, `5min`, `1GB`, `20`.
    ///
    /// # Errors
    ///
    /// Where the text has no number, a unit of another kind, or no unit where one is needed to tell what
    /// is meant.
    pub fn parse(self, text: &str) -> Result<f64, MeasureError> {
        let fail = || MeasureError {
            text: text.trim().to_owned(),
            expected: self.example(),
        };
        let trimmed = text.trim();
        let end = trimmed
            .find(|character: char| !character.is_ascii_digit() && character != '.')
            .unwrap_or(trimmed.len());
        let number: f64 = trimmed[..end].parse().map_err(|_| fail())?;
        let factor = self
            .suffix_factor(trimmed[end..].trim(), number == 0.0)
            .ok_or_else(fail)?;
        // 70 / 100 is 0.7, 70 * 0.01 is not.
        Ok(if self == Self::Ratio {
            number / 100.0
        } else {
            number * factor
        })
    }

    /// How many base units one of `suffix` is; zero needs no suffix.
    fn suffix_factor(self, suffix: &str, is_zero: bool) -> Option<f64> {
        if suffix.is_empty() && is_zero {
            return Some(1.0);
        }
        Some(match (self, suffix) {
            (Self::Seconds, "us") => 1e-6,
            (Self::Seconds, "ms") => 1e-3,
            (Self::Ratio, "%")
            | (Self::Seconds, "s" | "sec")
            | (Self::Bytes, "B")
            | (Self::Count | Self::Transactions | Self::PerHour | Self::PerMinute | Self::Factor, "")
            | (Self::Factor, "x" | "×")
            | (Self::PerHour, "/h")
            | (Self::PerMinute, "/min") => 1.0,
            (Self::Seconds, "min" | "m") => 60.0,
            (Self::Seconds, "h") => 3600.0,
            (Self::Seconds, "d") => 86_400.0,
            (Self::Bytes, "kB" | "KB" | "KiB") => KIB,
            (Self::Bytes, "MB" | "MiB") => KIB * KIB,
            (Self::Bytes, "GB" | "GiB") => KIB * KIB * KIB,
            (Self::Bytes, "TB" | "TiB") => KIB * KIB * KIB * KIB,
            _ => return None,
        })
    }
}

/// A number with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// In the unit's base.
    pub value: f64,
    /// What it counts.
    pub unit: Unit,
}

impl Measure {
    /// A value in the unit's base.
    pub fn new(value: f64, unit: Unit) -> Self {
        Self { value, unit }
    }

    /// A number of things.
    pub fn count(value: impl Into<i64>) -> Self {
        Self::new(value.into() as f64, Unit::Count)
    }

    /// A share of one.
    pub fn ratio(value: f64) -> Self {
        Self::new(value, Unit::Ratio)
    }

    /// A number of bytes.
    pub fn bytes(value: i64) -> Self {
        Self::new(value as f64, Unit::Bytes)
    }

    /// A number of seconds.
    pub fn seconds(value: f64) -> Self {
        Self::new(value, Unit::Seconds)
    }
}

/// A number without needless digits: `80`, `1.5`, `0.25`.
fn plain(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Seconds as people say them, with two parts at most: `350 ms`, `42 s`, `5 min 3 s`, `3 d 2 h`.
pub fn human_seconds(seconds: f64) -> String {
    if seconds < 0.0 {
        return format!("-{}", human_seconds(-seconds));
    }
    if seconds == 0.0 {
        return "0 s".to_owned();
    }
    if seconds < 0.9995 {
        return format!("{} ms", plain(seconds * 1e3, usize::from(seconds < 0.01)));
    }
    if seconds < 10.0 {
        return format!("{} s", plain(seconds, 1));
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    let two = |major: u64, major_name: &str, minor: u64, minor_name: &str| {
        if minor == 0 {
            format!("{major} {major_name}")
        } else {
            format!("{major} {major_name} {minor} {minor_name}")
        }
    };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => two(minutes, "min", rest, "s"),
        (0, _, _) => two(hours, "h", minutes, "min"),
        _ => two(days, "d", hours, "h"),
    }
}

/// Bytes with PostgreSQL's multiples of 1024: `512 B`, `16 MB`, `1.5 GB`.
pub fn human_bytes(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes;
    let mut power = 0;
    while value.abs() >= KIB && power + 1 < UNITS.len() {
        value /= KIB;
        power += 1;
    }
    let digits = usize::from(power > 0 && value.abs() < 100.0);
    format!("{} {}", plain(value, digits), UNITS[power])
}

/// A whole number with separated thousands: `1,234,567`.
pub fn human_count(value: f64) -> String {
    let whole = plain(value.abs(), usize::from(value.fract() != 0.0));
    let (digits, fraction) = whole
        .split_once('.')
        .map_or((whole.as_str(), ""), |(left, right)| (left, right));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

impl fmt::Display for Measure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value;
        let text = match self.unit {
            Unit::Count | Unit::Transactions => human_count(value),
            Unit::Ratio => {
                let percent = value * 100.0;
                format!(
                    "{} %",
                    plain(
                        percent,
                        if percent.abs() < 10.0 && percent != 0.0 {
                            2
                        } else {
                            1
                        }
                    )
                )
            }
            Unit::Bytes => human_bytes(value),
            Unit::Seconds => human_seconds(value),
            Unit::PerHour => format!("{}/h", plain(value, 1)),
            Unit::PerMinute => format!("{}/min", plain(value, 1)),
            Unit::Factor => format!("{}×", plain(value, 2)),
        };
        formatter.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_people_write_them() {
        for (unit, text, value) in [
            (Unit::Ratio, "70%", 0.7),
            (Unit::Ratio, " 85 % ", 0.85),
            (Unit::Seconds, "500ms", 0.5),
            (Unit::Seconds, "5min", 300.0),
            (Unit::Seconds, "1.5h", 5400.0),
            (Unit::Seconds, "0", 0.0),
            (Unit::Bytes, "10 MiB", 10_485_760.0),
            (Unit::Bytes, "1GB", 1_073_741_824.0),
            (Unit::Count, "20", 20.0),
            (Unit::Factor, "2x", 2.0),
        ] {
            let read = unit.parse(text).unwrap();
            assert!((read - value).abs() < 1e-9, "{text}: {read}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_with_an_example() {
        for (unit, text) in [
            (Unit::Ratio, "70"),
            (Unit::Seconds, "5"),
            (Unit::Seconds, "5MB"),
            (Unit::Bytes, "many"),
            (Unit::Count, "-3"),
            (Unit::Count, ""),
        ] {
            assert!(unit.parse(text).is_err(), "{text}");
        }
        assert_eq!(
            Unit::Ratio.parse("70").unwrap_err().to_string(),
            "`70` is not a percentage such as 80%"
        );
    }

    #[test]
    fn values_are_written_as_people_say_them() {
        for (measure, text) in [
            (Measure::ratio(0.8), "80 %"),
            (Measure::ratio(0.0123), "1.23 %"),
            (Measure::seconds(0.0004), "0.4 ms"),
            (Measure::seconds(0.35), "350 ms"),
            (Measure::seconds(0.99), "990 ms"),
            (Measure::seconds(303.2), "5 min 3 s"),
            (Measure::seconds(266_400.0), "3 d 2 h"),
            (Measure::bytes(16_777_216), "16 MB"),
            (Measure::bytes(1_610_612_736), "1.5 GB"),
            (Measure::bytes(12), "12 B"),
            (Measure::new(1_234_567.0, Unit::Count), "1,234,567"),
            (Measure::new(2.5, Unit::Factor), "2.5×"),
        ] {
            assert_eq!(measure.to_string(), text);
        }
    }
}
