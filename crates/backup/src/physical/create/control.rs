//! Reading a live pg_control.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pgmahout_types::ControlFile;
use pgmahout_types::control::ControlFileError;

use super::error::CreateError;

/// How often a damaged file is read again before it is believed.
const ATTEMPTS: u32 = 100;
/// The pause between two readings: longer than any writing of 8 KiB.
const PAUSE: Duration = Duration::from_millis(20);

/// Reads pg_control of a server that may be writing it. The server writes it in place, so that a reader can
/// see half of it, which its checksum shows: it is read again until it is whole.
///
/// Blocks for up to two seconds.
pub(super) fn read(data_dir: &Path) -> Result<(Vec<u8>, ControlFile), CreateError> {
    read_with(data_dir, |path| fs::read(path))
}

fn read_with(
    data_dir: &Path,
    mut read: impl FnMut(&Path) -> std::io::Result<Vec<u8>>,
) -> Result<(Vec<u8>, ControlFile), CreateError> {
    let path = data_dir.join(ControlFile::PATH);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let bytes = read(&path).map_err(|error| CreateError::io("read", &path, error))?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(ControlFileError::Checksum { .. } | ControlFileError::Truncated { .. })
                if attempt < ATTEMPTS =>
            {
                std::thread::sleep(PAUSE);
            }
            Err(source) => return Err(CreateError::Control { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_file_is_read_again_until_it_is_whole() {
        let mut whole = include_bytes!("../../../../types/tests/fixtures/pg_control-17.bin").to_vec();
        whole.resize(ControlFile::FILE_SIZE, 0);
        // The first half is of the new content, the second of the old.
        let mut torn = whole.clone();
        torn[32] ^= 1;
        let mut readings = [torn.clone(), torn, whole.clone()].into_iter();
        let (bytes, _) = read_with(Path::new("/nowhere"), |_| {
            Ok(readings.next().expect("three readings"))
        })
        .expect("the third is whole");
        assert!(bytes == whole);
    }

    /// A file that no server wrote is never taken, however often it is read.
    #[test]
    fn a_file_that_stays_torn_is_an_error() {
        let mut readings = 0;
        let error = read_with(Path::new("/nowhere"), |_| {
            readings += 1;
            Ok(vec![0; 100])
        })
        .expect_err("the file is too short");
        assert!(matches!(error, CreateError::Control { .. }), "{error}");
        assert_eq!(readings, ATTEMPTS);
    }
}
