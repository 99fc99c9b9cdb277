//! Choosing what is read now, when not all of it is.

use jiff::{SignedDuration, Timestamp};

use super::objects::{Inventory, Item};
use super::{Budget, ObjectName, VerifyMemory};

/// What is to be read, in order: what was never read first, then what was read longest ago.
pub(super) fn plan(
    inventory: &Inventory,
    memory: &VerifyMemory,
    budget: Budget,
    now: Timestamp,
) -> Vec<Item> {
    let mut items = inventory.items.clone();
    // The references need the packs' indexes, which are in memory when the packs were just read.
    let key = |item: &Item| (memory.last(&item.name), is_reference(item), item.name);
    items.sort_by_key(key);
    match budget {
        Budget::Full | Budget::Time(_) => items,
        Budget::OlderThan(age) => {
            let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
            let due = |item: &Item| {
                memory
                    .last(&item.name)
                    .is_none_or(|last| now.duration_since(last) >= age)
            };
            items.retain(due);
            items
        }
        Budget::Bytes(bytes) => {
            let mut left = bytes;
            let mut planned = Vec::new();
            for item in items {
                // One at least: a budget below the size of a pack makes progress too.
                if item.size > left && !planned.is_empty() {
                    break;
                }
                left = left.saturating_sub(item.size);
                planned.push(item);
            }
            planned
        }
    }
}

fn is_reference(item: &Item) -> bool {
    matches!(item.name, ObjectName::References(_))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pgmahout_types::repository::PackId;

    use super::*;

    fn inventory(count: u8) -> Inventory {
        Inventory {
            items: (0..count)
                .map(|number| Item {
                    name: ObjectName::Pack(PackId::from_bytes([number; 16])),
                    size: 100,
                })
                .collect(),
            ..Inventory::default()
        }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn number(item: &Item) -> u8 {
        match item.name {
            ObjectName::Pack(id) => id.as_bytes()[0],
            _ => u8::MAX,
        }
    }

    #[test]
    fn short_runs_read_everything_once_before_anything_twice() {
        let inventory = inventory(7);
        let mut memory = VerifyMemory::none();
        let mut seen = Vec::new();
        for run in 0..7 {
            let now = second(1000 + run);
            let planned = plan(&inventory, &memory, Budget::Bytes(250), now);
            assert_eq!(planned.len(), 2);
            for item in planned {
                seen.push(number(&item));
                memory.note(&item.name, Some(now));
            }
        }
        let mut first = seen[..7].to_vec();
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(seen[..6], seen[7..13]);
    }

    #[test]
    fn a_budget_smaller_than_an_object_still_reads_one() {
        let planned = plan(&inventory(3), &VerifyMemory::none(), Budget::Bytes(1), second(0));
        assert_eq!(planned.len(), 1);
    }

    #[test]
    fn what_was_read_lately_waits() {
        let inventory = inventory(3);
        let mut memory = VerifyMemory::none();
        memory.note(&inventory.items[0].name, Some(second(100)));
        memory.note(&inventory.items[1].name, Some(second(990)));
        let planned = plan(
            &inventory,
            &memory,
            Budget::OlderThan(Duration::from_mins(1)),
            second(1000),
        );
        assert_eq!(planned.iter().map(number).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(plan(&inventory, &memory, Budget::Full, second(1000)).len(), 3);
    }
}
