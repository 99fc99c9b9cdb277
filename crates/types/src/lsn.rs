//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::diagnostic::{Diagnose, Outcome};

/// A position in the write-ahead log: the number of bytes since its beginning, of all timelines alike.
///
/// Its text is that of PostgreSQL's type `pg_lsn`, for example `0/3000028`: two hexadecimal numbers of 32
/// bits (`src/backend/utils/adt/pg_lsn.c`). Reading takes upper and lower case and one to eight digits on
/// each side; writing gives upper case without leading zeros. In serde it is that text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// Position zero, which PostgreSQL uses for "no position" (`InvalidXLogRecPtr`): no record begins there.
    pub const INVALID: Self = Self(0);
    /// The largest position that can be written down.
    pub const MAX: Self = Self(u64::MAX);

    /// The position that many bytes after the beginning.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes since the beginning of the log.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether this is a position at all, not [`Lsn::INVALID`].
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// The position itself, or `None` for [`Lsn::INVALID`].
    pub const fn valid(self) -> Option<Self> {
        if self.is_valid() { Some(self) } else { None }
    }

    /// The position `bytes` further on; `None` past [`Lsn::MAX`].
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The position `bytes` further back; `None` before zero.
    pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
        match self.0.checked_sub(bytes) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// How many bytes this position lies after `earlier`; zero where it does not lie after it.
    ///
    /// This is a lag as people mean it: a standby that is ahead of an old sample is not behind.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// `self - other` in bytes with its sign, as the operator `pg_lsn - pg_lsn` gives it.
    pub fn signed_difference(self, other: Self) -> i128 {
        i128::from(self.0) - i128::from(other.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = halves(self.0);
        formatter.pad(&format!("{high:X}/{low:X}"))
    }
}

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || LsnParseError {
            text: shortened(text),
        };
        let (high, low) = text.split_once('/').ok_or_else(error)?;
        let high = hexadecimal(high).ok_or_else(error)?;
        let low = hexadecimal(low).ok_or_else(error)?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Lsn;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a WAL position such as 0/3000028")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Lsn, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// A text that is not a WAL position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a WAL position")]
pub struct LsnParseError {
    text: String,
}

impl Diagnose for LsnParseError {
    fn hint(&self) -> Option<String> {
        Some(
            "write it as PostgreSQL prints it: two hexadecimal numbers with a slash between them, for example 0/3000028"
                .to_owned(),
        )
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

/// The upper and the lower 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "each half has 32 bits, and the other is meant to go"
)]
pub(crate) fn halves(number: u64) -> (u32, u32) {
    ((number >> 32) as u32, number as u32)
}

/// One to eight hexadecimal digits and nothing else; `from_str_radix` alone would take a sign.
pub(crate) fn hexadecimal(digits: &str) -> Option<u32> {
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits.len() > 8 || !all_digits {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

/// What an error message quotes of a text from outside: enough to recognise it.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    if text.chars().nth(LONGEST).is_none() {
        return text.to_owned();
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_that_pg_lsn_refuses_are_refused() {
        for text in [
            "",
            "/",
            "0/",
            "/0",
            "0",
            "0/0/0",
            " 0/0",
            "0/0 ",
            "+1/0",
            "0/-1",
            "123456789/0",
            "0/123456789",
            "G/0",
            "0x1/0",
        ] {
            let error = text.parse::<Lsn>().expect_err(text);
            assert!(error.hint().is_some());
            assert_eq!(error.outcome(), Outcome::Usage);
        }
    }

    #[test]
    fn padding_applies_to_the_whole_position() {
        assert_eq!(format!("[{:>12}]", Lsn::new(0x300_0028)), "[   0/3000028]");
    }

    #[test]
    fn a_position_ahead_of_the_sample_is_no_lag() {
        assert_eq!(Lsn::new(5).bytes_since(Lsn::new(9)), 0);
        assert_eq!(Lsn::new(5).signed_difference(Lsn::new(9)), -4);
        assert_eq!(Lsn::INVALID.signed_difference(Lsn::MAX), -i128::from(u64::MAX));
    }

    #[test]
    fn long_garbage_is_quoted_only_in_part() {
        let error = "x".repeat(10_000).parse::<Lsn>().expect_err("garbage");
        assert!(error.to_string().len() < 200);
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes: u64) {
            let lsn = Lsn::new(bytes);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
            prop_assert_eq!(lsn.to_string().to_lowercase().parse::<Lsn>(), Ok(lsn));
        }

        #[test]
        fn any_text_is_a_position_or_an_error(text: String) {
            if let Ok(lsn) = text.parse::<Lsn>() {
                prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
            }
        }

        #[test]
        fn addition_and_difference_agree(start: u64, bytes: u64) {
            if let Some(end) = Lsn::new(start).checked_add(bytes) {
                prop_assert_eq!(end.bytes_since(Lsn::new(start)), bytes);
                prop_assert_eq!(end.checked_sub(bytes), Some(Lsn::new(start)));
                prop_assert_eq!(end.signed_difference(Lsn::new(start)), i128::from(bytes));
            }
        }
    }
}
