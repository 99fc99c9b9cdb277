//! tablespace_map.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::TablespaceMap;

fuzz_target!(|content: &[u8]| {
    if let Ok(map) = TablespaceMap::parse(content) {
        assert_eq!(TablespaceMap::parse(&map.render()), Ok(map.clone()));
        assert_eq!(TablespaceMap::new(map.links().to_vec()), Ok(map));
    }
});
