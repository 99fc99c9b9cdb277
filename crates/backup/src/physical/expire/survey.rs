//! What is in a stanza, as far as retention and collection care.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use jiff::Timestamp;
use pgmahout_store::repository::ObjectEntry;
use pgmahout_types::repository::manifest::WalRange;
use pgmahout_types::repository::{BackupEntry, Head, Label};
use pgmahout_types::{SegmentName, TimelineId, WalFileName};
use tokio_util::sync::CancellationToken;

use super::ExpireError;
use super::policy::Archive;
use crate::physical::stanza::lease::SeenLease;
use crate::physical::stanza::{LeaseGuard, LeaseKind, LeaseScope, PhysicalRepository, StanzaObject};
use crate::physical::wal::WalArchive;

/// What was seen of a stanza.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The head.
    pub head: Head,
    /// Everybody's leases, read after the head.
    pub leases: Vec<SeenLease>,
    /// The time by the storage's clock.
    pub now: SystemTime,
    /// The WAL.
    pub archive: Archive,
    /// Objects of the WAL archive that are no whole segments and belong to one: unfinished segments and backup
    /// histories.
    pub companions: Vec<WalFileName>,
    /// Entries of backups that are read under a lease and listed no more, with their manifests.
    pub(super) unlisted: Vec<BackupEntry>,
}

impl Survey {
    /// Looks at everything, under a lease of its own whose time is the storage's.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn of(
        repository: &PhysicalRepository,
        cancellation: &CancellationToken,
    ) -> Result<Self, ExpireError> {
        let guard = repository.lease(LeaseKind::Expire, LeaseScope::none()).await?;
        let survey = Self::under(repository, &guard, cancellation).await;
        if let Err(error) = guard.finish().await {
            tracing::debug!(%error, "the lease of the collection runs out by itself");
        }
        survey
    }

    /// The same under a lease that was taken before.
    pub(super) async fn under(
        repository: &PhysicalRepository,
        guard: &LeaseGuard,
        cancellation: &CancellationToken,
    ) -> Result<Self, ExpireError> {
        // The order counts: the head, then the leases.
        let head = repository.head().await?;
        let leases = repository.leases(Some(guard)).await?;
        guard.write().await?;
        let now = guard.written().await?;
        let (archive, companions) = archive(repository, cancellation).await?;
        Ok(Self {
            head,
            leases,
            now,
            archive,
            companions,
            unlisted: Vec::new(),
        })
    }

    /// The leases that count.
    pub fn live(&self) -> impl Iterator<Item = &SeenLease> {
        self.leases.iter().filter(|lease| lease.is_alive(self.now))
    }

    /// Whether somebody reads that backup.
    pub fn is_read(&self, label: Label) -> bool {
        self.live().any(|lease| lease.covers(label))
    }

    /// Where backups that are being made begin.
    pub fn running(&self) -> Vec<SegmentName> {
        self.live()
            .filter_map(|lease| lease.lease.as_ref()?.wal_from)
            .collect()
    }

    /// Before when an object that no manifest references may be collected: a day ago, or before the oldest
    /// running backup began.
    pub fn unused_before(&self) -> SystemTime {
        let day = std::time::Duration::from_hours(24);
        let day_ago = self.now.checked_sub(day).unwrap_or(SystemTime::UNIX_EPOCH);
        let begun = self.live().filter_map(|lease| match &lease.lease {
            // Nothing can be said: it protects everything.
            None => Some(SystemTime::UNIX_EPOCH),
            Some(lease) if lease.kind == LeaseKind::Backup => Some(
                lease
                    .objects_since
                    .map_or(SystemTime::UNIX_EPOCH, SystemTime::from),
            ),
            Some(lease) if lease.kind == LeaseKind::Copy => lease.objects_since.map(SystemTime::from),
            Some(_) => None,
        });
        begun.min().map_or(day_ago, |begun| begun.min(day_ago))
    }

    /// The entries of backups that are read and not among those that stay.
    pub(super) fn leased_entries(&self, kept: &BTreeSet<Label>) -> Vec<BackupEntry> {
        let all = self.head.backups.iter().chain(&self.unlisted);
        all.filter(|backup| !kept.contains(&backup.label) || self.is_named(backup.label))
            .filter(|backup| self.is_read(backup.label))
            .cloned()
            .collect()
    }

    /// Whether somebody reads exactly that backup, not just any.
    fn is_named(&self, label: Label) -> bool {
        self.live().any(|lease| {
            let scope = lease.lease.as_ref().map(|lease| &lease.scope);
            matches!(scope, Some(LeaseScope::Labels(labels)) if labels.contains(&label))
        })
    }
}

impl Archive {
    /// The archive when these segments are gone.
    pub fn without(&self, gone: &[WalRange]) -> Self {
        let mut after = self.clone();
        for (timeline, segments) in &mut after.segments {
            segments.retain(|number, _| {
                let segment = SegmentName::new(*timeline, *number, self.segment_size);
                segment.is_none_or(|segment| !is_in(segment, gone))
            });
        }
        after
    }

    /// How many of the archive's segments are in these ranges.
    pub fn count_in(&self, ranges: &[WalRange]) -> u64 {
        let all: usize = self.segments.values().map(BTreeMap::len).sum();
        let left: usize = self.without(ranges).segments.values().map(BTreeMap::len).sum();
        (all - left) as u64
    }
}

/// Whether a segment is in one of the ranges.
pub(super) fn is_in(segment: SegmentName, ranges: &[WalRange]) -> bool {
    ranges.iter().any(|range| {
        range.first.timeline() == segment.timeline() && range.first <= segment && segment <= range.last
    })
}

/// Lists the WAL archive, and reads the histories.
async fn archive(
    repository: &PhysicalRepository,
    cancellation: &CancellationToken,
) -> Result<(Archive, Vec<WalFileName>), ExpireError> {
    let names = repository.names();
    let listed = repository
        .repository()
        .list(&names.wal_prefix(), cancellation)
        .await?;
    let size = repository.segment_size();
    let mut archive = Archive {
        segment_size: size,
        ..Archive::default()
    };
    let mut companions = Vec::new();
    let mut histories: Vec<(TimelineId, Timestamp)> = Vec::new();
    for entry in &listed {
        let Some(StanzaObject::Wal(file)) = names.relative(&entry.name).and_then(StanzaObject::parse) else {
            continue;
        };
        let at = written(entry);
        match file {
            WalFileName::Segment(segment) => {
                if let Ok(number) = segment.number(size) {
                    archive
                        .segments
                        .entry(segment.timeline())
                        .or_default()
                        .insert(number, at);
                }
            }
            WalFileName::TimelineHistory(timeline) => histories.push((timeline, at)),
            other => companions.push(other),
        }
    }
    let wal = WalArchive::new(repository.clone());
    for (timeline, at) in histories {
        if let Some(history) = wal.history(timeline).await? {
            archive.histories.insert(timeline, (history, at));
        }
    }
    Ok((archive, companions))
}

fn written(entry: &ObjectEntry) -> Timestamp {
    Timestamp::try_from(entry.modified).unwrap_or(Timestamp::UNIX_EPOCH)
}
