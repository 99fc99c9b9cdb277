//! WAL positions, timelines and system identifiers as text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::{Lsn, SystemIdentifier, TimelineId};

fuzz_target!(|text: &str| {
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
        assert!(text.len() <= 17);
    }
    if let Ok(timeline) = text.parse::<TimelineId>() {
        assert_eq!(timeline.to_string().parse(), Ok(timeline));
        assert_ne!(timeline.get(), 0);
    }
    if let Ok(identifier) = text.parse::<SystemIdentifier>() {
        assert_eq!(identifier.to_string().parse(), Ok(identifier));
    }
});
