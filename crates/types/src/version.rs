//! PostgreSQL's version numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The version of a server or of a client program, as `server_version_num` gives it.
///
/// Since PostgreSQL 10 the number is `major * 10000 + minor` (PostgreSQL documentation, section
/// "libpq: Connection Status Functions", `PQserverVersion`). In serde it is that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerVersion(u32);

impl ServerVersion {
    /// The oldest major version that commands which write accept.
    pub const OLDEST_MAJOR: u32 = 15;
    /// The newest major version that commands which write accept.
    pub const NEWEST_MAJOR: u32 = 18;

    /// From `server_version_num`, for example 150018 for 15.18.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// From the text of `server_version` or of a program's `--version`: `15.18`,
    /// `15.18 (Debian 15.18-0+deb12u1)`, `18beta1`, `pg_dump (PostgreSQL) 18.6`.
    ///
    /// The first run of digits that starts a word counts. `None` where there is none.
    pub fn parse(text: &str) -> Option<Self> {
        let word = text
            .split_whitespace()
            .find(|word| word.starts_with(|character: char| character.is_ascii_digit()))?;
        let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
        let major = digits(word);
        let minor = word[major.len()..]
            .strip_prefix('.')
            .map(digits)
            .unwrap_or_default();
        let major: u32 = major.parse().ok()?;
        let minor: u32 = if minor.is_empty() { 0 } else { minor.parse().ok()? };
        Some(Self(major.checked_mul(10_000)?.checked_add(minor)?))
    }

    /// The number as PostgreSQL gives it.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The major version, for example 15.
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// The minor version, for example 18 of 15.18.
    pub fn minor(self) -> u32 {
        self.0 % 10_000
    }

    /// Whether commands that write accept this major version.
    pub fn is_supported(self) -> bool {
        (Self::OLDEST_MAJOR..=Self::NEWEST_MAJOR).contains(&self.major())
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major(), self.minor())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_and_programs_print_them() {
        for (text, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("pg_dump (PostgreSQL) 18.6", 180_006),
            ("18beta1", 180_000),
            ("16devel", 160_000),
        ] {
            assert_eq!(
                ServerVersion::parse(text),
                Some(ServerVersion::from_number(number)),
                "{text}"
            );
        }
        assert_eq!(ServerVersion::parse("psql"), None);
        assert_eq!(ServerVersion::parse("99999999999.1"), None);
    }
}
