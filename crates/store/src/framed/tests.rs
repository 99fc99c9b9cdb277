use pgmahout_types::diagnostic::Diagnose;
use proptest::prelude::*;
use rstest::rstest;

use super::header::Header;
use super::*;
use crate::seal::Key;

const KIND: &str = "pack";
const NAME: &str = "stanza/main/pack/ab/abcd";

fn key(byte: u8) -> Key {
    Key::from_bytes([byte; 32])
}

fn sealed() -> ObjectCipher {
    ObjectCipher::from_key(key(7))
}

fn ciphers() -> [ObjectCipher; 2] {
    [ObjectCipher::plain(), sealed()]
}

fn noise(length: usize) -> Vec<u8> {
    let mut state: u32 = 7;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(length)
    .collect()
}

fn text(length: usize) -> Vec<u8> {
    b"the rows of a table, much like each other; "
        .iter()
        .copied()
        .cycle()
        .take(length)
        .collect()
}

/// An object of four frames of every codec, their places, and their contents.
fn object(cipher: &ObjectCipher) -> (Bytes, Vec<FrameLocation>, Vec<Vec<u8>>) {
    let contents = vec![text(3000), text(2000), noise(500), text(900)];
    let codecs = [FrameCodec::Zstd(1), FrameCodec::Lz4, FrameCodec::Zstd(3)];
    let mut builder = FramedBuilder::new(cipher, KIND, NAME, 4096).unwrap();
    let mut places: Vec<_> = codecs
        .iter()
        .zip(&contents)
        .map(|(codec, content)| builder.push(*codec, content).unwrap())
        .collect();
    let (offset, index) = (builder.len() as u64, builder.frames());
    let object = builder.finish(&contents[3], FrameCodec::Zstd(1)).unwrap();
    places.push(FrameLocation {
        index,
        offset,
        stored: (object.len() - TRAILER_LENGTH - FRAME_OVERHEAD) as u32 - offset as u32,
        raw: 900,
    });
    (object, places, contents)
}

fn open(cipher: &ObjectCipher, object: &[u8]) -> Result<Vec<u8>, FramedError> {
    open_bytes(cipher, KIND, NAME, object)
}

/// The bytes of one frame of an object.
fn piece(object: &[u8], place: FrameLocation) -> &[u8] {
    &object[place.offset as usize..place.end() as usize]
}

/// Frames of an object in another order, with its header and trailer.
fn arranged(object: &[u8], places: &[FrameLocation], order: &[usize]) -> Vec<u8> {
    let mut bytes = object[..HEADER_LENGTH].to_vec();
    for position in order {
        bytes.extend_from_slice(piece(object, places[*position]));
    }
    bytes.extend_from_slice(&object[object.len() - TRAILER_LENGTH..]);
    bytes
}

#[test]
fn what_is_written_is_read_back_whole_and_frame_by_frame() {
    for cipher in ciphers() {
        let (object, places, contents) = object(&cipher);
        assert!(is_framed(&object));
        assert_eq!(open(&cipher, &object).unwrap(), contents.concat());
        let opener = FramedOpener::from_header(&cipher, KIND, NAME, &object[..HEADER_LENGTH]).unwrap();
        let mut out = b"what was here before".to_vec();
        for number in [2, 0, 3, 1] {
            opener
                .open(
                    places[number],
                    number == 3,
                    piece(&object, places[number]),
                    &mut out,
                )
                .unwrap();
            assert_eq!(out, contents[number]);
        }
        let size = object.len() as u64;
        let trailer = Trailer::read(&object[object.len() - TRAILER_LENGTH..], size).unwrap();
        assert_eq!((trailer.frames, trailer.offset), (4, places[3].offset));
        let range = trailer.final_frame(size);
        opener
            .open_final(
                trailer,
                &object[range.start as usize..range.end as usize],
                &mut out,
            )
            .unwrap();
        assert_eq!(out, contents[3]);
        let mut frames = opener.frames(&object);
        for content in &contents {
            assert!(frames.next_into(&mut out).unwrap());
            assert_eq!(&out, content);
        }
        assert!(!frames.next_into(&mut out).unwrap());
    }
}

#[test]
fn a_frame_opened_from_the_salt_alone_is_the_same_as_from_the_header() {
    for cipher in ciphers().map(|cipher| {
        if cipher.is_encrypted() {
            cipher.with_key(3, key(9))
        } else {
            cipher
        }
    }) {
        let (object, places, contents) = object(&cipher);
        let header = FramedOpener::from_header(&cipher, KIND, NAME, &object).unwrap();
        assert_eq!(header.key_number(), cipher.key_number());
        let opener =
            FramedOpener::from_salt(&cipher, KIND, NAME, header.key_number(), header.salt()).unwrap();
        let mut out = Vec::new();
        opener
            .open(places[1], false, piece(&object, places[1]), &mut out)
            .unwrap();
        assert_eq!(out, contents[1]);
        assert_eq!(opener.read_all(&object).unwrap(), contents.concat());
        let mut other = *header.salt().as_bytes();
        other[5] ^= 1;
        let opener =
            FramedOpener::from_salt(&cipher, KIND, NAME, header.key_number(), Salt::from_bytes(other))
                .unwrap();
        let error = opener
            .open(places[1], false, piece(&object, places[1]), &mut out)
            .unwrap_err();
        assert!(
            matches!(error, FramedError::DamagedFrame { frame: 1, .. }),
            "{error}"
        );
        assert!(out.is_empty(), "nothing of a damaged frame is given");
    }
}

#[test]
fn every_flipped_byte_is_found() {
    for cipher in ciphers() {
        let (object, places, _) = object(&cipher);
        let mut damaged = object.to_vec();
        for position in 0..damaged.len() {
            for bit in [0x01, 0x80] {
                damaged[position] ^= bit;
                let error = open(&cipher, &damaged).expect_err("a flip was not found");
                assert!(error.hint().is_some());
                let place = places
                    .iter()
                    .find(|place| (place.offset..place.end()).contains(&(position as u64)));
                match (&error, place) {
                    (FramedError::DamagedFrame { frame, offset, .. }, Some(place)) => {
                        assert_eq!((*frame, *offset), (place.index, place.offset));
                    }
                    // The mark of the final frame is set, and no trailer follows, or it is not the last.
                    (FramedError::DamagedTrailer { .. }, None) => {
                        assert!(position >= object.len() - TRAILER_LENGTH, "{position}: {error}");
                    }
                    (
                        FramedError::NotFramed
                        | FramedError::UnsupportedVersion { .. }
                        | FramedError::DamagedHeader { .. }
                        | FramedError::KeyNotGiven
                        | FramedError::NotEncrypted,
                        None,
                    ) => assert!(position < HEADER_LENGTH),
                    // The tag alone was hit.
                    (FramedError::WrongKey, None) => assert!((80..HEADER_LENGTH).contains(&position)),
                    other => panic!("the flip at {position} gives {other:?}"),
                }
                damaged[position] ^= bit;
            }
        }
    }
}

#[test]
fn a_cut_at_any_place_is_found() {
    for cipher in ciphers() {
        let (object, ..) = object(&cipher);
        for length in 0..object.len() {
            let error = open(&cipher, &object[..length]).unwrap_err();
            assert!(
                matches!(
                    error,
                    FramedError::Truncated { .. } | FramedError::DamagedTrailer { .. }
                ),
                "cut to {length}: {error:?}"
            );
            assert!(error.to_string().contains("truncated"), "{error}");
        }
    }
}

#[test]
fn bytes_behind_the_end_are_found() {
    for cipher in ciphers() {
        let (object, ..) = object(&cipher);
        for more in [&b"x"[..], &[0; 100], &object] {
            let error = open(&cipher, &[&object[..], more].concat()).unwrap_err();
            assert!(
                matches!(error, FramedError::TrailingBytes { offset } if offset == object.len() as u64),
                "{error}"
            );
        }
    }
}

#[rstest]
#[case::swapped(&[1, 0, 2, 3], 0)]
#[case::dropped(&[0, 2, 3], 1)]
#[case::first_dropped(&[1, 2, 3], 0)]
#[case::doubled(&[0, 0, 1, 2, 3], 1)]
#[case::final_alone(&[3], 0)]
fn frames_in_another_order_are_found(#[case] order: &[usize], #[case] first_wrong: u32) {
    for cipher in ciphers() {
        let (object, places, _) = object(&cipher);
        let error = open(&cipher, &arranged(&object, &places, order)).unwrap_err();
        assert!(
            matches!(error, FramedError::DamagedFrame { frame, .. } if frame == first_wrong),
            "{error}"
        );
    }
}

#[test]
fn an_object_without_its_final_frame_is_truncated() {
    for cipher in ciphers() {
        let (object, places, _) = object(&cipher);
        let error = open(&cipher, &object[..places[3].offset as usize]).unwrap_err();
        assert!(
            matches!(error, FramedError::Truncated { frame: 3, .. }),
            "{error}"
        );
        // With the old trailer behind it, the place of the final frame is wrong.
        assert!(open(&cipher, &arranged(&object, &places, &[0, 1, 2])).is_err());
    }
}

#[test]
fn a_frame_of_another_object_is_found() {
    for cipher in ciphers() {
        // The same content and the same name: another write, with another salt.
        let (one, places, _) = object(&cipher);
        let (other, other_places, _) = object(&cipher);
        let mut mixed = one.to_vec();
        let range = places[1].offset as usize..places[1].end() as usize;
        mixed[range].copy_from_slice(piece(&other, other_places[1]));
        let error = open(&cipher, &mixed).unwrap_err();
        assert!(
            matches!(error, FramedError::DamagedFrame { frame: 1, .. }),
            "{error}"
        );
        // With the other's header all frames but one are strange.
        let mut mixed = one.to_vec();
        mixed[..HEADER_LENGTH].copy_from_slice(&other[..HEADER_LENGTH]);
        let error = open(&cipher, &mixed).unwrap_err();
        assert!(
            matches!(error, FramedError::DamagedFrame { frame: 0, .. }),
            "{error}"
        );
    }
}

#[test]
fn an_object_under_another_name_or_of_another_kind_is_refused() {
    for cipher in ciphers() {
        let (object, places, _) = object(&cipher);
        for (kind, name) in [(KIND, "stanza/main/pack/ab/abce"), ("manifest", NAME)] {
            let error = open_bytes(&cipher, kind, name, &object).unwrap_err();
            assert!(matches!(error, FramedError::OtherObject { .. }), "{error}");
            assert!(
                error.to_string().contains(kind) && error.to_string().contains(name),
                "{error}"
            );
            let salt = FramedOpener::from_header(&cipher, KIND, NAME, &object)
                .unwrap()
                .salt();
            let opener = FramedOpener::from_salt(&cipher, kind, name, 0, salt).unwrap();
            let mut out = Vec::new();
            assert!(
                opener
                    .open(places[0], false, piece(&object, places[0]), &mut out)
                    .is_err()
            );
        }
    }
}

#[test]
fn the_wrong_key_is_told_apart_from_damage() {
    let (object, ..) = object(&sealed());
    let wrong = ObjectCipher::from_key(key(8));
    let error = open(&wrong, &object).unwrap_err();
    assert!(matches!(error, FramedError::WrongKey), "{error}");
    assert!(!error.is_damage() && error.hint().unwrap().contains("encryption"));
    // Damage stays damage, whatever the key.
    let mut damaged = object.to_vec();
    damaged[20] ^= 1;
    for cipher in [sealed(), wrong] {
        let error = open(&cipher, &damaged).unwrap_err();
        assert!(matches!(error, FramedError::DamagedHeader { .. }), "{error}");
        assert!(error.is_damage());
    }
}

#[test]
fn a_key_that_is_not_there_is_named() {
    let two = sealed().with_key(1, key(9));
    let (object, ..) = object(&two);
    let error = open(&sealed(), &object).unwrap_err();
    assert!(matches!(error, FramedError::UnknownKey { number: 1 }), "{error}");
    assert!(error.hint().unwrap().contains("repository.key.1"));
    let error = open(&ObjectCipher::plain(), &object).unwrap_err();
    assert!(matches!(error, FramedError::KeyNotGiven), "{error}");
}

#[test]
fn a_plain_object_in_an_encrypted_repository_is_refused() {
    let (object, ..) = object(&ObjectCipher::plain());
    let error = open(&sealed(), &object).unwrap_err();
    assert!(matches!(error, FramedError::NotEncrypted), "{error}");
}

#[test]
fn the_newest_key_seals_and_older_ones_open() {
    let (old, ..) = object(&sealed());
    let both = sealed().with_key(1, key(9));
    assert_eq!(both.key_number(), 1);
    assert_eq!(both.key_numbers(), [0, 1]);
    open(&both, &old).unwrap();
    let (new, ..) = object(&both);
    let opener = FramedOpener::from_header(&both, KIND, NAME, &new).unwrap();
    assert_eq!(opener.key_number(), 1);
}

#[test]
fn the_same_object_written_twice_shares_no_bytes_of_ciphertext() {
    let cipher = sealed();
    let (one, places, _) = object(&cipher);
    let (two, ..) = object(&cipher);
    let salt = |object: &Bytes| {
        FramedOpener::from_header(&cipher, KIND, NAME, object)
            .unwrap()
            .salt()
    };
    assert_ne!(salt(&one), salt(&two));
    for place in places {
        assert_ne!(piece(&one, place)[8..], piece(&two, place)[8..]);
    }
}

#[test]
fn a_sealed_object_shows_nothing_of_its_content() {
    let content = text(500);
    let object = seal_bytes(&sealed(), KIND, NAME, FrameCodec::None, &content).unwrap();
    assert!(!object.windows(20).any(|window| content.starts_with(window)));
}

#[test]
fn what_does_not_shrink_is_stored_as_it_is() {
    for codec in [FrameCodec::Zstd(1), FrameCodec::Lz4, FrameCodec::None] {
        let raw = noise(128 * 1024);
        let mut builder = FramedBuilder::new(&sealed(), KIND, NAME, 300_000).unwrap();
        let place = builder.push(codec, &raw).unwrap();
        assert_eq!((place.stored, place.raw), (raw.len() as u32, raw.len() as u32));
        let object = builder.finish(b"", codec).unwrap();
        assert_eq!(open(&sealed(), &object).unwrap(), raw);
    }
    let mut builder = FramedBuilder::new(&sealed(), KIND, NAME, 300_000).unwrap();
    let shrunk = builder.push(FrameCodec::Zstd(1), &text(128 * 1024)).unwrap();
    assert!(shrunk.stored < 2000);
}

#[test]
fn the_capacity_asked_for_is_enough_and_its_buffer_can_be_used_again() {
    let mut builder = FramedBuilder::new(&sealed(), KIND, NAME, 1024 * 1024).unwrap();
    let before = builder.len();
    assert!(builder.is_empty());
    while builder.len() < 1024 * 1024 {
        builder.push(FrameCodec::Zstd(1), &noise(128 * 1024)).unwrap();
    }
    assert!(before == HEADER_LENGTH && builder.frames() >= 8);
    let object = builder.finish(b"index", FrameCodec::None).unwrap();
    let place = object.as_ptr();
    let buffer = Vec::from(object);
    assert_eq!(buffer.as_ptr(), place, "the buffer comes back without a copy");
    let builder = FramedBuilder::with_buffer(&sealed(), KIND, NAME, buffer).unwrap();
    let object = builder.finish(b"small", FrameCodec::None).unwrap();
    assert_eq!(object.as_ptr(), place);
    assert_eq!(open(&sealed(), &object).unwrap(), b"small");
}

#[test]
fn large_and_empty_contents_survive() {
    for cipher in ciphers() {
        for content in [Vec::new(), text(1), text(1024 * 1024), text(5_000_001)] {
            for codec in [FrameCodec::None, FrameCodec::Zstd(1), FrameCodec::Lz4] {
                let object = seal_bytes(&cipher, "head", "stanza/main/head/1", codec, &content).unwrap();
                let back = open_bytes(&cipher, "head", "stanza/main/head/1", &object).unwrap();
                assert!(back == content);
            }
        }
    }
}

#[test]
fn a_frame_that_lies_about_its_content_is_found() {
    // Authentic, since its writer was wrong, not its storage: lengths are checked all the same.
    let cipher = ObjectCipher::plain();
    let header = Header::fresh(&cipher, KIND, NAME).unwrap();
    for (codec, payload, raw) in [
        (frame::ZSTD, zstd::bulk::compress(&text(1000), 1).unwrap(), 999),
        (frame::ZSTD, zstd::bulk::compress(&text(1000), 1).unwrap(), 1001),
        (frame::ZSTD, noise(100), 200),
        (frame::LZ4, lz4_flex::block::compress(&text(1000)), 999),
        (frame::LZ4, lz4_flex::block::compress(&text(1000)), 1001),
        (frame::RAW, text(100), 99),
        (9, text(100), 100),
    ] {
        let frame = frame::FrameHeader {
            stored: payload.len() as u32,
            raw,
            codec,
            is_final: true,
        };
        let mut object = header.bytes.to_vec();
        object.extend_from_slice(&frame.to_bytes());
        object.extend_from_slice(&payload);
        let mut sealed = payload.clone();
        object.extend_from_slice(&header.seal.seal(0, frame.to_bytes(), &mut sealed).unwrap());
        let trailer = Trailer {
            offset: HEADER_LENGTH as u64,
            frames: 1,
        };
        object.extend_from_slice(&trailer.to_bytes());
        let error = open(&cipher, &object).unwrap_err();
        assert!(
            matches!(error, FramedError::DamagedFrame { frame: 0, .. }),
            "{codec} {raw}: {error}"
        );
    }
}

#[test]
fn the_format_of_version_1_does_not_change() {
    // An object made by hand from the description, with nothing of the writer.
    let (kind, name) = ("kind", "a/name");
    let salt = [0x5a; 32];
    let mut clear = [&b"\x89PGMF\r\n\x1a"[..], &[1, 0, 0, 0], &[0; 4], &salt].concat();
    let context = [
        &b"pgmahout framed v1: context"[..],
        &clear,
        &[4, 0, 0, 0],
        kind.as_bytes(),
        &[6, 0, 0, 0],
        name.as_bytes(),
    ]
    .concat();
    let sha256 = |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    clear.extend_from_slice(sha256(&context).as_ref());
    let mut object = clear.clone();
    object.extend_from_slice(&blake3::hash(&clear).as_bytes()[..16]);
    let frame = [5, 0, 0, 0x80, 5, 0, 0, 0];
    let authenticated = [sha256(&object).as_ref(), &[0; 8], &frame, b"hello"].concat();
    object.extend_from_slice(&frame);
    object.extend_from_slice(b"hello");
    object.extend_from_slice(&blake3::hash(&authenticated).as_bytes()[..16]);
    let mut trailer = [96, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0].to_vec();
    trailer.extend_from_slice(&crc32c::crc32c(&trailer).to_le_bytes());
    object.extend_from_slice(&trailer);
    assert_eq!(
        open_bytes(&ObjectCipher::plain(), kind, name, &object).unwrap(),
        b"hello"
    );
}

#[test]
fn the_documentation_outside_is_the_same_as_the_one_here() {
    let comment = include_str!("../framed.rs")
        .lines()
        .skip_while(|line| *line != "//! # The framed object format, version 1")
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.strip_prefix("//! ").unwrap_or(""))
        .fold(String::new(), |text, line| text + line + "\n");
    assert!(comment.len() > 3000, "the comment was found");
    assert_eq!(
        include_str!("../../../../docs/framed-object-format.md"),
        comment,
        "copy the comment of framed.rs to docs/framed-object-format.md"
    );
}

fn codec() -> impl Strategy<Value = FrameCodec> {
    prop_oneof![
        Just(FrameCodec::None),
        (1_u8..=5).prop_map(FrameCodec::Zstd),
        Just(FrameCodec::Lz4)
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..3000),
        (0_usize..200_000).prop_map(text),
        (0_usize..200_000).prop_map(noise),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_frames_come_back(
        frames in proptest::collection::vec((codec(), content()), 1..8),
        is_sealed: bool,
        name in "[a-z/]{1,30}",
    ) {
        let cipher = if is_sealed { sealed() } else { ObjectCipher::plain() };
        let mut builder = FramedBuilder::new(&cipher, KIND, &name, 0).unwrap();
        let (last, before) = frames.split_last().unwrap();
        let places: Vec<_> = before
            .iter()
            .map(|(codec, content)| builder.push(*codec, content).unwrap())
            .collect();
        let object = builder.finish(&last.1, last.0).unwrap();
        let opener = FramedOpener::from_header(&cipher, KIND, &name, &object).unwrap();
        let mut out = Vec::new();
        for (place, (_, content)) in places.iter().zip(before) {
            opener.open(*place, false, piece(&object, *place), &mut out).unwrap();
            prop_assert_eq!(&out, content);
        }
        let all: Vec<u8> = frames.iter().flat_map(|(_, content)| content.iter().copied()).collect();
        prop_assert_eq!(opener.read_all(&object).unwrap(), all);
    }

    #[test]
    fn any_bytes_give_a_value_or_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), place: u16) {
        let _ = open(&sealed(), &bytes);
        let (object, ..) = object(&ObjectCipher::plain());
        let place = HEADER_LENGTH + usize::from(place) % (object.len() - HEADER_LENGTH);
        let mut damaged = object[..place].to_vec();
        damaged.append(&mut bytes);
        prop_assert!(open(&ObjectCipher::plain(), &damaged).is_err() || damaged == object);
    }
}
