//! Moving an old data directory aside, so that it stays whole: its tablespaces and its WAL directory move with
//! it, and its links follow them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::io::Errno;

use super::error::RestoreError;
use super::guard;
use super::prepare::Shared;

/// Moves what is in the way, and says where it is now. Nothing moves where nothing is.
///
/// What the data directory links to goes first: interrupted in between, the old directory is still whole.
pub(crate) fn move_aside(shared: &Shared) -> Result<Vec<PathBuf>, RestoreError> {
    let layout = &shared.layout;
    let data = layout.data();
    if guard::look(data)?.is_free() {
        return Ok(Vec::new());
    }
    let suffix = Timestamp::now().strftime("old-%Y%m%dT%H%M%SZ").to_string();
    let mut moved = Vec::new();
    for (link, target) in layout.links() {
        let is_ours = fs::canonicalize(&link).is_ok_and(|real| real == target);
        let is_empty = guard::entries(&target)?.is_none_or(|found| found.is_empty());
        if !is_ours || is_empty {
            continue;
        }
        let aside = rename(&target, &suffix)?;
        fs::remove_file(&link).map_err(|error| RestoreError::io("remove the link", &link, error))?;
        symlink(&aside, &link).map_err(|error| RestoreError::io("make the link", &link, error))?;
        moved.push(aside);
    }
    moved.insert(0, rename(data, &suffix)?);
    Ok(moved)
}

fn rename(path: &Path, suffix: &str) -> Result<PathBuf, RestoreError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".");
    aside.push(suffix);
    let aside = PathBuf::from(aside);
    match rustix::fs::renameat_with(
        rustix::fs::CWD,
        path,
        rustix::fs::CWD,
        &aside,
        rustix::fs::RenameFlags::NOREPLACE,
    ) {
        Ok(()) => {}
        Err(Errno::BUSY | Errno::XDEV) => {
            return Err(RestoreError::Refused {
                what: format!("{} is a mount point, and cannot be moved aside", path.display()),
                hint: "restore into another directory, or over this one with --delta".to_owned(),
            });
        }
        Err(error) => return Err(RestoreError::io("move aside", path, error.into())),
    }
    if let Some(parent) = path.parent() {
        pgmahout_durable::sync_directory(parent)?;
    }
    Ok(aside)
}
