//! The manifest: all that one backup is.
//!
//! Lines of JSON. The first is the [`Header`], with the version of the format under `manifest`. Then come,
//! in any order, directories (`d`), files (`f`), links (`l`) and findings (`finding`); then the packs (`p`),
//! in the order of their numbers; and last the [`End`] (`end`), with the BLAKE3 digest of everything before
//! it. Without that line a manifest is not complete.
//!
//! [`ManifestWriter`] and [`ManifestReader`] hold one line at a time, and a reader takes no line longer
//! than [`LONGEST_LINE`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Method;
use super::bytes_text::ExactBytes;
use super::ids::{Digest, FileStamp, Label, PackId, Salt};
use super::path::LinkTarget;
use crate::control::DataChecksums;
use crate::lsn::Lsn;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;
use crate::version::ServerVersion;
use crate::wal::{SegmentName, SegmentSize};

mod entry;
mod error;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use entry::{
    Area, Content, Directory, Entry, File, FileKind, Finding, Link, MapContent, MapRef, Problem,
};
pub use error::ManifestError;
pub use read::{Manifest, ManifestReader};
pub use write::ManifestWriter;

/// The version of the format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// The most bytes that a line may have: 4 MiB.
pub const LONGEST_LINE: usize = 4 << 20;

/// What a backup says about itself and the server it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format: [`FORMAT`].
    #[serde(rename = "manifest")]
    pub format: u32,
    /// The backup's name.
    pub label: Label,
    /// How the files were read.
    pub method: Method,
    /// The name of the cluster in the repository.
    pub stanza: String,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The server's version.
    pub server_version: ServerVersion,
    /// The version of the system catalogs.
    pub catalog_version: u32,
    /// The version of pg_control's format.
    pub control_version: u32,
    /// Bytes in a page of a relation.
    pub page_size: u32,
    /// Pages in a file of a large relation.
    pub relation_segment_blocks: u32,
    /// Bytes in a WAL segment.
    pub wal_segment_size: SegmentSize,
    /// Whether pages carry checksums.
    pub data_checksums: DataChecksums,
    /// When the backup started.
    pub start_time: Timestamp,
    /// When the server left backup mode.
    pub stop_time: Timestamp,
    /// The timeline that the backup was taken on from start to stop.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where the backup is consistent.
    pub stop_lsn: Lsn,
    /// The WAL without which the backup is worth nothing.
    pub wal: WalRange,
    /// The content of the timeline's history file; the first timeline has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline_history: Option<ExactBytes>,
    /// The backup with which the files were compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Label>,
    /// The exact content of `backup_label`, as the server gave it at the stop.
    pub backup_label: ExactBytes,
    /// The exact content of `tablespace_map`, as the server gave it at the stop, where it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace_map: Option<ExactBytes>,
    /// The tablespaces beside the two that every cluster has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tablespaces: Vec<Tablespace>,
    /// Files and directories outside the data directory that were taken along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<LinkTarget>,
    /// Owners of files: entries name them by their place in this list.
    pub owners: Vec<Owner>,
    /// What the user noted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The pgmahout that wrote it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub written_by: String,
    /// The host that it ran on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The machine whose file systems the stamps of files are of; see [`File::stamp`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<FileStamp>,
}

/// WAL segments from the first to the last, both included, of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalRange {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its object identifier, which is its name in `pg_tblspc`.
    pub oid: u32,
    /// Its name, where it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it was.
    pub path: LinkTarget,
    /// Whether it is a directory in `pg_tblspc` instead of a link (`allow_in_place_tablespaces`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
}

/// A user and a group that own files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The user's name, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The group's name, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// A pack that a backup uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackEntry {
    /// Its name.
    #[serde(rename = "p")]
    pub id: PackId,
    /// What its frames hold.
    pub kind: PackKind,
    /// The number of the repository key that it is sealed with; zero too where it is not sealed.
    pub key: u32,
    /// The salt in its header.
    pub salt: Salt,
    /// Bytes of the object.
    pub size: u64,
    /// Raw bytes in it that this backup uses.
    pub live: u64,
}

/// What the frames of a pack hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackKind {
    /// Blocks of files.
    Data,
    /// Page maps, one in each frame.
    Map,
}

/// What a backup did, which the lines before the last do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Bytes read from the server's files.
    pub read: u64,
    /// Raw bytes that were stored because no older backup had them.
    pub new: u64,
    /// Bytes by which the repository grew.
    pub stored: u64,
    /// Bytes taken over from an interrupted run.
    #[serde(default)]
    pub resumed: u64,
}

/// The last line, and the packs before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The digest of everything before it.
    pub digest: Digest,
    /// How many files there are.
    pub files: u64,
    /// How many directories.
    pub directories: u64,
    /// How many links.
    pub links: u64,
    /// How many findings.
    pub findings: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// How many packs there are, to know that none is missing.
    pub pack_count: u64,
    /// What the backup did.
    #[serde(flatten)]
    pub work: Work,
    /// The packs, by number. Each is a line of its own.
    #[serde(skip)]
    pub packs: Vec<PackEntry>,
}

impl End {
    /// The pack of that number.
    pub fn pack(&self, number: u32) -> Option<&PackEntry> {
        self.packs.get(usize::try_from(number).ok()?)
    }
}
