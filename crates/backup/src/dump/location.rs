//! Where dumps lie, and what their files are called.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use jiff::{Timestamp, Zoned};
use pgmahout_durable::{AtomicFile, DurableError, Overwrite, remove_durably, write_atomically};
use pgmahout_store::StoreError;
use pgmahout_store::codec::Codec;
use pgmahout_store::repository::{ObjectEntry, ObjectWriter, PutMode, Repository, encode_component};
use tokio_util::sync::CancellationToken;

use super::error::DumpError;
use super::manifest::Format;

/// Permission bits of what we write: dumps hold everything that the database holds.
const MODE: u32 = 0o600;

/// The ending of encrypted files.
pub const ENCRYPTED_EXTENSION: &str = ".enc";

/// Under what the dumps of a repository lie.
const PREFIX: &str = "dumps";

/// The largest manifest that is read: a hundred thousand tables with long names.
const LARGEST_SMALL_FILE: u64 = 64 * 1024 * 1024;

/// A place that holds dumps.
#[derive(Debug, Clone)]
pub enum Place {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A repository.
    Repository(Repository),
}

/// Something found in a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its file name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was last written.
    pub modified: Timestamp,
}

impl Place {
    /// Splits a path into the directory that holds it and its name there.
    ///
    /// `None` when the path has no name, such as `/` or `..`, or one that is not UTF-8.
    pub fn of_path(path: &Path) -> Option<(Self, String)> {
        let name = path.file_name()?.to_str()?.to_owned();
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Some((Self::Directory(directory), name))
    }

    /// The place, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Directory(directory) => directory.display().to_string(),
            Self::Repository(repository) => repository.description().to_owned(),
        }
    }

    /// A file of the place, for people; of a directory, a path that other programs can open.
    pub fn describe_file(&self, name: &str) -> String {
        match self {
            Self::Directory(directory) if directory == Path::new(".") => name.to_owned(),
            Self::Directory(directory) => directory.join(name).display().to_string(),
            Self::Repository(repository) => format!("{}/{PREFIX}/{name}", repository.location()),
        }
    }

    /// The directory, where the place is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(directory) => Some(directory),
            Self::Repository(_) => None,
        }
    }

    /// What is there, by name. Hidden files (temporaries among them) and directories are left out.
    ///
    /// # Errors
    /// When the place cannot be read.
    pub async fn list(&self) -> Result<Vec<Item>, DumpError> {
        match self {
            Self::Directory(directory) => {
                let mut items = list_directory(directory)
                    .map_err(|error| DurableError::from_io("read", directory, error))?;
                items.sort_by(|one, other| one.name.cmp(&other.name));
                Ok(items)
            }
            Self::Repository(repository) => {
                let entries = repository.list(PREFIX, &CancellationToken::new()).await?;
                Ok(entries.iter().filter_map(of_entry).collect())
            }
        }
    }

    /// What is known of one file; `None` when there is none.
    ///
    /// # Errors
    /// When the place cannot be asked.
    pub async fn find(&self, name: &str) -> Result<Option<Item>, DumpError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                match fs::metadata(&path).and_then(|metadata| item(name.to_owned(), &metadata)) {
                    Ok(item) => Ok(Some(item)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(DurableError::from_io("look at", &path, error).into()),
                }
            }
            Self::Repository(repository) => {
                Ok(repository.head(&object(name)).await?.as_ref().and_then(of_entry))
            }
        }
    }

    /// Reads a small file, such as a manifest, whole; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DumpError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(DurableError::from_io("read", &path, error).into()),
                }
            }
            Self::Repository(repository) => {
                match repository.get_bytes(&object(name), LARGEST_SMALL_FILE).await {
                    Ok(bytes) => Ok(Some(bytes.to_vec())),
                    Err(StoreError::NotFound { .. }) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Writes a small file, such as a manifest, whole and durably, replacing what is there.
    ///
    /// # Errors
    /// When it cannot be written; then what was there is still there.
    pub async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), DumpError> {
        match self {
            Self::Directory(directory) => Ok(write_atomically(directory.join(name), &bytes, MODE)?),
            Self::Repository(repository) => Ok(repository
                .put_bytes(&object(name), bytes, PutMode::Overwrite)
                .await?),
        }
    }

    /// Removes a file; `false` when there was none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self, name: &str) -> Result<bool, DumpError> {
        match self {
            Self::Directory(directory) => Ok(remove_durably(directory.join(name))?),
            Self::Repository(repository) => Ok(repository.delete(&object(name)).await?),
        }
    }

    /// Opens a file for reading on a blocking thread.
    ///
    /// # Errors
    /// When it is missing or cannot be opened.
    pub async fn open(
        &self,
        name: &str,
        cancellation: &CancellationToken,
    ) -> Result<Box<dyn Read + Send>, DumpError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                let file = File::open(&path).map_err(|error| DurableError::from_io("open", &path, error))?;
                Ok(Box::new(file))
            }
            Self::Repository(repository) => {
                Ok(Box::new(repository.reader(&object(name), cancellation).await?))
            }
        }
    }

    /// Tries whether a file could be made, and leaves nothing.
    ///
    /// # Errors
    /// When it could not.
    pub(crate) async fn probe(&self, name: &str) -> Result<(), DumpError> {
        match self {
            Self::Directory(directory) => Ok(AtomicFile::create(directory.join(name), MODE)?.discard()?),
            Self::Repository(repository) => {
                // The directory of a new repository is made with its first object.
                match repository.list(PREFIX, &CancellationToken::new()).await {
                    Ok(_)
                    | Err(StoreError::RepositoryMissing {
                        kind: "directory", ..
                    }) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Begins a file that gets its name only when it is published.
    ///
    /// # Errors
    /// When the place cannot be written, or the name is taken and may not be.
    pub(crate) async fn create(
        &self,
        name: &str,
        overwrite: Overwrite,
        cancellation: &CancellationToken,
    ) -> Result<Pending, DumpError> {
        match self {
            Self::Directory(directory) => {
                let file = AtomicFile::create(directory.join(name), MODE)?;
                Ok(Pending::File { file, overwrite })
            }
            Self::Repository(repository) => {
                let mode = match overwrite {
                    Overwrite::Refuse => PutMode::Create,
                    Overwrite::Replace => PutMode::Overwrite,
                };
                let writer = repository.writer(&object(name), mode, cancellation).await?;
                Ok(Pending::Object(Uploading(Some(writer))))
            }
        }
    }
}

/// The object of a file.
fn object(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

/// An object as a file; `None` for objects deeper down, which are none of ours.
fn of_entry(entry: &ObjectEntry) -> Option<Item> {
    let name = entry.name.strip_prefix(PREFIX)?.strip_prefix('/')?;
    if name.contains('/') {
        return None;
    }
    Some(Item {
        name: name.to_owned(),
        bytes: entry.size,
        modified: Timestamp::try_from(entry.modified).unwrap_or(Timestamp::MIN),
    })
}

fn list_directory(directory: &Path) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A name that is not UTF-8 is none of ours, and nothing that our commands could name.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        match fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_file() => items.push(item(name, &metadata)?),
            Ok(_) => {}
            // Removed meanwhile, or a link to nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(items)
}

fn item(name: String, metadata: &fs::Metadata) -> io::Result<Item> {
    let modified = Timestamp::try_from(metadata.modified()?).unwrap_or(Timestamp::MIN);
    Ok(Item {
        name,
        bytes: metadata.len(),
        modified,
    })
}

/// A file being written. Dropped, it is gone.
///
/// In a directory it is read back under its temporary name and then published. An object of a repository
/// cannot be read before it is complete under its name: there it is published first, and whoever reads it
/// back removes it when it is wrong ([`Written::discard`]).
#[derive(Debug)]
pub(crate) enum Pending {
    /// On this machine.
    File {
        /// The temporary.
        file: AtomicFile,
        /// What publishing does when the name is taken.
        overwrite: Overwrite,
    },
    /// In a repository.
    Object(Uploading),
}

/// An upload whose parts are removed before the thread goes on when it is dropped.
pub(crate) struct Uploading(Option<ObjectWriter>);

impl std::fmt::Debug for Uploading {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("Uploading")
            .field(&self.0.as_ref().map(ObjectWriter::name))
            .finish()
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        use tokio::runtime::{Handle, RuntimeFlavor};
        let Some(writer) = self.0.take() else { return };
        // Dropping a writer waits for the runtime, which one of its own threads must not do as such.
        match Handle::try_current() {
            Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(move || drop(writer));
            }
            _ => drop(writer),
        }
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File { file, .. } => file.write(bytes),
            Self::Object(Uploading(writer)) => writer.as_mut().expect("taken only by the end").write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File { file, .. } => file.flush(),
            Self::Object(Uploading(writer)) => writer.as_mut().expect("taken only by the end").flush(),
        }
    }
}

impl Pending {
    /// All bytes are in: makes them durable, and readable where they are. Blocks.
    pub(crate) fn complete(self) -> Result<Written, DumpError> {
        match self {
            Self::File { file, overwrite } => {
                file.file()
                    .sync_all()
                    .map_err(|error| DurableError::from_io("fsync", file.target(), error))?;
                Ok(Written::File { file, overwrite })
            }
            Self::Object(mut uploading) => {
                let writer = uploading.0.take().expect("taken only by the end");
                let entry = writer.publish()?;
                let name = of_entry(&entry).expect("we named it").name;
                Ok(Written::Object { name })
            }
        }
    }
}

/// A file that is complete where it is stored, but not yet known to be right.
#[derive(Debug)]
pub(crate) enum Written {
    /// Under its temporary name; dropped, it is gone.
    File {
        /// The temporary.
        file: AtomicFile,
        /// What publishing does when the name is taken.
        overwrite: Overwrite,
    },
    /// Under its name in the repository.
    Object {
        /// Its name.
        name: String,
    },
}

impl Written {
    /// What was written, from where it is stored: dropped from the page cache first, so that the disk has to
    /// answer, as far as the system lets us.
    pub(crate) async fn read_back(
        &self,
        place: &Place,
        cancellation: &CancellationToken,
    ) -> Result<Box<dyn Read + Send>, DumpError> {
        match self {
            Self::File { file, .. } => {
                let reader = File::open(file.temporary_path())
                    .map_err(|error| DurableError::from_io("open", file.target(), error))?;
                // Advice only: a file system without a page cache of this kind reads from the disk anyway.
                let _ = rustix::fs::fadvise(&reader, 0, None, rustix::fs::Advice::DontNeed);
                let _ = rustix::fs::fadvise(&reader, 0, None, rustix::fs::Advice::Sequential);
                Ok(Box::new(reader))
            }
            Self::Object { name } => place.open(name, cancellation).await,
        }
    }

    /// Gives the file its name, where it does not have it.
    ///
    /// # Errors
    /// When the name is taken and may not be, or the place fails; then nothing is left of the file.
    pub(crate) fn publish(self) -> Result<(), DumpError> {
        match self {
            Self::File { file, overwrite } => Ok(file.publish(overwrite)?),
            Self::Object { .. } => Ok(()),
        }
    }

    /// Removes it. Best effort: this follows an error that is told instead.
    pub(crate) async fn discard(self, place: &Place) {
        match self {
            Self::File { file, .. } => drop(file),
            Self::Object { name } => {
                if let Err(error) = place.remove(&name).await {
                    tracing::error!(%error, name, "a dump that is not sound could not be removed");
                }
            }
        }
    }
}

/// The name of a dump that was not given one: `backup_<database>_YYYY_MM_DD_HHmmss.sql.gz`.
pub fn default_file_name(database: &str, at: &Zoned, ending: &str) -> String {
    format!(
        "backup_{}_{}{ending}",
        file_name_part(database),
        at.strftime("%Y_%m_%d_%H%M%S")
    )
}

/// What the names of archives end in: form, compression, encryption.
pub fn ending(format: Format, codec: Codec, encrypted: bool) -> String {
    let mut ending = format.extension().to_owned();
    if codec != Codec::None {
        ending.push('.');
        ending.push_str(codec.extension());
    }
    if encrypted {
        ending.push_str(ENCRYPTED_EXTENSION);
    }
    ending
}

/// The longest part of a file name that a database's name may be.
const LONGEST_PART: usize = 120;

/// A database's name as part of a file name: what could mean something to a file system, a shell or an
/// object store is written as `=` and two hexadecimal digits; a very long name is cut.
pub fn file_name_part(name: &str) -> String {
    let mut part = encode_component(name);
    if part.len() > LONGEST_PART {
        // Never in the middle of an escape.
        let cut = (LONGEST_PART - 2..=LONGEST_PART)
            .find(|&end| !part[end - 2..end].contains('='))
            .unwrap_or(LONGEST_PART - 2);
        part.truncate(cut);
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_name_is_the_one_people_know() {
        let at: Zoned = "2026-11-21T03:15:00+01:00[+01:00]".parse().expect("a time");
        let name = default_file_name("shop", &at, &ending(Format::Plain, Codec::GZIP, false));
        assert_eq!(name, "backup_shop_2026_11_21_031500.sql.gz");
    }

    #[test]
    fn names_say_what_is_inside() {
        assert_eq!(ending(Format::Custom, Codec::ZSTD, true), ".dump.zst.enc");
        assert_eq!(ending(Format::Directory, Codec::Lz4, false), ".dir.tar.lz4");
        assert_eq!(ending(Format::Plain, Codec::None, false), ".sql");
    }

    #[test]
    fn a_database_name_cannot_leave_the_directory() {
        assert_eq!(file_name_part("../etc/passwd"), "=2E.=2Fetc=2Fpasswd");
        assert_eq!(file_name_part("my shop\n"), "my=20shop=0A");
        assert_eq!(file_name_part("Läden"), "L=C3=A4den");
        for length in 35..63 {
            let part = file_name_part(&format!("{}{}", "x".repeat(length % 3), "/".repeat(length)));
            assert!(
                part.len() <= 120 && (part.len() - length % 3).is_multiple_of(3),
                "{part}"
            );
        }
    }

    #[test]
    fn a_path_is_split_into_directory_and_name() {
        let (place, name) = Place::of_path(Path::new("daily/shop.sql.gz")).expect("a file");
        assert_eq!(
            (place.describe_file(&name).as_str(), name.as_str()),
            ("daily/shop.sql.gz", "shop.sql.gz")
        );
        let (place, name) = Place::of_path(Path::new("shop.sql.gz")).expect("a file");
        assert_eq!(place.describe_file(&name), "shop.sql.gz");
        assert!(Place::of_path(Path::new("/")).is_none());
    }
}
