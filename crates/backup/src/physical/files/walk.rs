//! Lists what a backup of a data directory holds.
//!
//! One pass, without following the server's changes: a file that vanishes while it is looked for is left out,
//! as a restore will find in the WAL that it was removed; a file that grows is read to the size that is noted
//! here. [`FileList`] is compact: about 70 bytes for a file and the length of its name, so that a million
//! files take less than 100 MB.
//!
//! Symbolic links:
//!
//! - `pg_tblspc/<oid>` leads to a tablespace. Of it, only the directory of the server's own version is listed.
//!   A directory in the link's place is a tablespace too (`allow_in_place_tablespaces`).
//! - `pg_wal`, and other directories that are kept empty, are noted with where they lead.
//! - Any other link is followed, as its target may not exist where the backup is restored: the file or
//!   directory is listed under the link's path, and with where it led. Not so where it leads back into the
//!   data directory or a tablespace, to nothing, or to where another link has led: then the link alone is
//!   listed.
//!
//! Tablespaces that lie within the data directory, which PostgreSQL warns of, are listed once.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgmahout_types::ControlFile;
use pgmahout_types::repository::FileStamp;
use tokio_util::sync::CancellationToken;

use super::classify::{self, FileKind, FileVerdict, SkipReason};
use super::owners::{Owner, Owners};

mod error;
mod received;
mod visit;

pub use error::WalkError;
pub use received::{Attributes, ListBuilder};

/// What the walk must know of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkOptions {
    /// The server's major version.
    pub major: u32,
    /// The directory in each tablespace that is the server's: `PG_15_202209061`.
    pub version_directory: String,
}

impl WalkOptions {
    /// For the cluster that a control file is of, and a server's major version.
    pub fn new(major: u32, control: &ControlFile) -> Self {
        Self {
            major,
            version_directory: classify::tablespace_version_directory(major, control.catalog_version),
        }
    }
}

/// A directory of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its path; empty for the data directory itself.
    pub path: Box<[u8]>,
    /// Permission bits.
    pub mode: u16,
    /// When its entries last changed.
    pub modified: Timestamp,
    owner: u32,
    /// Whether what it holds is listed, or only that it exists.
    pub contents: Contents,
    /// Where it led, if it is a symbolic link. Mode and owner are those of the target.
    pub link: Option<PathBuf>,
}

/// Whether a directory's contents are part of the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Contents {
    /// They are listed.
    Listed,
    /// It is to be made empty.
    Empty,
    /// It is a tablespace, and listed as that.
    Elsewhere,
}

/// A symbolic link that is kept as such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEntry {
    /// Its path.
    pub path: Box<[u8]>,
    /// What it says.
    pub target: PathBuf,
    owner: u32,
}

/// A tablespace that is not one of the two that every cluster has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceEntry {
    /// Its OID.
    pub oid: u32,
    /// Where its link leads; `None` for one that lies in `pg_tblspc` itself.
    pub location: Option<PathBuf>,
}

/// A regular file of a backup.
#[derive(Debug, Clone, Copy)]
pub struct FileEntry<'a> {
    list: &'a FileList,
    packed: &'a Packed,
    index: usize,
}

/// What the walk left out and a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalkWarning {
    /// A socket, a pipe or a device: not copied.
    Special {
        /// Its path in the data directory.
        path: PathBuf,
    },
    /// A link that leads nowhere: kept as a link.
    Dangling {
        /// Its path in the data directory.
        path: PathBuf,
        /// Where it should lead.
        target: PathBuf,
    },
    /// A tablespace without a directory of this server's version.
    EmptyTablespace {
        /// Its OID.
        oid: u32,
    },
}

/// How much was left out, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Files of unlogged relations.
    pub unlogged: u64,
    /// Files of temporary relations.
    pub temporary_relations: u64,
    /// Everything else but WAL and what directories that are kept empty hold.
    pub others: u64,
    /// Files and directories that vanished while they were looked at.
    pub vanished: u64,
}

/// What a backup of a data directory holds: directories, each before those in it, and files by directory.
/// Within a directory relations and databases come first, by their numbers, then all else by name.
#[derive(Debug, Default)]
pub struct FileList {
    directories: Vec<DirectoryEntry>,
    files: Vec<Packed>,
    names: Vec<u8>,
    file_links: BTreeMap<usize, PathBuf>,
    links: Vec<LinkEntry>,
    tablespaces: Vec<TablespaceEntry>,
    owners: Owners,
    warnings: Vec<WalkWarning>,
    skipped: Skipped,
    bytes: u64,
}

#[derive(Debug)]
struct Packed {
    name_at: u64,
    size: u64,
    modified: Timestamp,
    stamp: Option<FileStamp>,
    directory: u32,
    owner: u32,
    mode: u16,
    name_length: u16,
}

/// Lists the files of the cluster in `data_dir`.
///
/// Blocking: reads directories for as long as it takes, a few seconds for a million files.
///
/// # Errors
/// Where the data directory is none, something in it cannot be read, or `cancel` was called.
pub fn walk(
    data_dir: &Path,
    options: &WalkOptions,
    cancel: &CancellationToken,
) -> Result<FileList, WalkError> {
    visit::Visitor::new(data_dir, options, cancel)?.run()
}

impl FileList {
    /// All directories, also those that are to be empty. The first is the data directory itself.
    pub fn directories(&self) -> &[DirectoryEntry] {
        &self.directories
    }

    /// All files.
    pub fn files(&self) -> impl ExactSizeIterator<Item = FileEntry<'_>> {
        (0..self.files.len()).map(|index| self.file(index))
    }

    /// The file with this number, counted in the order of [`FileList::files`].
    ///
    /// # Panics
    /// Where there are not that many.
    pub fn file(&self, index: usize) -> FileEntry<'_> {
        FileEntry {
            list: self,
            packed: &self.files[index],
            index,
        }
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The sum of all sizes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Links that are kept as links. Those of tablespaces and of followed directories are not among them.
    pub fn links(&self) -> &[LinkEntry] {
        &self.links
    }

    /// Tablespaces, by their OIDs.
    pub fn tablespaces(&self) -> &[TablespaceEntry] {
        &self.tablespaces
    }

    /// Who owns a directory.
    pub fn directory_owner(&self, directory: &DirectoryEntry) -> &Owner {
        self.owners.get(directory.owner)
    }

    /// Who owns a link.
    pub fn link_owner(&self, link: &LinkEntry) -> &Owner {
        self.owners.get(link.owner)
    }

    /// What a person should know.
    pub fn warnings(&self) -> &[WalkWarning] {
        &self.warnings
    }

    /// How much was left out.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }
}

impl<'a> FileEntry<'a> {
    /// Its number in the list.
    pub fn index(self) -> usize {
        self.index
    }

    /// Its name without the directory.
    pub fn name(self) -> &'a [u8] {
        let at = self.packed.name_at as usize;
        &self.list.names[at..at + usize::from(self.packed.name_length)]
    }

    /// The directory that holds it.
    pub fn directory(self) -> &'a DirectoryEntry {
        &self.list.directories[self.packed.directory as usize]
    }

    /// Its path in the data directory.
    pub fn path(self) -> Vec<u8> {
        joined(&self.directory().path, self.name())
    }

    /// The path under which it is opened, where the data directory is `data_dir`.
    pub fn path_in(self, data_dir: &Path) -> PathBuf {
        data_dir.join(OsStr::from_bytes(&self.path()))
    }

    /// What it is.
    pub fn kind(self) -> FileKind {
        classify::file(&self.path()).kind().unwrap_or(FileKind::Other)
    }

    /// Bytes when it was listed. What is behind them was written later and is in the WAL.
    pub fn size(self) -> u64 {
        self.packed.size
    }

    /// Permission bits.
    pub fn mode(self) -> u16 {
        self.packed.mode
    }

    /// When it was last written, as the file system says.
    pub fn modified(self) -> Timestamp {
        self.packed.modified
    }

    /// What the file system says of it; `None` where it may be written to without a difference in that: because the
    /// last change is too young, or of a clock that is ahead.
    pub fn stamp(self) -> Option<FileStamp> {
        self.packed.stamp
    }

    /// Who owns it.
    pub fn owner(self) -> &'a Owner {
        self.list.owners.get(self.packed.owner)
    }

    /// Where it led, if its path is a symbolic link; all else is said of the file that it led to.
    pub fn link(self) -> Option<&'a Path> {
        self.list.file_links.get(&self.index).map(PathBuf::as_path)
    }
}

impl fmt::Display for WalkWarning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Special { path } => write!(
                formatter,
                "{} is not copied: it is neither a file nor a directory nor a link",
                path.display()
            ),
            Self::Dangling { path, target } => write!(
                formatter,
                "the link {} leads to {}, which does not exist: only the link is copied",
                path.display(),
                target.display()
            ),
            Self::EmptyTablespace { oid } => write!(
                formatter,
                "tablespace {oid} holds no directory of this server's version"
            ),
        }
    }
}

impl Skipped {
    fn count(&mut self, reason: SkipReason) {
        match reason {
            SkipReason::Unlogged => self.unlogged += 1,
            SkipReason::TemporaryRelation => self.temporary_relations += 1,
            SkipReason::Wal | SkipReason::Volatile => {}
            _ => self.others += 1,
        }
    }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !directory.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
mod tests;
