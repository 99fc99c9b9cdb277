//! From tar archives to pieces of files.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use pgmahout_types::repository::FileId;
use pgmahout_types::{BackupLabel, ControlFile, TablespaceMap};
use tokio::sync::mpsc;

use super::super::chunk::Chunk;
use super::super::error::CreateError;
use super::super::pack::PackWriter;
use super::super::parent::file_id;
use super::super::pipeline::{Failures, Taken};
use super::super::plan::SplitFile;
use super::super::shared::Shared;
use super::super::sink::FinishedFile;
use super::facts::RemoteFacts;
use super::tape::{Event, Tape};
use super::worker::{Incoming, Piece, Worker};
use crate::physical::files::classify::{
    self, DirectoryKind, DirectoryVerdict, FileKind, FileVerdict, TABLESPACE_DIRECTORY, WAL_DIRECTORY,
};
use crate::physical::files::residency::PIECE;
use crate::physical::files::walk::{Attributes, Contents, ListBuilder};
use crate::physical::page::BLOCK_SIZE;

/// Pieces that wait for a worker, beside one for each.
const WAITING: usize = 2;
/// The longest `backup_label` or `tablespace_map` that is believed.
const LONGEST_TEXT: u64 = 16 << 20;
/// Files of more bytes are named while they arrive.
const LARGE: u64 = 64 << 20;

/// What comes among the files and is none.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// `backup_label`.
    pub(super) label: Vec<u8>,
    /// `tablespace_map`; empty where there are no tablespaces.
    pub(super) map: Vec<u8>,
}

/// Takes archives apart.
pub(super) struct Intake {
    tape: Tape,
    sorter: Sorter,
}

/// Decides what becomes of each entry.
struct Sorter {
    list: ListBuilder,
    /// The directory in each tablespace that is the server's.
    version_directory: String,
    major: u32,
    seen: HashSet<FileId>,
    control: Option<Vec<u8>>,
    has_label: bool,
}

impl Intake {
    /// For a stream, and the tablespaces that the server named before it: number, and place outside of
    /// `pg_tblspc`.
    pub(super) fn new(
        events: mpsc::Receiver<Event>,
        facts: &RemoteFacts,
        version_directory: String,
        major: u32,
        tablespaces: impl Iterator<Item = (u32, Option<PathBuf>)>,
    ) -> Self {
        let mut list = ListBuilder::new(facts.directory_mode);
        for (oid, location) in tablespaces {
            list.tablespace(oid, location);
        }
        Self {
            tape: Tape::new(events),
            sorter: Sorter {
                list,
                version_directory,
                major,
                seen: HashSet::new(),
                control: None,
                has_label: false,
            },
        }
    }

    /// Takes everything, with a worker for each writer.
    pub(super) fn work(
        mut self,
        shared: &Shared<'_>,
        writers: Vec<PackWriter>,
        failures: &mut Failures,
        texts: &mut Texts,
    ) -> (Vec<PackWriter>, Option<Taken>) {
        let (sender, receiver) = sync_channel(writers.len() + WAITING);
        let queue = Mutex::new(receiver);
        let (packs, taken) = std::thread::scope(|scope| {
            let workers: Vec<_> = writers
                .into_iter()
                .map(|packs| {
                    let queue = &queue;
                    scope.spawn(move || Worker::new(shared, queue, packs).run())
                })
                .collect();
            let taken = self.archives(shared, &sender, texts);
            if taken.is_err() {
                shared.cancellation.cancel();
            }
            // The workers end when nobody can send any more.
            drop(sender);
            let mut packs = Vec::new();
            for worker in workers {
                match worker.join() {
                    Ok(Ok(writer)) => packs.push(writer),
                    Ok(Err(error)) => failures.note(error),
                    Err(_) => failures.note(CreateError::Thread),
                }
            }
            (packs, taken)
        });
        let taken = taken.and_then(|()| self.sorter.finish());
        match taken {
            Ok(taken) => (packs, Some(taken)),
            Err(error) => {
                failures.note(error);
                (packs, None)
            }
        }
    }

    fn archives(
        &mut self,
        shared: &Shared<'_>,
        sender: &SyncSender<Piece>,
        texts: &mut Texts,
    ) -> Result<(), CreateError> {
        while let Some(name) = self.tape.next_archive().map_err(|_| CreateError::Interrupted)? {
            let taken = self.sorter.archive(&name, &mut self.tape, shared, sender, texts);
            match taken {
                Ok(()) => {}
                Err(_) if self.tape.was_cut() => return Err(CreateError::Interrupted),
                Err(Problem::Archive(error)) => {
                    return Err(CreateError::Unexpected {
                        what: format!("{name}: {error}"),
                    });
                }
                Err(Problem::Other(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What is wrong with an archive.
enum Problem {
    /// It cannot be read.
    Archive(std::io::Error),
    Other(CreateError),
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Archive(error)
    }
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Self {
        Self::Other(error)
    }
}

impl Sorter {
    /// Takes one archive apart.
    fn archive(
        &mut self,
        name: &str,
        tape: &mut Tape,
        shared: &Shared<'_>,
        sender: &SyncSender<Piece>,
        texts: &mut Texts,
    ) -> Result<(), Problem> {
        let tablespace = match name.strip_suffix(".tar") {
            Some("base") => None,
            Some(digits) => Some(digits.parse::<u32>().map_err(|_| unknown_archive(name))?),
            None => return Err(unknown_archive(name).into()),
        };
        let mut archive = tar::Archive::new(tape);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if shared.cancellation.is_cancelled() {
                return Err(CreateError::Interrupted.into());
            }
            let path = path(tablespace, &entry.path_bytes())?;
            let header = entry.header().clone();
            let attributes = attributes(&header)?;
            let kind = header.entry_type();
            if kind.is_dir() {
                self.directory(&path, tablespace.is_none(), &attributes);
            } else if kind.is_file() {
                match &*path {
                    path if tablespace.is_none() && path == BackupLabel::FILE_NAME.as_bytes() => {
                        texts.label = text(&mut entry)?;
                        self.has_label = true;
                    }
                    path if tablespace.is_none() && path == TablespaceMap::FILE_NAME.as_bytes() => {
                        texts.map = text(&mut entry)?;
                    }
                    _ => {
                        let size = entry.size();
                        self.file(path, size, &attributes, &mut entry, shared, sender)?;
                    }
                }
            }
            // The links to tablespaces are known already, and no others are sent.
        }
        Ok(())
    }

    fn directory(&mut self, path: &[u8], in_base: bool, attributes: &Attributes<'_>) {
        if self.is_left_out(path) {
            return;
        }
        match classify::directory(path) {
            DirectoryVerdict::Skip(_) => {}
            DirectoryVerdict::Empty => {
                self.list.directory(path, Contents::Empty, attributes, None);
                if path == WAL_DIRECTORY.as_bytes() {
                    for below in classify::wal_subdirectories(self.major) {
                        self.list
                            .directory(below.as_bytes(), Contents::Empty, attributes, None);
                    }
                }
            }
            DirectoryVerdict::Copy(kind) => {
                if let (DirectoryKind::Tablespace(oid), true) = (kind, in_base) {
                    self.list.tablespace(oid, None);
                }
                self.list.directory(path, Contents::Listed, attributes, None);
                // The place of a tablespace is not sent, only the directory in it.
                if let Some((above, _)) = tablespace_of(path).filter(|(_, rest)| !rest.contains(&b'/'))
                    && !in_base
                {
                    self.list.directory(above, Contents::Listed, attributes, None);
                }
            }
        }
    }

    fn file(
        &mut self,
        path: Vec<u8>,
        size: u64,
        attributes: &Attributes<'_>,
        content: &mut impl Read,
        shared: &Shared<'_>,
        sender: &SyncSender<Piece>,
    ) -> Result<(), Problem> {
        let FileVerdict::Copy(kind) = classify::file(&path) else {
            return Ok(());
        };
        if self.is_left_out(&path) {
            return Ok(());
        }
        let id = file_id(&shared.key, &path);
        if !self.seen.insert(id) {
            return Err(unexpected(&format!("{} comes twice", String::from_utf8_lossy(&path))).into());
        }
        let number = self.list.file(&path, size, attributes);
        if size == 0 {
            shared.sink.finish(&FinishedFile {
                number,
                id,
                size,
                parts: vec![(&Chunk::new(0), &[])],
                parent: None,
            })?;
            return Ok(());
        }
        if u32::try_from(size.div_ceil(BLOCK_SIZE as u64)).is_err() {
            return Err(CreateError::FileTooLarge { bytes: size }.into());
        }
        if size > LARGE {
            shared.progress.set_detail(&String::from_utf8_lossy(&path));
        }
        let file = Arc::new(Incoming {
            split: SplitFile::new(number, size.div_ceil(PIECE as u64) as usize),
            path,
            id,
            kind,
            size,
        });
        let mut position = 0;
        while position < size {
            let wanted = (size - position).min(PIECE as u64);
            let mut bytes = Vec::with_capacity(wanted as usize);
            content.by_ref().take(wanted).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != wanted {
                return Err(Problem::Archive(std::io::ErrorKind::UnexpectedEof.into()));
            }
            shared.counts.read.fetch_add(wanted, Ordering::Relaxed);
            shared.progress.advance(wanted);
            if kind == FileKind::Control {
                self.control.get_or_insert_default().extend_from_slice(&bytes);
            }
            let piece = Piece {
                file: Arc::clone(&file),
                first: (position / BLOCK_SIZE as u64) as u32,
                bytes,
            };
            // A failed worker goes on to take pieces; none is there only when all have panicked.
            sender.send(piece).map_err(|_| CreateError::Interrupted)?;
            position += wanted;
        }
        Ok(())
    }

    /// Whether something is below a directory that is left out, or is another version's in a tablespace.
    fn is_left_out(&self, path: &[u8]) -> bool {
        let below = |at: usize| matches!(classify::directory(&path[..at]), DirectoryVerdict::Skip(_));
        memchr::memchr_iter(b'/', path).any(below)
            || tablespace_of(path).is_some_and(|(_, rest)| {
                let first = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
                first != self.version_directory.as_bytes()
            })
    }

    fn finish(self) -> Result<Taken, CreateError> {
        if !self.has_label {
            return Err(unexpected("it sent no backup_label"));
        }
        let Some(bytes) = self.control else {
            return Err(unexpected("it sent no pg_control"));
        };
        let control = ControlFile::parse(&bytes).map_err(|source| CreateError::SentControl { source })?;
        Ok(Taken {
            list: self.list.finish(),
            control,
        })
    }
}

fn unexpected(what: &str) -> CreateError {
    CreateError::Unexpected {
        what: what.to_owned(),
    }
}

fn unknown_archive(name: &str) -> CreateError {
    unexpected(&format!("it sent the archive {name}"))
}

/// The tablespace's directory in `pg_tblspc`, and what follows it.
fn tablespace_of(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let prefix = TABLESPACE_DIRECTORY.len() + 1;
    let below = path
        .strip_prefix(TABLESPACE_DIRECTORY.as_bytes())?
        .strip_prefix(b"/")?;
    let slash = memchr::memchr(b'/', below)?;
    Some((&path[..prefix + slash], &below[slash + 1..]))
}

/// The path in the data directory of an entry. Directories end in a slash, and some paths begin with `./`.
fn path(tablespace: Option<u32>, name: &[u8]) -> Result<Vec<u8>, CreateError> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let odd = |part: &[u8]| part.is_empty() || part == b"." || part == b".." || part.contains(&0);
    if name.split(|byte| *byte == b'/').any(odd) {
        return Err(unexpected(&format!(
            "it sent a file named {}",
            Path::new(&*String::from_utf8_lossy(name)).display()
        )));
    }
    Ok(match tablespace {
        None => name.to_vec(),
        Some(oid) => [format!("{TABLESPACE_DIRECTORY}/{oid}/").as_bytes(), name].concat(),
    })
}

fn attributes(header: &tar::Header) -> Result<Attributes<'_>, Problem> {
    let id = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(Attributes {
        mode: (header.mode()? & 0o7777) as u16,
        uid: id(header.uid()?),
        gid: id(header.gid()?),
        user: given(header.username()),
        group: given(header.groupname()),
        modified: i64::try_from(header.mtime()?)
            .ok()
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
            .unwrap_or(Timestamp::MAX),
    })
}

/// A name, where there is one.
fn given(name: Result<Option<&str>, std::str::Utf8Error>) -> Option<&str> {
    name.ok().flatten().filter(|name| !name.is_empty())
}

/// A short file as a whole.
fn text(entry: &mut tar::Entry<'_, &mut Tape>) -> Result<Vec<u8>, Problem> {
    let size = entry.size();
    if size > LONGEST_TEXT {
        return Err(unexpected(&format!(
            "it sent a backup_label or tablespace_map of {size} bytes"
        ))
        .into());
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    if content.len() as u64 != size {
        return Err(Problem::Archive(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_archives_are_paths_in_the_data_directory_or_refused() {
        let taken = |space, name: &[u8]| path(space, name).ok();
        assert_eq!(taken(None, b"base/1/1259").as_deref(), Some(&b"base/1/1259"[..]));
        assert_eq!(
            taken(None, b"./pg_wal/archive_status/").as_deref(),
            Some(&b"pg_wal/archive_status"[..])
        );
        assert_eq!(
            taken(Some(16384), b"PG_15_202209061/").as_deref(),
            Some(&b"pg_tblspc/16384/PG_15_202209061"[..])
        );
        for odd in [
            &b""[..],
            b"/etc/passwd",
            b"base/../../etc/passwd",
            b"..",
            b"base//1",
            b"base/./1",
            b"a\0b",
        ] {
            assert_eq!(taken(None, odd), None, "{}", String::from_utf8_lossy(odd));
        }
    }

    #[test]
    fn the_place_of_a_tablespace_is_told_from_what_is_in_it() {
        assert_eq!(
            tablespace_of(b"pg_tblspc/16384/PG_15_202209061/5"),
            Some((&b"pg_tblspc/16384"[..], &b"PG_15_202209061/5"[..]))
        );
        assert_eq!(tablespace_of(b"pg_tblspc/16384"), None);
        assert_eq!(tablespace_of(b"base/1/1259"), None);
    }
}
