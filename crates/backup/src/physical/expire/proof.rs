//! That what stays still restores.

use jiff::Timestamp;
use pgmahout_types::repository::manifest::WalRange;
use pgmahout_types::repository::{BackupEntry, Label};
use pgmahout_types::{SegmentName, TimelineId};
use serde::Serialize;

use super::policy::Archive;

/// That a backup can be restored and made consistent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupProof {
    /// The backup.
    pub label: Label,
    /// The WAL without which it is worth nothing.
    pub wal: WalRange,
    /// The first segment of it that is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<SegmentName>,
}

impl BackupProof {
    pub(super) fn new(backup: &BackupEntry, archive: &Archive) -> Self {
        Self {
            label: backup.label,
            wal: backup.wal,
            missing: archive.first_missing(backup.wal),
        }
    }

    /// Whether all of its WAL is there.
    pub fn restores(&self) -> bool {
        self.missing.is_none()
    }
}

/// How far a timeline can be restored from the base of its window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WindowProof {
    /// The timeline.
    pub timeline: TimelineId,
    /// The backup that every restore can begin with.
    pub base: Label,
    /// From when on.
    pub from: Timestamp,
    /// The last segment up to which the WAL is unbroken; `None` where already the base's own is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<SegmentName>,
    /// When that segment was archived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_time: Option<Timestamp>,
    /// The first segment that is missing, where later ones are there: the window is broken there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<SegmentName>,
}

impl WindowProof {
    pub(super) fn new(base: &BackupEntry, timeline: TimelineId, archive: &Archive) -> Self {
        let size = archive.segment_size;
        let history = archive.history(timeline);
        let mut proof = Self {
            timeline,
            base: base.label,
            from: base.stop_time,
            until: None,
            until_time: None,
            gap: None,
        };
        let Ok(first) = base.wal.first.number(size) else {
            return proof;
        };
        let newest = archive
            .segments
            .get(&timeline)
            .and_then(|segments| segments.last_key_value())
            .map_or(0, |(last, _)| *last);
        for number in first..=newest.max(first) {
            // A segment is taken from the newest timeline that has a part of it.
            let last_byte =
                pgmahout_types::Lsn::new(number.saturating_add(1).saturating_mul(size.bytes()) - 1);
            let owner = history.timeline_at(last_byte).max(base.timeline);
            let segment = SegmentName::new(owner, number, size);
            let archived = archive
                .segments
                .get(&owner)
                .and_then(|segments| segments.get(&number));
            let Some(at) = archived else {
                proof.gap = segment.filter(|_| number < newest);
                break;
            };
            proof.until = segment;
            proof.until_time = Some(*at);
        }
        proof
    }
}
