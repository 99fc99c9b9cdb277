//! The number that tells clusters apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::diagnostic::{Diagnose, Outcome};
use crate::lsn::shortened;

/// The number that initdb gives a cluster and that all of its standbys and base backups share.
///
/// Its text is decimal, as `IDENTIFY_SYSTEM` and pg_controldata give it. In serde it is that text, because
/// programs that read JSON numbers as floating point would change its last digits; reading takes a number
/// too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(u64);

impl SystemIdentifier {
    /// From the number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// From the SQL type `bigint`, as `pg_control_system()` gives it: its bits, taken without the sign.
    pub const fn from_bigint(number: i64) -> Self {
        Self(number.cast_unsigned())
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// When initdb ran, in seconds since 1970: PostgreSQL puts the time of day into the upper 32 bits
    /// (`BootStrapXLOG` in `src/backend/access/transam/xlog.c`). Only a hint for people: pg_resetwal may
    /// have set any other number.
    pub const fn created_at_unix_seconds(self) -> u64 {
        self.0 >> 32
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

impl FromStr for SystemIdentifier {
    type Err = SystemIdentifierParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number.map(Self).ok_or_else(|| SystemIdentifierParseError {
            text: shortened(text),
        })
    }
}

impl Serialize for SystemIdentifier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemIdentifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = SystemIdentifier;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a system identifier such as \"7383921345678901234\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SystemIdentifier, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<SystemIdentifier, E> {
                Ok(SystemIdentifier(number))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A text that is not a system identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a system identifier")]
pub struct SystemIdentifierParseError {
    text: String,
}

impl Diagnose for SystemIdentifierParseError {
    fn hint(&self) -> Option<String> {
        Some(
            "it is the decimal number that pg_controldata prints as \"Database system identifier\""
                .to_owned(),
        )
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
    fn garbage_is_not_an_identifier() {
        for text in ["", "-1", "+1", " 1", "18446744073709551616", "abc"] {
            assert!(text.parse::<SystemIdentifier>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_negative_bigint_is_the_same_identifier() {
        assert_eq!(
            SystemIdentifier::from_bigint(-1).to_string(),
            "18446744073709551615"
        );
    }

    proptest! {
        #[test]
        fn text_round_trips(number: u64) {
            let identifier = SystemIdentifier::new(number);
            prop_assert_eq!(identifier.to_string().parse::<SystemIdentifier>(), Ok(identifier));
        }
    }
}
