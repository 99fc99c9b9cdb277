//! Making and opening a repository of physical backups.

use std::sync::{Arc, Mutex, RwLock};

use jiff::Timestamp;
use pgmahout_store::framed::{self, ObjectCipher};
use pgmahout_store::repository::{CreateOutcome, PutMode, Repository};
use pgmahout_types::repository::{Digest, Head, Nonce, StanzaInfo};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::error::StanzaError;
use super::memory::RepositoryMemory;
use super::names::{DESCRIPTOR, STANZAS, StanzaName, StanzaNames, kind};
use super::{Inner, PhysicalRepository, SMALL_CODEC, random, writer};

/// The version of the format that is written, and the newest that is read.
const FORMAT: u32 = 1;

/// The largest descriptor, or description of a stanza, that is read.
const LARGEST: u64 = 1 << 20;

/// What a repository is: the content of the object `repository`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Descriptor {
    /// The version of the format.
    #[serde(rename = "repository")]
    pub format: u32,
    /// Drawn when it was made: tells repositories apart wherever they are mounted.
    pub id: Nonce,
    /// The key of the hashes of pages. Secret where the repository is encrypted; otherwise as secret as the
    /// repository. Kept from whoever can write SQL in any case.
    hash_key: Digest,
    /// When it was made.
    pub created_at: Timestamp,
}

impl std::fmt::Debug for Descriptor {
    /// Without the key.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Descriptor")
            .field("id", &self.id)
            .field("created_at", &self.created_at)
            .finish_non_exhaustive()
    }
}

impl Descriptor {
    /// The key of the hashes of pages.
    pub fn hash_key(&self) -> &[u8; 32] {
        self.hash_key.as_bytes()
    }
}

/// How a repository is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InitOptions {
    /// The stanza is taken over by a cluster after a major upgrade. One of the same or an older version is
    /// another cluster, and refused; so is the upgraded one where the old one has left backups or WAL.
    pub upgrade: bool,
}

/// What [`PhysicalRepository::init`] found and did.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The repository, open.
    pub repository: PhysicalRepository,
    /// Whether the repository itself is new.
    pub new_repository: bool,
    /// Whether the stanza is new.
    pub new_stanza: bool,
    /// Whether the stanza was taken over by an upgraded cluster.
    pub upgraded: bool,
}

impl PhysicalRepository {
    /// Sets up a stanza, and the repository where that is new. Running it again changes nothing; where it was
    /// interrupted it goes on. An encrypted repository gets its key.
    ///
    /// # Errors
    ///
    /// [`StanzaError::NoConditionalPut`] where two creates of one name could both succeed;
    /// [`StanzaError::Mismatch`] where the stanza is another cluster's; [`StanzaError::Collides`] where an upgrade's
    /// WAL would; [`StanzaError::HeadLost`] where the
    /// stanza has backups but no head; what the storage says.
    pub async fn init(
        repository: Repository,
        stanza: StanzaName,
        info: StanzaInfo,
        options: InitOptions,
        memory: &RepositoryMemory,
    ) -> Result<Initialised, StanzaError> {
        let cipher = repository.object_cipher().await?;
        let description = repository.description().to_owned();
        let found = read_descriptor(&repository, &cipher).await?;
        let (descriptor, new_repository) = if let Some(descriptor) = found {
            (descriptor, false)
        } else {
            create_descriptor(&repository, &cipher, &stanza).await?
        };
        let names = StanzaNames::new(stanza);
        let found = read_info(&repository, &cipher, &names).await?;
        let new_stanza = found.is_none();
        let mut upgraded = false;
        let info = match found {
            None => {
                create(&repository, &cipher, kind::STANZA, &names.info(), &info.encode()).await?;
                let there = read_info(&repository, &cipher, &names).await?;
                check_same(&description, &there.unwrap_or_else(|| info.clone()), &info)?
            }
            Some(there) if options.upgrade && is_newer(&there, &info) => {
                check_unused(
                    &repository,
                    &names,
                    info.current().map_or(0, |system| system.major),
                )
                .await?;
                upgraded = true;
                upgrade(&repository, &cipher, &names, there, &info).await?
            }
            Some(there) => check_same(&description, &there, &info)?,
        };
        let opened = Self::assemble(repository, cipher, descriptor, names, info, memory)?;
        opened.first_head().await?;
        Ok(Initialised {
            repository: opened,
            new_repository,
            new_stanza,
            upgraded,
        })
    }

    /// Writes the first head where there is none.
    async fn first_head(&self) -> Result<(), StanzaError> {
        match self.head().await {
            Err(error @ StanzaError::HeadLost { .. }) => {
                let manifests = self.inner.names.full("manifest");
                let listed = self
                    .repository()
                    .list(&manifests, &CancellationToken::new())
                    .await?;
                if !listed.is_empty() {
                    return Err(error);
                }
            }
            other => return other.map(drop),
        }
        let head = Head::first(Nonce::from_bytes(random()?), Timestamp::now(), &writer());
        let name = self.inner.names.head(head.seq);
        create(
            self.repository(),
            &self.cipher(),
            kind::HEAD,
            &name,
            &head.encode(),
        )
        .await?;
        self.head().await.map(drop)
    }

    /// Opens a stanza that was set up. The head is read once, so that a repository that was set back is noticed.
    ///
    /// # Errors
    ///
    /// [`StanzaError::NotInitialised`], [`StanzaError::NoSuchStanza`], [`StanzaError::RolledBack`], what the
    /// storage says.
    pub async fn open(
        repository: Repository,
        stanza: StanzaName,
        memory: &RepositoryMemory,
    ) -> Result<Self, StanzaError> {
        let opened = Self::open_without_head(repository, stanza, memory).await?;
        opened.head().await?;
        Ok(opened)
    }

    /// Opens a stanza without looking at its head: for the WAL archive, which needs none.
    ///
    /// # Errors
    ///
    /// As [`PhysicalRepository::open`], but for the head.
    pub async fn open_without_head(
        repository: Repository,
        stanza: StanzaName,
        memory: &RepositoryMemory,
    ) -> Result<Self, StanzaError> {
        let missing = || StanzaError::NotInitialised {
            repository: repository.description().to_owned(),
            stanza: stanza.to_string(),
        };
        // Before the keys: where nothing is, none are to be made.
        if !repository.exists(DESCRIPTOR).await? {
            return Err(missing());
        }
        let cipher = repository.object_cipher().await?;
        let descriptor = read_descriptor(&repository, &cipher).await?.ok_or_else(missing)?;
        let names = StanzaNames::new(stanza.clone());
        let Some(info) = read_info(&repository, &cipher, &names).await? else {
            return Err(StanzaError::NoSuchStanza {
                repository: repository.description().to_owned(),
                stanza: stanza.to_string(),
                others: stanzas(&repository).await.unwrap_or_default(),
            });
        };
        Self::assemble(repository, cipher, descriptor, names, info, memory)
    }

    fn assemble(
        repository: Repository,
        cipher: ObjectCipher,
        descriptor: Descriptor,
        names: StanzaNames,
        info: StanzaInfo,
        memory: &RepositoryMemory,
    ) -> Result<Self, StanzaError> {
        let segment_size = info
            .current()
            .map_err(|error| format(&repository, &names.info(), error))?
            .wal_segment_size;
        Ok(Self {
            inner: Arc::new(Inner {
                repository,
                cipher: RwLock::new(cipher),
                descriptor,
                names,
                info,
                segment_size,
                memory: memory.clone(),
                seen: Mutex::new(None),
            }),
        })
    }
}

/// The stanzas of a repository, by name.
///
/// # Errors
///
/// What the storage says.
pub async fn stanzas(repository: &Repository) -> Result<Vec<String>, StanzaError> {
    let listed = repository.list(STANZAS, &CancellationToken::new()).await?;
    let mut names: Vec<String> = listed
        .iter()
        .filter_map(|entry| {
            let name = entry.name.strip_prefix("stanza/")?.strip_suffix("/stanza")?;
            (!name.contains('/')).then(|| name.to_owned())
        })
        .collect();
    names.dedup();
    Ok(names)
}

/// Creates a sealed object; `false` where something is there.
async fn create(
    repository: &Repository,
    cipher: &ObjectCipher,
    kind: &str,
    name: &str,
    content: &[u8],
) -> Result<bool, StanzaError> {
    let bytes = framed::seal_bytes(cipher, kind, name, SMALL_CODEC, content).map_err(|source| {
        StanzaError::Framed {
            repository: repository.description().to_owned(),
            object: name.to_owned(),
            source,
        }
    })?;
    Ok(repository.create_once(name, bytes).await? == CreateOutcome::Created)
}

async fn read(
    repository: &Repository,
    cipher: &ObjectCipher,
    kind: &str,
    name: &str,
) -> Result<Option<Vec<u8>>, StanzaError> {
    let bytes = match repository.get_bytes(name, LARGEST).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    framed::open_bytes(cipher, kind, name, &bytes)
        .map(Some)
        .map_err(|source| StanzaError::Framed {
            repository: repository.description().to_owned(),
            object: name.to_owned(),
            source,
        })
}

/// Makes the descriptor, and says whether it is ours: whoever was first, theirs counts.
async fn create_descriptor(
    repository: &Repository,
    cipher: &ObjectCipher,
    stanza: &StanzaName,
) -> Result<(Descriptor, bool), StanzaError> {
    let conditional = repository.is_single_writer() || repository.supports_conditional_put().await?;
    if !conditional {
        return Err(StanzaError::NoConditionalPut {
            repository: repository.description().to_owned(),
        });
    }
    let descriptor = Descriptor {
        format: FORMAT,
        id: Nonce::from_bytes(random()?),
        hash_key: Digest::from_bytes(random()?),
        created_at: Timestamp::now(),
    };
    let content = serde_json::to_vec(&descriptor).unwrap_or_default();
    let ours = create(repository, cipher, kind::DESCRIPTOR, DESCRIPTOR, &content).await?;
    let there = read_descriptor(repository, cipher).await?;
    let there = there.ok_or_else(|| StanzaError::NotInitialised {
        repository: repository.description().to_owned(),
        stanza: stanza.to_string(),
    })?;
    Ok((there, ours))
}

async fn read_descriptor(
    repository: &Repository,
    cipher: &ObjectCipher,
) -> Result<Option<Descriptor>, StanzaError> {
    let Some(content) = read(repository, cipher, kind::DESCRIPTOR, DESCRIPTOR).await? else {
        return Ok(None);
    };
    let descriptor: Descriptor =
        serde_json::from_slice(&content).map_err(|error| format(repository, DESCRIPTOR, error))?;
    if descriptor.format != FORMAT {
        let problem = format!(
            "it has format version {}, newest known is {FORMAT}",
            descriptor.format
        );
        return Err(format(repository, DESCRIPTOR, problem));
    }
    Ok(Some(descriptor))
}

async fn read_info(
    repository: &Repository,
    cipher: &ObjectCipher,
    names: &StanzaNames,
) -> Result<Option<StanzaInfo>, StanzaError> {
    let name = names.info();
    let content = read(repository, cipher, kind::STANZA, &name).await?;
    content
        .map(|content| StanzaInfo::decode(&content).map_err(|error| format(repository, &name, error)))
        .transpose()
}

/// What is there, where it is of the same cluster.
fn check_same(description: &str, there: &StanzaInfo, wanted: &StanzaInfo) -> Result<StanzaInfo, StanzaError> {
    if let Some(system) = wanted.history.last() {
        there
            .check_identity(system.system_identifier, system.major)
            .map_err(|source| StanzaError::Mismatch {
                repository: description.to_owned(),
                source: Box::new(source),
            })?;
    }
    Ok(there.clone())
}

/// Whether the cluster has a greater major version than the stanza's: only then can it be that cluster,
/// upgraded.
fn is_newer(there: &StanzaInfo, wanted: &StanzaInfo) -> bool {
    match (there.current(), wanted.current()) {
        (Ok(there), Ok(wanted)) => wanted.major > there.major,
        _ => false,
    }
}

/// Refuses to give a stanza with backups or WAL to another cluster: names of WAL say nothing of the cluster, and an
/// upgraded one begins on timeline 1 again, with segments and histories of names that the old one has used.
async fn check_unused(repository: &Repository, names: &StanzaNames, major: u32) -> Result<(), StanzaError> {
    let token = CancellationToken::new();
    for class in ["manifest", "wal"] {
        if !repository.list(&names.full(class), &token).await?.is_empty() {
            return Err(StanzaError::Collides {
                repository: repository.description().to_owned(),
                stanza: names.stanza().to_string(),
                major,
            });
        }
    }
    Ok(())
}

async fn upgrade(
    repository: &Repository,
    cipher: &ObjectCipher,
    names: &StanzaNames,
    mut info: StanzaInfo,
    wanted: &StanzaInfo,
) -> Result<StanzaInfo, StanzaError> {
    let name = names.info();
    for system in &wanted.history {
        info.upgrade(system.clone());
    }
    let bytes =
        framed::seal_bytes(cipher, kind::STANZA, &name, SMALL_CODEC, &info.encode()).map_err(|source| {
            StanzaError::Framed {
                repository: repository.description().to_owned(),
                object: name.clone(),
                source,
            }
        })?;
    repository.put_bytes(&name, bytes, PutMode::Overwrite).await?;
    Ok(info)
}

fn format(
    repository: &Repository,
    object: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StanzaError {
    StanzaError::Format {
        repository: repository.description().to_owned(),
        object: object.to_owned(),
        source: source.into(),
    }
}
