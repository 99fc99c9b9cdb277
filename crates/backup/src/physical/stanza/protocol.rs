//! How backups and collections change a stanza's head without hurting each other.
//!
//! Backups are published and objects are collected by processes that know nothing of each other, that may be
//! frozen between any two steps, and whose leases may have run out when they wake up. What keeps them apart is
//! the head alone: it is changed by creating the next numbered object only where nothing is, so all changes
//! stand in one order. Leases only spare work; no rule here asks for one. The moves themselves are methods of
//! [`Head`]; here is what must be done around them.
//!
//! * **Collecting**: what nobody references is first *condemned*: named in a list, and the list named in the
//!   head. Only what a head has condemned is deleted. A condemnation is computed from the backups of one head
//!   and refused on a head that lists another one ([`Head::condemn`]).
//! * **Publishing**: a backup notes the epoch of the head before it looks for anything to reuse. It is compared
//!   with every list of which anything was there since ([`conflict`]); one that began so long ago that lists of
//!   that time have been forgotten is refused ([`Head::publish`]).
//! * Names of condemned packs are never used again, for they are random; a label is used once.
//! * **Removing** backups is refused where a backup that the plan counted on is gone, or one that it removes
//!   was pinned meanwhile ([`remove`]).
//! * **Reading**: a reader writes its lease before it reads the head that lists its backup; a collection looks
//!   at the leases after it has read the head from which it computes the garbage.
//!
//! The tests explore every interleaving of two backups, two collections and a reader, and find a violation for
//! each of these rules that is left out.

#[cfg(test)]
mod model;

use std::collections::BTreeSet;

use pgmahout_types::repository::manifest::{End, Header, PackKind, WalRange};
use pgmahout_types::repository::{BackupEntry, CondemnedObjects, Head, Label, PackId};

/// Everything in the repository that a backup is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct References {
    /// Its name, which names its manifest.
    pub label: Label,
    /// The packs of file content.
    pub packs: BTreeSet<PackId>,
    /// The packs of page maps.
    pub maps: BTreeSet<PackId>,
    /// The WAL without which it is worth nothing.
    pub wal: WalRange,
}

impl References {
    /// Those of the backup with this manifest.
    pub fn of(header: &Header, end: &End) -> Self {
        let of_kind = |kind| {
            let packs = end.packs.iter().filter(move |pack| pack.kind == kind);
            packs.map(|pack| pack.id).collect()
        };
        Self {
            label: header.label,
            packs: of_kind(PackKind::Data),
            maps: of_kind(PackKind::Map),
            wal: header.wal,
        }
    }
}

/// Something that a backup is made of and that was condemned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Packs.
    #[error("{count} of the packs that it uses were collected as garbage since it began, {example} for one")]
    Packs {
        /// How many.
        count: usize,
        /// One of them.
        example: PackId,
    },
    /// Its manifest.
    #[error("its manifest was collected as garbage, because it was not published for so long")]
    Manifest,
    /// Its WAL.
    #[error("the WAL that it needs ({} to {}) was collected since it began", .0.first, .0.last)]
    Wal(WalRange),
}

/// What of a backup a list of condemned objects names.
pub fn conflict(list: &CondemnedObjects, references: &References) -> Option<Conflict> {
    let packs = both(&list.packs, &references.packs);
    let maps = both(&list.maps, &references.maps);
    let mut condemned = packs.chain(maps);
    if let Some(example) = condemned.next() {
        return Some(Conflict::Packs {
            count: 1 + condemned.count(),
            example: *example,
        });
    }
    if list.manifests.contains(&references.label) {
        return Some(Conflict::Manifest);
    }
    list.wal
        .iter()
        .any(|range| overlap(range, &references.wal))
        .then_some(Conflict::Wal(references.wal))
}

/// What is in both, by looking up the smaller one in the larger one.
fn both<'a, T: Ord>(one: &'a BTreeSet<T>, other: &'a BTreeSet<T>) -> impl Iterator<Item = &'a T> {
    let (smaller, larger) = if one.len() <= other.len() {
        (one, other)
    } else {
        (other, one)
    };
    smaller.iter().filter(|item| larger.contains(*item))
}

/// Whether two ranges of one timeline have a segment in common. Ranges never span timelines.
fn overlap(one: &WalRange, other: &WalRange) -> bool {
    one.first.timeline() == other.first.timeline() && one.first <= other.last && other.first <= one.last
}

/// The head is not the one that a plan was made from: make it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// A backup that the plan keeps is gone.
    #[error("the backup {0}, which was to be kept, was removed meanwhile")]
    Removed(Label),
    /// A backup that the plan removes was pinned.
    #[error("the backup {0} was pinned meanwhile")]
    Pinned(Label),
}

/// Takes backups off the head; their objects stay until they are condemned. `keep` is what the plan counts on
/// to stay. What is gone already is no error. Backups that the plan does not know stay.
///
/// # Errors
///
/// [`Stale`] where one of `keep` is gone, or one of `going` is pinned; then nothing is changed.
pub fn remove(
    head: &mut Head,
    going: &BTreeSet<Label>,
    keep: &BTreeSet<Label>,
) -> Result<Vec<BackupEntry>, Stale> {
    if let Some(gone) = keep.iter().find(|label| head.backup(**label).is_none()) {
        return Err(Stale::Removed(*gone));
    }
    let pinned = |entry: &&BackupEntry| entry.pinned && going.contains(&entry.label);
    if let Some(entry) = head.backups.iter().find(pinned) {
        return Err(Stale::Pinned(entry.label));
    }
    // Only pinned ones are refused, and there are none.
    Ok(head.remove(going).unwrap_or_default())
}
