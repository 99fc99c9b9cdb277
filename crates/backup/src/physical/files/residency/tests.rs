use std::io::Write;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const MIB: usize = 1024 * 1024;

/// A file of this many bytes that are all different enough.
fn file(length: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
    let bytes: Vec<u8> = (0..length).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect();
    let mut file = tempfile::NamedTempFile::new_in("/var/tmp")
        .or_else(|_| tempfile::NamedTempFile::new())
        .expect("a file");
    file.write_all(&bytes).expect("written");
    file.as_file().sync_all().expect("on disk");
    (file, bytes)
}

/// How many bytes of the file are in the page cache, as util-linux counts them.
fn resident(path: &Path) -> u64 {
    let output = Command::new("fincore")
        .args(["--raw", "--noheadings", "--bytes", "--output", "RES"])
        .arg(path)
        .output()
        .expect("fincore of util-linux is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("fincore: {output:?}"))
}

fn evict(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).expect("advice is taken");
}

/// Puts a part of the file into the cache, and nothing else of it.
fn warm(path: &Path, at: u64, length: usize) {
    let file = File::open(path).expect("opened");
    fadvise(&file, 0, None, Advice::Random).expect("advice is taken");
    let mut buffer = vec![0; length];
    assert_eq!(read(&file, &mut buffer, at, ReadWriteFlags::empty()), Ok(length));
}

fn read_all(reader: &mut ColdReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = reader.read_at(&mut piece, bytes.len() as u64).expect("read");
        bytes.extend_from_slice(&piece[..count]);
        if count < piece.len() {
            return bytes;
        }
    }
}

fn reader(path: &Path, method: Method) -> ColdReader {
    let mut reader = ColdReader::open(path, CachePolicy::Preserve).expect("opened");
    reader.set_method(method);
    reader
}

#[test]
fn what_was_cached_stays_and_what_was_not_goes() {
    let (file, bytes) = file(8 * MIB + 5000);
    evict(file.as_file());
    if resident(file.path()) > 0 {
        // A file system in memory: there is nothing to preserve.
        return;
    }
    for method in [Method::Uncached, Method::Probe] {
        if method == Method::Uncached && kernel_version() < DONT_CACHE_SINCE {
            continue;
        }
        evict(file.as_file());
        let mut cold = reader(file.path(), method);
        assert!(read_all(&mut cold) == bytes, "{method:?}");
        assert_eq!(cold.bytes_read(), bytes.len() as u64);
        assert_eq!(cold.method, method, "this kernel can do that");
        assert!(
            resident(file.path()) <= 128 * 1024,
            "{method:?}: {}",
            resident(file.path())
        );

        evict(file.as_file());
        warm(file.path(), 2 * MIB as u64, 3 * MIB);
        let before = resident(file.path());
        assert!(before >= 3 * MIB as u64, "{before}");
        let mut mixed = reader(file.path(), method);
        assert!(read_all(&mut mixed) == bytes, "{method:?}");
        let after = resident(file.path());
        assert!(
            after >= before && after <= before + 128 * 1024,
            "{method:?}: {before} bytes were cached, and {after} are"
        );
        let mut part = vec![0; 3 * MIB];
        let nowait = read(file.as_file(), &mut part, 2 * MIB as u64, ReadWriteFlags::NOWAIT);
        assert_eq!(
            nowait,
            Ok(3 * MIB),
            "{method:?}: the part that was cached still is"
        );
        if method == Method::Probe {
            assert!(mixed.bytes_cached() >= 2 * MIB as u64, "{}", mixed.bytes_cached());
        }
    }
}

#[test]
fn a_wholly_cached_file_is_taken_from_the_cache_and_stays_there() {
    let (file, bytes) = file(2 * MIB + 1);
    for method in [Method::Uncached, Method::Probe, Method::Ordinary] {
        if method == Method::Uncached && kernel_version() < DONT_CACHE_SINCE {
            continue;
        }
        warm(file.path(), 0, bytes.len());
        let before = resident(file.path());
        let mut reader = reader(file.path(), method);
        assert!(read_all(&mut reader) == bytes);
        assert_eq!(resident(file.path()), before, "{method:?}");
        if method == Method::Probe {
            assert_eq!(reader.bytes_cached(), bytes.len() as u64);
        }
    }
}

#[test]
fn a_file_that_is_shorter_than_asked_ends_and_a_missing_one_is_an_error() {
    let (file, bytes) = file(10_000);
    let mut reader = ColdReader::open(file.path(), CachePolicy::Preserve).expect("opened");
    let mut buffer = vec![0; 20_000];
    assert_eq!(reader.length().expect("known"), 10_000);
    assert_eq!(reader.read_at(&mut buffer, 8192).expect("read"), 1808);
    assert_eq!(buffer[..1808], bytes[8192..]);
    assert_eq!(reader.read_at(&mut buffer, 10_000).expect("read"), 0);
    assert_eq!(reader.read_at(&mut buffer, 1 << 40).expect("read"), 0);
    let missing = ColdReader::open(Path::new("/nonexistent/file"), CachePolicy::Preserve);
    assert_eq!(missing.expect_err("missing").kind(), io::ErrorKind::NotFound);
}

#[test]
fn versions_of_kernels_are_read() {
    assert_eq!(parse_version("6.18.44-fc-v657"), (6, 18));
    assert_eq!(parse_version("5.10.0-9-amd64"), (5, 10));
    assert_eq!(parse_version("garbage"), (0, 0));
    assert!((6, 17) >= DONT_CACHE_SINCE && (6, 8) < DONT_CACHE_SINCE && (7, 0) > DONT_CACHE_SINCE);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_way_of_reading_gives_the_same_bytes(
        length in 0_usize..300_000,
        parts in proptest::collection::vec((0_usize..310_000, 1_usize..100_000), 1..6),
        cached in proptest::collection::vec((0_usize..70, 1_usize..20), 0..4),
    ) {
        let (file, bytes) = file(length);
        for method in [Method::Uncached, Method::Probe, Method::Ordinary] {
            evict(file.as_file());
            for (page, pages) in &cached {
                let mut buffer = vec![0; pages * PAGE];
                let _ = read(file.as_file(), &mut buffer, (page * PAGE) as u64, ReadWriteFlags::empty());
            }
            let mut reader = reader(file.path(), method);
            for (at, wanted) in &parts {
                let mut buffer = vec![0; *wanted];
                let count = reader.read_at(&mut buffer, *at as u64).expect("read");
                let expected = &bytes[(*at).min(length)..(at + wanted).min(length)];
                prop_assert_eq!(count, expected.len());
                prop_assert!(&buffer[..count] == expected, "{:?} at {}", method, at);
            }
        }
    }
}

/// `cargo test --release -p pgmahout-backup how_fast_cold -- --ignored --nocapture`
#[test]
#[ignore = "measures; writes 1 GiB and prints GB/s"]
fn how_fast_cold_and_cached_files_are_read() {
    let (file, _) = file(1024 * MIB);
    let mut piece = vec![0; PIECE];
    for cached in [false, true] {
        for method in [Method::Ordinary, Method::Uncached, Method::Probe] {
            evict(file.as_file());
            if cached {
                warm(file.path(), 0, 1024 * MIB);
            }
            let start = std::time::Instant::now();
            let mut reader = reader(file.path(), method);
            while reader.read_at(&mut piece, reader.bytes_read()).expect("read") > 0 {}
            let speed = reader.bytes_read() as f64 / start.elapsed().as_secs_f64() / 1e9;
            println!(
                "{:?}, cached {cached}: {speed:.2} GB/s, {} MiB stay in the cache",
                reader.method,
                resident(file.path()) / MIB as u64
            );
        }
    }
}
