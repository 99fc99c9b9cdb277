//! What is damaged, and what it means: which backups, files and blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use pgmahout_types::repository::{Label, RelativePath};
use serde::Serialize;

use super::ObjectName;
use super::objects::Inventory;

/// The most runs of damaged blocks that are named for one object; the rest are counted.
const MOST_NAMED: usize = 1000;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// What it is: `pack 3f...`, `manifest LABEL`, `wal SEGMENT`.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// The backups that need it.
    pub backups: Vec<Label>,
    /// The blocks of files that cannot be restored.
    pub blocks: Vec<DamagedBlocks>,
    /// How many more runs of blocks there are, which are not named.
    pub more: u64,
}

/// Blocks of a file that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DamagedBlocks {
    /// The backup.
    pub backup: Label,
    /// The file.
    pub path: RelativePath,
    /// The first of the blocks of 8 KiB, counted from the beginning of the file.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What is wrong with one object.
#[derive(Debug, Clone, Default)]
pub(super) struct ObjectDamage {
    /// In words, each once.
    problems: Vec<String>,
    /// The frames of a pack; `None` for all of it.
    frames: Option<BTreeSet<u32>>,
}

impl ObjectDamage {
    /// All of it is lost.
    pub(super) fn whole(problem: String) -> Self {
        Self {
            problems: vec![problem],
            frames: None,
        }
    }

    /// All of it is lost, with the chain of causes.
    pub(super) fn because(problem: &str, cause: &dyn Error) -> Self {
        let mut text = format!("{problem}: {cause}");
        let mut source = cause.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        Self::whole(text)
    }

    /// Frames of a pack are lost, the others are not.
    pub(super) fn frames(frames: BTreeMap<u32, String>) -> Self {
        let mut problems: Vec<String> = frames.values().take(3).cloned().collect();
        if frames.len() > problems.len() {
            problems.push(format!("and {} more frames", frames.len() - problems.len()));
        }
        Self {
            problems,
            frames: Some(frames.into_keys().collect()),
        }
    }

    /// What is wrong, in one line.
    pub(super) fn text(&self) -> String {
        self.problems.join("; ")
    }

    fn hits(&self, frame: u32) -> bool {
        self.frames.as_ref().is_none_or(|frames| frames.contains(&frame))
    }
}

/// The damage that a run has found.
#[derive(Default)]
pub(super) struct Damages {
    objects: BTreeMap<ObjectName, ObjectDamage>,
    blocks: BTreeMap<ObjectName, BTreeSet<DamagedBlocks>>,
    more: BTreeMap<ObjectName, u64>,
    /// Backups whose maps were walked.
    walked: BTreeSet<Label>,
}

impl Damages {
    pub(super) fn add(&mut self, name: ObjectName, damage: ObjectDamage) {
        match self.objects.get_mut(&name) {
            Some(known) => known.problems.extend(damage.problems),
            None => {
                self.objects.insert(name, damage);
            }
        }
    }

    /// Whether a frame of a pack is lost.
    pub(super) fn is_lost(&self, pack: &ObjectName, frame: u32) -> bool {
        self.objects.get(pack).is_some_and(|damage| damage.hits(frame))
    }

    pub(super) fn add_blocks(&mut self, name: ObjectName, blocks: DamagedBlocks) {
        let known = self.blocks.entry(name).or_default();
        if known.len() < MOST_NAMED {
            known.insert(blocks);
        } else {
            *self.more.entry(name).or_default() += 1;
        }
    }

    /// Notes that the files of a backup that damaged packs hit are known.
    pub(super) fn mark_walked(&mut self, label: Label) {
        self.walked.insert(label);
    }

    /// Whether anything that a backup needs is damaged.
    pub(super) fn concerns(&self, inventory: &Inventory, label: Label) -> bool {
        self.objects
            .keys()
            .any(|name| inventory.dependents(name).any(|dependent| dependent == label))
    }

    /// Backups that need damaged packs and whose files were not looked at yet.
    pub(super) fn unattributed(&self, inventory: &Inventory) -> Vec<Label> {
        let packs = self
            .objects
            .keys()
            .filter(|name| matches!(name, ObjectName::Pack(_)));
        let labels: BTreeSet<Label> = packs.flat_map(|name| inventory.dependents(name)).collect();
        labels.difference(&self.walked).copied().collect()
    }

    /// One line for the head.
    pub(super) fn summary(&self) -> String {
        match self.objects.first_key_value() {
            None => String::new(),
            Some((name, _)) if self.objects.len() == 1 => format!("{name} is damaged"),
            Some((name, _)) => format!("{name} and {} other objects are damaged", self.objects.len() - 1),
        }
    }

    pub(super) fn into_list(mut self, inventory: &Inventory) -> Vec<Damage> {
        std::mem::take(&mut self.objects)
            .into_iter()
            .map(|(name, damage)| Damage {
                object: name.to_string(),
                problem: damage.text(),
                backups: inventory.dependents(&name).collect(),
                blocks: joined(self.blocks.remove(&name).unwrap_or_default()),
                more: self.more.remove(&name).unwrap_or_default(),
            })
            .collect()
    }
}

/// Runs that follow each other as one.
fn joined(blocks: BTreeSet<DamagedBlocks>) -> Vec<DamagedBlocks> {
    let mut runs: Vec<DamagedBlocks> = Vec::new();
    for next in blocks {
        match runs.last_mut() {
            Some(last)
                if last.backup == next.backup
                    && last.path == next.path
                    && last.first.saturating_add(last.count) >= next.first =>
            {
                let end = next
                    .first
                    .saturating_add(next.count)
                    .max(last.first.saturating_add(last.count));
                last.count = end - last.first;
            }
            _ => runs.push(next),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(path: &str, first: u32, count: u32) -> DamagedBlocks {
        DamagedBlocks {
            backup: "20261121T104500Z-3f9a".parse().unwrap(),
            path: RelativePath::new(path).unwrap(),
            first,
            count,
        }
    }

    #[test]
    fn blocks_that_follow_each_other_are_named_together() {
        let blocks = [
            run("a", 4, 2),
            run("a", 0, 2),
            run("a", 2, 2),
            run("b", 0, 1),
            run("b", 3, 1),
        ];
        assert_eq!(
            joined(blocks.into_iter().collect()),
            [run("a", 0, 6), run("b", 0, 1), run("b", 3, 1)]
        );
    }

    #[test]
    fn a_lost_frame_is_not_the_whole_pack() {
        let pack: ObjectName = "pack abababababababababababababababab".parse().unwrap();
        let mut damages = Damages::default();
        damages.add(
            pack,
            ObjectDamage::frames(BTreeMap::from([(3, "frame 3 is not authentic".to_owned())])),
        );
        assert!(damages.is_lost(&pack, 3) && !damages.is_lost(&pack, 4));
        assert_eq!(
            damages.summary(),
            "pack abababababababababababababababab is damaged"
        );
        let other: ObjectName = "pack cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd".parse().unwrap();
        damages.add(other, ObjectDamage::whole("it is missing".to_owned()));
        assert!(damages.is_lost(&other, 0));
    }
}
