//! What a retention policy says, and how people write one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How many dumps of each series to keep. Rules add up: a dump that any rule keeps stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Policy {
    /// The newest so many, whatever their age.
    pub last: u32,
    /// The newest of each of so many days that have one.
    pub daily: u32,
    /// The newest of each of so many ISO weeks that have one.
    pub weekly: u32,
    /// The newest of each of so many months that have one.
    pub monthly: u32,
    /// All that are not older than this.
    pub within: Option<Age>,
    /// Whether also what is younger than [`RECENT`](super::plan::RECENT) may go.
    pub remove_recent: bool,
}

impl Default for Policy {
    /// Seven days, four weeks, twelve months.
    fn default() -> Self {
        Self {
            last: 0,
            daily: 7,
            weekly: 4,
            monthly: 12,
            within: None,
            remove_recent: false,
        }
    }
}

impl Policy {
    /// A policy without any rule.
    pub const NOTHING: Self = Self {
        last: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        within: None,
        remove_recent: false,
    };

    /// Whether no rule would keep anything.
    pub fn keeps_nothing(&self) -> bool {
        self.last == 0
            && self.daily == 0
            && self.weekly == 0
            && self.monthly == 0
            && self.within.is_none_or(|age| age.0.is_zero())
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (count, word) in [
            (self.last, "last"),
            (self.daily, "daily"),
            (self.weekly, "weekly"),
            (self.monthly, "monthly"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {word}"));
            }
        }
        if let Some(age) = self.within {
            parts.push(format!("all within {age}"));
        }
        if parts.is_empty() {
            formatter.write_str("nothing")
        } else {
            formatter.write_str(&parts.join(", "))
        }
    }
}

/// An age as people write it: a number and `h`, `d` or `w`. Days are 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub Duration);

/// Why a text is no age.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no age: write a number and h, d or w, for example 30d")]
pub struct AgeError(String);

const HOUR: u64 = 3600;

impl FromStr for Age {
    type Err = AgeError;

    fn from_str(text: &str) -> Result<Self, AgeError> {
        let error = || AgeError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(|character: char| character.is_ascii_alphabetic());
        let unit = match &trimmed[digits.len()..] {
            "h" => HOUR,
            "d" => 24 * HOUR,
            "w" => 7 * 24 * HOUR,
            _ => return Err(error()),
        };
        let seconds = digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit));
        // A thousand years, so that a date less an age is always a date.
        seconds
            .filter(|seconds| *seconds <= 1000 * 366 * 24 * HOUR)
            .map(Duration::from_secs)
            .map(Self)
            .ok_or_else(error)
    }
}

impl fmt::Display for Age {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.0.as_secs() / HOUR;
        if hours > 0 && hours.is_multiple_of(24) {
            write!(formatter, "{}d", hours / 24)
        } else {
            write!(formatter, "{hours}h")
        }
    }
}

impl serde::Serialize for Age {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read_as_people_write_them() {
        for (text, hours) in [("12h", 12), ("30d", 720), ("2w", 336), (" 1d ", 24)] {
            let age: Age = text.parse().expect(text);
            assert_eq!(age.0.as_secs(), hours * HOUR, "{text}");
        }
        for text in [
            "",
            "d",
            "30",
            "30m",
            "-1d",
            "1.5d",
            "99999999999999999999d",
            "400000w",
            "3 d",
        ] {
            assert!(text.parse::<Age>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_age_is_written_as_it_can_be_read() {
        for text in ["36h", "30d", "0h"] {
            assert_eq!(text.parse::<Age>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn a_policy_says_what_it_keeps() {
        assert_eq!(Policy::default().to_string(), "7 daily, 4 weekly, 12 monthly");
        assert_eq!(Policy::NOTHING.to_string(), "nothing");
        assert!(Policy::NOTHING.keeps_nothing());
        assert!(!Policy::default().keeps_nothing());
    }
}
