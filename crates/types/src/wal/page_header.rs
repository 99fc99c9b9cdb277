//! The header of a segment's first page: whose WAL it is.
//!
//! It is a C structure, `XLogLongPageHeaderData` of `src/include/access/xlog_internal.h`, little-endian with
//! 64-bit alignment, the same in all supported versions:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | `xlp_magic`: belongs to one major version |
//! | 2 | 2 | `xlp_info`: flags |
//! | 4 | 4 | `xlp_tli`: the timeline |
//! | 8 | 8 | `xlp_pageaddr`: the position of the page |
//! | 16 | 4 | `xlp_rem_len`: bytes of a record that began before the page |
//! | 24 | 8 | `xlp_sysid`: the system identifier |
//! | 32 | 4 | `xlp_seg_size`: bytes in a segment |
//! | 36 | 4 | `xlp_xlog_blcksz`: bytes in a page |

use super::{SegmentName, SegmentSize};
use crate::diagnostic::Diagnose;
use crate::lsn::Lsn;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;

/// `XLP_LONG_HEADER`: the page is the first of its segment.
const LONG_HEADER: u16 = 2;

/// `XLP_ALL_FLAGS`: the flags that there are.
const ALL_FLAGS: u16 = 15;

/// What the first page of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WalPageHeader {
    /// The magic number, which belongs to one major version: see [`WalPageHeader::major`].
    pub magic: u16,
    /// The timeline that wrote the page. In a segment in which a timeline began it is an older one than in
    /// the name: the beginning was copied.
    pub timeline: TimelineId,
    /// The position of the page.
    pub address: Lsn,
    /// Bytes of a record that began in the segment before and goes on here.
    pub remaining: u32,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The size of the segments.
    pub segment_size: SegmentSize,
    /// Bytes in a page of WAL.
    pub block_size: u32,
}

impl WalPageHeader {
    /// Bytes of the header: as many are needed from the beginning of a segment.
    pub const LENGTH: usize = 40;

    /// Reads the beginning of a segment.
    ///
    /// # Errors
    /// When there are too few bytes, the version is unknown, or a value is impossible.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalPageError> {
        let Some(header) = bytes.first_chunk::<{ Self::LENGTH }>() else {
            return Err(WalPageError::Truncated { length: bytes.len() });
        };
        let half = |offset: usize| u16::from_le_bytes([header[offset], header[offset + 1]]);
        let word = |offset: usize| u32::from(half(offset)) | u32::from(half(offset + 2)) << 16;
        let long = |offset: usize| u64::from(word(offset)) | u64::from(word(offset + 4)) << 32;

        let magic = half(0);
        if header.iter().all(|&byte| byte == 0) {
            return Err(WalPageError::Zero);
        }
        if major_of(magic).is_none() {
            return Err(WalPageError::Magic { magic });
        }
        let flags = half(2);
        if flags & LONG_HEADER == 0 || flags & !ALL_FLAGS != 0 {
            return Err(WalPageError::Value {
                field: "xlp_info",
                value: u64::from(flags),
            });
        }
        let impossible = |field, value| WalPageError::Value { field, value };
        let timeline = word(4);
        let timeline = TimelineId::new(timeline).ok_or_else(|| impossible("xlp_tli", u64::from(timeline)))?;
        let segment_size = word(32);
        let segment_size = SegmentSize::new(u64::from(segment_size))
            .map_err(|_| impossible("xlp_seg_size", u64::from(segment_size)))?;
        let block_size = word(36);
        // `configure --with-wal-blocksize` takes 1 to 64 kB.
        if !block_size.is_power_of_two() || !(1 << 10..=64 << 10).contains(&block_size) {
            return Err(impossible("xlp_xlog_blcksz", u64::from(block_size)));
        }
        let address = Lsn::new(long(8));
        if segment_size.offset_of(address) != 0 {
            return Err(impossible("xlp_pageaddr", address.as_u64()));
        }
        Ok(Self {
            magic,
            timeline,
            address,
            remaining: word(16),
            system_identifier: SystemIdentifier::new(long(24)),
            segment_size,
            block_size,
        })
    }

    /// The major version that writes pages with this magic number.
    pub fn major(&self) -> Option<u32> {
        major_of(self.magic)
    }

    /// Whether the segment of that name can begin so: with its position, and on its timeline or an older
    /// one.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_name(&self, name: SegmentName) -> Result<(), WalPageError> {
        let start = name.start(self.segment_size);
        if start == Ok(self.address) && self.timeline <= name.timeline() {
            return Ok(());
        }
        Err(WalPageError::OtherSegment {
            name,
            written: SegmentName::containing(self.timeline, self.address, self.segment_size),
        })
    }
}

/// The major version of a magic number (`XLOG_PAGE_MAGIC`), which never changes after release.
fn major_of(magic: u16) -> Option<u32> {
    match magic {
        0xD10D => Some(14),
        0xD110 => Some(15),
        0xD113 => Some(16),
        0xD116 => Some(17),
        0xD118 => Some(18),
        _ => None,
    }
}

/// Why bytes are not the beginning of a segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalPageError {
    /// There are too few of them.
    #[error(
        "a WAL segment begins with {} bytes of header, but there are only {length} bytes",
        WalPageHeader::LENGTH
    )]
    Truncated {
        /// How many there are.
        length: usize,
    },
    /// They are zero: a segment that was made, but not written.
    #[error("the WAL segment is empty: its first page is all zero")]
    Zero,
    /// The version is unknown.
    #[error("the WAL segment begins with the magic number {magic:04X}, which no supported PostgreSQL writes")]
    Magic {
        /// The number.
        magic: u16,
    },
    /// A value that no server writes.
    #[error("the WAL segment has {value} as {field} in its first page, which is impossible")]
    Value {
        /// The field's name in PostgreSQL's source.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// It is another segment than its name says.
    #[error("the file {name} holds the WAL segment {written}")]
    OtherSegment {
        /// The file's name.
        name: SegmentName,
        /// The name that it should have.
        written: SegmentName,
    },
}

impl Diagnose for WalPageError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Magic { .. } => {
                "D10D, D110, D113, D116 and D118 are known, of PostgreSQL 14 to 18; is it a WAL segment at all?".to_owned()
            }
            Self::OtherSegment { .. } | Self::Zero => {
                "a recycled segment that was not written yet, or a renamed file: only PostgreSQL itself should call `pgmahout wal push`"
                    .to_owned()
            }
            Self::Truncated { .. } | Self::Value { .. } => {
                "look at it with `pg_waldump FILE`; a segment that PostgreSQL cannot read is worth nothing in an archive".to_owned()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The beginning of segment 3 of timeline 1 of a cluster.
    fn real(magic: u16) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..2].copy_from_slice(&magic.to_le_bytes());
        bytes[2] = 6;
        bytes[4] = 1;
        bytes[8..16].copy_from_slice(&0x300_0000_u64.to_le_bytes());
        bytes[24..32].copy_from_slice(&7_383_921_345_678_901_234_u64.to_le_bytes());
        bytes[32..36].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        bytes[36..].copy_from_slice(&8192_u32.to_le_bytes());
        bytes
    }

    fn name(text: &str) -> SegmentName {
        text.parse().expect("a name")
    }

    #[test]
    fn the_magic_number_says_the_major_version() {
        for (magic, major) in [
            (0xD10D, 14),
            (0xD110, 15),
            (0xD113, 16),
            (0xD116, 17),
            (0xD118, 18),
        ] {
            let header = WalPageHeader::parse(&real(magic)).expect("a header");
            assert_eq!(header.major(), Some(major));
            assert_eq!(header.address, Lsn::new(0x300_0000));
            assert_eq!(header.timeline, TimelineId::FIRST);
            assert_eq!(header.segment_size, SegmentSize::DEFAULT);
            assert_eq!(header.system_identifier.to_string(), "7383921345678901234");
        }
        for magic in [0xD10C, 0xD111, 0xD119, 0x10D1] {
            assert_eq!(
                WalPageHeader::parse(&real(magic)),
                Err(WalPageError::Magic { magic })
            );
        }
    }

    #[test]
    fn a_segment_under_another_name_is_noticed() {
        let header = WalPageHeader::parse(&real(0xD110)).expect("a header");
        assert_eq!(header.check_name(name("000000010000000000000003")), Ok(()));
        // The beginning of the first segment of timeline 2 was copied from timeline 1.
        assert_eq!(header.check_name(name("000000020000000000000003")), Ok(()));
        let error = header
            .check_name(name("000000010000000000000004"))
            .expect_err("recycled");
        assert_eq!(
            error.to_string(),
            "the file 000000010000000000000004 holds the WAL segment 000000010000000000000003"
        );
        let mut newer = real(0xD110);
        newer[4] = 2;
        let header = WalPageHeader::parse(&newer).expect("a header");
        assert!(header.check_name(name("000000010000000000000003")).is_err());
    }

    #[test]
    fn impossible_values_are_refused() {
        assert_eq!(WalPageHeader::parse(&[0; 8192]), Err(WalPageError::Zero));
        assert_eq!(
            WalPageHeader::parse(&real(0xD110)[..39]),
            Err(WalPageError::Truncated { length: 39 })
        );
        for (offset, value) in [(2, 4), (3, 1), (4, 0), (8, 1), (32, 1), (37, 0), (38, 2)] {
            let mut bytes = real(0xD118);
            bytes[offset] = value;
            let error = WalPageHeader::parse(&bytes).expect_err("impossible");
            assert!(matches!(error, WalPageError::Value { .. }), "{offset}: {error}");
            assert!(error.hint().is_some());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_an_error(bytes: Vec<u8>, changes in prop::collection::vec((0..40_usize, any::<u8>()), 0..6)) {
            let _ = WalPageHeader::parse(&bytes);
            let mut bytes = real(0xD116);
            for (position, byte) in changes {
                bytes[position] = byte;
            }
            if let Ok(header) = WalPageHeader::parse(&bytes) {
                let own = SegmentName::containing(header.timeline, header.address, header.segment_size);
                prop_assert_eq!(header.check_name(own), Ok(()));
            }
        }
    }
}
