//! A small model checker: every interleaving of two backups, two collections and a reader, over a store whose
//! only atomic operation is to create an object where nothing is.
//!
//! It drives the functions of [`super`], not a copy of them. Any actor may stop for ever between two steps,
//! and any lease may run out at any time while its owner goes on as if nothing had happened. Age protects
//! nothing here: what no live lease protects is old enough to be collected.
//!
//! [`Broken`] names the rules that can be left out. For each of them the checker must find a violation: see
//! the table at the end.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use jiff::{SignedDuration, Timestamp};
use pgmahout_types::repository::head::{Clearance, PublishError};
use pgmahout_types::repository::manifest::WalRange;
use pgmahout_types::repository::{
    BackupEntry, CondemnedId, CondemnedObjects, Digest, Head, Label, Method, Nonce, PackId,
};
use pgmahout_types::version::ServerVersion;
use pgmahout_types::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId};

use super::{References, conflict, remove};

/// A set of objects, or of labels: one bit each.
type Mask = u32;
type HeadId = u16;

/// Labels: two old backups, and the two that are being made.
const OLD: [usize; 2] = [0, 1];
const LABELS: usize = 4;
const ALL_LABELS: Mask = 0b1111;

// Objects. Packs of the first old backup alone, of both, of the second alone; each new backup's own; one that
// an interrupted backup left.
const PACK_FIRST: Mask = 1 << 0;
const PACK_SHARED: Mask = 1 << 1;
const PACK_SECOND: Mask = 1 << 2;
const PACK_ORPHAN: Mask = 1 << 5;
const WAL_FIRST: u32 = 10;

fn own_pack(publisher: usize) -> Mask {
    1 << (3 + publisher)
}

fn manifest(label: usize) -> Mask {
    1 << (6 + label)
}

/// The segments in which the backups start. The first of the new ones began before the second old one did.
const STARTS: [u32; LABELS] = [0, 2, 1, 3];

/// The WAL from the start of a backup on; segment 3 is the last.
fn wal_from(label: usize) -> Mask {
    wal_since(STARTS[label])
}

fn wal_since(first: u32) -> Mask {
    (first..4).fold(0, |mask, segment| mask | 1 << (WAL_FIRST + segment))
}

/// The first segment that these backups need.
fn floor(labels: Mask) -> u32 {
    (0..LABELS)
        .filter(|label| labels & 1 << label != 0)
        .map(|label| STARTS[label])
        .min()
        .unwrap_or(0)
}

const WAL: Mask = 0b1111 << WAL_FIRST;

fn bits(mask: Mask) -> impl Iterator<Item = u32> {
    (0..32).filter(move |bit| mask & 1 << bit != 0)
}

fn packs(mask: Mask) -> BTreeSet<PackId> {
    bits(mask & 0b11_1111)
        .map(|bit| PackId::from_bytes([bit as u8; 16]))
        .collect()
}

/// The condemned list that names these objects.
fn list(collector: usize, mask: Mask) -> CondemnedObjects {
    let mut list = CondemnedObjects::new(list_id(collector), THEN);
    list.packs = packs(mask);
    list.manifests = (0..LABELS)
        .filter(|index| mask & manifest(*index) != 0)
        .map(label)
        .collect();
    list.wal = bits(mask & WAL)
        .map(|bit| segment(u64::from(bit - WAL_FIRST)))
        .map(|segment| WalRange {
            first: segment,
            last: segment,
        })
        .collect();
    list
}

fn list_id(collector: usize) -> CondemnedId {
    CondemnedId::from_bytes([collector as u8; 16])
}

fn list_index(id: CondemnedId) -> usize {
    usize::from(id.as_bytes()[0])
}

fn label(index: usize) -> Label {
    Label::new(THEN + SignedDuration::from_hours(index as i64), 0)
}

fn entry(index: usize) -> BackupEntry {
    let segment = segment(u64::from(STARTS[index]));
    let lsn = segment.start(SegmentSize::DEFAULT).expect("of this size");
    BackupEntry {
        label: label(index),
        manifest: Digest::from_bytes([index as u8; 32]),
        method: Method::Local,
        system_identifier: SystemIdentifier::new(1),
        server_version: ServerVersion::from_number(180_000),
        timeline: TimelineId::FIRST,
        start_lsn: lsn,
        stop_lsn: Lsn::new(lsn.as_u64() + 100),
        wal: WalRange {
            first: segment,
            last: segment,
        },
        start_time: THEN,
        stop_time: THEN,
        parent: None,
        files: 0,
        bytes: 0,
        read: 0,
        new: 0,
        stored: 0,
        findings: 0,
        pinned: false,
        annotations: BTreeMap::new(),
        verified: None,
        drilled: None,
        other: serde_json::Map::new(),
    }
}

fn references(index: usize, mask: Mask) -> References {
    References {
        label: label(index),
        packs: packs(mask),
        maps: BTreeSet::new(),
        wal: entry(index).wal,
    }
}

fn labels(mask: Mask) -> BTreeSet<Label> {
    (0..LABELS)
        .filter(|index| mask & 1 << index != 0)
        .map(label)
        .collect()
}

fn segment(number: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, number, SegmentSize::DEFAULT).expect("a small number")
}

/// A rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A backup is published without looking at what was condemned since it began.
    NoRevalidation,
    /// A backup takes its epoch only after it has chosen what to reuse.
    EpochAfterLooking,
    /// A backup is compared only with lists that were condemned since it began, not with those that were still
    /// being deleted.
    OnlyNewerLists,
    /// A backup is published whatever has become of its WAL.
    WalIgnored,
    /// A condemnation is put on any head.
    CondemnedOnAnyHead,
    /// Garbage is deleted without being condemned.
    NoCondemnation,
    /// Garbage is deleted before it is condemned.
    DeletedBeforeCondemned,
    /// A list is marked as deleted before its objects are.
    MarkedBeforeDeleted,
    /// Leases are not looked at.
    LeasesIgnored,
    /// Leases are looked at before the head.
    LeasesBeforeHead,
    /// A reader writes its lease after it has read the head.
    LeaseAfterHead,
    /// Forgotten lists leave no trace.
    ForgottenWithoutTrace,
    /// A plan to remove backups is carried out whatever has become of those that it keeps.
    RemovedWhatever,
    /// The head is overwritten.
    HeadOverwritten,
    /// Nobody goes on with what a crashed collection had condemned.
    NobodyTakesOver,
    /// Only what removed backups reference is collected.
    OrphansStay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Publishing {
    Start,
    /// The orphan was found before the epoch was read: only when that rule is broken.
    Looked {
        adopted: bool,
    },
    Based {
        basis: HeadId,
        adopted: bool,
    },
    Written {
        basis: HeadId,
    },
    HasHead {
        basis: HeadId,
        read: HeadId,
    },
    Published,
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Collecting {
    Start,
    HasHead(HeadId),
    /// A plan was made and lost its race.
    Planned(Change),
    Replanned {
        plan: Change,
        read: HeadId,
    },
    /// Leases were looked at too early: only when that rule is broken.
    LeasesFirst(Seen),
    Removed,
    Basis {
        read: HeadId,
        seen: Option<Seen>,
    },
    Leased {
        read: HeadId,
        seen: Seen,
    },
    Listed {
        basis: Mask,
        floor: u8,
    },
    Condemning {
        basis: Mask,
        floor: u8,
        read: HeadId,
    },
    Deleting,
    /// The lists are marked as deleted already: only when that rule is broken.
    Late(Mask),
    Finishing,
    Done,
}

/// The live leases that a collection saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Seen {
    labels: Mask,
    runs: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reading {
    Start,
    Leased(usize),
    /// The head was read before the lease: only when that rule is broken.
    HasHead(usize),
    AtWork(usize),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    head: HeadId,
    objects: Mask,
    /// Everything that any head ever condemned.
    condemned: Mask,
    /// The lists of the collections: two that race, and one that comes when everything is over.
    lists: [Mask; 3],
    publishers: [Publishing; 2],
    /// What the new backups reference, once they know.
    references: [Mask; 2],
    /// Live leases: of the publishers (bits 0, 1) and the reader (bit 2).
    live: u8,
    /// Labels that the publishers' leases name.
    parents: [Mask; 2],
    collectors: [Collecting; 3],
    reader: Reading,
}

const READER: u8 = 1 << 2;

impl World {
    fn references(&self, label: usize) -> Mask {
        match label {
            0 => PACK_FIRST | PACK_SHARED | manifest(0),
            1 => PACK_SECOND | PACK_SHARED | manifest(1),
            _ => self.references[label - 2],
        }
    }

    fn references_of(&self, labels: Mask) -> Mask {
        (0..LABELS)
            .filter(|index| labels & 1 << index != 0)
            .fold(0, |mask, label| mask | self.references(label))
    }

    fn seen(&self) -> Seen {
        let mut seen = Seen {
            labels: 0,
            runs: self.live & 0b11,
        };
        for publisher in 0..2 {
            if self.live & 1 << publisher != 0 {
                seen.labels |= self.parents[publisher];
            }
        }
        if self.live & READER != 0
            && let Reading::Leased(label) | Reading::AtWork(label) = self.reader
        {
            seen.labels |= 1 << label;
        }
        seen
    }
}

/// A change of the head, for remembering its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Change {
    Publish {
        label: usize,
        references: Mask,
        basis: u64,
        lists: [Mask; 3],
    },
    Remove {
        going: Mask,
        keep: Mask,
    },
    Forget,
    Condemn {
        basis: Mask,
        collector: usize,
        floor: u8,
    },
    Finish {
        collector: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changed {
    To(HeadId),
    /// There is nothing to change.
    Same,
    Refused,
}

/// All heads that occur, each once.
struct Heads {
    all: Vec<Head>,
    listed: Vec<Mask>,
    ids: HashMap<String, HeadId>,
    results: HashMap<(HeadId, Change), Changed>,
    broken: Broken,
}

const THEN: Timestamp = Timestamp::UNIX_EPOCH;

impl Heads {
    fn new(broken: Broken) -> Self {
        Self {
            all: Vec::new(),
            listed: Vec::new(),
            ids: HashMap::new(),
            results: HashMap::new(),
            broken,
        }
    }

    fn id(&mut self, head: Head) -> HeadId {
        let key = serde_json::to_string(&head).expect("a head");
        match self.ids.entry(key) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let id = HeadId::try_from(self.all.len()).expect("few heads");
                let listed = (0..LABELS)
                    .filter(|index| head.backups.iter().any(|backup| backup.label == label(*index)))
                    .fold(0, |mask, index| mask | 1 << index);
                self.all.push(head);
                self.listed.push(listed);
                *entry.insert(id)
            }
        }
    }

    fn head(&self, id: HeadId) -> &Head {
        &self.all[usize::from(id)]
    }

    fn listed(&self, id: HeadId) -> Mask {
        self.listed[usize::from(id)]
    }

    fn change(&mut self, from: HeadId, change: Change) -> Changed {
        if let Some(known) = self.results.get(&(from, change)) {
            return *known;
        }
        let head = self.head(from).clone();
        let changed = match self.apply(&head, change) {
            Some(next) if next == head => Changed::Same,
            Some(mut next) => {
                next.advance(Nonce::from_bytes([0; 16]), THEN, "model");
                Changed::To(self.id(next))
            }
            None => Changed::Refused,
        };
        self.results.insert((from, change), changed);
        changed
    }

    /// The head after a change; `None` where it is refused.
    fn apply(&self, head: &Head, change: Change) -> Option<Head> {
        let broken = self.broken;
        let mut next = head.clone();
        match change {
            Change::Publish {
                label: index,
                references: mask,
                basis,
                lists,
            } => {
                let wal_ignored = broken == Broken::WalIgnored;
                if wal_ignored {
                    next.wal_floor.clear();
                }
                let mut clearance = Clearance {
                    epoch: if broken == Broken::NoRevalidation {
                        head.epoch
                    } else {
                        basis
                    },
                    checked: BTreeSet::new(),
                };
                if matches!(broken, Broken::NoRevalidation | Broken::OnlyNewerLists) {
                    let older = head.condemned.iter().filter(|list| list.epoch <= clearance.epoch);
                    clearance.checked = older.map(|list| list.list).collect();
                }
                let references = references(index, mask);
                match next.publish(entry(index), &clearance) {
                    Err(PublishError::Unchecked { lists: unchecked, .. }) => {
                        for id in unchecked {
                            let mut list = list(list_index(id), lists[list_index(id)]);
                            if wal_ignored {
                                list.wal.clear();
                            }
                            if conflict(&list, &references).is_some() {
                                return None;
                            }
                            clearance.checked.insert(id);
                        }
                        next.publish(entry(index), &clearance).ok()?;
                    }
                    published => published.ok()?,
                }
                next.wal_floor.clone_from(&head.wal_floor);
            }
            Change::Remove { going, keep } => {
                let keep = if broken == Broken::RemovedWhatever {
                    0
                } else {
                    keep
                };
                remove(&mut next, &labels(going), &labels(keep)).ok()?;
            }
            Change::Forget => {
                next.forget_deleted(THEN + SignedDuration::from_hours(24 * 365));
                if broken == Broken::ForgottenWithoutTrace {
                    next.forgotten = 0;
                }
            }
            Change::Condemn {
                basis,
                collector,
                floor,
            } => {
                let basis = if broken == Broken::CondemnedOnAnyHead {
                    ALL_LABELS
                } else {
                    basis
                };
                let floors = BTreeMap::from([(TimelineId::FIRST, segment(u64::from(floor)))]);
                next.condemn(list_id(collector), &labels(basis), &floors, THEN)
                    .ok()?;
            }
            Change::Finish { collector } => {
                if next.condemned.iter().any(|list| list.list == list_id(collector)) {
                    next.mark_deleted(list_id(collector), THEN).ok()?;
                }
            }
        }
        Some(next)
    }
}

/// What the actors do, for the trace of a violation.
type Step = (&'static str, usize);

struct Checker {
    broken: Broken,
    heads: Heads,
    visited: HashSet<World, BuildHasherDefault<Mixer>>,
    /// Ends of collections that were tried already.
    settled: HashSet<(HeadId, Mask, [Mask; 3], [Mask; 2])>,
    trace: Vec<Step>,
    actors: Actors,
    start: World,
}

/// Who takes part.
#[derive(Debug, Clone, Copy)]
struct Actors {
    publishers: usize,
    collectors: usize,
    reader: bool,
}

/// A violation and the steps that lead to it.
#[derive(Debug)]
struct Violation {
    what: String,
    trace: Vec<Step>,
}

impl Checker {
    /// Explores everything, and says how many states there are.
    fn run(broken: Broken, actors: Actors) -> Result<usize, Violation> {
        let mut checker = Self::new(broken, actors);
        match checker.explore(checker.start) {
            Ok(()) => Ok(checker.visited.len()),
            Err(what) => Err(Violation {
                what,
                trace: checker.trace,
            }),
        }
    }

    fn new(broken: Broken, actors: Actors) -> Self {
        let mut heads = Heads::new(broken);
        let mut head = Head::first(Nonce::from_bytes([0; 16]), THEN, "model");
        head.backups = OLD.map(entry).into();
        let world = World {
            head: heads.id(head),
            objects: PACK_FIRST | PACK_SHARED | PACK_SECOND | PACK_ORPHAN | manifest(0) | manifest(1) | WAL,
            condemned: 0,
            lists: [0; 3],
            publishers: [Publishing::Start; 2],
            references: [0; 2],
            live: 0,
            parents: [0; 2],
            collectors: [Collecting::Start; 3],
            reader: Reading::Start,
        };
        Self {
            broken,
            heads,
            visited: HashSet::default(),
            settled: HashSet::new(),
            trace: Vec::new(),
            actors,
            start: world,
        }
    }

    /// One way from the start to the end, at random.
    fn walk(&mut self, seed: u64) -> Result<(), String> {
        let mut world = self.start;
        let mut random = seed;
        self.trace.clear();
        loop {
            self.check(&world)?;
            let mut next = Vec::new();
            self.successors(&world, &mut next);
            if next.is_empty() {
                return Ok(());
            }
            // Knuth's generator, whose upper bits are good.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (step, after) = next[(random >> 33) as usize % next.len()];
            self.trace.push(step);
            world = after;
        }
    }

    fn explore(&mut self, world: World) -> Result<(), String> {
        if !self.visited.insert(world) {
            return Ok(());
        }
        self.check(&world)?;
        let mut next = Vec::new();
        self.successors(&world, &mut next);
        for (step, world) in next {
            self.trace.push(step);
            self.explore(world)?;
            self.trace.pop();
        }
        Ok(())
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        let listed = self.heads.listed(world.head);
        if listed == 0 {
            return Err("no backup is left".to_owned());
        }
        for label in (0..LABELS).filter(|label| listed & 1 << label != 0) {
            let references = world.references(label);
            if references & !world.objects != 0 {
                return Err(format!("backup {label} is listed, and objects of it are deleted"));
            }
            if references & world.condemned != 0 {
                return Err(format!(
                    "backup {label} is listed, and objects of it are condemned"
                ));
            }
            if wal_from(label) & !world.objects != 0 {
                return Err(format!("backup {label} is listed, and WAL of it is deleted"));
            }
        }
        if let Reading::AtWork(label) = world.reader
            && world.live & READER != 0
            && (world.references(label) | wal_from(label)) & !world.objects != 0
        {
            return Err(format!(
                "the reader of backup {label} is alive, and objects are deleted"
            ));
        }
        self.check_progress(world)
    }

    /// Everybody crashes here, and some time later a collection runs alone: then nothing may be left but
    /// what is referenced.
    fn check_progress(&mut self, world: &World) -> Result<(), String> {
        let key = (world.head, world.objects, world.lists, world.references);
        if !self.settled.insert(key) {
            return Ok(());
        }
        let mut end = World {
            live: 0,
            publishers: [Publishing::Refused; 2],
            reader: Reading::Done,
            ..*world
        };
        end.collectors = [Collecting::Done, Collecting::Done, Collecting::Removed];
        while end.collectors[2] != Collecting::Done {
            let mut next = Vec::new();
            self.collect(&end, 2, &mut next);
            end = next
                .pop()
                .ok_or("a collection that runs alone comes to a halt")?
                .1;
        }
        let listed = self.heads.listed(end.head);
        let wanted = end.references_of(listed) | wal_since(floor(listed));
        if end.objects & !wanted != 0 {
            return Err(format!("garbage stays for ever: {:b}", end.objects & !wanted));
        }
        if self.unfinished(end.head) != 0 && matches!(self.broken, Broken::Nothing | Broken::NobodyTakesOver)
        {
            return Err("a list stays unfinished for ever".to_owned());
        }
        Ok(())
    }

    fn successors(&mut self, world: &World, next: &mut Vec<(Step, World)>) {
        for publisher in 0..self.actors.publishers {
            self.publish(world, publisher, next);
        }
        for collector in 0..self.actors.collectors {
            self.collect(world, collector, next);
        }
        if self.actors.reader {
            self.read(world, next);
        }
        for owner in 0..3 {
            if world.live & 1 << owner != 0 {
                let expired = World {
                    live: world.live & !(1 << owner),
                    ..*world
                };
                next.push((("lease runs out", owner), expired));
            }
        }
    }

    /// Creates the head after `read`: `None` where somebody else did.
    fn swap(&self, world: &World, read: HeadId, to: HeadId) -> Option<HeadId> {
        (world.head == read || self.broken == Broken::HeadOverwritten).then_some(to)
    }

    fn publish(&mut self, world: &World, publisher: usize, next: &mut Vec<(Step, World)>) {
        let own_label = 2 + publisher;
        let mut go = |what, after: Publishing, change: &dyn Fn(&mut World)| {
            let mut world = *world;
            world.publishers[publisher] = after;
            change(&mut world);
            next.push(((what, publisher), world));
        };
        match world.publishers[publisher] {
            Publishing::Start if self.broken == Broken::EpochAfterLooking => {
                if world.objects & PACK_ORPHAN != 0 {
                    go("looks", Publishing::Looked { adopted: true }, &|_| ());
                }
            }
            Publishing::Start | Publishing::Looked { .. } => {
                let adopted = matches!(world.publishers[publisher], Publishing::Looked { adopted: true });
                let listed = self.heads.listed(world.head);
                let basis = world.head;
                let parents = (0..LABELS).filter(|label| listed & 1 << label != 0);
                for parent in parents.map(Some).chain([None]) {
                    go("begins", Publishing::Based { basis, adopted }, &|world| {
                        world.live |= 1 << publisher;
                        world.parents[publisher] = parent.map_or(0, |parent| 1 << parent);
                    });
                }
            }
            Publishing::Based { basis, adopted } => {
                let parent = world.parents[publisher];
                let manifests = (0..LABELS).fold(0, |mask, label| mask | manifest(label));
                let own = own_pack(publisher) | manifest(own_label);
                let references = world.references_of(parent) & !manifests | own;
                // A parent that cannot be read any more is an error, and the backup ends.
                if world.references_of(parent) & !world.objects != 0 {
                    go("gives up", Publishing::Refused, &|world| {
                        world.live &= !(1 << publisher);
                    });
                    return;
                }
                let write = |adopt: Mask| {
                    move |world: &mut World| {
                        world.objects |= own;
                        world.references[publisher] = references | adopt;
                    }
                };
                go(
                    "writes",
                    Publishing::Written { basis },
                    &write(if adopted { PACK_ORPHAN } else { 0 }),
                );
                if !adopted && world.objects & PACK_ORPHAN != 0 {
                    go(
                        "adopts and writes",
                        Publishing::Written { basis },
                        &write(PACK_ORPHAN),
                    );
                }
            }
            Publishing::Written { basis } => {
                let read = world.head;
                go("reads the head", Publishing::HasHead { basis, read }, &|_| ());
            }
            Publishing::HasHead { basis, read } => {
                let change = Change::Publish {
                    label: own_label,
                    references: world.references[publisher],
                    basis: self.heads.head(basis).epoch,
                    lists: world.lists,
                };
                let drop_lease = |world: &mut World| world.live &= !(1 << publisher);
                match self.heads.change(read, change) {
                    Changed::To(to) => match self.swap(world, read, to) {
                        Some(head) => go("publishes", Publishing::Published, &|world| {
                            world.head = head;
                            drop_lease(world);
                        }),
                        None => go("loses", Publishing::Written { basis }, &|_| ()),
                    },
                    _ => go("is refused", Publishing::Refused, &drop_lease),
                }
            }
            Publishing::Published | Publishing::Refused => {}
        }
    }

    /// The collections whose lists a head has as not deleted yet: one bit each.
    fn unfinished(&self, head: HeadId) -> u8 {
        let lists = self.heads.head(head).condemned.iter();
        lists
            .filter(|list| list.deleted.is_none())
            .fold(0, |mask, list| mask | 1 << list_index(list.list))
    }

    fn has_list(&self, head: HeadId, collector: usize) -> bool {
        let mut lists = self.heads.head(head).condemned.iter();
        lists.any(|list| list.list == list_id(collector))
    }

    fn collect(&mut self, world: &World, collector: usize, next: &mut Vec<(Step, World)>) {
        let mut go = |what, after: Collecting, change: &dyn Fn(&mut World)| {
            let mut world = *world;
            world.collectors[collector] = after;
            change(&mut world);
            next.push(((what, collector), world));
        };
        match world.collectors[collector] {
            Collecting::Start => go("reads the head", Collecting::HasHead(world.head), &|_| ()),
            Collecting::HasHead(read) => {
                let listed = self.heads.listed(read);
                let victims = (0..LABELS)
                    .map(|label| 1 << label)
                    .filter(|victim| listed & victim != 0 && listed & !victim != 0);
                let changes = victims
                    .map(|going| Change::Remove {
                        going,
                        keep: listed & !going,
                    })
                    .chain([Change::Forget]);
                for change in changes {
                    match self.heads.change(read, change) {
                        Changed::To(to) => match self.swap(world, read, to) {
                            Some(head) => go("removes", Collecting::Removed, &|world| world.head = head),
                            None => go("loses", Collecting::Planned(change), &|_| ()),
                        },
                        Changed::Same => go("removes nothing", Collecting::Removed, &|_| ()),
                        Changed::Refused => go("plans again", Collecting::Start, &|_| ()),
                    }
                }
            }
            Collecting::Planned(plan) => {
                let read = world.head;
                go("reads the head", Collecting::Replanned { plan, read }, &|_| ());
            }
            Collecting::Replanned { plan, read } => match self.heads.change(read, plan) {
                Changed::To(to) => match self.swap(world, read, to) {
                    Some(head) => go("removes", Collecting::Removed, &|world| world.head = head),
                    None => go("loses", Collecting::Planned(plan), &|_| ()),
                },
                Changed::Same => go("removes nothing", Collecting::Removed, &|_| ()),
                Changed::Refused => go("plans again", Collecting::Start, &|_| ()),
            },
            Collecting::Removed if self.broken == Broken::LeasesBeforeHead => {
                go("looks at leases", Collecting::LeasesFirst(world.seen()), &|_| ());
            }
            Collecting::Removed | Collecting::LeasesFirst(_) => {
                let seen = match world.collectors[collector] {
                    Collecting::LeasesFirst(seen) => Some(seen),
                    _ => None,
                };
                let read = world.head;
                go("reads the head again", Collecting::Basis { read, seen }, &|_| ());
            }
            Collecting::Basis { read, seen } => {
                let seen = match self.broken {
                    Broken::LeasesIgnored => Seen::default(),
                    _ => seen.unwrap_or_else(|| world.seen()),
                };
                go("looks at leases", Collecting::Leased { read, seen }, &|_| ());
            }
            Collecting::Leased { read, seen } => {
                let basis = self.heads.listed(read);
                let (garbage, floor) = self.garbage(world, basis, seen);
                let pending = self.unfinished(read) != 0;
                // Ids are never used again; this collection only goes on with what is unfinished.
                let used = self.has_list(world.head, collector);
                if garbage == 0 && !pending {
                    go("finds nothing", Collecting::Done, &|_| ());
                } else if used || garbage == 0 {
                    go("goes on", Collecting::Deleting, &|_| ());
                } else if self.broken == Broken::NoCondemnation {
                    go("deletes", Collecting::Done, &|world| world.objects &= !garbage);
                } else {
                    go("writes a list", Collecting::Listed { basis, floor }, &|world| {
                        world.lists[collector] = garbage;
                        if self.broken == Broken::DeletedBeforeCondemned {
                            world.objects &= !garbage;
                        }
                    });
                }
            }
            Collecting::Listed { basis, floor } => {
                let read = world.head;
                go(
                    "reads the head",
                    Collecting::Condemning { basis, floor, read },
                    &|_| (),
                );
            }
            Collecting::Condemning { basis, floor, read } => {
                let change = Change::Condemn {
                    basis,
                    collector,
                    floor,
                };
                match self.heads.change(read, change) {
                    Changed::To(to) => match self.swap(world, read, to) {
                        Some(head) => go("condemns", Collecting::Deleting, &|world| {
                            world.head = head;
                            world.condemned |= world.lists[collector];
                        }),
                        None => go("loses", Collecting::Listed { basis, floor }, &|_| ()),
                    },
                    _ => go("computes again", Collecting::Removed, &|_| ()),
                }
            }
            Collecting::Deleting => {
                let gone = self.to_delete(world, collector);
                if self.broken == Broken::MarkedBeforeDeleted {
                    let mut head = world.head;
                    for list in 0..3 {
                        if let Changed::To(to) = self.heads.change(head, Change::Finish { collector: list }) {
                            head = to;
                        }
                    }
                    go("finishes", Collecting::Late(gone), &|world| world.head = head);
                } else {
                    go("deletes", Collecting::Finishing, &|world| world.objects &= !gone);
                }
            }
            Collecting::Late(gone) => go("deletes", Collecting::Done, &|world| world.objects &= !gone),
            Collecting::Finishing => {
                // Decided anew on every head, so one step. Only lists whose objects are gone are finished.
                let mut head = world.head;
                for list in 0..3 {
                    let gone = world.lists[list] & world.objects == 0;
                    let takes_over = self.broken != Broken::NobodyTakesOver || list == collector;
                    if gone
                        && takes_over
                        && let Changed::To(to) = self.heads.change(head, Change::Finish { collector: list })
                    {
                        head = to;
                    }
                }
                go("finishes", Collecting::Done, &|world| world.head = head);
            }
            Collecting::Done => {}
        }
    }

    /// What a collection may delete now: all that a head has condemned.
    fn to_delete(&self, world: &World, collector: usize) -> Mask {
        let mut lists = self.unfinished(world.head);
        if self.broken == Broken::NobodyTakesOver {
            lists &= 1 << collector;
        }
        (0..3)
            .filter(|list| lists & 1 << list != 0)
            .fold(0, |mask, list| mask | world.lists[list])
    }

    /// What a collection would delete, and the floor under the WAL.
    fn garbage(&self, world: &World, basis: Mask, seen: Seen) -> (Mask, u8) {
        let mut wanted = world.references_of(basis | seen.labels);
        let mut starts = basis | seen.labels;
        for publisher in 0..2 {
            if seen.runs & 1 << publisher != 0 {
                // By their age: what was written since the run began, and what it adopts.
                wanted |= own_pack(publisher) | manifest(2 + publisher) | PACK_ORPHAN;
                starts |= 1 << (2 + publisher);
            }
        }
        let floor = floor(starts);
        wanted |= wal_since(floor);
        let mut garbage = world.objects & !wanted;
        if self.broken == Broken::OrphansStay {
            garbage &= !PACK_ORPHAN & !own_pack(0) & !own_pack(1);
        }
        (garbage, floor as u8)
    }

    fn read(&mut self, world: &World, next: &mut Vec<(Step, World)>) {
        let listed = self.heads.listed(world.head);
        let early = self.broken == Broken::LeaseAfterHead;
        let mut go = |what, label: usize, after: Reading, live: bool| {
            let bit = if live { READER } else { 0 };
            let world = World {
                reader: after,
                live: world.live & !READER | bit,
                ..*world
            };
            next.push(((what, label), world));
        };
        match world.reader {
            Reading::Start => {
                for label in OLD {
                    if !early {
                        go("reader leases", label, Reading::Leased(label), true);
                    } else if listed & 1 << label != 0 {
                        go("reader reads the head", label, Reading::HasHead(label), false);
                    }
                }
            }
            Reading::HasHead(label) => go("reader leases", label, Reading::AtWork(label), true),
            Reading::Leased(label) => {
                let live = world.live & READER != 0;
                if listed & 1 << label == 0 {
                    go("reader finds it gone", label, Reading::Done, false);
                } else if live {
                    go("reader reads", label, Reading::AtWork(label), true);
                }
            }
            Reading::AtWork(label) => go("reader ends", label, Reading::Done, false),
            Reading::Done => {}
        }
    }
}

/// A fast hash for the set of worlds.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

/// The smallest cast in which a rule matters.
fn cast(publishers: usize, collectors: usize, reader: bool) -> Actors {
    Actors {
        publishers,
        collectors,
        reader,
    }
}

#[test]
fn no_interleaving_loses_anything() {
    let casts = [
        cast(2, 1, false),
        cast(1, 2, false),
        cast(1, 1, true),
        cast(0, 2, true),
    ];
    for actors in casts {
        match Checker::run(Broken::Nothing, actors) {
            Ok(states) => assert!(states > 1000, "{actors:?}: only {states} states"),
            Err(Violation { what, trace }) => panic!("{actors:?}: {what}: {trace:?}"),
        }
    }
}

/// Everybody at once are too many interleavings to see them all: as many as there is time for, at random.
#[test]
fn no_interleaving_of_all_five_that_was_tried_loses_anything() {
    let mut checker = Checker::new(Broken::Nothing, cast(2, 2, true));
    for seed in 1..=4000 {
        if let Err(what) = checker.walk(seed) {
            panic!("seed {seed}: {what}: {:?}", checker.trace);
        }
    }
}

/// Two backups, a collection and a reader, all interleavings.
#[test]
#[ignore = "takes a minute and gigabytes of memory; smaller casts and random walks run always"]
fn no_interleaving_of_four_loses_anything() {
    if let Err(Violation { what, trace }) = Checker::run(Broken::Nothing, cast(2, 1, true)) {
        panic!("{what}: {trace:?}");
    }
}

#[rstest::rstest]
#[case(Broken::NoRevalidation, cast(1, 1, false), "condemned")]
#[case(Broken::EpochAfterLooking, cast(1, 1, false), "")]
#[case(Broken::OnlyNewerLists, cast(1, 1, false), "condemned")]
#[case(Broken::WalIgnored, cast(1, 1, false), "WAL")]
#[case(Broken::CondemnedOnAnyHead, cast(1, 1, false), "")]
#[case(Broken::NoCondemnation, cast(1, 1, false), "deleted")]
#[case(Broken::DeletedBeforeCondemned, cast(1, 1, false), "deleted")]
#[case(Broken::MarkedBeforeDeleted, cast(1, 1, false), "")]
#[case(Broken::LeasesIgnored, cast(0, 1, true), "reader")]
#[case(Broken::LeasesBeforeHead, cast(0, 2, true), "reader")]
#[case(Broken::LeaseAfterHead, cast(0, 1, true), "reader")]
#[case(Broken::ForgottenWithoutTrace, cast(1, 2, false), "")]
#[case(Broken::RemovedWhatever, cast(0, 2, false), "no backup is left")]
#[case(Broken::HeadOverwritten, cast(2, 1, false), "")]
#[case(Broken::NobodyTakesOver, cast(0, 1, false), "")]
#[case(Broken::OrphansStay, cast(1, 1, false), "garbage stays")]
fn leaving_out_any_rule_is_found(#[case] broken: Broken, #[case] actors: Actors, #[case] what: &str) {
    match Checker::run(broken, actors) {
        Ok(states) => panic!("{broken:?} was not found in {states} states"),
        Err(violation) => assert!(
            violation.what.contains(what) && violation.trace.len() < 100,
            "{broken:?} was found as something else: {violation:?}"
        ),
    }
}
