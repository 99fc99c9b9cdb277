//! What is to be copied, and what is there already.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use pgmahout_types::repository::{BackupEntry, CondemnedObjects, Head, Label, Nonce, PackId};
use pgmahout_types::{SegmentName, SegmentSize, WalFileName};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::error::CopyError;
use super::{CopyRequest, WalChoice};
use crate::physical::expire::policy::{Archive, decide};
use crate::physical::stanza::protocol::{Conflict, References, conflict};
use crate::physical::stanza::{PhysicalRepository, StanzaObject};

/// What a copy would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// The backups to copy, the oldest first.
    pub backups: Vec<PlannedBackup>,
    /// Backups of which the target has a copy.
    pub already: Vec<Label>,
    /// Backups that the target's retention would remove at once.
    pub unwanted: Vec<Label>,
    /// How many packs are to be copied.
    pub packs: u64,
    /// Bytes of those.
    pub pack_bytes: u64,
    /// How many packs of these backups are there already.
    pub packs_there: u64,
    /// How many files of WAL are to be copied.
    pub wal_files: u64,
    /// Bytes of those.
    pub wal_bytes: u64,
}

/// A backup that is to be copied.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedBackup {
    /// Its name where it comes from.
    pub label: Label,
    /// When it was finished.
    pub stop_time: Timestamp,
    /// Bytes of its files.
    pub bytes: u64,
}

/// The plan, with what carrying it out needs.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) source: Head,
    pub(super) target: Option<Target>,
    /// The packs of file content of each backup to copy.
    pub(super) packs: BTreeMap<Label, Vec<PackEntry>>,
    /// All files of WAL to copy, with the bytes of their objects.
    pub(super) wal: BTreeMap<WalFileName, u64>,
    /// Those that were copied.
    copied: BTreeSet<WalFileName>,
}

impl Prepared {
    pub(super) fn note_copied(&mut self, file: WalFileName) {
        self.copied.insert(file);
    }

    pub(super) fn has_copied(&self, file: WalFileName) -> bool {
        self.copied.contains(&file)
    }
}

/// What the target has.
pub(super) struct Target {
    pub(super) head: Head,
    /// All lists of condemned objects that are remembered there.
    condemned: Vec<CondemnedObjects>,
    /// Packs by the first half of their names, which says what they are copies of.
    packs: HashMap<[u8; 8], Vec<Candidate>>,
    wal: BTreeSet<WalFileName>,
    archive: Archive,
}

/// A pack that looks like the copy of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: PackId,
    pub(super) size: u64,
    pub(super) written: SystemTime,
}

/// The first half of the name of a pack that is a copy: it says of which pack of which repository, to those
/// who have the key of the hashes. The second half is random, because names are never used twice.
pub(super) fn mark(key: &[u8; 32], origin: Nonce, pack: PackId) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(b"copy of a pack");
    hasher.update(origin.as_bytes());
    hasher.update(pack.as_bytes());
    let hash = hasher.finalize();
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Whether two entries are of one backup, whatever it is called.
pub(super) fn is_same(one: &BackupEntry, other: &BackupEntry) -> bool {
    let of = |entry: &BackupEntry| {
        (
            entry.system_identifier,
            entry.timeline,
            entry.start_lsn,
            entry.stop_lsn,
            entry.start_time,
            entry.stop_time,
        )
    };
    of(one) == of(other)
}

/// Whether a copy there counts: one that was found damaged does not.
fn is_sound(entry: &BackupEntry) -> bool {
    entry.verified.as_ref().is_none_or(|verified| verified.passed)
}

impl Target {
    pub(super) async fn look(
        repository: &PhysicalRepository,
        cancellation: &CancellationToken,
    ) -> Result<Self, CopyError> {
        // The head first: what is listed after it is compared with what was condemned since.
        let head = repository.head().await?;
        let mut condemned = Vec::new();
        for list in &head.condemned {
            condemned.extend(repository.read_condemned(list.list).await?);
        }
        let mut damaged: HashSet<PackId> = HashSet::new();
        for entry in head.backups.iter().filter(|entry| !is_sound(entry)) {
            // Where its manifest is what is damaged, nothing can be said of its packs.
            if let Ok((_, end)) = repository
                .read_manifest_ends(entry.label, Some(entry.manifest))
                .await
            {
                damaged.extend(end.packs.iter().map(|pack| pack.id));
            }
        }
        let mut packs: HashMap<[u8; 8], Vec<Candidate>> = HashMap::new();
        let names = repository.names();
        repository
            .repository()
            .list_each(&names.full("pack"), cancellation, |page| {
                for entry in page {
                    let object = names.relative(&entry.name).and_then(StanzaObject::parse);
                    let Some(StanzaObject::Pack(id)) = object else {
                        continue;
                    };
                    if damaged.contains(&id) || condemned.iter().any(|list| list.packs.contains(&id)) {
                        continue;
                    }
                    let mark = id.as_bytes().first_chunk().copied().unwrap_or_default();
                    packs.entry(mark).or_default().push(Candidate {
                        id,
                        size: entry.size,
                        written: entry.modified,
                    });
                }
                Ok(())
            })
            .await?;
        let (wal, archive) = look_at_wal(repository, cancellation).await?;
        Ok(Self {
            head,
            condemned,
            packs,
            wal: wal.into_keys().collect(),
            archive,
        })
    }

    /// The copy of a backup.
    pub(super) fn copy_of(&self, entry: &BackupEntry) -> Option<&BackupEntry> {
        let mut copies = self.head.backups.iter().rev();
        copies.find(|known| is_sound(known) && is_same(known, entry))
    }

    /// What look like copies of a pack.
    pub(super) fn candidates(
        &self,
        repository: &PhysicalRepository,
        origin: Nonce,
        pack: PackId,
    ) -> &[Candidate] {
        let mark = mark(repository.hash_key(), origin, pack);
        self.packs.get(&mark).map_or(&[], Vec::as_slice)
    }

    /// Whether a file of WAL is there.
    pub(super) fn has(&self, file: WalFileName) -> bool {
        self.wal.contains(&file)
    }

    /// Whether a label was never used there.
    pub(super) fn is_free(&self, label: Label) -> bool {
        self.head.backup(label).is_none()
            && !self.condemned.iter().any(|list| list.manifests.contains(&label))
    }

    /// Whether the WAL of a backup was removed there.
    fn has_removed_wal(&self, entry: &BackupEntry) -> bool {
        let first = entry.wal.first;
        let floor = self.head.wal_floor.get(&first.timeline());
        let references = References {
            label: entry.label,
            packs: BTreeSet::new(),
            maps: BTreeSet::new(),
            wal: entry.wal,
        };
        floor.is_some_and(|floor| first < *floor)
            || self
                .condemned
                .iter()
                .any(|list| matches!(conflict(list, &references), Some(Conflict::Wal(_))))
    }
}

/// Plans. Without a target, as if it were empty.
pub(super) async fn prepare(
    from: &PhysicalRepository,
    to: Option<&PhysicalRepository>,
    request: &CopyRequest,
    cancellation: &CancellationToken,
) -> Result<Prepared, CopyError> {
    let target = match to {
        Some(to) => Some(Target::look(to, cancellation).await?),
        None => None,
    };
    let source = from.head().await?;
    let (wal, archive) = look_at_wal(from, cancellation).await?;
    let mut plan = Plan::default();
    let mut chosen: Vec<BackupEntry> = if request.labels.is_empty() {
        source.backups.clone()
    } else {
        let labels = request.labels.iter();
        labels
            .map(|label| from.backup_in(&source, *label).cloned())
            .collect::<Result<_, _>>()?
    };
    chosen.sort_by_key(|entry| (entry.start_time, entry.label));
    chosen.dedup_by_key(|entry| entry.label);
    if let Some(target) = &target {
        chosen.retain(|entry| {
            let is_there = target.copy_of(entry).is_some();
            if is_there {
                plan.already.push(entry.label);
            }
            !is_there
        });
    }
    if request.labels.is_empty() {
        let wanted = wanted(&chosen, target.as_ref(), archive, request);
        chosen.retain(|entry| {
            let is_wanted = wanted.contains(&entry.label)
                && !target
                    .as_ref()
                    .is_some_and(|target| target.has_removed_wal(entry));
            if !is_wanted {
                plan.unwanted.push(entry.label);
            }
            is_wanted
        });
    } else if let (Some(to), Some(target)) = (to, &target)
        && let Some(entry) = chosen.iter().find(|entry| target.has_removed_wal(entry))
    {
        return Err(CopyError::TooOld {
            repository: to.description(),
            label: entry.label,
        });
    }

    let mut packs = BTreeMap::new();
    let mut seen = HashSet::new();
    for entry in &chosen {
        if cancellation.is_cancelled() {
            return Err(CopyError::Interrupted);
        }
        plan.backups.push(PlannedBackup {
            label: entry.label,
            stop_time: entry.stop_time,
            bytes: entry.bytes,
        });
        let ends = from.read_manifest_ends(entry.label, Some(entry.manifest)).await;
        let Ok((_, end)) = ends else {
            // It is told when its turn comes.
            continue;
        };
        let data: Vec<PackEntry> = end
            .packs
            .into_iter()
            .filter(|pack| pack.kind == PackKind::Data)
            .collect();
        for pack in data.iter().filter(|pack| seen.insert(pack.id)) {
            let is_there = to
                .zip(target.as_ref())
                .is_some_and(|(to, target)| !target.candidates(to, from.id(), pack.id).is_empty());
            if is_there {
                plan.packs_there += 1;
            } else {
                plan.packs += 1;
                plan.pack_bytes += pack.size;
            }
        }
        packs.insert(entry.label, data);
    }
    let wal = missing_wal(wal, &chosen, target.as_ref(), request.wal, from.segment_size());
    plan.wal_files = wal.len() as u64;
    plan.wal_bytes = wal.values().sum();
    Ok(Prepared {
        plan,
        source,
        target,
        packs,
        wal,
        copied: BTreeSet::new(),
    })
}

/// The backups that the target's retention would keep if it had them.
fn wanted(
    candidates: &[BackupEntry],
    target: Option<&Target>,
    source: Archive,
    request: &CopyRequest,
) -> BTreeSet<Label> {
    let Some(policy) = request.policy.filter(|policy| !policy.keeps_nothing()) else {
        return candidates.iter().map(|entry| entry.label).collect();
    };
    let mut entries = candidates.to_vec();
    let mut archive = source;
    if let Some(target) = target {
        entries.extend(target.head.backups.iter().cloned());
        for (timeline, segments) in &target.archive.segments {
            archive.segments.entry(*timeline).or_default().extend(segments);
        }
    }
    decide(&entries, &archive, &policy, Timestamp::now(), &TimeZone::system()).kept()
}

/// The files of WAL that the target lacks.
fn missing_wal(
    source: BTreeMap<WalFileName, u64>,
    chosen: &[BackupEntry],
    target: Option<&Target>,
    choice: WalChoice,
    size: SegmentSize,
) -> BTreeMap<WalFileName, u64> {
    let there = target.map_or(&[][..], |target| &target.head.backups);
    let number = |segment: SegmentName| segment.number(size).ok();
    // Numbers go on across timelines, so that this is where to begin on each of them.
    let begin = chosen
        .iter()
        .chain(there)
        .filter_map(|entry| number(entry.wal.first));
    let Some(begin) = begin.min() else {
        return BTreeMap::new();
    };
    let in_ranges = |segment: SegmentName| {
        chosen.iter().any(|entry| {
            let wal = entry.wal;
            wal.first.timeline() == segment.timeline() && (wal.first..=wal.last).contains(&segment)
        })
    };
    let in_window = |segment: SegmentName| {
        choice == WalChoice::All
            && number(segment).is_some_and(|number| number >= begin)
            && target.is_none_or(|target| {
                let kept = [&target.head.wal_floor, &target.head.wal_window];
                let first = kept.iter().filter_map(|kept| kept.get(&segment.timeline())).max();
                first.is_none_or(|first| segment >= *first)
            })
    };
    let is_wanted = |file: &WalFileName| match *file {
        WalFileName::Segment(segment) | WalFileName::BackupHistory { segment, .. } => {
            in_ranges(segment) || in_window(segment)
        }
        WalFileName::TimelineHistory(_) => true,
        WalFileName::Partial(segment) => in_window(segment),
    };
    source
        .into_iter()
        .filter(|(file, _)| is_wanted(file) && !target.is_some_and(|target| target.wal.contains(file)))
        .collect()
}

/// The files of an archive with the bytes of their objects, and the segments as retention sees them.
async fn look_at_wal(
    repository: &PhysicalRepository,
    cancellation: &CancellationToken,
) -> Result<(BTreeMap<WalFileName, u64>, Archive), CopyError> {
    let names = repository.names();
    let size = repository.segment_size();
    let mut files = BTreeMap::new();
    let mut archive = Archive {
        segment_size: size,
        ..Archive::default()
    };
    repository
        .repository()
        .list_each(&names.wal_prefix(), cancellation, |page| {
            for entry in page {
                let object = names.relative(&entry.name).and_then(StanzaObject::parse);
                let Some(StanzaObject::Wal(file)) = object else {
                    continue;
                };
                if let WalFileName::Segment(segment) = file
                    && let Ok(number) = segment.number(size)
                {
                    let at = Timestamp::try_from(entry.modified).unwrap_or(Timestamp::UNIX_EPOCH);
                    let segments = archive.segments.entry(segment.timeline()).or_default();
                    segments.insert(number, at);
                }
                files.insert(file, entry.size);
            }
            Ok(())
        })
        .await?;
    Ok((files, archive))
}
