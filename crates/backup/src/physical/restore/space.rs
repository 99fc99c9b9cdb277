//! How much room a restore needs on each file system.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::RestoreError;

/// Files take whole blocks of the file system.
const FILE_SYSTEM_BLOCK: u64 = 4096;
/// Never used up to the last byte: the server must be able to start.
const RESERVE: u64 = 16 << 20;

/// What is needed of one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpaceNeed {
    /// The first of the directories that lie on it.
    pub path: PathBuf,
    /// Bytes of what is going to be there.
    pub total: u64,
    /// Bytes of these that are there already and are reused.
    pub reused: u64,
    /// Bytes that are free.
    pub free: u64,
}

impl SpaceNeed {
    /// Bytes that are yet to be written.
    pub fn needed(&self) -> u64 {
        self.total.saturating_sub(self.reused)
    }

    /// # Errors
    /// [`RestoreError::NoSpace`].
    pub(crate) fn check(&self) -> Result<(), RestoreError> {
        let needed = self.needed();
        if needed > 0 && needed.saturating_add(RESERVE) > self.free {
            return Err(RestoreError::NoSpace {
                path: self.path.clone(),
                needed: needed.saturating_add(RESERVE),
                free: self.free,
            });
        }
        Ok(())
    }
}

/// Bytes that a file of that size takes.
pub(crate) fn on_disk(size: u64) -> u64 {
    size.next_multiple_of(FILE_SYSTEM_BLOCK)
}

/// Adds up by file system. `reused` is by the number of the file system.
pub(crate) fn needs(
    totals: &[(PathBuf, u64)],
    reused: &BTreeMap<u64, u64>,
) -> Result<Vec<SpaceNeed>, RestoreError> {
    let mut devices: Vec<(u64, SpaceNeed)> = Vec::new();
    for (path, total) in totals {
        let there = existing_ancestor(path);
        let device = fs::metadata(there)
            .map_err(|error| RestoreError::io("look at", there, error))?
            .dev();
        if let Some((_, need)) = devices.iter_mut().find(|(known, _)| *known == device) {
            need.total += total;
            continue;
        }
        let state = rustix::fs::statvfs(there)
            .map_err(|error| RestoreError::io("ask for the free space of", there, error.into()))?;
        // What is kept for root is not for the server.
        let free = state.f_bavail.saturating_mul(state.f_frsize);
        devices.push((
            device,
            SpaceNeed {
                path: path.clone(),
                total: *total,
                reused: reused.get(&device).copied().unwrap_or_default(),
                free,
            },
        ));
    }
    Ok(devices.into_iter().map(|(_, need)| need).collect())
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_one_file_system_share_its_space() {
        let root = tempfile::tempdir().expect("a directory");
        let paths = [root.path().join("new/data"), root.path().join("space")];
        let totals: Vec<(PathBuf, u64)> = paths.iter().map(|path| (path.clone(), 1000)).collect();
        let needs = needs(&totals, &BTreeMap::new()).expect("known");
        assert_eq!(needs.len(), 1);
        assert_eq!(needs[0].total, 2000);
        needs[0].check().expect("2 KB are free");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_is_there_counts() {
        let need = SpaceNeed {
            path: "/data".into(),
            total: 100 << 30,
            reused: 0,
            free: 50 << 30,
        };
        assert!(matches!(need.check(), Err(RestoreError::NoSpace { .. })));
        let need = SpaceNeed {
            reused: 60 << 30,
            ..need
        };
        need.check().expect("40 GiB fit");
    }
}
