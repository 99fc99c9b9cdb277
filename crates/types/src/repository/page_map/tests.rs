use proptest::prelude::*;

use super::*;
use crate::repository::FrameLocation;

const BLOCK: u64 = BLOCK_SIZE as u64;

fn pack(number: u8) -> PackId {
    PackId::from_bytes([number; 16])
}

/// A full frame of 16 blocks.
fn frame(index: u32) -> FrameLocation {
    FrameLocation {
        index,
        offset: 96 + u64::from(index) * 50_000,
        stored: 49_976,
        raw: 16 * BLOCK_SIZE,
    }
}

fn hashes(first: u32, count: u32) -> Vec<PageHash> {
    (first..first + count)
        .map(|number| PageHash::new(u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
        .collect()
}

/// The map of a file of whole frames in one pack.
fn full(blocks: u32) -> PageMap {
    let mut builder = PageMapBuilder::new();
    for first in (0..blocks).step_by(16) {
        let count = 16.min(blocks - first);
        builder.stored(pack(1), frame(first / 16), 0, &hashes(first, count));
    }
    builder.finish(u64::from(blocks) * BLOCK).expect("a good map")
}

/// One piece of a map, to be pushed.
#[derive(Debug, Clone)]
enum Piece {
    Zeros(u32),
    Stored {
        pack: u8,
        frame: u32,
        block: u32,
        count: u32,
        seed: u32,
    },
}

fn any_piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (1..40_u32).prop_map(Piece::Zeros),
        (0..4_u8, 0..6_u32, 0..16_u32, 0..16_u32, 0..1000_u32).prop_map(
            |(pack, frame, block, count, seed)| {
                Piece::Stored {
                    pack,
                    frame,
                    block,
                    count: count.min(15 - block) + 1,
                    seed,
                }
            }
        ),
    ]
}

fn push(builder: &mut PageMapBuilder, piece: &Piece) {
    match *piece {
        Piece::Zeros(count) => builder.zeros(count),
        Piece::Stored {
            pack: number,
            frame: index,
            block,
            count,
            seed,
        } => {
            builder.stored(
                pack(number),
                frame(index),
                block * BLOCK_SIZE,
                &hashes(seed, count),
            );
        }
    }
}

fn any_map() -> impl Strategy<Value = PageMap> {
    (prop::collection::vec(any_piece(), 0..12), 1..=BLOCK_SIZE).prop_map(|(pieces, last)| {
        let mut builder = PageMapBuilder::new();
        for piece in &pieces {
            push(&mut builder, piece);
        }
        let blocks = u64::from(builder.blocks());
        let size = if blocks == 0 {
            0
        } else {
            (blocks - 1) * BLOCK + u64::from(last)
        };
        builder.finish(size).expect("a good map")
    })
}

/// A map that keeps some parts of another and replaces the rest.
fn any_successor() -> impl Strategy<Value = (PageMap, PageMap)> {
    (
        any_map(),
        prop::collection::vec((0..20_u32, prop::option::of(any_piece())), 0..10),
        1..=BLOCK_SIZE,
    )
        .prop_map(|(base, changes, last)| {
            let mut builder = PageMapBuilder::new();
            for (kept, piece) in changes {
                let first = builder.blocks();
                // A short block can only be kept where it stays the last.
                let end = (first + kept).min(full_blocks(&base));
                if first < end {
                    builder.reuse(&base, first, end);
                }
                if let Some(piece) = piece {
                    push(&mut builder, &piece);
                }
            }
            let blocks = u64::from(builder.blocks());
            let size = blocks * BLOCK;
            let short = size.saturating_sub(BLOCK - u64::from(last));
            let shortened = if blocks == 0 { None } else { Some(short) };
            let mut copy = PageMapBuilder::new();
            std::mem::swap(&mut copy, &mut builder);
            let whole = copy.finish(size).expect("a good map");
            // The same with a short last block, where that block is new.
            let map = shortened
                .filter(|_| !base.hashes().is_empty() && last.is_multiple_of(2))
                .and_then(|size| reshaped(&whole, size))
                .unwrap_or(whole);
            (base, map)
        })
}

/// The same blocks, the last of them new and short.
fn reshaped(map: &PageMap, size: u64) -> Option<PageMap> {
    let last = map.blocks().checked_sub(1)?;
    let mut builder = PageMapBuilder::new();
    builder.reuse(map, 0, last);
    builder.stored(pack(9), frame(0), 0, &hashes(77, 1));
    builder.finish(size).ok()
}

fn full_blocks(map: &PageMap) -> u32 {
    u32::try_from(map.size() / BLOCK).expect("few")
}

#[test]
fn pieces_of_one_block_become_extents() {
    let mut builder = PageMapBuilder::new();
    builder.zeros(1);
    builder.zeros(2);
    for block in 0..16 {
        builder.stored(pack(1), frame(0), block * BLOCK_SIZE, &hashes(block, 1));
    }
    builder.stored(pack(1), frame(1), 0, &hashes(16, 1));
    builder.stored(pack(2), frame(1), BLOCK_SIZE, &hashes(17, 1));
    let map = builder.finish(20 * BLOCK + 5).expect("a good map");
    assert_eq!(map.extents().len(), 4);
    assert_eq!((map.blocks(), map.last_block_bytes()), (21, 5));
    assert_eq!(map.packs(), [pack(1), pack(2)]);
    assert_eq!(map.frames().len(), 3);
    assert_eq!(map.place(2), Some(Place::Zero));
    assert_eq!(
        map.place(7),
        Some(Place::Stored {
            frame: 0,
            offset: 4 * BLOCK_SIZE,
            hash: hashes(4, 1)[0]
        })
    );
    assert_eq!(map.place(21), None);
    assert_eq!(
        (map.block_bytes(19), map.block_bytes(20), map.block_bytes(21)),
        (BLOCK_SIZE, 5, 0)
    );
    assert_eq!(map.bytes_by_pack(), [17 * BLOCK, 5]);
    assert_eq!(map.zero_bytes(), 3 * BLOCK);
}

#[test]
fn pieces_that_do_not_make_the_file_are_refused() {
    let finish = |size: u64, push: &dyn Fn(&mut PageMapBuilder)| {
        let mut builder = PageMapBuilder::new();
        push(&mut builder);
        builder.finish(size)
    };
    let one =
        |builder: &mut PageMapBuilder| builder.stored(pack(1), frame(0), 15 * BLOCK_SIZE, &hashes(0, 1));
    assert!(finish(BLOCK, &one).is_ok());
    assert!(finish(0, &one).is_err(), "too many blocks");
    assert!(finish(BLOCK + 1, &one).is_err(), "too few blocks");
    assert!(
        finish(2 * BLOCK, &|builder| builder.stored(
            pack(1),
            frame(0),
            15 * BLOCK_SIZE,
            &hashes(0, 2)
        ))
        .is_err()
    );
    assert!(matches!(
        finish(u64::MAX, &one),
        Err(PageMapError::TooLarge { .. })
    ));
    let base = finish(100, &one).expect("a good map");
    assert!(finish(100, &|builder| builder.reuse(&base, 0, 1)).is_ok());
    assert!(
        finish(101, &|builder| builder.reuse(&base, 0, 1)).is_err(),
        "a reused block got longer"
    );
    assert!(
        finish(BLOCK + 1, &|builder| {
            builder.reuse(&base, 0, 1);
            builder.zeros(1);
        })
        .is_err()
    );
    assert!(
        finish(100, &|builder| builder.reuse(&base, 0, 2)).is_err(),
        "behind the end"
    );
}

#[test]
fn a_short_overlay_describes_a_few_changed_blocks_of_a_large_segment() {
    let base = full(131_072);
    let bytes = base.encode();
    assert!(bytes.len() < 131_072 * 8 + 8192 * 12, "{}", bytes.len());
    assert_eq!(PageMap::decode(&bytes).as_ref(), Ok(&base));

    // One block in a hundred, gathered into frames of another pack.
    let mut builder = PageMapBuilder::new();
    for (number, first) in (0_u32..).zip((0..131_072_u32).step_by(100)) {
        builder.stored(
            pack(2),
            frame(number / 16),
            number % 16 * BLOCK_SIZE,
            &hashes(first + 7_000_000, 1),
        );
        builder.reuse(&base, first + 1, (first + 100).min(131_072));
    }
    let map = builder.finish(base.size()).expect("a good map");
    let overlay = Overlay::diff(&base, &map);
    assert_eq!(overlay.hashes().len(), 1311);
    let bytes = overlay.encode();
    assert!(
        bytes.len() < 1311 * 8 + 1311 * 5 + 82 * 12 + 64,
        "{}",
        bytes.len()
    );
    let read = StoredMap::decode(&bytes).expect("our own");
    assert_eq!(read, StoredMap::Overlay(overlay.clone()));
    assert_eq!(overlay.apply(&base), Ok(map.clone()));
    assert_eq!(overlay.apply(&map), Err(PageMapError::WrongBase));
}

#[test]
fn a_last_block_that_grew_is_a_change() {
    let map = |size: u64| {
        let mut builder = PageMapBuilder::new();
        builder.stored(pack(1), frame(0), 0, &hashes(0, 2));
        builder.finish(size).expect("a good map")
    };
    let (short, long) = (map(BLOCK + 100), map(2 * BLOCK));
    let overlay = Overlay::diff(&short, &long);
    assert_eq!(overlay.extents().len(), 1);
    assert_eq!(overlay.extents()[0].first, 1);
    assert_eq!(overlay.apply(&short), Ok(long));
}

#[test]
fn the_inline_form_names_packs_by_their_number() {
    let mut builder = PageMapBuilder::new();
    builder.zeros(2);
    builder.stored(pack(5), frame(3), BLOCK_SIZE, &hashes(1, 1));
    let map = builder.finish(2 * BLOCK + 10).expect("a good map");
    let inline = InlineMap::new(&map, |pack| u32::from(pack.as_bytes()[0]));
    let json = serde_json::to_string(&inline).expect("json");
    assert_eq!(
        json,
        r#"{"f":[[5,3,150096,49976,131072]],"x":[[2],[1,0,8192]],"h":"9e3779b97f4a7c15"}"#
    );
    let read: InlineMap = serde_json::from_str(&json).expect("our own");
    assert_eq!(read, inline);
    let packs = |number: u32| u8::try_from(number).ok().map(pack);
    assert_eq!(read.to_map(map.size(), packs), Ok(map));
    assert!(read.to_map(5 * BLOCK, packs).is_err(), "of another size");
    assert!(read.to_map(2 * BLOCK + 10, |_| None).is_err(), "in no pack");
}

#[test]
fn a_few_bytes_never_claim_much_memory() {
    // 2^32 - 1 blocks of nothing are one extent.
    let mut builder = PageMapBuilder::new();
    builder.zeros(u32::MAX);
    let map = builder.finish(u64::from(u32::MAX) * BLOCK).expect("a good map");
    let bytes = map.encode();
    assert!(bytes.len() < 32);
    assert_eq!(PageMap::decode(&bytes), Ok(map));
    // Numbers of packs, frames and hashes are compared with what follows.
    for claim in [
        &b"pmap\x01\x00\xff\xff\xff\x0f"[..],
        b"pmap\x01\x00\x00\xff\xff\xff\x0f",
        b"pmap\x01\x00\x00\x00\x00\xff\xff\x0f",
    ] {
        assert!(matches!(PageMap::decode(claim), Err(DecodeError::Damaged { .. })));
    }
}

proptest! {
    #[test]
    fn maps_round_trip(map in any_map()) {
        let bytes = map.encode();
        prop_assert_eq!(PageMap::decode(&bytes), Ok(map.clone()));
        prop_assert_eq!(StoredMap::decode(&bytes), Ok(StoredMap::Whole(map.clone())));
        prop_assert!(PageMap::decode(&bytes[..bytes.len() - 1]).is_err());
        let inline = InlineMap::new(&map, |pack| u32::from(pack.as_bytes()[0]));
        let json = serde_json::to_string(&inline).expect("json");
        let read: InlineMap = serde_json::from_str(&json).expect("our own");
        prop_assert_eq!(read.to_map(map.size(), |number| u8::try_from(number).ok().map(pack)), Ok(map));
    }

    #[test]
    fn runs_and_places_say_the_same(map in any_map(), from in 0..100_u32, count in 0..100_u32) {
        let mut block = from;
        for run in map.runs_between(from, from + count) {
            prop_assert_eq!(run.extent.first, block);
            for position in 0..run.extent.count {
                let place = match run.extent.source {
                    Source::Zero => Place::Zero,
                    Source::Frame { frame, offset } => Place::Stored {
                        frame,
                        offset: offset + position * BLOCK_SIZE,
                        hash: run.hashes[index(position)],
                    },
                };
                prop_assert_eq!(map.place(block), Some(place));
                block += 1;
            }
        }
        prop_assert_eq!(block.max(from), (from + count).min(map.blocks()).max(from));
    }

    #[test]
    fn an_overlay_over_its_base_is_the_map((base, map) in any_successor()) {
        let overlay = Overlay::diff(&base, &map);
        prop_assert_eq!(overlay.apply(&base), Ok(map.clone()));
        prop_assert_eq!(Overlay::decode(&overlay.encode()), Ok(overlay.clone()));
        prop_assert_eq!(Overlay::diff(&map, &map).extents().len(), 0);
        let back = Overlay::diff(&map, &base);
        prop_assert_eq!(back.apply(&map), Ok(base));
    }

    #[test]
    fn overlays_of_unrelated_maps_work_too(base in any_map(), map in any_map()) {
        prop_assert_eq!(Overlay::diff(&base, &map).apply(&base), Ok(map));
    }

    #[test]
    fn any_bytes_are_a_map_or_an_error(mut bytes: Vec<u8>, begin in 0..3) {
        match begin {
            1 => drop(bytes.splice(..0, *b"pmap\x01")),
            2 => drop(bytes.splice(..0, *b"povl\x01")),
            _ => {}
        }
        match StoredMap::decode(&bytes) {
            Ok(StoredMap::Whole(map)) => prop_assert_eq!(PageMap::decode(&map.encode()), Ok(map)),
            Ok(StoredMap::Overlay(overlay)) => {
                prop_assert_eq!(Overlay::decode(&overlay.encode()), Ok(overlay.clone()));
                prop_assert!(overlay.apply(&PageMap::empty()).is_err() || overlay.base() == PageMap::empty().fingerprint());
            }
            Err(_) => {}
        }
    }

    #[test]
    fn a_damaged_map_is_a_map_or_an_error(map in any_map(), position: prop::sample::Index, byte: u8) {
        let mut bytes = map.encode();
        let position = position.index(bytes.len());
        bytes[position] = byte;
        if let Ok(map) = PageMap::decode(&bytes) {
            prop_assert_eq!(PageMap::decode(&map.encode()), Ok(map.clone()));
            prop_assert_eq!(Overlay::diff(&PageMap::empty(), &map).apply(&PageMap::empty()).is_ok(), true);
        }
    }
}
