//! `wal push`: from pg_wal into the repositories.
//!
//! PostgreSQL calls it for one file after the other. When several segments wait, one call stores many of them,
//! several at once, and notes each. The calls that follow hash their file again, find the note and
//! return. A note holds the content's digest: a name that comes again with other content after a restore is pushed
//! as if it had never been.
//!
//! Two calls at once, of two servers even, do no harm: the archive takes each name once.

mod batch;
mod ledger;
mod spool;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::Timestamp;
use pgmahout_types::WalFileName;
use pgmahout_types::repository::head::WalGap;
use pgmahout_types::repository::manifest::WalRange;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use ledger::{PushLedger, ready_in};
pub use spool::WalSpool;

use super::archive::compute;
use super::buffers::Buffers;
use super::error::WalError;
use super::file::{self, WalFile};
use super::place::{Destination, Place};
use crate::physical::stanza::{RepositoryMemory, StanzaError, StanzaName};
use batch::{Batch, Target};
use ledger::GivenUp;

/// How long to try when nothing is configured.
pub const TIMEOUT: Duration = Duration::from_mins(2);
/// The most bytes of segments that one call takes along.
const LARGEST_BATCH: u64 = 1 << 30;
/// The most segments that one call takes along.
const MOST_SEGMENTS: usize = 64;
/// Files in memory at once, at most so many bytes, each counted twice.
const MEMORY: u64 = 256 << 20;
/// Files that one call brings to a repository that was down.
const MOST_FILLED: usize = 16;

/// What is to be pushed, and where.
#[derive(Debug)]
pub struct PushRequest {
    /// What PostgreSQL gives for `%p`.
    pub path: PathBuf,
    /// The repositories.
    pub destinations: Vec<Destination>,
    /// The stanza.
    pub stanza: StanzaName,
    /// What this host remembers of repositories.
    pub memory: RepositoryMemory,
    /// How many repositories must hold the file; all by default.
    pub minimum: Option<usize>,
    /// Files that are stored at once.
    pub jobs: usize,
    /// How long to try.
    pub timeout: Duration,
    /// What was pushed; without it every call pushes one file.
    pub ledger: Option<PushLedger>,
    /// Where files wait during an outage.
    pub spool: Option<WalSpool>,
    /// Bytes of waiting segments from which on they are given up.
    pub max_queue: Option<u64>,
}

/// What a push did with the file that it was called for.
#[derive(Debug)]
pub enum PushOutcome {
    /// An earlier call had stored it.
    Known,
    /// It is in the repositories now.
    Stored,
    /// It waits in the spool, because of this.
    Spooled(WalError),
    /// It was given up, because of this: the archive has a gap.
    GivenUp(WalError),
}

/// What a push did.
#[derive(Debug)]
pub struct PushReport {
    /// The file.
    pub name: WalFileName,
    /// What became of it.
    pub outcome: PushOutcome,
    /// How many other files were stored.
    pub others: usize,
    /// What did not go well though the file is safe: one line each.
    pub warnings: Vec<String>,
}

/// Pushes a file, and what waits behind it.
///
/// # Errors
///
/// When the file is not safe; PostgreSQL keeps it and calls again.
pub async fn push(request: &PushRequest, cancellation: &CancellationToken) -> Result<PushReport, WalError> {
    let needed = request.minimum.unwrap_or(request.destinations.len());
    if needed > request.destinations.len() {
        return Err(WalError::Minimum {
            needed,
            configured: request.destinations.len(),
        });
    }
    let name = check_name(&request.path)?;
    let report = |outcome, others, warnings| PushReport {
        name,
        outcome,
        others,
        warnings,
    };
    if is_known(request, name, needed).await {
        return Ok(report(PushOutcome::Known, 0, Vec::new()));
    }
    let path = request.path.clone();
    let file = compute(move || WalFile::read(&path)).await?;
    let deadline = Instant::now() + request.timeout;
    let mut targets = Vec::new();
    let opened = join_all(
        request
            .destinations
            .iter()
            .map(|destination| open(destination, request)),
    )
    .await;
    for (destination, opened) in request.destinations.iter().zip(opened) {
        targets.push(Target::new(destination.clone(), opened));
    }
    let batch = Batch {
        targets: &targets,
        needed,
        in_flight: in_flight(request, &file),
        cores: Semaphore::new(request.jobs.max(1)),
        buffers: Buffers::default(),
        deadline,
        seconds: request.timeout.as_secs(),
        ledger: request.ledger.as_ref(),
        cancellation,
    };
    let mut warnings = Vec::new();
    let rest = batch.store_all(waiting(request, &file));
    let has_room = (batch.in_flight as u64 + 1) * 2 * file.content.len() as u64 <= MEMORY;
    let stored = if is_local(request) && has_room {
        together(batch.store(&file), rest).await
    } else {
        // Over a network the one that is asked for has all of it: several at once could all come too late.
        match batch.store(&file).await {
            Ok(held) => Ok((held, rest.await)),
            Err(error) => Err(error),
        }
    };
    let others = match stored {
        Ok((held, others)) => {
            warnings.extend(held.problems);
            others
        }
        Err(error) => {
            let outcome = without_repository(request, &file, &targets, error).await?;
            return Ok(report(outcome, 0, warnings));
        }
    };
    warnings.extend(batch.drain(request.spool.as_ref(), file.system_identifier).await);
    warnings.extend(batch.fill(MOST_FILLED).await);
    warnings.extend(tell_of_gaps(request, &targets).await);
    if let Some(ledger) = request.ledger.clone()
        && let Err(error) = compute(move || ledger.settle()).await
    {
        warnings.push(format!("what was pushed cannot be noted: {error}"));
    }
    Ok(report(PushOutcome::Stored, others, warnings))
}

/// Both at the same time, and nothing more of the rest once the first has failed.
async fn together<T, E, R>(
    first: impl Future<Output = Result<T, E>>,
    rest: impl Future<Output = R>,
) -> Result<(T, R), E> {
    tokio::pin!(first, rest);
    tokio::select! {
        biased;
        done = &mut first => Ok((done?, rest.await)),
        others = &mut rest => Ok((first.await?, others)),
    }
}

async fn open(destination: &Destination, request: &PushRequest) -> Result<Place, WalError> {
    let opening = destination.open(&request.stanza, &request.memory);
    match tokio::time::timeout(request.timeout, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(WalError::Unopened {
            repository: destination.name(),
            problem: format!("it did not answer within {} s", request.timeout.as_secs()),
            hint: Some("look at the network and the storage".to_owned()),
            outcome: pgmahout_types::diagnostic::Outcome::Failed,
        }),
    }
}

/// Whether enough of the repositories hold this very content, by an earlier call's note.
async fn is_known(request: &PushRequest, name: WalFileName, needed: usize) -> bool {
    let Some(ledger) = request.ledger.clone() else {
        return false;
    };
    let (path, threads) = (request.path.clone(), request.jobs);
    let found = compute(move || {
        let noted = ledger.noted(name);
        if noted.is_empty() {
            return None;
        }
        let (blake3, system) = file::identify(&path, threads)?;
        let mut noted = noted.into_iter().rev();
        noted.find(|pushed| pushed.blake3 == blake3 && pushed.system == system)
    });
    let Some(pushed) = found.await else {
        return false;
    };
    let mut held = 0;
    for destination in &request.destinations {
        for binding in &pushed.held {
            let bound = destination.is_bound(binding, pushed.at, &request.stanza, &request.memory);
            if bound.await {
                held += 1;
                break;
            }
        }
    }
    held >= needed
}

fn is_local(request: &PushRequest) -> bool {
    request.destinations.iter().all(Destination::is_local)
}

/// Files under way at once. On a disk there are more than cores: while one is made durable, another is compressed.
fn in_flight(request: &PushRequest, file: &WalFile) -> usize {
    let fitting = MEMORY / (2 * file.content.len() as u64).max(1);
    let wanted = if is_local(request) {
        request.jobs * 2
    } else {
        request.jobs
    };
    wanted.min(usize::try_from(fitting).unwrap_or(1)).max(1)
}

/// The segments that wait behind a file. Histories, which PostgreSQL hands over first, come with their own calls.
fn waiting(request: &PushRequest, file: &WalFile) -> Vec<PathBuf> {
    let Some(ledger) = &request.ledger else {
        return Vec::new();
    };
    let pg_wal = request.path.parent().unwrap_or(Path::new(""));
    let most = match file.name {
        WalFileName::Segment(_) => {
            usize::try_from(LARGEST_BATCH / (file.content.len() as u64).max(1)).unwrap_or(MOST_SEGMENTS)
        }
        // The call for a history is not held up.
        _ => return Vec::new(),
    };
    let known: std::collections::HashSet<WalFileName> =
        ledger.read().into_iter().map(|pushed| pushed.name).collect();
    ready_in(pg_wal)
        .into_iter()
        .filter(|name| matches!(name, WalFileName::Segment(_)) && *name != file.name)
        .filter(|name| !known.contains(name))
        .take(most.clamp(1, MOST_SEGMENTS) - 1)
        .map(|name| pg_wal.join(name.to_string()))
        .collect()
}

/// What becomes of a file that too few repositories took.
async fn without_repository(
    request: &PushRequest,
    file: &WalFile,
    targets: &[Target],
    error: WalError,
) -> Result<PushOutcome, WalError> {
    if error.is_refusal() || matches!(error, WalError::Cancelled) {
        return Err(error);
    }
    if let Some(spool) = request.spool.clone() {
        let held = file.clone();
        if compute(move || spool.hold(&held)).await? {
            return Ok(PushOutcome::Spooled(error));
        }
    }
    let (Some(most), Some(ledger)) = (request.max_queue, request.ledger.clone()) else {
        return Err(error);
    };
    let pg_wal = request.path.parent().unwrap_or(Path::new("")).to_path_buf();
    let queued = compute(move || ready_in(&pg_wal).len() as u64).await * file.content.len() as u64;
    // Histories are small, and without one a timeline is lost.
    if queued <= most || !matches!(file.name, WalFileName::Segment(_)) {
        return Err(error);
    }
    let given = GivenUp {
        at: Timestamp::now(),
        reason: format!("wal.max_queue was exceeded: {queued} bytes waited; {error}"),
    };
    let name = file.name;
    compute(move || ledger.give_up(name, &given)).await?;
    let _ = tell_of_gaps(request, targets).await;
    Ok(PushOutcome::GivenUp(error))
}

/// Records in the heads of the repositories which segments were given up.
async fn tell_of_gaps(request: &PushRequest, targets: &[Target]) -> Vec<String> {
    let Some(ledger) = &request.ledger else {
        return Vec::new();
    };
    let gaps: Vec<WalGap> = ledger
        .given_up()
        .into_iter()
        .filter_map(|(name, given)| match name {
            WalFileName::Segment(segment) => Some(WalGap {
                wal: WalRange {
                    first: segment,
                    last: segment,
                },
                at: given.at,
                reason: given.reason,
            }),
            _ => None,
        })
        .collect();
    if gaps.is_empty() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for target in targets {
        let told = match target.place() {
            Some(place) => {
                let repository = place.archive.repository();
                repository
                    .swap::<(), StanzaError, _>(|head| {
                        for gap in &gaps {
                            if !head.gaps.iter().any(|known| known.wal == gap.wal) {
                                head.gaps.push(gap.clone());
                            }
                        }
                        Ok(())
                    })
                    .await
                    .map_err(|error| error.to_string())
            }
            None => Err("it cannot be used now".to_owned()),
        };
        if let Err(problem) = told {
            problems.push(format!(
                "repository {} does not know yet that WAL was given up: {problem}",
                target.destination().name()
            ));
        }
    }
    if problems.is_empty() {
        for gap in &gaps {
            if let Err(error) = ledger.told(gap.wal.first.into()) {
                problems.push(error.to_string());
            }
        }
    }
    problems
}

/// The name of what is to be pushed, before anything is read.
///
/// # Errors
///
/// When the path names no WAL file.
pub fn check_name(path: &Path) -> Result<WalFileName, WalError> {
    file::name_of(path)
}
