//! Backups and collections that run at the same time, in every order that a test can think of: whatever
//! happens between their steps, no published backup may lose a pack.
//!
//! The model has none of the protections by time: collections condemn every pack that no manifest names, even
//! one that was uploaded a moment ago, and backups take over packs of interrupted runs.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::tests::{backup, label};
use super::*;
use crate::repository::{CondemnedObjects, PackId};

/// The repository, as all see it.
struct World {
    head: Head,
    packs: BTreeSet<PackId>,
    manifests: BTreeMap<Label, BTreeSet<PackId>>,
    lists: BTreeMap<CondemnedId, CondemnedObjects>,
    drawn: u8,
    published: usize,
    deleted: usize,
}

impl World {
    fn draw(&mut self) -> u8 {
        self.drawn += 1;
        self.drawn
    }

    /// Creates the next head if nobody else has.
    fn swap(&mut self, mut head: Head) -> bool {
        if head.seq != self.head.seq {
            return false;
        }
        head.advance(Nonce::from_bytes([self.draw(); 16]), Timestamp::UNIX_EPOCH, "");
        self.head = Head::decode(&head.encode()).expect("a good head");
        true
    }

    fn check(&self) {
        for label in self.head.labels() {
            let missing: Vec<_> = self.manifests[&label].difference(&self.packs).collect();
            assert!(missing.is_empty(), "{label} has lost {missing:?}");
        }
    }
}

/// A run that takes a backup, step by step.
#[derive(Default)]
struct Publisher {
    step: usize,
    clearance: Clearance,
    uses: BTreeSet<PackId>,
    seen: Option<Head>,
}

impl Publisher {
    fn step(&mut self, world: &mut World, choice: u8) {
        self.step += 1;
        match self.step {
            1 => {
                self.clearance.epoch = world.head.epoch;
                let parent = world.head.labels().last();
                if choice & 1 == 0
                    && let Some(parent) = parent
                {
                    self.uses.extend(&world.manifests[&parent]);
                }
            }
            2 => {
                // Packs of interrupted runs, found by listing.
                let found = world.packs.iter().skip(usize::from(choice % 4)).take(2);
                self.uses.extend(found);
            }
            3 => {
                let pack = PackId::from_bytes([world.draw(); 16]);
                world.packs.insert(pack);
                if choice.is_multiple_of(5) {
                    // Interrupted: the pack stays.
                    *self = Self::default();
                } else {
                    self.uses.insert(pack);
                }
            }
            4 => self.seen = Some(world.head.clone()),
            5 => {
                let mut head = self.seen.clone().expect("the step before");
                let lists: Vec<_> = head.lists_to_check(self.clearance.epoch).collect();
                for list in lists {
                    if !world.lists[&list]
                        .condemned_of(self.uses.iter().copied())
                        .is_empty()
                    {
                        *self = Self::default();
                        return;
                    }
                    self.clearance.checked.insert(list);
                }
                let new = backup(label(i64::from(world.draw())), 3);
                let name = new.label;
                head.publish(new, &self.clearance)
                    .expect("every list was checked");
                world.manifests.insert(name, self.uses.clone());
                if world.swap(head) {
                    world.published += 1;
                    *self = Self::default();
                } else {
                    self.step = 3;
                }
            }
            _ => unreachable!("there are five steps"),
        }
    }
}

/// A collection, step by step.
#[derive(Default)]
struct Collector {
    step: usize,
    examined: BTreeSet<Label>,
    list: Option<CondemnedObjects>,
    seen: Option<Head>,
}

impl Collector {
    fn step(&mut self, world: &mut World, choice: u8) {
        self.step += 1;
        match self.step {
            1 | 5 | 8 => self.seen = Some(world.head.clone()),
            2 => {
                let mut head = self.seen.take().expect("the step before");
                let oldest = head.labels().next().filter(|_| choice & 1 == 0);
                head.remove(&oldest.into_iter().collect()).expect("not pinned");
                if !world.swap(head) {
                    self.step = 0;
                }
            }
            3 => {
                self.examined = world.head.labels().collect();
                let id = CondemnedId::from_bytes([world.draw(); 16]);
                let used: BTreeSet<_> = self
                    .examined
                    .iter()
                    .flat_map(|label| &world.manifests[label])
                    .collect();
                let mut list = CondemnedObjects::new(id, Timestamp::UNIX_EPOCH);
                list.packs = world
                    .packs
                    .iter()
                    .filter(|pack| !used.contains(pack))
                    .copied()
                    .collect();
                self.list = Some(list);
            }
            4 => {
                let list = self.list.clone().expect("the step before");
                world.lists.insert(list.id, list);
            }
            6 => {
                let mut head = self.seen.take().expect("the step before");
                let list = self.list.as_ref().expect("an earlier step").id;
                let condemned = head.condemn(list, &self.examined, &BTreeMap::new(), Timestamp::UNIX_EPOCH);
                if condemned.is_err() {
                    self.step = 2;
                } else if !world.swap(head) {
                    self.step = 4;
                }
            }
            7 => {
                let list = self.list.as_mut().expect("an earlier step");
                if let Some(pack) = list.packs.pop_first() {
                    world.deleted += usize::from(world.packs.remove(&pack));
                    self.step = 6;
                }
            }
            9 => {
                let mut head = self.seen.take().expect("the step before");
                let list = self.list.as_ref().expect("an earlier step").id;
                head.mark_deleted(list, Timestamp::UNIX_EPOCH)
                    .expect("it is there");
                if world.swap(head) {
                    *self = Self::default();
                } else {
                    self.step = 7;
                }
            }
            _ => unreachable!("there are nine steps"),
        }
    }
}

fn run(schedule: &[(u8, u8)]) -> World {
    let mut world = World {
        head: Head::first(Nonce::from_bytes([0; 16]), Timestamp::UNIX_EPOCH, ""),
        packs: BTreeSet::new(),
        manifests: BTreeMap::new(),
        lists: BTreeMap::new(),
        drawn: 0,
        published: 0,
        deleted: 0,
    };
    let mut publishers = [Publisher::default(), Publisher::default()];
    let mut collectors = [Collector::default(), Collector::default()];
    for &(actor, choice) in schedule {
        if world.drawn > 200 {
            break;
        }
        match actor % 4 {
            0 => publishers[0].step(&mut world, choice),
            1 => publishers[1].step(&mut world, choice),
            2 => collectors[0].step(&mut world, choice),
            _ => collectors[1].step(&mut world, choice),
        }
        world.check();
    }
    world
}

#[test]
fn the_model_publishes_and_deletes() {
    let one_after_the_other: Vec<(u8, u8)> = [0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
        .into_iter()
        .cycle()
        .take(400)
        .enumerate()
        .map(|(turn, actor)| (actor, u8::try_from(turn % 7).expect("small")))
        .collect();
    let world = run(&one_after_the_other);
    assert!(world.published > 3 && world.deleted > 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_published_backup_loses_a_pack(schedule in prop::collection::vec(any::<(u8, u8)>(), 0..160)) {
        run(&schedule);
    }
}
