//! Compression: which codec, written by many threads, read by everyone.
//!
//! [`Compressor`] takes bytes through [`std::io::Write`], compresses them on its own threads and writes the
//! result in order. Each codec gives one ordinary file of its format, as one gzip member, one zstd frame or
//! one lz4 frame, never a row of members or frames: a file of several members that is cut at a border looks
//! whole to every tool, one member that is cut does not. `gzip -d`, `zcat`, `zstd -d` and `lz4 -d` read them.
//!
//! [`Decompressor`] reads these and what the ordinary tools write (several members or frames too). It
//! decompresses ahead on a thread. The end of the input inside a member is
//! [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof), never a silent end; bytes after the last member are
//! [`InvalidData`](std::io::ErrorKind::InvalidData).
//!
//! # Memory
//!
//! With `n` workers (after the limit of [`Codec::workers`]) a compressor holds at most:
//!
//! | codec | blocks in flight | bound |
//! | --- | --- | --- |
//! | gzip | `n + 2` of 1 MiB, each with its output | `(n + 3) × 2.1 MiB`, and 0.4 MiB of tables per worker |
//! | lz4 | `n + 2` of 4 MiB, each with its output | `(n + 3) × 8.1 MiB` |
//! | zstd | libzstd's: about `n + 2` jobs of 4 MiB | under 130 MiB up to level 6, under 200 MiB above |
//! | none | nothing | nothing |
//!
//! A decompressor holds four chunks of 256 KiB and the codec's window: 32 KiB (gzip), up to 8 MiB (lz4), up
//! to 128 MiB (zstd, as `zstd -d` allows by default; 8 MiB for what pgmahout wrote).

mod blocks;
mod compressor;
mod decompressor;
mod gzip;
mod lz4;
mod read_ahead;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

pub use compressor::Compressor;
pub use decompressor::Decompressor;
pub use read_ahead::ReadAhead;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// gzip (RFC 1952), level 1 to 9.
    Gzip(u8),
    /// Zstandard (RFC 8878), level 1 to 19.
    Zstd(u8),
    /// The LZ4 frame format, version 1.6.
    Lz4,
    /// Bytes as they are.
    None,
}

/// The level that `gzip` alone means.
pub const DEFAULT_GZIP_LEVEL: u8 = 6;
/// The level that `zstd` alone means.
pub const DEFAULT_ZSTD_LEVEL: u8 = 3;

impl Default for Codec {
    /// gzip at level 6: what every machine can read.
    fn default() -> Self {
        Self::Gzip(DEFAULT_GZIP_LEVEL)
    }
}

impl Codec {
    /// How many first bytes [`Codec::detect`] needs to be sure.
    pub const DETECT_LENGTH: usize = 4;

    /// gzip's default level, 6.
    pub const GZIP: Self = Self::Gzip(DEFAULT_GZIP_LEVEL);
    /// zstd's default level, 3.
    pub const ZSTD: Self = Self::Zstd(DEFAULT_ZSTD_LEVEL);

    /// The ending of a file's name, without the dot; empty for [`Codec::None`].
    pub fn extension(self) -> &'static str {
        match self {
            Self::Gzip(_) => "gz",
            Self::Zstd(_) => "zst",
            Self::Lz4 => "lz4",
            Self::None => "",
        }
    }

    /// The codec's name without its level, as manifests record it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip(_) => "gzip",
            Self::Zstd(_) => "zstd",
            Self::Lz4 => "lz4",
            Self::None => "none",
        }
    }

    /// The level, for codecs that have levels.
    pub fn level(self) -> Option<u8> {
        match self {
            Self::Gzip(level) | Self::Zstd(level) => Some(level),
            Self::Lz4 | Self::None => None,
        }
    }

    /// Which codec wrote a file that begins with `first_bytes`, by the formats' magic numbers: gzip (RFC 1952
    /// section 2.3.1), zstd (RFC 8878 section 3.1), lz4 frame. Levels are the defaults, since a file does not
    /// say its level. Anything else is [`Codec::None`].
    pub fn detect(first_bytes: &[u8]) -> Self {
        match first_bytes {
            [0x1f, 0x8b, ..] => Self::GZIP,
            // A zstd frame, or a skippable frame as `pzstd` puts first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::ZSTD,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            _ => Self::None,
        }
    }

    /// How many compressing threads are really used when `threads` are asked for (0: as many as the machine
    /// has processors). Limited so that memory stays bounded on large machines; higher zstd levels need more
    /// memory per thread.
    pub fn workers(self, threads: usize) -> usize {
        let asked = if threads == 0 {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        } else {
            threads
        };
        let limit = match self {
            Self::Gzip(_) => 32,
            Self::Lz4 | Self::Zstd(0..=6) => 8,
            Self::Zstd(7..=9) => 4,
            Self::Zstd(_) => 2,
            Self::None => 1,
        };
        asked.clamp(1, limit)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level() {
            Some(level) => write!(formatter, "{}:{level}", self.name()),
            None => formatter.write_str(self.name()),
        }
    }
}

/// Why the text of a codec was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseCodecError {
    /// No codec of this name.
    #[error("unknown compression `{given}`")]
    UnknownName {
        /// What was given.
        given: String,
    },
    /// The codec has levels, but not this one.
    #[error("`{given}` is not a compression level of {codec}")]
    Level {
        /// The codec's name.
        codec: &'static str,
        /// What was given as level.
        given: String,
        /// The highest level.
        highest: u8,
    },
    /// The codec has no levels.
    #[error("{codec} has no compression levels, but `:{given}` was given")]
    NoLevels {
        /// The codec's name.
        codec: &'static str,
        /// What was given as level.
        given: String,
    },
}

impl Diagnose for ParseCodecError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownName { .. } => {
                "use one of gzip[:1-9], zstd[:1-19], lz4, none; for example zstd:3".to_owned()
            }
            Self::Level { codec, highest, .. } => {
                format!("use {codec}:1 to {codec}:{highest}, or only {codec}")
            }
            Self::NoLevels { codec, .. } => format!("use only {codec}"),
        })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

impl FromStr for Codec {
    type Err = ParseCodecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let level_up_to = |codec: &'static str, default: u8, highest: u8| match level {
            None => Ok(default),
            Some(given) => match given.parse::<u8>() {
                Ok(level) if (1..=highest).contains(&level) && !given.starts_with('+') => Ok(level),
                _ => Err(ParseCodecError::Level {
                    codec,
                    given: given.to_owned(),
                    highest,
                }),
            },
        };
        let without_level = |codec: Self| match level {
            None => Ok(codec),
            Some(given) => Err(ParseCodecError::NoLevels {
                codec: codec.name(),
                given: given.to_owned(),
            }),
        };
        match name {
            "gzip" => Ok(Self::Gzip(level_up_to("gzip", DEFAULT_GZIP_LEVEL, 9)?)),
            "zstd" => Ok(Self::Zstd(level_up_to("zstd", DEFAULT_ZSTD_LEVEL, 19)?)),
            "lz4" => without_level(Self::Lz4),
            "none" => without_level(Self::None),
            _ => Err(ParseCodecError::UnknownName {
                given: text.to_owned(),
            }),
        }
    }
}
