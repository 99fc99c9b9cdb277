//! The archive of one stanza in one repository.

use std::collections::BTreeMap;

use bytes::Bytes;
use pgmahout_durable::sync_directory;
use pgmahout_store::framed::FramedError;
use pgmahout_store::repository::{CreateOutcome, Location};
use pgmahout_types::{SegmentName, TimelineHistory, TimelineId, WalFileName};
use tokio_util::sync::CancellationToken;

use super::buffers::Buffers;
use super::error::WalError;
use super::file::WalFile;
use super::inventory::{ListedFile, WalInventory};
use super::object::{self, ArchivedFile, OpenProblem};
use crate::physical::stanza::{PhysicalRepository, StanzaObject};

/// The largest object that is read: a segment of the largest size that cannot be compressed, and its frames.
const LARGEST_OBJECT: u64 = (1 << 30) + (64 << 20);

/// What storing a file did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// It was stored; so many bytes in the repository.
    Stored(u64),
    /// The same content was there already.
    AlreadyThere,
}

/// The WAL archive of a stanza in a repository. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WalArchive {
    repository: PhysicalRepository,
    buffers: Buffers,
}

impl WalArchive {
    /// The archive in that repository.
    pub fn new(repository: PhysicalRepository) -> Self {
        Self {
            repository,
            buffers: Buffers::default(),
        }
    }

    /// Takes back the memory of a file that [`WalArchive::get`] gave.
    pub(super) fn reuse(&self, file: ArchivedFile) {
        self.buffers.give(file.content);
    }

    /// The repository.
    pub fn repository(&self) -> &PhysicalRepository {
        &self.repository
    }

    /// Whether a file is there. Nothing is said of its content.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn has(&self, name: WalFileName) -> Result<bool, WalError> {
        let object = self.repository.wal_name(name);
        Ok(self.repository.repository().exists(&object).await?)
    }

    /// Whether a whole segment is there; an unfinished one is not.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn has_segment(&self, segment: SegmentName) -> Result<bool, WalError> {
        self.has(segment.into()).await
    }

    /// Reads a file, opens it and proves its content; `None` when it is not there. Needs memory for the object
    /// and the content.
    ///
    /// # Errors
    ///
    /// [`WalError::Damaged`], or what the storage says.
    pub async fn get(&self, name: WalFileName) -> Result<Option<ArchivedFile>, WalError> {
        let object = self.repository.wal_name(name);
        let bytes = match self
            .repository
            .repository()
            .get_bytes(&object, LARGEST_OBJECT)
            .await
        {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match self.open(name, bytes.clone(), false).await {
            // Another host has begun to use a new key.
            Err(WalError::Framed {
                source: FramedError::UnknownKey { .. },
                ..
            }) => self.open(name, bytes, true).await.map(Some),
            opened => opened.map(Some),
        }
    }

    /// The content of a whole segment, proven.
    ///
    /// # Errors
    ///
    /// [`WalError::Absent`], otherwise as [`WalArchive::get`].
    pub async fn get_segment(&self, segment: SegmentName) -> Result<Bytes, WalError> {
        let found = self.get(segment.into()).await?;
        found.map(|file| file.content).ok_or_else(|| WalError::Absent {
            name: segment.into(),
            places: self.repository.description(),
        })
    }

    async fn open(&self, name: WalFileName, bytes: Bytes, reload: bool) -> Result<ArchivedFile, WalError> {
        let cipher = if reload {
            self.repository.repository().reload_keys().await?
        } else {
            self.repository.cipher()
        };
        let object = self.repository.wal_name(name);
        let buffers = self.buffers.clone();
        let opened = compute(move || object::open(&cipher, &object, name, &bytes, &buffers)).await;
        opened.map_err(|problem| {
            let repository = self.repository.description();
            let source: Box<dyn std::error::Error + Send + Sync> = match problem {
                OpenProblem::Framed(source) if !source.is_damage() => {
                    return WalError::Framed {
                        repository,
                        name,
                        source,
                    };
                }
                OpenProblem::Framed(source) => Box::new(source),
                OpenProblem::Object(source) => source,
            };
            WalError::Damaged {
                repository,
                name,
                source,
            }
        })
    }

    /// Stores a file, durable when this returns. What is there is never replaced: the same content is success,
    /// other content an error, but for unfinished segments, of which the first stays.
    ///
    /// # Errors
    ///
    /// [`WalError::Conflict`], [`WalError::OtherCluster`] and its like, or what the storage says. After a failure
    /// of the storage the file may be there; storing it again finds out.
    pub async fn put(&self, file: &WalFile) -> Result<PutOutcome, WalError> {
        let sealed = self.seal(file).await?;
        self.store(file, sealed).await
    }

    /// The first half of [`WalArchive::put`]: makes the object, which takes a core for some tens of milliseconds.
    pub(super) async fn seal(&self, file: &WalFile) -> Result<Bytes, WalError> {
        file.check_owner(self.repository.stanza_info(), &self.repository.description())?;
        let object = self.repository.wal_name(file.name);
        let (cipher, codec) = (
            self.repository.cipher(),
            self.repository.repository().frame_codec(),
        );
        let (sealing, buffers) = (file.clone(), self.buffers.clone());
        compute(move || object::seal(&cipher, &object, codec, &sealing, &buffers))
            .await
            .map_err(|source| WalError::Framed {
                repository: self.repository.description(),
                name: file.name,
                source,
            })
    }

    /// The second half of [`WalArchive::put`]: stores the object, which is waiting for the most part.
    pub(super) async fn store(&self, file: &WalFile, sealed: Bytes) -> Result<PutOutcome, WalError> {
        let object = self.repository.wal_name(file.name);
        let stored = sealed.len() as u64;
        let repository = self.repository.repository();
        let created = repository.create_once(&object, sealed.clone()).await;
        self.buffers.give(sealed);
        match created? {
            CreateOutcome::Created => Ok(PutOutcome::Stored(stored)),
            CreateOutcome::AlreadyThere => self.compare(file, &object).await,
        }
    }

    /// Stores a timeline's history.
    ///
    /// # Errors
    ///
    /// As [`WalArchive::put`].
    pub async fn put_history(&self, timeline: TimelineId, content: Bytes) -> Result<PutOutcome, WalError> {
        let system = self
            .repository
            .stanza_info()
            .current()
            .map_err(|source| WalError::Damaged {
                repository: self.repository.description(),
                name: WalFileName::TimelineHistory(timeline),
                source: Box::new(source),
            })?
            .system_identifier;
        let file = WalFile::new(WalFileName::TimelineHistory(timeline), content, system)?;
        self.put(&file).await
    }

    /// Stores a whole segment.
    ///
    /// # Errors
    ///
    /// As [`WalArchive::put`], and when the content is not that of this segment.
    pub async fn put_segment(&self, segment: SegmentName, content: Bytes) -> Result<PutOutcome, WalError> {
        // A segment says itself whose it is.
        let file = WalFile::new(segment.into(), content, pgmahout_types::SystemIdentifier::new(0))?;
        self.put(&file).await
    }

    /// Compares with what is there, all of it: what cannot be read back is not archived.
    async fn compare(&self, file: &WalFile, object: &str) -> Result<PutOutcome, WalError> {
        let conflict = || WalError::Conflict {
            repository: self.repository.description(),
            name: file.name,
        };
        let there = self.get(file.name).await?;
        // Removed between the two looks: nothing that an archive does to a segment that is just being stored.
        let there = there.ok_or_else(conflict)?;
        let same_cluster = there.header.system_identifier == file.system_identifier;
        if let (WalFileName::Partial(_), true) = (file.name, same_cluster) {
            // What follows its end is whatever was there before: a standby and a receiver that were left at the same
            // promotion have different ones. Neither is ever served as a segment.
            if there.header.blake3 != file.blake3 {
                tracing::warn!(
                    "{} was archived by somebody else already; that one stays",
                    file.name
                );
            }
        } else if there.header.blake3 != file.blake3 || !same_cluster {
            return Err(conflict());
        }
        self.make_durable(object)?;
        Ok(PutOutcome::AlreadyThere)
    }

    /// Whoever gave a file its name may have been killed before the name was on the disk.
    fn make_durable(&self, object: &str) -> Result<(), WalError> {
        if let Location::Directory(directory) = self.repository.repository().location()
            && let Some(parent) = directory.join(object).parent()
        {
            sync_directory(parent)?;
        }
        Ok(())
    }

    /// Lists all files, with the histories read.
    ///
    /// # Errors
    ///
    /// What the storage says, or a history that cannot be read.
    pub async fn list(&self, cancellation: &CancellationToken) -> Result<WalInventory, WalError> {
        let mut files = Vec::new();
        let names = self.repository.names().clone();
        self.repository
            .repository()
            .list_each(&names.wal_prefix(), cancellation, |page| {
                files.extend(page.into_iter().filter_map(|entry| {
                    match StanzaObject::parse(names.relative(&entry.name)?)? {
                        StanzaObject::Wal(name) => Some(ListedFile {
                            name,
                            stored: entry.size,
                        }),
                        _ => None,
                    }
                }));
                Ok(())
            })
            .await?;
        let mut histories = BTreeMap::new();
        for file in &files {
            if let WalFileName::TimelineHistory(timeline) = file.name
                && let Some(history) = self.history(timeline).await?
            {
                histories.insert(timeline, history);
            }
        }
        let head = self.repository.head().await?;
        Ok(WalInventory::new(
            self.repository.segment_size(),
            &files,
            &histories,
            Some(&head),
        ))
    }

    /// The history of a timeline; `None` when it is not archived, which the first never is.
    ///
    /// # Errors
    ///
    /// As [`WalArchive::get`].
    pub async fn history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>, WalError> {
        let name = WalFileName::TimelineHistory(timeline);
        let Some(file) = self.get(name).await? else {
            return Ok(None);
        };
        TimelineHistory::parse(timeline, &file.content)
            .map(Some)
            .map_err(|source| WalError::Damaged {
                repository: self.repository.description(),
                name,
                source: Box::new(source),
            })
    }
}

/// Computes on a thread of its own kind, off the runtime.
pub(super) async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and nobody will see the result.
            Err(_) => std::future::pending().await,
        },
    }
}
