//! Names of the users and groups that own files.
//!
//! A restore on another machine goes by names, as numbers differ between machines. Names come from
//! `/etc/passwd` and `/etc/group`, and else from `getent`, which asks every source that the system knows.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Who owns a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The user's name, where the system knows one.
    pub user: Option<String>,
    /// The group's name, where the system knows one.
    pub group: Option<String>,
}

/// The owners of many files, each once.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    list: Vec<Owner>,
    indexes: BTreeMap<(u32, u32), u32>,
}

impl Owners {
    /// The place of an owner in the list; its names are looked up when it is first seen.
    pub(in crate::physical) fn index(&mut self, uid: u32, gid: u32) -> u32 {
        *self.indexes.entry((uid, gid)).or_insert_with(|| {
            self.list.push(Owner {
                uid,
                gid,
                user: name("passwd", uid),
                group: name("group", gid),
            });
            u32::try_from(self.list.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// The same for an owner on another machine, whose names this one does not know.
    pub(super) fn index_named(&mut self, uid: u32, gid: u32, user: Option<&str>, group: Option<&str>) -> u32 {
        *self.indexes.entry((uid, gid)).or_insert_with(|| {
            self.list.push(Owner {
                uid,
                gid,
                user: user.map(str::to_owned),
                group: group.map(str::to_owned),
            });
            u32::try_from(self.list.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// The owner at a place of the list.
    pub(in crate::physical) fn get(&self, index: u32) -> &Owner {
        &self.list[index as usize]
    }

    /// All that were seen.
    pub fn iter(&self) -> impl Iterator<Item = &Owner> {
        self.list.iter()
    }
}

fn name(database: &str, id: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/etc/{database}")).unwrap_or_default();
    find(&text, id).or_else(|| {
        let output = Command::new("getent")
            .args([database, &id.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        find(&String::from_utf8_lossy(&output.stdout), id)
    })
}

/// The first field of the line whose third field is `id` (passwd(5), group(5)).
fn find(text: &str, id: u32) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_looked_up_once_and_unknown_ones_have_no_name() {
        let mut owners = Owners::default();
        let root = owners.index(0, 0);
        assert_eq!(owners.get(root).user.as_deref(), Some("root"));
        assert_eq!(owners.get(root).group.as_deref(), Some("root"));
        assert_eq!(owners.index(0, 0), root);
        let nobody = owners.index(4_000_000_001, 4_000_000_002);
        assert_ne!(nobody, root);
        assert_eq!(owners.get(nobody).user, None);
        assert_eq!(owners.get(nobody).group, None);
        assert_eq!(owners.iter().count(), 2);
    }

    #[test]
    fn lines_of_other_forms_are_passed_over() {
        let text = "+:::::\nbroken\n:x:7:\npostgres:x:113:120::/:/bin/sh\n";
        assert_eq!(find(text, 113).as_deref(), Some("postgres"));
        assert_eq!(find(text, 7), None);
        assert_eq!(find(text, 120), None);
    }
}
