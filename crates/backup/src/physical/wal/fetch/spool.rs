//! Segments that were fetched before they were asked for.
//!
//! They lie beside pg_wal, so that handing one over is a rename. Each has a note of whose it is: the repository, the
//! cluster, the digest. What is handed over is hashed again first.
//!
//! A segment stays only as long as it can be the next: handing one over removes what is before it, far behind it or
//! on another timeline, so that nothing outlives a change of timeline, a restart from an earlier point or a
//! pg_rewind. What a repository did *not* have is never noted.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgmahout_types::repository::Digest;
use pgmahout_types::{SegmentName, SegmentSize, SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

use super::super::digest;
use super::super::object::ArchivedFile;
use super::super::place::Binding;
use crate::physical::stanza::StanzaName;

/// The directory, in pg_wal.
const DIRECTORY: &str = "pgmahout.fetch";

/// The spool of one data directory.
#[derive(Debug, Clone)]
pub struct FetchSpool {
    directory: PathBuf,
    /// Whether the directory above may be made too: where it is configured, not beside a pg_wal.
    is_configured: bool,
}

/// What is noted beside a segment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) segment: SegmentName,
    pub(super) stanza: String,
    pub(super) system: SystemIdentifier,
    pub(super) size: u64,
    pub(super) blake3: Digest,
    pub(super) at: Timestamp,
    pub(super) repository: Binding,
    /// Whether its replay makes tablespaces outside the data directory, where that was looked at.
    #[serde(default)]
    pub(super) tablespaces: Option<bool>,
}

/// How far to read ahead: what was handed over last, and how many segments were read ahead of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) timeline: TimelineId,
    pub(super) number: u64,
    pub(super) segments: u32,
}

impl FetchSpool {
    /// The spool beside the pg_wal in which `target` lies, or in a directory that is configured.
    pub fn new(target: &Path, configured: Option<&Path>, stanza: &StanzaName) -> Self {
        let directory = match configured {
            Some(directory) => directory.join(stanza.as_str()),
            None => target.parent().unwrap_or(Path::new("")).join(DIRECTORY),
        };
        Self {
            directory,
            is_configured: configured.is_some(),
        }
    }

    fn create(&self) -> std::io::Result<()> {
        let created = if self.is_configured {
            fs::create_dir_all(&self.directory)
        } else {
            fs::create_dir(&self.directory)
        };
        match created {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn content(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(segment.to_string())
    }

    fn note(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(format!("{segment}.note"))
    }

    /// The note of a segment that is here.
    pub(super) fn find(&self, segment: SegmentName) -> Option<Note> {
        let note: Note = serde_json::from_slice(&fs::read(self.note(segment)).ok()?).ok()?;
        (note.segment == segment && self.content(segment).is_file()).then_some(note)
    }

    /// Keeps a segment. Nothing is synced: after a crash of the machine the digest does not match, or nothing is here.
    pub(super) fn keep(&self, segment: SegmentName, file: &ArchivedFile, note: &Note) -> std::io::Result<()> {
        self.create()?;
        // Files that another process is reading are replaced, never changed.
        let write = |target: &Path, bytes: &[u8]| {
            let mut temporary = tempfile::NamedTempFile::new_in(&self.directory)?;
            temporary.write_all(bytes)?;
            temporary.persist(target).map(drop).map_err(|error| error.error)
        };
        write(&self.content(segment), &file.content)?;
        write(&self.note(segment), &serde_json::to_vec(note).unwrap_or_default())
    }

    /// Gives a segment its place, when its content is what was noted.
    pub(super) fn hand_over(&self, note: &Note, target: &Path, threads: usize) -> std::io::Result<bool> {
        let path = self.content(note.segment);
        let file = fs::File::open(&path)?;
        if digest::of_file(&file, note.size, threads)? != Some(note.blake3) {
            return Ok(false);
        }
        match fs::rename(&path, target) {
            Ok(()) => {}
            // The spool is configured on another file system.
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                let content = fs::read(&path)?;
                if Digest::of(&content) != note.blake3 {
                    return Ok(false);
                }
                super::write_target(target, &content).map_err(std::io::Error::other)?;
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Removes what cannot come next after a segment, and what is no segment of this size.
    pub(super) fn purge(&self, after: SegmentName, size: SegmentSize, most: u32) {
        let Ok(number) = after.number(size) else { return };
        let may_come = |segment: SegmentName| {
            segment.timeline() == after.timeline()
                && segment
                    .number(size)
                    .is_ok_and(|it| it > number && it <= number + u64::from(most))
        };
        self.remove_unless(may_come);
    }

    fn remove_unless(&self, may_stay: impl Fn(SegmentName) -> bool) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let segment = name.strip_suffix(".note").unwrap_or(name).parse();
            let stays = match segment {
                Ok(segment) => may_stay(segment),
                Err(_) => name == "window",
            };
            if !stays {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// How far was read ahead last.
    pub(super) fn window(&self) -> Option<Window> {
        serde_json::from_slice(&fs::read(self.directory.join("window")).ok()?).ok()
    }

    /// Notes how far to read ahead next.
    pub(super) fn set_window(&self, window: Window) {
        let bytes = serde_json::to_vec(&window).unwrap_or_default();
        let written = self
            .create()
            .and_then(|()| fs::write(self.directory.join("window"), bytes));
        if let Err(error) = written {
            tracing::debug!(%error, "how far to read ahead cannot be noted");
        }
    }
}
