//! The manifest of a cluster with a million files.
//!
//! Run it by `cargo nextest run --release -p pgmahout-types --run-ignored only -E 'test(million)' --no-capture`;
//! `cargo xtask bench backup --only files` takes whole backups of such a cluster.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter};
use std::time::{Duration, Instant};

use pgmahout_types::control::DataChecksums;
use pgmahout_types::repository::manifest::{
    Area, Content, End, Entry, File, FileKind, Header, Owner, PackEntry, PackKind, WalRange, Work,
};
use pgmahout_types::repository::page_map::InlineMap;
use pgmahout_types::repository::{
    FrameLocation, ManifestReader, ManifestWriter, Method, PackId, PageHash, PageMapBuilder, RelativePath,
    Salt,
};
use pgmahout_types::version::ServerVersion;
use pgmahout_types::{Lsn, SegmentSize, SystemIdentifier, TimelineId};

const FILES: u32 = 1_000_000;
const FILES_IN_A_PACK: u32 = 16_384;

fn header() -> Header {
    let segment = "000000010000000000000003";
    Header {
        format: 1,
        label: "20261121T104500Z-3f9a".parse().expect("a label"),
        method: Method::Local,
        stanza: "main".to_owned(),
        system_identifier: SystemIdentifier::new(7_383_921_345_678_901_234),
        server_version: ServerVersion::from_number(150_018),
        catalog_version: 202_209_061,
        control_version: 1300,
        page_size: 8192,
        relation_segment_blocks: 131_072,
        wal_segment_size: SegmentSize::DEFAULT,
        data_checksums: DataChecksums::Version(1),
        start_time: "2026-11-21T10:45:00Z".parse().expect("a time"),
        stop_time: "2026-11-21T10:46:00Z".parse().expect("a time"),
        timeline: TimelineId::new(1).expect("not zero"),
        start_lsn: Lsn::new(0x300_0028),
        stop_lsn: Lsn::new(0x300_0100),
        wal: WalRange {
            first: segment.parse().expect("a name"),
            last: segment.parse().expect("a name"),
        },
        timeline_history: None,
        parent: None,
        backup_label: "START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\n".into(),
        tablespace_map: None,
        tablespaces: Vec::new(),
        outside: Vec::new(),
        owners: vec![Owner {
            uid: 101,
            gid: 103,
            user: Some("postgres".to_owned()),
            group: None,
        }],
        annotations: BTreeMap::new(),
        written_by: String::new(),
        host: String::new(),
        machine: None,
    }
}

fn pack_id(number: u32) -> PackId {
    PackId::from_bytes(u128::from(number).to_be_bytes())
}

/// A file of two pages, as most small tables are.
fn file(number: u32) -> File {
    let frame = FrameLocation {
        index: number % FILES_IN_A_PACK,
        offset: 96 + u64::from(number % FILES_IN_A_PACK) * 4_096,
        stored: 4_072,
        raw: 16_384,
    };
    let hashes = [
        PageHash::new(u64::from(number)),
        PageHash::new(!u64::from(number)),
    ];
    let mut map = PageMapBuilder::new();
    map.stored(pack_id(0), frame, 0, &hashes);
    let map = map.finish(16_384).expect("a good map");
    File {
        path: RelativePath::new(format!("base/{}/{}", 16_384 + number / 1_000, number)).expect("a path"),
        area: Area::Data,
        kind: FileKind::Relation,
        mode: 0o600,
        owner: 0,
        size: 16_384,
        stamp: None,
        mtime: 1_795_000_000_123_456_789,
        content: Content::Inline(InlineMap::new(&map, |_| number / FILES_IN_A_PACK)),
    }
}

fn write(output: impl std::io::Write) -> End {
    let mut writer = ManifestWriter::new(output, &header()).expect("the reader reads");
    for number in 0..FILES {
        writer.write(&Entry::File(file(number))).expect("a good file");
    }
    let packs = (0..=FILES / FILES_IN_A_PACK).map(|number| PackEntry {
        id: pack_id(number),
        kind: PackKind::Data,
        key: 0,
        salt: Salt::from_bytes([7; 32]),
        size: 64 << 20,
        live: 64 << 20,
    });
    let (_, end) = writer
        .finish(packs.collect(), Work::default())
        .expect("all packs");
    end
}

/// The most memory that this process ever held, in bytes (`VmHWM` of `proc(5)`).
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("it is there");
    let kilobytes = line
        .trim()
        .strip_suffix(" kB")
        .and_then(|value| value.parse::<u64>().ok());
    kilobytes.expect("a number") * 1024
}

#[test]
#[ignore = "takes half a minute without --release"]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn a_manifest_of_a_million_files_takes_seconds_and_little_memory() {
    let (input, output) = std::io::pipe().expect("a pipe");
    let begun = Instant::now();
    let writer = std::thread::spawn(move || write(BufWriter::with_capacity(1 << 20, output)));
    let mut reader = ManifestReader::new(BufReader::with_capacity(1 << 20, input)).expect("a first line");
    let mut files = 0;
    while let Some(entry) = reader.next_entry().expect("our own") {
        if let Entry::File(read) = entry {
            assert!(files % 10_007 != 0 || read == file(files), "{read:?}");
            files += 1;
        }
    }
    let end = writer.join().expect("it was written");
    assert_eq!(reader.end(), Some(&end));
    let (elapsed, peak) = (begun.elapsed(), peak());
    println!(
        "{files} files written and read in {elapsed:?}, {} MiB",
        peak >> 20
    );
    assert_eq!(files, FILES);
    // Without optimisation it says little about time.
    let most = Duration::from_secs(if cfg!(debug_assertions) { 180 } else { 30 });
    assert!(elapsed < most, "{elapsed:?}");
    assert!(peak < 512 << 20, "{} MiB", peak >> 20);
}
