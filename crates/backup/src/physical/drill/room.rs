//! Whether the scratch directory has room.

use std::path::Path;

use pgmahout_types::Bytes;
use pgmahout_types::repository::manifest::End;

use super::DrillError;

/// What is left alone whatever happens: a tenth of the file system, at most 10 GiB. Others live there too.
const MOST_RESERVED: u64 = 10 << 30;
/// What recovery keeps of WAL at a time: `max_wal_size` and some.
const MOST_WAL: u64 = 4 << 30;

/// Refuses where the drill would fill the disk.
pub(super) fn check(scratch: &Path, end: &End, wal: u64) -> Result<(), DrillError> {
    let state = rustix::fs::statvfs(scratch).map_err(|error| DrillError::File {
        action: "ask for the free space of",
        path: scratch.to_owned(),
        source: error.into(),
    })?;
    let free = state.f_bavail.saturating_mul(state.f_frsize);
    let size = state.f_blocks.saturating_mul(state.f_frsize);
    let needed = needed(end.bytes, end.files, wal, size);
    if needed > free {
        return Err(DrillError::NoRoom {
            path: scratch.to_owned(),
            needed: Bytes::new(needed).to_string(),
            free: Bytes::new(free).to_string(),
        });
    }
    Ok(())
}

/// Bytes that must be free: the files, each up to a block of the file system longer, the WAL that lies there at a
/// time, and the reserve.
fn needed(bytes: u64, files: u64, wal: u64, size: u64) -> u64 {
    let reserve = (size / 10).min(MOST_RESERVED).min(bytes.max(64 << 20));
    bytes + files * 4096 + wal.min(MOST_WAL) + reserve
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_the_wal_and_a_reserve_must_fit() {
        let gib = 1 << 30;
        assert_eq!(needed(100 * gib, 0, gib, 1000 * gib), 111 * gib);
        // WAL is recycled as it is replayed.
        assert_eq!(needed(100 * gib, 0, 500 * gib, 1000 * gib), 114 * gib);
        // A small cluster on a large disk does not need gigabytes.
        assert!(needed(32 << 20, 1000, 0, 1000 * gib) < 128 << 20);
    }
}
