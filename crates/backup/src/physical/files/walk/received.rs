//! A list of files that arrive one after the other, instead of being looked for.

use std::collections::HashMap;
use std::path::PathBuf;

use jiff::Timestamp;

use super::{Contents, DirectoryEntry, FileList, Packed, TablespaceEntry, joined};

/// The mode of a directory that was never mentioned itself.
const PRIVATE: u16 = 0o700;

/// What is said of a file or directory of another machine.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Permission bits.
    pub mode: u16,
    /// User id there.
    pub uid: u32,
    /// Group id there.
    pub gid: u32,
    /// The user's name.
    pub user: Option<&'a str>,
    /// The group's name.
    pub group: Option<&'a str>,
    /// When it was last written.
    pub modified: Timestamp,
}

/// Gathers a [`FileList`]. Files come in any order, and may come before their directories.
#[derive(Debug)]
pub struct ListBuilder {
    list: FileList,
    directories: HashMap<Box<[u8]>, u32>,
    /// Whether the data directory's owner is known.
    owned: bool,
}

impl ListBuilder {
    /// With a data directory of this mode. It belongs to whom the first file belongs.
    pub fn new(mode: u16) -> Self {
        let mut builder = Self {
            list: FileList::default(),
            directories: HashMap::new(),
            owned: false,
        };
        builder.push(
            Vec::new(),
            Contents::Listed,
            &Attributes {
                mode,
                uid: 0,
                gid: 0,
                user: None,
                group: None,
                modified: Timestamp::UNIX_EPOCH,
            },
        );
        // Nobody owns anything yet.
        builder.list.owners = super::Owners::default();
        builder
    }

    /// Adds a directory, or says what it is like, if it is there already.
    pub fn directory(
        &mut self,
        path: &[u8],
        contents: Contents,
        attributes: &Attributes<'_>,
        link: Option<PathBuf>,
    ) {
        self.own(attributes);
        let index = self.ensure(path, attributes);
        let owner = self.owner(attributes);
        let directory = &mut self.list.directories[index as usize];
        directory.mode = attributes.mode;
        directory.modified = attributes.modified;
        directory.owner = owner;
        directory.contents = contents;
        if link.is_some() {
            directory.link = link;
        }
    }

    /// Adds a file; gives its number.
    pub fn file(&mut self, path: &[u8], size: u64, attributes: &Attributes<'_>) -> u32 {
        self.own(attributes);
        let (parent, name) = split(path);
        let directory = self.ensure(parent, attributes);
        let owner = self.owner(attributes);
        let number = self.list.files.len() as u32;
        self.list.files.push(Packed {
            name_at: self.list.names.len() as u64,
            // A path in a tar header is shorter.
            name_length: u16::try_from(name.len()).unwrap_or(u16::MAX),
            directory,
            size,
            modified: attributes.modified,
            stamp: None,
            owner,
            mode: attributes.mode,
        });
        self.list.names.extend_from_slice(name);
        self.list.bytes += size;
        number
    }

    /// Adds a tablespace: what its link said, or nothing for one that lies in `pg_tblspc` itself.
    pub fn tablespace(&mut self, oid: u32, location: Option<PathBuf>) {
        if self.list.tablespaces.iter().all(|known| known.oid != oid) {
            self.list.tablespaces.push(TablespaceEntry { oid, location });
        }
    }

    /// The tablespaces so far.
    pub fn tablespaces(&self) -> &[TablespaceEntry] {
        &self.list.tablespaces
    }

    /// The list.
    pub fn finish(mut self) -> FileList {
        self.list.tablespaces.sort_by_key(|tablespace| tablespace.oid);
        self.list
    }

    /// The first that is said of anything says whose the data directory is.
    fn own(&mut self, attributes: &Attributes<'_>) {
        if !self.owned {
            self.owned = true;
            let owner = self.owner(attributes);
            self.list.directories[0].owner = owner;
            self.list.directories[0].modified = attributes.modified;
        }
    }

    fn owner(&mut self, attributes: &Attributes<'_>) -> u32 {
        let Attributes {
            uid,
            gid,
            user,
            group,
            ..
        } = *attributes;
        self.list.owners.index_named(uid, gid, user, group)
    }

    /// A directory and those above it.
    fn ensure(&mut self, path: &[u8], like: &Attributes<'_>) -> u32 {
        if let Some(known) = self.directories.get(path) {
            return *known;
        }
        let (parent, name) = split(path);
        self.ensure(parent, like);
        let unknown = Attributes {
            mode: PRIVATE,
            ..*like
        };
        self.push(joined(parent, name), Contents::Listed, &unknown)
    }

    fn push(&mut self, path: Vec<u8>, contents: Contents, attributes: &Attributes<'_>) -> u32 {
        let owner = self.owner(attributes);
        let index = self.list.directories.len() as u32;
        let path: Box<[u8]> = path.into();
        self.directories.insert(path.clone(), index);
        self.list.directories.push(DirectoryEntry {
            path,
            mode: attributes.mode,
            modified: attributes.modified,
            owner,
            contents,
            link: None,
        });
        index
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(uid: u32, mode: u16) -> Attributes<'static> {
        Attributes {
            mode,
            uid,
            gid: uid,
            user: Some("postgres"),
            group: None,
            modified: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn files_may_come_before_their_directories() {
        let mut builder = ListBuilder::new(0o750);
        let first = builder.file(
            b"pg_tblspc/16384/PG_15_202209061/5/1259",
            8192,
            &attributes(999, 0o600),
        );
        builder.directory(b"pg_tblspc", Contents::Listed, &attributes(999, 0o750), None);
        builder.tablespace(16384, Some(PathBuf::from("/srv/space")));
        let second = builder.file(b"PG_VERSION", 3, &attributes(998, 0o640));
        let list = builder.finish();
        assert_eq!(
            list.file(first as usize).path(),
            b"pg_tblspc/16384/PG_15_202209061/5/1259"
        );
        assert_eq!(list.file(second as usize).path(), b"PG_VERSION");
        assert_eq!(list.bytes(), 8195);
        let directories: Vec<(&[u8], u16)> = list
            .directories()
            .iter()
            .map(|directory| (&*directory.path, directory.mode))
            .collect();
        assert_eq!(
            directories,
            [
                (b"".as_slice(), 0o750),
                (b"pg_tblspc", 0o750),
                (b"pg_tblspc/16384", 0o700),
                (b"pg_tblspc/16384/PG_15_202209061", 0o700),
                (b"pg_tblspc/16384/PG_15_202209061/5", 0o700),
            ]
        );
        let root = list.directory_owner(&list.directories()[0]);
        assert_eq!((root.uid, root.user.as_deref()), (999, Some("postgres")));
        assert_eq!(list.file(second as usize).owner().uid, 998);
    }
}
