//! What can go wrong with a repository and its objects.

use std::fmt;
use std::io;

use pgmahout_config::secret::SecretError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};

use crate::framed::FramedError;
use crate::seal::SealError;

/// What an operation was doing, to be read after "cannot".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Looking whether an object exists, and how large it is.
    Look,
    /// Reading an object.
    Read,
    /// Writing an object.
    Write,
    /// Listing objects.
    List,
    /// Deleting an object.
    Delete,
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Look => "look at",
            Self::Read => "read",
            Self::Write => "write",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

/// On what an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The repository, as a person knows it: its name and where it is.
    pub repository: String,
    /// The object or prefix; empty for the repository itself.
    pub object: String,
    /// What was tried.
    pub action: Action,
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            repository,
            object,
            action,
        } = self;
        if object.is_empty() {
            write!(formatter, "cannot {action} repository {repository}")
        } else {
            write!(formatter, "cannot {action} {object} in repository {repository}")
        }
    }
}

/// What the storage said, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Answer(pub String);

/// Why an operation on a repository failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such object.
    #[error("{subject}: it does not exist")]
    NotFound {
        /// On what.
        subject: Subject,
    },
    /// The repository's directory or bucket does not exist.
    #[error("{subject}: the {kind} does not exist")]
    RepositoryMissing {
        /// On what.
        subject: Subject,
        /// `directory` or `bucket`.
        kind: &'static str,
    },
    /// An object of this name exists and may not be replaced.
    #[error("{subject}: it exists already")]
    AlreadyExists {
        /// On what.
        subject: Subject,
    },
    /// The storage knows us and says no.
    #[error("{subject}: permission denied")]
    PermissionDenied {
        /// On what.
        subject: Subject,
        /// What it said.
        #[source]
        source: Answer,
    },
    /// The storage does not accept the access key.
    #[error("{subject}: the access key or its secret is not accepted")]
    Authentication {
        /// On what.
        subject: Subject,
        /// What it said.
        #[source]
        source: Answer,
    },
    /// The storage cannot be reached.
    #[error("{subject}: the storage cannot be reached")]
    Unreachable {
        /// On what.
        subject: Subject,
        /// Why.
        #[source]
        source: Answer,
    },
    /// The storage's certificate is not trusted, or TLS failed otherwise.
    #[error("{subject}: no trusted TLS connection to the storage")]
    Tls {
        /// On what.
        subject: Subject,
        /// Why.
        #[source]
        source: Answer,
    },
    /// No answer in time.
    #[error("{subject}: no answer in time")]
    Timeout {
        /// On what.
        subject: Subject,
        /// What was waited for.
        #[source]
        source: Answer,
    },
    /// The storage answered, for as long as was tried, that it cannot now.
    #[error("{subject}: the storage keeps failing")]
    Unavailable {
        /// On what.
        subject: Subject,
        /// What it said last.
        #[source]
        source: Answer,
    },
    /// The storage wants another address or region.
    #[error("{subject}: the bucket is in another region or at another address")]
    WrongRegion {
        /// On what.
        subject: Subject,
        /// What it said.
        #[source]
        source: Answer,
    },
    /// The clocks differ too much for signed requests.
    #[error("{subject}: the clocks of this host and of the storage differ too much")]
    Clock {
        /// On what.
        subject: Subject,
        /// What it said.
        #[source]
        source: Answer,
    },
    /// The storage is full, or a quota is used up.
    #[error("{subject}: no space left")]
    NoSpace {
        /// On what.
        subject: Subject,
    },
    /// The file system is mounted read-only.
    #[error("{subject}: the file system is read-only")]
    ReadOnly {
        /// On what.
        subject: Subject,
    },
    /// The operation was cancelled.
    #[error("{subject}: cancelled")]
    Cancelled {
        /// On what.
        subject: Subject,
    },
    /// The object changed while it was read.
    #[error("{subject}: it changed while it was being read")]
    Changed {
        /// On what.
        subject: Subject,
    },
    /// The object ends too early.
    #[error("{subject}: it is truncated")]
    Truncated {
        /// On what.
        subject: Subject,
        /// Where.
        #[source]
        source: SealError,
    },
    /// The object is damaged.
    #[error("{subject}: it is damaged")]
    Corrupt {
        /// On what.
        subject: Subject,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The repository is encrypted with another key.
    #[error("{subject}: the repository is encrypted with another passphrase or key")]
    WrongKey {
        /// On what.
        subject: Subject,
        /// What the seal said.
        #[source]
        source: SealError,
    },
    /// The repository is encrypted, but the settings name no key.
    #[error("{subject}: the repository is encrypted, and no passphrase or key is configured for it")]
    KeyNotConfigured {
        /// On what.
        subject: Subject,
    },
    /// Sealed objects are there, but the object that holds the repository's key is not.
    #[error("{subject}: the object that holds the repository's key is gone, but encrypted objects are there")]
    KeyLost {
        /// On what.
        subject: Subject,
    },
    /// The passphrase or key of a repository cannot be had, or something cannot be sealed.
    #[error("cannot use the encryption of repository {repository}")]
    Encryption {
        /// The repository.
        repository: String,
        /// Why.
        #[source]
        source: SealError,
    },
    /// A secret of the settings cannot be had.
    #[error("cannot get {what} of repository {repository}")]
    Secret {
        /// The repository.
        repository: String,
        /// `the secret key`, `the passphrase`.
        what: &'static str,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// Larger than the caller allows, or than the storage can take.
    #[error("{subject}: it is larger than {limit} bytes")]
    TooLarge {
        /// On what.
        subject: Subject,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A name that no repository can hold.
    #[error("`{name}` cannot be the name of an object: {problem}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Settings that make no repository.
    #[error("the settings of repository {repository} are wrong: {problem}")]
    Settings {
        /// The repository's name.
        repository: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// What was written and read back differs.
    #[error("{subject}: what was read back is not what was written")]
    ReadBackDiffers {
        /// On what.
        subject: Subject,
    },
    /// A framed object cannot be made or opened, though it is not damaged.
    #[error("{subject}")]
    Framed {
        /// On what.
        subject: Subject,
        /// Why.
        #[source]
        source: FramedError,
    },
    /// The storage does not refuse to create what exists, and nobody promised to be the only writer.
    #[error("{subject}: the storage cannot create an object only where none is")]
    NotConditional {
        /// On what.
        subject: Subject,
    },
    /// Everything else.
    #[error("{subject}")]
    Other {
        /// On what.
        subject: Subject,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Whether the same operation might succeed a little later, with nothing changed by a person. Where the
    /// storage is S3 it has been tried again already, for as long as the settings allow.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Unavailable { .. } | Self::Changed { .. }
        )
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Our error inside an IO error that came through [`io::Read`] or [`io::Write`], when it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }

    /// Back from what came through [`io::Read`] or [`io::Write`]: our own error as it was, a seal's error
    /// and a file system's error sorted by cause.
    pub fn from_io(error: io::Error, subject: Subject) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(own) => return own,
            Err(error) => error,
        };
        match error.downcast::<SealError>() {
            Ok(seal) => Self::from_seal(seal, subject),
            Err(error) => Self::from_system(error, subject),
        }
    }

    /// A seal's error about an object.
    pub fn from_seal(error: SealError, subject: Subject) -> Self {
        match error {
            source @ SealError::WrongKey => Self::WrongKey { subject, source },
            source @ SealError::Truncated { .. } => Self::Truncated { subject, source },
            SealError::Io(error) => Self::from_io(error, subject),
            SealError::KeyMissing { .. } => Self::KeyNotConfigured { subject },
            source @ (SealError::NotSealed
            | SealError::DamagedHeader { .. }
            | SealError::DamagedFrame { .. }
            | SealError::TrailingBytes { .. }
            | SealError::UnreasonableParameters { .. }
            | SealError::OtherObject) => Self::Corrupt {
                subject,
                source: Box::new(source),
            },
            source => Self::Encryption {
                repository: subject.repository,
                source,
            },
        }
    }

    /// A framed object's error about the object.
    pub fn from_framed(error: FramedError, subject: Subject) -> Self {
        match error {
            FramedError::WrongKey => Self::WrongKey {
                subject,
                source: SealError::WrongKey,
            },
            FramedError::KeyNotGiven => Self::KeyNotConfigured { subject },
            source if source.is_damage() => Self::Corrupt {
                subject,
                source: Box::new(source),
            },
            source => Self::Framed { subject, source },
        }
    }

    fn from_system(error: io::Error, subject: Subject) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound { subject },
            io::ErrorKind::AlreadyExists => Self::AlreadyExists { subject },
            io::ErrorKind::PermissionDenied => Self::PermissionDenied {
                subject,
                source: Answer(error.to_string()),
            },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { subject },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { subject },
            io::ErrorKind::TimedOut => Self::Timeout {
                subject,
                source: Answer(error.to_string()),
            },
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Corrupt {
                subject,
                source: Box::new(error),
            },
            _ => Self::Other {
                subject,
                source: Box::new(error),
            },
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::NotFound { .. } | StoreError::RepositoryMissing { .. } => io::ErrorKind::NotFound,
            StoreError::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
            StoreError::PermissionDenied { .. } | StoreError::Authentication { .. } => {
                io::ErrorKind::PermissionDenied
            }
            StoreError::Timeout { .. } => io::ErrorKind::TimedOut,
            StoreError::NoSpace { .. } => io::ErrorKind::StorageFull,
            // Not Interrupted: readers and writers of the standard library try that again for ever.
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl Diagnose for StoreError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotFound { .. } => "list what is there: pgmahout dump list --repo",
            Self::RepositoryMissing { kind: "bucket", .. } => {
                "create the bucket, or correct `bucket` in the repository's settings"
            }
            Self::RepositoryMissing { .. } => {
                "create the directory, or correct `path` in the repository's settings"
            }
            Self::AlreadyExists { .. } => "choose another name; nothing was overwritten",
            Self::PermissionDenied { .. } => {
                "give the repository's user (or access key) the right to read, write, list and delete there"
            }
            Self::Authentication { .. } => "check access_key and secret_key in the repository's settings",
            Self::Unreachable { .. } => {
                "check `endpoint` in the repository's settings, name resolution, firewall and proxy"
            }
            Self::Tls { .. } => {
                "give the CA that signed the storage's certificate as ca_cert in the repository's settings"
            }
            Self::Timeout { .. } => "check the network to the storage, then run the command again",
            Self::Unavailable { .. } => "try again later, and look at the storage's own state",
            Self::WrongRegion { .. } => "correct `region` and `endpoint` in the repository's settings",
            Self::Clock { .. } => "set the clock: timedatectl; chronyc tracking",
            Self::NoSpace { .. } => {
                "free space in the repository, for example with pgmahout dump expire --repo, or enlarge it"
            }
            Self::ReadOnly { .. } => "mount the file system for writing; see findmnt and dmesg",
            Self::Cancelled { .. } => return None,
            Self::Changed { .. } => "somebody replaced the object: run the command again",
            Self::Truncated { .. } | Self::Corrupt { .. } => {
                "use another dump or another repository, and check the storage's disks"
            }
            Self::WrongKey { .. } => {
                "check the passphrase, key file or command under `encryption` in the repository's settings"
            }
            Self::KeyNotConfigured { .. } => "set `encryption` in the repository's settings",
            Self::KeyLost { .. } => {
                "bring back repository.key from a copy of the repository; without it the encrypted objects cannot be read"
            }
            Self::Encryption { source, .. } => return source.hint(),
            Self::Secret { source, .. } => return source.hint(),
            Self::TooLarge { .. } => "split the dump, for example by schema, or use a directory",
            Self::InvalidName { .. } => "use letters, digits and . _ - = + @ , in names, and / between them",
            Self::Settings { hint, .. } => hint,
            Self::ReadBackDiffers { .. } => {
                "do not use this storage for backups: it does not keep what it is given"
            }
            Self::Framed { source, .. } => return source.hint(),
            Self::NotConditional { .. } => {
                "use another storage, or set `single_writer: true` in the repository's settings if one host alone \
                 writes to it"
            }
            Self::Other { .. } => "see whether the repository answers: pgmahout dump list --repo",
        };
        Some(text.to_owned())
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Settings { .. } | Self::InvalidName { .. } => Outcome::Usage,
            Self::AlreadyExists { .. } | Self::NotConditional { .. } => Outcome::Refused,
            Self::Framed { source, .. } => source.outcome(),
            Self::Cancelled { .. } => Outcome::Interrupted,
            Self::Encryption { source, .. } => source.outcome(),
            Self::Secret { source, .. } => source.outcome(),
            _ => Outcome::Failed,
        }
    }
}
