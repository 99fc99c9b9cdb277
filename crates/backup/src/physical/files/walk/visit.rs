//! The walk itself: directory by directory, without recursion.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::super::stamp;
use super::classify::{DirectoryKind, DirectoryVerdict, Fork};
use super::{
    CancellationToken, Contents, DirectoryEntry, FileList, FileVerdict, LinkEntry, OsStr, OsStrExt, Packed,
    Path, PathBuf, SkipReason, TablespaceEntry, Timestamp, WalkError, WalkOptions, WalkWarning, classify,
    joined,
};

/// Files between two looks at the cancellation token.
const CHECK_EVERY: usize = 4096;

/// What makes two directories the same: device and inode.
type Identity = (u64, u64);

pub(super) struct Visitor<'a> {
    data_dir: &'a Path,
    options: &'a WalkOptions,
    cancel: &'a CancellationToken,
    root: OwnedFd,
    /// The data directory and all tablespaces as the system sees them, without links.
    real_roots: Vec<PathBuf>,
    /// Targets of tablespaces' links.
    tablespace_targets: HashSet<Identity>,
    /// Directories outside to which links have led.
    followed: HashSet<Identity>,
    list: FileList,
    /// When the walk began.
    begun: Timestamp,
    /// Directories still to be listed, by their index; the last is the next.
    pending: Vec<(usize, DirectoryKind)>,
}

/// Something that a directory holds, before it is known what it is.
struct Found {
    name: Box<CStr>,
    kind: FileType,
}

impl<'a> Visitor<'a> {
    pub(super) fn new(
        data_dir: &'a Path,
        options: &'a WalkOptions,
        cancel: &'a CancellationToken,
    ) -> Result<Self, WalkError> {
        let missing = |source: std::io::Error| WalkError::NotADataDirectory {
            path: data_dir.to_owned(),
            source,
        };
        let root = match open_directory(CWD, data_dir.as_os_str().as_bytes()) {
            Ok(root) => root,
            Err(error @ (Errno::NOENT | Errno::NOTDIR)) => return Err(missing(error.into())),
            Err(error) => return Err(WalkError::new("list", data_dir.to_owned(), error)),
        };
        let real = data_dir.canonicalize().map_err(missing)?;
        Ok(Self {
            data_dir,
            options,
            cancel,
            root,
            real_roots: vec![real],
            tablespace_targets: HashSet::new(),
            followed: HashSet::new(),
            list: FileList::default(),
            begun: Timestamp::now(),
            pending: Vec::new(),
        })
    }

    pub(super) fn run(mut self) -> Result<FileList, WalkError> {
        self.find_tablespaces()?;
        let stat = rustix::fs::fstat(&self.root)
            .map_err(|error| WalkError::new("look at", self.data_dir.to_owned(), error))?;
        let index = self.add_directory(Vec::new(), &stat, Contents::Listed, None);
        self.pending.push((index, DirectoryKind::Other));
        while let Some((index, kind)) = self.pending.pop() {
            if self.cancel.is_cancelled() {
                return Err(WalkError::Cancelled);
            }
            self.visit(index, kind)?;
        }
        self.list.tablespaces.sort_by_key(|tablespace| tablespace.oid);
        Ok(self.list)
    }

    /// Where the links to tablespaces lead, so that those within the data directory are known when the walk
    /// comes to them.
    fn find_tablespaces(&mut self) -> Result<(), WalkError> {
        let Some((directory, found)) = self.list_directory(classify::TABLESPACE_DIRECTORY.as_bytes())? else {
            return Ok(());
        };
        for Found { name, .. } in found {
            let Ok(link) = rustix::fs::readlinkat(&directory, &*name, Vec::new()) else {
                continue;
            };
            if let Ok(stat) = rustix::fs::statat(&directory, &*name, AtFlags::empty()) {
                self.tablespace_targets.insert(identity(&stat));
                let path = self.data_dir.join(classify::TABLESPACE_DIRECTORY);
                if let Ok(real) = path.join(OsStr::from_bytes(link.to_bytes())).canonicalize() {
                    self.real_roots.push(real);
                }
            }
        }
        Ok(())
    }

    /// Opens and reads a directory; `None` where it has vanished.
    fn list_directory(&mut self, path: &[u8]) -> Result<Option<(OwnedFd, Vec<Found>)>, WalkError> {
        let error = |visitor: &Self, error| Err(WalkError::new("list", visitor.full(path), error));
        let opened = match path {
            b"" => open_directory(self.root.as_fd(), b"."),
            _ => open_directory(self.root.as_fd(), path),
        };
        let directory = match opened {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.list.skipped.vanished += 1;
                return Ok(None);
            }
            Err(problem) => return error(self, problem),
        };
        let mut entries = match Dir::read_from(&directory) {
            Ok(entries) => entries,
            Err(problem) => return error(self, problem),
        };
        let mut found = Vec::new();
        while let Some(entry) = entries.read() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => found.push(Found {
                    name: entry.file_name().into(),
                    kind: entry.file_type(),
                }),
                Err(problem) => return error(self, problem),
            }
        }
        Ok(Some((directory, found)))
    }

    fn visit(&mut self, index: usize, kind: DirectoryKind) -> Result<(), WalkError> {
        let path = self.list.directories[index].path.clone();
        let Some((directory, mut found)) = self.list_directory(&path)? else {
            return Ok(());
        };
        match kind {
            DirectoryKind::Database { .. } => self.leave_out_unlogged(&mut found),
            DirectoryKind::Tablespace(oid) => {
                found.retain(|entry| entry.name.to_bytes() == self.options.version_directory.as_bytes());
                if found.is_empty() {
                    self.list.warnings.push(WalkWarning::EmptyTablespace { oid });
                }
            }
            DirectoryKind::Tablespaces | DirectoryKind::Other => {}
        }
        found.sort_by_cached_key(|entry| {
            let name = entry.name.to_bytes();
            let relation = classify::relation(name);
            (relation.is_none(), relation, name.to_vec())
        });
        let before = self.pending.len();
        for (number, entry) in found.iter().enumerate() {
            if number % CHECK_EVERY == CHECK_EVERY - 1 && self.cancel.is_cancelled() {
                return Err(WalkError::Cancelled);
            }
            self.look_at(
                index,
                joined(&path, entry.name.to_bytes()),
                directory.as_fd(),
                entry,
            )?;
        }
        // The first of them is to be the next.
        self.pending[before..].reverse();
        Ok(())
    }

    /// Removes all forks of unlogged relations but the init forks, by which they are known.
    fn leave_out_unlogged(&mut self, found: &mut Vec<Found>) {
        let relation = |entry: &Found| classify::relation(entry.name.to_bytes());
        let unlogged: HashSet<u32> = found
            .iter()
            .filter_map(relation)
            .filter_map(|(number, fork, _)| (fork == Fork::Init).then_some(number))
            .collect();
        if unlogged.is_empty() {
            return;
        }
        let skipped = &mut self.list.skipped;
        found.retain(|entry| match relation(entry) {
            Some((number, fork, _)) if fork != Fork::Init && unlogged.contains(&number) => {
                skipped.count(SkipReason::Unlogged);
                false
            }
            _ => true,
        });
    }

    fn look_at(
        &mut self,
        parent: usize,
        path: Vec<u8>,
        directory: BorrowedFd<'_>,
        entry: &Found,
    ) -> Result<(), WalkError> {
        // What is left out is not even looked at, where the directory says what it is.
        if entry.kind == FileType::RegularFile
            && let FileVerdict::Skip(reason) = classify::file(&path)
        {
            self.list.skipped.count(reason);
            return Ok(());
        }
        let stat = match rustix::fs::statat(directory, &*entry.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                self.list.skipped.vanished += 1;
                return Ok(());
            }
            Err(error) => return Err(WalkError::new("look at", self.full(&path), error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.regular(parent, &path, &stat, None),
            FileType::Directory => self.directory(path, &stat),
            FileType::Symlink => self.link(parent, path, directory, &entry.name, &stat)?,
            _ => self.list.warnings.push(WalkWarning::Special {
                path: PathBuf::from(OsStr::from_bytes(&path)),
            }),
        }
        Ok(())
    }

    fn regular(&mut self, parent: usize, path: &[u8], stat: &Stat, link: Option<PathBuf>) {
        if let FileVerdict::Skip(reason) = classify::file(path) {
            self.list.skipped.count(reason);
            return;
        }
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let packed = Packed {
            name_at: self.list.names.len() as u64,
            // Names have at most 255 bytes (`NAME_MAX`), and directories are counted in memory.
            name_length: name.len() as u16,
            directory: parent as u32,
            size,
            modified: modified(stat),
            stamp: stamp::of(stat, self.begun),
            owner: self.list.owners.index(stat.st_uid, stat.st_gid),
            mode: mode(stat),
        };
        self.list.names.extend_from_slice(name);
        if let Some(target) = link {
            self.list.file_links.insert(self.list.files.len(), target);
        }
        self.list.files.push(packed);
        self.list.bytes += size;
    }

    fn directory(&mut self, path: Vec<u8>, stat: &Stat) {
        match classify::directory(&path) {
            DirectoryVerdict::Skip(reason) => self.list.skipped.count(reason),
            DirectoryVerdict::Empty => self.keep_empty(path, stat, None),
            DirectoryVerdict::Copy(_) if self.tablespace_targets.contains(&identity(stat)) => {
                self.add_directory(path, stat, Contents::Elsewhere, None);
            }
            DirectoryVerdict::Copy(kind) => {
                if let DirectoryKind::Tablespace(oid) = kind {
                    self.list
                        .tablespaces
                        .push(TablespaceEntry { oid, location: None });
                }
                self.enter(path, stat, kind, None);
            }
        }
    }

    fn link(
        &mut self,
        parent: usize,
        path: Vec<u8>,
        directory: BorrowedFd<'_>,
        name: &CStr,
        own: &Stat,
    ) -> Result<(), WalkError> {
        let target = match rustix::fs::readlinkat(directory, name, Vec::new()) {
            Ok(target) => PathBuf::from(OsStr::from_bytes(target.to_bytes())),
            // It has vanished, or has become something else.
            Err(Errno::NOENT | Errno::INVAL) => {
                self.list.skipped.vanished += 1;
                return Ok(());
            }
            Err(error) => return Err(WalkError::new("look at", self.full(&path), error)),
        };
        let stat = match rustix::fs::statat(directory, name, AtFlags::empty()) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                if matches!(classify::file(&path), FileVerdict::Copy(_)) {
                    self.list.warnings.push(WalkWarning::Dangling {
                        path: PathBuf::from(OsStr::from_bytes(&path)),
                        target: target.clone(),
                    });
                    self.add_link(path, target, own);
                }
                return Ok(());
            }
            Err(error) => return Err(WalkError::new("look at", self.full(&path), error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                if !matches!(classify::file(&path), FileVerdict::Copy(_)) || !self.leads_back(&path) {
                    self.regular(parent, &path, &stat, Some(target));
                } else {
                    self.add_link(path, target, own);
                }
            }
            FileType::Directory => match classify::directory(&path) {
                DirectoryVerdict::Skip(reason) => self.list.skipped.count(reason),
                DirectoryVerdict::Empty => self.keep_empty(path, &stat, Some(target)),
                DirectoryVerdict::Copy(kind @ DirectoryKind::Tablespace(oid)) => {
                    self.list.tablespaces.push(TablespaceEntry {
                        oid,
                        location: Some(target.clone()),
                    });
                    self.enter(path, &stat, kind, Some(target));
                }
                DirectoryVerdict::Copy(kind) => {
                    if self.leads_back(&path) || !self.followed.insert(identity(&stat)) {
                        self.add_link(path, target, own);
                    } else {
                        self.enter(path, &stat, kind, Some(target));
                    }
                }
            },
            _ => self.list.warnings.push(WalkWarning::Special {
                path: PathBuf::from(OsStr::from_bytes(&path)),
            }),
        }
        Ok(())
    }

    /// Whether a link leads to something that is listed under its own path, or that holds what is listed.
    fn leads_back(&self, path: &[u8]) -> bool {
        self.full(path).canonicalize().is_ok_and(|target| {
            self.real_roots
                .iter()
                .any(|root| target.starts_with(root) || root.starts_with(&target))
        })
    }

    /// A directory of which only the existence counts, and what PostgreSQL expects in it.
    fn keep_empty(&mut self, path: Vec<u8>, stat: &Stat, link: Option<PathBuf>) {
        let is_wal = path == classify::WAL_DIRECTORY.as_bytes();
        self.add_directory(path, stat, Contents::Empty, link);
        if is_wal {
            for below in classify::wal_subdirectories(self.options.major) {
                self.add_directory(below.as_bytes().to_vec(), stat, Contents::Empty, None);
            }
        }
    }

    fn enter(&mut self, path: Vec<u8>, stat: &Stat, kind: DirectoryKind, link: Option<PathBuf>) {
        let index = self.add_directory(path, stat, Contents::Listed, link);
        self.pending.push((index, kind));
    }

    fn add_directory(
        &mut self,
        path: Vec<u8>,
        stat: &Stat,
        contents: Contents,
        link: Option<PathBuf>,
    ) -> usize {
        let owner = self.list.owners.index(stat.st_uid, stat.st_gid);
        self.list.directories.push(DirectoryEntry {
            path: path.into(),
            mode: mode(stat),
            modified: modified(stat),
            owner,
            contents,
            link,
        });
        self.list.directories.len() - 1
    }

    fn add_link(&mut self, path: Vec<u8>, target: PathBuf, stat: &Stat) {
        let owner = self.list.owners.index(stat.st_uid, stat.st_gid);
        self.list.links.push(LinkEntry {
            path: path.into(),
            target,
            owner,
        });
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        self.data_dir.join(OsStr::from_bytes(path))
    }
}

fn open_directory(at: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

fn mode(stat: &Stat) -> u16 {
    (stat.st_mode & 0o7777) as u16
}

/// A time that no file system should have is taken for the nearest that there is.
fn modified(stat: &Stat) -> Timestamp {
    #[allow(clippy::unnecessary_cast, reason = "the type differs between machines")]
    let (seconds, nanoseconds) = (stat.st_mtime as i64, stat.st_mtime_nsec as i32);
    Timestamp::new(seconds, nanoseconds).unwrap_or(if seconds < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}
