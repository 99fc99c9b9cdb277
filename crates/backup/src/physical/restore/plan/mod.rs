//! The plan of a restore.
//!
//! [`choose`] is pure: from the backups, the archive and the target to the way between them, or to the reason
//! why there is none. [`RestorePlan`] adds what the files need.

mod archive;
mod choose;

use std::path::PathBuf;
use std::time::Duration;

use pgmahout_types::repository::manifest::{Manifest, PackKind};
use serde::Serialize;

pub use archive::{Archive, Reach, Stretch};
pub use choose::{Candidate, Choice, WalRange, choose};

use super::space::SpaceNeed;

/// Bytes of files that a processor restores in a second, for the estimate.
const FILES_PER_SECOND: u64 = 150 << 20;
/// Bytes of WAL that a server replays in a second, for the estimate.
const WAL_PER_SECOND: u64 = 50 << 20;

/// Everything that a restore is going to do, before it does anything.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePlan {
    /// Backup, timeline and WAL.
    #[serde(flatten)]
    pub choice: Choice,
    /// Where recovery ends, for people.
    pub target: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// How many files are restored.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that are read from the repository, at most.
    pub read: u64,
    /// What is needed of each file system.
    pub space: Vec<SpaceNeed>,
    /// What is in the directories and will be removed.
    pub removed: Vec<PathBuf>,
    /// How long it takes, roughly, with the replay of all of the WAL.
    #[serde(rename = "estimated_seconds", serialize_with = "seconds")]
    pub estimate: Duration,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

/// Bytes that are read from the repository at most: of each pack what the backup uses, or all of it.
pub(crate) fn stored_bytes(manifest: &Manifest) -> u64 {
    let data = manifest
        .end
        .packs
        .iter()
        .filter(|pack| pack.kind == PackKind::Data);
    data.map(|pack| pack.size.min(pack.live)).sum()
}

/// How long it takes, roughly.
pub(crate) fn estimate(bytes: u64, wal: u64, jobs: usize) -> Duration {
    let files = bytes / (FILES_PER_SECOND * jobs.max(1) as u64);
    Duration::from_secs(1 + files + wal / WAL_PER_SECOND)
}
