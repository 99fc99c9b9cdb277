//! Directories and links: what must be there, what does not belong there, and that all of it is on the disk.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use pgmahout_types::repository::manifest::{Area, Entry, Manifest};

use super::super::error::RestoreError;
use super::super::guard;
use super::super::layout::{LINKS, Layout, WAL};
use super::super::owner::Ownership;

/// Directories that a server must find, whether the backup lists them or not. It makes none of them itself
/// (`directories` and `subdirs` in `src/bin/initdb/initdb.c`).
const ESSENTIAL: [&str; 16] = [
    "global",
    "base",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
];

/// Files that a restore writes beside those of the backup.
const OURS: [&str; 8] = [
    "backup_label",
    "tablespace_map",
    "recovery.signal",
    "standby.signal",
    "postgresql.auto.conf",
    "global/pg_control",
    guard::MARKER,
    guard::WAITING_CONTROL,
];

/// A directory to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirectoryTarget {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
}

/// Every directory of the backup and every one that a server needs, parents first.
pub(crate) fn directories(manifest: &Manifest, layout: &Layout) -> Vec<DirectoryTarget> {
    let root_mode = root_mode(manifest);
    let mut targets = vec![DirectoryTarget {
        path: layout.data().to_owned(),
        mode: root_mode,
    }];
    for (_, path) in layout.roots().skip(1) {
        targets.push(DirectoryTarget {
            path: path.to_owned(),
            mode: root_mode,
        });
    }
    for name in ESSENTIAL {
        let path = match (name.strip_prefix(WAL), layout.wal()) {
            (Some(""), Some(wal)) => wal.to_owned(),
            (Some(rest), Some(wal)) => wal.join(rest.trim_start_matches('/')),
            _ => layout.data().join(name),
        };
        targets.push(DirectoryTarget {
            path,
            mode: root_mode,
        });
    }
    for entry in &manifest.entries {
        if let Entry::Directory(directory) = entry
            && directory.area == Area::Data
        {
            targets.push(DirectoryTarget {
                path: layout.locate(&directory.path),
                mode: directory.mode,
            });
        }
    }
    // What the backup says comes later and wins.
    targets.sort_by(|one, other| one.path.cmp(&other.path));
    targets.reverse();
    targets.dedup_by(|one, other| one.path == other.path);
    targets.reverse();
    targets
}

/// The mode of the data directory: 0700, or 0750 where the group may read; the server takes nothing else.
pub(crate) fn root_mode(manifest: &Manifest) -> u32 {
    manifest
        .entries
        .iter()
        .find_map(|entry| match entry {
            Entry::Directory(directory)
                if directory.area == Area::Data && directory.path.as_bytes() == b"." =>
            {
                Some(if directory.mode & 0o050 == 0o050 {
                    0o750
                } else {
                    0o700
                })
            }
            _ => None,
        })
        .unwrap_or(0o700)
}

/// Makes the directories. What is there under their names and is none is removed, but never the roots.
pub(crate) fn make_directories(
    targets: &[DirectoryTarget],
    roots: &[PathBuf],
    owner: Ownership,
) -> Result<(), RestoreError> {
    for target in targets {
        let path = &target.path;
        let is_root = roots.contains(path);
        let found = if is_root {
            fs::metadata(path)
        } else {
            fs::symlink_metadata(path)
        };
        match found {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) if is_root => {
                return Err(RestoreError::Refused {
                    what: format!("{} is not a directory", path.display()),
                    hint: "name a directory".to_owned(),
                });
            }
            Ok(_) => {
                fs::remove_file(path).map_err(|error| RestoreError::io("remove", path, error))?;
                make(path, is_root)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path, is_root)?,
            Err(error) => return Err(RestoreError::io("look at", path, error)),
        }
        if owner.give {
            chown(path, Some(owner.uid), Some(owner.gid))
                .map_err(|error| RestoreError::io("change the owner of", path, error))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(target.mode & 0o7777))
            .map_err(|error| RestoreError::io("set the mode of", path, error))?;
    }
    Ok(())
}

fn make(path: &Path, is_root: bool) -> Result<(), RestoreError> {
    if is_root {
        return Ok(pgmahout_durable::create_directory_durably(path, 0o700)?);
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| RestoreError::io("create", path, error))
}

/// The links of the backup and those that the layout needs: path and target.
pub(crate) fn links(manifest: &Manifest, layout: &Layout) -> Vec<(PathBuf, PathBuf)> {
    let mut links = layout.links();
    for entry in &manifest.entries {
        let Entry::Link(link) = entry else { continue };
        let path = link.path.as_path();
        // Tablespaces are the layout's; a server's pg_wal was elsewhere, and goes where it was said, or inside.
        if link.area != Area::Data || path == Path::new(WAL) || path.parent() == Some(Path::new(LINKS)) {
            continue;
        }
        links.push((layout.locate(&link.path), link.target.as_path().to_owned()));
    }
    links
}

/// Makes the links. What is there under their names and is another is removed.
pub(crate) fn make_links(links: &[(PathBuf, PathBuf)], owner: Ownership) -> Result<(), RestoreError> {
    for (path, target) in links {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() => {
                if fs::read_link(path).is_ok_and(|found| found == *target) {
                    continue;
                }
                fs::remove_file(path).map_err(|error| RestoreError::io("remove", path, error))?;
            }
            Ok(metadata) if metadata.is_dir() => {
                fs::remove_dir_all(path).map_err(|error| RestoreError::io("remove", path, error))?;
            }
            Ok(_) => fs::remove_file(path).map_err(|error| RestoreError::io("remove", path, error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RestoreError::io("look at", path, error)),
        }
        symlink(target, path).map_err(|error| RestoreError::io("make the link", path, error))?;
        if owner.give {
            lchown(path, Some(owner.uid), Some(owner.gid))
                .map_err(|error| RestoreError::io("change the owner of", path, error))?;
        }
    }
    Ok(())
}

/// What is in the directories and not in the backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Strangers {
    /// The topmost paths, sorted: what is below a strange directory is strange too.
    pub(crate) paths: Vec<PathBuf>,
    /// Bytes that the known files take on the disk, by the number of their file system.
    pub(crate) kept_bytes: std::collections::BTreeMap<u64, u64>,
}

/// Finds what does not belong there. Links are not followed, but for those to tablespaces and WAL.
pub(crate) fn strangers(manifest: &Manifest, layout: &Layout) -> Result<Strangers, RestoreError> {
    let mut known = HashSet::with_capacity(manifest.entries.len() + 64);
    for target in directories(manifest, layout) {
        known.insert(key(&target.path));
    }
    for entry in &manifest.entries {
        match entry {
            Entry::File(file) if file.area == Area::Data => {
                known.insert(key(&layout.locate(&file.path)));
            }
            Entry::Link(link) if link.area == Area::Data => {
                known.insert(key(&layout.data().join(link.path.as_path())));
            }
            _ => {}
        }
    }
    for (path, _) in layout.links() {
        known.insert(key(&path));
    }
    for name in OURS {
        known.insert(key(&layout.data().join(name)));
    }
    let mut found = Strangers::default();
    walk(layout.data(), layout.data(), &known, &mut found)?;
    if let Some(wal) = layout.wal() {
        walk(wal, wal, &known, &mut found)?;
    }
    for tablespace in layout.tablespaces() {
        // Directories of other versions are another cluster's.
        let ours = tablespace.to.join(layout.version_directory());
        walk(&ours, &ours, &known, &mut found)?;
    }
    found.paths.sort();
    Ok(found)
}

fn key(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

fn walk(
    root: &Path,
    directory: &Path,
    known: &HashSet<u64>,
    found: &mut Strangers,
) -> Result<(), RestoreError> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(RestoreError::io("list", directory, error)),
    };
    for entry in listing {
        let entry = entry.map_err(|error| RestoreError::io("list", directory, error))?;
        let path = entry.path();
        if directory == root && entry.file_name() == "lost+found" {
            continue;
        }
        if !known.contains(&key(&path)) {
            found.paths.push(path);
            continue;
        }
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(RestoreError::io("look at", path, error)),
        };
        if metadata.is_dir() {
            walk(root, &path, known, found)?;
        } else if metadata.is_file() {
            *found.kept_bytes.entry(metadata.dev()).or_default() += metadata.blocks() * 512;
        }
    }
    Ok(())
}

/// Removes what does not belong there.
pub(crate) fn remove(paths: &[PathBuf]) -> Result<(), RestoreError> {
    for path in paths {
        let removed = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RestoreError::io("remove", path, error)),
        }
    }
    Ok(())
}

/// Makes everything below the roots durable: each file system at once where the kernel reports its errors,
/// else every file and directory.
pub(crate) fn sync(roots: &[PathBuf]) -> Result<(), RestoreError> {
    let mut seen = HashSet::new();
    for root in roots {
        let directory = File::open(root).map_err(|error| RestoreError::io("open", root, error))?;
        let device = directory
            .metadata()
            .map_err(|error| RestoreError::io("look at", root, error))?
            .dev();
        if !syncfs_reports_errors() {
            sync_each(root)?;
        } else if seen.insert(device) {
            rustix::fs::syncfs(&directory).map_err(|error| RestoreError::io("sync", root, error.into()))?;
        }
    }
    Ok(())
}

/// Since Linux 5.8 syncfs reports errors of writing back (syncfs(2)).
fn syncfs_reports_errors() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut number = || {
        numbers
            .next()
            .and_then(|digits| digits.parse::<u32>().ok())
            .unwrap_or(0)
    };
    (number(), number()) >= (5, 8)
}

fn sync_each(directory: &Path) -> Result<(), RestoreError> {
    let listing = fs::read_dir(directory).map_err(|error| RestoreError::io("list", directory, error))?;
    for entry in listing {
        let entry = entry.map_err(|error| RestoreError::io("list", directory, error))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .map_err(|error| RestoreError::io("look at", &path, error))?;
        if kind.is_dir() {
            sync_each(&path)?;
        } else if kind.is_file() {
            sync_one(&path)?;
        }
    }
    sync_one(directory)
}

/// Makes a file or directory durable.
pub(crate) fn sync_one(path: &Path) -> Result<(), RestoreError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| RestoreError::io("sync", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_replace_whatever_is_in_their_place() {
        let root = tempfile::tempdir().expect("a directory");
        let owner = Ownership {
            uid: 0,
            gid: 0,
            give: false,
        };
        let target = root.path().join("target");
        fs::create_dir(&target).expect("writable");
        fs::write(target.join("kept"), "").expect("writable");
        let (file, directory, link) = (
            root.path().join("f"),
            root.path().join("d"),
            root.path().join("l"),
        );
        fs::write(&file, "old").expect("writable");
        fs::create_dir(&directory).expect("writable");
        symlink("/nowhere", &link).expect("writable");
        let links: Vec<(PathBuf, PathBuf)> = [file, directory, link]
            .into_iter()
            .map(|path| (path, target.clone()))
            .collect();
        make_links(&links, owner).expect("made");
        make_links(&links, owner).expect("made again");
        for (path, target) in &links {
            assert_eq!(fs::read_link(path).expect("a link"), *target);
        }
        assert!(target.join("kept").exists());
    }

    #[test]
    fn what_is_removed_is_not_followed() {
        let root = tempfile::tempdir().expect("a directory");
        let outside = root.path().join("outside");
        fs::create_dir(&outside).expect("writable");
        fs::write(outside.join("precious"), "").expect("writable");
        let (link, directory) = (root.path().join("link"), root.path().join("directory"));
        symlink(&outside, &link).expect("writable");
        fs::create_dir(&directory).expect("writable");
        symlink(&outside, directory.join("inner")).expect("writable");
        remove(&[link.clone(), directory.clone(), root.path().join("absent")]).expect("removed");
        assert!(!link.exists() && !directory.exists());
        assert!(outside.join("precious").exists());
    }
}
