//! Section `wal`: the archive of write-ahead log.

use std::path::PathBuf;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::node::Content;
use crate::quantity::{serialize_duration, serialize_size, size_text};
use crate::scalar;
use crate::section::Section;

/// Section `wal`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Wal {
    /// How many repositories must hold a segment before `wal push` succeeds; all by default.
    pub min_repositories: Option<u32>,
    /// How many segments are stored or fetched at once; the number of cores by default.
    pub jobs: Option<u32>,
    /// How long `wal push` tries before it fails, so that PostgreSQL tries again.
    #[serde(serialize_with = "serialize_duration")]
    pub timeout: Option<Duration>,
    /// Where segments are held while no repository can be reached. Off by default: PostgreSQL keeps them.
    pub spool: Option<Spool>,
    /// How much WAL may wait in pg_wal before segments are given up for the sake of a full disk. Never by
    /// default.
    #[serde(serialize_with = "serialize_size")]
    pub max_queue: Option<u64>,
    /// Whether `wal fetch` fetches segments before they are asked for.
    pub prefetch: Prefetch,
    /// Streaming.
    pub receive: Receive,
}

/// Where segments are held that no repository takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    /// The directory; it should lie on another file system than pg_wal.
    pub path: PathBuf,
    /// The most that it may hold, in bytes.
    pub size: u64,
}

impl Spool {
    /// What a spool holds when nothing is said: 1 GiB.
    pub const SIZE: u64 = 1 << 30;
}

/// In the form of the file.
impl Serialize for Spool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("path", &self.path)?;
        map.serialize_entry("size", &size_text(self.size))?;
        map.end()
    }
}

/// How far `wal fetch` reads ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetch {
    /// How many segments; 0 is none.
    pub segments: u32,
    /// Where they wait; beside pg_wal by default.
    pub path: Option<PathBuf>,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            segments: 16,
            path: None,
        }
    }
}

/// In the form of the file: the number alone where nothing else is said.
impl Serialize for Prefetch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(path) = &self.path else {
            return serializer.serialize_u32(self.segments);
        };
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("segments", &self.segments)?;
        map.serialize_entry("path", path)?;
        map.end()
    }
}

/// `wal receive`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Receive {
    /// The replication slot.
    pub slot: Option<String>,
    /// Where the segment that is being received is kept until it is whole.
    pub directory: Option<PathBuf>,
    /// Whether it may be a synchronous standby.
    pub synchronous: bool,
}

pub(crate) fn read(root: &Section<'_>) -> Wal {
    let section = root.section("wal");
    let receive = section.section("receive");
    let wal = Wal {
        min_repositories: section.integer("min_repositories", 1..=100),
        jobs: section.integer("jobs", 1..=256),
        timeout: section.duration("timeout"),
        spool: read_spool(&section),
        max_queue: section.size("max_queue"),
        prefetch: read_prefetch(&section),
        receive: Receive {
            slot: receive.read(
                "slot",
                "a name of up to 63 small letters, digits and underscores",
                |text| {
                    let fits = (1..=63).contains(&text.len())
                        && text.chars().all(|character| {
                            character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_'
                        });
                    fits.then(|| text.to_owned())
                },
            ),
            directory: receive.path("directory"),
            synchronous: receive.boolean("synchronous").unwrap_or(false),
        },
    };
    receive.finish();
    section.finish();
    wal
}

/// A directory, or a mapping of path and size.
fn read_spool(section: &Section<'_>) -> Option<Spool> {
    let node = section.get("spool")?;
    if let Content::Scalar { text, plain: true } = &node.content
        && scalar::boolean(text) == Some(false)
    {
        return None;
    }
    if !matches!(node.content, Content::Mapping(_)) {
        return section.path("spool").map(|path| Spool {
            path,
            size: Spool::SIZE,
        });
    }
    let spool = section.section("spool");
    let path = spool.path("path");
    if spool.get("path").is_none() {
        spool.missing("path");
    }
    let size = spool.size("size").unwrap_or(Spool::SIZE);
    spool.finish();
    Some(Spool { path: path?, size })
}

/// A number of segments, `off`, or a mapping of segments and path.
fn read_prefetch(section: &Section<'_>) -> Prefetch {
    const SEGMENTS: std::ops::RangeInclusive<u32> = 0..=1024;
    let default = Prefetch::default();
    let Some(node) = section.get("prefetch") else {
        return default;
    };
    if let Content::Scalar { text, plain: true } = &node.content
        && scalar::boolean(text) == Some(false)
    {
        return Prefetch {
            segments: 0,
            ..default
        };
    }
    if !matches!(node.content, Content::Mapping(_)) {
        let segments = section.integer("prefetch", SEGMENTS).unwrap_or(default.segments);
        return Prefetch { segments, ..default };
    }
    let prefetch = section.section("prefetch");
    let read = Prefetch {
        segments: prefetch.integer("segments", SEGMENTS).unwrap_or(default.segments),
        path: prefetch.path("path"),
    };
    prefetch.finish();
    read
}
