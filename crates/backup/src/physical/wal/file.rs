//! A WAL file of the server: what it must be before it is archived.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pgmahout_types::control::ControlFile;
use pgmahout_types::repository::{Digest, StanzaInfo};
use pgmahout_types::wal::WalPageHeader;
use pgmahout_types::wal::page_header::WalPageError;
use pgmahout_types::{SegmentSize, SystemIdentifier, TimelineHistory, WalFileName};

use super::digest::{self, PIECE};
use super::error::{TextProblem, WalError};

/// Histories are lines of some tens of bytes, one for each timeline.
const LARGEST_TEXT: u64 = 1 << 20;

/// A WAL file in memory: its name, its content, and whose it is.
#[derive(Debug, Clone)]
pub struct WalFile {
    /// Its name.
    pub name: WalFileName,
    /// Its content.
    pub content: Bytes,
    /// The BLAKE3 digest of its content.
    pub blake3: Digest,
    /// What its first page says; `None` for histories.
    pub page: Option<WalPageHeader>,
    /// The cluster that wrote it.
    pub system_identifier: SystemIdentifier,
}

impl WalFile {
    /// Reads a file by the path that PostgreSQL gives for `%p`, and sees that it is what its name says.
    ///
    /// Segments say themselves whose they are. Histories do not: for them pg_control of the data directory
    /// around pg_wal is read. Blocks the thread.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not what its name says.
    pub fn read(path: &Path) -> Result<Self, WalError> {
        Self::read_into(path, Vec::with_capacity)
    }

    /// The same into memory that was used before.
    pub(super) fn read_into(path: &Path, buffer: impl FnOnce(usize) -> Vec<u8>) -> Result<Self, WalError> {
        let name = name_of(path)?;
        let (content, blake3) = read_whole(path, name, buffer)?;
        Self::examine(name, content, blake3, |name| owner_beside(path, name))
    }

    /// The same with content that is in memory already, of a cluster that is known otherwise.
    ///
    /// # Errors
    ///
    /// When the content is not what the name says.
    pub fn new(name: WalFileName, content: Bytes, system: SystemIdentifier) -> Result<Self, WalError> {
        let blake3 = Digest::of(&content);
        Self::examine(name, content, blake3, |_| Ok(system))
    }

    fn examine(
        name: WalFileName,
        content: Bytes,
        blake3: Digest,
        owner: impl FnOnce(WalFileName) -> Result<SystemIdentifier, WalError>,
    ) -> Result<Self, WalError> {
        let (page, system_identifier) = match name {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => {
                let page = WalPageHeader::parse(&content).map_err(|error| WalError::content(name, error))?;
                page.check_name(segment)
                    .map_err(|error: WalPageError| WalError::content(name, error))?;
                check_size(name, content.len() as u64, page.segment_size)?;
                let system = page.system_identifier;
                (Some(page), system)
            }
            WalFileName::TimelineHistory(timeline) => {
                if content.is_empty() || content.len() as u64 > LARGEST_TEXT {
                    return Err(WalError::content(name, TextProblem::Length(content.len() as u64)));
                }
                TimelineHistory::parse(timeline, &content)
                    .map_err(|error| WalError::content(name, TextProblem::from(error)))?;
                (None, owner(name)?)
            }
            WalFileName::BackupHistory { .. } => {
                if content.is_empty() || content.len() as u64 > LARGEST_TEXT {
                    return Err(WalError::content(name, TextProblem::Length(content.len() as u64)));
                }
                if !content.starts_with(b"START WAL LOCATION: ") {
                    return Err(WalError::content(name, TextProblem::NoBackup));
                }
                (None, owner(name)?)
            }
        };
        Ok(Self {
            name,
            content,
            blake3,
            page,
            system_identifier,
        })
    }

    /// Whether it belongs into a stanza.
    ///
    /// # Errors
    ///
    /// [`WalError::OtherCluster`], [`WalError::OtherVersion`], [`WalError::Size`].
    pub fn check_owner(&self, info: &StanzaInfo, repository: &str) -> Result<(), WalError> {
        let Some(known) = info.history.last() else {
            return Ok(());
        };
        if known.system_identifier != self.system_identifier {
            return Err(WalError::OtherCluster {
                name: self.name,
                found: self.system_identifier,
                stanza: info.name.clone(),
                repository: repository.to_owned(),
                expected: known.system_identifier,
            });
        }
        let Some(page) = &self.page else { return Ok(()) };
        if let Some(major) = page.major()
            && major != known.major
        {
            return Err(WalError::OtherVersion {
                name: self.name,
                found: major,
                stanza: info.name.clone(),
                repository: repository.to_owned(),
                expected: known.major,
            });
        }
        check_size(self.name, self.content.len() as u64, known.wal_segment_size)
    }
}

fn check_size(name: WalFileName, found: u64, expected: SegmentSize) -> Result<(), WalError> {
    if found == expected.bytes() {
        Ok(())
    } else {
        Err(WalError::Size {
            name,
            found,
            expected,
        })
    }
}

/// The WAL file that a path names.
///
/// # Errors
///
/// When it names none.
pub fn name_of(path: &Path) -> Result<WalFileName, WalError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| WalError::NotAFile {
        path: path.to_path_buf(),
    })?;
    Ok(name.parse::<WalFileName>()?)
}

/// The data directory around the pg_wal in which a path lies, as the path says it: pg_wal itself may be a link.
pub fn data_directory_of(path: &Path) -> PathBuf {
    let pg_wal = path.parent().unwrap_or(Path::new(""));
    match pg_wal.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_path_buf(),
        None => PathBuf::from(".."),
    }
}

fn owner_beside(path: &Path, name: WalFileName) -> Result<SystemIdentifier, WalError> {
    let control = data_directory_of(path).join("global/pg_control");
    let bytes = std::fs::read(&control).map_err(|source| WalError::Owner {
        name,
        path: control.clone(),
        source: Box::new(source),
    })?;
    let parsed = ControlFile::parse(&bytes).map_err(|source| WalError::from((name, control, source)))?;
    Ok(parsed.system_identifier)
}

/// The digest of a file and whose it is, for comparing with what was noted of it; a segment is not held in memory.
/// `None` when it is not what its name says, or cannot be read: [`WalFile::read`] says why.
pub(super) fn identify(path: &Path, threads: usize) -> Option<(Digest, SystemIdentifier)> {
    if !matches!(name_of(path).ok()?, WalFileName::Segment(_)) {
        let file = WalFile::read(path).ok()?;
        return Some((file.blake3, file.system_identifier));
    }
    let file = File::open(path).ok()?;
    let mut first = [0; WalPageHeader::LENGTH];
    file.read_exact_at(&mut first, 0).ok()?;
    let page = WalPageHeader::parse(&first).ok()?;
    let blake3 = digest::of_file(&file, page.segment_size.bytes(), threads).ok()??;
    Some((blake3, page.system_identifier))
}

fn read_whole(
    path: &Path,
    name: WalFileName,
    buffer: impl FnOnce(usize) -> Vec<u8>,
) -> Result<(Bytes, Digest), WalError> {
    let failed = |source| WalError::Io {
        doing: "read",
        path: path.to_path_buf(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length > SegmentSize::MAX.bytes() {
        return Err(WalError::Size {
            name,
            found: length,
            expected: SegmentSize::MAX,
        });
    }
    let mut content = buffer(length as usize + 1);
    let mut hasher = blake3::Hasher::new();
    loop {
        let before = content.len();
        let mut piece = (&mut file).take(PIECE as u64);
        piece.read_to_end(&mut content).map_err(failed)?;
        // While it is in the processor's cache.
        hasher.update(&content[before..]);
        if content.len() - before < PIECE {
            break;
        }
    }
    Ok((content.into(), hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_is_found_from_the_path_that_the_server_gives() {
        for (path, directory) in [
            ("pg_wal/000000010000000000000003", "."),
            ("/srv/pg/pg_wal/000000010000000000000003", "/srv/pg"),
            ("000000010000000000000003", ".."),
        ] {
            assert_eq!(data_directory_of(Path::new(path)), Path::new(directory), "{path}");
        }
    }
}
