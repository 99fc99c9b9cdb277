//! Files from packs in memory into real directories.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use pgmahout_store::StoreError;
use pgmahout_store::framed::{FrameCodec, FramedBuilder, ObjectCipher};
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use pgmahout_types::repository::{BLOCK_SIZE, PackId, PageHash, PageMap, PageMapBuilder};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::super::error::RestoreError;
use super::super::owner::Ownership;
use super::fetch::{Manner, ObjectSource, Packs};
use super::write::{Tally, Target, Writer};

const KEY: [u8; 32] = [7; 32];
const BLOCK: usize = BLOCK_SIZE as usize;

/// Packs in memory, with the requests that were made.
#[derive(Default)]
struct Memory {
    objects: HashMap<String, Vec<u8>>,
    requests: Mutex<Vec<(u64, usize)>>,
}

impl ObjectSource for Memory {
    fn manner(&self) -> Manner {
        Manner::REMOTE
    }

    fn read(&self, object: &str, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<(), StoreError> {
        self.requests.lock().expect("no panic").push((offset, length));
        let offset = usize::try_from(offset).expect("small");
        out.clear();
        out.extend_from_slice(&self.objects[object][offset..offset + length]);
        Ok(())
    }
}

/// A backed up file: one pack, frames of four blocks, zero blocks stored nowhere.
struct Stored {
    memory: Memory,
    entries: Vec<PackEntry>,
    map: PageMap,
}

fn store(content: &[u8]) -> Stored {
    let cipher = ObjectCipher::plain();
    let id = PackId::from_bytes([9; 16]);
    let name = id.to_string();
    let mut builder = FramedBuilder::new(&cipher, "pack", &name, 1 << 20).expect("memory");
    let mut map = PageMapBuilder::new();
    let blocks: Vec<&[u8]> = content.chunks(BLOCK).collect();
    let mut index = 0;
    while index < blocks.len() {
        let zero = |block: &&&[u8]| block.iter().all(|byte| *byte == 0);
        let zeros = blocks[index..].iter().take_while(zero).count();
        if zeros > 0 {
            map.zeros(u32::try_from(zeros).expect("few"));
            index += zeros;
            continue;
        }
        let count = blocks[index..]
            .iter()
            .take_while(|block| !zero(block))
            .count()
            .min(4);
        let raw = blocks[index..index + count].concat();
        let hashes: Vec<PageHash> = blocks[index..index + count]
            .iter()
            .map(|block| PageHash::of(&KEY, block))
            .collect();
        let location = builder.push(FrameCodec::Zstd(1), &raw).expect("a frame");
        map.stored(id, location, 0, &hashes);
        index += count;
    }
    let (key, salt) = (builder.key_number(), builder.salt());
    let object = builder.finish(b"", FrameCodec::None).expect("a pack").to_vec();
    let size = object.len() as u64;
    let mut memory = Memory::default();
    memory.objects.insert(name, object);
    Stored {
        memory,
        entries: vec![PackEntry {
            id,
            kind: PackKind::Data,
            key,
            salt,
            size,
            live: content.len() as u64,
        }],
        map: map.finish(content.len() as u64).expect("consistent"),
    }
}

fn restore(stored: &Stored, path: &Path, delta: bool, tally: &Tally) -> Result<(), RestoreError> {
    with_writer(stored, delta, tally, |writer| {
        writer.group(&[target(stored, path)])
    })
}

/// The same in parts of so many blocks, by three threads.
fn restore_in_parts(
    stored: &Stored,
    path: &Path,
    delta: bool,
    tally: &Tally,
    part: u32,
) -> Result<(), RestoreError> {
    with_writer(stored, delta, tally, |writer| {
        let target = target(stored, path);
        let opened = writer.open(&target)?;
        let blocks = target.map.blocks();
        let next = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let work = || {
                loop {
                    let first = next.fetch_add(part, Ordering::Relaxed);
                    if first >= blocks {
                        return Ok(());
                    }
                    writer.part(&target, &opened, first..blocks.min(first + part))?;
                }
            };
            let workers = [scope.spawn(work), scope.spawn(work), scope.spawn(work)];
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("no panic"))
        })
    })
}

fn target(stored: &Stored, path: &Path) -> Target {
    Target {
        path: path.to_owned(),
        name: "base/5/1259".to_owned(),
        mode: 0o600,
        map: stored.map.clone(),
        packs: vec![0],
    }
}

fn with_writer<T>(stored: &Stored, delta: bool, tally: &Tally, work: impl FnOnce(&Writer<'_>) -> T) -> T {
    let cipher = ObjectCipher::plain();
    let cancellation = CancellationToken::new();
    let names = |entry: &PackEntry| ("pack", entry.id.to_string());
    let packs = Packs::new(&stored.memory, &cipher, &stored.entries, &names, &cancellation);
    work(&Writer {
        packs: &packs,
        hash_key: &KEY,
        owner: Ownership {
            uid: 0,
            gid: 0,
            give: false,
        },
        delta,
        tally,
        done: &|_| {},
    })
}

/// Blocks by number: 0 is a zero block, everything else a block of that content. The last one is short.
fn content(blocks: &[u8], last: usize) -> Vec<u8> {
    let mut content: Vec<u8> = blocks
        .iter()
        .enumerate()
        .flat_map(|(index, number)| {
            (0..BLOCK).map(move |byte| match number {
                0 => 0,
                number => number.wrapping_add((byte * index) as u8) | 1,
            })
        })
        .collect();
    let length = content.len().saturating_sub(BLOCK - last);
    content.truncate(length);
    content
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    (directory, path)
}

#[test]
fn a_file_comes_back_with_its_holes_and_its_mode() {
    let (_directory, path) = place();
    let mut blocks = vec![0; 300];
    blocks[0] = 3;
    blocks[299] = 5;
    let content = content(&blocks, 100);
    let tally = Tally::default();
    restore(&store(&content), &path, false, &tally).expect("restored");
    assert_eq!(fs::read(&path).expect("readable"), content);
    let metadata = fs::metadata(&path).expect("there");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert!(
        metadata.blocks() * 512 < 64 << 10,
        "{} blocks on the disk",
        metadata.blocks()
    );
    assert_eq!(tally.written.load(Ordering::Relaxed), 8192 + 100);
}

#[test]
fn a_large_file_comes_back_in_parts_and_delta_repairs_it_in_parts() {
    let (_directory, path) = place();
    let blocks: Vec<u8> = (0_u32..700)
        .map(|number| if number % 90 < 20 { 0 } else { number as u8 | 1 })
        .collect();
    let content = content(&blocks, 4099);
    let stored = store(&content);
    let tally = Tally::default();
    restore_in_parts(&stored, &path, false, &tally, 75).expect("restored");
    assert!(fs::read(&path).expect("readable") == content);
    let zeros = stored.map.zero_bytes();
    assert_eq!(
        tally.written.load(Ordering::Relaxed),
        content.len() as u64 - zeros
    );
    assert_eq!(tally.files.load(Ordering::Relaxed), 1);
    let metadata = fs::metadata(&path).expect("there");
    assert!(
        metadata.blocks() * 512 <= content.len() as u64 - zeros + (64 << 10),
        "{} blocks on the disk",
        metadata.blocks()
    );
    let file = fs::OpenOptions::new().write(true).open(&path).expect("writable");
    for block in [0, 5, 74, 75, 400, 699] {
        file.write_all_at(b"damage", block * 8192 + 50).expect("writable");
    }
    let tally = Tally::default();
    restore_in_parts(&stored, &path, true, &tally, 75).expect("restored");
    assert!(fs::read(&path).expect("readable") == content);
    // The first two are zero blocks, made holes again; the last one is short.
    assert_eq!(tally.written.load(Ordering::Relaxed), 5 * 8192 + 4099);
    assert_eq!(tally.files.load(Ordering::Relaxed), 1);
}

#[test]
fn neighbouring_frames_are_one_request() {
    let (_directory, path) = place();
    let content = content(&[1; 64], BLOCK);
    let stored = store(&content);
    restore(&stored, &path, false, &Tally::default()).expect("restored");
    assert_eq!(stored.memory.requests.lock().expect("no panic").len(), 1);
}

#[test]
fn a_block_with_another_hash_is_named_and_never_written() {
    let (_directory, path) = place();
    let content = content(&[1, 2, 3, 4, 5], BLOCK);
    let mut stored = store(&content);
    // A whole and authentic pack that holds something else: only the hash of the block can tell.
    let mut other = content.clone();
    other[4 * BLOCK + 17] ^= 1;
    let changed = store(&other);
    stored.memory = changed.memory;
    stored.entries = changed.entries;
    stored.map = {
        let mut map = PageMapBuilder::new();
        for run in changed.map.runs() {
            let pgmahout_types::repository::Source::Frame { frame, offset } = run.extent.source else {
                continue;
            };
            let hashes: Vec<PageHash> = (run.extent.first..run.extent.end())
                .map(|block| {
                    let at = block as usize * BLOCK;
                    PageHash::of(&KEY, &content[at..at + BLOCK])
                })
                .collect();
            map.stored(
                changed.map.packs()[0],
                changed.map.frames()[frame as usize].location,
                offset,
                &hashes,
            );
        }
        map.finish(content.len() as u64).expect("consistent")
    };
    let error = restore(&stored, &path, false, &Tally::default()).expect_err("a wrong block");
    assert!(
        matches!(&error, RestoreError::WrongBlock { block: 4, file, .. } if file == "base/5/1259"),
        "{error}"
    );
    let written = fs::read(&path).expect("readable");
    assert!(written[4 * BLOCK..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_flipped_bit_of_a_plain_repository_is_found() {
    let (_directory, path) = place();
    let mut stored = store(&content(&[1, 2, 3], BLOCK));
    let object = stored.memory.objects.values_mut().next().expect("a pack");
    object[150] ^= 1;
    let error = restore(&stored, &path, false, &Tally::default()).expect_err("damage");
    assert!(matches!(error, RestoreError::Framed { .. }), "{error}");
}

#[test]
fn delta_fetches_only_what_differs_and_cuts_what_has_grown() {
    let (_directory, path) = place();
    let blocks: Vec<u8> = (0..64)
        .map(|number| if number % 5 == 0 { 0 } else { number })
        .collect();
    let content = content(&blocks, 1000);
    let stored = store(&content);
    restore(&stored, &path, false, &Tally::default()).expect("restored");
    let file = fs::OpenOptions::new().write(true).open(&path).expect("writable");
    file.write_all_at(b"damage", 7 * 8192 + 50).expect("writable");
    // Old bytes where a hole belongs, and behind the end.
    file.write_all_at(b"old bytes", 10 * 8192 + 1).expect("writable");
    file.write_all_at(b"more", 100 * 8192).expect("writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("owned");
    stored.memory.requests.lock().expect("no panic").clear();
    let tally = Tally::default();
    restore(&stored, &path, true, &tally).expect("restored");
    assert_eq!(fs::read(&path).expect("readable"), content);
    assert_eq!(
        fs::metadata(&path).expect("there").permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(stored.memory.requests.lock().expect("no panic").len(), 1);
    assert_eq!(tally.written.load(Ordering::Relaxed), 2 * 8192);
    // Everything right: nothing is read from the repository.
    stored.memory.requests.lock().expect("no panic").clear();
    restore(&stored, &path, true, &Tally::default()).expect("restored");
    assert!(stored.memory.requests.lock().expect("no panic").is_empty());
}

#[test]
fn delta_replaces_a_link_or_directory_and_never_writes_through_it() {
    let (directory, path) = place();
    let stored = store(&content(&[1, 2], BLOCK));
    let precious = directory.path().join("precious");
    fs::write(&precious, "precious").expect("writable");
    std::os::unix::fs::symlink(&precious, &path).expect("writable");
    restore(&stored, &path, true, &Tally::default()).expect("restored");
    assert!(fs::symlink_metadata(&path).expect("there").is_file());
    assert_eq!(fs::read(&precious).expect("there"), b"precious");
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("writable");
    restore(&stored, &path, true, &Tally::default()).expect("restored");
    assert!(fs::symlink_metadata(&path).expect("there").is_file());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever was there before, delta makes the file that was backed up.
    #[test]
    fn delta_makes_the_same_file_of_anything(
        blocks in proptest::collection::vec(0_u8..4, 0..40),
        before in proptest::collection::vec(0_u8..4, 0..50),
        last in 1_usize..=BLOCK,
        last_before in 1_usize..=BLOCK,
    ) {
        let (_directory, path) = place();
        let content = content(&blocks, last);
        fs::write(&path, super::tests::content(&before, last_before)).expect("writable");
        restore(&store(&content), &path, true, &Tally::default()).expect("restored");
        prop_assert!(fs::read(&path).expect("readable") == content);
    }

    /// So it does in parts.
    #[test]
    fn delta_in_parts_makes_the_same_file_of_anything(
        blocks in proptest::collection::vec(0_u8..4, 1..40),
        before in proptest::collection::vec(0_u8..4, 0..50),
        last in 1_usize..=BLOCK,
        last_before in 1_usize..=BLOCK,
        part in 1_u32..20,
    ) {
        let (_directory, path) = place();
        let content = content(&blocks, last);
        fs::write(&path, super::tests::content(&before, last_before)).expect("writable");
        restore_in_parts(&store(&content), &path, true, &Tally::default(), part).expect("restored");
        prop_assert!(fs::read(&path).expect("readable") == content);
    }
}
