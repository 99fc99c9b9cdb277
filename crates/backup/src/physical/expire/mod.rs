//! Removing backups that the retention policy no longer keeps, and collecting what nobody needs any more.
//!
//! [`propose`] looks at a repository and makes a [`Plan`], which is a value: it names what goes, and proves for
//! every backup and every timeline of the window that stays that it still restores. [`carry_out`] removes the
//! backups that the plan names from the head, and then collects: objects that no backup references, and WAL that
//! no kept backup and no point of the window needs. See [`super::stanza::protocol`] for why a backup that is
//! being made at the same time is not hurt.
//!
//! What is left alone: objects younger than a day, or than a running backup, which a backup may be about to
//! reference; whatever a live lease names; objects that the storage refuses to delete (an object lock), which are
//! tried again by the next collection. Where no backup is left, nothing is collected.

mod collect;
pub mod policy;
mod proof;
#[cfg(test)]
mod random;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::repository::Label;
use pgmahout_types::repository::manifest::WalRange;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use collect::{Collected, Grace, Leftover, Reader, carry_out, carry_out_with};
pub use policy::{Decision, Policy, Reason, Retained};
pub use proof::{BackupProof, WindowProof};
pub use survey::Survey;

use super::stanza::{PhysicalRepository, StanzaError};
use super::wal::WalError;
use policy::WantedWal;

/// What would become of everything in a stanza.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The number of the head that it was made from.
    pub head: u64,
    /// When it was made.
    pub at: Timestamp,
    /// The policy.
    pub policy: Policy,
    /// What stays and what goes, and why.
    #[serde(flatten)]
    pub retained: Retained,
    /// The WAL segments that go.
    pub wal: Vec<WalRange>,
    /// How many segments those are.
    pub wal_segments: u64,
    /// For each backup that stays: that it restores.
    pub backups: Vec<BackupProof>,
    /// For each timeline of the window: from where to where every point restores.
    pub windows: Vec<WindowProof>,
    /// How the days, weeks and months of the policy are counted.
    #[serde(skip)]
    pub zone: TimeZone,
}

impl Plan {
    /// Whether there is neither a backup nor WAL to remove. Unused objects are only found by looking.
    pub fn removes_nothing(&self) -> bool {
        self.retained.removed().is_empty() && self.wal.is_empty()
    }

    /// Backups that stay and do not restore. They did not before either; nothing that this plan removes would
    /// help them.
    pub fn broken(&self) -> impl Iterator<Item = &BackupProof> {
        self.backups.iter().filter(|proof| !proof.restores())
    }
}

/// Looks at a stanza and plans.
///
/// # Errors
///
/// When the repository cannot be read, or [`ExpireError::Unproven`] when the plan would take away something that
/// restores now and that it promises to keep; that is a fault of ours, and nothing is removed.
pub async fn propose(
    repository: &PhysicalRepository,
    policy: &Policy,
    now: Timestamp,
    zone: &TimeZone,
    cancellation: &CancellationToken,
) -> Result<Plan, ExpireError> {
    let survey = Survey::of(repository, cancellation).await?;
    plan(&survey, policy, now, zone)
}

/// Plans, from what was seen.
///
/// # Errors
///
/// [`ExpireError::Unproven`].
pub fn plan(survey: &Survey, policy: &Policy, now: Timestamp, zone: &TimeZone) -> Result<Plan, ExpireError> {
    let head = &survey.head;
    let retained = policy::decide(&head.backups, &survey.archive, policy, now, zone);
    let kept = retained.kept();
    let staying: Vec<_> = head
        .backups
        .iter()
        .filter(|backup| kept.contains(&backup.label))
        .cloned()
        .collect();
    let readers = survey.leased_entries(&kept);
    let wanted = WantedWal::new(
        &staying,
        &retained.bases,
        &readers,
        &survey.running(),
        &survey.archive,
    );
    // Without a backup there is nothing by which to tell what is needed.
    let wal = if staying.is_empty() {
        Vec::new()
    } else {
        wanted.unwanted(&survey.archive)
    };
    let after = survey.archive.without(&wal);
    let backups: Vec<BackupProof> = staying
        .iter()
        .map(|backup| BackupProof::new(backup, &after))
        .collect();
    for (proof, backup) in backups.iter().zip(&staying) {
        if !proof.restores() && survey.archive.first_missing(backup.wal).is_none() {
            return Err(ExpireError::Unproven { label: backup.label });
        }
    }
    let windows = retained
        .bases
        .iter()
        .filter_map(|(timeline, label)| {
            let base = staying.iter().find(|backup| backup.label == *label)?;
            Some(WindowProof::new(base, *timeline, &after))
        })
        .collect();
    Ok(Plan {
        head: head.seq,
        at: now,
        policy: *policy,
        wal_segments: survey.archive.count_in(&wal),
        retained,
        wal,
        backups,
        windows,
        zone: zone.clone(),
    })
}

/// Why nothing, or not everything, was removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExpireError {
    /// The repository failed, or changed since the plan was made.
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    /// The WAL archive failed.
    #[error("cannot look at the WAL archive")]
    Wal(#[from] WalError),
    /// The plan does not keep its promise.
    #[error("the plan would leave backup {label} without WAL that it needs")]
    Unproven {
        /// The backup.
        label: Label,
    },
    /// Others published backups while we looked, each time.
    #[error("backups were published while unused objects were looked for: gave up after {attempts} attempts")]
    Busy {
        /// How often it was tried.
        attempts: u32,
    },
    /// A signal or the user stopped it.
    #[error("interrupted; what was not removed yet is removed by the next run")]
    Interrupted,
}

impl From<pgmahout_store::StoreError> for ExpireError {
    fn from(error: pgmahout_store::StoreError) -> Self {
        match error {
            pgmahout_store::StoreError::Cancelled { .. } => Self::Interrupted,
            error => Self::Stanza(error.into()),
        }
    }
}

impl Diagnose for ExpireError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Stanza(source) => source.hint(),
            Self::Wal(source) => source.hint(),
            Self::Unproven { label } => Some(format!(
                "nothing was removed; pin the backup (pgmahout backup annotate {label} --pin) and report this"
            )),
            Self::Busy { .. } => Some("run the command again when no backup is being made".to_owned()),
            Self::Interrupted => None,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Stanza(source) => source.outcome(),
            Self::Wal(source) => source.outcome(),
            Self::Unproven { .. } => Outcome::Refused,
            Self::Busy { .. } => Outcome::Failed,
            Self::Interrupted => Outcome::Interrupted,
        }
    }
}

/// The labels of some entries.
pub(crate) fn labels(backups: &[pgmahout_types::repository::BackupEntry]) -> BTreeSet<Label> {
    backups.iter().map(|backup| backup.label).collect()
}
