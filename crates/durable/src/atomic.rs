//! A file that appears under its name only when it is complete and on the disk.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::directory::sync_directory;
use crate::error::{DurableError, parent_of};

/// What the names of temporaries contain, before the process id.
const INFIX: &str = ".pgmahout-";
/// What the names of temporaries end with.
const SUFFIX: &str = ".tmp";
/// The longest name that Linux file systems take, in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;

/// What [`AtomicFile::publish`] does when the target exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Replace it.
    Replace,
    /// Leave it and fail with [`DurableError::Exists`]. Two writers racing for one name: exactly one wins.
    Refuse,
}

/// A file being written under a temporary name in the directory of its target.
///
/// [`AtomicFile::publish`] makes it durable and gives it its name. Dropped before that, it is gone. A
/// process killed before that leaves the temporary, which [`crate::remove_stale_temporaries`] knows by its
/// name and by the lock that nobody holds any more.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    /// Whether the temporary still has to be removed on drop.
    pending: bool,
}

impl AtomicFile {
    /// Creates the temporary for `target`, with exactly the permission bits `mode` whatever the umask, owned
    /// by the process.
    ///
    /// # Errors
    ///
    /// When the directory is missing, not writable, full.
    pub fn create(target: impl AsRef<Path>, mode: u32) -> Result<Self, DurableError> {
        let target = target.as_ref();
        if target.file_name().is_none() {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(DurableError::Io {
                action: "create",
                path: target.to_path_buf(),
                source,
            });
        }
        let (file, temporary) = create_temporary(target)?;
        let pending = Self {
            file,
            temporary,
            target: target.to_path_buf(),
            pending: true,
        };
        pending
            .file
            .set_permissions(Permissions::from_mode(mode))
            .map_err(|error| pending.io("set the mode of", error))?;
        // Held as long as we live; where the file system has no locks, age alone decides what is stale.
        let _ = pending.file.try_lock();
        Ok(pending)
    }

    /// Creates the temporary for a file that is to be replaced: the new one gets the owner, group, mode,
    /// access list and SELinux label of the one that is there. Symbolic links are followed, so that the
    /// file that they lead to is replaced and not the link. Without an existing file this is
    /// [`AtomicFile::create`] with `default_mode`.
    ///
    /// This is for editing a file in place, such as `postgresql.conf` by root: the server must still be
    /// able to read it afterwards.
    ///
    /// # Errors
    ///
    /// As for [`AtomicFile::create`]; also when the owner cannot be kept (only root can give files away).
    pub fn replacing(target: impl AsRef<Path>, default_mode: u32) -> Result<Self, DurableError> {
        let target = target.as_ref();
        let resolved = match fs::canonicalize(target) {
            Ok(resolved) => resolved,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::create(target, default_mode);
            }
            Err(error) => return Err(DurableError::from_io("resolve", target, error)),
        };
        let existing =
            File::open(&resolved).map_err(|error| DurableError::from_io("open", &resolved, error))?;
        let metadata = existing
            .metadata()
            .map_err(|error| DurableError::from_io("stat", &resolved, error))?;
        let replacement = Self::create(&resolved, 0o600)?;
        let own = replacement
            .file
            .metadata()
            .map_err(|error| DurableError::from_io("stat", &resolved, error))?;
        if (own.uid(), own.gid()) != (metadata.uid(), metadata.gid()) {
            fchown(&replacement.file, Some(metadata.uid()), Some(metadata.gid()))
                .map_err(|error| replacement.io("keep the owner of", error))?;
        }
        replacement
            .file
            .set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))
            .map_err(|error| replacement.io("keep the mode of", error))?;
        copy_attributes(&existing, &replacement.file);
        Ok(replacement)
    }

    /// The name that the file will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The name that it has now.
    pub fn temporary_path(&self) -> &Path {
        &self.temporary
    }

    /// The open file, for reading and writing by other means.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file to another user and group.
    ///
    /// # Errors
    ///
    /// When the process may not (only root can give files away).
    pub fn set_owner(&self, user: u32, group: u32) -> Result<(), DurableError> {
        fchown(&self.file, Some(user), Some(group)).map_err(|error| self.io("change the owner of", error))
    }

    /// Fsyncs the file, gives it its name, and fsyncs the directory. After `Ok` it survives a crash.
    ///
    /// # Errors
    ///
    /// Before the name was given: the temporary is removed, the target is as it was. When only the fsync of
    /// the directory fails (`fsync` of the directory in the message) the file has its name, but a crash
    /// might undo that.
    pub fn publish(mut self, overwrite: Overwrite) -> Result<(), DurableError> {
        self.file.sync_all().map_err(|error| self.io("fsync", error))?;
        match overwrite {
            Overwrite::Replace => {
                fs::rename(&self.temporary, &self.target)
                    .map_err(|error| self.io("rename into place", error))?;
            }
            Overwrite::Refuse => self.rename_without_replacing()?,
        }
        self.pending = false;
        sync_directory(parent_of(&self.target))
    }

    /// Removes the temporary; the target stays as it was. Dropping does the same, but says nothing when the
    /// removal fails.
    ///
    /// # Errors
    ///
    /// When the temporary cannot be removed.
    pub fn discard(mut self) -> Result<(), DurableError> {
        self.pending = false;
        fs::remove_file(&self.temporary).map_err(|error| self.io("remove the temporary of", error))
    }

    fn rename_without_replacing(&self) -> Result<(), DurableError> {
        match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {
                return Err(DurableError::Exists {
                    path: self.target.clone(),
                });
            }
            // The file system (or an old kernel) does not know the flag: a hard link is as exclusive.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(self.io("rename into place", errno.into())),
        }
        match fs::hard_link(&self.temporary, &self.target) {
            Ok(()) => {
                fs::remove_file(&self.temporary).map_err(|error| self.io("remove the temporary of", error))
            }
            Err(error) => Err(match Errno::from_io_error(&error) {
                Some(Errno::EXIST) => DurableError::Exists {
                    path: self.target.clone(),
                },
                Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => DurableError::NoExclusiveCreate {
                    path: self.target.clone(),
                },
                _ => self.io("link", error),
            }),
        }
    }

    fn io(&self, action: &'static str, error: io::Error) -> DurableError {
        DurableError::from_io(action, &self.target, error)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.pending {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn write_vectored(&mut self, buffers: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.file.write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Read for AtomicFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Writes a whole file in one go, replacing what is there, with exactly the permission bits `mode`.
///
/// # Errors
///
/// See [`AtomicFile::create`] and [`AtomicFile::publish`].
pub fn write_atomically(path: impl AsRef<Path>, bytes: &[u8], mode: u32) -> Result<(), DurableError> {
    write_and_publish(AtomicFile::create(path, mode)?, bytes)
}

/// Writes a whole file in one go over an existing one, whose owner and mode it keeps; see
/// [`AtomicFile::replacing`].
///
/// # Errors
///
/// See [`AtomicFile::replacing`] and [`AtomicFile::publish`].
pub fn replace_atomically(
    path: impl AsRef<Path>,
    bytes: &[u8],
    default_mode: u32,
) -> Result<(), DurableError> {
    write_and_publish(AtomicFile::replacing(path, default_mode)?, bytes)
}

fn write_and_publish(mut file: AtomicFile, bytes: &[u8]) -> Result<(), DurableError> {
    file.write_all(bytes).map_err(|error| file.io("write", error))?;
    file.publish(Overwrite::Replace)
}

/// Whether a file name is that of a temporary of ours.
pub(crate) fn is_temporary_name(name: &str) -> bool {
    name.starts_with('.') && name.contains(INFIX) && name.ends_with(SUFFIX)
}

/// Opens a new file beside `target`, private until its mode is set.
fn create_temporary(target: &Path) -> Result<(File, PathBuf), DurableError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().expect("checked by the caller").as_bytes();
    loop {
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.subsec_nanos());
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let end = format!("{INFIX}{}-{count}-{clock:x}{SUFFIX}", std::process::id());
        let kept = name.len().min(NAME_MAX - 1 - end.len());
        let mut temporary_name = vec![b'.'];
        temporary_name.extend_from_slice(&name[..kept]);
        temporary_name.extend_from_slice(end.as_bytes());
        let temporary = parent_of(target).join(std::ffi::OsString::from_vec(temporary_name));
        match OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
        {
            Ok(file) => return Ok((file, temporary)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(DurableError::from_io("create", target, error)),
        }
    }
}

/// Carries over what mode and owner do not say. Best effort: not every file system has attributes, and not
/// every process may set them.
fn copy_attributes(from: &File, to: &File) {
    for name in ["system.posix_acl_access", "security.selinux"] {
        let mut value = vec![0_u8; 4096];
        if let Ok(length) = rustix::fs::fgetxattr(from, name, value.as_mut_slice()) {
            let _ = rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests;
