//! Storing files in all repositories, several at once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use jiff::Timestamp;
use pgmahout_types::{SystemIdentifier, WalFileName};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::super::archive::compute;
use super::super::buffers::Buffers;
use super::super::error::WalError;
use super::super::file::WalFile;
use super::super::place::{Destination, Place};
use super::ledger::{PushLedger, Pushed};
use super::spool::WalSpool;

/// A repository, as far as it could be opened.
pub(super) struct Target {
    destination: Destination,
    opened: Result<Place, WalError>,
    /// It failed once: the other files do not wait for it too.
    is_down: AtomicBool,
}

impl Target {
    pub(super) fn new(destination: Destination, opened: Result<Place, WalError>) -> Self {
        Self {
            destination,
            opened,
            is_down: AtomicBool::new(false),
        }
    }

    pub(super) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The open archive, unless it failed.
    pub(super) fn place(&self) -> Option<&Place> {
        self.opened
            .as_ref()
            .ok()
            .filter(|_| !self.is_down.load(Ordering::Relaxed))
    }
}

/// Where a file is now.
pub(super) struct Held {
    /// What went wrong with repositories that are not needed.
    pub(super) problems: Vec<String>,
}

/// One call's work.
pub(super) struct Batch<'a> {
    pub(super) targets: &'a [Target],
    pub(super) needed: usize,
    /// Files under way at once: one that waits for the disk leaves its core to another.
    pub(super) in_flight: usize,
    /// Files read, compressed or sealed at once.
    pub(super) cores: Semaphore,
    /// The memory of files that are done with.
    pub(super) buffers: Buffers,
    pub(super) deadline: Instant,
    pub(super) seconds: u64,
    pub(super) ledger: Option<&'a PushLedger>,
    pub(super) cancellation: &'a CancellationToken,
}

impl Batch<'_> {
    /// Stores one file in all repositories, and notes it.
    pub(super) async fn store(&self, file: &WalFile) -> Result<Held, WalError> {
        let results = join_all(self.targets.iter().map(|target| self.put(target, file))).await;
        let mut bindings = Vec::new();
        let (mut owing, mut owed) = (Vec::new(), Vec::new());
        let mut first_error: Option<WalError> = None;
        for (target, result) in self.targets.iter().zip(results) {
            match result {
                Ok(place) => bindings.push(place.binding.clone()),
                // Which no other repository makes good.
                Err(error) if error.is_refusal() => return Err(error),
                Err(error) => {
                    owing.push((
                        format!("repository {}", target.destination.name()),
                        error.to_string(),
                    ));
                    owed.push(target.destination.name());
                    first_error.get_or_insert(error);
                }
            }
        }
        let held = bindings.len();
        if held < self.needed || held == 0 {
            return Err(match first_error {
                Some(error) if self.targets.len() == 1 || matches!(error, WalError::Cancelled) => error,
                Some(error) => WalError::TooFew {
                    name: file.name,
                    held,
                    needed: self.needed,
                    source: Box::new(error),
                },
                None => WalError::Minimum {
                    needed: self.needed,
                    configured: 0,
                },
            });
        }
        if let Some(ledger) = self.ledger.cloned() {
            let pushed = Pushed {
                name: file.name,
                blake3: file.blake3,
                system: file.system_identifier,
                at: Timestamp::now(),
                held: bindings,
            };
            let (names, name) = (owed, file.name);
            let noted = compute(move || {
                for repository in &names {
                    ledger.owe(repository, name)?;
                }
                ledger.append(&pushed)
            })
            .await;
            // The file is safe; what is lost is time, or a repository that stays without it.
            if let Err(error) = noted {
                owing.push(("the state directory".to_owned(), error.to_string()));
            }
        }
        Ok(Held {
            problems: owing
                .into_iter()
                .map(|(repository, problem)| format!("{} is not yet in {repository}: {problem}", file.name))
                .collect(),
        })
    }

    async fn put<'t>(&self, target: &'t Target, file: &WalFile) -> Result<&'t Place, WalError> {
        let place = match &target.opened {
            Err(error) => return Err(target.destination.unusable(error)),
            Ok(_) if target.is_down.load(Ordering::Relaxed) => {
                return Err(WalError::Unopened {
                    repository: target.destination.name(),
                    problem: "it failed a moment ago".to_owned(),
                    hint: None,
                    outcome: pgmahout_types::diagnostic::Outcome::Failed,
                });
            }
            Ok(place) => place,
        };
        let result = tokio::select! {
            // What was sent may arrive; storing it again finds it.
            () = self.cancellation.cancelled() => Err(WalError::Cancelled),
            result = tokio::time::timeout_at(self.deadline.into(), self.put_at(place, file)) => match result {
                Ok(result) => result,
                Err(_) => Err(WalError::Slow {
                    repository: place.name.clone(),
                    name: file.name,
                    seconds: self.seconds,
                }),
            },
        };
        if result.as_ref().is_err_and(WalError::is_retryable) {
            target.is_down.store(true, Ordering::Relaxed);
        }
        result.map(|()| place)
    }

    async fn put_at(&self, place: &Place, file: &WalFile) -> Result<(), WalError> {
        let sealed: Bytes = {
            let _core = self.cores.acquire().await;
            place.archive.seal(file).await?
        };
        place.archive.store(file, sealed).await.map(drop)
    }

    async fn read(&self, path: PathBuf) -> Result<WalFile, WalError> {
        let _core = self.cores.acquire().await;
        let buffers = self.buffers.clone();
        compute(move || WalFile::read_into(&path, |capacity| buffers.take(capacity))).await
    }

    /// Stores files that wait, several at once. What fails will be asked for again by its own call.
    pub(super) async fn store_all(&self, paths: Vec<PathBuf>) -> usize {
        let mut stored = 0;
        let mut problem = None;
        let mut work = stream::iter(paths)
            .map(|path| async move {
                let file = self.read(path).await?;
                let held = self.store(&file).await;
                self.buffers.give(file.content);
                held
            })
            .buffer_unordered(self.in_flight);
        while let Some(result) = work.next().await {
            match result {
                Ok(_) => stored += 1,
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
            if self.cancellation.is_cancelled() || problem.is_some() || Instant::now() > self.deadline {
                break;
            }
        }
        // Its own call says so once more, and counts.
        if let Some(error) = problem {
            tracing::info!(%error, "a segment that waits could not be stored");
        }
        stored
    }

    /// Stores what waits in the spool.
    pub(super) async fn drain(&self, spool: Option<&WalSpool>, system: SystemIdentifier) -> Vec<String> {
        let Some(spool) = spool else { return Vec::new() };
        for name in spool.waiting(system) {
            if let Err(error) = self.drain_one(spool, name, system).await {
                return vec![format!("{name} stays in the spool: {error}")];
            }
        }
        Vec::new()
    }

    async fn drain_one(
        &self,
        spool: &WalSpool,
        name: WalFileName,
        system: SystemIdentifier,
    ) -> Result<(), WalError> {
        let reading = spool.clone();
        let Some(file) = compute(move || reading.read(name, system)).await? else {
            return Ok(());
        };
        self.store(&file).await?;
        let releasing = spool.clone();
        compute(move || releasing.release(name, system)).await
    }

    /// Brings to repositories that were down what others have, so many files.
    pub(super) async fn fill(&self, most: usize) -> Vec<String> {
        let Some(ledger) = self.ledger else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        for target in self.targets {
            let Some(place) = target.place() else { continue };
            for name in ledger.owed(&place.name).into_iter().take(most) {
                match self.fill_one(place, name).await {
                    Ok(()) => {
                        if let Err(error) = ledger.paid(&place.name, name) {
                            problems.push(error.to_string());
                        }
                    }
                    Err(error) => {
                        problems.push(format!("{name} is not yet in repository {}: {error}", place.name));
                        break;
                    }
                }
            }
        }
        problems
    }

    async fn fill_one(&self, place: &Place, name: WalFileName) -> Result<(), WalError> {
        if place.archive.has(name).await? {
            return Ok(());
        }
        let mut places = Vec::new();
        for other in self.targets.iter().filter_map(Target::place) {
            if other.binding == place.binding {
                continue;
            }
            if let Some(found) = other.archive.get(name).await? {
                let file = WalFile::new(name, found.content, found.header.system_identifier)?;
                place.archive.put(&file).await?;
                return Ok(());
            }
            places.push(other.name.clone());
        }
        Err(WalError::Absent {
            name,
            places: places.join(", "),
        })
    }
}
