//! Objects as files of a directory.
//!
//! Every write is a temporary beside its target, synced, renamed, and the directory synced. Files are made
//! for their owner alone (0600, directories 0700): dumps hold everything that the database holds.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pgmahout_durable::{
    AtomicFile, DurableError, Overwrite, create_directory_durably, remove_durably, remove_stale_temporaries,
    sync_directory,
};
use tokio_util::sync::CancellationToken;

use super::bandwidth::Throttle;
use super::random::LocalObject;
use super::{ObjectEntry, PutMode};
use crate::error::{Action, Answer, StoreError, Subject};

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
const BUFFER: usize = 256 * 1024;
/// Temporaries that nobody holds open are removed when they are older than this: on file systems without
/// locks a living writer's would otherwise look abandoned.
const STALE_AFTER: Duration = Duration::from_hours(24);

#[derive(Debug, Clone)]
pub(super) struct LocalStore {
    root: PathBuf,
    repository: String,
    throttle: Throttle,
}

impl LocalStore {
    pub(super) fn new(root: PathBuf, repository: String, throttle: Throttle) -> Self {
        Self {
            root,
            repository,
            throttle,
        }
    }

    fn subject(&self, action: Action, object: &str) -> Subject {
        Subject {
            repository: self.repository.clone(),
            object: object.to_owned(),
            action,
        }
    }

    pub(super) fn listing_subject(&self, prefix: &str) -> Subject {
        self.subject(Action::List, prefix)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// An error of the file system, told by its cause. A missing root is told as that.
    fn error(&self, action: Action, name: &str, error: io::Error) -> StoreError {
        let subject = self.subject(action, name);
        if error.kind() == io::ErrorKind::NotFound && !self.root.is_dir() && name.is_empty() {
            return StoreError::RepositoryMissing {
                subject,
                kind: "directory",
            };
        }
        StoreError::from_io(error, subject)
    }

    fn durable(&self, action: Action, name: &str, error: DurableError) -> StoreError {
        durable(self.subject(action, name), error)
    }

    fn make_parent(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.path(name);
        // The root's own parent must exist: a repository on a file system that is not mounted must not be
        // made on the one below.
        let above = self
            .root
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if !above.is_dir() {
            return Err(StoreError::RepositoryMissing {
                subject: self.subject(Action::Write, name),
                kind: "directory",
            });
        }
        let parent = path.parent().expect("a name has at least the root above it");
        create_directory_durably(parent, DIRECTORY_MODE)
            .map_err(|error| self.durable(Action::Write, name, error))?;
        if let Some(owner) = self.owner() {
            self.give_directories(parent, owner)
                .map_err(|error| self.error(Action::Write, name, error))?;
        }
        Ok(path)
    }

    /// Whose the repository is, where root writes into a repository that is not root's: what root writes there
    /// is given to that account, which would otherwise be locked out of its own repository.
    fn owner(&self) -> Option<(u32, u32)> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let metadata = fs::metadata(&self.root).ok()?;
        (metadata.uid() != 0).then(|| (metadata.uid(), metadata.gid()))
    }

    fn give_directories(&self, lowest: &Path, owner: (u32, u32)) -> io::Result<()> {
        for directory in lowest.ancestors().take_while(|directory| *directory != self.root) {
            if fs::symlink_metadata(directory)?.uid() == owner.0 {
                break;
            }
            std::os::unix::fs::lchown(directory, Some(owner.0), Some(owner.1))?;
        }
        Ok(())
    }

    pub(super) fn put_bytes(&self, name: &str, bytes: &[u8], mode: PutMode) -> Result<(), StoreError> {
        let mut writer = self.writer(name, mode, CancellationToken::new())?;
        writer
            .write_all(bytes)
            .map_err(|error| self.error(Action::Write, name, error))?;
        writer.publish().map(|_| ())
    }

    pub(super) fn writer(
        &self,
        name: &str,
        mode: PutMode,
        cancellation: CancellationToken,
    ) -> Result<LocalWriter, StoreError> {
        let path = self.make_parent(name)?;
        let subject = self.subject(Action::Write, name);
        if mode == PutMode::Create && path.symlink_metadata().is_ok() {
            return Err(StoreError::AlreadyExists { subject });
        }
        let parent = path.parent().expect("a name has at least the root above it");
        if let Err(error) = remove_stale_temporaries(parent, STALE_AFTER) {
            tracing::debug!(%error, "stale temporaries were not removed");
        }
        let file =
            AtomicFile::create(&path, FILE_MODE).map_err(|error| self.durable(Action::Write, name, error))?;
        if let Some((user, group)) = self.owner() {
            file.set_owner(user, group)
                .map_err(|error| self.durable(Action::Write, name, error))?;
        }
        let file = BufWriter::with_capacity(BUFFER, file);
        Ok(LocalWriter {
            file,
            mode,
            subject,
            written: 0,
            throttle: self.throttle.clone(),
            cancellation,
            failed: false,
        })
    }

    /// Opens an object to read parts of it.
    pub(super) fn open_random(&self, name: &str) -> Result<LocalObject, StoreError> {
        let subject = self.subject(Action::Read, name);
        let failed = |error| self.error(Action::Read, name, error);
        let file = File::open(self.path(name)).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(StoreError::NotFound { subject });
        }
        Ok(LocalObject {
            file,
            size: metadata.size(),
            subject,
            throttle: self.throttle.clone(),
        })
    }

    pub(super) fn reader(
        &self,
        name: &str,
        cancellation: CancellationToken,
    ) -> Result<(LocalReader, ObjectEntry), StoreError> {
        let failed = |error| self.error(Action::Read, name, error);
        let file = File::open(self.path(name)).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(StoreError::NotFound {
                subject: self.subject(Action::Read, name),
            });
        }
        let entry = entry(name.to_owned(), &metadata);
        let reader = LocalReader {
            file,
            expected: metadata.size(),
            read: 0,
            subject: self.subject(Action::Read, name),
            throttle: self.throttle.clone(),
            cancellation,
        };
        Ok((reader, entry))
    }

    pub(super) fn get_bytes(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        let (reader, entry) = self.reader(name, CancellationToken::new())?;
        if entry.size > limit {
            return Err(StoreError::TooLarge {
                subject: self.subject(Action::Read, name),
                limit,
            });
        }
        let mut bytes = Vec::with_capacity(entry.size as usize);
        // One byte more, so that a file that grew is seen.
        reader
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.error(Action::Read, name, error))?;
        Ok(Bytes::from(bytes))
    }

    pub(super) fn head(&self, name: &str) -> Result<Option<ObjectEntry>, StoreError> {
        match fs::symlink_metadata(self.path(name)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(entry(name.to_owned(), &metadata))),
            Ok(_) => Ok(None),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(self.error(Action::Look, name, error)),
        }
    }

    /// All objects below a prefix, by name, one directory's run of files at a time.
    pub(super) fn list_each(
        &self,
        prefix: &str,
        cancellation: &CancellationToken,
        mut each: impl FnMut(Vec<ObjectEntry>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if prefix.is_empty() && !self.root.is_dir() {
            // Told apart from a repository that is empty: an unmounted disk must not look like no backups.
            let error = fs::read_dir(&self.root)
                .err()
                .unwrap_or_else(|| io::ErrorKind::NotFound.into());
            return Err(self.error(Action::List, "", error));
        }
        let mut page = Vec::new();
        // What is still to be looked at, the next one last.
        let mut rest = vec![Listed::Directory(prefix.to_owned())];
        while let Some(listed) = rest.pop() {
            match listed {
                Listed::Object(entry) => page.push(entry),
                Listed::Directory(directory) => {
                    if cancellation.is_cancelled() {
                        return Err(StoreError::Cancelled {
                            subject: self.subject(Action::List, prefix),
                        });
                    }
                    rest.extend(self.list_directory(&directory)?);
                }
            }
            if page.len() >= LISTING_PAGE {
                each(std::mem::take(&mut page))?;
            }
        }
        if page.is_empty() { Ok(()) } else { each(page) }
    }

    /// What is in one directory, the last by name first: as whole names sort, in which `/` comes after `.`.
    fn list_directory(&self, directory: &str) -> Result<Vec<Listed>, StoreError> {
        let failed = |error| self.error(Action::List, directory, error);
        let entries = match fs::read_dir(self.path(directory)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for listed in entries {
            let listed = listed.map_err(failed)?;
            let Ok(file_name) = listed.file_name().into_string() else {
                continue;
            };
            // Temporaries and whatever else begins with a dot are no objects.
            if file_name.starts_with('.') {
                continue;
            }
            let name = if directory.is_empty() {
                file_name
            } else {
                format!("{directory}/{file_name}")
            };
            match listed.metadata() {
                Ok(metadata) if metadata.is_dir() => found.push(Listed::Directory(name)),
                Ok(metadata) if metadata.is_file() => found.push(Listed::Object(entry(name, &metadata))),
                Ok(_) => {}
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        found.sort_by_cached_key(|listed| std::cmp::Reverse(listed.order()));
        Ok(found)
    }

    pub(super) fn delete(&self, name: &str) -> Result<bool, StoreError> {
        remove_durably(self.path(name)).map_err(|error| self.durable(Action::Delete, name, error))
    }

    /// Deletes many, and syncs each directory once at the end. What failed does not keep the others.
    pub(super) fn delete_many(
        &self,
        names: &[String],
        cancellation: &CancellationToken,
    ) -> Result<(), StoreError> {
        let mut first_error = None;
        let mut directories = BTreeSet::new();
        for name in names {
            if cancellation.is_cancelled() {
                first_error.get_or_insert(StoreError::Cancelled {
                    subject: self.subject(Action::Delete, name),
                });
                break;
            }
            let path = self.path(name);
            match fs::remove_file(&path) {
                Ok(()) => {
                    directories.extend(path.parent().map(Path::to_owned));
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) => {}
                Err(error) => {
                    first_error.get_or_insert(self.error(Action::Delete, name, error));
                }
            }
        }
        for directory in directories {
            if let Err(error) = sync_directory(&directory) {
                first_error.get_or_insert(self.durable(Action::Delete, "", error));
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Entries that a listing gives at a time.
const LISTING_PAGE: usize = 1000;

enum Listed {
    Object(ObjectEntry),
    Directory(String),
}

impl Listed {
    /// By what it sorts among names: those below a directory go on with `/`.
    fn order(&self) -> Vec<u8> {
        let (name, end) = match self {
            Self::Object(entry) => (&entry.name, None),
            Self::Directory(name) => (name, Some(b'/')),
        };
        name.bytes().chain(end).collect()
    }
}

fn entry(name: String, metadata: &fs::Metadata) -> ObjectEntry {
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    ObjectEntry {
        name,
        size: metadata.len(),
        modified,
    }
}

fn durable(subject: Subject, error: DurableError) -> StoreError {
    match error {
        DurableError::Exists { .. } => StoreError::AlreadyExists { subject },
        DurableError::PermissionDenied { .. } => {
            let source = Answer(error.to_string());
            StoreError::PermissionDenied { subject, source }
        }
        DurableError::NoSpace { .. } => StoreError::NoSpace { subject },
        DurableError::ReadOnly { .. } => StoreError::ReadOnly { subject },
        DurableError::NotFound { .. } if subject.action != Action::Write => StoreError::NotFound { subject },
        other => StoreError::Other {
            subject,
            source: Box::new(other),
        },
    }
}

pub(super) struct LocalWriter {
    file: BufWriter<AtomicFile>,
    mode: PutMode,
    subject: Subject,
    written: u64,
    throttle: Throttle,
    cancellation: CancellationToken,
    /// Set by a failed write: what is in the file is then not what was given.
    failed: bool,
}

impl LocalWriter {
    pub(super) fn name(&self) -> &str {
        &self.subject.object
    }

    pub(super) fn publish(self) -> Result<ObjectEntry, StoreError> {
        let Self {
            file,
            mode,
            subject,
            written,
            cancellation,
            failed,
            ..
        } = self;
        if cancellation.is_cancelled() {
            return Err(StoreError::Cancelled { subject });
        }
        if failed {
            let source = io::Error::other("an earlier write has failed").into();
            return Err(StoreError::Other { subject, source });
        }
        let file = match file.into_inner() {
            Ok(file) => file,
            Err(error) => return Err(StoreError::from_io(error.into_error(), subject)),
        };
        let overwrite = match mode {
            PutMode::Create => Overwrite::Refuse,
            PutMode::Overwrite => Overwrite::Replace,
        };
        file.publish(overwrite)
            .map_err(|error| durable(subject.clone(), error))?;
        Ok(ObjectEntry {
            name: subject.object,
            size: written,
            modified: SystemTime::now(),
        })
    }

    pub(super) fn abort(self) -> Result<(), StoreError> {
        // What is still in the buffer is not wanted.
        let (file, _) = self.file.into_parts();
        file.discard().map_err(|error| durable(self.subject, error))
    }
}

impl Write for LocalWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancellation.is_cancelled() {
            return Err(StoreError::Cancelled {
                subject: self.subject.clone(),
            }
            .into());
        }
        let piece = self.throttle.piece(bytes.len());
        self.throttle.take_blocking(piece);
        match self.file.write(&bytes[..piece]) {
            Ok(count) => {
                self.written += count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.failed = true;
                Err(StoreError::from_io(error, self.subject.clone()).into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|error| {
            self.failed = true;
            StoreError::from_io(error, self.subject.clone()).into()
        })
    }
}

pub(super) struct LocalReader {
    file: File,
    expected: u64,
    read: u64,
    subject: Subject,
    throttle: Throttle,
    cancellation: CancellationToken,
}

impl Read for LocalReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancellation.is_cancelled() {
            return Err(StoreError::Cancelled {
                subject: self.subject.clone(),
            }
            .into());
        }
        let piece = self.throttle.piece(buffer.len());
        let count = match self.file.read(&mut buffer[..piece]) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(StoreError::from_io(error, self.subject.clone()).into());
            }
            other => other?,
        };
        self.throttle.take_blocking(count);
        self.read += count as u64;
        if count == 0 && !buffer.is_empty() && self.read != self.expected {
            // Objects are never written in place; somebody cut or extended this one.
            return Err(StoreError::Changed {
                subject: self.subject.clone(),
            }
            .into());
        }
        Ok(count)
    }
}
