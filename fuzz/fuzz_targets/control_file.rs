//! pg_control, as it is, and padded to its size with the checksum put right, so that runs get past it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmahout_types::ControlFile;
use pgmahout_types::control::ControlFileError;

fuzz_target!(|bytes: &[u8]| {
    let _ = ControlFile::parse(bytes);

    let mut file = bytes.to_vec();
    file.resize(ControlFile::FILE_SIZE, 0);
    let version = u32::from_le_bytes(file[8..12].try_into().expect("four bytes"));
    let end = if version == 1800 { 292 } else { 288 };
    let checksum = crc32c::crc32c(&file[..end]);
    file[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
    match ControlFile::parse(&file) {
        Ok(control) => {
            assert_eq!(control.control_version, version);
            assert_eq!(control.maximum_alignment, 8);
            file[end] ^= 1;
            assert!(matches!(
                ControlFile::parse(&file),
                Err(ControlFileError::Checksum { .. })
            ));
        }
        Err(ControlFileError::Checksum { .. } | ControlFileError::Truncated { .. }) => {
            unreachable!("both are right")
        }
        Err(error) => assert!(error.to_string().starts_with("pg_control has ")),
    }
});
