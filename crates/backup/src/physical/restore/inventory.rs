//! What the repository has of WAL, for the planner.

use jiff::{SignedDuration, Timestamp};
use pgmahout_store::framed;
use pgmahout_types::repository::{BackupEntry, WalObjectHeader};
use pgmahout_types::{SegmentSize, TimelineHistory, TimelineId, WalFileName};
use tokio_util::sync::CancellationToken;

use super::error::RestoreError;
use super::plan::{Archive, Candidate};
use crate::physical::stanza::{PhysicalRepository, StanzaObject, kind};

/// The largest history file that is read.
const LARGEST_HISTORY: u64 = 1 << 20;

/// Lists the archive of the stanza and reads its histories.
///
/// # Errors
/// What the storage says; damaged histories.
pub(crate) async fn archive(
    repository: &PhysicalRepository,
    size: SegmentSize,
    cancellation: &CancellationToken,
) -> Result<Archive, RestoreError> {
    let names = repository.names();
    let listed = repository
        .repository()
        .list(&names.wal_prefix(), cancellation)
        .await?;
    let mut archive = Archive::new(size);
    let mut histories = Vec::new();
    for entry in &listed {
        let Some(relative) = names.relative(&entry.name) else {
            continue;
        };
        match StanzaObject::parse(relative) {
            Some(StanzaObject::Wal(WalFileName::Segment(segment))) => {
                archive.add(segment, archived_at(entry.modified));
            }
            Some(StanzaObject::Wal(WalFileName::TimelineHistory(timeline))) => histories.push(timeline),
            _ => {}
        }
    }
    for timeline in histories {
        archive.add_history(history(repository, timeline).await?);
    }
    Ok(archive)
}

/// Storages may round to whole seconds: a bound must not be too early.
fn archived_at(modified: std::time::SystemTime) -> Timestamp {
    let at = Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH);
    if at.subsec_nanosecond() == 0 {
        at.checked_add(SignedDuration::from_secs(1)).unwrap_or(at)
    } else {
        at
    }
}

async fn history(
    repository: &PhysicalRepository,
    timeline: TimelineId,
) -> Result<TimelineHistory, RestoreError> {
    let object = repository.wal_name(WalFileName::TimelineHistory(timeline));
    let bytes = repository
        .repository()
        .get_bytes(&object, LARGEST_HISTORY)
        .await?;
    let content = framed::open_bytes(&repository.cipher(), kind::WAL, &object, &bytes).map_err(|source| {
        RestoreError::Framed {
            object: object.clone(),
            source,
        }
    })?;
    let unusable = |why: String| RestoreError::Refused {
        what: format!("{object} of the repository cannot be used: {why}"),
        hint: "see what the archive has: pgmahout wal verify".to_owned(),
    };
    let end = content
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| unusable("it has no header".to_owned()))?;
    let (line, content) = content.split_at(end + 1);
    WalObjectHeader::decode(line).map_err(|error| unusable(error.to_string()))?;
    TimelineHistory::parse(timeline, content).map_err(|error| unusable(error.to_string()))
}

/// A backup for the planner.
pub(crate) fn candidate(entry: &BackupEntry) -> Candidate {
    Candidate {
        label: entry.label,
        timeline: entry.timeline,
        start: entry.start_lsn,
        stop: entry.stop_lsn,
        started: entry.start_time,
        stopped: entry.stop_time,
    }
}
