//! Page maps and overlays, in the bytes of a map pack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::repository::page_map::{InlineMap, Overlay, PageMap, Place, Source, StoredMap};

fuzz_target!(|bytes: &[u8]| {
    match StoredMap::decode(bytes) {
        Ok(StoredMap::Whole(map)) => {
            assert_eq!(PageMap::decode(&map.encode()).as_ref(), Ok(&map));
            let stored: usize = map.runs().map(|run| run.hashes.len()).sum();
            assert_eq!(stored, map.hashes().len());
            for extent in map.extents().iter().take(100) {
                let zero = map.place(extent.first) == Some(Place::Zero);
                assert_eq!(zero, extent.source == Source::Zero);
            }
            assert_eq!(
                map.bytes_by_pack().iter().sum::<u64>() + map.zero_bytes(),
                map.size()
            );
            let inline = InlineMap::new(&map, |pack| {
                let number = map.packs().iter().position(|known| *known == pack);
                number.and_then(|number| u32::try_from(number).ok()).expect("it is known")
            });
            let pack = |number: u32| map.packs().get(usize::try_from(number).ok()?).copied();
            assert!(inline.to_map(map.size(), pack).is_ok());
            let empty = PageMap::empty();
            let overlay = Overlay::diff(&empty, &map);
            assert_eq!(overlay.apply(&empty).map(|whole| whole.size()), Ok(map.size()));
        }
        Ok(StoredMap::Overlay(overlay)) => {
            assert_eq!(Overlay::decode(&overlay.encode()).as_ref(), Ok(&overlay));
            let _ = overlay.apply(&PageMap::empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(inline) = serde_json::from_slice::<InlineMap>(bytes) {
        let text = serde_json::to_vec(&inline).expect("our own");
        assert_eq!(serde_json::from_slice::<InlineMap>(&text).expect("our own"), inline);
    }
});
