//! The head of a stanza: which backups there are, and what is being deleted.
//!
//! Heads are numbered objects. A new one is created only if its number is free, so that whoever changes the
//! head has seen the one before: compare and swap. The methods that change a [`Head`] are the moves of that
//! protocol; they look at nothing but the head and their arguments.
//!
//! A backup and a collection exclude each other so:
//!
//! - A collection first removes labels ([`Head::remove`]). Then it looks which objects no manifest of the
//!   remaining backups names, and condemns them ([`Head::condemn`]), naming the backups whose manifests it
//!   read: a backup published in between refuses it. Only then does it delete them, and afterwards says so
//!   ([`Head::mark_deleted`]).
//! - A backup notes the epoch of the head before it looks at anything in the repository that it will build
//!   on, its parent's manifest and the packs of interrupted runs. When it is published ([`Head::publish`])
//!   it must have read every condemned list that was not completely deleted by that epoch, and found nothing
//!   in them that it uses: see [`Head::lists_to_check`].
//!
//! Each of these steps raises the epoch, so that the order of "deleted" and "looked" is known. Condemned
//! lists are kept for a time after their deletion; a backup from before the oldest one kept is refused.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Method;
use super::condemned::CondemnedId;
use super::ids::{Digest, Label, Nonce};
use super::manifest::{End, Header, WalRange};
use crate::lsn::Lsn;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;
use crate::version::ServerVersion;
use crate::wal::SegmentName;

mod error;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod transitions;

pub use error::{HeadError, PublishError};

/// The version of the format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// How long a condemned list is remembered after its objects were deleted: a backup that began before that
/// is refused when it comes to be published.
pub const REMEMBERED: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How many deleted condemned lists are remembered at most.
pub const MOST_REMEMBERED: usize = 1000;

/// The head of a stanza. See [the module](self).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The version of the format: [`FORMAT`].
    #[serde(rename = "head")]
    pub format: u32,
    /// Its number. The greatest is the head.
    pub seq: u64,
    /// Raised by every change after which a backup that is being taken must look again.
    pub epoch: u64,
    /// What its writer drew, to know whether a head is its own.
    pub nonce: Nonce,
    /// When it was written.
    pub written_at: Timestamp,
    /// The host that wrote it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The backups, the oldest first.
    pub backups: Vec<BackupEntry>,
    /// What was condemned, in the order in which it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub condemned: Vec<Condemned>,
    /// The epoch before which condemned lists are forgotten: no backup that noted an earlier one can be
    /// published.
    #[serde(default)]
    pub forgotten: u64,
    /// For each timeline, the first segment of which the archive still promises anything. What is below it
    /// may be gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub wal_floor: BTreeMap<TimelineId, SegmentName>,
    /// For each timeline, the first segment from which on the WAL is kept without a gap. Below it, WAL is kept
    /// only for the consistency of single backups, and what is missing between was removed on purpose.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub wal_window: BTreeMap<TimelineId, SegmentName>,
    /// WAL that was never archived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<WalGap>,
    /// What a newer pgmahout wrote and this one must not lose.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A backup that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEntry {
    /// Its name.
    pub label: Label,
    /// The digest of the manifest's object, as it is stored.
    pub manifest: Digest,
    /// How the files were read.
    pub method: Method,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The server's version.
    pub server_version: ServerVersion,
    /// The timeline that it was taken on.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// The WAL without which it is worth nothing.
    pub wal: WalRange,
    /// When it started.
    pub start_time: Timestamp,
    /// When the server left backup mode.
    pub stop_time: Timestamp,
    /// The backup with which its files were compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Label>,
    /// How many files it has.
    pub files: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that were read from the server's files.
    pub read: u64,
    /// Raw bytes that no older backup had.
    pub new: u64,
    /// Bytes by which the repository grew.
    pub stored: u64,
    /// Pages that were found damaged when it was taken.
    #[serde(default)]
    pub findings: u64,
    /// Whether it is kept whatever the rules of retention say.
    #[serde(default)]
    pub pinned: bool,
    /// What the user noted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// When all of it was last read back, and how that went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Examination>,
    /// When it was last restored to see whether it can be, and how that went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drilled: Option<Examination>,
    /// What a newer pgmahout wrote and this one must not lose.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How an examination of a backup went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// When it ended.
    pub at: Timestamp,
    /// Whether all was well.
    pub passed: bool,
    /// What was wrong, or how long a restore took: one line for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How long it took, in seconds.
    #[serde(default)]
    pub seconds: u64,
}

/// A list of objects that a collection deletes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// Names the object with the list.
    pub list: CondemnedId,
    /// The epoch that the condemnation began.
    pub epoch: u64,
    /// When it was condemned.
    pub at: Timestamp,
    /// The epoch that began when every object of it was gone; `None` while some may be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<u64>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
}

/// Segments that were never archived, from the first to the last, both included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalGap {
    /// Which.
    #[serde(flatten)]
    pub wal: WalRange,
    /// When they were given up.
    pub at: Timestamp,
    /// Why: one line for people.
    pub reason: String,
}

/// What a backup knew when it looked, and what it has looked at since, for [`Head::publish`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clearance {
    /// The epoch of the head that was read before anything else in the repository.
    pub epoch: u64,
    /// The condemned lists that were read and name nothing that the backup uses.
    pub checked: BTreeSet<CondemnedId>,
}

impl BackupEntry {
    /// The entry of the backup with that manifest, whose object has the digest `manifest`.
    pub fn new(header: &Header, end: &End, manifest: Digest) -> Self {
        Self {
            label: header.label,
            manifest,
            method: header.method,
            system_identifier: header.system_identifier,
            server_version: header.server_version,
            timeline: header.timeline,
            start_lsn: header.start_lsn,
            stop_lsn: header.stop_lsn,
            wal: header.wal,
            start_time: header.start_time,
            stop_time: header.stop_time,
            parent: header.parent,
            files: end.files,
            bytes: end.bytes,
            read: end.work.read,
            new: end.work.new,
            stored: end.work.stored,
            findings: end.findings,
            pinned: false,
            annotations: header.annotations.clone(),
            verified: None,
            drilled: None,
            other: Map::new(),
        }
    }
}

impl Head {
    /// The first head of a stanza, number 1.
    pub fn first(nonce: Nonce, now: Timestamp, host: &str) -> Self {
        Self {
            format: FORMAT,
            seq: 1,
            epoch: 1,
            nonce,
            written_at: now,
            host: host.to_owned(),
            backups: Vec::new(),
            condemned: Vec::new(),
            forgotten: 0,
            wal_floor: BTreeMap::new(),
            wal_window: BTreeMap::new(),
            gaps: Vec::new(),
            other: Map::new(),
        }
    }

    /// The content of the object.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and lists with string keys: nothing that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the content of the object.
    ///
    /// # Errors
    /// When it is no head, of a newer format, or contradicts itself.
    pub fn decode(content: &[u8]) -> Result<Self, HeadError> {
        #[derive(Deserialize)]
        struct Format {
            head: u32,
        }
        let Format { head: format } = serde_json::from_slice(content).map_err(HeadError::Json)?;
        if format != FORMAT {
            return Err(HeadError::Format { format });
        }
        let head: Self = serde_json::from_slice(content).map_err(HeadError::Json)?;
        head.check()?;
        Ok(head)
    }

    /// The backup of that name.
    pub fn backup(&self, label: Label) -> Option<&BackupEntry> {
        let position = self.position(label)?;
        self.backups.get(position)
    }

    /// The names of all backups, the oldest first.
    pub fn labels(&self) -> impl Iterator<Item = Label> {
        self.backups.iter().map(|backup| backup.label)
    }

    /// Whether the archive may have lost that segment to a collection.
    pub fn is_below_floor(&self, segment: SegmentName) -> bool {
        self.wal_floor
            .get(&segment.timeline())
            .is_some_and(|&floor| segment < floor)
    }

    fn position(&self, label: Label) -> Option<usize> {
        self.backups
            .binary_search_by_key(&label, |backup| backup.label)
            .ok()
    }

    fn check(&self) -> Result<(), HeadError> {
        let wrong = |problem| Err(HeadError::Inconsistent { problem });
        if self.seq == 0 {
            return wrong("its number is zero");
        }
        if !self.backups.is_sorted_by(|one, other| one.label < other.label) {
            return wrong("its backups are not in order");
        }
        if self.epoch < self.forgotten {
            return wrong("its epoch is in the past");
        }
        for list in &self.condemned {
            if list.epoch > self.epoch || list.deleted.is_some_and(|deleted| deleted > self.epoch) {
                return wrong("a condemned list is of the future");
            }
        }
        if self
            .wal_floor
            .iter()
            .any(|(&timeline, floor)| floor.timeline() != timeline)
        {
            return wrong("the first WAL segment of a timeline is of another one");
        }
        Ok(())
    }
}
