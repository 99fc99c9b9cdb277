//! Random histories of a cluster in a real repository, random policies, and what is on the disk afterwards: every
//! kept backup with all that it is made of, an unbroken way to every point of the window that had one, and nothing
//! else for longer than a collection.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::SignedDuration;
use pgmahout_store::repository::PutMode;
use pgmahout_types::repository::manifest::PackKind;
use pgmahout_types::repository::{CondemnedId, PackId};
use pgmahout_types::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use proptest::prelude::*;

use super::*;
use crate::physical::stanza::StanzaObject;
use crate::physical::stanza::support::{self, MadeBackup};
use crate::physical::wal::WalArchive;

const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// A cluster whose repository is real, and whose clock is not.
struct World {
    _directory: tempfile::TempDir,
    root: PathBuf,
    repository: PhysicalRepository,
    now: Timestamp,
    timeline: TimelineId,
    /// The first position that is not written yet.
    lsn: u64,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    backups: Vec<MadeBackup>,
    /// Every moment, and where the server was.
    moments: Vec<(Timestamp, TimelineId, u64)>,
    /// Objects of interrupted backups that are young.
    young: BTreeSet<PathBuf>,
    next_id: u8,
}

/// What is on the disk.
#[derive(Debug, Default)]
struct Disk {
    packs: BTreeSet<PackId>,
    maps: BTreeSet<PackId>,
    manifests: BTreeSet<Label>,
    condemned: BTreeSet<CondemnedId>,
    segments: BTreeSet<(TimelineId, u64)>,
    /// Unfinished segments and backup histories, by segment.
    companions: BTreeSet<(TimelineId, u64)>,
}

fn files(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files(&entry.path(), into);
        } else {
            into.push(entry.path());
        }
    }
}

impl World {
    async fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let repository = support::init(directory.path(), "main").await.unwrap().repository;
        Self {
            root: directory.path().to_owned(),
            _directory: directory,
            repository,
            now: Timestamp::now() - SignedDuration::from_hours(24 * 200),
            timeline: TimelineId::FIRST,
            lsn: 10 * SIZE.bytes(),
            histories: BTreeMap::new(),
            backups: Vec::new(),
            moments: Vec::new(),
            young: BTreeSet::new(),
            next_id: 1,
        }
    }

    async fn put(&self, name: &str) -> PathBuf {
        let bytes = vec![7; 10];
        self.repository
            .repository()
            .put_bytes(name, bytes, PutMode::Create)
            .await
            .unwrap();
        self.root.join(name)
    }

    /// Objects look as if they had been written when the cluster's clock says so.
    fn date(&self, path: &Path) {
        let file = std::fs::File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::from(self.now)).unwrap();
    }

    async fn archive(&self, file: WalFileName) {
        let path = self.put(&self.repository.wal_name(file)).await;
        self.date(&path);
    }

    async fn write(&mut self, bytes: u64) {
        self.now += SignedDuration::from_secs(1);
        let first = self.lsn / SIZE.bytes();
        self.lsn += bytes;
        for number in first..self.lsn / SIZE.bytes() {
            let segment = SegmentName::new(self.timeline, number, SIZE).unwrap();
            self.archive(segment.into()).await;
        }
        let archived = self.lsn / SIZE.bytes() * SIZE.bytes();
        if archived > first * SIZE.bytes() {
            self.moments.push((self.now, self.timeline, archived));
        }
    }

    fn id(&mut self) -> PackId {
        self.next_id += 1;
        PackId::from_bytes([self.next_id; 16])
    }

    async fn put_packs(&mut self) -> Vec<(PackId, PackKind)> {
        let packs = [(self.id(), PackKind::Data), (self.id(), PackKind::Map)];
        for (id, kind) in packs {
            let (_, name) = self.repository.pack_object(kind, id);
            let path = self.put(&name).await;
            self.date(&path);
        }
        packs.to_vec()
    }

    async fn back_up(&mut self, pinned: bool, share: usize) {
        let start = self.lsn;
        self.write(SIZE.bytes() / 2).await;
        let stop = self.lsn;
        let rest = SIZE.bytes() - self.lsn % SIZE.bytes();
        self.write(rest).await;
        self.now += SignedDuration::from_secs(1);
        let mut packs = self.put_packs().await;
        // It builds on the newest one: on some of its packs.
        if let Some(parent) = self.backups.last() {
            packs.extend(parent.packs.iter().skip(share % 3).copied());
        }
        let made = MadeBackup {
            label: Label::new(self.now, u16::from(self.next_id)),
            time: self.now,
            timeline: self.timeline,
            start: Lsn::new(start),
            stop: Lsn::new(stop),
            packs,
            pinned,
        };
        let basis = self.repository.head().await.unwrap().epoch;
        let manifest = made.write(&self.repository).await.unwrap();
        let mut entry = manifest.entry();
        entry.pinned = pinned;
        self.repository
            .publish(&entry, basis, &manifest.references())
            .await
            .unwrap();
        self.date(&self.root.join(self.repository.names().manifest(made.label)));
        let history = WalFileName::BackupHistory {
            segment: made.wal().first,
            offset: 40,
        };
        self.archive(history).await;
        self.backups.push(made);
    }

    fn history(&self, timeline: TimelineId) -> TimelineHistory {
        let known = self.histories.get(&timeline).cloned();
        known.unwrap_or_else(|| TimelineHistory::root(timeline))
    }

    /// The segments from a backup to a position of a timeline: each from the newest timeline that has a part of it.
    fn way(&self, backup: &MadeBackup, timeline: TimelineId, last: u64) -> Vec<(TimelineId, u64)> {
        let history = self.history(timeline);
        let first = backup.start.as_u64() / SIZE.bytes();
        (first..=last)
            .map(|number| {
                let last_byte = Lsn::new((number + 1) * SIZE.bytes() - 1);
                (history.timeline_at(last_byte).max(backup.timeline), number)
            })
            .collect()
    }

    fn reaches(&self, backup: &MadeBackup, timeline: TimelineId) -> bool {
        self.history(timeline).descends_from(backup.timeline, backup.stop)
    }

    fn can_restore(&self, disk: &Disk, timeline: TimelineId, lsn: u64) -> bool {
        let listed = self
            .backups
            .iter()
            .filter(|backup| disk.manifests.contains(&backup.label));
        listed
            .filter(|backup| backup.stop.as_u64() <= lsn && self.reaches(backup, timeline))
            .any(|backup| {
                let way = self.way(backup, timeline, (lsn - 1) / SIZE.bytes());
                way.iter().all(|place| disk.segments.contains(place))
            })
    }

    async fn recover(&mut self, choice: usize) {
        let disk = self.disk();
        if self.moments.is_empty() {
            return;
        }
        let (_, timeline, lsn) = self.moments[choice % self.moments.len()];
        let switchpoint = lsn - SIZE.bytes() / 3;
        if !self.can_restore(&disk, timeline, lsn) || !self.can_restore(&disk, timeline, switchpoint) {
            return;
        }
        let newest = self.histories.keys().copied().max().unwrap_or(TimelineId::FIRST);
        let next = newest.max(self.timeline).next().unwrap();
        let Ok(history) = self
            .history(timeline)
            .branch(next, Lsn::new(switchpoint), "a test")
        else {
            return;
        };
        // The timeline that is left ends in a segment that is not whole.
        let left = SegmentName::containing(self.timeline, Lsn::new(self.lsn), SIZE);
        let partial = self.repository.wal_name(WalFileName::Partial(left));
        if !self.root.join(&partial).exists() {
            self.archive(WalFileName::Partial(left)).await;
        }
        let archive = WalArchive::new(self.repository.clone());
        archive.put_history(next, history.render().into()).await.unwrap();
        let name = self.repository.wal_name(WalFileName::TimelineHistory(next));
        self.date(&self.root.join(name));
        self.histories.insert(next, history);
        self.timeline = next;
        self.lsn = switchpoint;
    }

    /// A segment is lost.
    fn lose(&self, choice: usize) {
        let disk = self.disk();
        let all: Vec<_> = disk.segments.iter().collect();
        if let Some((timeline, number)) = all.get(choice % all.len().max(1)) {
            let segment = SegmentName::new(*timeline, *number, SIZE).unwrap();
            std::fs::remove_file(self.root.join(self.repository.wal_name(segment.into()))).unwrap();
        }
    }

    /// A backup is interrupted: what it has written is not listed.
    async fn interrupt(&mut self, publish_fails: bool) {
        let packs = self.put_packs().await;
        let mut left: Vec<String> = packs
            .iter()
            .map(|(id, kind)| self.repository.pack_object(*kind, *id).1)
            .collect();
        if publish_fails {
            let made = MadeBackup {
                label: Label::new(self.now, u16::from(self.next_id)),
                time: self.now,
                timeline: self.timeline,
                start: Lsn::new(self.lsn),
                stop: Lsn::new(self.lsn + 100),
                packs,
                pinned: false,
            };
            made.write(&self.repository).await.unwrap();
            left.push(self.repository.names().manifest(made.label));
        }
        for name in left {
            let path = self.root.join(name);
            let file = std::fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(SystemTime::now()).unwrap();
            self.young.insert(path);
        }
    }

    fn let_a_day_go_by(&mut self) {
        for path in std::mem::take(&mut self.young) {
            if path.exists() {
                self.date(&path);
            }
        }
    }

    fn disk(&self) -> Disk {
        let mut disk = Disk::default();
        let mut found = Vec::new();
        files(&self.root.join("stanza/main"), &mut found);
        for path in found.iter().filter(|path| !self.young.contains(*path)) {
            let name = path.strip_prefix(&self.root).unwrap().to_str().unwrap();
            let relative = self.repository.names().relative(name).unwrap();
            match StanzaObject::parse(relative) {
                Some(StanzaObject::Pack(id)) => drop(disk.packs.insert(id)),
                Some(StanzaObject::Map(id)) => drop(disk.maps.insert(id)),
                Some(StanzaObject::Manifest(label)) => drop(disk.manifests.insert(label)),
                Some(StanzaObject::Condemned(id)) => drop(disk.condemned.insert(id)),
                Some(StanzaObject::Wal(WalFileName::Segment(segment))) => {
                    disk.segments
                        .insert((segment.timeline(), segment.number(SIZE).unwrap()));
                }
                Some(StanzaObject::Wal(WalFileName::TimelineHistory(_))) => {}
                Some(StanzaObject::Wal(other)) => {
                    let segment = other.segment().unwrap();
                    disk.companions
                        .insert((segment.timeline(), segment.number(SIZE).unwrap()));
                }
                _ => {}
            }
        }
        disk
    }

    async fn expire(&mut self, policy: &Policy) -> Result<(), TestCaseError> {
        let before = self.disk();
        let restorable: Vec<_> = self
            .moments
            .iter()
            .copied()
            .filter(|(_, timeline, lsn)| self.can_restore(&before, *timeline, *lsn))
            .collect();
        let wal_of = |backup: &MadeBackup| {
            let wal = backup.wal();
            let numbers = wal.first.number(SIZE).unwrap()..=wal.last.number(SIZE).unwrap();
            numbers
                .map(|number| (backup.timeline, number))
                .collect::<Vec<_>>()
        };
        let whole = |disk: &Disk, backup: &MadeBackup| {
            wal_of(backup).iter().all(|place| disk.segments.contains(place))
        };
        let good_before: BTreeSet<Label> = self
            .backups
            .iter()
            .filter(|backup| whole(&before, backup))
            .map(|backup| backup.label)
            .collect();
        let token = CancellationToken::new();
        let plan = propose(&self.repository, policy, self.now, &TimeZone::UTC, &token)
            .await
            .unwrap();
        carry_out(&self.repository, &plan, &token).await.unwrap();
        let after = self.disk();
        let listed: BTreeSet<Label> = self.repository.head().await.unwrap().labels().collect();
        prop_assert_eq!(&listed, &plan.retained.kept());
        for backup in &self.backups {
            if backup.pinned {
                prop_assert!(listed.contains(&backup.label), "a pinned backup is gone");
            }
            if !listed.contains(&backup.label) {
                continue;
            }
            // All that it is made of.
            prop_assert!(after.manifests.contains(&backup.label));
            for (id, kind) in &backup.packs {
                let there = match kind {
                    PackKind::Data => after.packs.contains(id),
                    PackKind::Map => after.maps.contains(id),
                };
                prop_assert!(there, "{kind:?} pack {id} of {} is gone", backup.label);
            }
            self.repository.read_manifest(backup.label).await.unwrap();
            if good_before.contains(&backup.label) {
                prop_assert!(whole(&after, backup), "WAL of {} is gone", backup.label);
            }
        }
        let good = listed.intersection(&good_before).count();
        prop_assert!(good >= good_before.len().min(policy.minimum.max(1) as usize));
        if let Some(begin) = plan.retained.window_begin {
            for (at, timeline, lsn) in restorable {
                if at > begin || (at == begin && policy.recovery_window.is_some()) {
                    prop_assert!(
                        self.can_restore(&after, timeline, lsn),
                        "{at} on timeline {timeline} at {} cannot be restored any more, window since {begin}",
                        Lsn::new(lsn)
                    );
                }
            }
        }
        self.backups.retain(|backup| listed.contains(&backup.label));
        // The next cycle, with which the last of what is not kept goes.
        let plan = propose(&self.repository, policy, self.now, &TimeZone::UTC, &token)
            .await
            .unwrap();
        carry_out(&self.repository, &plan, &token).await.unwrap();
        let listed: BTreeSet<Label> = self.repository.head().await.unwrap().labels().collect();
        self.backups.retain(|backup| listed.contains(&backup.label));
        self.nothing_else(&plan).await
    }

    /// That nothing is left that no backup and no point of the window needs.
    async fn nothing_else(&self, plan: &Plan) -> Result<(), TestCaseError> {
        if self.backups.is_empty() {
            // By what should it be told?
            return Ok(());
        }
        let disk = self.disk();
        let of = |kind| -> BTreeSet<PackId> {
            let packs = self.backups.iter().flat_map(|backup| &backup.packs);
            packs
                .filter(|(_, found)| *found == kind)
                .map(|(id, _)| *id)
                .collect()
        };
        prop_assert_eq!(&disk.packs, &of(PackKind::Data));
        prop_assert_eq!(&disk.maps, &of(PackKind::Map));
        let labels: BTreeSet<Label> = self.backups.iter().map(|backup| backup.label).collect();
        prop_assert_eq!(&disk.manifests, &labels);
        let head = self.repository.head().await.unwrap();
        let lists: BTreeSet<CondemnedId> = head.condemned.iter().map(|list| list.list).collect();
        prop_assert_eq!(&disk.condemned, &lists);
        let mut wanted: BTreeSet<(TimelineId, u64)> = BTreeSet::new();
        for backup in &self.backups {
            let wal = backup.wal();
            let numbers = wal.first.number(SIZE).unwrap()..=wal.last.number(SIZE).unwrap();
            wanted.extend(numbers.map(|number| (backup.timeline, number)));
        }
        let last = disk
            .segments
            .iter()
            .chain(&disk.companions)
            .map(|(_, number)| *number);
        let last = last.max().unwrap_or(0);
        for (timeline, label) in &plan.retained.bases {
            let base = self.backups.iter().find(|backup| backup.label == *label).unwrap();
            wanted.extend(self.way(base, *timeline, last));
            // The segment of a switch is on both timelines.
            for ancestor in self.history(*timeline).ancestors() {
                let left = ancestor.switchpoint.as_u64() / SIZE.bytes();
                wanted.insert((ancestor.timeline, left));
            }
        }
        for place in disk.segments.iter().chain(&disk.companions) {
            prop_assert!(
                wanted.contains(place),
                "{place:?} stays for nothing: {:?}",
                plan.retained
            );
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Event {
    Wait(i64),
    Write(u64),
    BackUp(bool, usize),
    Recover(usize),
    Lose(usize),
    Interrupt(bool),
    Day,
    Unpin(usize),
    Expire(Policy),
}

fn policies() -> impl Strategy<Value = Policy> {
    let days = |most: u64| prop::option::of((1..most).prop_map(|days| Duration::from_hours(24 * days)));
    (
        0..4_u32,
        0..4_u32,
        0..3_u32,
        0..3_u32,
        days(5),
        days(20),
        1..4_u32,
    )
        .prop_map(
            |(last, daily, weekly, monthly, within, recovery_window, minimum)| Policy {
                last,
                daily,
                weekly,
                monthly,
                within,
                recovery_window,
                minimum,
            },
        )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1..60_i64).prop_map(Event::Wait),
        4 => (1..4 * SIZE.bytes()).prop_map(Event::Write),
        5 => (prop::bool::weighted(0.15), any::<usize>()).prop_map(|(pinned, share)| Event::BackUp(pinned, share)),
        2 => any::<usize>().prop_map(Event::Recover),
        1 => any::<usize>().prop_map(Event::Lose),
        1 => any::<bool>().prop_map(Event::Interrupt),
        1 => Just(Event::Day),
        1 => any::<usize>().prop_map(Event::Unpin),
        3 => policies().prop_map(Event::Expire),
    ];
    prop::collection::vec(event, 5..40)
}

async fn live(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut world = World::new().await;
    for event in events {
        match event {
            Event::Wait(hours) => world.now += SignedDuration::from_hours(hours),
            Event::Write(bytes) => world.write(bytes).await,
            Event::BackUp(pinned, share) => world.back_up(pinned, share).await,
            Event::Recover(choice) => world.recover(choice).await,
            Event::Lose(choice) => world.lose(choice),
            Event::Interrupt(publish_fails) => world.interrupt(publish_fails).await,
            Event::Day => world.let_a_day_go_by(),
            Event::Unpin(choice) => {
                let count = world.backups.len().max(1);
                if let Some(backup) = world.backups.get_mut(choice % count) {
                    backup.pinned = false;
                    let label = backup.label;
                    let unpinned = world
                        .repository
                        .swap(|head| head.pin(label, false).map_err(StanzaError::from));
                    unpinned.await.unwrap();
                }
            }
            Event::Expire(policy) => world.expire(&policy).await?,
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        // `PROPTEST_CASES` asks for more.
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::with_cases(std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24))
    })]

    #[test]
    fn every_kept_backup_and_every_point_of_the_window_stays_and_nothing_else_does(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live(events))?;
    }
}
