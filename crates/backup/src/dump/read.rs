//! Opens any dump as a stream of SQL that is known to be complete and authentic when it has ended.
//!
//! ```text
//! file, repository or stdin -> digest -> decryption -> decompression -> (pg_restore -f -) -> SQL
//! ```
//!
//! The stream's end is only reported after the whole file was read, every layer said that it was complete,
//! pg_restore ended with success, and the digest is the one that the manifest, or an earlier pass, says.
//! So a caller that acts on the end alone never acts on half a dump. [`Dump::open`] finds out what the file
//! is; [`Dump::inspect`] is the full pass before anything is written; [`Dump::sql`] is the pass that is
//! written.
//!
//! What has to lie on a disk to be read (archives in tar form, stdin) is spooled into an unnamed file, which
//! the system removes whatever happens to us; archives in directory form are unpacked into a directory that
//! only we can read and that is removed when the [`Dump`] is dropped,
//! or by the next [`Dump::open`] if we were killed. Memory: the layers' own bounds.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use pgmahout_procedure::report::Progress;
use pgmahout_store::digest::{Digest, DigestReader};
use pgmahout_store::seal::Keyring;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::detect::{self, First, Layer, Payload};
use super::location::Place;
use super::manifest::{BUNDLE_SUFFIX, DumpManifest};
use super::restore::error::RestoreError;
use super::restore::tools::Tools;
use super::scan::{Scan, ScanReport};

/// How much is read at a time.
const CHUNK: usize = 256 * 1024;

/// Where a dump comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file in a directory or a repository.
    Stored {
        /// The place.
        place: Place,
        /// Its name there.
        name: String,
    },
    /// A directory of `pg_dump -Fd`.
    Directory(PathBuf),
    /// Our standard input.
    Stdin,
}

impl Source {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Stored { place, name } => place.describe_file(name),
            Self::Directory(path) => path.display().to_string(),
            Self::Stdin => "standard input".to_owned(),
        }
    }

    /// What a path on the command line means: `-` is stdin, a directory one of `pg_dump -Fd`.
    ///
    /// # Errors
    /// When there is nothing at the path.
    pub fn of_path(path: &Path) -> Result<Self, RestoreError> {
        if path == Path::new("-") {
            return Ok(Self::Stdin);
        }
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RestoreError::NotFound {
                path: path.display().to_string(),
            },
            _ => RestoreError::Io {
                doing: "open",
                what: path.display().to_string(),
                source,
            },
        })?;
        if metadata.is_dir() {
            if !path.join("toc.dat").is_file() {
                return Err(RestoreError::Unknown {
                    what: path.display().to_string(),
                    why: "it is a directory without toc.dat".to_owned(),
                    hint: "name a file in it; pgmahout dump list shows which dumps a directory holds"
                        .to_owned(),
                });
            }
            return Ok(Self::Directory(path.to_path_buf()));
        }
        let (place, name) = Place::of_path(path).ok_or_else(|| RestoreError::NotFound {
            path: path.display().to_string(),
        })?;
        Ok(Self::Stored { place, name })
    }
}

/// How a dump is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Keys that may open it.
    pub keyring: Keyring,
    /// Where pg_restore is, when that was said.
    pub bin_dir: Option<PathBuf>,
    /// Where to unpack what must be unpacked; else the system's directory for that.
    pub temp_dir: Option<PathBuf>,
    /// Which file of a tar of several.
    pub member: Option<String>,
    /// The target's major version: archives are read by programs of that version or newer.
    pub target_major: u32,
}

/// A dump whose kind is known.
#[derive(Debug)]
pub struct Dump {
    what: String,
    origin: Origin,
    /// The file that was opened, whatever is read now.
    stored: Option<(Place, String)>,
    layers: Vec<Layer>,
    payload: Payload,
    manifest: Option<DumpManifest>,
    stored_bytes: Option<u64>,
    options: OpenOptions,
    /// The oldest pg_restore that reads it; 0 for SQL.
    needed_major: u32,
    /// The digest of the file, once it was read whole.
    known: Mutex<Option<Digest>>,
    /// Removed with us.
    unpacked_directory: Option<PrivateDirectory>,
}

/// What is read.
#[derive(Debug)]
enum Origin {
    Stored { place: Place, name: String },
    Spooled(File),
    Directory(PathBuf),
}

impl Dump {
    /// Finds out what it is. Reads its beginning, all of it if it is a tar or comes from stdin.
    ///
    /// # Errors
    /// When it cannot be read or decrypted, or is no dump.
    pub async fn open(source: Source, options: OpenOptions) -> Result<Self, RestoreError> {
        let what = source.describe();
        let parent = options.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
        blocking(move || remove_stale(&parent)).await;
        match source {
            Source::Directory(path) => Ok(Self::of_directory(what, path, options)),
            Source::Stored { place, name } => {
                if name.ends_with(BUNDLE_SUFFIX) {
                    return Err(RestoreError::Usage {
                        what: format!("{what} is the list of a bundle, not a dump"),
                        hint: "restore its members one by one: pgmahout dump show tells their names"
                            .to_owned(),
                    });
                }
                let item = place.find(&name).await?;
                let Some(item) = item else {
                    return Err(RestoreError::NotFound { path: what });
                };
                let manifest = match place.read(&DumpManifest::name_for(&name)).await? {
                    Some(bytes) => Some(DumpManifest::from_slice(&bytes).map_err(|source| {
                        super::error::DumpError::Manifest {
                            file: what.clone(),
                            source,
                        }
                    })?),
                    None => None,
                };
                Self::detect(
                    what,
                    Origin::Stored { place, name },
                    manifest,
                    Some(item.bytes),
                    options,
                )
                .await
            }
            Source::Stdin => {
                let directory = options.temp_dir.clone();
                let spooled = blocking(move || spool(&mut io::stdin().lock(), directory.as_deref()))
                    .await
                    .map_err(|error| RestoreError::reading(&what, error))?;
                let bytes = spooled.metadata().ok().map(|metadata| metadata.len());
                Self::detect(what, Origin::Spooled(spooled), None, bytes, options).await
            }
        }
    }

    fn of_directory(what: String, path: PathBuf, options: OpenOptions) -> Self {
        let mut head = [0; 7];
        let read = File::open(path.join("toc.dat")).and_then(|mut file| file.read_exact(&mut head));
        Self {
            what,
            needed_major: read.map_or(0, |()| needed_major(&head)),
            origin: Origin::Directory(path),
            stored: None,
            layers: Vec::new(),
            payload: Payload::Directory,
            manifest: None,
            stored_bytes: None,
            options,
            known: Mutex::new(None),
            unpacked_directory: None,
        }
    }

    async fn detect(
        what: String,
        origin: Origin,
        manifest: Option<DumpManifest>,
        stored_bytes: Option<u64>,
        options: OpenOptions,
    ) -> Result<Self, RestoreError> {
        let raw = open_origin(&origin, &what).await?;
        let keyring = options.keyring.clone();
        let unwrapped = blocking(move || detect::unwrap(raw, &keyring))
            .await
            .map_err(|error| RestoreError::reading(&what, error))?;
        let payload = match unwrapped.first {
            First::Payload(payload) => payload,
            First::Empty => {
                return Err(RestoreError::Unknown {
                    what,
                    why: "it is empty".to_owned(),
                    hint: "the program that should have written it failed, or its disk was full; use another dump"
                        .to_owned(),
                });
            }
            First::Unknown | First::Layer(_) => {
                let (why, hint) = detect::describe_unknown(unwrapped.stream.first());
                return Err(RestoreError::Unknown { what, why, hint });
            }
        };
        let mut dump = Self {
            what,
            needed_major: needed_major(unwrapped.stream.first()),
            stored: match &origin {
                Origin::Stored { place, name } => Some((place.clone(), name.clone())),
                _ => None,
            },
            origin,
            layers: unwrapped.layers,
            payload,
            manifest,
            stored_bytes,
            options,
            known: Mutex::new(None),
            unpacked_directory: None,
        };
        drop(unwrapped.stream);
        match payload {
            Payload::ArchiveTar => dump.unpack_archive().await?,
            Payload::Tar => return Box::pin(dump.open_member()).await,
            _ => {}
        }
        Ok(dump)
    }

    /// The pg_restore that reads it.
    ///
    /// # Errors
    /// When there is none that is new enough.
    pub(crate) fn archive_tools(&self) -> Result<Tools, RestoreError> {
        let major = self.needed_major.max(self.options.target_major);
        Tools::find("pg_restore", major, self.options.bin_dir.as_deref())
    }

    /// The file, for people.
    pub fn describe(&self) -> &str {
        &self.what
    }

    /// The layers around the payload, outermost first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What is inside.
    pub fn payload(&self) -> Payload {
        self.payload
    }

    /// Its manifest, where it has one.
    pub fn manifest(&self) -> Option<&DumpManifest> {
        self.manifest.as_ref()
    }

    /// Its place and name, where it is a file of one.
    pub fn stored(&self) -> Option<(&Place, &str)> {
        self.stored.as_ref().map(|(place, name)| (place, name.as_str()))
    }

    /// Its length as stored, where that is known.
    pub fn stored_bytes(&self) -> Option<u64> {
        self.stored_bytes
    }

    /// For people: `custom archive, zstd, encrypted`.
    pub fn describe_kind(&self) -> String {
        let mut words = vec![self.payload.describe()];
        words.extend(self.layers.iter().rev().map(|layer| layer.describe()));
        words.join(", ")
    }

    /// A path that pg_restore can open several times, for `--jobs`: the directory, or a spooled copy of the
    /// archive, which lives as long as the returned file.
    ///
    /// # Errors
    /// When the archive cannot be read or spooled.
    pub(crate) async fn seekable(&self) -> Result<(PathBuf, Option<File>), RestoreError> {
        if let Origin::Directory(path) = &self.origin {
            return Ok((path.clone(), None));
        }
        if let (
            Origin::Stored {
                place: Place::Directory(directory),
                name,
            },
            true,
        ) = (&self.origin, self.layers.is_empty())
        {
            return Ok((directory.join(name), None));
        }
        let file = self.spool_payload().await?;
        Ok((PathBuf::from("/proc/self/fd/0"), Some(file)))
    }

    async fn spool_payload(&self) -> Result<File, RestoreError> {
        let (mut stream, slot) = self.payload_stream(None).await?;
        let is_tar = matches!(self.payload, Payload::ArchiveTar | Payload::Tar);
        let directory = self.options.temp_dir.clone();
        let file = blocking(move || spool(&mut stream, directory.as_deref()))
            .await
            .map_err(|error| RestoreError::reading(&self.what, error))?;
        self.check_digest(&slot)
            .and_then(|()| if is_tar { check_tar_end(&file) } else { Ok(()) })
            .map_err(|error| RestoreError::reading(&self.what, error))?;
        Ok(file)
    }

    /// Tars are read from files: pg_dump's own as they are, those of a directory unpacked.
    async fn unpack_archive(&mut self) -> Result<(), RestoreError> {
        let mut file = self.spool_payload().await?;
        let mut head = [0; 512 + 7];
        file.read_exact(&mut head)
            .map_err(|error| RestoreError::reading(&self.what, error))?;
        self.needed_major = needed_major(&head[512..]);
        rewind(&mut file, &self.what)?;
        // Both say in toc.dat that they are tar archives (_CloseArchive in pg_backup_directory.c), but only
        // pg_dump -Ft adds a script.
        let copy = file.try_clone();
        let is_directory = blocking(move || Ok(!has_member(copy?, "restore.sql")?))
            .await
            .map_err(|error| RestoreError::reading(&self.what, error))?;
        rewind(&mut file, &self.what)?;
        if !is_directory {
            self.origin = Origin::Spooled(file);
            self.layers.clear();
            return Ok(());
        }
        let unpacked = self.unpack(file).await?;
        self.origin = Origin::Directory(unpacked.path().to_path_buf());
        self.payload = Payload::Directory;
        self.unpacked_directory = Some(unpacked);
        Ok(())
    }

    async fn unpack(&self, file: File) -> Result<PrivateDirectory, RestoreError> {
        let parent = self.options.temp_dir.clone();
        blocking(move || {
            let directory = PrivateDirectory::create(parent.as_deref())?;
            let mut archive = tar::Archive::new(file);
            archive.set_preserve_permissions(false);
            archive.set_overwrite(false);
            // Refuses paths that lead out of the directory.
            archive.unpack(directory.path())?;
            Ok(directory)
        })
        .await
        .map_err(|error| RestoreError::reading(&self.what, error))
    }

    /// A tar of several files: the one that was asked for, or the only dump in it.
    async fn open_member(self) -> Result<Self, RestoreError> {
        let file = self.spool_payload().await?;
        let unpacked = self.unpack(file).await?;
        let members = members(unpacked.path()).map_err(|error| RestoreError::reading(&self.what, error))?;
        let listing = || {
            let lines: Vec<String> = members
                .iter()
                .map(|member| format!("\n  {} ({})", member.name, member.kind))
                .collect();
            lines.concat()
        };
        let chosen = match &self.options.member {
            Some(wanted) => members.iter().find(|member| {
                member.name == *wanted
                    || Path::new(&member.name).file_name() == Some(std::ffi::OsStr::new(wanted))
            }),
            None if members.len() == 1 => members.first(),
            None => None,
        };
        let Some(member) = chosen else {
            if members.is_empty() {
                return Err(RestoreError::Unknown {
                    what: self.what,
                    why: "it is a tar without a dump in it".to_owned(),
                    hint: "list it: tar -tf FILE".to_owned(),
                });
            }
            return Err(RestoreError::Usage {
                what: format!("{} is a tar of {} dumps:{}", self.what, members.len(), listing()),
                hint: format!("say which one to restore: --member {}", members[0].name),
            });
        };
        let path = unpacked.path().join(&member.name);
        let what = if member.name == TOP {
            self.what.clone()
        } else {
            format!("{} in {}", member.name, self.what)
        };
        let options = OpenOptions {
            member: None,
            ..self.options
        };
        let mut dump = if member.is_directory {
            Self::of_directory(what, path, options)
        } else {
            let (place, name) = Place::of_path(&path).ok_or(RestoreError::NotFound { path: what.clone() })?;
            let bytes = std::fs::metadata(&path).ok().map(|metadata| metadata.len());
            Self::detect(what, Origin::Stored { place, name }, None, bytes, options).await?
        };
        dump.unpacked_directory = Some(match dump.unpacked_directory.take() {
            // A directory inside a file inside a tar: the inner one is what is read.
            Some(inner) => inner,
            None => unpacked,
        });
        Ok(dump)
    }

    /// The bytes under all layers, and where the digest of the file will be when they have ended.
    async fn payload_stream(
        &self,
        counter: Option<Arc<AtomicU64>>,
    ) -> Result<(Box<dyn Read + Send>, Slot), RestoreError> {
        let raw = open_origin(&self.origin, &self.what).await?;
        let slot = Slot::default();
        let raw = Deposit {
            inner: Some(DigestReader::new(raw)),
            slot: Arc::clone(&slot),
            counter: counter.unwrap_or_default(),
        };
        let keyring = self.options.keyring.clone();
        let unwrapped = blocking(move || detect::unwrap(Box::new(raw), &keyring))
            .await
            .map_err(|error| RestoreError::reading(&self.what, error))?;
        Ok((Box::new(unwrapped.stream), slot))
    }

    fn check_digest(&self, slot: &Slot) -> io::Result<()> {
        let found = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(found) = found else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "bytes follow the end of the dump",
            ));
        };
        if let (Some(manifest), Origin::Stored { .. }) = (&self.manifest, &self.origin)
            && (manifest.stored.sha256 != found.sha256.to_string() || manifest.stored.bytes != found.bytes)
        {
            let why = if manifest.stored.bytes == found.bytes {
                "its SHA-256 is not the one in its manifest".to_owned()
            } else {
                format!(
                    "it has {} bytes, and its manifest says {}",
                    found.bytes, manifest.stored.bytes
                )
            };
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            Some(before) if before != found => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file was changed while it was being restored",
            )),
            _ => {
                *known = Some(found);
                Ok(())
            }
        }
    }

    /// A pass over the dump as SQL. `progress` is told of the bytes of the file as they are read.
    ///
    /// # Errors
    /// When the file cannot be opened, or pg_restore is missing.
    pub async fn sql(self: &Arc<Self>, progress: Arc<AtomicU64>) -> Result<SqlStream, RestoreError> {
        match &self.origin {
            Origin::Directory(path) => {
                Ok(self.converted(Converter::start(self, Some(path), Stdio::null())?, None))
            }
            Origin::Spooled(file) if self.payload == Payload::ArchiveTar => {
                let mut file = file
                    .try_clone()
                    .map_err(|error| RestoreError::reading(&self.what, error))?;
                rewind(&mut file, &self.what)?;
                Ok(self.converted(Converter::start(self, None, file.into())?, None))
            }
            _ if self.payload == Payload::Sql => {
                let (reader, slot) = self.payload_stream(Some(progress)).await?;
                Ok(SqlStream {
                    dump: Arc::clone(self),
                    reader,
                    slot: Some(slot),
                    converter: None,
                    ended: false,
                })
            }
            _ => {
                let (reader, slot) = self.payload_stream(Some(progress)).await?;
                let mut converter = Converter::start(self, None, Stdio::piped())?;
                let stdin = converter.child.stdin.take();
                converter.feeder = stdin.map(|stdin| std::thread::spawn(move || feed(reader, stdin)));
                Ok(self.converted(converter, Some(slot)))
            }
        }
    }

    fn converted(self: &Arc<Self>, mut converter: Converter, slot: Option<Slot>) -> SqlStream {
        let stdout = converter.child.stdout.take().expect("it was piped");
        SqlStream {
            dump: Arc::clone(self),
            reader: Box::new(stdout),
            slot,
            converter: Some(converter),
            ended: false,
        }
    }

    /// Reads the whole dump and says what it holds. When it returns, the dump is known to be complete and
    /// authentic as far as its form can show it.
    ///
    /// # Errors
    /// When it is damaged, cut or cannot be read; when it was cancelled.
    pub async fn inspect(
        self: &Arc<Self>,
        progress: &dyn Progress,
        cancellation: &CancellationToken,
    ) -> Result<ScanReport, RestoreError> {
        let counter = Arc::new(AtomicU64::new(0));
        let mut stream = self.sql(Arc::clone(&counter)).await?;
        let token = cancellation.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut scan = Scan::new();
            let mut buffer = vec![0; CHUNK];
            loop {
                if token.is_cancelled() {
                    return Ok(None);
                }
                match stream.read(&mut buffer)? {
                    0 => return Ok::<_, io::Error>(Some(scan.finish())),
                    count => scan.feed(&buffer[..count]),
                }
            }
        });
        let outcome = watch(work, &counter, progress).await;
        outcome
            .map_err(|error| RestoreError::reading(&self.what, error))?
            .ok_or(RestoreError::Interrupted {
                aftermath: "nothing was changed",
            })
    }
}

/// Waits for blocking work, telling progress how far it is.
pub(crate) async fn watch<T: Send + 'static>(
    work: tokio::task::JoinHandle<T>,
    counter: &AtomicU64,
    progress: &dyn Progress,
) -> T {
    let mut work = work;
    loop {
        tokio::select! {
            done = &mut work => {
                progress.set_position(counter.load(Ordering::Relaxed));
                match done {
                    Ok(value) => return value,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
            () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {
                progress.set_position(counter.load(Ordering::Relaxed));
            }
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn open_origin(origin: &Origin, what: &str) -> Result<Box<dyn Read + Send>, RestoreError> {
    match origin {
        Origin::Stored { place, name } => Ok(place.open(name, &CancellationToken::new()).await?),
        Origin::Spooled(file) => {
            let file = file
                .try_clone()
                .map_err(|error| RestoreError::reading(what, error))?;
            Ok(Box::new(FromStart { file, offset: 0 }))
        }
        Origin::Directory(_) => Ok(Box::new(io::empty())),
    }
}

fn rewind(file: &mut File, what: &str) -> Result<(), RestoreError> {
    file.seek(SeekFrom::Start(0))
        .map(drop)
        .map_err(|error| RestoreError::reading(what, error))
}

/// Reads a file with an offset of its own: handles that were cloned share theirs, and the thread of a
/// reader that was dropped may still be reading ahead.
struct FromStart {
    file: File,
    offset: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt as _;
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Copies a stream into a file without a name.
fn spool(stream: &mut impl Read, directory: Option<&Path>) -> io::Result<File> {
    let mut file = match directory {
        Some(directory) => tempfile::tempfile_in(directory)?,
        None => tempfile::tempfile()?,
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => file.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// A tar ends with two blocks of zeros; one that was cut hardly ever does.
fn check_tar_end(file: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let length = file.metadata()?.len();
    let mut end = [0; 1024];
    let whole = length % 512 == 0 && length >= 1024 && {
        file.read_exact_at(&mut end, length - 1024)?;
        end.iter().all(|byte| *byte == 0)
    };
    if whole {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the tar has no end: it is truncated",
        ))
    }
}

/// Whether a tar has a file of this name at its top.
fn has_member(file: File, name: &str) -> io::Result<bool> {
    for entry in tar::Archive::new(file).entries_with_seek()? {
        let path = entry?.path_bytes().into_owned();
        if path.strip_prefix(b"./").unwrap_or(&path) == name.as_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the names of directories begin with that archives are unpacked into.
const UNPACKED_PREFIX: &str = "pgmahout-restore-";

/// A directory that only we can enter. It is locked as long as we live, so that those of programs that were
/// killed are known.
#[derive(Debug)]
struct PrivateDirectory {
    directory: TempDir,
    /// The lock ends with it.
    _lock: File,
}

impl PrivateDirectory {
    fn create(parent: Option<&Path>) -> io::Result<Self> {
        /// Each time another program would have to come between the making and the locking.
        const TRIES: u32 = 100;
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNPACKED_PREFIX);
        for _ in 0..TRIES {
            let directory = match parent {
                Some(parent) => builder.tempdir_in(parent)?,
                None => builder.tempdir()?,
            };
            // Another program may find it before it is locked, and take it for a stale one.
            if let Some(lock) = lock_directory(directory.path())?
                && directory.path().exists()
            {
                return Ok(Self {
                    directory,
                    _lock: lock,
                });
            }
        }
        Err(io::Error::other("no directory to unpack into could be locked"))
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Locks a directory of ours. `None`: it is gone, somebody else's, no directory, or locked.
fn lock_directory(path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::MetadataExt as _;

    use rustix::fs::{FlockOperation, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(path, flags, Mode::empty()) else {
        return Ok(None);
    };
    let directory = File::from(directory);
    if directory.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Ok(None);
    }
    let locked = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive);
    Ok(locked.is_ok().then_some(directory))
}

/// Removes what killed programs have unpacked: it may be the plain text of encrypted dumps.
fn remove_stale(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(UNPACKED_PREFIX));
        if is_ours && let Ok(Some(_lock)) = lock_directory(&entry.path()) {
            // Failing here is no reason not to read a dump; the next one tries again.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A dump in a tar.
struct Member {
    name: String,
    kind: String,
    is_directory: bool,
}

/// The name of the member that is everything in its tar: a directory archive that was packed from inside.
const TOP: &str = ".";

fn members(root: &Path) -> io::Result<Vec<Member>> {
    let mut members = Vec::new();
    if root.join("toc.dat").is_file() {
        members.push(Member {
            name: TOP.to_owned(),
            kind: "directory archive".to_owned(),
            is_directory: true,
        });
        return Ok(members);
    }
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        if directory != root && directory.join("toc.dat").is_file() {
            members.push(Member {
                name: relative(root, &directory),
                kind: "directory archive".to_owned(),
                is_directory: true,
            });
            continue;
        }
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                let mut first = Vec::new();
                File::open(entry.path())?
                    .take(64 * 1024)
                    .read_to_end(&mut first)?;
                let kind = match detect::look(&first) {
                    First::Layer(layer) => layer.describe().to_owned(),
                    First::Payload(payload) => payload.describe().to_owned(),
                    First::Empty | First::Unknown => continue,
                };
                members.push(Member {
                    name: relative(root, &entry.path()),
                    kind,
                    is_directory: false,
                });
            }
        }
    }
    members.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(members)
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

type Slot = Arc<Mutex<Option<Digest>>>;

/// Leaves the digest of what it reads in a slot when that has ended.
struct Deposit {
    inner: Option<DigestReader<Box<dyn Read + Send>>>,
    slot: Slot,
    counter: Arc<AtomicU64>,
}

impl Read for Deposit {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(inner) = &mut self.inner else {
            return Ok(0);
        };
        let count = inner.read(buffer)?;
        self.counter.fetch_add(count as u64, Ordering::Relaxed);
        if count == 0 && !buffer.is_empty() {
            let digest = self.inner.take().map(|inner| inner.finish().0);
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = digest;
        }
        Ok(count)
    }
}

/// A running `pg_restore -f -`.
struct Converter {
    child: Child,
    feeder: Option<JoinHandle<io::Result<()>>>,
    stderr: Option<JoinHandle<Vec<String>>>,
}

impl Converter {
    fn start(dump: &Dump, path: Option<&Path>, stdin: Stdio) -> Result<Self, RestoreError> {
        let tools = dump.archive_tools()?;
        let mut command = Command::new(tools.program("pg_restore"));
        command.args(["-f", "-"]);
        if let Some(path) = path {
            command.arg(path);
        }
        let mut child = command
            .env("LC_ALL", "C")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| RestoreError::Io {
                doing: "run",
                what: "pg_restore".to_owned(),
                source,
            })?;
        let stderr = child.stderr.take().expect("it was piped");
        let stderr = std::thread::spawn(move || last_lines(stderr));
        Ok(Self {
            child,
            feeder: None,
            stderr: Some(stderr),
        })
    }

    /// Waits for its end. What went wrong with the file comes before what pg_restore made of that.
    fn finish(mut self) -> io::Result<()> {
        let status = self.child.wait()?;
        let stderr = self
            .stderr
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        if let Some(feeder) = self.feeder.take() {
            feeder
                .join()
                .map_err(|_| io::Error::other("the thread that reads the dump panicked"))??;
        }
        if status.success() {
            return Ok(());
        }
        let hint = super::restore::hints::for_lines(&stderr, None);
        Err(io::Error::other(RestoreError::ProgramFailed {
            program: "pg_restore",
            target: None,
            stderr,
            hint: hint.or_else(|| {
                Some("the archive is damaged, or pg_dump was interrupted: nothing was changed; use another copy of it, or an older dump".to_owned())
            }),
        }))
    }
}

impl Drop for Converter {
    fn drop(&mut self) {
        // Harmless for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The oldest major version whose pg_restore reads archives with this head
/// (`K_VERS_*` in `src/bin/pg_dump/pg_backup_archiver.h`: 1.15 came with 16, 1.16 with 17).
fn needed_major(head: &[u8]) -> u32 {
    match head.strip_prefix(b"PGDMP") {
        Some([1, ..=14, ..]) => 12,
        Some([1, 15, ..]) => 16,
        Some([1, 16, ..]) => 17,
        Some([_, _, ..]) => 18,
        _ => 0,
    }
}

/// Passes the archive on. One that ends early is read to its end nevertheless, for its digest.
fn feed(mut reader: Box<dyn Read + Send>, mut stdin: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut open = true;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if open && let Err(error) = stdin.write_all(&buffer[..count]) {
            if error.kind() != io::ErrorKind::BrokenPipe {
                return Err(error);
            }
            open = false;
        }
    }
}

/// The last lines that a program writes to stderr.
pub(crate) fn last_lines(mut stderr: impl Read) -> Vec<String> {
    const KEPT: usize = 16 * 1024;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count) = stderr.read(&mut buffer) {
        if count == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..count]);
        if text.len() > 2 * KEPT {
            text.drain(..text.len() - KEPT);
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(12)..].to_vec()
}

/// A dump as SQL. Its end is an end only when everything was found complete.
pub struct SqlStream {
    dump: Arc<Dump>,
    reader: Box<dyn Read + Send>,
    slot: Option<Slot>,
    converter: Option<Converter>,
    ended: bool,
}

impl Read for SqlStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let count = self.reader.read(buffer)?;
        if count == 0 {
            if let Some(converter) = self.converter.take() {
                converter.finish()?;
            }
            if let Some(slot) = self.slot.take() {
                self.dump.check_digest(&slot)?;
            }
            self.ended = true;
        }
        Ok(count)
    }
}
