//! `wal fetch`: from the repositories to where recovery wants a file.
//!
//! A repository is asked after the other until one has the file. Only when each of them says that it is not there,
//! it is [`FetchOutcome::Absent`]; a repository that cannot be asked makes it an error.
//!
//! While segments are asked for one after the other, the next ones are fetched at the same time ([`spool`]): the more,
//! the longer the row. Where a segment is missing, nothing is read ahead: a standby at the end of the archive asks
//! for one object at a time.
//!
//! Nothing is synced for `RECOVERYXLOG` and `RECOVERYHISTORY`: the server itself makes them durable when it keeps
//! them (`KeepFileRestoredFromArchive` in `src/backend/access/transam/xlogarchive.c`), and removes what a crash left.

pub mod mode;
pub mod spool;
mod tablespaces;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;
use jiff::Timestamp;
use pgmahout_durable::{AtomicFile, DurableError, Overwrite, remove_stale_temporaries};
use pgmahout_types::{SegmentName, SegmentSize, WalFileName};
use tokio_util::sync::CancellationToken;

pub use mode::RecoveryMode;
pub use spool::FetchSpool;

use super::archive::compute;
use super::error::WalError;
use super::file::WalFile;
use super::object::ArchivedFile;
use super::place::{Destination, Place};
use super::push::WalSpool;
use crate::physical::stanza::{RepositoryMemory, StanzaName};
use spool::{Note, Window};

/// How many segments the first call reads ahead.
const FIRST_WINDOW: u32 = 4;
/// How long segments that nobody waits for yet may hold up the one that is ready.
const AHEAD: Duration = Duration::from_secs(10);
/// Files in memory at once, at most so many bytes, each counted twice.
const MEMORY: u64 = 256 << 20;
/// The pause between attempts of a standby.
const PAUSE: Duration = Duration::from_millis(500);

/// What is to be fetched, and where to.
#[derive(Debug)]
pub struct FetchRequest {
    /// What PostgreSQL gives for `%f`.
    pub name: WalFileName,
    /// What PostgreSQL gives for `%p`.
    pub target: PathBuf,
    /// The repositories, in the order in which they are asked.
    pub destinations: Vec<Destination>,
    /// The stanza.
    pub stanza: StanzaName,
    /// What this host remembers of repositories.
    pub memory: RepositoryMemory,
    /// How many segments are read ahead at most.
    pub prefetch: u32,
    /// Where they wait.
    pub spool: FetchSpool,
    /// Segments that wait to be archived by this host, which have not reached a repository.
    pub unsent: Option<WalSpool>,
    /// Files that are fetched at once.
    pub jobs: usize,
    /// Whether an absent segment ends a recovery with a promotion. Then one that was there once and was removed by
    /// retention is an error.
    pub is_final: bool,
    /// How long failures of the storage are retried here; zero for not at all.
    pub patience: Duration,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Whether it is looked for tablespaces that replay would make: see [`check_tablespaces`].
    pub looks_for_tablespaces: bool,
}

/// What a fetch did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchOutcome {
    /// The file is where it was wanted.
    Fetched {
        /// The repository that it came from.
        repository: String,
        /// Whether it had been read ahead.
        ahead: bool,
        /// Whether it makes tablespaces outside the data directory; `None` where nobody looked.
        tablespaces: Option<bool>,
    },
    /// No repository has it; each of them said so.
    Absent {
        /// The repositories.
        places: String,
    },
}

/// Fetches a file.
///
/// # Errors
///
/// When it is not known whether the file exists, or it cannot be read or written.
pub async fn fetch(
    request: &FetchRequest,
    cancellation: &CancellationToken,
) -> Result<FetchOutcome, WalError> {
    if let WalFileName::Segment(segment) = request.name
        && let Some(fetched) = from_spool(request, segment).await
    {
        return Ok(fetched);
    }
    let started = Instant::now();
    loop {
        let result = tokio::select! {
            () = cancellation.cancelled() => Err(WalError::Cancelled),
            result = tokio::time::timeout(request.timeout, from_repositories(request)) => {
                result.unwrap_or_else(|_| Err(slow(request)))
            }
        };
        match result {
            Err(error) if error.is_retryable() && started.elapsed() + PAUSE < request.patience => {
                tracing::warn!(%error, "the archive cannot be read; trying again");
                tokio::select! {
                    () = cancellation.cancelled() => return Err(WalError::Cancelled),
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
            result => return result,
        }
    }
}

/// Keeps the replay of a fetched segment out of the files of another server of this machine: it makes a tablespace in
/// a directory that a running server uses.
///
/// A recovery with a target gets the segment without that record and what follows: it reaches its target before, or
/// the server says that it cannot be reached. What it does not get is given back, as a sentence for the server's log.
/// Without a target that would be the end of the WAL, and rows would be missing: then the segment is removed.
///
/// # Errors
///
/// [`WalError::TablespaceInUse`] for a recovery without a target, or when the segment cannot be read or written.
pub fn check_tablespaces(
    name: WalFileName,
    target: &Path,
    data_dir: &Path,
) -> Result<Option<String>, WalError> {
    if !matches!(name, WalFileName::Segment(_)) {
        return Ok(None);
    }
    let failed = |doing| {
        move |source| WalError::Io {
            doing,
            path: target.to_owned(),
            source,
        }
    };
    let mut segment = fs::read(target).map_err(failed("read"))?;
    for made in tablespaces::made_by(&segment) {
        let Some(server) = tablespaces::user_of(&made.location, data_dir) else {
            continue;
        };
        let in_use = WalError::TablespaceInUse {
            name,
            oid: made.oid,
            location: made.location,
            server,
        };
        let settings = fs::read_to_string(data_dir.join("postgresql.auto.conf")).unwrap_or_default();
        if tablespaces::has_target(&settings) {
            segment[made.at..].fill(0);
            fs::write(target, &segment).map_err(failed("write"))?;
            return Ok(Some(format!("what follows is left out: {in_use}")));
        }
        // What is there is taken for the segment.
        fs::remove_file(target).map_err(failed("remove"))?;
        return Err(in_use);
    }
    Ok(None)
}

fn slow(request: &FetchRequest) -> WalError {
    let names: Vec<String> = request.destinations.iter().map(Destination::name).collect();
    WalError::Slow {
        repository: names.join(", "),
        name: request.name,
        seconds: request.timeout.as_secs(),
    }
}

/// Hands over a segment that was read ahead.
async fn from_spool(request: &FetchRequest, segment: SegmentName) -> Option<FetchOutcome> {
    let spool = request.spool.clone();
    let note = compute(move || spool.find(segment)).await?;
    if note.stanza != request.stanza.as_str() {
        return None;
    }
    let mut from = None;
    for destination in &request.destinations {
        let bound = destination.is_bound(&note.repository, note.at, &request.stanza, &request.memory);
        if bound.await {
            from = Some(destination.name());
            break;
        }
    }
    let repository = from?;
    let (spool, target) = (request.spool.clone(), request.target.clone());
    let size = SegmentSize::new(note.size).ok()?;
    let (most, threads, tablespaces) = (request.prefetch, request.jobs, note.tablespaces);
    let handed = compute(move || {
        let handed = spool.hand_over(&note, &target, threads);
        if matches!(handed, Ok(true)) {
            if let (Ok(number), Some(window)) = (segment.number(size), spool.window()) {
                spool.set_window(Window {
                    timeline: segment.timeline(),
                    number,
                    ..window
                });
            }
            spool.purge(segment, size, most);
        }
        handed
    })
    .await;
    match handed {
        Ok(true) => Some(FetchOutcome::Fetched {
            repository,
            ahead: true,
            tablespaces,
        }),
        // Damaged or gone: the repository has it.
        Ok(false) | Err(_) => None,
    }
}

/// What is known of a file that was handed over.
#[derive(Debug, Clone, Copy)]
struct Handed {
    /// Whether it makes tablespaces, where that was looked at.
    tablespaces: Option<bool>,
}

/// What the repositories say of a file.
enum Answer {
    Found(Handed),
    Absent,
    Unknown(WalError),
}

/// The repository from which a segment was removed by retention: it is not that there never was one.
async fn collected(opened: &[Place], segment: SegmentName) -> Result<Option<String>, WalError> {
    for place in opened {
        let head = place.archive.repository().head().await?;
        let kept = [&head.wal_floor, &head.wal_window];
        let first = kept
            .into_iter()
            .filter_map(|kept| kept.get(&segment.timeline()))
            .max();
        if first.is_some_and(|first| segment < *first) {
            return Ok(Some(place.name.clone()));
        }
    }
    Ok(None)
}

async fn from_repositories(request: &FetchRequest) -> Result<FetchOutcome, WalError> {
    let mut first_error = None;
    let mut opened: Vec<Place> = Vec::new();
    let mut found = None;
    for destination in &request.destinations {
        let place = match destination.open(&request.stanza, &request.memory).await {
            Ok(place) => place,
            Err(error) => {
                first_error.get_or_insert(error);
                continue;
            }
        };
        opened.push(place);
        // With the first that answers for the file the others are not needed.
        let last = opened.len() - 1;
        match ask(request, &opened, last).await {
            Answer::Found(handed) => {
                found = Some((last, handed));
                break;
            }
            Answer::Absent => {}
            Answer::Unknown(error) => {
                tracing::warn!(%error, "another repository is asked");
                first_error.get_or_insert(error);
            }
        }
    }
    let names = || {
        let names: Vec<String> = request.destinations.iter().map(Destination::name).collect();
        names.join(", ")
    };
    let Some((at, handed)) = found else {
        if let Some(held) = unsent(request, &opened).await? {
            return Ok(held);
        }
        if let (WalFileName::Segment(segment), Some(place)) = (request.name, opened.first()) {
            pause(request, segment, place.archive.repository().segment_size());
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        if let WalFileName::Segment(segment) = request.name
            && request.is_final
            && let Some(place) = collected(&opened, segment).await?
        {
            return Err(WalError::Collected {
                name: request.name,
                repository: place,
            });
        }
        return Ok(FetchOutcome::Absent { places: names() });
    };
    Ok(FetchOutcome::Fetched {
        repository: opened[at].name.clone(),
        ahead: false,
        tablespaces: handed.tablespaces,
    })
}

/// Asks one repository, hands the file over, and reads ahead.
async fn ask(request: &FetchRequest, opened: &[Place], at: usize) -> Answer {
    let place = &opened[at];
    let fetched = async {
        let Some(file) = place.archive.get(request.name).await? else {
            return Ok(None);
        };
        check(place, request.name, &file)?;
        let (target, content) = (request.target.clone(), file.content.clone());
        let looks = request.looks_for_tablespaces;
        let tablespaces = compute(move || {
            write_target(&target, &content)?;
            Ok::<_, WalError>(looks.then(|| !tablespaces::made_by(&content).is_empty()))
        })
        .await?;
        place.archive.reuse(file);
        Ok::<_, WalError>(Some(Handed { tablespaces }))
    };
    let WalFileName::Segment(segment) = request.name else {
        return answer(fetched.await);
    };
    let size = place.archive.repository().segment_size();
    let ahead = window(request, segment, size);
    if ahead.is_empty() {
        let fetched = fetched.await;
        if matches!(fetched, Ok(Some(_))) {
            settle(request, segment, size, FIRST_WINDOW.min(request.prefetch));
        }
        return answer(fetched);
    }
    let segments = ahead.len() as u32;
    let jobs = jobs(request.jobs, size);
    let missing = AtomicUsize::new(usize::MAX);
    let missing = &missing;
    let reading = stream::iter(ahead.into_iter().enumerate())
        .map(|(at, next)| async move {
            // Behind the first that is missing there is nothing to be had.
            if at > missing.load(Ordering::Relaxed) {
                return false;
            }
            let is_there = read_ahead(request, place, next).await;
            if !is_there {
                missing.fetch_min(at, Ordering::Relaxed);
            }
            is_there
        })
        .buffer_unordered(jobs)
        .filter(|is_there| futures::future::ready(*is_there))
        .count();
    tokio::pin!(reading, fetched);
    let mut read = None;
    let result = tokio::select! {
        biased;
        result = &mut fetched => result,
        count = &mut reading => {
            read = Some(count);
            fetched.await
        }
    };
    if !matches!(result, Ok(Some(_))) {
        return answer(result);
    }
    let read = match read {
        Some(count) => count,
        None => tokio::time::timeout(AHEAD, reading).await.unwrap_or(0),
    };
    let next = if (read as u32) < segments {
        segments
    } else {
        segments.saturating_mul(4)
    };
    settle(request, segment, size, next.min(request.prefetch));
    answer(result)
}

fn answer(result: Result<Option<Handed>, WalError>) -> Answer {
    match result {
        Ok(Some(handed)) => Answer::Found(handed),
        Ok(None) => Answer::Absent,
        Err(error) => Answer::Unknown(error),
    }
}

/// The segments to read ahead of one that is asked for.
fn window(request: &FetchRequest, segment: SegmentName, size: SegmentSize) -> Vec<SegmentName> {
    let Ok(number) = segment.number(size) else {
        return Vec::new();
    };
    let segments = match request.spool.window() {
        Some(last) if last.timeline == segment.timeline() && last.number + 1 == number => last.segments,
        // The first of a row.
        _ => FIRST_WINDOW,
    };
    (number + 1..=number + u64::from(segments.min(request.prefetch)))
        .filter_map(|next| SegmentName::new(segment.timeline(), next, size))
        .collect()
}

/// Notes what was handed over, and removes what cannot come next.
fn settle(request: &FetchRequest, segment: SegmentName, size: SegmentSize, segments: u32) {
    if request.prefetch == 0 {
        return;
    }
    if let Ok(number) = segment.number(size) {
        request.spool.set_window(Window {
            timeline: segment.timeline(),
            number,
            segments,
        });
    }
    request.spool.purge(segment, size, request.prefetch);
}

/// Reads nothing ahead of a segment that is missing. The server may look for it on several timelines, so the row of
/// another one is left alone.
fn pause(request: &FetchRequest, segment: SegmentName, size: SegmentSize) {
    let timeline = segment.timeline();
    let is_other = request
        .spool
        .window()
        .is_some_and(|last| last.timeline != timeline);
    if let (false, true, Ok(number)) = (is_other, request.prefetch > 0, segment.number(size)) {
        request.spool.set_window(Window {
            timeline,
            number: number.saturating_sub(1),
            segments: 0,
        });
    }
}

/// Fetches a segment into the spool; `false` where that did not work, which the call for it will find out.
async fn read_ahead(request: &FetchRequest, place: &Place, segment: SegmentName) -> bool {
    let spool = request.spool.clone();
    let there = compute(move || spool.find(segment)).await;
    if there.is_some_and(|note| note.repository == place.binding) {
        return true;
    }
    let file = match place.archive.get(segment.into()).await {
        Ok(Some(file)) => file,
        Ok(None) => return false,
        Err(error) => {
            tracing::debug!(%error, "a segment could not be read ahead");
            return false;
        }
    };
    if check(place, segment.into(), &file).is_err() {
        return false;
    }
    let note = Note {
        segment,
        stanza: request.stanza.to_string(),
        system: file.header.system_identifier,
        size: file.content.len() as u64,
        blake3: file.header.blake3,
        at: Timestamp::now(),
        repository: place.binding.clone(),
        tablespaces: None,
    };
    let (spool, looks) = (request.spool.clone(), request.looks_for_tablespaces);
    let (kept, file) = compute(move || {
        let tablespaces = looks.then(|| !tablespaces::made_by(&file.content).is_empty());
        let note = Note { tablespaces, ..note };
        (spool.keep(segment, &file, &note), file)
    })
    .await;
    place.archive.reuse(file);
    kept.is_ok()
}

/// Whether what was archived is what the server wants: its own cluster's, and what its name says.
fn check(place: &Place, name: WalFileName, file: &ArchivedFile) -> Result<(), WalError> {
    let repository = place.archive.repository();
    let known = repository.stanza_info().system(file.header.system_identifier);
    if known.is_none() {
        return Err(WalError::OtherCluster {
            name,
            found: file.header.system_identifier,
            stanza: repository.stanza().to_string(),
            repository: repository.description(),
            expected: repository
                .stanza_info()
                .current()
                .map_or(file.header.system_identifier, |system| system.system_identifier),
        });
    }
    // The digest was compared when it was opened; this compares the content with its name.
    if let WalFileName::Segment(segment) = name {
        pgmahout_types::wal::WalPageHeader::parse(&file.content)
            .and_then(|page| page.check_name(segment))
            .map_err(|error| WalError::content(name, error))?;
    }
    Ok(())
}

/// A file that this host has not sent to any repository yet.
async fn unsent(request: &FetchRequest, opened: &[Place]) -> Result<Option<FetchOutcome>, WalError> {
    let (Some(spool), Some(place)) = (&request.unsent, opened.first()) else {
        return Ok(None);
    };
    let Ok(system) = place.archive.repository().stanza_info().current() else {
        return Ok(None);
    };
    let (spool, name, system) = (spool.clone(), request.name, system.system_identifier);
    let Some(WalFile { content, .. }) = compute(move || spool.read(name, system)).await? else {
        return Ok(None);
    };
    let target = request.target.clone();
    compute(move || write_target(&target, &content)).await?;
    Ok(Some(FetchOutcome::Fetched {
        repository: "the local spool".to_owned(),
        ahead: false,
        tablespaces: None,
    }))
}

fn jobs(wanted: usize, size: SegmentSize) -> usize {
    let fitting = MEMORY / (2 * size.bytes());
    wanted.min(usize::try_from(fitting).unwrap_or(1)).max(1)
}

/// Gives the target its content at once: a reader sees all of it or nothing.
pub(super) fn write_target(target: &Path, content: &[u8]) -> Result<(), WalError> {
    let failed = |source| WalError::Io {
        doing: "write",
        path: target.to_path_buf(),
        source,
    };
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    // What an earlier call left that was killed.
    let _ = remove_stale_temporaries(directory.unwrap_or(Path::new(".")), Duration::from_mins(1));
    let mut file = AtomicFile::create(target, 0o600).map_err(|error| match error {
        DurableError::Io { source, .. } => failed(source),
        other => other.into(),
    })?;
    file.write_all(content).map_err(failed)?;
    if is_synced_by_the_server(target) {
        // Its name alone; see the module's documentation.
        fs::rename(file.temporary_path(), target).map_err(failed)?;
    } else {
        file.publish(Overwrite::Replace)?;
    }
    Ok(())
}

fn is_synced_by_the_server(target: &Path) -> bool {
    target
        .file_name()
        .is_some_and(|name| name == "RECOVERYXLOG" || name == "RECOVERYHISTORY")
}
