//! What is in a pack, in its own last frame.
//!
//! A backup needs no index: its manifest and its page maps say where everything is. The index is for packs
//! that no manifest names, because the run that wrote them was interrupted: the next one finds there which
//! blocks it need not store again.
//!
//! The bytes, version 1. Numbers are variable unless their bits are given: see the `binary` module.
//!
//! | part | content |
//! |---|---|
//! | magic | `pidx` |
//! | version | u8, 1 |
//! | kind | u8: 0 blocks of files, 1 page maps |
//! | run | when the run that wrote it started, in seconds since 1970, then u16 little-endian: its label |
//! | frames | their number; then for each: index near the next, offset near the end of the frame before it, stored, raw near that of the frame before it, the number of its runs |
//! | runs | for each frame, for each run: file u64 little-endian, first block, offset near the end of the run before it in the frame, the number of hashes |
//! | hashes | for each run u64 little-endian each |

use jiff::Timestamp;

use super::BLOCK_SIZE;
use super::binary::{DecodeError, Reader, Writer};
use super::frame::FrameLocation;
use super::ids::{FileId, Label, PageHash};
use super::manifest::PackKind;

const VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"pidx";

/// What is in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    /// What its frames hold.
    pub kind: PackKind,
    /// The backup that wrote it.
    pub run: Label,
    /// Its frames but the last, which is this index.
    pub frames: Vec<IndexedFrame>,
}

/// What is in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedFrame {
    /// Where the frame is.
    pub location: FrameLocation,
    /// What is in it, in the order of its content.
    pub runs: Vec<IndexedRun>,
}

/// Blocks of a file that lie in a frame one behind the other; or a page map of a file, without hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedRun {
    /// The file.
    pub file: FileId,
    /// The first of the blocks, counted from the beginning of the file.
    pub first: u32,
    /// Where it begins, in bytes of the frame's raw content.
    pub offset: u32,
    /// The hashes of the blocks.
    pub hashes: Vec<PageHash>,
}

impl PackIndex {
    /// The index of a pack with nothing in it yet.
    pub fn new(kind: PackKind, run: Label) -> Self {
        Self {
            kind,
            run,
            frames: Vec::new(),
        }
    }

    /// The index as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let runs = || self.frames.iter().flat_map(|frame| &frame.runs);
        let hashes: usize = runs().map(|run| run.hashes.len()).sum();
        let room = 32 + self.frames.len() * 12 + runs().count() * 16 + hashes * 8;
        let mut writer = Writer::begin(MAGIC, VERSION, room);
        writer.bytes(&[match self.kind {
            PackKind::Data => 0,
            PackKind::Map => 1,
        }]);
        writer.variable(self.run.start().as_second().unsigned_abs());
        writer.bytes(&self.run.suffix().to_le_bytes());
        writer.count(self.frames.len());
        let mut expected = Expected::default();
        for IndexedFrame { location, runs } in &self.frames {
            writer.near(u64::from(location.index), u64::from(expected.index));
            writer.near(location.offset, expected.offset);
            writer.variable(u64::from(location.stored));
            writer.near(u64::from(location.raw), u64::from(expected.raw));
            writer.count(runs.len());
            expected = Expected::after(location);
        }
        for frame in &self.frames {
            let mut end = 0;
            for run in &frame.runs {
                writer.bytes(&run.file.to_le_bytes());
                writer.variable(u64::from(run.first));
                writer.near(u64::from(run.offset), end);
                writer.variable(u64::from(length_of(run)));
                end = u64::from(end_of(run.offset, length_of(run)));
            }
        }
        for hash in runs().flat_map(|run| &run.hashes) {
            writer.bytes(&hash.get().to_le_bytes());
        }
        writer.0
    }

    /// Reads what [`PackIndex::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are something else, of an unknown version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::begin("index of a pack", bytes, MAGIC, VERSION)?;
        let kind = match reader.byte()? {
            0 => PackKind::Data,
            1 => PackKind::Map,
            _ => return Err(reader.damaged("the kind of its content is unknown")),
        };
        let start = i64::try_from(reader.variable()?).ok();
        let start = start.and_then(|second| Timestamp::from_second(second).ok());
        let start = start.ok_or_else(|| reader.damaged("a time in it is out of range"))?;
        let run = Label::new(start, u16::from_le_bytes(reader.array()?));

        let count = reader.count(5)?;
        let mut located = Vec::with_capacity(count);
        let mut expected = Expected::default();
        for _ in 0..count {
            let location = FrameLocation {
                index: reader.near_u32(expected.index)?,
                offset: reader.near(expected.offset)?,
                stored: reader.variable_u32()?,
                raw: reader.near_u32(expected.raw)?,
            };
            if !location.is_possible() {
                return Err(reader.damaged("a frame is too long or too far away"));
            }
            expected = Expected::after(&location);
            located.push((location, reader.count(RUN)?));
        }
        let mut frames = Vec::with_capacity(count);
        let mut lengths = Vec::new();
        for (location, count) in located {
            let mut runs = Vec::with_capacity(count.min(reader.left() / RUN));
            let mut end = 0;
            for _ in 0..count {
                let file = FileId::from_le_bytes(reader.array()?);
                let first = reader.variable_u32()?;
                let offset = reader.near_u32(end)?;
                let length = reader.variable_u32()?;
                // The last block may be short, but has one byte at least.
                let least =
                    u64::from(length.saturating_sub(1)) * u64::from(BLOCK_SIZE) + u64::from(length.min(1));
                if u64::from(offset) + least > u64::from(location.raw) || first.checked_add(length).is_none()
                {
                    return Err(reader.damaged("a run of blocks ends behind its frame"));
                }
                end = end_of(offset, length);
                lengths.push(length);
                runs.push(IndexedRun {
                    file,
                    first,
                    offset,
                    hashes: Vec::new(),
                });
            }
            frames.push(IndexedFrame { location, runs });
        }
        let runs = frames.iter_mut().flat_map(|frame| &mut frame.runs);
        for (run, length) in runs.zip(lengths) {
            let bytes = usize::try_from(length).unwrap_or(usize::MAX).saturating_mul(8);
            run.hashes = reader
                .take(bytes)?
                .chunks_exact(8)
                .map(|chunk| PageHash::new(u64::from_le_bytes(chunk.try_into().unwrap_or_default())))
                .collect();
        }
        reader.finish()?;
        Ok(Self { kind, run, frames })
    }
}

/// The fewest bytes that a run takes.
const RUN: usize = 11;

/// What the next frame would be if it followed the one before and were as long.
#[derive(Default)]
struct Expected {
    index: u32,
    offset: u64,
    raw: u32,
}

impl Expected {
    fn after(location: &FrameLocation) -> Self {
        Self {
            index: location.index.saturating_add(1),
            offset: location.end(),
            raw: location.raw,
        }
    }
}

/// Where a run of so many whole blocks ends.
fn end_of(offset: u32, blocks: u32) -> u32 {
    offset.saturating_add(blocks.saturating_mul(BLOCK_SIZE))
}

/// A number of blocks. There are never more than fit a frame.
fn length_of(run: &IndexedRun) -> u32 {
    u32::try_from(run.hashes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::LARGEST_FRAME;
    use super::*;

    fn any_run(raw: u32) -> impl Strategy<Value = IndexedRun> {
        (0..=raw, any::<u64>(), 0..1_u32 << 31).prop_flat_map(move |(offset, file, first)| {
            let most = usize::try_from((raw - offset).div_ceil(BLOCK_SIZE))
                .expect("few")
                .min(20);
            proptest::collection::vec(any::<u64>().prop_map(PageHash::new), 0..=most).prop_map(
                move |hashes| IndexedRun {
                    file,
                    first,
                    offset,
                    hashes,
                },
            )
        })
    }

    fn any_frame() -> impl Strategy<Value = IndexedFrame> {
        (any::<u32>(), 0..1_u64 << 62, 0..=LARGEST_FRAME, 0..=LARGEST_FRAME).prop_flat_map(
            |(index, offset, stored, raw)| {
                proptest::collection::vec(any_run(raw), 0..4).prop_map(move |runs| IndexedFrame {
                    location: FrameLocation {
                        index,
                        offset,
                        stored,
                        raw,
                    },
                    runs,
                })
            },
        )
    }

    fn any_index() -> impl Strategy<Value = PackIndex> {
        let kind = prop_oneof![Just(PackKind::Data), Just(PackKind::Map)];
        let run = (0..4_000_000_000_i64, any::<u16>()).prop_map(|(second, suffix)| {
            Label::new(Timestamp::from_second(second).expect("in range"), suffix)
        });
        let frames = proptest::collection::vec(any_frame(), 0..6);
        (kind, run, frames).prop_map(|(kind, run, frames)| PackIndex { kind, run, frames })
    }

    #[test]
    fn the_index_of_a_full_pack_takes_little_more_than_its_hashes() {
        let frames = (0..512_u32).map(|number| IndexedFrame {
            location: FrameLocation {
                index: number,
                offset: 96 + u64::from(number) * 40_024,
                stored: 40_000,
                raw: 16 * BLOCK_SIZE,
            },
            runs: vec![IndexedRun {
                file: 1,
                first: number * 16,
                offset: 0,
                hashes: vec![PageHash::new(u64::from(number)); 16],
            }],
        });
        let mut index = PackIndex::new(PackKind::Data, "20261121T104500Z-3f9a".parse().expect("a label"));
        index.frames = frames.collect();
        let bytes = index.encode();
        assert!(bytes.len() < 512 * (16 * 8 + 25), "{}", bytes.len());
        assert_eq!(PackIndex::decode(&bytes), Ok(index));
    }

    #[test]
    fn a_newer_version_is_refused_by_its_number() {
        assert_eq!(
            PackIndex::decode(b"pidx\x02"),
            Err(DecodeError::Version {
                what: "index of a pack",
                version: 2
            })
        );
    }

    proptest! {
        #[test]
        fn indexes_round_trip(index in any_index()) {
            prop_assert_eq!(PackIndex::decode(&index.encode()), Ok(index));
        }

        #[test]
        fn a_shortened_index_is_refused(index in any_index(), cut in 1..20_usize) {
            let bytes = index.encode();
            prop_assert!(PackIndex::decode(&bytes[..bytes.len().saturating_sub(cut)]).is_err());
        }

        #[test]
        fn any_bytes_are_an_index_or_an_error(mut bytes: Vec<u8>, magic: bool) {
            if magic {
                bytes.splice(..0, *b"pidx\x01\x00");
            }
            if let Ok(index) = PackIndex::decode(&bytes) {
                prop_assert_eq!(PackIndex::decode(&index.encode()), Ok(index));
            }
        }

        #[test]
        fn a_damaged_index_never_panics(index in any_index(), position: prop::sample::Index, byte: u8) {
            let mut bytes = index.encode();
            let position = position.index(bytes.len());
            bytes[position] = byte;
            let _ = PackIndex::decode(&bytes);
        }
    }
}
