//! Where the contents of many files are, in little memory.
//!
//! A backup of a million small files holds what the older backup has of them and what it found itself. As
//! values that were several hundred megabytes; as bytes in one block of memory it is some sixty bytes a file.

use pgmahout_types::repository::{FrameLocation, PackId, PageMap};

use super::pack::PackedFrame;

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// Its map.
    Inline(PageMap),
    /// Its map is in a pack of maps.
    Stored {
        /// Bytes of the file.
        size: u64,
        /// The frame with the map or the overlay.
        map: PackedFrame,
        /// Where that is an overlay: its base.
        base: Option<PackedFrame>,
        /// The packs that the file's blocks are in.
        packs: Vec<PackId>,
    },
}

/// Many records, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
}

const INLINE: u8 = 0;
const STORED: u8 = 1;
const OVERLAY: u8 = 2;

impl Records {
    /// Adds a record behind a name, which may be empty; gives the place where it is found again.
    pub(super) fn push(&mut self, name: &[u8], record: &Record) -> u64 {
        let place = self.bytes.len() as u64;
        self.number(name.len() as u64);
        self.bytes.extend_from_slice(name);
        match record {
            Record::Inline(map) => {
                let encoded = map.encode();
                self.bytes.push(INLINE);
                self.number(encoded.len() as u64);
                self.bytes.extend_from_slice(&encoded);
            }
            Record::Stored {
                size,
                map,
                base,
                packs,
            } => {
                self.bytes.push(if base.is_some() { OVERLAY } else { STORED });
                self.number(*size);
                self.frame(map);
                if let Some(base) = base {
                    self.frame(base);
                }
                self.number(packs.len() as u64);
                for pack in packs {
                    self.bytes.extend_from_slice(pack.as_bytes());
                }
            }
        }
        place
    }

    /// The record at that place, if its name is this one.
    pub(super) fn get(&self, place: u64, name: &[u8]) -> Option<Record> {
        let mut reader = Reader(self.bytes.get(usize::try_from(place).ok()?..)?);
        let length = reader.number()?;
        if reader.take(length)? != name {
            return None;
        }
        Some(match reader.take(1)?[0] {
            INLINE => {
                let length = reader.number()?;
                Record::Inline(PageMap::decode(reader.take(length)?).ok()?)
            }
            tag => {
                let size = reader.number()?;
                let map = reader.frame()?;
                let base = if tag == OVERLAY {
                    Some(reader.frame()?)
                } else {
                    None
                };
                let count = reader.number()?;
                let packs = (0..count).map(|_| reader.pack()).collect::<Option<_>>()?;
                Record::Stored {
                    size,
                    map,
                    base,
                    packs,
                }
            }
        })
    }

    /// Whether the record at that place has this name.
    pub(super) fn is_named(&self, place: u64, name: &[u8]) -> bool {
        let found = || {
            let mut reader = Reader(self.bytes.get(usize::try_from(place).ok()?..)?);
            let length = reader.number()?;
            Some(reader.take(length)? == name)
        };
        found() == Some(true)
    }

    fn frame(&mut self, frame: &PackedFrame) {
        self.bytes.extend_from_slice(frame.pack.as_bytes());
        self.number(u64::from(frame.location.index));
        self.number(frame.location.offset);
        self.number(u64::from(frame.location.stored));
        self.number(u64::from(frame.location.raw));
    }

    /// Seven bits a byte, the lowest first.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn pack(&mut self) -> Option<PackId> {
        Some(PackId::from_bytes(
            self.take(PackId::LENGTH as u64)?.try_into().ok()?,
        ))
    }

    fn frame(&mut self) -> Option<PackedFrame> {
        let small = |number: u64| u32::try_from(number).ok();
        Some(PackedFrame {
            pack: self.pack()?,
            location: FrameLocation {
                index: small(self.number()?)?,
                offset: self.number()?,
                stored: small(self.number()?)?,
                raw: small(self.number()?)?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use pgmahout_types::repository::{PageHash, PageMapBuilder};

    use super::*;

    fn frame(pack: u8, offset: u64) -> PackedFrame {
        PackedFrame {
            pack: PackId::from_bytes([pack; 16]),
            location: FrameLocation {
                index: 3,
                offset,
                stored: 70_000,
                raw: 131_072,
            },
        }
    }

    #[test]
    fn records_are_found_again_by_place_and_name() {
        let mut builder = PageMapBuilder::new();
        let first = frame(1, 96);
        builder.stored(
            first.pack,
            first.location,
            0,
            &[PageHash::new(7), PageHash::new(8)],
        );
        let inline = Record::Inline(builder.finish(9000).expect("a map"));
        let stored = |base| Record::Stored {
            size: 1 << 40,
            map: frame(2, 1 << 33),
            base,
            packs: vec![PackId::from_bytes([9; 16]), PackId::from_bytes([8; 16])],
        };
        let mut records = Records::default();
        let all = [inline, stored(None), stored(Some(frame(3, 5)))];
        let places: Vec<u64> = all
            .iter()
            .map(|record| records.push(b"base/5/1", record))
            .collect();
        for (place, record) in places.iter().zip(&all) {
            assert_eq!(records.get(*place, b"base/5/1").as_ref(), Some(record));
            assert_eq!(records.get(*place, b"base/5/2"), None);
        }
    }
}
