//! Carrying out a plan: removing backups from the head, and collecting what is unused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use pgmahout_store::StoreError;
use pgmahout_store::framed;
use pgmahout_store::repository::{CreateOutcome, ObjectEntry};
use pgmahout_types::repository::head::HeadError;
use pgmahout_types::repository::manifest::WalRange;
use pgmahout_types::repository::{BackupEntry, CondemnedId, CondemnedObjects, Head, Label, PackId};
use pgmahout_types::{SegmentName, WalFileName};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::policy::{Policy, WantedWal, decide};
use super::survey::{Survey, is_in};
use super::{ExpireError, Plan, labels};
use crate::physical::stanza::lease::SeenLease;
use crate::physical::stanza::protocol::{self, References};
use crate::physical::stanza::{
    LeaseGuard, LeaseKind, LeaseScope, PhysicalRepository, StanzaError, StanzaObject, kind, random,
};

/// How often garbage is looked for anew because a backup was published meanwhile.
const ATTEMPTS: u32 = 5;

/// A list of condemned objects that no head names is swept when it is as old as this: whoever wrote it did not get to
/// the head, or the head has forgotten it.
const ORPHANED: Duration = Duration::from_hours(24);

/// How often it is looked whether somebody still reads what was removed.
const LOOK: Duration = Duration::from_secs(1);

/// How many objects are deleted at the same time.
const AT_ONCE: usize = 8;

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// The backups that are listed no more.
    pub removed: Vec<Label>,
    /// How many objects were deleted.
    pub objects: u64,
    /// How many bytes those were.
    pub bytes: u64,
    /// How many of them were WAL segments.
    pub wal_segments: u64,
    /// What could not be deleted. It is tried again by the next run.
    pub left: Vec<Leftover>,
    /// Removed backups whose objects stay for now, because somebody reads them.
    pub being_read: Vec<Label>,
}

/// An object that could not be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// Its name in the repository.
    pub object: String,
    /// What the storage said.
    pub why: String,
}

/// Who reads a backup that was just removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// The backup.
    pub label: Label,
    /// What is done with it.
    pub kind: LeaseKind,
    /// Where: host and process.
    pub owner: String,
}

/// How long the collection waits for those who read backups that were just removed, before it looks for what is
/// unused. What they still read then stays for the next run.
pub struct Grace<'a> {
    /// At most so long.
    pub at_most: Duration,
    /// Is told for whom it waits, once for each change.
    pub waiting: &'a (dyn Fn(&[Reader]) + Sync),
}

/// Carries out a plan. It may be interrupted at any point: the next run goes on. Waits for nobody.
///
/// # Errors
///
/// As [`carry_out_with`].
pub async fn carry_out(
    repository: &PhysicalRepository,
    plan: &Plan,
    cancellation: &CancellationToken,
) -> Result<Collected, ExpireError> {
    let grace = Grace {
        at_most: Duration::ZERO,
        waiting: &|_| {},
    };
    carry_out_with(repository, plan, &grace, cancellation).await
}

/// Carries out a plan, and waits a while for those who read what it removes.
///
/// # Errors
///
/// [`StanzaError::Stale`] when the head has changed so that the plan does not hold: nothing was removed.
/// [`ExpireError::Busy`], [`ExpireError::Interrupted`], what the storage says.
pub async fn carry_out_with(
    repository: &PhysicalRepository,
    plan: &Plan,
    grace: &Grace<'_>,
    cancellation: &CancellationToken,
) -> Result<Collected, ExpireError> {
    let guard = repository.lease(LeaseKind::Expire, LeaseScope::none()).await?;
    let collection = Collection {
        repository,
        guard: &guard,
        cancellation,
    };
    let collected = collection.run(plan, grace).await;
    if let Err(error) = guard.finish().await {
        tracing::debug!(%error, "the lease of the collection runs out by itself");
    }
    collected
}

struct Collection<'a> {
    repository: &'a PhysicalRepository,
    guard: &'a LeaseGuard,
    cancellation: &'a CancellationToken,
}

/// What is to be condemned.
struct Garbage {
    list: CondemnedObjects,
    examined: BTreeSet<Label>,
    floors: BTreeMap<pgmahout_types::TimelineId, pgmahout_types::SegmentName>,
    window: BTreeMap<pgmahout_types::TimelineId, pgmahout_types::SegmentName>,
    being_read: Vec<Label>,
}

impl Collection<'_> {
    async fn run(&self, plan: &Plan, grace: &Grace<'_>) -> Result<Collected, ExpireError> {
        let mut collected = Collected::default();
        let (going, keep) = (plan.retained.removed(), plan.retained.kept());
        let (removed, forgotten) = self
            .repository
            .swap(|head| {
                let forgotten = head.forget_deleted(Timestamp::now());
                let removed = protocol::remove(head, &going, &keep).map_err(StanzaError::from)?;
                Ok::<_, StanzaError>((removed, forgotten))
            })
            .await?;
        collected.removed = removed.iter().map(|entry| entry.label).collect();
        for list in forgotten {
            let name = self.repository.names().condemned(list);
            self.repository.repository().delete(&name).await?;
        }
        self.sweep_orphans().await?;
        self.wait_for_readers(&collected.removed, grace).await?;
        let survey = self.condemn(&plan.policy, plan, &removed, &mut collected).await?;
        self.delete_condemned(&mut collected).await?;
        self.repository.prune_heads(survey.now).await?;
        self.repository.sweep_leases(&survey.leases, survey.now).await?;
        Ok(collected)
    }

    fn interrupted(&self) -> Result<(), ExpireError> {
        if self.cancellation.is_cancelled() {
            return Err(ExpireError::Interrupted);
        }
        Ok(())
    }

    /// Removes lists of condemned objects that no head names.
    ///
    /// A collection that was frozen between its list and its swap may still come and put it on the head. So the
    /// epoch is raised first, after which that swap is refused, and only then the lists go.
    async fn sweep_orphans(&self) -> Result<(), ExpireError> {
        self.guard.write().await?;
        let now = self.guard.written().await?;
        let names = self.repository.names();
        let listed = self
            .repository
            .repository()
            .list(&names.full("condemned"), self.cancellation)
            .await?;
        let is_old = |entry: &ObjectEntry| now.duration_since(entry.modified).is_ok_and(|age| age > ORPHANED);
        let old: Vec<CondemnedId> = listed
            .iter()
            .filter(|entry| is_old(entry))
            .filter_map(|entry| match StanzaObject::parse(names.relative(&entry.name)?)? {
                StanzaObject::Condemned(id) => Some(id),
                _ => None,
            })
            .collect();
        let orphans = |head: &Head| -> Vec<CondemnedId> {
            let known: BTreeSet<CondemnedId> = head.condemned.iter().map(|list| list.list).collect();
            old.iter().filter(|id| !known.contains(id)).copied().collect()
        };
        if orphans(&self.repository.head().await?).is_empty() {
            return Ok(());
        }
        let swept = self
            .repository
            .swap(|head| {
                head.epoch = head.epoch.saturating_add(1);
                Ok::<_, StanzaError>(orphans(head))
            })
            .await?;
        for id in swept {
            self.repository.repository().delete(&names.condemned(id)).await?;
        }
        Ok(())
    }

    /// Waits until nobody reads what was removed, or the grace is over.
    async fn wait_for_readers(&self, removed: &[Label], grace: &Grace<'_>) -> Result<(), ExpireError> {
        let end = Instant::now() + grace.at_most;
        let mut told = Vec::new();
        while !removed.is_empty() && Instant::now() < end {
            self.interrupted()?;
            let leases = self.repository.leases(Some(self.guard)).await?;
            self.guard.write().await?;
            let now = self.guard.written().await?;
            let readers = readers_of(removed, &leases, now);
            if readers.is_empty() {
                return Ok(());
            }
            if readers != told {
                (grace.waiting)(&readers);
                told = readers;
            }
            tokio::select! {
                () = self.cancellation.cancelled() => {}
                () = tokio::time::sleep(LOOK.min(end.saturating_duration_since(Instant::now()))) => {}
            }
        }
        Ok(())
    }

    /// Finds what is unused and puts it on the head.
    async fn condemn(
        &self,
        policy: &Policy,
        plan: &Plan,
        removed: &[BackupEntry],
        collected: &mut Collected,
    ) -> Result<Survey, ExpireError> {
        for _ in 0..ATTEMPTS {
            self.interrupted()?;
            let survey = Survey::under(self.repository, self.guard, self.cancellation).await?;
            let Some(garbage) = self.look_for_garbage(&survey, policy, plan, removed).await? else {
                return Ok(survey);
            };
            collected.being_read.clone_from(&garbage.being_read);
            if garbage.list.is_empty() {
                return Ok(survey);
            }
            let id = garbage.list.id;
            self.write_list(&garbage.list).await?;
            let swapped = self
                .repository
                .swap(|head| {
                    // Also a sweep of lists that nobody named, ours among them.
                    if head.epoch != survey.head.epoch {
                        return Err(Condemning::Moved);
                    }
                    head.condemn(id, &garbage.examined, &garbage.floors, Timestamp::now())
                        .map_err(Condemning::Head)?;
                    head.wal_window.clone_from(&garbage.window);
                    Ok::<_, Condemning>(())
                })
                .await;
            match swapped {
                Ok(()) => return Ok(survey),
                Err(
                    Condemning::Moved
                    | Condemning::Head(HeadError::Unexamined { .. } | HeadError::WalNeeded { .. }),
                ) => {
                    // A backup was published since we looked, or another one collects. The list is of no use any more.
                    let name = self.repository.names().condemned(id);
                    self.repository.repository().delete(&name).await?;
                }
                Err(Condemning::Head(error)) => return Err(StanzaError::from(error).into()),
                Err(Condemning::Stanza(error)) => return Err(error.into()),
            }
        }
        Err(ExpireError::Busy { attempts: ATTEMPTS })
    }

    async fn write_list(&self, list: &CondemnedObjects) -> Result<(), ExpireError> {
        let name = self.repository.names().condemned(list.id);
        let bytes = framed::seal_bytes(
            &self.repository.cipher(),
            kind::CONDEMNED,
            &name,
            framed::FrameCodec::Zstd(1),
            &list.encode(),
        )
        .map_err(|source| StanzaError::Framed {
            repository: self.repository.description(),
            object: name.clone(),
            source,
        })?;
        match self.repository.repository().create_once(&name, bytes).await? {
            CreateOutcome::Created => Ok(()),
            CreateOutcome::AlreadyThere => Err(StanzaError::NoRandomness.into()),
        }
    }

    /// What nobody references. `None` where no backup is left, by which it could be told.
    async fn look_for_garbage(
        &self,
        survey: &Survey,
        policy: &Policy,
        plan: &Plan,
        removed: &[BackupEntry],
    ) -> Result<Option<Garbage>, ExpireError> {
        let head = &survey.head;
        if head.backups.is_empty() {
            return Ok(None);
        }
        let listed = self.list_objects().await?;
        let examined = labels(&head.backups);
        let mut used = Used::default();
        for entry in &head.backups {
            let ends = self
                .repository
                .read_manifest_ends(entry.label, Some(entry.manifest))
                .await?;
            used.add(&References::of(&ends.0, &ends.1));
        }
        // Backups that are listed no more, or not yet.
        let gone: BTreeSet<Label> = labels(removed);
        let (mut being_read, mut readers, mut freed) = (Vec::new(), Vec::new(), Used::default());
        for label in listed.manifests.keys().filter(|label| !examined.contains(label)) {
            self.interrupted()?;
            let is_read = survey.is_read(*label);
            if !is_read && !gone.contains(label) {
                continue;
            }
            let ends = match self.repository.read_manifest_ends(*label, None).await {
                Ok(ends) => ends,
                Err(error) if error.is_not_found() => continue,
                // A half of a manifest that an interrupted backup left, or a damaged one: its age decides.
                Err(StanzaError::Framed { .. } | StanzaError::Format { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let references = References::of(&ends.0, &ends.1);
            if is_read {
                used.add(&references);
                being_read.push(*label);
                let digest = pgmahout_types::repository::Digest::of(&[]);
                readers.push(BackupEntry::new(&ends.0, &ends.1, digest));
            } else {
                freed.add(&references);
            }
        }
        let mut list = CondemnedObjects::new(CondemnedId::from_bytes(random()?), Timestamp::now());
        let before = survey.unused_before();
        // What a backup that was just removed used goes at once; what was never listed, by its age.
        let unused = |id: &PackId, entry: &ObjectEntry, used: &BTreeSet<PackId>, freed: &BTreeSet<PackId>| {
            !used.contains(id) && (entry.modified < before || freed.contains(id))
        };
        for (id, entry) in &listed.packs {
            if unused(id, entry, &used.packs, &freed.packs) {
                list.packs.insert(*id);
            }
        }
        for (id, entry) in &listed.maps {
            if unused(id, entry, &used.maps, &freed.maps) {
                list.maps.insert(*id);
            }
        }
        for (label, entry) in &listed.manifests {
            let kept = examined.contains(label) || being_read.contains(label);
            if !kept && (entry.modified < before || gone.contains(label)) {
                list.manifests.insert(*label);
            }
        }
        let retained = decide(&head.backups, &survey.archive, policy, plan.at, &plan.zone);
        let kept = labels(&head.backups);
        readers.extend(
            survey
                .leased_entries(&BTreeSet::new())
                .into_iter()
                .filter(|entry| kept.contains(&entry.label)),
        );
        let wanted = WantedWal::new(
            &head.backups,
            &retained.bases,
            &readers,
            &survey.running(),
            &survey.archive,
        );
        list.wal = wanted.unwanted(&survey.archive);
        list.wal.extend(unwanted_companions(survey, &wanted, &list.wal));
        let mut floors = wanted.floors(&survey.archive);
        floors.retain(|timeline, floor| head.wal_floor.get(timeline).is_none_or(|known| known < floor));
        Ok(Some(Garbage {
            list,
            examined,
            floors,
            window: wanted.continuous(survey.archive.segment_size),
            being_read,
        }))
    }

    async fn list_objects(&self) -> Result<Listed, ExpireError> {
        let mut listed = Listed::default();
        let names = self.repository.names();
        for class in ["pack", "map", "manifest"] {
            let entries = self
                .repository
                .repository()
                .list(&names.full(class), self.cancellation)
                .await?;
            for entry in entries {
                match names.relative(&entry.name).and_then(StanzaObject::parse) {
                    Some(StanzaObject::Pack(id)) => drop(listed.packs.insert(id, entry)),
                    Some(StanzaObject::Map(id)) => drop(listed.maps.insert(id, entry)),
                    Some(StanzaObject::Manifest(label)) => drop(listed.manifests.insert(label, entry)),
                    // Not ours.
                    _ => {}
                }
            }
        }
        Ok(listed)
    }

    /// Deletes everything that the head has condemned: also what a collection before us did not get to.
    async fn delete_condemned(&self, collected: &mut Collected) -> Result<(), ExpireError> {
        let head: Head = self.repository.head().await?;
        for condemned in head.condemned.iter().filter(|list| list.deleted.is_none()) {
            self.interrupted()?;
            // A list that is gone was finished and forgotten by somebody else.
            let Some(list) = self.repository.read_condemned(condemned.list).await? else {
                continue;
            };
            let left = self.delete_list(&list, collected).await?;
            if left.is_empty() {
                let id = condemned.list;
                self.repository
                    .swap(|head| match head.mark_deleted(id, Timestamp::now()) {
                        Ok(()) | Err(HeadError::NoList { .. }) => Ok(()),
                        Err(error) => Err(StanzaError::from(error)),
                    })
                    .await?;
            }
            collected.left.extend(left);
        }
        Ok(())
    }

    /// Deletes what a list names. Returns what the storage refuses to delete.
    async fn delete_list(
        &self,
        list: &CondemnedObjects,
        collected: &mut Collected,
    ) -> Result<Vec<Leftover>, ExpireError> {
        let names = self.repository.names();
        let manifests = list.manifests.iter().map(|label| names.manifest(*label));
        let maps = list.maps.iter().map(|id| names.map(*id));
        let packs = list.packs.iter().map(|id| names.pack(*id));
        let mut objects: Vec<String> = manifests.chain(maps).chain(packs).collect();
        let timelines: BTreeSet<_> = list.wal.iter().map(|range| range.first.timeline()).collect();
        for timeline in timelines {
            let entries = self
                .repository
                .repository()
                .list(&names.wal_timeline(timeline), self.cancellation)
                .await?;
            objects.extend(entries.into_iter().map(|entry| entry.name).filter(|name| {
                let object = names.relative(name).and_then(StanzaObject::parse);
                let Some(StanzaObject::Wal(file)) = object else {
                    return false;
                };
                // With a segment goes what is about it. Histories of timelines stay.
                file.segment().is_some_and(|segment| is_in(segment, &list.wal))
            }));
        }
        let store = self.repository.repository();
        let mut deletions = stream::iter(objects)
            .map(|name| async move {
                let size = match store.head(&name).await {
                    Ok(Some(entry)) => entry.size,
                    Ok(None) => return (name, Ok(None)),
                    Err(error) => return (name, Err(error)),
                };
                let deleted = store
                    .delete(&name)
                    .await
                    .map(|was_there| was_there.then_some(size));
                (name, deleted)
            })
            .buffer_unordered(AT_ONCE);
        let mut left = Vec::new();
        while let Some((name, deleted)) = deletions.next().await {
            match deleted {
                Ok(Some(size)) => {
                    collected.objects += 1;
                    collected.bytes += size;
                    let object = names.relative(&name).and_then(StanzaObject::parse);
                    if matches!(object, Some(StanzaObject::Wal(WalFileName::Segment(_)))) {
                        collected.wal_segments += 1;
                    }
                }
                Ok(None) => {}
                // An object lock, or a bucket's policy.
                Err(StoreError::PermissionDenied { source, .. }) => left.push(Leftover {
                    object: name,
                    why: source.to_string(),
                }),
                Err(error) => return Err(error.into()),
            }
            self.interrupted()?;
        }
        left.sort_by(|one, other| one.object.cmp(&other.object));
        Ok(left)
    }
}

/// Unfinished segments and backup histories whose segments nobody wants, and which go with none of these ranges
/// because the segment itself never arrived.
fn unwanted_companions(survey: &Survey, wanted: &WantedWal, going: &[WalRange]) -> Vec<WalRange> {
    let size = survey.archive.segment_size;
    let segments: BTreeSet<SegmentName> = survey
        .companions
        .iter()
        .filter_map(|file| file.segment())
        .filter(|segment| {
            let number = segment.number(size);
            number.is_ok_and(|number| !wanted.contains(segment.timeline(), number))
        })
        .filter(|segment| !is_in(*segment, going))
        .collect();
    let range = |segment| WalRange {
        first: segment,
        last: segment,
    };
    segments.into_iter().map(range).collect()
}

/// Who reads which of some backups.
fn readers_of(removed: &[Label], leases: &[SeenLease], now: SystemTime) -> Vec<Reader> {
    let mut readers = Vec::new();
    for seen in leases.iter().filter(|seen| seen.is_alive(now)) {
        let Some(lease) = &seen.lease else { continue };
        let read = removed.iter().filter(|label| seen.covers(**label));
        readers.extend(read.map(|label| Reader {
            label: *label,
            kind: lease.kind,
            owner: lease.owner.clone(),
        }));
    }
    readers
}

/// What there is.
#[derive(Default)]
struct Listed {
    packs: BTreeMap<PackId, ObjectEntry>,
    maps: BTreeMap<PackId, ObjectEntry>,
    manifests: BTreeMap<Label, ObjectEntry>,
}

/// What manifests reference.
#[derive(Default)]
struct Used {
    packs: BTreeSet<PackId>,
    maps: BTreeSet<PackId>,
}

impl Used {
    fn add(&mut self, references: &References) {
        self.packs.extend(&references.packs);
        self.maps.extend(&references.maps);
    }
}

/// Why a list could not be put on the head.
enum Condemning {
    /// Its epoch is not the one that was looked at.
    Moved,
    Head(HeadError),
    Stanza(StanzaError),
}

impl From<StanzaError> for Condemning {
    fn from(error: StanzaError) -> Self {
        Self::Stanza(error)
    }
}
