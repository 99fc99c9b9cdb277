//! Gathering blocks into frames, and frames into packs; maps, which are frames of their own, into packs of maps.
//!
//! Every worker has a pack of its own, in memory. Blocks go into a buffer of 128 KiB, of one file or several;
//! a full buffer becomes a frame, which is compressed and sealed at the end of the pack; a full pack goes to
//! the uploader through a queue of one. Its buffer comes back for the next pack, so that the system need not
//! clear new memory.
//!
//! # Memory
//!
//! [`PackSizing`] keeps all packs of a run, in whatever state, under 256 MiB.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use bytes::Bytes;
use pgmahout_store::framed::{FrameCodec, FramedBuilder, ObjectCipher};
use pgmahout_types::repository::frame::DATA_FRAME;
use pgmahout_types::repository::manifest::PackKind;
use pgmahout_types::repository::pack_index::{IndexedFrame, IndexedRun};
use pgmahout_types::repository::{FileId, FrameLocation, Label, PackId, PackIndex, PageHash, Salt};

use super::error::CreateError;
use crate::physical::stanza::{StanzaNames, kind};

/// All packs of a run together.
const BUDGET: usize = 256 << 20;
/// A pack is never larger: so long is one request to an object store.
const LARGEST: usize = 64 << 20;
/// A pack is never smaller, or there would be too many objects.
const SMALLEST: usize = 4 << 20;

/// Bytes at which a pack of maps is full.
const MAP_PACK: usize = 16 << 20;
/// What a pack of maps begins with.
const FIRST_MAP_BYTES: usize = 1 << 20;

/// How large packs of file content are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackSizing {
    /// Bytes at which a pack is full.
    pub(super) target: usize,
}

impl PackSizing {
    /// For so many workers: each fills one, one waits, and each of the uploaders holds one.
    pub(super) fn new(workers: usize, uploaders: usize) -> Self {
        Self {
            target: (BUDGET / (workers + uploaders + 1)).clamp(SMALLEST, LARGEST),
        }
    }
}

/// A pack that is ready to be stored.
#[derive(Debug)]
pub(super) struct FinishedPack {
    /// Its name.
    pub(super) id: PackId,
    /// What its frames hold.
    pub(super) kind: PackKind,
    /// The number of the key that sealed it.
    pub(super) key: u32,
    /// Its salt.
    pub(super) salt: Salt,
    /// The object.
    pub(super) bytes: Bytes,
}

/// What all workers need to make packs.
pub(super) struct PackSettings {
    /// What seals them.
    pub(super) cipher: ObjectCipher,
    /// How they are compressed.
    pub(super) codec: FrameCodec,
    /// How large they become.
    pub(super) sizing: PackSizing,
    /// The backup that makes them.
    pub(super) run: Label,
    /// The names of the stanza's objects, which are bound to their content.
    pub(super) names: StanzaNames,
}

/// A frame in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::physical) struct PackedFrame {
    /// The pack.
    pub(in crate::physical) pack: PackId,
    /// Where in it.
    pub(in crate::physical) location: FrameLocation,
}

/// Where a block went: which of the frames since the last [`PackWriter::take_frames`], and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockPlace {
    /// Number of the frame.
    pub(super) frame: u32,
    /// Byte in the frame's content.
    pub(super) offset: u32,
}

/// One worker's packs.
pub(super) struct PackWriter {
    settings: Arc<PackSettings>,
    kind: PackKind,
    sender: SyncSender<FinishedPack>,
    spare: Arc<Spare>,
    open: Option<OpenPack>,
    buffer: Vec<u8>,
    /// Whose blocks are in the buffer, in order.
    runs: Vec<IndexedRun>,
    /// The frames since the last [`PackWriter::take_frames`].
    frames: Vec<PackedFrame>,
}

struct OpenPack {
    id: PackId,
    builder: FramedBuilder,
    index: PackIndex,
}

/// Buffers of stored packs, for the next ones.
pub(super) struct Spare {
    receiver: std::sync::Mutex<Receiver<Vec<u8>>>,
}

impl Spare {
    /// The buffers, and where to return them.
    pub(super) fn new() -> (Sender<Vec<u8>>, Self) {
        let (sender, receiver) = std::sync::mpsc::channel();
        (
            sender,
            Self {
                receiver: std::sync::Mutex::new(receiver),
            },
        )
    }

    fn take(&self) -> Option<Vec<u8>> {
        self.receiver.lock().ok()?.try_recv().ok()
    }
}

impl PackWriter {
    /// Without a pack yet.
    pub(super) fn new(
        kind: PackKind,
        settings: Arc<PackSettings>,
        sender: SyncSender<FinishedPack>,
        spare: Arc<Spare>,
    ) -> Self {
        Self {
            settings,
            kind,
            sender,
            spare,
            open: None,
            buffer: Vec::with_capacity(DATA_FRAME as usize),
            runs: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Takes a block. Blocks of one file come in order.
    pub(super) fn add(
        &mut self,
        file: FileId,
        block: u32,
        hash: PageHash,
        bytes: &[u8],
    ) -> Result<BlockPlace, CreateError> {
        if self.buffer.len() + bytes.len() > DATA_FRAME as usize {
            self.flush()?;
        }
        let place = BlockPlace {
            frame: self.frames.len() as u32,
            offset: self.buffer.len() as u32,
        };
        self.buffer.extend_from_slice(bytes);
        match self.runs.last_mut() {
            Some(run) if run.file == file && run.first + run.hashes.len() as u32 == block => {
                run.hashes.push(hash);
            }
            _ => self.runs.push(IndexedRun {
                file,
                first: block,
                offset: place.offset,
                hashes: vec![hash],
            }),
        }
        Ok(place)
    }

    /// Takes something that becomes a frame of its own: a page map.
    pub(super) fn add_whole(&mut self, file: FileId, content: &[u8]) -> Result<PackedFrame, CreateError> {
        let run = IndexedRun {
            file,
            first: 0,
            offset: 0,
            hashes: Vec::new(),
        };
        self.push(content, vec![run])
    }

    /// The frames that hold all blocks since the last call; a frame that is not full becomes one too.
    pub(super) fn take_frames(&mut self) -> Result<Vec<PackedFrame>, CreateError> {
        self.flush()?;
        Ok(std::mem::take(&mut self.frames))
    }

    /// Sends the last pack away.
    pub(super) fn finish(mut self) -> Result<(), CreateError> {
        self.flush()?;
        self.send()
    }

    fn flush(&mut self) -> Result<(), CreateError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        let runs = std::mem::take(&mut self.runs);
        let frame = self.push(&buffer, runs)?;
        self.frames.push(frame);
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    fn push(&mut self, content: &[u8], runs: Vec<IndexedRun>) -> Result<PackedFrame, CreateError> {
        let target = match self.kind {
            PackKind::Data => self.settings.sizing.target,
            PackKind::Map => MAP_PACK,
        };
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.builder.len() + content.len() > target)
        {
            self.send()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            closed => closed.insert(OpenPack::new(self.kind, &self.settings, &self.spare)?),
        };
        let location = open.builder.push(self.settings.codec, content).map_err(framed)?;
        open.index.frames.push(IndexedFrame { location, runs });
        Ok(PackedFrame {
            pack: open.id,
            location,
        })
    }

    fn send(&mut self) -> Result<(), CreateError> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let pack = open.finish()?;
        // The uploader has gone only when it failed, and it says itself why.
        self.sender.send(pack).map_err(|_| CreateError::Interrupted)
    }
}

impl OpenPack {
    fn new(pack_kind: PackKind, settings: &PackSettings, spare: &Spare) -> Result<Self, CreateError> {
        let id = random_id()?;
        let builder = match pack_kind {
            PackKind::Data => {
                let name = settings.names.pack(id);
                match spare.take() {
                    Some(buffer) => FramedBuilder::with_buffer(&settings.cipher, kind::PACK, &name, buffer),
                    None => FramedBuilder::new(&settings.cipher, kind::PACK, &name, settings.sizing.target),
                }
            }
            // Most backups have few maps: the object grows as it must.
            PackKind::Map => FramedBuilder::new(
                &settings.cipher,
                kind::MAP,
                &settings.names.map(id),
                FIRST_MAP_BYTES,
            ),
        };
        Ok(Self {
            id,
            builder: builder.map_err(framed)?,
            index: PackIndex::new(pack_kind, settings.run),
        })
    }

    fn finish(self) -> Result<FinishedPack, CreateError> {
        let (key, salt) = (self.builder.key_number(), self.builder.salt());
        let bytes = self
            .builder
            .finish(&self.index.encode(), FrameCodec::Zstd(1))
            .map_err(framed)?;
        Ok(FinishedPack {
            id: self.id,
            kind: self.index.kind,
            key,
            salt,
            bytes,
        })
    }
}

/// A name that nothing has.
pub(super) fn random_id() -> Result<PackId, CreateError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CreateError::Unexpected {
        what: "the system gives no random bytes".to_owned(),
    })?;
    Ok(PackId::from_bytes(bytes))
}

fn framed(source: pgmahout_store::framed::FramedError) -> CreateError {
    CreateError::Framed {
        what: "a pack of the backup",
        source,
    }
}
