//! `wal verify`: every file of an archive read back, opened and hashed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use futures::stream;
use pgmahout_types::repository::Digest;
use pgmahout_types::wal::WalPageHeader;
use pgmahout_types::{SegmentName, TimelineId, WalFileName};
use tokio_util::sync::CancellationToken;

use super::archive::WalArchive;
use super::error::WalError;
use super::inventory::WalInventory;

/// What a verification found.
#[derive(Debug)]
pub struct WalVerification {
    /// What was listed.
    pub inventory: WalInventory,
    /// Files that were read and are whole.
    pub sound: BTreeMap<WalFileName, Digest>,
    /// Bytes of their content.
    pub bytes: u64,
    /// Files that are not whole, or could not be read.
    pub problems: Vec<(WalFileName, WalError)>,
    /// Timelines whose parent lacks the segment before the branch.
    pub broken_branches: Vec<(TimelineId, SegmentName)>,
}

impl WalVerification {
    /// Whether nothing is wrong: all files whole, no gaps that nobody gave up.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.broken_branches.is_empty() && self.inventory.gaps().next().is_none()
    }
}

/// Reads every file of an archive, so many at once. `done` is told how many files have been read.
///
/// # Errors
///
/// When the archive cannot be listed, or it is cancelled. Files that cannot be read are results.
pub async fn verify(
    archive: &WalArchive,
    jobs: usize,
    cancellation: &CancellationToken,
    done: &(dyn Fn(u64, u64) + Sync),
) -> Result<WalVerification, WalError> {
    let inventory = archive.list(cancellation).await?;
    let names: Vec<WalFileName> = inventory.files().collect();
    let total = names.len() as u64;
    let read = AtomicU64::new(0);
    let mut work = stream::iter(names)
        .map(|name| {
            let read = &read;
            async move {
                let checked = check(archive, name).await;
                done(read.fetch_add(1, Ordering::Relaxed) + 1, total);
                (name, checked)
            }
        })
        .buffer_unordered(jobs.max(1));
    let (mut sound, mut problems, mut bytes) = (BTreeMap::new(), Vec::new(), 0);
    while let Some((name, checked)) = work.next().await {
        if cancellation.is_cancelled() {
            return Err(WalError::Cancelled);
        }
        match checked {
            Ok((digest, size)) => {
                bytes += size;
                sound.insert(name, digest);
            }
            Err(error) => problems.push((name, error)),
        }
    }
    drop(work);
    problems.sort_by_key(|(name, _)| *name);
    let broken_branches = inventory.broken_branches();
    Ok(WalVerification {
        inventory,
        sound,
        bytes,
        problems,
        broken_branches,
    })
}

/// Reads one file back and compares its content with its digest and its name.
///
/// # Errors
///
/// Whatever is wrong with it.
pub async fn check(archive: &WalArchive, name: WalFileName) -> Result<(Digest, u64), WalError> {
    let file = archive.get(name).await?.ok_or_else(|| WalError::Absent {
        name,
        places: archive.repository().description(),
    })?;
    if let WalFileName::Segment(segment) = name {
        WalPageHeader::parse(&file.content)
            .and_then(|page| page.check_name(segment))
            .map_err(|error| WalError::content(name, error))?;
    }
    Ok((file.header.blake3, file.content.len() as u64))
}
