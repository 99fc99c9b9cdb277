//! What a repository holds: sizes, what deduplication and compression save, growth, and the WAL.
//!
//! Everything comes from listings and from the head: no pack is read. What a stanza's backups would take if each
//! were stored in full comes from their entries.

use jiff::Timestamp;
use pgmahout_store::repository::Repository;
use pgmahout_types::repository::{BackupEntry, Label};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::stanza::{PhysicalRepository, RepositoryMemory, StanzaError, StanzaName, StanzaObject, stanzas};
use super::wal::{WalArchive, WalError, WalInventory};

/// Objects of one sort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// Their bytes, as stored.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What a stanza takes in a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StanzaSizes {
    /// Packs of file content.
    pub packs: Amount,
    /// Packs of page maps.
    pub maps: Amount,
    /// Manifests.
    pub manifests: Amount,
    /// The WAL archive.
    pub wal: Amount,
    /// Heads, leases, lists.
    pub other: Amount,
}

impl StanzaSizes {
    /// All together.
    pub fn total(&self) -> Amount {
        let all = [self.packs, self.maps, self.manifests, self.wal, self.other];
        all.iter().fold(Amount::default(), |sum, amount| Amount {
            objects: sum.objects + amount.objects,
            bytes: sum.bytes + amount.bytes,
        })
    }

    /// Sorts a listing; names are relative to the stanza.
    pub fn of<'a>(listed: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let mut sizes = Self::default();
        for (name, bytes) in listed {
            let amount = match StanzaObject::parse(name) {
                Some(StanzaObject::Pack(_)) => &mut sizes.packs,
                Some(StanzaObject::Map(_)) => &mut sizes.maps,
                Some(StanzaObject::Manifest(_)) => &mut sizes.manifests,
                Some(StanzaObject::Wal(_)) => &mut sizes.wal,
                _ => &mut sizes.other,
            };
            amount.add(bytes);
        }
        sizes
    }
}

/// By how much a stanza grew with one backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// The backup.
    pub label: Label,
    /// When it was finished.
    pub at: Timestamp,
    /// Bytes of the cluster's files.
    pub bytes: u64,
    /// Raw bytes that no older backup had.
    pub new: u64,
    /// Bytes that it added to the repository.
    pub stored: u64,
}

/// What backups save against storing each in full.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Savings {
    /// Bytes of the files of all backups together.
    pub logical: u64,
    /// Bytes of packs, maps and manifests.
    pub stored: u64,
    /// Raw bytes of all backups to raw bytes that were stored for them; 1 without any saving. `None` where nothing
    /// was stored.
    pub deduplication: Option<f64>,
    /// Raw bytes that were stored to the bytes that they take. `None` where nothing was stored.
    pub compression: Option<f64>,
}

impl Savings {
    /// Of these backups, whose objects take that many bytes.
    pub fn of(backups: &[BackupEntry], stored: u64) -> Self {
        let sum = |of: fn(&BackupEntry) -> u64| backups.iter().map(of).sum::<u64>();
        let (logical, new, written) = (
            sum(|backup| backup.bytes),
            sum(|backup| backup.new),
            sum(|backup| backup.stored),
        );
        let ratio = |large: u64, small: u64| (small > 0).then(|| large as f64 / small as f64);
        // What older backups had, and were removed since, is shared by those that stay: by what one written byte
        // holds, raw.
        let compression = ratio(new, written);
        let raw = compression.map(|compression| compression * stored as f64);
        Self {
            logical,
            stored,
            deduplication: raw
                .filter(|raw| *raw > 0.0)
                .map(|raw| (logical as f64 / raw).max(1.0)),
            compression,
        }
    }
}

/// All about one stanza.
#[derive(Debug, Clone, Serialize)]
pub struct StanzaReport {
    /// Its name.
    pub stanza: String,
    /// How many backups it has.
    pub backups: u64,
    /// What it takes.
    pub sizes: StanzaSizes,
    /// What deduplication and compression save.
    pub savings: Savings,
    /// What each backup added, the oldest first.
    pub growth: Vec<Growth>,
    /// The WAL, by timeline, with ranges and gaps.
    pub wal: Vec<super::wal::TimelineWal>,
    /// Whether there is WAL but no backup that it could be replayed on: nothing can be restored.
    pub wal_without_backup: bool,
}

/// All about a repository.
#[derive(Debug, Clone, Serialize)]
pub struct RepositoryReport {
    /// Name and place.
    pub repository: String,
    /// Its identity.
    pub id: String,
    /// Whether objects are sealed.
    pub encrypted: bool,
    /// Its stanzas, by name.
    pub stanzas: Vec<StanzaReport>,
}

/// Looks at all stanzas of a repository, or at one.
///
/// # Errors
///
/// When the repository is not set up, or cannot be read.
pub async fn report(
    repository: &Repository,
    only: Option<&StanzaName>,
    memory: &RepositoryMemory,
    cancellation: &CancellationToken,
) -> Result<RepositoryReport, InfoError> {
    let names = match only {
        Some(stanza) => vec![stanza.clone()],
        None => stanzas(repository)
            .await?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect(),
    };
    let mut report = RepositoryReport {
        repository: repository.description().to_owned(),
        id: String::new(),
        encrypted: repository.is_encrypted(),
        stanzas: Vec::new(),
    };
    for name in names {
        let stanza = PhysicalRepository::open(repository.clone(), name, memory).await?;
        report.id = stanza.id().to_string();
        report.stanzas.push(stanza_report(&stanza, cancellation).await?);
    }
    Ok(report)
}

/// Looks at one stanza.
///
/// # Errors
///
/// When it cannot be read.
pub async fn stanza_report(
    stanza: &PhysicalRepository,
    cancellation: &CancellationToken,
) -> Result<StanzaReport, InfoError> {
    let head = stanza.head().await?;
    let names = stanza.names();
    let listed = stanza
        .repository()
        .list(names.prefix(), cancellation)
        .await
        .map_err(StanzaError::from)?;
    let relative = listed
        .iter()
        .filter_map(|entry| Some((names.relative(&entry.name)?, entry.size)));
    let sizes = StanzaSizes::of(relative);
    let stored = sizes.packs.bytes + sizes.maps.bytes + sizes.manifests.bytes;
    let wal: WalInventory = WalArchive::new(stanza.clone()).list(cancellation).await?;
    let growth = head
        .backups
        .iter()
        .map(|backup| Growth {
            label: backup.label,
            at: backup.stop_time,
            bytes: backup.bytes,
            new: backup.new,
            stored: backup.stored,
        })
        .collect();
    Ok(StanzaReport {
        stanza: stanza.stanza().to_string(),
        backups: head.backups.len() as u64,
        savings: Savings::of(&head.backups, stored),
        wal_without_backup: head.backups.is_empty() && wal.segment_count() > 0,
        sizes,
        growth,
        wal: wal.timelines,
    })
}

/// Why a repository cannot be described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InfoError {
    /// The repository failed.
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    /// The WAL archive failed.
    #[error("cannot look at the WAL archive")]
    Wal(#[from] WalError),
}

impl pgmahout_types::diagnostic::Diagnose for InfoError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Stanza(source) => source.hint(),
            Self::Wal(source) => source.hint(),
        }
    }

    fn outcome(&self) -> pgmahout_types::diagnostic::Outcome {
        match self {
            Self::Stanza(source) => source.outcome(),
            Self::Wal(source) => source.outcome(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::stanza::support::{self, FakeBackup};

    #[tokio::test]
    async fn every_object_is_counted_once_and_wal_without_a_backup_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let repository = support::init(directory.path(), "main").await.unwrap().repository;
        let token = CancellationToken::new();
        FakeBackup::new(1).put_objects(&repository).await;
        let report = stanza_report(&repository, &token).await.unwrap();
        assert!(report.wal_without_backup);
        FakeBackup::new(2).publish(&repository).await.unwrap();
        let report = stanza_report(&repository, &token).await.unwrap();
        assert!(!report.wal_without_backup);
        assert_eq!((report.backups, report.growth.len()), (1, 1));
        assert_eq!((report.sizes.packs.objects, report.sizes.packs.bytes), (2, 200));
        assert_eq!(report.sizes.wal.objects, 2);
        let listed = repository.repository().list("stanza/main", &token).await.unwrap();
        let bytes: u64 = listed.iter().map(|entry| entry.size).sum();
        assert_eq!(report.sizes.total().bytes, bytes);
        assert_eq!(report.wal[0].ranges.len(), 1);
    }

    #[test]
    fn savings_are_told_apart() {
        let backup = |bytes, new, stored| BackupEntry {
            bytes,
            new,
            stored,
            ..support::entry()
        };
        let savings = Savings::of(&[backup(1000, 1000, 250), backup(1000, 0, 0)], 250);
        assert_eq!(savings.compression, Some(4.0));
        assert_eq!(savings.deduplication, Some(2.0));
        assert_eq!(Savings::of(&[], 0).deduplication, None);
    }
}
