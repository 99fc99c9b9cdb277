//! The dumps, the physical backups and the WAL archive that the configuration names, as the health checks see
//! them.

use std::path::Path;

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgmahout_backup::physical::schedule::{UNITS, unit_names};
use pgmahout_backup::physical::stanza::{PhysicalRepository, StanzaError};
use pgmahout_backup::physical::wal::{WalArchive, WalInventory};
use pgmahout_config::Settings;
use pgmahout_config::settings::{self, Storage};
use pgmahout_doctor::health::sources::{BackupSchedule, BackupSummary, Backups};
use pgmahout_types::SegmentName;
use pgmahout_types::repository::{BackupEntry, Head};
use tokio_util::sync::CancellationToken;

use super::dumps::{Dumps, is_this_host};
use crate::commands::dump::place;
use crate::commands::physical::{RepositoryArgs, memory};

/// Everything that the configuration names.
pub(super) struct Everything {
    settings: Settings,
    dumps: Dumps,
}

impl Everything {
    /// None where the configuration names no place for backups.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        Dumps::of(settings).map(|dumps| Self {
            settings: settings.clone(),
            dumps,
        })
    }

    /// The repositories that are set up for physical backups of this stanza. One that holds dumps alone is none.
    async fn physical(&self) -> Result<Vec<(&settings::Repository, PhysicalRepository)>, String> {
        let chain = |error: &dyn std::error::Error| pgmahout_doctor::health::failure::chain(error);
        let args = RepositoryArgs::default();
        let mut opened = Vec::new();
        for configured in &self.settings.repositories {
            let named = |why: String| format!("repository {}: {why}", configured.name);
            // A name from Patroni's file that cannot be a stanza's: nothing was ever set up under it.
            let Ok(stanza) = args.stanza(&self.settings) else {
                return Ok(Vec::new());
            };
            let store =
                place::configured_repository(configured).map_err(|failure| named(failure.summary()))?;
            let store = pgmahout_store::repository::Repository::open(store)
                .await
                .map_err(|error| named(chain(&error)))?;
            match PhysicalRepository::open(store, stanza, &memory()).await {
                Ok(repository) => opened.push((configured, repository)),
                Err(StanzaError::NotInitialised { .. } | StanzaError::NoSuchStanza { .. }) => {}
                Err(error) => return Err(named(chain(&error))),
            }
        }
        Ok(opened)
    }
}

#[async_trait]
impl Backups for Everything {
    async fn list(&self, target: &str) -> Result<Vec<BackupSummary>, String> {
        let mut all = self.dumps.list(target).await?;
        for (configured, repository) in self.physical().await? {
            let head = repository
                .head()
                .await
                .map_err(|error| pgmahout_doctor::health::failure::chain(&error))?;
            let location = repository.description();
            let (storage, off_site) = match &configured.storage {
                Storage::Local { .. } => ("directory", configured.off_site),
                Storage::S3 { endpoint, .. } => (
                    "s3",
                    configured.off_site && !endpoint.as_deref().is_some_and(is_this_host),
                ),
            };
            all.extend(head.backups.iter().map(|backup| {
                BackupSummary {
                    id: backup.label.to_string(),
                    kind: "physical".to_owned(),
                    location: location.clone(),
                    finished: backup.stop_time.as_duration().as_secs_f64(),
                    good: is_good(backup),
                    storage: storage.to_owned(),
                    off_site,
                    restored: backup
                        .drilled
                        .as_ref()
                        .filter(|drilled| drilled.passed)
                        .map(|drilled| drilled.at.as_duration().as_secs_f64()),
                }
            }));
        }
        Ok(all)
    }

    fn now(&self) -> f64 {
        Timestamp::now().as_duration().as_secs_f64()
    }

    fn schedule(&self) -> Option<BackupSchedule> {
        let schedule = self.settings.backup.schedule.as_ref()?;
        let overdue = schedule.last_overdue(Timestamp::now(), &TimeZone::system());
        let [_, timer] = RepositoryArgs::default()
            .stanza(&self.settings)
            .map(|stanza| unit_names(stanza.as_str()))
            .unwrap_or_default();
        Some(BackupSchedule {
            text: schedule.to_string(),
            overdue: overdue.map(|overdue| overdue.as_duration().as_secs_f64()),
            has_timer: !timer.is_empty() && Path::new(UNITS).join(timer).exists(),
        })
    }

    async fn first_missing_segment(&self, _target: &str) -> Result<Option<Option<String>>, String> {
        let chain = |error: &dyn std::error::Error| pgmahout_doctor::health::failure::chain(error);
        let mut has_archive = false;
        for (configured, repository) in self.physical().await? {
            let named = |why: String| format!("repository {}: {why}", configured.name);
            let head = repository.head().await.map_err(|error| named(chain(&error)))?;
            let archive = WalArchive::new(repository);
            let inventory = archive
                .list(&CancellationToken::new())
                .await
                .map_err(|error| named(chain(&error)))?;
            if inventory.timelines.is_empty() {
                continue;
            }
            has_archive = true;
            if let Some(missing) = first_missing(&head, &inventory) {
                return Ok(Some(Some(format!("{missing} (repository {})", configured.name))));
            }
        }
        Ok(has_archive.then_some(None))
    }
}

/// Whether nothing speaks against a backup: it was read back or restored without a fault, or not yet.
fn is_good(backup: &BackupEntry) -> bool {
    [&backup.verified, &backup.drilled]
        .into_iter()
        .flatten()
        .all(|examination| examination.passed)
}

/// The first segment from the newest backup on that the archive lacks though it has later ones, or that the backup
/// itself needs.
fn first_missing(head: &Head, inventory: &WalInventory) -> Option<SegmentName> {
    let newest = head.backups.iter().max_by_key(|backup| backup.stop_time)?;
    let size = inventory.segment_size;
    let mut segment = newest.wal.first;
    // What the backup needs, one by one: it may cross from one timeline to the next.
    loop {
        if !inventory.contains(segment) {
            return Some(segment);
        }
        if segment >= newest.wal.last {
            break;
        }
        segment = segment.next(size).ok()??;
    }
    let wal = inventory.timeline(newest.timeline)?;
    let end = inventory.unbroken_until(newest.wal.last)?;
    let is_gap = wal.ranges.iter().any(|range| range.first > end);
    let next = if is_gap { end.next(size).ok()? } else { None };
    // A gap that the archiving gave up on purpose ends where the last archived segment was, too.
    let given_up = head
        .gaps
        .iter()
        .map(|gap| gap.wal.first)
        .filter(|first| first.timeline() == newest.timeline && *first > newest.wal.last)
        .min();
    next.into_iter().chain(given_up).min()
}

#[cfg(test)]
mod tests {
    use pgmahout_backup::physical::wal::inventory::ListedFile;
    use pgmahout_types::repository::Nonce;
    use pgmahout_types::repository::head::WalGap;
    use pgmahout_types::repository::manifest::WalRange;
    use pgmahout_types::{SegmentSize, TimelineId, WalFileName};

    use super::*;

    fn segment(number: u64) -> SegmentName {
        SegmentName::new(TimelineId::FIRST, number, SegmentSize::DEFAULT).expect("in range")
    }

    fn inventory(numbers: &[u64]) -> WalInventory {
        let files: Vec<ListedFile> = numbers
            .iter()
            .map(|number| ListedFile {
                name: WalFileName::Segment(segment(*number)),
                stored: 1,
            })
            .collect();
        WalInventory::new(
            SegmentSize::DEFAULT,
            &files,
            &std::collections::BTreeMap::new(),
            None,
        )
    }

    /// The head of a stanza with one backup, which needs segments 5 and 6.
    fn head() -> Head {
        let mut head = Head::first(Nonce::from_bytes([0; 16]), Timestamp::UNIX_EPOCH, "");
        let backup = serde_json::json!({
            "label": "20261121T104500Z-3f9a", "manifest": "00".repeat(32), "method": "local",
            "system_identifier": "1", "server_version": 150_018, "timeline": 1,
            "start_lsn": "0/5000028", "stop_lsn": "0/6000100",
            "wal": {"first": segment(5), "last": segment(6)},
            "start_time": "2026-11-21T10:45:00Z", "stop_time": "2026-11-21T10:46:00Z",
            "files": 1, "bytes": 1, "read": 1, "new": 1, "stored": 1,
        });
        head.backups = vec![serde_json::from_value(backup).expect("an entry")];
        head
    }

    #[test]
    fn what_is_missing_since_the_newest_backup_is_found_and_older_gaps_are_not() {
        let missing = |numbers: &[u64]| first_missing(&head(), &inventory(numbers));
        assert_eq!(missing(&[5, 6, 7, 8]), None);
        assert_eq!(missing(&[1, 5, 6, 7, 8]), None, "before the backup");
        assert_eq!(missing(&[5, 6, 8]), Some(segment(7)));
        assert_eq!(missing(&[5, 7, 8]), Some(segment(6)), "the backup's own");
    }

    /// Where archiving gave segments up, the listing shows nothing: it ends before them.
    #[test]
    fn segments_that_archiving_gave_up_are_missing_though_nothing_follows_them() {
        let mut head = head();
        let gap = |number| WalGap {
            wal: WalRange {
                first: segment(number),
                last: segment(number),
            },
            at: Timestamp::UNIX_EPOCH,
            reason: "wal.max_queue".to_owned(),
        };
        head.record_gap(gap(4));
        assert_eq!(first_missing(&head, &inventory(&[5, 6])), None);
        head.record_gap(gap(7));
        assert_eq!(first_missing(&head, &inventory(&[5, 6])), Some(segment(7)));
    }
}
