//! Names of files in pg_wal, and what follows from them for every segment size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::{SegmentName, SegmentSize, WalFileName};

fuzz_target!(|name: &str| {
    let file = name.parse::<WalFileName>();
    assert_eq!(
        name.parse::<SegmentName>().ok().map(WalFileName::Segment),
        file.clone()
            .ok()
            .filter(|file| matches!(file, WalFileName::Segment(_)))
    );
    let Ok(file) = file else { return };
    assert_eq!(file.to_string(), name);
    let Some(segment) = file.segment() else { return };
    for size in SegmentSize::all() {
        let Ok(number) = segment.number(size) else {
            continue;
        };
        assert!(number <= size.last_number());
        assert_eq!(SegmentName::new(segment.timeline(), number, size), Some(segment));
        let start = segment.start(size).expect("it has a number");
        let last = segment.last_byte(size).expect("it has a number");
        assert_eq!(last.bytes_since(start), size.bytes() - 1);
        for lsn in [start, last] {
            assert_eq!(SegmentName::containing(segment.timeline(), lsn, size), segment);
        }
        if let Some(next) = segment.next(size).expect("it has a number") {
            assert_eq!(next.previous(size), Ok(Some(segment)));
            assert_eq!(
                SegmentName::ending_at(
                    segment.timeline(),
                    next.start(size).expect("it has a number"),
                    size
                ),
                segment
            );
        }
    }
});
