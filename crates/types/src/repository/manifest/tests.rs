use std::io::{BufReader, Write};

use proptest::prelude::*;

use super::*;
use crate::diagnostic::Diagnose;
use crate::repository::page_map::InlineMap;
use crate::repository::{FrameLocation, FrameRef, PageHash, PageMapBuilder, RelativePath};

fn header() -> Header {
    Header {
        format: FORMAT,
        label: "20261121T104500Z-3f9a".parse().expect("a label"),
        method: Method::Standby,
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
        stop_time: "2026-11-21T10:46:00.25Z".parse().expect("a time"),
        timeline: TimelineId::new(2).expect("not zero"),
        start_lsn: Lsn::new(0x300_0028),
        stop_lsn: Lsn::new(0x300_0100),
        wal: WalRange {
            first: "000000020000000000000003".parse().expect("a name"),
            last: "000000020000000000000003".parse().expect("a name"),
        },
        timeline_history: Some("1\t0/3000000\tno recovery target specified\n".into()),
        parent: None,
        backup_label: "START WAL LOCATION: 0/3000028 (file 000000020000000000000003)\n".into(),
        tablespace_map: Some(b"16385 /srv/\xff\\\\x\n".as_slice().into()),
        tablespaces: vec![Tablespace {
            oid: 16385,
            name: Some("fast".to_owned()),
            path: LinkTarget::new(b"/srv/\xff".as_slice()).expect("a target"),
            in_place: false,
        }],
        outside: Vec::new(),
        owners: vec![Owner {
            uid: 101,
            gid: 103,
            user: Some("postgres".to_owned()),
            group: None,
        }],
        annotations: BTreeMap::from([("why".to_owned(), "a \"test\"\n".to_owned())]),
        written_by: "0.1.0".to_owned(),
        host: String::new(),
        machine: Some(FileStamp::new(3)),
    }
}

fn pack(byte: u8, kind: PackKind) -> PackEntry {
    PackEntry {
        id: PackId::from_bytes([byte; 16]),
        kind,
        key: 1,
        salt: Salt::from_bytes([byte; 32]),
        size: 67_108_864,
        live: 12_345,
    }
}

fn path(text: &str) -> RelativePath {
    RelativePath::new(text).expect("a path")
}

fn location(index: u32) -> FrameLocation {
    FrameLocation {
        index,
        offset: 96,
        stored: 100,
        raw: 131_072,
    }
}

/// A file of one block.
fn small(name: &str) -> File {
    let mut builder = PageMapBuilder::new();
    builder.stored(
        PackId::from_bytes([1; 16]),
        location(0),
        8192,
        &[PageHash::new(5)],
    );
    let map = builder.finish(8192).expect("a good map");
    File {
        path: path(name),
        area: Area::Data,
        kind: FileKind::Relation,
        mode: 0o600,
        owner: 0,
        size: 8192,
        mtime: 1_795_000_000_123_456_789,
        stamp: Some(FileStamp::new(7)),
        content: Content::Inline(InlineMap::new(&map, |_| 0)),
    }
}

fn entries() -> Vec<Entry> {
    vec![
        Entry::Directory(Directory {
            path: RelativePath::root(),
            area: Area::Data,
            mode: 0o700,
            owner: 0,
        }),
        Entry::File(small("base/5/1259")),
        Entry::File(File {
            path: path("base/5/16384.1"),
            size: 1 << 30,
            content: Content::Map(Box::new(MapContent {
                map: FrameRef {
                    pack: 1,
                    location: location(3),
                },
                base: Some(FrameRef {
                    pack: 1,
                    location: location(1),
                }),
                packs: [0].into(),
            })),
            ..small("x")
        }),
        Entry::File(File {
            path: path("etc/empty"),
            area: Area::Outside,
            kind: FileKind::Other,
            size: 0,
            content: Content::Inline(InlineMap::default()),
            ..small("x")
        }),
        Entry::Link(Link {
            path: path("pg_tblspc/16385"),
            area: Area::Data,
            target: LinkTarget::new(b"/srv/\xff\\".as_slice()).expect("a target"),
        }),
        Entry::Finding(Box::new(Finding {
            path: path("base/5/1259"),
            block: 0,
            problem: Problem::Checksum,
            expected: 0x1234,
            found: 0,
        })),
    ]
}

const WORK: Work = Work {
    read: 1,
    new: 2,
    stored: 3,
    resumed: 4,
};

fn written(entries: &[Entry]) -> (Vec<u8>, End) {
    let mut writer = ManifestWriter::new(Vec::new(), &header()).expect("memory");
    for entry in entries {
        writer.write(entry).expect("a good entry");
    }
    let packs = vec![pack(1, PackKind::Data), pack(2, PackKind::Map)];
    writer.finish(packs, WORK).expect("memory")
}

fn text() -> String {
    String::from_utf8(written(&entries()).0).expect("text")
}

fn refused(text: &str) -> ManifestError {
    let error = Manifest::read(text.as_bytes()).expect_err("it was changed");
    assert!(error.hint().is_some());
    error
}

#[test]
fn what_was_written_is_read() {
    let (bytes, end) = written(&entries());
    let manifest = Manifest::read(bytes.as_slice()).expect("our own");
    assert_eq!(manifest.header, header());
    assert_eq!(manifest.entries, entries());
    assert_eq!(manifest.end, end);
    assert_eq!(
        (end.files, end.directories, end.links, end.findings),
        (3, 1, 1, 1)
    );
    assert_eq!((end.bytes, end.work), ((1 << 30) + 8192, WORK));
    assert_eq!(end.pack(1), Some(&pack(2, PackKind::Map)));
    assert_eq!(end.pack(2), None);
}

#[test]
fn the_lines_are_as_documented() {
    let text = text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with(r#"{"manifest":1,"label":"20261121T104500Z-3f9a","method":"standby""#));
    assert_eq!(lines[1], r#"{"d":".","mode":448,"owner":0}"#);
    assert_eq!(
        lines[2],
        r#"{"f":"base/5/1259","kind":"relation","size":8192,"mode":384,"owner":0,"mtime":1795000000123456789,"stamp":"0000000000000007","inline":{"f":[[0,0,96,100,131072]],"x":[[1,0,8192]],"h":"0000000000000005"}}"#
    );
    assert_eq!(
        lines[3],
        r#"{"f":"base/5/16384.1","kind":"relation","size":1073741824,"mode":384,"owner":0,"mtime":1795000000123456789,"stamp":"0000000000000007","map":[1,3,96,100,131072],"base":[1,1,96,100,131072],"packs":[0]}"#
    );
    assert_eq!(
        lines[4],
        r#"{"f":"etc/empty","area":"outside","size":0,"mode":384,"owner":0,"mtime":1795000000123456789,"stamp":"0000000000000007"}"#
    );
    assert_eq!(lines[5], r#"{"l":"pg_tblspc/16385","to":"/srv/\\xff\\\\"}"#);
    assert!(
        lines[7].starts_with(r#"{"p":"01010101010101010101010101010101","kind":"data","key":1,"salt":""#)
    );
    assert!(lines[9].starts_with(r#"{"end":{"digest":""#), "{}", lines[9]);
}

#[test]
fn a_manifest_without_its_last_line_is_refused_wherever_it_ends() {
    let text = text();
    for length in 0..text.len() {
        let error = refused(&text[..length]);
        assert!(
            matches!(error, ManifestError::Truncated { .. }),
            "{length}: {error}"
        );
    }
    let error = refused(&format!("{text}{{}}\n"));
    assert_eq!(
        error.to_string(),
        "line 11 of the manifest is wrong: it stands behind the last line"
    );
}

#[test]
fn changed_lost_added_and_exchanged_lines_are_noticed() {
    let text = text();
    assert!(matches!(
        refused(&text.replacen("\"size\":8192", "\"size\":8193", 1)),
        ManifestError::Digest
    ));
    assert!(matches!(
        refused(&text.replacen("\"mtime\":1", "\"mtime\":2", 1)),
        ManifestError::Digest
    ));
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for line in 1..lines.len() - 1 {
        let mut fewer = lines.clone();
        fewer.remove(line);
        assert!(matches!(refused(&fewer.concat()), ManifestError::Digest));
        let mut more = lines.clone();
        more.insert(line, lines[line]);
        assert!(matches!(refused(&more.concat()), ManifestError::Digest));
    }
    let mut exchanged = lines.clone();
    exchanged.swap(1, 2);
    assert!(matches!(refused(&exchanged.concat()), ManifestError::Digest));
}

#[test]
fn a_wrong_line_is_named_by_its_number() {
    let text = text();
    for (from, to, message) in [
        (
            "\"d\":\".\"",
            "\"d\":\"../x\"",
            "line 2 of the manifest cannot be understood",
        ),
        (
            "\"mode\":448,",
            "",
            "line 2 of the manifest is wrong: `mode` is missing",
        ),
        (
            "\"owner\":0",
            "\"owner\":1",
            "line 2 of the manifest is wrong: its owner is not in the list of the first line",
        ),
        (
            ",\"to\":",
            ",\"zu\":",
            "line 6 of the manifest is wrong: `to` is missing",
        ),
        (
            "\"map\":[1,3,",
            "\"map\":[-1,3,",
            "line 4 of the manifest cannot be understood",
        ),
        (
            "\"manifest\":1",
            "\"manifest\":2",
            "the manifest has format version 2, newest known is 1",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        assert_eq!(refused(&text.replacen(from, to, 1)).to_string(), message);
    }
}

#[test]
fn a_line_without_end_takes_no_more_memory_than_the_longest() {
    let header = text().lines().next().expect("a line").to_owned();
    let endless = format!("{header}\n").into_bytes();
    let endless = std::io::Read::chain(endless.as_slice(), std::io::repeat(b'x'));
    let error = Manifest::read(BufReader::new(endless)).expect_err("endless");
    assert!(matches!(error, ManifestError::TooLong { line: 2 }), "{error}");
}

#[test]
fn keys_and_lines_that_a_newer_program_adds_are_passed_over() {
    let mut writer = ManifestWriter::new(Vec::new(), &header()).expect("memory");
    writer.write(&entries()[0]).expect("a good entry");
    let (bytes, end) = writer.finish(Vec::new(), WORK).expect("memory");
    let text = String::from_utf8(bytes).expect("text");
    let changed = text.replacen("\"mode\":448", "\"news\":{\"a\":[1]},\"mode\":448", 1);
    let changed = changed.replacen("{\"end\"", "{\"novelty\":5}\n{\"end\"", 1);
    let lines = changed.rfind("{\"end\"").expect("the last line");
    let digest = Digest::of(&changed.as_bytes()[..lines]).to_string();
    let changed = changed.replace(&end.digest.to_string(), &digest);
    let manifest = Manifest::read(changed.as_bytes()).expect("tolerated");
    assert_eq!(manifest.entries, entries()[..1]);
}

#[test]
fn a_writer_refuses_what_a_reader_would() {
    let mut writer = ManifestWriter::new(Vec::new(), &header()).expect("memory");
    let stranger = Entry::File(File {
        owner: 1,
        ..small("x")
    });
    assert!(matches!(
        writer.write(&stranger),
        Err(ManifestError::Line { line: 2, .. })
    ));
    let hollow = Entry::File(File {
        size: 0,
        ..small("x")
    });
    assert!(writer.write(&hollow).is_err());
    writer.write(&Entry::File(small("x"))).expect("a good entry");
    assert!(writer.finish(Vec::new(), WORK).is_err(), "its pack is missing");
}

#[test]
fn a_failing_output_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = ManifestWriter::new(Full, &header()).err().expect("it is full");
    assert_eq!(error.to_string(), "cannot write line 1 of the manifest");
}

#[test]
fn an_entry_in_memory_is_small() {
    // A million files must fit; most of their memory is the entry itself.
    assert!(size_of::<Entry>() <= 128, "{}", size_of::<Entry>());
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let name =
        "[a-z0-9_.]{1,20}/[a-z0-9_]{1,30}".prop_filter_map("inside", |text| RelativePath::new(text).ok());
    let target = prop::collection::vec(1..=255_u8, 1..40);
    prop_oneof![
        (name.clone(), 0..0o7777_u32).prop_map(|(path, mode)| {
            Entry::Directory(Directory {
                path,
                area: Area::Data,
                mode,
                owner: 0,
            })
        }),
        (name.clone(), target).prop_map(|(path, target)| {
            Entry::Link(Link {
                path,
                area: Area::Outside,
                target: LinkTarget::new(target).expect("no zero"),
            })
        }),
        (name, any::<i64>(), 0..0o7777_u32).prop_map(|(path, mtime, mode)| {
            Entry::File(File {
                path,
                mode,
                mtime,
                ..small("x")
            })
        }),
    ]
}

proptest! {
    #[test]
    fn manifests_round_trip(entries in prop::collection::vec(any_entry(), 0..20)) {
        let (bytes, end) = written(&entries);
        let manifest = Manifest::read(bytes.as_slice()).expect("our own");
        prop_assert_eq!(manifest.entries, entries);
        prop_assert_eq!(manifest.end, end);
    }

    #[test]
    fn one_changed_byte_is_noticed(position: prop::sample::Index, byte: u8) {
        let (mut bytes, _) = written(&entries());
        let position = position.index(bytes.len());
        prop_assume!(bytes[position] != byte);
        let before = Manifest::read(bytes.as_slice()).expect("our own");
        bytes[position] = byte;
        // The last line does not cover itself: what it says of the work is nobody's proof.
        if let Ok(after) = Manifest::read(bytes.as_slice()) {
            prop_assert_eq!((after.header, after.entries), (before.header, before.entries));
        }
    }

    #[test]
    fn any_bytes_are_a_manifest_or_an_error(bytes: Vec<u8>) {
        prop_assert!(Manifest::read(bytes.as_slice()).is_err());
    }

    #[test]
    fn any_line_is_an_entry_or_an_error(line in "\\{\"[dflp]\":(\\PC){0,60}\\}") {
        let header = text().lines().next().expect("a line").to_owned();
        let text = format!("{header}\n{line}\n");
        prop_assert!(Manifest::read(text.as_bytes()).is_err());
    }
}
