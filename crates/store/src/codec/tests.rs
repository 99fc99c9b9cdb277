use std::io::{self, Cursor, Read, Write};
use std::process::{Command, Stdio};

use pgmahout_types::diagnostic::Diagnose;
use rstest::rstest;

use super::*;

const MIB: usize = 1024 * 1024;

/// Text like a dump's: rows that compress, and some that do not. Always the same for a length.
fn text(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 128);
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut row = 0_u64;
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        row += 1;
        writeln!(
            bytes,
            "{row}\tcustomer {}\t2025-01-{:02}\t{:016x}",
            state % 9973,
            1 + row % 28,
            state >> 13
        )
        .unwrap();
    }
    bytes.truncate(length);
    bytes
}

fn noise(length: usize) -> Vec<u8> {
    let mut state: u64 = 42;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}

fn compress(codec: Codec, threads: usize, input: &[u8]) -> Vec<u8> {
    let mut compressor = Compressor::new(codec, threads, Vec::new()).unwrap();
    // Pieces that fit no block.
    for piece in input.chunks(77_777) {
        compressor.write_all(piece).unwrap();
    }
    compressor.finish().unwrap()
}

fn decompress(codec: Codec, input: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    Decompressor::new(codec, Cursor::new(input))?.read_to_end(&mut output)?;
    Ok(output)
}

/// Runs a program with bytes on its standard input; its exit success and output.
fn pipe(program: &str, arguments: &[&str], input: &[u8]) -> (bool, Vec<u8>) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; install the Debian package {program}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The program may end before it has read everything.
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = feeder.join().unwrap();
    (output.status.success(), output.stdout)
}

const CODECS: [Codec; 8] = [
    Codec::Gzip(1),
    Codec::Gzip(6),
    Codec::Gzip(9),
    Codec::Zstd(1),
    Codec::Zstd(3),
    Codec::Zstd(19),
    Codec::Lz4,
    Codec::None,
];

#[rstest]
fn what_is_compressed_comes_back(
    #[values(1, 2, 7)] threads: usize,
    #[values(0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 12_345)] length: usize,
) {
    let original = text(length);
    for codec in CODECS {
        if codec == Codec::Zstd(19) && length > 2 * MIB {
            continue;
        }
        let compressed = compress(codec, threads, &original);
        if codec != Codec::None {
            assert_eq!(Codec::detect(&compressed).name(), codec.name());
        }
        let back = decompress(codec, compressed).unwrap_or_else(|error| panic!("{codec} {length}: {error}"));
        assert!(back == original, "{codec} {length} {threads}");
    }
}

#[test]
fn what_does_not_compress_comes_back_and_hardly_grows() {
    let original = noise(5 * MIB + 17);
    for codec in CODECS {
        let compressed = compress(codec, 2, &original);
        assert!(
            compressed.len() < original.len() + original.len() / 100 + 1024,
            "{codec}: {}",
            compressed.len()
        );
        assert!(decompress(codec, compressed).unwrap() == original, "{codec}");
    }
}

#[rstest]
#[case::gzip("gzip", &["-t"], &["-dc"], &[Codec::Gzip(1), Codec::Gzip(6), Codec::Gzip(9)])]
#[case::zstd("zstd", &["-t", "-q"], &["-dcq"], &[Codec::Zstd(1), Codec::Zstd(3), Codec::Zstd(19)])]
fn the_ordinary_programs_read_what_we_write(
    #[case] program: &str,
    #[case] test: &[&str],
    #[case] decompress: &[&str],
    #[case] codecs: &[Codec],
) {
    for length in [0, 1, MIB, MIB + 1, 4 * MIB + 1, 9 * MIB] {
        for (threads, original) in [(1, text(length)), (2, text(length)), (5, noise(length))] {
            for codec in codecs {
                if *codec == Codec::Zstd(19) && length > 2 * MIB {
                    continue;
                }
                let compressed = compress(*codec, threads, &original);
                assert!(
                    pipe(program, test, &compressed).0,
                    "{program} refuses {codec} of {length} bytes"
                );
                let (success, output) = pipe(program, decompress, &compressed);
                assert!(success && output == original, "{codec} of {length} bytes");
                // One member, not a row of them: a cut is seen by the ordinary program wherever it is.
                if length == 9 * MIB {
                    for part in 1..20 {
                        let cut = &compressed[..compressed.len() * part / 20];
                        assert!(
                            !pipe(program, test, cut).0,
                            "{program} accepts {codec} cut at {part}/20"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_lz4_program_reads_what_we_write() {
    if Command::new("lz4").arg("--version").output().is_err() {
        eprintln!("skipped: no lz4 here");
        return;
    }
    for length in [0, 1, 4 * MIB, 4 * MIB + 1, 9 * MIB] {
        for original in [text(length), noise(length)] {
            let (success, output) = pipe("lz4", &["-dc"], &compress(Codec::Lz4, 2, &original));
            assert!(success && output == original, "{length}");
        }
    }
}

#[rstest]
#[case::gzip("gzip", &["-c"], Codec::GZIP)]
#[case::zstd("zstd", &["-cq"], Codec::ZSTD)]
fn we_read_what_the_ordinary_programs_write_also_in_several_members(
    #[case] program: &str,
    #[case] arguments: &[&str],
    #[case] codec: Codec,
) {
    let (first, second) = (text(300_000), text(70_001));
    let (_, one) = pipe(program, arguments, &first);
    let (_, two) = pipe(program, arguments, &second);
    let (_, nothing) = pipe(program, arguments, b"");
    assert!(decompress(codec, one.clone()).unwrap() == first);
    assert!(decompress(codec, nothing.clone()).unwrap().is_empty());
    let all = [one, nothing, two].concat();
    assert!(decompress(codec, all).unwrap() == [first, second].concat());
}

#[test]
fn we_read_lz4_frames_of_other_kinds() {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    let original = text(700_000);
    for mode in [BlockMode::Linked, BlockMode::Independent] {
        let information = FrameInfo::new()
            .block_mode(mode)
            .block_size(BlockSize::Max64KB)
            .block_checksums(true);
        let frame = || {
            let mut encoder = FrameEncoder::with_frame_info(information.clone(), Vec::new());
            encoder.write_all(&original).unwrap();
            encoder.finish().unwrap()
        };
        assert!(decompress(Codec::Lz4, frame()).unwrap() == original);
        let twice = [frame(), frame()].concat();
        assert!(decompress(Codec::Lz4, twice).unwrap() == [&original[..], &original[..]].concat());
    }
}

#[rstest]
fn every_truncation_is_found(#[values(Codec::Gzip(6), Codec::Zstd(3), Codec::Lz4)] codec: Codec) {
    for original in [text(0), text(1000), noise(300)] {
        let compressed = compress(codec, 1, &original);
        for length in 0..compressed.len() {
            let error = decompress(codec, compressed[..length].to_vec())
                .expect_err(&format!("{codec} cut to {length} of {} bytes", compressed.len()));
            assert_eq!(
                error.kind(),
                io::ErrorKind::UnexpectedEof,
                "{codec} cut to {length}: {error}"
            );
            assert!(error.to_string().contains("truncated"), "{error}");
        }
    }
}

#[rstest]
fn every_truncation_between_and_within_members_is_found_but_at_their_borders(
    #[values(Codec::Gzip(6), Codec::Zstd(3), Codec::Lz4)] codec: Codec,
) {
    let member = compress(codec, 1, &text(500));
    let two = [member.clone(), member.clone()].concat();
    for length in member.len() + 1..two.len() {
        let error = decompress(codec, two[..length].to_vec()).expect_err(&format!("{codec} cut to {length}"));
        assert_eq!(
            error.kind(),
            io::ErrorKind::UnexpectedEof,
            "{codec} cut to {length}: {error}"
        );
    }
}

#[rstest]
fn bytes_after_the_end_are_found(#[values(Codec::Gzip(6), Codec::Zstd(3), Codec::Lz4)] codec: Codec) {
    for garbage in [&b"x"[..], b"garbage after the end", &[0; 40]] {
        let compressed = [&compress(codec, 1, &text(5000))[..], garbage].concat();
        assert!(decompress(codec, compressed).is_err(), "{codec} with {garbage:?}");
    }
}

#[rstest]
fn flipped_bytes_never_give_other_content(
    #[values(Codec::Gzip(6), Codec::Zstd(3), Codec::Lz4)] codec: Codec,
) {
    let original = text(600);
    let compressed = compress(codec, 1, &original);
    for position in 0..compressed.len() {
        let mut damaged = compressed.clone();
        damaged[position] ^= 0x10;
        // A flip in a field that means nothing (gzip's time) may leave the content whole.
        if let Ok(content) = decompress(codec, damaged) {
            assert!(
                content == original,
                "{codec}: a flip at {position} gave other content"
            );
        }
    }
}

#[test]
fn an_error_of_the_input_is_told_as_it_is() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the seal is broken"));
            }
            let count = buffer.len().min(self.0);
            self.0 -= count;
            Ok(count)
        }
    }
    for codec in [Codec::Gzip(6), Codec::Zstd(3), Codec::Lz4, Codec::None] {
        let compressed = compress(codec, 1, &text(50_000));
        let half = compressed.len() / 2;
        let input = Cursor::new(compressed[..half].to_vec()).chain(Failing(0));
        let mut decompressor = Decompressor::new(codec, input).unwrap();
        let error = io::copy(&mut decompressor, &mut io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "the seal is broken", "{codec}");
        let again = decompressor
            .read(&mut [0])
            .expect_err("after an error there is no end of file");
        assert_eq!(again.kind(), error.kind());
    }
}

#[test]
fn a_panic_of_the_input_is_an_error() {
    struct Panicking;
    impl Read for Panicking {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("a bug in a reader")
        }
    }
    let mut reader = ReadAhead::new(Panicking).unwrap();
    assert!(
        reader
            .read(&mut [0])
            .unwrap_err()
            .to_string()
            .contains("panicked")
    );
}

#[test]
fn dropping_a_decompressor_early_stops_its_thread() {
    struct Endless(std::sync::mpsc::Sender<()>);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
    }
    impl Drop for Endless {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
        }
    }
    let (sender, dropped) = std::sync::mpsc::channel();
    let mut decompressor = Decompressor::new(Codec::None, Endless(sender)).unwrap();
    decompressor.read_exact(&mut [0; 100]).unwrap();
    drop(decompressor);
    dropped
        .recv_timeout(std::time::Duration::from_secs(20))
        .expect("the thread ends and drops its input");
}

#[test]
fn compression_levels_matter() {
    let original = text(4 * MIB);
    let size = |codec| compress(codec, 2, &original).len();
    assert!(size(Codec::Gzip(9)) < size(Codec::Gzip(1)));
    assert!(size(Codec::Zstd(19)) < size(Codec::Zstd(1)));
    // Cutting into blocks costs next to nothing against one stream.
    let (_, reference) = pipe("gzip", &["-6c"], &original);
    assert!(
        size(Codec::Gzip(6)) < reference.len() * 106 / 100,
        "{} against {}",
        size(Codec::Gzip(6)),
        reference.len()
    );
}

#[test]
fn codecs_are_read_and_written_as_people_type_them() {
    for (text, codec, shown) in [
        ("gzip", Codec::Gzip(6), "gzip:6"),
        ("gzip:9", Codec::Gzip(9), "gzip:9"),
        ("zstd", Codec::Zstd(3), "zstd:3"),
        ("zstd:19", Codec::Zstd(19), "zstd:19"),
        ("lz4", Codec::Lz4, "lz4"),
        ("none", Codec::None, "none"),
    ] {
        assert_eq!(text.parse(), Ok(codec));
        assert_eq!(codec.to_string(), shown);
        assert_eq!(shown.parse(), Ok(codec));
    }
    for (text, message, hint) in [
        (
            "bzip2",
            "unknown compression `bzip2`",
            "use one of gzip[:1-9], zstd[:1-19], lz4, none; for example zstd:3",
        ),
        (
            "",
            "unknown compression ``",
            "use one of gzip[:1-9], zstd[:1-19], lz4, none; for example zstd:3",
        ),
        (
            "gzip:10",
            "`10` is not a compression level of gzip",
            "use gzip:1 to gzip:9, or only gzip",
        ),
        (
            "gzip:0",
            "`0` is not a compression level of gzip",
            "use gzip:1 to gzip:9, or only gzip",
        ),
        (
            "zstd:+3",
            "`+3` is not a compression level of zstd",
            "use zstd:1 to zstd:19, or only zstd",
        ),
        (
            "zstd:",
            "`` is not a compression level of zstd",
            "use zstd:1 to zstd:19, or only zstd",
        ),
        (
            "lz4:1",
            "lz4 has no compression levels, but `:1` was given",
            "use only lz4",
        ),
    ] {
        let error = text.parse::<Codec>().unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.hint().as_deref()),
            (message, Some(hint))
        );
        assert_eq!(error.outcome(), Outcome::Usage);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn no_input_makes_a_decompressor_panic_or_hang(
        garbage in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        keep in 0_usize..64,
    ) {
        for codec in [Codec::Gzip(6), Codec::Zstd(3), Codec::Lz4] {
            let mut bytes = compress(codec, 1, &text(200));
            bytes.truncate(keep);
            bytes.extend_from_slice(&garbage);
            let result = decompress(codec, bytes);
            let panicked = result.is_err_and(|error| error.to_string().contains("panicked"));
            proptest::prop_assert!(!panicked, "{}", codec);
        }
    }
}

/// The most memory that this process has used so far, in bytes (`VmHWM` of proc(5)).
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[rstest]
#[case(Codec::Gzip(6), 96)]
#[case(Codec::Zstd(3), 130)]
#[case(Codec::Lz4, 160)]
fn memory_is_bounded_whatever_the_length(#[case] codec: Codec, #[case] most_mib: u64) {
    // Slow output and fast input: what is compressed must not pile up.
    struct Slow(u64);
    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            std::thread::yield_now();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // nextest runs each test in a process of its own, so that the peak is this test's.
    let before = peak_memory();
    let piece = noise(MIB);
    let mut compressor = Compressor::new(codec, 8, Slow(0)).unwrap();
    for _ in 0..300 {
        compressor.write_all(&piece).unwrap();
    }
    assert!(compressor.finish().unwrap().0 > 0);
    let grown = (peak_memory() - before) / MIB as u64;
    assert!(grown < most_mib, "{codec} took {grown} MiB for 300 MiB of input");
}
