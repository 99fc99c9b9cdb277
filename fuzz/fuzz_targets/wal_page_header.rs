//! The header of a segment's first page.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::{SegmentName, WalPageHeader};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = WalPageHeader::parse(bytes) else {
        return;
    };
    assert!(header.major().is_some());
    let own = SegmentName::containing(header.timeline, header.address, header.segment_size);
    assert_eq!(header.check_name(own), Ok(()));
    assert_eq!(own.start(header.segment_size), Ok(header.address));
    if let Ok(Some(next)) = own.next(header.segment_size) {
        assert!(header.check_name(next).is_err());
    }
});
