//! Packs of which hardly anything is used any more, and that keep the rest of themselves from being collected.
//!
//! What is still wanted of them is stored afresh by the next backup, as if the older backup had not got it. With the
//! last older backup that uses them they are collected like any other. Nothing that exists is rewritten.
//!
//! A pack is left behind where the older backup, with which the new one is compared, and every other backup use less
//! than [`SHARE`] of it: while one of them keeps most of it alive, nothing would be won. Each backup leaves behind no
//! more than a small part of its own size, the emptiest packs first.

use std::collections::{BTreeMap, HashSet};

use pgmahout_types::repository::manifest::PackEntry;
use pgmahout_types::repository::{Head, Label, PackId};

use super::parent::Parent;
use crate::physical::stanza::{PhysicalRepository, StanzaError};

/// Percent of a pack's content below which it is mostly dead.
const SHARE: u64 = 30;
/// A backup stores afresh at most this part of its bytes, in percent,
const PART: u64 = 5;
/// or this many bytes, whichever is more.
const LEAST: u64 = 64 << 20;
/// So many packs are looked into.
const MOST: usize = 256;

/// The packs of the older backup that the new one leaves behind. What cannot be found out spares nothing.
pub(super) async fn mostly_dead(
    repository: &PhysicalRepository,
    head: &Head,
    parent: &Parent,
) -> HashSet<PackId> {
    match find(repository, head, parent).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "it is not known which packs are mostly dead");
            HashSet::new()
        }
    }
}

async fn find(
    repository: &PhysicalRepository,
    head: &Head,
    parent: &Parent,
) -> Result<HashSet<PackId>, StanzaError> {
    // One of which more is used than all of it takes is none, unless it shrinks to less than a third: compressed.
    let mut candidates: Vec<PackEntry> = parent
        .entries()
        .filter(|pack| pack.live < pack.size)
        .copied()
        .collect();
    if candidates.is_empty() {
        return Ok(HashSet::new());
    }
    candidates.sort_unstable_by_key(|pack| (pack.live, pack.id));
    candidates.truncate(MOST);
    let most_used = most_used(repository, head, parent.label).await?;
    let used = |pack: &PackEntry| pack.live.max(most_used.get(&pack.id).copied().unwrap_or(0));
    let blocking = repository.blocking();
    let looked = tokio::task::spawn_blocking(move || {
        candidates
            .into_iter()
            // A pack that cannot be read is left to whoever finds that out.
            .filter_map(|pack| {
                let (_, index) = blocking.pack_index(pack.kind, pack.id, pack.size).ok()?;
                let raw: u64 = index
                    .frames
                    .iter()
                    .map(|frame| u64::from(frame.location.raw))
                    .sum();
                Some((pack, raw))
            })
            .collect::<Vec<_>>()
    });
    let looked = looked.await.unwrap_or_default();
    Ok(choose(&looked, used, parent.bytes()))
}

/// How many bytes of each pack any other backup uses, at most.
async fn most_used(
    repository: &PhysicalRepository,
    head: &Head,
    parent: Label,
) -> Result<BTreeMap<PackId, u64>, StanzaError> {
    let mut most: BTreeMap<PackId, u64> = BTreeMap::new();
    for entry in head.backups.iter().filter(|entry| entry.label != parent) {
        let (_, end) = repository
            .read_manifest_ends(entry.label, Some(entry.manifest))
            .await?;
        for pack in &end.packs {
            let known = most.entry(pack.id).or_default();
            *known = pack.live.max(*known);
        }
    }
    Ok(most)
}

/// The emptiest ones, within bounds. `packs` are in the order of what the older backup uses of them, with the raw
/// bytes that each holds.
fn choose(packs: &[(PackEntry, u64)], used: impl Fn(&PackEntry) -> u64, bytes: u64) -> HashSet<PackId> {
    let mut left = (bytes / 100 * PART).max(LEAST);
    let mut chosen = HashSet::new();
    for (pack, raw) in packs {
        if used(pack).saturating_mul(100) >= raw.saturating_mul(SHARE) {
            continue;
        }
        let Some(rest) = left.checked_sub(pack.live) else {
            break;
        };
        left = rest;
        chosen.insert(pack.id);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use pgmahout_types::repository::Salt;
    use pgmahout_types::repository::manifest::PackKind;

    use super::*;

    fn pack(number: u8, live: u64) -> PackEntry {
        PackEntry {
            id: PackId::from_bytes([number; 16]),
            kind: PackKind::Data,
            key: 0,
            salt: Salt::from_bytes([0; 32]),
            size: 1 << 20,
            live,
        }
    }

    #[test]
    fn only_packs_that_no_backup_uses_much_of_are_left_behind_and_the_emptiest_first() {
        let mib = 1 << 20;
        let packs = [
            (pack(1, mib), 64 * mib),
            (pack(2, 10 * mib), 64 * mib),
            (pack(3, 15 * mib), 64 * mib),
            (pack(4, 25 * mib), 64 * mib),
        ];
        let id = |number: u8| PackId::from_bytes([number; 16]);
        let own = |pack: &PackEntry| pack.live;
        assert_eq!(choose(&packs, own, 0), HashSet::from([id(1), id(2), id(3)]));
        // Another backup has most of the second.
        let other = |pack: &PackEntry| if pack.id == id(2) { 60 * mib } else { pack.live };
        assert_eq!(choose(&packs, other, 0), HashSet::from([id(1), id(3)]));
        let many: Vec<_> = (0..100)
            .map(|number| (pack(number, 10 * mib), 64 * mib))
            .collect();
        assert_eq!(choose(&many, own, 0).len(), 6);
        assert_eq!(choose(&many, own, 2000 * mib).len(), 10);
    }
}
