use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

use super::*;

const FRAME: usize = 128 * 1024;

fn key(byte: u8) -> Key {
    Key::from_bytes([byte; 32])
}

fn key_file(byte: u8) -> Keyring {
    Keyring::new().with_credential(Credential::KeyFile(key(byte)))
}

/// A passphrase that is quick to derive.
fn passphrase(text: &str) -> Keyring {
    let cheap = Argon2Parameters {
        memory_kib: 32,
        passes: 1,
        lanes: 4,
    };
    Keyring::from_passphrase(text).unwrap().with_argon2(cheap)
}

fn dump() -> Context {
    Context::file("dump")
}

fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|position| (position % 251) as u8 ^ (position >> 8) as u8)
        .collect()
}

fn seal(keyring: &Keyring, context: &Context, plaintext: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(Vec::new(), keyring, context).unwrap();
    for piece in plaintext.chunks(10_007) {
        sealer.write_all(piece).unwrap();
    }
    sealer.finish().unwrap()
}

/// Opens, and checks that nothing but a prefix of `expected` was ever given out.
fn open(sealed: &[u8], keyring: &Keyring, context: &Context, expected: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut opener = Opener::new(sealed, keyring, context)?;
    let mut plaintext = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match opener.read(&mut buffer) {
            Ok(0) => return Ok(plaintext),
            Ok(count) => plaintext.extend_from_slice(&buffer[..count]),
            Err(error) => {
                assert!(
                    expected.starts_with(&plaintext),
                    "something that is not authentic was given out"
                );
                let again = opener.read(&mut buffer);
                assert!(again.is_err(), "after an error there is no end of file");
                return Err(SealError::from_io(error));
            }
        }
    }
}

#[test]
fn what_is_sealed_opens_again() {
    for length in [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 3 * FRAME + 77] {
        let plaintext = content(length);
        for (sealing, opening) in [
            (key_file(1), key_file(1)),
            (passphrase("correct horse"), passphrase("correct horse")),
            (
                Keyring::from_repository_key(key(2)),
                Keyring::from_repository_key(key(2)),
            ),
            (
                key_file(1)
                    .with_passphrase("or this")
                    .unwrap()
                    .with_argon2(cheap()),
                passphrase("or this"),
            ),
        ] {
            let sealed = seal(&sealing, &dump(), &plaintext);
            assert_eq!(
                open(&sealed, &opening, &dump(), &plaintext).unwrap(),
                plaintext,
                "{length}"
            );
            assert!(is_sealed(&sealed));
            let overhead = sealed.len() - plaintext.len();
            assert!(
                overhead < 600 + 20 * (length / FRAME),
                "{overhead} bytes more for {length}"
            );
        }
    }
}

fn cheap() -> Argon2Parameters {
    Argon2Parameters {
        memory_kib: 32,
        passes: 1,
        lanes: 4,
    }
}

#[test]
fn every_flipped_byte_is_found() {
    for (keyring, length) in [
        (key_file(1), 32 * 1024),
        (Keyring::from_repository_key(key(2)), 100),
    ] {
        let plaintext = content(length);
        let sealed = seal(&keyring, &dump(), &plaintext);
        for position in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[position] ^= 1 << (position % 8);
            let error = open(&damaged, &keyring, &dump(), &plaintext)
                .expect_err(&format!("a bit flipped in byte {position} was not found"));
            assert!(
                !matches!(
                    error,
                    SealError::WrongKey | SealError::KeyMissing { .. } | SealError::OtherObject
                ),
                "damage at {position} was taken for a wrong key: {error}"
            );
        }
    }
}

#[test]
fn every_flipped_byte_of_a_passphrase_header_is_damage_and_never_a_wrong_passphrase() {
    let keyring = passphrase("correct horse");
    let sealed = seal(&keyring, &dump(), b"row\n");
    for position in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[position] ^= 0x04;
        let error = open(&damaged, &keyring, &dump(), b"row\n").unwrap_err();
        assert!(
            !matches!(error, SealError::WrongKey | SealError::KeyMissing { .. }),
            "{position}: {error}"
        );
    }
}

#[test]
fn every_truncation_is_found_and_told_as_one() {
    let plaintext = content(32 * 1024);
    let keyring = key_file(1);
    let sealed = seal(&keyring, &dump(), &plaintext);
    for length in 0..sealed.len() {
        let error = open(&sealed[..length], &keyring, &dump(), &plaintext).unwrap_err();
        let told = matches!(error, SealError::Truncated { .. })
            || (length == 0 && matches!(error, SealError::NotSealed));
        assert!(told, "cut to {length}: {error}");
    }
}

#[test]
fn bytes_after_the_end_are_found() {
    let keyring = key_file(1);
    let sealed = seal(&keyring, &dump(), b"rows");
    for garbage in [&b"x"[..], &sealed] {
        let error = open(&[&sealed, garbage].concat(), &keyring, &dump(), b"rows").unwrap_err();
        assert!(
            matches!(error, SealError::TrailingBytes { offset } if offset == sealed.len() as u64),
            "{error}"
        );
    }
}

/// A sealed file cut into its header and its frames.
fn frames(sealed: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let slots = usize::from(sealed[80]);
    let (header, mut rest) = sealed.split_at(80 + 4 + 96 * slots + 64);
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let word = u32::from_le_bytes(rest[..4].try_into().unwrap());
        let (frame, after) = rest.split_at(4 + (word & 0x7fff_ffff) as usize + 16);
        frames.push(frame.to_vec());
        rest = after;
    }
    (header.to_vec(), frames)
}

#[test]
fn frames_that_are_swapped_dropped_doubled_or_foreign_are_found() {
    let plaintext = content(4 * FRAME + 100);
    let keyring = key_file(1);
    let (header, own) = frames(&seal(&keyring, &dump(), &plaintext));
    let (_, foreign) = frames(&seal(&keyring, &dump(), &plaintext));
    assert_eq!(own.len(), 5);
    let join = |frames: &[Vec<u8>]| [&header[..], &frames.concat()].concat();
    assert_eq!(
        open(&join(&own), &keyring, &dump(), &plaintext).unwrap(),
        plaintext
    );

    let mut tampered = Vec::new();
    for first in 0..5 {
        for second in first + 1..5 {
            let mut swapped = own.clone();
            swapped.swap(first, second);
            tampered.push((swapped, first));
        }
        let mut dropped = own.clone();
        dropped.remove(first);
        tampered.push((dropped, first));
        let mut doubled = own.clone();
        doubled.insert(first, own[first].clone());
        tampered.push((doubled, first + 1));
        let mut mixed = own.clone();
        mixed[first].clone_from(&foreign[first]);
        tampered.push((mixed, first));
    }
    for (frames, first_wrong) in tampered {
        let error = open(&join(&frames), &keyring, &dump(), &plaintext).unwrap_err();
        match error {
            SealError::DamagedFrame { frame, offset } => {
                assert_eq!(frame, first_wrong as u64);
                assert_eq!(offset, (header.len() + first_wrong * (FRAME + 20)) as u64);
            }
            // The last frame was dropped, or doubled.
            SealError::Truncated { frame, .. } => assert_eq!((frame, first_wrong), (4, 4)),
            SealError::TrailingBytes { .. } => assert_eq!(first_wrong, 5),
            other => panic!("{other}"),
        }
    }
    // A final mark on a frame that is not the last, with the rest cut off.
    let mut short = own[..2].to_vec();
    short[1][3] |= 0x80;
    assert!(matches!(
        open(&join(&short), &keyring, &dump(), &plaintext).unwrap_err(),
        SealError::DamagedFrame { frame: 1, .. }
    ));
}

#[test]
fn a_wrong_key_is_told_from_damage() {
    let says = "the passphrase or key does not open this file";
    for (sealing, opening) in [
        (passphrase("right"), passphrase("wrong")),
        (key_file(1), key_file(2)),
        (
            Keyring::from_repository_key(key(1)),
            Keyring::from_repository_key(key(2)),
        ),
    ] {
        let sealed = seal(&sealing, &dump(), b"rows");
        let error = open(&sealed, &opening, &dump(), b"").unwrap_err();
        assert_eq!(error.to_string(), says);
        assert!(error.hint().is_some());
    }
    for (sealing, opening, needed) in [
        (
            passphrase("right"),
            key_file(1),
            "the file is sealed with a passphrase, which was not given",
        ),
        (
            key_file(1),
            passphrase("x"),
            "the file is sealed with a key file, which was not given",
        ),
        (
            Keyring::from_repository_key(key(1)),
            key_file(1),
            "the file is sealed with the repository's key, which was not given",
        ),
    ] {
        let sealed = seal(&sealing, &dump(), b"rows");
        let error = open(&sealed, &opening, &dump(), b"").unwrap_err();
        assert_eq!(error.to_string(), needed);
        assert_eq!(error.outcome(), Outcome::Usage);
    }
    let error = open(b"-- PostgreSQL database dump\n", &key_file(1), &dump(), b"").unwrap_err();
    assert_eq!(error.to_string(), "not a file sealed by pgmahout");
}

#[test]
fn a_file_does_not_open_as_another_kind_or_under_another_name() {
    let keyring = Keyring::from_repository_key(key(1));
    let sealed = seal(&keyring, &Context::object("dump", "shop/1"), b"rows");
    for context in [
        Context::object("dump", "shop/2"),
        Context::object("manifest", "shop/1"),
        // The border between kind and name is bound too.
        Context::object("dumpshop/1", ""),
        Context::file("dump"),
    ] {
        let error = open(&sealed, &keyring, &context, b"").unwrap_err();
        assert!(matches!(error, SealError::OtherObject), "{context:?}: {error}");
    }
    assert_eq!(
        open(&sealed, &keyring, &Context::object("dump", "shop/1"), b"rows").unwrap(),
        b"rows"
    );
}

#[test]
fn an_old_repository_key_still_opens_and_the_first_seals() {
    let both = Keyring::from_repository_key(key(2)).with_repository_key(key(1));
    let old = seal(&Keyring::from_repository_key(key(1)), &dump(), b"old");
    let new = seal(&both, &dump(), b"new");
    assert_eq!(open(&old, &both, &dump(), b"old").unwrap(), b"old");
    assert_eq!(
        open(&new, &Keyring::from_repository_key(key(2)), &dump(), b"new").unwrap(),
        b"new"
    );
}

#[test]
fn a_hostile_header_cannot_eat_memory_or_time() {
    let sealed = seal(&passphrase("x"), &dump(), b"rows");
    for (memory_kib, passes, lanes) in [
        (u32::MAX, 1, 1),
        (257 * 1024, 1, 1),
        (64 * 1024, 17, 1),
        (256 * 1024, 9, 1),
        (64, 1, 9),
        (8, 1, 4),
        (64, 0, 1),
        (64, 1, 0),
    ] {
        let mut hostile = sealed.clone();
        hostile[88..92].copy_from_slice(&u32::to_le_bytes(memory_kib));
        hostile[92..96].copy_from_slice(&u32::to_le_bytes(passes));
        hostile[96..100].copy_from_slice(&u32::to_le_bytes(lanes));
        // An attacker can compute the checksum.
        let checksum = header::digest_of(&[&hostile[..80 + 4 + 96 + 32]]);
        hostile[80 + 4 + 96 + 32..][..32].copy_from_slice(&checksum);
        let error = open(&hostile, &passphrase("x"), &dump(), b"").unwrap_err();
        assert!(
            matches!(error, SealError::UnreasonableParameters { .. }),
            "{memory_kib} {passes} {lanes}: {error}"
        );
    }
}

#[test]
fn a_header_changed_by_somebody_without_the_key_is_found_although_its_checksum_matches() {
    let keyring = passphrase("x").with_credential(Credential::KeyFile(key(1)));
    let sealed = seal(&keyring, &dump(), b"rows");
    // The attacker removes the second slot and computes the checksum anew.
    let mut header = sealed[..80 + 4 + 96].to_vec();
    header[80] = 1;
    header.extend_from_slice(&sealed[80 + 4 + 2 * 96..][..32]);
    let checksum = header::digest_of(&[&header]);
    header.extend_from_slice(&checksum);
    header.extend_from_slice(&sealed[80 + 4 + 2 * 96 + 64..]);
    let error = open(&header, &keyring, &dump(), b"").unwrap_err();
    assert!(matches!(error, SealError::DamagedHeader { .. }), "{error}");
}

#[test]
fn two_files_of_the_same_content_have_nothing_in_common() {
    let keyring = Keyring::from_repository_key(key(1));
    let (one, two) = (
        seal(&keyring, &dump(), &content(1000)),
        seal(&keyring, &dump(), &content(1000)),
    );
    assert_ne!(one[16..48], two[16..48], "salts");
    let (_, one) = frames(&one);
    let (_, two) = frames(&two);
    let equal = one[0]
        .iter()
        .zip(&two[0])
        .skip(4)
        .filter(|(left, right)| left == right)
        .count();
    assert!(equal < 50, "{equal} of 1016 bytes are equal");
}

#[test]
fn a_sealer_that_is_not_finished_leaves_a_truncated_file() {
    let mut output = Vec::new();
    let mut sealer = Sealer::new(&mut output, &key_file(1), &dump()).unwrap();
    sealer.write_all(&content(2 * FRAME + 5)).unwrap();
    drop(sealer);
    let error = open(&output, &key_file(1), &dump(), &content(2 * FRAME)).unwrap_err();
    assert!(matches!(error, SealError::Truncated { frame: 2, .. }), "{error}");
}

#[test]
fn a_new_passphrase_opens_the_rewrapped_file_and_the_old_one_does_not() {
    let plaintext = content(2 * FRAME + 9);
    let sealed = seal(&passphrase("old"), &dump(), &plaintext);
    let mut rewrapped = Vec::new();
    rewrap(
        &sealed[..],
        &mut rewrapped,
        &passphrase("old"),
        &passphrase("new"),
    )
    .unwrap();
    assert_eq!(
        open(&rewrapped, &passphrase("new"), &dump(), &plaintext).unwrap(),
        plaintext
    );
    assert!(matches!(
        open(&rewrapped, &passphrase("old"), &dump(), b"").unwrap_err(),
        SealError::WrongKey
    ));
    let (_, before) = frames(&sealed);
    assert!(before == frames(&rewrapped).1, "the frames stay as they are");

    let mut nowhere = Vec::new();
    assert!(matches!(
        rewrap(
            &sealed[..],
            &mut nowhere,
            &passphrase("guess"),
            &passphrase("new")
        )
        .unwrap_err(),
        SealError::WrongKey
    ));
    let error = rewrap(
        &sealed[..sealed.len() - 1],
        &mut nowhere,
        &passphrase("old"),
        &passphrase("new"),
    );
    assert!(
        matches!(error.unwrap_err(), SealError::Truncated { .. }),
        "a damaged file is not rewrapped as if whole"
    );
}

#[test]
fn a_repository_key_comes_back_from_its_object_and_from_no_other() {
    let (key, object) = create_repository_key(0, &passphrase("x")).unwrap();
    assert!(open_repository_key(0, &object, &passphrase("x")).unwrap() == key);
    assert!(matches!(
        open_repository_key(0, &object, &passphrase("y")).unwrap_err(),
        SealError::WrongKey
    ));
    for position in 0..object.len() {
        let mut damaged = object.clone();
        damaged[position] ^= 1;
        assert!(
            open_repository_key(0, &damaged, &passphrase("x")).is_err(),
            "{position}"
        );
        assert!(
            open_repository_key(0, &object[..position], &passphrase("x")).is_err(),
            "{position}"
        );
    }
    let ordinary = seal(&passphrase("x"), &dump(), b"");
    assert!(matches!(
        open_repository_key(0, &ordinary, &passphrase("x")).unwrap_err(),
        SealError::OtherObject
    ));
    assert!(matches!(
        create_repository_key(0, &Keyring::new()).unwrap_err(),
        SealError::NoKey
    ));
}

#[test]
fn a_header_says_what_opens_it() {
    let kinds = |keyring: &Keyring| inspect(&mut &seal(keyring, &dump(), b"")[..]).unwrap().slots;
    assert_eq!(kinds(&passphrase("x")), [SlotKind::Passphrase]);
    assert_eq!(
        kinds(&key_file(1).with_passphrase("x").unwrap().with_argon2(cheap())),
        [SlotKind::KeyFile, SlotKind::Passphrase]
    );
    assert_eq!(kinds(&Keyring::from_repository_key(key(1))), []);
}

#[test]
fn the_format_is_as_documented() {
    // A reader written from the documentation alone, for the key file and the repository's key.
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    use aws_lc_rs::{digest, hkdf, hmac};
    let derive = |secret: &[u8], salt: &[u8], purpose: &str| {
        let mut key = [0; 32];
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
        extracted
            .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
            .unwrap()
            .fill(&mut key)
            .unwrap();
        key
    };
    let decrypt = |key: &[u8], nonce: [u8; 12], aad: Vec<u8>, bytes: &[u8]| {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
        let mut bytes = bytes.to_vec();
        key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut bytes)
            .unwrap()
            .to_vec()
    };
    let sha256 = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes).as_ref().to_vec();
    let plaintext = content(FRAME + 10);
    let sealed = seal(&key_file(9), &Context::object("dump", "a/b"), &plaintext);

    let (preamble, section) = sealed.split_at(80);
    assert_eq!(preamble[..8], *b"\x89PGMS\r\n\x1a");
    assert_eq!(preamble[8..16], [1, 0, 1, 0, 0, 0, 2, 0]);
    let salt = &preamble[16..48];
    let context = [
        b"pgmahout sealed v1: context",
        salt,
        &[4, 0, 0, 0],
        b"dump",
        &[3, 0, 0, 0],
        b"a/b",
    ]
    .concat();
    assert_eq!(preamble[48..], sha256(&context));
    assert_eq!(section[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
    let slot = &section[4..100];
    let slot_key = derive(&[9; 32], &slot[16..48], "pgmahout sealed v1: key file slot");
    let aad = [b"pgmahout sealed v1: slot", preamble, &slot[..48]].concat();
    let object_key = decrypt(&slot_key, [0; 12], aad, &slot[48..]);
    let header_key = hmac::Key::new(
        hmac::HMAC_SHA256,
        &derive(&object_key, salt, "pgmahout sealed v1: header"),
    );
    hmac::verify(&header_key, &sealed[..180], &sealed[180..212]).unwrap();
    assert_eq!(sealed[212..244], sha256(&sealed[..212]));

    let frame_key = derive(&object_key, salt, "pgmahout sealed v1: frames");
    let mut rest = &sealed[244..];
    let mut opened = Vec::new();
    for index in 0_u64.. {
        let word = u32::from_le_bytes(rest[..4].try_into().unwrap());
        let length = (word & 0x7fff_ffff) as usize;
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&index.to_be_bytes());
        let aad = [&sha256(preamble)[..], &index.to_le_bytes(), &rest[..4]].concat();
        opened.extend(decrypt(&frame_key, nonce, aad, &rest[4..4 + length + 16]));
        rest = &rest[4 + length + 16..];
        if word >> 31 == 1 {
            break;
        }
    }
    assert!(rest.is_empty() && opened == plaintext);
}

#[test]
fn the_documentation_outside_is_the_same_as_the_one_here() {
    let source = include_str!("../seal.rs");
    let guide = include_str!("../../../../docs/sealed-file-format.md");
    let comment = source
        .lines()
        .skip_while(|line| *line != "//! # The sealed file format, version 1")
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.strip_prefix("//! ").unwrap_or(""))
        .fold(String::new(), |text, line| text + line + "\n");
    assert!(comment.len() > 3000, "the comment was found");
    assert_eq!(
        guide, comment,
        "copy the comment of seal.rs to docs/sealed-file-format.md"
    );
}

#[test]
fn key_files_are_made_private_and_read_in_every_form() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let key = generate_key_file(&path).unwrap();
    assert!(read_key_file(&path).unwrap() == key);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let error = generate_key_file(&path).unwrap_err();
    assert!(
        matches!(error, SealError::KeyFile { action: "create", .. }),
        "a key file is never overwritten: {error}"
    );
    assert!(read_key_file(&path).unwrap() == key);

    let raw: [u8; 32] = std::array::from_fn(|position| position as u8 * 7 + 1);
    let hexadecimal = crate::digest::hexadecimal(&raw).to_ascii_uppercase();
    let base64 = "AQgPFh0kKzI5QEdOVVxjanF4f4aNlJuiqbC3vsXM09o=";
    for text in [
        &raw[..],
        hexadecimal.as_bytes(),
        format!("  {hexadecimal}\n").as_bytes(),
        base64.as_bytes(),
        &base64.as_bytes()[..43],
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(read_key_file(&path).unwrap().as_bytes(), &raw);
    }
    for bad in [
        &b""[..],
        b"short",
        &[0; 31],
        &[0; 33],
        "0".repeat(63).as_bytes(),
        "g".repeat(64).as_bytes(),
        &[b'a'; 300],
        "A".repeat(42).as_bytes(),
        "!".repeat(44).as_bytes(),
    ] {
        std::fs::write(&path, bad).unwrap();
        assert!(
            matches!(read_key_file(&path).unwrap_err(), SealError::NotAKeyFile { .. }),
            "{bad:?}"
        );
    }

    std::fs::write(&path, raw).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = read_key_file(&path).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("may be accessed by other users (mode 0644)"),
        "{error}"
    );
    assert_eq!(error.hint().unwrap(), format!("chmod 600 {}", path.display()));
    let error = read_key_file(&directory.path().join("none")).unwrap_err();
    assert!(
        error.to_string().starts_with("cannot read the key file"),
        "{error}"
    );
}

#[test]
fn nothing_secret_is_printed() {
    let keyring = passphrase("hunter2")
        .with_credential(Credential::KeyFile(key(7)))
        .with_repository_key(key(8));
    let printed = format!("{keyring:?} {:?}", key(7));
    assert!(
        !printed.contains("hunter2") && !printed.contains("7, 7") && !printed.contains("8, 8"),
        "{printed}"
    );
    assert!(printed.contains("***"));
}

#[test]
fn there_must_be_something_to_seal_with() {
    assert!(matches!(
        Keyring::from_passphrase("").unwrap_err(),
        SealError::EmptyPassphrase
    ));
    let refused = |keyring: &Keyring| Sealer::new(Vec::new(), keyring, &dump()).map(|_| ()).unwrap_err();
    assert!(matches!(refused(&Keyring::new()), SealError::NoKey));
    let many = (0..9).fold(Keyring::new(), |ring, byte| {
        ring.with_credential(Credential::KeyFile(key(byte)))
    });
    assert!(matches!(refused(&many), SealError::TooManyKeys { given: 9 }));
}

#[test]
fn an_error_of_the_output_is_kept_and_nothing_follows_it() {
    struct Full(Vec<u8>, usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.len() + bytes.len() > self.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut sealer = Sealer::new(Full(Vec::new(), 200_000), &key_file(1), &dump()).unwrap();
    let error = sealer.write_all(&content(10 * FRAME)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(sealer.write(b"more").is_err());
    assert!(sealer.finish().is_err());
}

#[test]
fn an_interrupted_or_slow_input_is_read_to_its_end() {
    struct Slow(Cursor<Vec<u8>>, bool);
    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = buffer.len().min(7);
            self.0.read(&mut buffer[..count])
        }
    }
    let plaintext = content(FRAME + 3);
    let sealed = seal(&key_file(1), &dump(), &plaintext);
    let mut opened = Vec::new();
    let mut opener = Opener::new(Slow(Cursor::new(sealed), false), &key_file(1), &dump()).unwrap();
    opener.read_to_end(&mut opened).unwrap();
    assert!(opened == plaintext);
}

proptest::proptest! {
    #[test]
    fn no_input_makes_the_opener_panic_or_give_anything(
        garbage in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..700),
        ours in proptest::prelude::any::<bool>(),
        slots in 0_u8..12,
    ) {
        let mut bytes = garbage;
        if ours && bytes.len() > 84 {
            // Past the first checks: our magic and version, and a checksum that an attacker can make.
            bytes[..16].copy_from_slice(b"\x89PGMS\r\n\x1a\x01\x00\x01\x00\x00\x00\x02\x00");
            bytes[80..84].copy_from_slice(&[slots, 0, 0, 0]);
            let end = 80 + 4 + 96 * usize::from(slots) + 32;
            if bytes.len() >= end + 32 {
                let checksum = header::digest_of(&[&bytes[..end]]);
                bytes[end..end + 32].copy_from_slice(&checksum);
            }
        }
        let keyring = key_file(1).with_repository_key(key(2));
        proptest::prop_assert!(open(&bytes, &keyring, &dump(), b"").is_err());
        let _ = inspect(&mut &bytes[..]);
    }
}
