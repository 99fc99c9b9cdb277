//! A small encrypted repository of every kind of object, made by the engine's own code, and each of its bytes
//! flipped, one at a time: verification finds it, and nothing that is read is other than what was written.
//!
//! `cargo xtask proof flips` flips every byte here, and random ones of a real repository; otherwise some are.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use jiff::Timestamp;
use pgmahout_backup::physical::stanza::{InitOptions, PhysicalRepository, RepositoryMemory, kind};
use pgmahout_backup::physical::verify::{self, Budget, VerifyMemory, VerifyReport, VerifyRequest};
use pgmahout_backup::physical::wal::WalArchive;
use pgmahout_procedure::report::Recording;
use pgmahout_store::framed::{FrameCodec, FramedBuilder};
use pgmahout_store::repository::{EncryptionSettings, Location, PutMode, Repository, RepositorySettings};
use pgmahout_types::control::DataChecksums;
use pgmahout_types::repository::manifest::{
    Area, Content, Entry, File, FileKind, Header, MapContent, MapRef, Owner, PackEntry, PackKind, WalRange,
    Work,
};
use pgmahout_types::repository::pack_index::{IndexedFrame, IndexedRun};
use pgmahout_types::repository::page_map::InlineMap;
use pgmahout_types::repository::stanza_info::StanzaSystem;
use pgmahout_types::repository::{
    FileId, FrameRef, Label, Method, PackId, PackIndex, PageHash, PageMap, PageMapBuilder, RelativePath,
    StanzaInfo,
};
use pgmahout_types::version::ServerVersion;
use pgmahout_types::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const BLOCK: usize = 8192;
const SYSTEM: u64 = 7_710_602_014_004_174_035;
/// About so many flips, where not every byte is asked for.
const SOME: usize = 400;

fn segment_size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn segment() -> SegmentName {
    SegmentName::new(TimelineId::FIRST, 3, segment_size()).unwrap()
}

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.max(1);
    std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    })
    .take(length)
    .collect()
}

/// Blocks of which a little is noise.
fn blocks(count: usize, noisy: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|number| {
            let mut block = noise(noisy, number as u64 + 7);
            block.resize(BLOCK, 0);
            block
        })
        .collect()
}

/// A segment as PostgreSQL 15 begins one, with a little in it.
fn wal() -> Bytes {
    let size = segment_size();
    let mut content = Vec::new();
    content.extend(0xD110_u16.to_le_bytes());
    content.extend(2_u16.to_le_bytes());
    content.extend(1_u32.to_le_bytes());
    content.extend(segment().start(size).unwrap().as_u64().to_le_bytes());
    content.extend([0; 8]);
    content.extend(SYSTEM.to_le_bytes());
    content.extend(u32::try_from(size.bytes()).unwrap().to_le_bytes());
    content.extend(8192_u32.to_le_bytes());
    content.extend(noise(2000, 3));
    content.resize(usize::try_from(size.bytes()).unwrap(), 0);
    content.into()
}

async fn storage(directory: &Path) -> Repository {
    let settings = RepositorySettings {
        encryption: Some(EncryptionSettings::KeyFile(directory.join("key"))),
        ..RepositorySettings::at("local", Location::Directory(directory.join("repository")))
    };
    Repository::open(settings).await.unwrap()
}

/// One pack with one frame of blocks of a file, or with one map.
struct Pack {
    entry: PackEntry,
    frame: MapRef,
}

async fn pack(
    repository: &PhysicalRepository,
    kind: PackKind,
    path: &str,
    label: Label,
    raw: &[u8],
    hashes: &[PageHash],
) -> Pack {
    let id = repository.new_pack_id().unwrap();
    let (name, sort) = match kind {
        PackKind::Data => (repository.pack_name(id), kind::PACK),
        PackKind::Map => (repository.map_name(id), kind::MAP),
    };
    let mut builder = FramedBuilder::new(&repository.cipher(), sort, &name, 1 << 16).unwrap();
    let location = builder.push(FrameCodec::Zstd(1), raw).unwrap();
    let mut index = PackIndex::new(kind, label);
    let hash = blake3::keyed_hash(repository.hash_key(), path.as_bytes());
    index.frames.push(IndexedFrame {
        location,
        runs: vec![IndexedRun {
            file: FileId::from_le_bytes(*hash.as_bytes().first_chunk().unwrap()),
            first: 0,
            offset: 0,
            hashes: hashes.to_vec(),
        }],
    });
    let (key, salt) = (builder.key_number(), builder.salt());
    let object = builder.finish(&index.encode(), FrameCodec::Zstd(1)).unwrap();
    let entry = PackEntry {
        id,
        kind,
        key,
        salt,
        size: object.len() as u64,
        live: raw.len() as u64,
    };
    repository
        .repository()
        .put_bytes(&name, object, PutMode::Create)
        .await
        .unwrap();
    Pack {
        entry,
        frame: FrameRef { pack: 0, location },
    }
}

fn hashes(repository: &PhysicalRepository, content: &[u8]) -> Vec<PageHash> {
    content
        .chunks(BLOCK)
        .map(|block| PageHash::of(repository.hash_key(), block))
        .collect()
}

fn map_of(id: PackId, pack: &Pack, hashes: &[PageHash], size: usize) -> PageMap {
    let mut map = PageMapBuilder::new();
    map.stored(id, pack.frame.location, 0, hashes);
    map.finish(size as u64).unwrap()
}

/// Makes the repository: one backup of two files, one with its map in the manifest and one with it in a pack; the
/// WAL that it needs.
async fn make(directory: &Path) -> Label {
    fs::write(directory.join("key"), "5f".repeat(32)).unwrap();
    fs::set_permissions(
        directory.join("key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let system = StanzaSystem {
        system_identifier: SystemIdentifier::new(SYSTEM),
        major: 15,
        control_version: 1300,
        catalog_version: 202_209_061,
        wal_segment_size: segment_size(),
        since: Timestamp::UNIX_EPOCH,
    };
    let info = StanzaInfo::new("main", system);
    let (options, memory) = (InitOptions::default(), RepositoryMemory::none());
    let made = PhysicalRepository::init(
        storage(directory).await,
        "main".parse().unwrap(),
        info,
        options,
        &memory,
    );
    let repository = made.await.unwrap().repository;
    WalArchive::new(repository.clone())
        .put_segment(segment(), wal())
        .await
        .unwrap();

    let basis = repository.head().await.unwrap().epoch;
    let label = Label::new(Timestamp::from_second(1_790_000_000).unwrap(), 0x3f9a);
    let (small, large) = (blocks(2, 6000), blocks(40, 900));
    let (small_hashes, large_hashes) = (hashes(&repository, &small), hashes(&repository, &large));
    let data = [
        pack(
            &repository,
            PackKind::Data,
            "base/5/1",
            label,
            &small,
            &small_hashes,
        )
        .await,
        pack(
            &repository,
            PackKind::Data,
            "base/5/2",
            label,
            &large[..16 * BLOCK],
            &large_hashes[..16],
        )
        .await,
    ];
    let mut large_map = PageMapBuilder::new();
    large_map.stored(data[1].entry.id, data[1].frame.location, 0, &large_hashes[..16]);
    let large_map = large_map.finish(16 * BLOCK as u64).unwrap();
    let map = pack(
        &repository,
        PackKind::Map,
        "base/5/2",
        label,
        &large_map.encode(),
        &[],
    )
    .await;
    let start = segment().start(segment_size()).unwrap();
    let header = Header {
        format: 1,
        label,
        method: Method::Local,
        stanza: "main".to_owned(),
        system_identifier: SystemIdentifier::new(SYSTEM),
        server_version: ServerVersion::from_number(150_018),
        catalog_version: 202_209_061,
        control_version: 1300,
        page_size: 8192,
        relation_segment_blocks: 131_072,
        wal_segment_size: segment_size(),
        data_checksums: DataChecksums::Off,
        start_time: Timestamp::from_second(1_790_000_000).unwrap(),
        stop_time: Timestamp::from_second(1_790_000_009).unwrap(),
        timeline: TimelineId::FIRST,
        start_lsn: start,
        stop_lsn: Lsn::new(start.as_u64() + 1000),
        wal: WalRange {
            first: segment(),
            last: segment(),
        },
        timeline_history: None,
        parent: None,
        backup_label: "START WAL LOCATION".into(),
        tablespace_map: None,
        tablespaces: Vec::new(),
        outside: Vec::new(),
        owners: vec![Owner {
            uid: 1,
            gid: 1,
            user: None,
            group: None,
        }],
        annotations: BTreeMap::new(),
        written_by: String::new(),
        machine: None,
        host: String::new(),
    };
    let mut manifest = repository.manifest_builder(header).unwrap();
    let file = |path: &str, size: usize, content| {
        Entry::File(File {
            path: RelativePath::new(path).unwrap(),
            area: Area::Data,
            kind: FileKind::Relation,
            mode: 0o600,
            owner: 0,
            size: size as u64,
            mtime: 0,
            stamp: None,
            content,
        })
    };
    let inline = map_of(data[0].entry.id, &data[0], &small_hashes, small.len());
    manifest
        .write(&file(
            "base/5/1",
            small.len(),
            Content::Inline(InlineMap::new(&inline, |_| 0)),
        ))
        .unwrap();
    let stored = MapContent {
        map: FrameRef {
            pack: 2,
            location: map.frame.location,
        },
        base: None,
        packs: Box::new([1]),
    };
    manifest
        .write(&file("base/5/2", 16 * BLOCK, Content::Map(Box::new(stored))))
        .unwrap();
    let packs = data.iter().chain([&map]).map(|pack| pack.entry).collect();
    let finished = manifest.finish(packs, Work::default()).unwrap();
    repository.write_manifest(&finished).await.unwrap();
    repository
        .publish(&finished.entry(), basis, &finished.references())
        .await
        .unwrap();
    label
}

/// A directory in memory where there is one: nothing here has to outlive the test.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// The objects, by their paths below the directory.
fn objects(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.join("repository")];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if !path.to_string_lossy().contains("/lease/") {
                let content = fs::read(&path).unwrap();
                found.insert(path.strip_prefix(directory).unwrap().to_owned(), content);
            }
        }
    }
    found
}

/// Makes the directory hold these objects and nothing else but leases.
fn put_back(directory: &Path, whole: &BTreeMap<PathBuf, Vec<u8>>) {
    for path in objects(directory)
        .keys()
        .filter(|path| !whole.contains_key(*path))
    {
        fs::remove_file(directory.join(path)).unwrap();
    }
    for (path, content) in whole {
        let path = directory.join(path);
        if fs::read(&path).ok().as_ref() != Some(content) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
}

/// What verification says; `None` where the repository cannot even be opened or read.
async fn verified(directory: &Path) -> Option<VerifyReport> {
    let memory = RepositoryMemory::none();
    let repository = PhysicalRepository::open(storage(directory).await, "main".parse().unwrap(), &memory);
    let request = VerifyRequest {
        labels: Vec::new(),
        budget: Budget::Full,
        jobs: 1,
    };
    let (reporter, cancellation) = (Recording::default(), CancellationToken::new());
    verify::verify(
        &repository.await.ok()?,
        &request,
        &mut VerifyMemory::none(),
        &reporter,
        &cancellation,
    )
    .await
    .ok()
}

/// What a reader gets without verification: the backup's manifest and its WAL, or errors, but nothing else.
async fn reads_nothing_else(directory: &Path, label: Label) -> bool {
    let memory = RepositoryMemory::none();
    let Ok(repository) =
        PhysicalRepository::open(storage(directory).await, "main".parse().unwrap(), &memory).await
    else {
        return true;
    };
    let segment_is_whole = match WalArchive::new(repository.clone()).get_segment(segment()).await {
        Ok(content) => content == wal(),
        Err(_) => true,
    };
    let manifest_is_whole = match repository.read_manifest(label).await {
        Ok(manifest) => manifest.entries.len() == 2 && manifest.header.label == label,
        Err(_) => true,
    };
    segment_is_whole && manifest_is_whole
}

#[test]
fn every_flipped_byte_of_a_small_encrypted_repository_is_found() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let template = scratch();
    let label = runtime().block_on(make(template.path()));
    let whole = objects(template.path());
    assert!(runtime().block_on(verified(template.path())).unwrap().is_sound());
    put_back(template.path(), &whole);
    let bytes: usize = whole.values().map(Vec::len).sum();
    assert!(
        (24_000..48_000).contains(&bytes),
        "{bytes} bytes in {} objects",
        whole.len()
    );

    let all: Vec<(&PathBuf, usize)> = whole
        .iter()
        .flat_map(|(path, content)| (0..content.len()).map(move |offset| (path, offset)))
        .collect();
    let every = std::env::var_os("PGMAHOUT_TEST_FLIPS").is_some();
    // A prime step meets each offset of a header sooner or later; the process decides where it begins.
    let step = if every { 1 } else { (bytes / SOME) | 1 };
    let begin = std::process::id() as usize % step;
    let next = AtomicUsize::new(begin);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let runtime = runtime();
                let own = scratch();
                fs::create_dir(own.path().join("repository")).unwrap();
                fs::copy(template.path().join("key"), own.path().join("key")).unwrap();
                put_back(own.path(), &whole);
                loop {
                    let number = next.fetch_add(step, Ordering::Relaxed);
                    let Some((path, offset)) = all.get(number) else {
                        break;
                    };
                    let mask = 1 << (number % 8);
                    let mut damaged = whole[*path].clone();
                    damaged[*offset] ^= mask;
                    fs::write(own.path().join(path), damaged).unwrap();
                    let what = format!("byte {offset} of {} with {mask:#x}", path.display());
                    assert!(
                        runtime.block_on(reads_nothing_else(own.path(), label)),
                        "{what} gave something else"
                    );
                    let report = runtime.block_on(verified(own.path()));
                    if path.to_string_lossy().contains("repository.key") {
                        // Of a key there are two.
                        let damages = report.expect("the other copy opens it").damages;
                        assert!(
                            damages.iter().any(|damage| damage.object.contains("key")),
                            "{what}: {damages:?}"
                        );
                    } else {
                        assert!(
                            !report.is_some_and(|report| report.is_sound()),
                            "{what} was not found"
                        );
                    }
                    put_back(own.path(), &whole);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!(
        "{} of {bytes} bytes flipped in {} objects, all found",
        done.load(Ordering::Relaxed),
        whole.len()
    );
}
