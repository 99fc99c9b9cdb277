//! Manifests: as they are, and line by line with the last line put right, so that runs get past it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::repository::{Digest, Manifest, ManifestReader, ManifestWriter};

fuzz_target!(|bytes: &[u8]| {
    let _ = Manifest::read(bytes);

    let Ok(mut reader) = ManifestReader::new(bytes) else {
        return;
    };
    let mut entries = Vec::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        entries.push(entry);
    }
    let mut writer = ManifestWriter::new(Vec::new(), reader.header()).expect("memory");
    for entry in &entries {
        writer.write(entry).expect("it was read");
    }
    // Packs are known only where the manifest was whole.
    let Some(end) = reader.end() else { return };
    let (written, said) = writer.finish(end.packs.clone(), end.work).expect("memory");
    let again = Manifest::read(written.as_slice()).expect("our own");
    assert_eq!(&again.header, reader.header());
    assert_eq!(again.entries, entries);
    assert_eq!(again.end, said);
    let last = written[..written.len() - 1].iter().rposition(|&byte| byte == b'\n').expect("many lines") + 1;
    assert_eq!(again.end.digest, Digest::of(&written[..last]));
});
