//! What an older backup has, with which the files are compared.
//!
//! Files are compared block by block, by content. So any older backup of the same cluster will do, whatever
//! timeline it is of and whatever happened since: a wrong guess costs space, never a page.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use pgmahout_store::framed::FramedOpener;
use pgmahout_types::repository::manifest::{Content, Entry, MapRef, PackEntry};
use pgmahout_types::repository::page_map::StoredMap;
use pgmahout_types::repository::{
    BackupEntry, FileId, FileStamp, Head, Label, PackId, PageMap, PageMapBuilder, Source,
};
use pgmahout_types::{SystemIdentifier, TimelineId};

use super::cluster::Cluster;
use super::error::CreateError;
use super::pack::PackedFrame;
use super::record::{Record, Records};
use crate::physical::stanza::{BlockingRepository, PhysicalRepository, kind};

/// Maps are read in pieces of this size: neighbours are wanted soon after.
const READ_AHEAD: u64 = 1 << 20;
/// So many pieces are kept.
const PIECES: usize = 16;
/// A file may be scattered over so many packs, and some more by chance, before it is stored afresh.
const MOST_PACKS: usize = 32;
/// Bytes above which it is looked at how scattered a file is.
const LARGE: u64 = 16 << 20;

/// The older backup.
pub(super) struct Parent {
    /// Its name.
    pub(super) label: Label,
    packs: Vec<PackEntry>,
    known: HashMap<PackId, PackEntry>,
    /// Packs are numbers in it: see [`numbered`].
    records: Records,
    /// Places of records by the hash of the path, sorted, with the stamps of the files.
    places: Vec<(FileId, u64, Option<FileStamp>)>,
    /// Where and when it was taken.
    pub(super) origin: Origin,
    maps: MapReader,
    /// Packs on which nothing new is built.
    left_behind: HashSet<PackId>,
    /// Bytes of its files.
    bytes: u64,
}

/// Where and when the older backup was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// The machine whose stamps its files have.
    pub(super) machine: Option<FileStamp>,
    /// The timeline.
    pub(super) timeline: TimelineId,
    /// Whether pages carried checksums.
    pub(super) checksums: bool,
    /// When it ended.
    pub(super) stop_time: Timestamp,
}

/// What the older backup has of a file.
#[derive(Debug)]
pub(super) struct ParentFile {
    /// Where every block is.
    pub(super) map: PageMap,
    /// Whether all of it is there, and nothing is to be stored afresh.
    pub(super) is_whole: bool,
    /// Where that map is stored, if it is not in the manifest.
    pub(super) stored: Option<StoredAt>,
    /// For each pack of the map whether it is left behind, so that blocks in it are stored afresh when they are read;
    /// empty where none is. A block that is not read may be taken from there all the same: the pack then stays.
    left_behind: Vec<bool>,
}

impl ParentFile {
    /// Whether a frame of the map is in a pack that is left behind.
    pub(super) fn is_left_behind(&self, frame: u32) -> bool {
        !self.left_behind.is_empty()
            && self
                .map
                .frames()
                .get(frame as usize)
                .and_then(|frame| self.left_behind.get(frame.pack as usize))
                .is_some_and(|gone| *gone)
    }
}

/// Where a map is stored.
#[derive(Debug)]
pub(super) struct StoredAt {
    /// The frame with the map or the overlay.
    pub(super) frame: PackedFrame,
    /// Where that is an overlay: its base.
    pub(super) base: Option<(PackedFrame, PageMap)>,
}

/// The backups that a backup of this cluster can be compared with, the newest first. What was found damaged is not
/// built on.
pub(super) fn usable(
    head: &Head,
    system: SystemIdentifier,
    major: u32,
) -> impl Iterator<Item = &BackupEntry> {
    head.backups.iter().rev().filter(move |entry| {
        entry.system_identifier == system
            && entry.server_version.major() == major
            && entry.verified.as_ref().is_none_or(|verified| verified.passed)
    })
}

impl Parent {
    /// Reads the manifest of the older backup. `None` where it is of other pages or segments.
    pub(super) async fn load(
        repository: &PhysicalRepository,
        entry: &BackupEntry,
        cluster: &Cluster,
    ) -> Result<Option<Self>, CreateError> {
        let storage = repository.blocking();
        let repository = repository.clone();
        let (page_size, segment_blocks) = (cluster.block_size, cluster.relation_segment_blocks);
        let stored = repository
            .fetch_manifest(entry.label, Some(entry.manifest))
            .await?;
        let loaded = tokio::task::spawn_blocking(move || {
            let wrong = |error| repository.manifest_error(stored.name(), error);
            let mut reader = stored.reader()?;
            let header = reader.header();
            if header.page_size != page_size || header.relation_segment_blocks != segment_blocks {
                return Ok(None);
            }
            let label = header.label;
            let origin = Origin {
                machine: header.machine,
                timeline: header.timeline,
                checksums: header.data_checksums.is_on(),
                stop_time: header.stop_time,
            };
            let key = *repository.hash_key();
            let mut records = Records::default();
            let mut places = Vec::new();
            // Packs are named by number, and their table comes last: until then a number is a name.
            while let Some(entry) = reader.next_entry().map_err(wrong)? {
                let Entry::File(file) = entry else { continue };
                let record = match file.content {
                    Content::Inline(map) => Record::Inline(
                        map.to_map(file.size, |number| Some(numbered(number)))
                            .map_err(|error| damaged(&error.to_string()))?,
                    ),
                    Content::Map(content) => Record::Stored {
                        size: file.size,
                        map: numbered_frame(content.map),
                        base: content.base.map(numbered_frame),
                        packs: Vec::new(),
                    },
                };
                let path = file.path.as_bytes();
                places.push((file_id(&key, path), records.push(path, &record), file.stamp));
            }
            let packs: Vec<PackEntry> = reader.end().map(|end| end.packs.clone()).unwrap_or_default();
            let bytes = reader.end().map_or(0, |end| end.bytes);
            places.sort_unstable();
            let known = packs.iter().map(|pack| (pack.id, *pack)).collect();
            Ok(Some(Self {
                label,
                packs,
                known,
                records,
                places,
                origin,
                maps: MapReader::new(storage),
                left_behind: HashSet::new(),
                bytes,
            }))
        })
        .await;
        match loaded {
            Ok(loaded) => loaded,
            Err(_) => Err(CreateError::Thread),
        }
    }

    /// A pack that the older backup uses.
    pub(super) fn pack(&self, id: PackId) -> Option<&PackEntry> {
        self.known.get(&id)
    }

    /// The same for all of them.
    pub(super) fn entries(&self) -> impl Iterator<Item = &PackEntry> {
        self.packs.iter()
    }

    /// Bytes of its files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Nothing new is built on these packs: what is in them is as if the older backup had not got it.
    pub(super) fn leave_behind(&mut self, packs: HashSet<PackId>) {
        self.left_behind = packs;
    }

    /// All packs that the older backup uses.
    pub(super) fn packs(&self) -> impl Iterator<Item = PackId> {
        self.packs.iter().map(|pack| pack.id)
    }

    /// The stamp that a file had when it was listed for the older backup.
    pub(super) fn stamp(&self, id: FileId, path: &[u8]) -> Option<FileStamp> {
        let first = self.places.partition_point(|(known, ..)| *known < id);
        self.places[first..]
            .iter()
            .take_while(|(known, ..)| *known == id)
            .find(|(_, place, _)| self.records.is_named(*place, path))
            .and_then(|(.., stamp)| *stamp)
    }

    /// What the older backup has of a file. `None` where it has nothing, or what is not worth to be built on.
    ///
    /// For blocking threads.
    pub(super) fn file(&self, id: FileId, path: &[u8]) -> Result<Option<ParentFile>, CreateError> {
        let first = self.places.partition_point(|(known, ..)| *known < id);
        let record = self.places[first..]
            .iter()
            .take_while(|(known, ..)| *known == id)
            .find_map(|(_, place, _)| self.records.get(*place, path));
        let file = match record {
            None => return Ok(None),
            Some(Record::Inline(map)) => ParentFile {
                map: self.named(&map)?,
                is_whole: true,
                stored: None,
                left_behind: Vec::new(),
            },
            Some(Record::Stored { map, base, .. }) => {
                let frame = self.named_frame(map)?;
                let base = base.map(|base| self.named_frame(base)).transpose()?;
                let stored = self.maps.read(self.pack_of(frame)?, frame)?;
                match (stored, base) {
                    (StoredMap::Whole(map), _) => ParentFile {
                        map,
                        is_whole: true,
                        stored: Some(StoredAt { frame, base: None }),
                        left_behind: Vec::new(),
                    },
                    (StoredMap::Overlay(overlay), Some(base)) => {
                        let StoredMap::Whole(base_map) = self.maps.read(self.pack_of(base)?, base)? else {
                            return Err(damaged("the base of a changed map is no whole map"));
                        };
                        ParentFile {
                            map: overlay
                                .apply(&base_map)
                                .map_err(|error| damaged(&error.to_string()))?,
                            is_whole: true,
                            stored: Some(StoredAt {
                                frame,
                                base: Some((base, base_map)),
                            }),
                            left_behind: Vec::new(),
                        }
                    }
                    (StoredMap::Overlay(_), None) => {
                        return Err(damaged("a changed map has no base"));
                    }
                }
            }
        };
        if is_scattered(&file.map, id) {
            return Ok(None);
        }
        Ok(Some(self.mark_left_behind(file)))
    }

    /// Marks what is in packs that are left behind. A file that has anything there gets a map of its own.
    fn mark_left_behind(&self, mut file: ParentFile) -> ParentFile {
        if self.left_behind.is_empty() {
            return file;
        }
        let gone = |pack: &PackId| self.left_behind.contains(pack);
        let stored_there = |stored: &StoredAt| {
            gone(&stored.frame.pack) || stored.base.as_ref().is_some_and(|(base, _)| gone(&base.pack))
        };
        if file.map.packs().iter().any(gone) {
            file.left_behind = file.map.packs().iter().map(gone).collect();
            file.stored = None;
            file.is_whole = false;
        } else if file.stored.as_ref().is_some_and(stored_there) {
            file.stored = None;
        }
        file
    }

    fn pack_of(&self, frame: PackedFrame) -> Result<&PackEntry, CreateError> {
        self.pack(frame.pack).ok_or_else(unlisted)
    }

    /// The pack that stands for a number.
    fn id(&self, numbered: PackId) -> Result<PackId, CreateError> {
        self.packs
            .get(number_of(numbered) as usize)
            .map(|pack| pack.id)
            .ok_or_else(unlisted)
    }

    fn named_frame(&self, frame: PackedFrame) -> Result<PackedFrame, CreateError> {
        Ok(PackedFrame {
            pack: self.id(frame.pack)?,
            ..frame
        })
    }

    /// A map whose packs are numbers, with the packs.
    fn named(&self, map: &PageMap) -> Result<PageMap, CreateError> {
        let mut builder = PageMapBuilder::new();
        for run in map.runs() {
            match run.extent.source {
                Source::Zero => builder.zeros(run.extent.count),
                Source::Frame { frame, offset } => {
                    let frame = map.frames()[frame as usize];
                    let pack = self.id(map.packs()[frame.pack as usize])?;
                    builder.stored(pack, frame.location, offset, run.hashes);
                }
            }
        }
        builder
            .finish(map.size())
            .map_err(|error| damaged(&error.to_string()))
    }
}

/// A number in the name of a pack.
fn numbered(number: u32) -> PackId {
    PackId::from_bytes(u128::from(number).to_be_bytes())
}

fn number_of(numbered: PackId) -> u32 {
    u128::from_be_bytes(*numbered.as_bytes()) as u32
}

fn numbered_frame(reference: MapRef) -> PackedFrame {
    PackedFrame {
        pack: numbered(reference.pack),
        location: reference.location,
    }
}

fn unlisted() -> CreateError {
    damaged("a file is in a pack that is not listed")
}

fn damaged(what: &str) -> CreateError {
    CreateError::Unexpected {
        what: format!("in the older backup {what}"),
    }
}

/// Whether a restore would have to look in so many places for a file that it is better stored in one again.
///
/// How many are too many differs from file to file, so that not all files of a cluster become so on one day.
fn is_scattered(map: &PageMap, id: FileId) -> bool {
    if map.size() < LARGE {
        return false;
    }
    let most = MOST_PACKS + (id % 16) as usize + (map.size() >> 25) as usize;
    let frames: u64 = map
        .frames()
        .iter()
        .map(|frame| u64::from(frame.location.raw))
        .sum();
    let live = map.size() - map.zero_bytes();
    map.packs().len() > most || frames > 4 * live.max(LARGE)
}

/// What tells a file apart in the index of a pack.
pub(in crate::physical) fn file_id(key: &[u8; 32], path: &[u8]) -> FileId {
    let hash = blake3::keyed_hash(key, path);
    let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    FileId::from_le_bytes(first)
}

/// Reads frames of packs of maps.
///
/// Memory: at most 16 pieces of 1 MiB, or of one frame where that is longer.
pub(in crate::physical) struct MapReader {
    repository: BlockingRepository,
    state: Mutex<Pieces>,
}

#[derive(Default)]
struct Pieces {
    openers: HashMap<PackId, Arc<FramedOpener>>,
    /// Pack, offset, bytes; the oldest first.
    read: Vec<(PackId, u64, Bytes)>,
}

impl MapReader {
    pub(in crate::physical) fn new(repository: BlockingRepository) -> Self {
        Self {
            repository,
            state: Mutex::default(),
        }
    }

    /// Reads one map. For blocking threads.
    pub(in crate::physical) fn read(
        &self,
        pack: &PackEntry,
        frame: PackedFrame,
    ) -> Result<StoredMap, CreateError> {
        let repository = self.repository.repository();
        let name = repository.map_name(pack.id);
        let (opener, known) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let opener = if let Some(opener) = state.openers.get(&pack.id) {
                Arc::clone(opener)
            } else {
                let (cipher, kind) = (repository.cipher(), kind::MAP);
                let opener =
                    FramedOpener::from_salt(&cipher, kind, &name, pack.key, pack.salt).map_err(framed)?;
                let opener = Arc::new(opener);
                state.openers.insert(pack.id, Arc::clone(&opener));
                opener
            };
            (opener, state.find(frame))
        };
        let bytes = if let Some(bytes) = known {
            bytes
        } else {
            let begin = frame.location.offset;
            let end = (begin + READ_AHEAD).max(frame.location.end()).min(pack.size);
            let read = self.repository.store().get_range(&name, begin..end)?;
            let length = usize::try_from(frame.location.length()).unwrap_or(usize::MAX);
            let own = read.slice(..length.min(read.len()));
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.read.push((pack.id, begin, read));
            if state.read.len() > PIECES {
                state.read.remove(0);
            }
            own
        };
        let mut content = Vec::new();
        opener
            .open(frame.location, false, &bytes, &mut content)
            .map_err(framed)?;
        StoredMap::decode(&content).map_err(|error| damaged(&error.to_string()))
    }
}

impl Pieces {
    fn find(&self, frame: PackedFrame) -> Option<Bytes> {
        self.read.iter().rev().find_map(|(pack, begin, bytes)| {
            if *pack != frame.pack || frame.location.offset < *begin {
                return None;
            }
            let from = usize::try_from(frame.location.offset - begin).ok()?;
            let to = usize::try_from(frame.location.end() - begin).ok()?;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        })
    }
}

fn framed(source: pgmahout_store::framed::FramedError) -> CreateError {
    CreateError::Framed {
        what: "use of a page map of the older backup",
        source,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use pgmahout_types::repository::head::Examination;
    use pgmahout_types::repository::manifest::WalRange;
    use pgmahout_types::repository::{FrameLocation, Method, Nonce, PageHash};
    use pgmahout_types::version::ServerVersion;
    use pgmahout_types::{Lsn, TimelineId};

    use super::*;

    fn entry(second: i64, system: u64, version: u32, timeline: u32) -> BackupEntry {
        let segment = "000000010000000000000001".parse().expect("a segment");
        let time = Timestamp::from_second(second).expect("in range");
        BackupEntry {
            label: Label::new(time, 0),
            manifest: pgmahout_types::repository::Digest::of(b""),
            method: Method::Local,
            system_identifier: SystemIdentifier::new(system),
            server_version: ServerVersion::from_number(version),
            timeline: TimelineId::new(timeline).expect("not zero"),
            start_lsn: Lsn::new(1),
            stop_lsn: Lsn::new(2),
            wal: WalRange {
                first: segment,
                last: segment,
            },
            start_time: time,
            stop_time: time,
            parent: None,
            files: 0,
            bytes: 0,
            read: 0,
            new: 0,
            stored: 0,
            findings: 0,
            pinned: false,
            annotations: std::collections::BTreeMap::new(),
            verified: None,
            drilled: None,
            other: serde_json::Map::new(),
        }
    }

    #[test]
    fn only_sound_backups_of_this_cluster_and_version_are_built_on_whatever_their_timeline() {
        let mut head = Head::first(Nonce::from_bytes([0; 16]), Timestamp::UNIX_EPOCH, "");
        head.backups = vec![
            entry(10, 7, 150_004, 3),
            entry(20, 7, 150_005, 1),
            entry(30, 8, 150_005, 1),
            entry(40, 7, 160_001, 1),
            entry(50, 7, 150_005, 1),
        ];
        // After a recovery to an earlier point the newer one may be further back in the WAL.
        (head.backups[0].start_lsn, head.backups[0].stop_lsn) = (Lsn::new(1000), Lsn::new(2000));
        head.backups[4].verified = Some(Examination {
            at: Timestamp::UNIX_EPOCH,
            passed: false,
            detail: String::new(),
            seconds: 0,
        });
        let system = SystemIdentifier::new(7);
        let usable: Vec<i64> = usable(&head, system, 15)
            .map(|entry| entry.start_time.as_second())
            .collect();
        assert_eq!(usable, [20, 10]);
    }

    /// A file of 256 MiB whose blocks lie in so many packs.
    fn map(packs: u32) -> PageMap {
        let mut builder = PageMapBuilder::new();
        for frame in 0..2048 {
            let location = FrameLocation {
                index: frame,
                offset: 96 + u64::from(frame) * 1000,
                stored: 900,
                raw: 128 << 10,
            };
            let hashes: Vec<PageHash> = (0..16).map(PageHash::new).collect();
            builder.stored(numbered(frame % packs), location, 0, &hashes);
        }
        builder.finish(256 << 20).expect("a map")
    }

    #[test]
    fn a_file_in_too_many_packs_is_stored_afresh_and_not_all_files_on_one_day() {
        assert!(!is_scattered(&map(32), 0));
        assert!(is_scattered(&map(64), 15));
        let some = (0..16).filter(|id| is_scattered(&map(48), *id)).count();
        assert!((1..16).contains(&some), "{some} of 16");
    }

    #[test]
    fn packs_are_numbered_and_named_again() {
        for number in [0, 1, 77, u32::MAX] {
            assert_eq!(number_of(numbered(number)), number);
        }
    }
}
