//! The files of a receiver: what arrives is written into `SEGMENT.partial`, which gets the segment's name when it is
//! whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pgmahout_durable::sync_directory;
use pgmahout_types::{Lsn, SegmentName, SegmentSize, TimelineId, WalFileName};

use super::super::error::WalError;

/// So many bytes arrive at most before they are synced and reported, however fast more comes.
pub(super) const MOST_UNSYNCED: u64 = 4 << 20;

/// What follows the name of the last segment of a timeline that has ended.
pub(super) const ENDED: &str = ".ended";

/// Where to go on by the files that are here: the first byte of the unfinished segment.
pub(super) fn resume(directory: &Path, size: SegmentSize) -> Result<Option<(TimelineId, Lsn)>, WalError> {
    let names = names_in(directory)?;
    let newest = names
        .into_iter()
        .filter_map(|name| match name {
            WalFileName::Partial(segment) => Some((segment, false)),
            WalFileName::Segment(segment) => Some((segment, true)),
            _ => None,
        })
        .max();
    let Some((segment, is_whole)) = newest else {
        return Ok(None);
    };
    let start = segment.start(size)?;
    let start = if is_whole {
        start.checked_add(size.bytes()).unwrap_or(start)
    } else {
        start
    };
    Ok(Some((segment.timeline(), start)))
}

/// The WAL files of a directory, in their order.
pub(super) fn names_in(directory: &Path) -> Result<Vec<WalFileName>, WalError> {
    let entries = fs::read_dir(directory).map_err(|source| WalError::Io {
        doing: "read",
        path: directory.to_path_buf(),
        source,
    })?;
    let mut names: Vec<WalFileName> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Writes what arrives.
pub(super) struct Receiver {
    pub(super) directory: PathBuf,
    pub(super) size: SegmentSize,
    pub(super) timeline: TimelineId,
    /// The next byte.
    pub(super) position: Lsn,
    pub(super) open: Option<(File, SegmentName)>,
}

impl Receiver {
    pub(super) fn failed(&self, source: io::Error) -> WalError {
        WalError::Io {
            doing: "write",
            path: self.directory.clone(),
            source,
        }
    }

    pub(super) fn partial(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(WalFileName::Partial(segment).to_string())
    }

    /// Writes bytes; `true` when a segment became whole.
    pub(super) fn write(&mut self, mut bytes: Bytes) -> io::Result<bool> {
        let mut is_whole = false;
        while !bytes.is_empty() {
            let segment = SegmentName::containing(self.timeline, self.position, self.size);
            let offset = u64::from(self.size.offset_of(self.position));
            let file = match &self.open {
                Some((file, open)) if *open == segment => file,
                _ => {
                    // Never cut: what was acknowledged before a kill is in it.
                    let file = OpenOptions::new()
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .mode(0o600)
                        .open(self.partial(segment))?;
                    sync_directory(&self.directory).map_err(io::Error::other)?;
                    &self.open.insert((file, segment)).0
                }
            };
            let fitting = (self.size.bytes() - offset).min(bytes.len() as u64) as usize;
            let piece = bytes.split_to(fitting);
            file.write_all_at(&piece, offset)?;
            self.position = Lsn::new(self.position.as_u64() + piece.len() as u64);
            if self.size.offset_of(self.position) == 0 {
                self.sync()?;
                self.open = None;
                fs::rename(self.partial(segment), self.directory.join(segment.to_string()))?;
                sync_directory(&self.directory).map_err(io::Error::other)?;
                is_whole = true;
            }
        }
        Ok(is_whole)
    }

    /// The timeline ends here: its unfinished segment waits to be stored.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.sync()?;
        self.open = None;
        let segment = SegmentName::containing(self.timeline, self.position, self.size);
        match fs::rename(
            self.partial(segment),
            self.directory.join(format!("{segment}{ENDED}")),
        ) {
            // It ended with a whole segment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.and_then(|()| sync_directory(&self.directory).map_err(io::Error::other)),
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        match &self.open {
            Some((file, _)) => file.sync_data(),
            None => Ok(()),
        }
    }
}
