//! Names and fingerprints: of packs, pages, backups and contents.
//!
//! Nothing here draws random numbers or looks at a clock: both come from the caller. In serde all of them
//! are their text.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::diagnostic::{Diagnose, Outcome};
use crate::lsn::shortened;

/// Tells files apart in a [`PackIndex`](super::PackIndex) without naming them: a hash of the path that is
/// keyed with the repository's secret.
pub type FileId = u64;

/// A type that is so many bytes, with lower-case hexadecimal digits as its text.
macro_rules! hexadecimal_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// Its size in bytes; its text has twice as many digits.
            pub const LENGTH: usize = $bytes;

            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut digits = [0; $bytes * 2];
                formatter.pad(hexadecimal_text(&self.0, &mut digits))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, IdParseError> {
                let mut bytes = [0; $bytes];
                if hexadecimal_bytes(text, &mut bytes) {
                    Ok(Self(bytes))
                } else {
                    Err(IdParseError { kind: $kind, text: shortened(text) })
                }
            }
        }

        serde_as_text!($name, $kind);
    };
}

/// Serialisation of a type whose text form is all that it says.
macro_rules! serde_as_text {
    ($type:ty, $expected:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                        formatter.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

hexadecimal_id!(
    /// The name of a pack: random, never used twice.
    PackId, 16, "the id of a pack (32 hexadecimal digits)"
);
hexadecimal_id!(
    /// What an object's keys are derived with: drawn anew at every attempt to write it.
    Salt, 32, "a salt (64 hexadecimal digits)"
);
hexadecimal_id!(
    /// What a writer puts into what it writes, to know it again when the answer was lost.
    Nonce, 16, "a nonce (32 hexadecimal digits)"
);
hexadecimal_id!(
    /// The BLAKE3 digest of some content.
    Digest, 32, "a BLAKE3 digest (64 hexadecimal digits)"
);

impl Digest {
    /// The digest of these bytes.
    pub fn of(content: &[u8]) -> Self {
        Self(blake3::hash(content).into())
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

/// The hash of a block: the first eight bytes, read as a little-endian number, of BLAKE3 keyed with the
/// secret hash key of the repository. Its text has sixteen hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash(u64);

impl PageHash {
    /// From the number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The hash of the bytes of a block under the repository's hash key.
    pub fn of(key: &[u8; 32], block: &[u8]) -> Self {
        Self(first_number(blake3::keyed_hash(key, block)))
    }
}

impl fmt::Display for PageHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 16];
        formatter.pad(hexadecimal_text(&self.0.to_be_bytes(), &mut digits))
    }
}

impl FromStr for PageHash {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        let mut bytes = [0; 8];
        if hexadecimal_bytes(text, &mut bytes) {
            Ok(Self(u64::from_be_bytes(bytes)))
        } else {
            Err(IdParseError {
                kind: "the hash of a page (16 hexadecimal digits)",
                text: shortened(text),
            })
        }
    }
}

serde_as_text!(PageHash, "the hash of a page (16 hexadecimal digits)");

/// What a file system said of a file, as a hash: the first eight bytes, read as a little-endian number, of the
/// BLAKE3 hash of device, inode, size and the times of the last change of its content and of itself (`st_dev`,
/// `st_ino`, `st_size`, `st_mtim` and `st_ctim` of `stat(2)`). Never zero. Its text has sixteen hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileStamp(NonZeroU64);

impl FileStamp {
    /// From the number; zero is taken for one.
    pub const fn new(number: u64) -> Self {
        match NonZeroU64::new(number) {
            Some(number) => Self(number),
            None => Self(NonZeroU64::MIN),
        }
    }

    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::new(first_number(blake3::hash(bytes)))
    }
}

impl fmt::Display for FileStamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        PageHash(self.0.get()).fmt(formatter)
    }
}

impl FromStr for FileStamp {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        let mut bytes = [0; 8];
        if hexadecimal_bytes(text, &mut bytes) {
            Ok(Self::new(u64::from_be_bytes(bytes)))
        } else {
            Err(IdParseError {
                kind: "the stamp of a file (16 hexadecimal digits)",
                text: shortened(text),
            })
        }
    }
}

serde_as_text!(FileStamp, "the stamp of a file (16 hexadecimal digits)");

/// The name of a backup: when it started, in UTC, and four random digits, for example
/// `20261121T104500Z-3f9a`. Labels are ordered by time, as their texts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    /// Seconds since 1970, never negative.
    start: i64,
    suffix: u16,
}

impl Label {
    /// Characters of its text.
    pub const LENGTH: usize = 21;

    /// The label of a backup that starts at that time; the caller draws the suffix. Fractions of a second
    /// are dropped, and a time before 1970 counts as 1970.
    pub fn new(start: Timestamp, suffix: u16) -> Self {
        Self {
            start: start.as_second().max(0),
            suffix,
        }
    }

    /// When the backup started, to the second.
    pub fn start(self) -> Timestamp {
        Timestamp::from_second(self.start).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The random part.
    pub fn suffix(self) -> u16 {
        self.suffix
    }

    fn parse(text: &str) -> Option<Self> {
        let (time, suffix) = text.split_at_checked(16)?;
        let mut random = [0; 2];
        if !hexadecimal_bytes(suffix.strip_prefix('-')?, &mut random) {
            return None;
        }
        // No signs, blanks or short numbers: a label has one text.
        let digits = |range: std::ops::Range<usize>| {
            let digits = time.get(range)?;
            let all = digits.bytes().all(|byte| byte.is_ascii_digit());
            if all { digits.parse::<i16>().ok() } else { None }
        };
        let small = |range| i8::try_from(digits(range)?).ok();
        if time.get(8..9)? != "T" || time.get(15..)? != "Z" {
            return None;
        }
        let start = jiff::civil::DateTime::new(
            digits(0..4)?,
            small(4..6)?,
            small(6..8)?,
            small(9..11)?,
            small(11..13)?,
            small(13..15)?,
            0,
        )
        .ok()?
        .to_zoned(TimeZone::UTC)
        .ok()?
        .timestamp()
        .as_second();
        (start >= 0).then_some(Self {
            start,
            suffix: u16::from_be_bytes(random),
        })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = TimeZone::UTC.to_datetime(self.start());
        formatter.pad(&format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}Z-{:04x}",
            start.year(),
            start.month(),
            start.day(),
            start.hour(),
            start.minute(),
            start.second(),
            self.suffix
        ))
    }
}

impl FromStr for Label {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        Self::parse(text).ok_or_else(|| IdParseError {
            kind: "the label of a backup (such as 20261121T104500Z-3f9a)",
            text: shortened(text),
        })
    }
}

serde_as_text!(Label, "the label of a backup such as 20261121T104500Z-3f9a");

/// A text that is not such a name or number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {kind}")]
pub struct IdParseError {
    pub(super) kind: &'static str,
    pub(super) text: String,
}

impl Diagnose for IdParseError {
    fn hint(&self) -> Option<String> {
        Some(
            "`pgmahout backup list` shows the labels, `pgmahout backup show LABEL` what a backup uses"
                .to_owned(),
        )
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

/// The first eight bytes of a digest, as a little-endian number.
pub(super) fn first_number(hash: blake3::Hash) -> u64 {
    let first = hash.as_bytes().first_chunk::<8>().copied();
    u64::from_le_bytes(first.unwrap_or_default())
}

/// Writes the digits of `bytes` into `digits`, which has room for twice as many.
pub(super) fn hexadecimal_text<'a>(bytes: &[u8], digits: &'a mut [u8]) -> &'a str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (&byte, pair) in bytes.iter().zip(digits.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    std::str::from_utf8(digits).unwrap_or_default()
}

/// Reads exactly as many lower-case digits as `bytes` has room for; false where `text` is something else.
pub(super) fn hexadecimal_bytes(text: &str, bytes: &mut [u8]) -> bool {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != bytes.len() * 2 {
        return false;
    }
    for (pair, byte) in text.as_bytes().chunks_exact(2).zip(bytes) {
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
            return false;
        };
        *byte = high << 4 | low;
    }
    true
}

pub(super) use {hexadecimal_id, serde_as_text};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label(text: &str) -> Label {
        text.parse().expect("a label")
    }

    #[test]
    fn a_label_says_when_the_backup_started() {
        let label = label("20261121T104500Z-3f9a");
        assert_eq!(label.start().to_string(), "2026-11-21T10:45:00Z");
        assert_eq!(label.suffix(), 0x3f9a);
        assert_eq!(Label::new(label.start(), 0x3f9a), label);
        assert_eq!(format!("[{label:>23}]"), "[  20261121T104500Z-3f9a]");
    }

    #[test]
    fn labels_are_ordered_by_time_and_so_are_their_texts() {
        let texts = [
            "19700101T000000Z-ffff",
            "20261121T104500Z-3f9a",
            "20261121T104500Z-3f9b",
            "20261121T104501Z-0000",
            "20270101T000000Z-0000",
            "99991230T215959Z-0000",
        ];
        for pair in texts.windows(2) {
            assert!(label(pair[0]) < label(pair[1]) && pair[0] < pair[1], "{pair:?}");
        }
    }

    #[test]
    fn what_is_not_exactly_a_label_is_refused() {
        for text in [
            "",
            "20261121T104500Z",
            "20261121T104500Z-",
            "20261121T104500Z-3F9A",
            "20261121T104500Z-3f9a ",
            "20261121T104500Z-3f9a1",
            "20261121t104500Z-3f9a",
            "20261321T104500Z-3f9a",
            "20260230T104500Z-3f9a",
            "20261121T246000Z-3f9a",
            "20261121T104560Z-3f9a",
            "19691231T235959Z-0000",
            "+0261121T104500Z-3f9a",
            "2026112ßT10450Z-3f9a",
            "99991231T235959Z-3f9a",
        ] {
            let error = text.parse::<Label>().expect_err(text);
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn ids_are_lower_case_digits_of_their_length() {
        let id = PackId::from_bytes([0xab; 16]);
        assert_eq!(id.to_string(), "ab".repeat(16));
        for text in ["", "ab", &"AB".repeat(16), &"ab".repeat(17), &"ag".repeat(16)] {
            assert!(text.parse::<PackId>().is_err(), "{text}");
        }
        assert_eq!(PageHash::new(0x1f).to_string(), "000000000000001f");
    }

    #[test]
    fn the_hash_of_a_page_is_the_first_eight_bytes_of_the_keyed_digest() {
        let digest = blake3::keyed_hash(&[7; 32], b"page");
        let first = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight"));
        assert_eq!(PageHash::of(&[7; 32], b"page"), PageHash::new(first));
        assert_ne!(PageHash::of(&[8; 32], b"page"), PageHash::new(first));
    }

    proptest! {
        #[test]
        fn texts_round_trip(id: [u8; 16], salt: [u8; 32], hash: u64, second in 0..253_402_207_200_i64, suffix: u16) {
            let id = PackId::from_bytes(id);
            prop_assert_eq!(id.to_string().parse::<PackId>(), Ok(id));
            let salt = Salt::from_bytes(salt);
            prop_assert_eq!(salt.to_string().parse::<Salt>(), Ok(salt));
            let hash = PageHash::new(hash);
            prop_assert_eq!(hash.to_string().parse::<PageHash>(), Ok(hash));
            let label = Label::new(Timestamp::from_second(second).expect("in range"), suffix);
            prop_assert_eq!(label.to_string().len(), Label::LENGTH);
            prop_assert_eq!(label.to_string().parse::<Label>(), Ok(label));
            let json = serde_json::to_string(&label).expect("text");
            prop_assert_eq!(serde_json::from_str::<Label>(&json).expect("our own"), label);
        }

        #[test]
        fn any_text_is_a_label_or_an_error(text in "[0-9]{8}T[0-9]{6}Z-[0-9a-f]{4}|\\PC{0,30}") {
            if let Ok(label) = text.parse::<Label>() {
                prop_assert_eq!(label.to_string(), text);
            }
        }
    }
}
