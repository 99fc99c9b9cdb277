//! The index in the last frame of a pack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::repository::PackIndex;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = PackIndex::decode(bytes) {
        assert!(index.frames.iter().all(|frame| frame.location.is_possible()));
        assert_eq!(PackIndex::decode(&index.encode()), Ok(index));
    }
});
