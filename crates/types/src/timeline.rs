//! Timeline numbers.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnose, Outcome};
use crate::lsn::shortened;

/// The number of a timeline: one line of history of a cluster. A promotion or a point-in-time recovery
/// begins a new one (PostgreSQL documentation, section "Timelines").
///
/// Zero, which PostgreSQL uses for "no timeline", cannot be represented: write `Option<TimelineId>`.
/// Its text is decimal, as `IDENTIFY_SYSTEM` and pg_controldata give it; in serde it is a number. File
/// names have it in hexadecimal: see [`crate::wal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline on which initdb begins.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline of that number; `None` for zero.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The number after this one, which a promotion takes where no other timeline took it before; `None`
    /// after the last.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

impl FromStr for TimelineId {
    type Err = TimelineIdParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number.and_then(Self::new).ok_or_else(|| TimelineIdParseError {
            text: shortened(text),
        })
    }
}

impl TryFrom<u32> for TimelineId {
    type Error = TimelineIdParseError;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        Self::new(number).ok_or_else(|| TimelineIdParseError {
            text: number.to_string(),
        })
    }
}

impl From<TimelineId> for u32 {
    fn from(timeline: TimelineId) -> Self {
        timeline.get()
    }
}

/// A text or number that is not a timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a timeline number")]
pub struct TimelineIdParseError {
    text: String,
}

impl Diagnose for TimelineIdParseError {
    fn hint(&self) -> Option<String> {
        Some("write a decimal number from 1 to 4294967295, as pg_controldata prints it".to_owned())
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zero_and_garbage_are_not_timelines() {
        for text in ["", "0", "-1", "+1", " 1", "1 ", "0x1", "4294967296", "A"] {
            assert!(text.parse::<TimelineId>().is_err(), "{text}");
        }
        assert!(TimelineId::try_from(0).is_err());
    }

    #[test]
    fn the_last_timeline_has_no_next() {
        assert_eq!(TimelineId::FIRST.next(), TimelineId::new(2));
        assert_eq!(TimelineId::new(u32::MAX).expect("not zero").next(), None);
    }

    proptest! {
        #[test]
        fn text_round_trips(number in 1..=u32::MAX) {
            let timeline = TimelineId::new(number).expect("not zero");
            prop_assert_eq!(timeline.to_string().parse::<TimelineId>(), Ok(timeline));
        }
    }
}
