//! What can be wrong with a sealed file or its key.

use std::io;
use std::path::PathBuf;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The file does not begin like a sealed one.
    #[error("not a file sealed by pgmahout")]
    NotSealed,
    /// Written by a newer pgmahout.
    #[error("sealed in format version {version}, which this pgmahout does not know")]
    UnsupportedVersion {
        /// The version in the header.
        version: u16,
    },
    /// The header's checksum or one of its fields is wrong.
    #[error("the header of the sealed file is damaged ({problem})")]
    DamagedHeader {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The header asks for more memory or time than is sane.
    #[error(
        "the header of the sealed file asks for an unreasonable key derivation ({memory_kib} KiB, {passes} passes, {lanes} lanes)"
    )]
    UnreasonableParameters {
        /// Argon2's memory, in KiB.
        memory_kib: u32,
        /// Argon2's passes.
        passes: u32,
        /// Argon2's lanes.
        lanes: u32,
    },
    /// No slot opens with what was given.
    #[error("the passphrase or key does not open this file")]
    WrongKey,
    /// The file needs another kind of key than those given.
    #[error("the file is sealed with {needed}, which was not given")]
    KeyMissing {
        /// `a passphrase`, `a key file`, `a passphrase or a key file`, `the repository's key`.
        needed: &'static str,
    },
    /// Authentic, but sealed as something else.
    #[error("the sealed file is authentic, but it was sealed as another kind of file or under another name")]
    OtherObject,
    /// A frame does not authenticate.
    #[error("the sealed file is damaged: frame {frame}, at byte {offset}, is not authentic")]
    DamagedFrame {
        /// The frame, from 0.
        frame: u64,
        /// Where the frame begins in the file.
        offset: u64,
    },
    /// The file ends before its final frame does.
    #[error("the sealed file is truncated: it ends in frame {frame}, which begins at byte {offset}")]
    Truncated {
        /// The frame, from 0, that is cut or missing.
        frame: u64,
        /// Where the frame begins, or should, in the file.
        offset: u64,
    },
    /// Bytes follow the final frame.
    #[error("the sealed file is damaged: bytes follow its end at byte {offset}")]
    TrailingBytes {
        /// Where the file should have ended.
        offset: u64,
    },
    /// More frames than the cipher may take under one key.
    #[error("too much data for one sealed file")]
    TooLong,
    /// Nothing to seal with.
    #[error("no passphrase and no key to seal with")]
    NoKey,
    /// More credentials than slots.
    #[error("{given} passphrases and key files were given, but a file takes 8")]
    TooManyKeys {
        /// How many were given.
        given: usize,
    },
    /// Nobody could open the repository any more.
    #[error("this is the last slot of the repository's key: without it nobody could open the repository")]
    LastSlot,
    /// No slot of that id, or none that the given passphrase or key opens.
    #[error("the repository's key has no such slot ({slot})")]
    NoSuchSlot {
        /// What was asked for.
        slot: String,
    },
    /// An empty passphrase.
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    /// A key file that holds no key.
    #[error("{} holds no key: expected 32 bytes, raw, as 64 hexadecimal digits or as base64", path.display())]
    NotAKeyFile {
        /// The file.
        path: PathBuf,
    },
    /// Key material from elsewhere that is no key.
    #[error("no key: expected 32 bytes, raw, as 64 hexadecimal digits or as base64")]
    NotAKey,
    /// A key file that others may read or write.
    #[error("the key file {} may be accessed by other users (mode {mode:04o})", path.display())]
    KeyFileExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key file that cannot be read or made.
    #[error("cannot {action} the key file {}", path.display())]
    KeyFile {
        /// `read` or `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The cryptographic library refused, which it does only without memory or randomness.
    #[error("the cryptographic library failed: {operation}")]
    Crypto {
        /// What was asked of it.
        operation: &'static str,
    },
    /// Reading the sealed file or writing it failed.
    #[error("cannot read or write the sealed file")]
    Io(#[source] io::Error),
}

impl SealError {
    /// The seal's error inside an IO error, when it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }

    /// The same the other way round: back from what went through [`std::io::Read`].
    pub fn from_io(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) => Self::Io(error),
        }
    }
}

impl From<SealError> for io::Error {
    fn from(error: SealError) -> Self {
        let kind = match &error {
            SealError::Io(_) => {
                let SealError::Io(inner) = error else {
                    return Self::other("unreachable");
                };
                return inner;
            }
            SealError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            SealError::WrongKey | SealError::KeyMissing { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

impl Diagnose for SealError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotSealed => Some("the file is not encrypted, or not by pgmahout: read it without a key".to_owned()),
            Self::UnsupportedVersion { .. } => Some("use the newest pgmahout".to_owned()),
            Self::WrongKey => Some(
                "give the passphrase or key file that was used when the file was written; a changed passphrase \
                 does not open older files"
                    .to_owned(),
            ),
            Self::KeyMissing { needed } => Some(format!("give {needed}: --passphrase-file FILE or --key-file FILE")),
            Self::DamagedHeader { .. }
            | Self::UnreasonableParameters { .. }
            | Self::DamagedFrame { .. }
            | Self::TrailingBytes { .. } => {
                Some("the file has changed since it was written: use another copy or an older backup, and check the disk".to_owned())
            }
            Self::Truncated { .. } => {
                Some("the copy was probably interrupted: copy the file again, or use another one".to_owned())
            }
            Self::OtherObject => {
                Some("the file was renamed inside the repository, or is no dump: put it back under its own name".to_owned())
            }
            Self::TooLong => Some("split the dump, for example by schema".to_owned()),
            Self::NoKey | Self::EmptyPassphrase => {
                Some("give one with --passphrase-file FILE or --key-file FILE".to_owned())
            }
            Self::LastSlot => Some("add another passphrase or key first: pgmahout repo keys add".to_owned()),
            Self::NoSuchSlot { .. } => Some("list the slots: pgmahout repo keys list".to_owned()),
            Self::TooManyKeys { .. } => Some("give fewer of them".to_owned()),
            Self::NotAKeyFile { .. } | Self::NotAKey => {
                Some("make one: head -c 32 /dev/urandom > FILE && chmod 600 FILE".to_owned())
            }
            Self::KeyFileExposed { path, .. } => Some(format!("chmod 600 {}", path.display())),
            Self::KeyFile { path, source, .. } => Some(match source.kind() {
                io::ErrorKind::AlreadyExists => "choose another name: a key file is never overwritten".to_owned(),
                io::ErrorKind::NotFound => format!("check the path: ls -l {}", path.display()),
                _ => format!("see who may read it: ls -l {}; id", path.display()),
            }),
            Self::Crypto { .. } => Some("see whether the machine is out of memory: free -m".to_owned()),
            Self::Io(_) => None,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::EmptyPassphrase
            | Self::NoKey
            | Self::TooManyKeys { .. }
            | Self::NotAKeyFile { .. }
            | Self::NotAKey
            | Self::NoSuchSlot { .. }
            | Self::KeyMissing { .. } => Outcome::Usage,
            Self::KeyFileExposed { .. } | Self::LastSlot => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }
}
