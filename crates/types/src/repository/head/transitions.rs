//! The moves of the protocol.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::super::condemned::CondemnedId;
use super::super::ids::{Label, Nonce};
use super::{
    BackupEntry, Clearance, Condemned, Examination, Head, HeadError, MOST_REMEMBERED, PublishError,
    REMEMBERED, WalGap,
};
use crate::timeline::TimelineId;
use crate::wal::SegmentName;

impl Head {
    /// Makes this the next head: the last change before it is created under its new number.
    pub fn advance(&mut self, nonce: Nonce, now: Timestamp, host: &str) {
        self.seq = self.seq.saturating_add(1);
        self.nonce = nonce;
        self.written_at = now;
        host.clone_into(&mut self.host);
    }

    /// The condemned lists with which a backup that noted `epoch` must be compared before it is published:
    /// those of which anything may have been there when it looked.
    pub fn lists_to_check(&self, epoch: u64) -> impl Iterator<Item = CondemnedId> {
        self.condemned
            .iter()
            .filter(move |list| list.deleted.is_none_or(|deleted| deleted > epoch))
            .map(|list| list.list)
    }

    /// Adds a backup. Adding it a second time changes nothing, as after an answer that was lost.
    ///
    /// # Errors
    /// [`PublishError::Unchecked`] when condemned lists must be compared with the backup first; the others
    /// when it must not be published.
    pub fn publish(&mut self, backup: BackupEntry, clearance: &Clearance) -> Result<(), PublishError> {
        let label = backup.label;
        if let Some(known) = self.backup(label) {
            return if known.manifest == backup.manifest {
                Ok(())
            } else {
                Err(PublishError::LabelTaken { label })
            };
        }
        let epoch = clearance.epoch;
        if epoch > self.epoch {
            return Err(PublishError::FromTheFuture {
                label,
                epoch,
                current: self.epoch,
            });
        }
        if epoch < self.forgotten {
            return Err(PublishError::TooOld {
                label,
                epoch,
                forgotten: self.forgotten,
            });
        }
        let first = backup.wal.first;
        if let Some(&floor) = self.wal_floor.get(&first.timeline())
            && first < floor
        {
            return Err(PublishError::WalGone { label, first, floor });
        }
        let unchecked = |list: &CondemnedId| !clearance.checked.contains(list);
        let lists: Vec<CondemnedId> = self.lists_to_check(epoch).filter(unchecked).collect();
        if !lists.is_empty() {
            return Err(PublishError::Unchecked { label, lists });
        }
        let position = self.backups.partition_point(|known| known.label < label);
        self.backups.insert(position, backup);
        Ok(())
    }

    /// Removes backups and returns their entries. Raises the epoch where there was anything to remove;
    /// names that are gone already are passed over.
    ///
    /// # Errors
    /// When one of them is pinned: then none is removed.
    pub fn remove(&mut self, labels: &BTreeSet<Label>) -> Result<Vec<BackupEntry>, HeadError> {
        let going = |backup: &&BackupEntry| labels.contains(&backup.label);
        if let Some(pinned) = self.backups.iter().filter(going).find(|backup| backup.pinned) {
            return Err(HeadError::Pinned { label: pinned.label });
        }
        let (removed, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.backups)
            .into_iter()
            .partition(|backup| labels.contains(&backup.label));
        self.backups = kept;
        if !removed.is_empty() {
            self.raise_epoch();
        }
        Ok(removed)
    }

    /// Condemns the objects of a list, and all WAL before `floor`, and raises the epoch. `examined` are the
    /// backups whose manifests were read to find what is unused.
    ///
    /// From here on the objects may be deleted, and no backup that uses one of them can be published.
    ///
    /// # Errors
    /// When there is a backup that was not examined, or one that needs WAL before `floor`; or when the list
    /// is known already. Then nothing may be deleted.
    pub fn condemn(
        &mut self,
        list: CondemnedId,
        examined: &BTreeSet<Label>,
        floor: &BTreeMap<TimelineId, SegmentName>,
        now: Timestamp,
    ) -> Result<(), HeadError> {
        if let Some(label) = self.labels().find(|label| !examined.contains(label)) {
            return Err(HeadError::Unexamined { label });
        }
        if self.condemned.iter().any(|known| known.list == list) {
            return Err(HeadError::ListExists { list });
        }
        for (&timeline, &floor) in floor {
            if floor.timeline() != timeline {
                return Err(HeadError::Inconsistent {
                    problem: "the first WAL segment of a timeline is of another one",
                });
            }
            for backup in &self.backups {
                let first = backup.wal.first;
                if first.timeline() == timeline && first < floor {
                    return Err(HeadError::WalNeeded {
                        label: backup.label,
                        first,
                    });
                }
            }
        }
        for (&timeline, &floor) in floor {
            let known = self.wal_floor.entry(timeline).or_insert(floor);
            *known = floor.max(*known);
        }
        let floors = &self.wal_floor;
        self.gaps.retain(|gap| {
            let floor = floors.get(&gap.wal.last.timeline());
            floor.is_none_or(|&floor| gap.wal.last >= floor)
        });
        self.raise_epoch();
        self.condemned.push(Condemned {
            list,
            epoch: self.epoch,
            at: now,
            deleted: None,
            deleted_at: None,
        });
        Ok(())
    }

    /// Notes that every object of a condemned list is gone, and raises the epoch. A second time it changes
    /// nothing.
    ///
    /// # Errors
    /// When there is no such list.
    pub fn mark_deleted(&mut self, list: CondemnedId, now: Timestamp) -> Result<(), HeadError> {
        let raised = self.epoch.saturating_add(1);
        let known = self.condemned.iter_mut().find(|known| known.list == list);
        let known = known.ok_or(HeadError::NoList { list })?;
        if known.deleted.is_none() {
            known.deleted = Some(raised);
            known.deleted_at = Some(now);
            self.epoch = raised;
        }
        Ok(())
    }

    /// Forgets the condemned lists that were deleted long ago, and returns them, so that their objects can
    /// go too. Those with something left to delete are never forgotten.
    pub fn forget_deleted(&mut self, now: Timestamp) -> Vec<CondemnedId> {
        let deleted = |list: &Condemned| list.deleted.is_some();
        let mut surplus = self
            .condemned
            .iter()
            .filter(|list| deleted(list))
            .count()
            .saturating_sub(MOST_REMEMBERED);
        let mut gone = Vec::new();
        let mut forgotten = self.forgotten;
        self.condemned.retain(|list| {
            let Some(epoch) = list.deleted else {
                return true;
            };
            let old = list
                .deleted_at
                .is_some_and(|at| now.duration_since(at) > REMEMBERED);
            if !old && surplus == 0 {
                return true;
            }
            surplus = surplus.saturating_sub(1);
            forgotten = forgotten.max(epoch);
            gone.push(list.list);
            false
        });
        self.forgotten = forgotten;
        gone
    }

    /// Keeps a backup whatever the rules of retention say, or no longer.
    ///
    /// # Errors
    /// When there is no such backup.
    pub fn pin(&mut self, label: Label, pinned: bool) -> Result<(), HeadError> {
        self.backup_mut(label)?.pinned = pinned;
        Ok(())
    }

    /// Sets an annotation of a backup, or removes it where `value` is `None`.
    ///
    /// # Errors
    /// When there is no such backup.
    pub fn annotate(&mut self, label: Label, key: &str, value: Option<&str>) -> Result<(), HeadError> {
        let annotations = &mut self.backup_mut(label)?.annotations;
        match value {
            Some(value) => annotations.insert(key.to_owned(), value.to_owned()),
            None => annotations.remove(key),
        };
        Ok(())
    }

    /// Notes how the reading back of a backup went.
    ///
    /// # Errors
    /// When there is no such backup.
    pub fn record_verification(&mut self, label: Label, examination: Examination) -> Result<(), HeadError> {
        self.backup_mut(label)?.verified = Some(examination);
        Ok(())
    }

    /// Notes how the restore of a backup went.
    ///
    /// # Errors
    /// When there is no such backup.
    pub fn record_drill(&mut self, label: Label, examination: Examination) -> Result<(), HeadError> {
        self.backup_mut(label)?.drilled = Some(examination);
        Ok(())
    }

    /// Notes WAL that will never be in the archive. A gap that lies inside a known one changes nothing.
    pub fn record_gap(&mut self, gap: WalGap) {
        let inside = |known: &WalGap| {
            known.wal.first.timeline() == gap.wal.first.timeline()
                && known.wal.first <= gap.wal.first
                && gap.wal.last <= known.wal.last
        };
        if !self.gaps.iter().any(inside) {
            self.gaps.push(gap);
        }
    }

    /// Removes gaps that a look at the archive has shown to be filled.
    pub fn close_gaps(&mut self, filled: impl Fn(&WalGap) -> bool) {
        self.gaps.retain(|gap| !filled(gap));
    }

    fn backup_mut(&mut self, label: Label) -> Result<&mut BackupEntry, HeadError> {
        let position = self.position(label).ok_or(HeadError::NoBackup { label })?;
        self.backups
            .get_mut(position)
            .ok_or(HeadError::NoBackup { label })
    }

    fn raise_epoch(&mut self) {
        self.epoch = self.epoch.saturating_add(1);
    }
}
