//! The maps of small files, which stand in the manifest itself.

use std::fmt;

use serde::de::{self, SeqAccess};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::frame::FrameRef;
use super::super::ids::{PackId, PageHash, hexadecimal_bytes, hexadecimal_text};
use super::build::Places;
use super::{Extent, PageMap, PageMapError, Source, index};

/// The map of a small file without its size and its packs, which the manifest has: the size beside it, the
/// packs in the table of the last line.
///
/// In serde it is `{"f":[[pack, index, offset, stored, raw], ...], "x":[[count] or [count, frame, offset],
/// ...], "h":"sixteen digits for each stored block"}`, where an extent without a frame is zero and each
/// begins where the one before ends. Keys with nothing in them are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InlineMap {
    #[serde(rename = "f", default, skip_serializing_if = "<[_]>::is_empty")]
    frames: Box<[FrameRef]>,
    #[serde(
        rename = "x",
        default,
        skip_serializing_if = "<[_]>::is_empty",
        with = "extents"
    )]
    extents: Box<[Extent]>,
    #[serde(
        rename = "h",
        default,
        skip_serializing_if = "<[_]>::is_empty",
        with = "hashes"
    )]
    hashes: Box<[PageHash]>,
}

impl InlineMap {
    /// From a map; `number` gives the number that a pack has in the manifest's table.
    pub fn new(map: &PageMap, mut number: impl FnMut(PackId) -> u32) -> Self {
        let numbers: Vec<u32> = map.packs().iter().map(|&pack| number(pack)).collect();
        let frames = map.frames().iter().map(|frame| FrameRef {
            pack: numbers.get(index(frame.pack)).copied().unwrap_or(u32::MAX),
            location: frame.location,
        });
        Self {
            frames: frames.collect(),
            extents: map.extents().into(),
            hashes: map.hashes().into(),
        }
    }

    /// The map of a file of `size` bytes; `pack` gives the pack of a number in the manifest's table.
    ///
    /// # Errors
    /// When a number means no pack, or the parts do not fit each other or the size.
    pub fn to_map(&self, size: u64, pack: impl Fn(u32) -> Option<PackId>) -> Result<PageMap, PageMapError> {
        let wrong = |problem| PageMapError::Inconsistent { size, problem };
        let mut packs: Vec<PackId> = Vec::new();
        let mut numbers: Vec<u32> = Vec::new();
        let mut frames = Vec::with_capacity(self.frames.len());
        for frame in &self.frames {
            let known = numbers.iter().position(|&number| number == frame.pack);
            let position = if let Some(position) = known {
                position
            } else {
                packs.push(pack(frame.pack).ok_or_else(|| wrong("a frame is in no known pack"))?);
                numbers.push(frame.pack);
                packs.len() - 1
            };
            frames.push(FrameRef {
                pack: u32::try_from(position).unwrap_or(u32::MAX),
                location: frame.location,
            });
        }
        let places = Places::new(packs, frames, self.extents.to_vec(), self.hashes.to_vec());
        places.check(size, false).map_err(wrong)?;
        Ok(PageMap { size, places })
    }

    /// The numbers of the packs that it uses, each once for each frame.
    pub fn pack_numbers(&self) -> impl Iterator<Item = u32> {
        self.frames.iter().map(|frame| frame.pack)
    }

    /// The frames. Their packs are numbers in the manifest's table.
    pub fn frames(&self) -> &[FrameRef] {
        &self.frames
    }

    /// The extents, which cover the file in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The hashes of all stored blocks, in order.
    pub fn hashes(&self) -> &[PageHash] {
        &self.hashes
    }

    /// Whether there is nothing in it, as for an empty file.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

mod extents {
    use super::{Deserializer, Extent, Extents, SerializeSeq, Serializer, Source};

    pub(super) fn serialize<S: Serializer>(extents: &[Extent], serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(extents.len()))?;
        for extent in extents {
            match extent.source {
                Source::Zero => list.serialize_element(&(extent.count,))?,
                Source::Frame { frame, offset } => list.serialize_element(&(extent.count, frame, offset))?,
            }
        }
        list.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<[Extent]>, D::Error> {
        deserializer.deserialize_seq(Extents)
    }
}

struct Extents;

impl<'de> de::Visitor<'de> for Extents {
    type Value = Box<[Extent]>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of extents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut extents = Vec::new();
        let mut first = 0_u32;
        while let Some(Triple(count, place)) = list.next_element()? {
            extents.push(Extent {
                first,
                count,
                source: place.map_or(Source::Zero, |(frame, offset)| Source::Frame { frame, offset }),
            });
            first = first
                .checked_add(count)
                .ok_or_else(|| de::Error::custom("the extents have too many blocks"))?;
        }
        Ok(extents.into())
    }
}

/// One extent: its count, and frame and offset unless it is zero.
struct Triple(u32, Option<(u32, u32)>);

impl<'de> Deserialize<'de> for Triple {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Triple;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of one or three numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Triple, A::Error> {
                let count = list
                    .next_element()?
                    .ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let Some(frame) = list.next_element()? else {
                    return Ok(Triple(count, None));
                };
                let offset = list
                    .next_element()?
                    .ok_or_else(|| de::Error::invalid_length(2, &self))?;
                Ok(Triple(count, Some((frame, offset))))
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}

mod hashes {
    use super::{Deserializer, Hashes, PageHash, Serializer, hexadecimal_text};

    pub(super) fn serialize<S: Serializer>(hashes: &[PageHash], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.get().to_be_bytes()).collect();
        serializer.serialize_str(hexadecimal_text(&bytes, &mut vec![0; bytes.len() * 2]))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Box<[PageHash]>, D::Error> {
        deserializer.deserialize_str(Hashes)
    }
}

struct Hashes;

impl de::Visitor<'_> for Hashes {
    type Value = Box<[PageHash]>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("hashes of sixteen hexadecimal digits each")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let mut bytes = vec![0; text.len() / 2];
        if !text.len().is_multiple_of(16) || !hexadecimal_bytes(text, &mut bytes) {
            return Err(E::invalid_value(de::Unexpected::Str(text), &self));
        }
        let hash = |chunk: &[u8]| PageHash::new(u64::from_be_bytes(chunk.try_into().unwrap_or_default()));
        Ok(bytes.chunks_exact(8).map(hash).collect())
    }
}
