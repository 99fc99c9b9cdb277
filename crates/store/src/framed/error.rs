//! What can be wrong with a framed object.

use std::io;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

/// Why a framed object could not be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FramedError {
    /// The object does not begin like a framed one.
    #[error("not a framed object of pgmahout")]
    NotFramed,
    /// Written by a newer pgmahout.
    #[error("written in format version {version}, which this pgmahout does not know")]
    UnsupportedVersion {
        /// The version in the header.
        version: u16,
    },
    /// The header is not as it was written.
    #[error("the object's header is damaged ({problem})")]
    DamagedHeader {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The header is whole, but not made with this key.
    #[error("the repository's key does not open this object")]
    WrongKey,
    /// Sealed with a key of the repository that is not at hand.
    #[error("the object is sealed with the repository's key number {number}, which is not there")]
    UnknownKey {
        /// The key's number.
        number: u32,
    },
    /// Sealed, and no key is configured.
    #[error("the object is encrypted, and no key is configured")]
    KeyNotGiven,
    /// Plain, in an encrypted repository: anybody could have put it there.
    #[error("the object is not encrypted, in an encrypted repository")]
    NotEncrypted,
    /// Authentic, but another object.
    #[error("the object is whole, but it is not the {kind} `{name}`: it was written as something else")]
    OtherObject {
        /// The kind that was expected.
        kind: String,
        /// The name that was expected.
        name: String,
    },
    /// A frame is not as it was written.
    #[error("the object is damaged: frame {frame}, at byte {offset}, {problem}")]
    DamagedFrame {
        /// The frame, from 0.
        frame: u32,
        /// Where it begins in the object.
        offset: u64,
        /// What is wrong, to be read after "frame N".
        problem: &'static str,
    },
    /// The object ends before its end.
    #[error("the object is truncated: it ends in frame {frame}, which begins at byte {offset}")]
    Truncated {
        /// The frame, from 0, that is cut or missing.
        frame: u32,
        /// Where it begins, or should.
        offset: u64,
    },
    /// The trailer is not as it was written.
    #[error("the object is truncated or damaged at its end (the trailer: {problem})")]
    DamagedTrailer {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Bytes follow the trailer.
    #[error("the object is damaged: bytes follow its end at byte {offset}")]
    TrailingBytes {
        /// Where the object should have ended.
        offset: u64,
    },
    /// More raw bytes than a frame takes.
    #[error("{length} bytes are too many for one frame")]
    FrameTooLong {
        /// How many were given.
        length: usize,
    },
    /// More frames than an object takes.
    #[error("too many frames for one object")]
    TooManyFrames,
    /// The compressor refused, which it does only without memory.
    #[error("cannot compress")]
    Compression(#[source] io::Error),
    /// The cryptographic library refused, which it does only without memory or randomness.
    #[error("the cryptographic library failed")]
    Crypto,
}

impl FramedError {
    /// Whether the object is not as it was written: another copy of it may help.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::NotFramed
                | Self::DamagedHeader { .. }
                | Self::NotEncrypted
                | Self::OtherObject { .. }
                | Self::DamagedFrame { .. }
                | Self::Truncated { .. }
                | Self::DamagedTrailer { .. }
                | Self::TrailingBytes { .. }
        )
    }
}

impl Diagnose for FramedError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::UnsupportedVersion { .. } => "use the newest pgmahout",
            Self::WrongKey => {
                "check the passphrase, key file or command under `encryption` in the repository's settings"
            }
            Self::UnknownKey { number } => {
                return Some(format!(
                    "bring back repository.key.{number} from a copy of the repository; without it the object cannot \
                     be read"
                ));
            }
            Self::KeyNotGiven => "set `encryption` in the repository's settings",
            Self::OtherObject { .. } | Self::NotEncrypted => {
                "somebody has put another object in its place: see who may write to the repository, and use another \
                 backup or repository"
            }
            Self::NotFramed
            | Self::DamagedHeader { .. }
            | Self::DamagedFrame { .. }
            | Self::Truncated { .. }
            | Self::DamagedTrailer { .. }
            | Self::TrailingBytes { .. } => {
                "use another backup or another repository, and check the storage's disks"
            }
            Self::FrameTooLong { .. } | Self::TooManyFrames => "use the newest pgmahout, and report this",
            Self::Compression(_) | Self::Crypto => "see whether the machine is out of memory: free -m",
        };
        Some(text.to_owned())
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::KeyNotGiven => Outcome::Usage,
            _ => Outcome::Failed,
        }
    }
}
