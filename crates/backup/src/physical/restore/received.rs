//! WAL that a receiver on this host has and no repository yet: what follows the end of the archive.
//!
//! It is put into pg_wal of the restored directory, where the server looks after the archive has said that it has
//! not got a segment: a complete one from the archive always wins. The segment that was being received is filled with
//! zeros, and used only when its server does not answer any more, or the user has said that it is gone: what a living
//! server has committed since is only there, and a restore beside it needs no unfinished segment.

use std::path::PathBuf;

use pgmahout_types::SystemIdentifier;
use serde::{Deserialize, Serialize};

use super::error::RestoreError;
use super::place::write_file;
use super::plan::Archive;
use super::prepare::Shared;
use crate::physical::wal::receive::left::{LeftSegment, LeftWal};

/// Where a receiver keeps its files, and what is known of its server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverFiles {
    /// The directory.
    pub directory: PathBuf,
    /// Whether it was named; else it need not be there.
    pub is_named: bool,
    /// The user has said that the primary is gone, or fenced.
    pub primary_gone: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) segments: Vec<LeftSegment>,
    pub(crate) warnings: Vec<String>,
}

impl Received {
    /// Looks for WAL of the cluster that the archive has not got, and adds it to the archive. Blocks.
    pub(crate) fn look(
        files: &ReceiverFiles,
        system: SystemIdentifier,
        archive: &mut Archive,
    ) -> Result<Self, RestoreError> {
        let directory = &files.directory;
        let shown = directory.display();
        let mut received = Self::default();
        match std::fs::metadata(directory) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !files.is_named => {
                return Ok(received);
            }
            Err(error) => return Err(RestoreError::io("look into", directory, error)),
        }
        let left = match LeftWal::look(directory, system, archive.segment_size()) {
            Ok(left) => left,
            Err(error) if files.is_named => {
                return Err(RestoreError::Refused {
                    what: format!("the receiver's files in {shown} cannot be read: {error}"),
                    hint: "run it as the user of `pgmahout wal receive`, or as root".to_owned(),
                });
            }
            Err(error) => {
                received.warnings.push(format!(
                    "what a receiver on this host has and no repository is not used, because it cannot be read: \
                     {error}"
                ));
                return Ok(received);
            }
        };
        for file in &left.foreign {
            received.warnings.push(format!(
                "{file} in {shown} is not WAL of this cluster, and is not used"
            ));
        }
        let mut unfinished = false;
        for segment in left.segments {
            if archive.has(segment.name) {
                continue;
            }
            unfinished |= !segment.is_whole;
            archive.add_received(segment.name, segment.at, segment.end);
            received.segments.push(segment);
        }
        let Some(server) = left.server.filter(|_| unfinished && !files.primary_gone) else {
            return Ok(received);
        };
        if server.answers() {
            received.warnings.push(format!(
                "the last segment in {shown} is not used, because the server at {server} still answers: what it \
                 committed last is only there; where it is gone or fenced all the same, say --primary-gone"
            ));
            received.segments.retain(|segment| {
                if !segment.is_whole {
                    archive.remove(segment.name);
                }
                segment.is_whole
            });
        } else {
            received.warnings.push(format!(
                "the server at {server} does not answer: see to it that it is off, or cut off from everybody; what \
                 it still commits is in no restore"
            ));
        }
        Ok(received)
    }
}

/// Puts the segments of the way into pg_wal.
pub(crate) fn place(shared: &Shared) -> Result<(), RestoreError> {
    let size = shared.segment_size;
    let wal = shared.layout.data().join("pg_wal");
    for segment in &shared.received {
        let content = segment
            .read(size)
            .map_err(|error| RestoreError::io("read", &segment.path, error))?;
        write_file(
            &wal.join(segment.name.to_string()),
            &content,
            0o600,
            shared.owner()?,
        )?;
    }
    Ok(())
}
