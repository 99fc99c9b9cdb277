//! Configuration that lies outside the data directory and goes along.
//!
//! Files are small and few. They are read whole, stored in a pack of their own with every backup, and stand in the
//! manifest below the root of the file system. What cannot be taken along is told, and does not keep the backup from
//! being taken: it is the data that cannot be had again.
//!
//! # Memory
//!
//! One file, at most [`LARGEST`], and one pack.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pgmahout_store::framed::{FrameCodec, FramedBuilder};
use pgmahout_types::repository::frame::DATA_FRAME;
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use pgmahout_types::repository::pack_index::{IndexedFrame, IndexedRun};
use pgmahout_types::repository::{
    BLOCK_SIZE, FileId, Label, LinkTarget, PackId, PackIndex, PageHash, PageMap, PageMapBuilder, RelativePath,
};

use super::error::CreateError;
use super::parent::file_id;
use crate::physical::files::owners::{Owner, Owners};
use crate::physical::stanza::BlockingRepository;

/// A larger file is no configuration.
pub(super) const LARGEST: u64 = 256 << 20;
/// Bytes at which a pack is full.
const PACK: usize = 64 << 20;
/// So deep are directories searched.
const DEEPEST: usize = 64;

/// What was taken along.
#[derive(Debug, Default)]
pub(super) struct Outside {
    /// What was asked for.
    pub(super) roots: Vec<LinkTarget>,
    pub(super) files: Vec<OutsideFile>,
    pub(super) directories: Vec<(RelativePath, u32, u32)>,
    pub(super) links: Vec<(RelativePath, LinkTarget)>,
    /// The packs with the content of the files.
    pub(super) packs: Vec<PackEntry>,
    /// Bytes that were read.
    pub(super) read: u64,
    /// What could not be taken along, and why.
    pub(super) missing: Vec<String>,
    owners: Owners,
}

/// A file.
#[derive(Debug)]
pub(super) struct OutsideFile {
    pub(super) path: RelativePath,
    pub(super) mode: u32,
    owner: u32,
    /// Nanoseconds since 1970.
    pub(super) mtime: i64,
    pub(super) map: PageMap,
}

impl Outside {
    /// Everybody who owns something of it.
    pub(super) fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.owners.iter()
    }

    pub(super) fn owner_of(&self, file: &OutsideFile) -> &Owner {
        self.owners.get(file.owner)
    }

    pub(super) fn owner(&self, number: u32) -> &Owner {
        self.owners.get(number)
    }

    /// Bytes that were stored.
    pub(super) fn stored(&self) -> u64 {
        self.packs.iter().map(|pack| pack.size).sum()
    }
}

/// Takes files and directories along. Blocking.
pub(super) fn take(
    repository: &BlockingRepository,
    codec: FrameCodec,
    run: Label,
    paths: &[PathBuf],
) -> Result<Outside, CreateError> {
    let mut taker = Taker {
        repository,
        codec,
        run,
        open: None,
        outside: Outside::default(),
    };
    for path in paths {
        if let Ok(root) = LinkTarget::from_path(path) {
            taker.outside.roots.push(root);
        }
        // What is named is followed, and what is found is not.
        let found = fs::metadata(path);
        taker.visit(path, found, DEEPEST)?;
    }
    taker.send()?;
    Ok(taker.outside)
}

struct Taker<'a> {
    repository: &'a BlockingRepository,
    codec: FrameCodec,
    run: Label,
    open: Option<(PackId, FramedBuilder, PackIndex)>,
    outside: Outside,
}

impl Taker<'_> {
    fn miss(&mut self, path: &Path, why: &dyn std::fmt::Display) {
        self.outside.missing.push(format!("{}: {why}", path.display()));
    }

    fn visit(&mut self, path: &Path, found: io::Result<Metadata>, depth: usize) -> Result<(), CreateError> {
        let metadata = match found {
            Ok(metadata) => metadata,
            Err(error) => {
                self.miss(path, &error);
                return Ok(());
            }
        };
        let name = path.strip_prefix("/").unwrap_or(path);
        let Ok(name) = RelativePath::from_path(name) else {
            self.miss(path, &"its name cannot be kept");
            return Ok(());
        };
        if metadata.is_symlink() {
            match fs::read_link(path).map(|target| LinkTarget::from_path(&target)) {
                Ok(Ok(target)) => self.outside.links.push((name, target)),
                Ok(Err(error)) => self.miss(path, &error),
                Err(error) => self.miss(path, &error),
            }
            return Ok(());
        }
        let mode = metadata.mode() & 0o7777;
        let owner = self.outside.owners.index(metadata.uid(), metadata.gid());
        if metadata.is_dir() {
            self.outside.directories.push((name, mode, owner));
            return self.directory(path, depth);
        }
        if !metadata.is_file() {
            self.miss(path, &"it is no file and no directory");
            return Ok(());
        }
        if metadata.len() > LARGEST {
            self.miss(path, &format_args!("it is larger than {} MiB", LARGEST >> 20));
            return Ok(());
        }
        let content = match fs::read(path) {
            Ok(content) => content,
            Err(error) => {
                self.miss(path, &error);
                return Ok(());
            }
        };
        self.outside.read += content.len() as u64;
        let id = file_id(self.repository.repository().hash_key(), name.as_bytes());
        let map = self.store(id, &content)?;
        let nanoseconds = metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec());
        self.outside.files.push(OutsideFile {
            path: name,
            mode,
            owner,
            mtime: nanoseconds,
            map,
        });
        Ok(())
    }

    fn directory(&mut self, path: &Path, depth: usize) -> Result<(), CreateError> {
        let Some(depth) = depth.checked_sub(1) else {
            self.miss(path, &"it lies too deep");
            return Ok(());
        };
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                self.miss(path, &error);
                return Ok(());
            }
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let found = fs::symlink_metadata(&path);
            self.visit(&path, found, depth)?;
        }
        Ok(())
    }

    fn store(&mut self, file: FileId, content: &[u8]) -> Result<PageMap, CreateError> {
        let (key, codec) = (*self.repository.repository().hash_key(), self.codec);
        let mut map = PageMapBuilder::new();
        for (number, piece) in (0_u32..).zip(content.chunks(DATA_FRAME as usize)) {
            let hashes: Vec<PageHash> = piece
                .chunks(BLOCK_SIZE as usize)
                .map(|block| PageHash::of(&key, block))
                .collect();
            let (id, builder, index) = self.pack(piece.len())?;
            let location = builder.push(codec, piece).map_err(framed)?;
            map.stored(*id, location, 0, &hashes);
            index.frames.push(IndexedFrame {
                location,
                runs: vec![IndexedRun {
                    file,
                    first: number * (DATA_FRAME / BLOCK_SIZE),
                    offset: 0,
                    hashes,
                }],
            });
        }
        map.finish(content.len() as u64)
            .map_err(|error| CreateError::Unexpected {
                what: error.to_string(),
            })
    }

    /// A pack with room for so many bytes.
    fn pack(&mut self, bytes: usize) -> Result<&mut (PackId, FramedBuilder, PackIndex), CreateError> {
        if self
            .open
            .as_ref()
            .is_some_and(|(_, builder, _)| builder.len() + bytes > PACK)
        {
            self.send()?;
        }
        Ok(match &mut self.open {
            Some(open) => open,
            closed => {
                let repository = self.repository.repository();
                let id = repository.new_pack_id()?;
                let (kind, name) = repository.pack_object(PackKind::Data, id);
                let builder =
                    FramedBuilder::new(&repository.cipher(), kind, &name, 1 << 20).map_err(framed)?;
                closed.insert((id, builder, PackIndex::new(PackKind::Data, self.run)))
            }
        })
    }

    fn send(&mut self) -> Result<(), CreateError> {
        let Some((id, builder, index)) = self.open.take() else {
            return Ok(());
        };
        let (key, salt) = (builder.key_number(), builder.salt());
        let object = builder
            .finish(&index.encode(), FrameCodec::Zstd(1))
            .map_err(framed)?;
        let size = object.len() as u64;
        let frames = index.frames.iter();
        let live = frames.map(|frame| u64::from(frame.location.raw)).sum();
        self.repository.put_pack(PackKind::Data, id, object)?;
        self.outside.packs.push(PackEntry {
            id,
            kind: PackKind::Data,
            key,
            salt,
            size,
            live,
        });
        Ok(())
    }
}

fn framed(source: pgmahout_store::framed::FramedError) -> CreateError {
    CreateError::Framed {
        what: "the pack with the files from outside the data directory",
        source,
    }
}
