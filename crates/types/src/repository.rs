//! The formats of the repository of physical backups: what its objects hold, as values and as bytes.
//!
//! | object | holds |
//! |---|---|
//! | pack | frames of file content, or of [`PageMap`]s and [`Overlay`]s; its last frame is a [`PackIndex`] |
//! | manifest | one backup: a [`Header`](manifest::Header), the [`Entry`](manifest::Entry)s, an [`End`](manifest::End) |
//! | head | which backups there are: [`Head`] |
//! | condemned list | what a collection is about to delete: [`CondemnedObjects`] |
//! | stanza | whose backups these are: [`StanzaInfo`] |
//! | WAL object | one file of the WAL archive, behind a [`WalObjectHeader`] |
//!
//! Compression, encryption and the order of frames in an object are not known here. What is stored in JSON
//! is read tolerantly: unknown keys are passed over, so that an older program can read what a newer one of
//! the same format wrote; [`Head`], which is rewritten, keeps them. Binary formats have a version byte and
//! are read strictly. Every reader is total and allocates no more than a small multiple of its input.

pub mod bytes_text;
pub mod condemned;
pub mod frame;
pub mod head;
pub mod ids;
pub mod manifest;
pub mod pack_index;
pub mod page_map;
pub mod path;
pub mod stanza_info;
pub mod wal_object;

mod binary;

pub use bytes_text::ExactBytes;
pub use condemned::{CondemnedId, CondemnedObjects};
pub use frame::{FRAME_HEADER, FRAME_TAG, FrameLocation, FrameRef, LARGEST_FRAME};
pub use head::{BackupEntry, Head};
pub use ids::{Digest, FileId, FileStamp, Label, Nonce, PackId, PageHash, Salt};
pub use manifest::{Manifest, ManifestReader, ManifestWriter};
pub use pack_index::PackIndex;
pub use page_map::{Extent, Overlay, PageMap, PageMapBuilder, Source};
pub use path::{LinkTarget, RelativePath};
pub use stanza_info::StanzaInfo;
pub use wal_object::WalObjectHeader;

/// Bytes in a block, the unit in which files are compared and stored: a page of a relation as PostgreSQL is
/// built by default (`BLCKSZ`).
pub const BLOCK_SIZE: u32 = 8192;

/// How a physical backup reads the server's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The data directory of a primary, on the same machine.
    Local,
    /// The data directory of a standby, on the same machine.
    Standby,
    /// The replication protocol's `BASE_BACKUP`.
    Remote,
}

impl Method {
    /// The word, as in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Standby => "standby",
            Self::Remote => "remote",
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.as_str())
    }
}
