//! The lines between the first and the last.

use serde::{Deserialize, Serialize};

use super::super::frame::FrameRef;
use super::super::ids::FileStamp;
use super::super::page_map::InlineMap;
use super::super::path::{LinkTarget, RelativePath};

/// Where a page map is: a pack's number in the manifest's table, and the frame in it.
pub type MapRef = FrameRef;

/// One line of the manifest between the first and the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(File),
    /// A symbolic link.
    Link(Link),
    /// Something wrong with a page.
    Finding(Box<Finding>),
}

/// The root of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// The data directory. Tablespaces are in it, below `pg_tblspc`.
    #[default]
    Data,
    /// The root of the file system: what was taken along from outside the data directory.
    Outside,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Directory {
    /// Its path.
    #[serde(rename = "d")]
    pub path: RelativePath,
    /// Where the path begins.
    #[serde(skip_serializing_if = "is_default")]
    pub area: Area,
    /// Its permissions, as `chmod` takes them.
    pub mode: u32,
    /// Its owner, by its place in the header's list.
    pub owner: u32,
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub path: RelativePath,
    /// Where the path begins.
    pub area: Area,
    /// Its kind.
    pub kind: FileKind,
    /// Its permissions, as `chmod` takes them.
    pub mode: u32,
    /// Its owner, by its place in the header's list.
    pub owner: u32,
    /// Its bytes in the backup.
    pub size: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub mtime: i64,
    /// What the file system said of it when it was listed, as a hash: its size, its times, its number. A later
    /// backup of the same machine that finds the same knows that nobody has written to it. `None` where that would
    /// not follow.
    pub stamp: Option<FileStamp>,
    /// Where its content is.
    pub content: Content,
}

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The map is in the manifest itself. An empty file has an empty one.
    Inline(InlineMap),
    /// The map is in a map pack.
    Map(Box<MapContent>),
}

/// A page map in a map pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapContent {
    /// The frame with the map or the overlay.
    pub map: MapRef,
    /// Where that is an overlay: the frame with its base.
    pub base: Option<MapRef>,
    /// The numbers of all packs that the file's blocks are in, each once.
    pub packs: Box<[u32]>,
}

/// What a file is to PostgreSQL, as far as backup and restore care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// The pages of a relation: main fork.
    Relation,
    /// The free space map of a relation.
    Fsm,
    /// The visibility map of a relation.
    Vm,
    /// The initial fork of an unlogged relation.
    Init,
    /// `global/pg_control`, which a restore writes last.
    Control,
    /// Anything else.
    #[default]
    #[serde(other)]
    Other,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its path.
    #[serde(rename = "l")]
    pub path: RelativePath,
    /// Where the path begins.
    #[serde(skip_serializing_if = "is_default")]
    pub area: Area,
    /// What it points at.
    #[serde(rename = "to")]
    pub target: LinkTarget,
}

/// Something wrong with a page when it was backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The file.
    pub path: RelativePath,
    /// The page, counted from the beginning of that file.
    pub block: u32,
    /// What is wrong.
    #[serde(default)]
    pub problem: Problem,
    /// The checksum that its content would have.
    pub expected: u16,
    /// The checksum that stands in it.
    pub found: u16,
}

/// What can be wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Problem {
    /// The checksum in it is not that of its content.
    #[default]
    Checksum,
    /// Its header is impossible.
    Header,
    /// It lies in a hole of the file.
    Hole,
    /// Something that a newer pgmahout knows.
    #[serde(other)]
    Other,
}

impl File {
    /// The numbers of the packs with its blocks; some may occur more than once.
    pub fn data_packs(&self) -> impl Iterator<Item = u32> {
        let (inline, listed) = match &self.content {
            Content::Inline(map) => (Some(map.pack_numbers()), None),
            Content::Map(content) => (None, Some(content.packs.iter().copied())),
        };
        inline.into_iter().flatten().chain(listed.into_iter().flatten())
    }

    /// The numbers of the packs with its map, where that is not in the manifest.
    pub fn map_packs(&self) -> impl Iterator<Item = u32> {
        let content = match &self.content {
            Content::Inline(_) => None,
            Content::Map(content) => Some(content),
        };
        content
            .into_iter()
            .flat_map(|content| [Some(content.map.pack), content.base.map(|base| base.pack)])
            .flatten()
    }
}

/// The line of a file.
#[derive(Serialize)]
pub(super) struct FileLine<'a> {
    f: &'a RelativePath,
    #[serde(skip_serializing_if = "is_default")]
    area: Area,
    #[serde(skip_serializing_if = "is_default")]
    kind: FileKind,
    size: u64,
    mode: u32,
    owner: u32,
    mtime: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stamp: Option<FileStamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inline: Option<&'a InlineMap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<MapRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<MapRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packs: Option<&'a [u32]>,
}

impl<'a> From<&'a File> for FileLine<'a> {
    fn from(file: &'a File) -> Self {
        let (inline, content) = match &file.content {
            Content::Inline(map) if map.is_empty() => (None, None),
            Content::Inline(map) => (Some(map), None),
            Content::Map(content) => (None, Some(content)),
        };
        Self {
            f: &file.path,
            area: file.area,
            kind: file.kind,
            size: file.size,
            mode: file.mode,
            owner: file.owner,
            mtime: file.mtime,
            stamp: file.stamp,
            inline,
            map: content.map(|content| content.map),
            base: content.and_then(|content| content.base),
            packs: content.map(|content| &*content.packs),
        }
    }
}

/// Any line but the first, with all that it may have.
#[derive(Deserialize)]
pub(super) struct AnyLine {
    d: Option<RelativePath>,
    f: Option<RelativePath>,
    l: Option<RelativePath>,
    #[serde(default)]
    area: Area,
    #[serde(default)]
    kind: FileKind,
    size: Option<u64>,
    mode: Option<u32>,
    #[serde(default)]
    owner: u32,
    #[serde(default)]
    mtime: i64,
    stamp: Option<FileStamp>,
    inline: Option<InlineMap>,
    map: Option<MapRef>,
    base: Option<MapRef>,
    #[serde(default)]
    packs: Box<[u32]>,
    to: Option<LinkTarget>,
    finding: Option<Box<Finding>>,
}

impl AnyLine {
    /// The entry; `None` for a line of a kind that is unknown.
    pub(super) fn entry(self) -> Result<Option<Entry>, &'static str> {
        let mode = self.mode.ok_or("`mode` is missing");
        Ok(Some(if let Some(path) = self.f {
            let size = self.size.ok_or("`size` is missing")?;
            let content = match (self.inline, self.map) {
                (Some(map), None) => Content::Inline(map),
                (None, Some(map)) => Content::Map(Box::new(MapContent {
                    map,
                    base: self.base,
                    packs: self.packs,
                })),
                (None, None) if size == 0 => Content::Inline(InlineMap::default()),
                (None, None) => return Err("the file has no content"),
                (Some(_), Some(_)) => return Err("the file has two contents"),
            };
            Entry::File(File {
                path,
                area: self.area,
                kind: self.kind,
                mode: mode?,
                owner: self.owner,
                size,
                mtime: self.mtime,
                stamp: self.stamp,
                content,
            })
        } else if let Some(path) = self.d {
            Entry::Directory(Directory {
                path,
                area: self.area,
                mode: mode?,
                owner: self.owner,
            })
        } else if let Some(path) = self.l {
            Entry::Link(Link {
                path,
                area: self.area,
                target: self.to.ok_or("`to` is missing")?,
            })
        } else if let Some(finding) = self.finding {
            Entry::Finding(finding)
        } else {
            return Ok(None);
        }))
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
