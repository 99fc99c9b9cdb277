//! Copying backups, and the WAL that belongs to them, from one repository to another.
//!
//! Each object is sealed with the keys of its repository and bound to its name there, and blocks are hashed with
//! a secret of the repository. So nothing is copied as it is: packs are opened, proven block by block, hashed and
//! sealed again (`packs`); page maps and manifests are translated (`maps`); WAL is proven by its digest and
//! stored as if the server had archived it.
//!
//! A backup keeps its label, unless that was used in the target before; it is the same backup wherever system,
//! timeline, positions and times are the same. A copy of a pack says in the first half of its name what it is a
//! copy of, so that what is there, of finished copies and of interrupted ones, is found by listing and not copied
//! again. Copies are published like new backups, one by one, the oldest first; then comes the rest of the WAL.
//!
//! The source is read under a lease. In the target a lease keeps what was copied and is not published yet.
//!
//! # Memory
//!
//! Packs: see `packs`; maps: 1 MiB pieces and some 60 bytes for each file of more than 128 KiB; WAL: four
//! files three times, or one where segments are larger than 64 MiB.

mod error;
mod maps;
mod packs;
mod plan;

use std::collections::HashMap;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use pgmahout_procedure::report::{Level, Progress, Reporter, Task, Unit};
use pgmahout_types::repository::manifest::{Entry, File, PackEntry, PackKind, Work};
use pgmahout_types::repository::{BackupEntry, Label, PackId};
use pgmahout_types::{SegmentName, WalFileName};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::create::MapReader;
use super::expire::policy::Policy;
use super::stanza::manifest::FinishedManifest;
use super::stanza::{LeaseGuard, LeaseKind, LeaseScope, PhysicalRepository, StanzaError};
use super::verify::{self, Budget, VerifyMemory, VerifyReport, VerifyRequest};
use super::wal::inventory::between;
use super::wal::{PutOutcome, WalArchive, WalFile};
pub use error::CopyError;
pub use plan::{Plan, PlannedBackup};

use maps::{KnownMaps, MapPacks, Table, Translator};
use packs::{Indexes, PackCopier, PackTally};
use plan::{Prepared, prepare};

/// Files of WAL that are copied at the same time, where segments are small.
const WAL_AT_ONCE: usize = 4;
/// Segments above this are copied one by one.
const LARGE_SEGMENT: u64 = 64 << 20;
/// What was read back later than so long ago is not read again: never in practice.
const EVER: Duration = Duration::from_hours(100 * 365 * 24);

/// Which WAL is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WalChoice {
    /// All from the oldest backup on, so that every later moment can be restored.
    #[default]
    All,
    /// That without which the copied backups are worth nothing.
    Needed,
}

/// What to copy.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// These backups; where none is named, all that the target lacks and its retention keeps.
    pub labels: Vec<Label>,
    /// The target's retention.
    pub policy: Option<Policy>,
    /// Which WAL.
    pub wal: WalChoice,
    /// How many packs are copied at the same time, 1 to 3.
    pub jobs: usize,
    /// Whether what was copied is read back.
    pub verify: bool,
}

/// A backup that was copied.
#[derive(Debug, Clone, Serialize)]
pub struct CopiedBackup {
    /// Its name where it came from.
    pub label: Label,
    /// Its name in the target.
    pub copy: Label,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A backup that could not be copied, while others could.
#[derive(Debug)]
pub struct FailedBackup {
    /// Its name.
    pub label: Label,
    /// Why.
    pub error: CopyError,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Copied {
    /// The backups.
    pub backups: Vec<CopiedBackup>,
    /// Those that could not be copied.
    pub failed: Vec<FailedBackup>,
    /// Files of WAL that could not be copied.
    pub failed_wal: Vec<CopyError>,
    /// Backups of which the target had a copy.
    pub already: Vec<Label>,
    /// Backups that the target's retention would remove at once.
    pub unwanted: Vec<Label>,
    /// Packs of file content that were copied.
    pub packs: u64,
    /// Packs of these backups that were there already.
    pub packs_there: u64,
    /// Bytes by which the target grew for backups.
    pub stored: u64,
    /// Files of WAL that were copied.
    pub wal_files: u64,
    /// Bytes by which the target grew for them.
    pub wal_stored: u64,
    /// What reading back gave; nothing where no backup was copied or it was not asked for.
    pub verified: Option<VerifyReport>,
}

impl Copied {
    /// Whether everything was copied and found whole.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
            && self.failed_wal.is_empty()
            && self.verified.as_ref().is_none_or(VerifyReport::is_sound)
    }
}

/// Plans: what a copy would do. Without a target, as into an empty one.
///
/// # Errors
///
/// When one of the repositories cannot be read, or a label is unknown.
pub async fn plan(
    from: &PhysicalRepository,
    to: Option<&PhysicalRepository>,
    request: &CopyRequest,
    cancellation: &CancellationToken,
) -> Result<Plan, CopyError> {
    if let Some(to) = to {
        check_two(from, to)?;
    }
    Ok(prepare(from, to, request, cancellation).await?.plan)
}

/// Copies. It may be interrupted or killed at any point: what was copied until then is used by the next run.
///
/// A backup that cannot be copied because it is damaged, or its WAL is missing, does not keep others from it.
///
/// # Errors
///
/// When one of the repositories cannot be read or written, or a label is unknown.
pub async fn copy(
    from: &PhysicalRepository,
    to: &PhysicalRepository,
    request: &CopyRequest,
    memory: &mut VerifyMemory,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<Copied, CopyError> {
    check_two(from, to)?;
    let reading = from.lease(LeaseKind::Copy, LeaseScope::All).await?;
    let writing = to.lease(LeaseKind::Copy, LeaseScope::none()).await?;
    let run = Run {
        from,
        to,
        reading: &reading,
        writing: &writing,
        request,
        reporter,
        cancellation,
    };
    let result = run.copy(memory).await;
    for lease in [reading, writing] {
        if let Err(error) = lease.finish().await {
            tracing::debug!(%error, "a lease of the copy runs out by itself");
        }
    }
    result
}

fn check_two(from: &PhysicalRepository, to: &PhysicalRepository) -> Result<(), CopyError> {
    if from.id() == to.id() && from.stanza() == to.stanza() {
        return Err(CopyError::SameRepository {
            from: from.description(),
            to: to.description(),
        });
    }
    Ok(())
}

struct Run<'a> {
    from: &'a PhysicalRepository,
    to: &'a PhysicalRepository,
    reading: &'a LeaseGuard,
    writing: &'a LeaseGuard,
    request: &'a CopyRequest,
    reporter: &'a dyn Reporter,
    cancellation: &'a CancellationToken,
}

/// What goes on from backup to backup.
struct State {
    prepared: Prepared,
    copier: std::sync::Arc<PackCopier>,
    /// Copies of packs that are known, by the names of the originals.
    copies: HashMap<PackId, PackEntry>,
    known: KnownMaps,
    /// What backups are called in the target.
    labels: HashMap<Label, Label>,
    progress: std::sync::Arc<dyn Progress>,
    copied: Copied,
}

impl Run<'_> {
    async fn copy(&self, memory: &mut VerifyMemory) -> Result<Copied, CopyError> {
        let prepared = prepare(self.from, Some(self.to), self.request, self.cancellation).await?;
        self.hold_what_is_there(&prepared).await?;
        let total = prepared.plan.pack_bytes + prepared.plan.wal_bytes;
        let progress = self
            .reporter
            .start(Task::new("copying", Unit::Bytes, Some(total)));
        let mut state = State {
            copied: Copied {
                already: prepared.plan.already.clone(),
                unwanted: prepared.plan.unwanted.clone(),
                ..Copied::default()
            },
            copier: std::sync::Arc::new(PackCopier {
                source: self.from.blocking(),
                target: self.to.blocking(),
                codec: self.to.repository().frame_codec(),
                indexes: Indexes::default(),
            }),
            copies: HashMap::new(),
            known: KnownMaps::default(),
            labels: HashMap::new(),
            progress: progress.into(),
            prepared,
        };
        let planned: Vec<Label> = state
            .prepared
            .plan
            .backups
            .iter()
            .map(|backup| backup.label)
            .collect();
        if !planned.is_empty() {
            self.learn(&mut state).await?;
        }
        for label in planned {
            self.unless_stopped().await?;
            let Some(entry) = state.prepared.source.backup(label).cloned() else {
                continue;
            };
            state.progress.set_detail(&label.to_string());
            match self.backup(&mut state, &entry).await {
                Ok(copied) => state.copied.backups.push(copied),
                Err(error) if error.concerns_one_backup() => {
                    state.copied.failed.push(FailedBackup { label, error });
                }
                Err(error) => return Err(error),
            }
        }
        let rest: Vec<WalFileName> = state.prepared.wal.keys().copied().collect();
        self.wal(&mut state, rest, true).await?;
        state.progress.finish("");
        let mut copied = state.copied;
        if self.request.verify && !copied.backups.is_empty() {
            let request = VerifyRequest {
                labels: copied.backups.iter().map(|backup| backup.copy).collect(),
                budget: Budget::OlderThan(EVER),
                jobs: self.request.jobs,
            };
            let report = verify::verify(self.to, &request, memory, self.reporter, self.cancellation).await?;
            copied.verified = Some(report);
        }
        Ok(copied)
    }

    async fn unless_stopped(&self) -> Result<(), CopyError> {
        if self.cancellation.is_cancelled() {
            return Err(CopyError::Interrupted);
        }
        self.reading.hold().await?;
        self.writing.hold().await?;
        Ok(())
    }

    /// Says in the leases what is read, and what of the target is used before a manifest says so.
    async fn hold_what_is_there(&self, prepared: &Prepared) -> Result<(), CopyError> {
        let labels: Vec<Label> = prepared.plan.backups.iter().map(|backup| backup.label).collect();
        let entries = labels.iter().filter_map(|label| prepared.source.backup(*label));
        let first: Option<SegmentName> = entries
            .min_by_key(|entry| entry.start_lsn)
            .map(|entry| entry.wal.first);
        let mut oldest = None;
        if let Some(target) = &prepared.target {
            for pack in prepared.packs.values().flatten() {
                let candidates = target.candidates(self.to, self.from.id(), pack.id);
                oldest = candidates.iter().map(|pack| pack.written).chain(oldest).min();
            }
        }
        self.writing
            .change(|lease| {
                lease.wal_from = first;
                let oldest = oldest.and_then(|oldest| Timestamp::try_from(oldest).ok());
                lease.objects_since = lease.objects_since.into_iter().chain(oldest).min();
            })
            .await?;
        self.reading.narrow(labels).await?;
        self.reading.change(|lease| lease.wal_from = first).await?;
        Ok(())
    }

    /// What the newest backup that both have says of packs and maps.
    async fn learn(&self, state: &mut State) -> Result<(), CopyError> {
        let Some(target) = &state.prepared.target else {
            return Ok(());
        };
        for entry in &state.prepared.source.backups {
            if let Some(copy) = target.copy_of(entry) {
                state.labels.insert(entry.label, copy.label);
            }
        }
        let pairs = state.prepared.source.backups.iter().rev();
        let pair = pairs
            .filter_map(|entry| Some((entry, target.copy_of(entry)?)))
            .max_by_key(|(entry, _)| entry.start_time);
        let Some((original, copy)) = pair else {
            return Ok(());
        };
        let original = self
            .from
            .fetch_manifest(original.label, Some(original.manifest))
            .await;
        let copy = self.to.fetch_manifest(copy.label, Some(copy.manifest)).await;
        let (Ok(original), Ok(copy)) = (original, copy) else {
            // Then everything is translated anew.
            return Ok(());
        };
        let (key, origin) = (*self.to.hash_key(), self.from.id());
        let learned = blocking(move || {
            let (_, originals) = original.ends()?;
            let (_, copies) = copy.ends()?;
            let mut known = KnownMaps::default();
            known.learn(&original, &originals.packs, &copy, &copies.packs)?;
            let by_name: HashMap<[u8; 8], PackEntry> = copies
                .packs
                .iter()
                .filter_map(|pack| Some((*pack.id.as_bytes().first_chunk()?, *pack)))
                .collect();
            let of = |pack: &PackEntry| {
                let copy = by_name.get(&plan::mark(&key, origin, pack.id))?;
                Some((pack.id, *copy))
            };
            Ok::<_, StanzaError>((
                known,
                originals.packs.iter().filter_map(of).collect::<HashMap<_, _>>(),
            ))
        })
        .await?;
        if let Ok((known, copies)) = learned {
            state.known = known;
            state.copies = copies;
        }
        Ok(())
    }

    /// Copies one backup and publishes it.
    async fn backup(&self, state: &mut State, entry: &BackupEntry) -> Result<CopiedBackup, CopyError> {
        let damaged = |error: StanzaError| match error {
            StanzaError::Store(error) if !error.is_not_found() => CopyError::Store(error),
            StanzaError::Cancelled => CopyError::Interrupted,
            error => CopyError::Damaged {
                repository: self.from.description(),
                object: format!("the manifest of {}", entry.label),
                problem: error.to_string(),
            },
        };
        let stored = self.from.fetch_manifest(entry.label, Some(entry.manifest)).await;
        let stored = stored.map_err(damaged)?;
        let (stored, ends) = blocking(move || {
            let ends = stored.ends();
            (stored, ends)
        })
        .await?;
        let (header, end) = ends.map_err(damaged)?;
        let tally = self.packs(state, &end.packs).await?;
        let needed = self.needed_wal(state, entry)?;
        self.wal(state, needed, false).await?;

        let label = self.free_label(state, entry).await?;
        let mut header = header;
        header.label = label;
        header.stanza = self.to.stanza().to_string();
        header.parent = header
            .parent
            .and_then(|parent| state.labels.get(&parent).copied());
        header.annotations.clone_from(&entry.annotations);
        concat!("pgmahout ", env!("CARGO_PKG_VERSION")).clone_into(&mut header.written_by);
        let builder = self.to.manifest_builder(header)?;
        let copier = std::sync::Arc::clone(&state.copier);
        let (copies, mut known) = (
            std::mem::take(&mut state.copies),
            std::mem::take(&mut state.known),
        );
        let read = end.work.read;
        let run = label;
        let (copies, known, finished) = blocking(move || {
            let finished = (|| {
                let mut builder = builder;
                let mut translator = Translator {
                    source: &copier.source,
                    target: &copier.target,
                    indexes: &copier.indexes,
                    known: &mut known,
                    source_packs: &end.packs,
                    copies: &copies,
                    source_maps: MapReader::new(copier.source.clone()),
                    target_maps: MapReader::new(copier.target.clone()),
                    maps: MapPacks::new(&copier.target, copier.codec, run),
                    table: Table::default(),
                };
                let mut reader = stored.reader()?;
                let source = copier.source.repository();
                while let Some(entry) = reader
                    .next_entry()
                    .map_err(|error| source.manifest_error(stored.name(), error))?
                {
                    let entry = match entry {
                        Entry::File(file) => Entry::File(File {
                            content: translator.content(&file)?,
                            ..file
                        }),
                        other => other,
                    };
                    builder.write(&entry)?;
                }
                let Translator {
                    maps, table, known, ..
                } = translator;
                let new_maps = maps.finish(known)?;
                let data: HashMap<PackId, PackEntry> = end
                    .packs
                    .iter()
                    .filter(|pack| pack.kind == PackKind::Data)
                    .filter_map(|pack| {
                        let copy = copies.get(&pack.id)?;
                        Some((
                            copy.id,
                            PackEntry {
                                live: pack.live,
                                ..*copy
                            },
                        ))
                    })
                    .collect();
                let packs = table
                    .into_packs()
                    .into_iter()
                    .map(|(id, live)| match data.get(&id) {
                        Some(pack) => Some(*pack),
                        None => known.pack(id).map(|pack| PackEntry { live, ..*pack }),
                    })
                    .collect::<Option<Vec<_>>>()
                    .ok_or(CopyError::Thread)?;
                let map_bytes: u64 = new_maps.iter().map(|pack| pack.size).sum();
                let work = Work {
                    read,
                    new: tally.raw,
                    stored: tally.stored + map_bytes,
                    resumed: 0,
                };
                Ok::<FinishedManifest, CopyError>(builder.finish(packs, work)?)
            })();
            (copies, known, finished)
        })
        .await?;
        state.copies = copies;
        // After a failure it may name maps that were never stored.
        state.known = if finished.is_ok() {
            known
        } else {
            KnownMaps::default()
        };
        let finished = finished?;
        self.unless_stopped().await?;
        self.to.write_manifest(&finished).await?;
        let mut copy = finished.entry();
        copy.pinned = entry.pinned;
        let epoch = state
            .prepared
            .target
            .as_ref()
            .map_or(0, |target| target.head.epoch);
        self.to
            .publish(&copy, epoch, &finished.references())
            .await
            .map_err(|error| match error {
                StanzaError::Refused { .. } => CopyError::Refused {
                    label: entry.label,
                    source: Box::new(error),
                },
                error => error.into(),
            })?;
        state.labels.insert(entry.label, label);
        state.copied.packs += tally.copied;
        state.copied.packs_there += tally.reused;
        state.copied.stored += finished.end.work.stored + finished.stored();
        Ok(CopiedBackup {
            label: entry.label,
            copy: label,
            bytes: entry.bytes,
        })
    }

    /// Copies the packs of file content that have no copy yet.
    async fn packs(&self, state: &mut State, packs: &[PackEntry]) -> Result<PackTally, CopyError> {
        let mut reused = 0;
        let mut missing = Vec::new();
        for pack in packs.iter().filter(|pack| pack.kind == PackKind::Data) {
            if state.copies.contains_key(&pack.id) {
                reused += 1;
                continue;
            }
            let candidates = state.prepared.target.as_ref().map_or(&[][..], |target| {
                target.candidates(self.to, self.from.id(), pack.id)
            });
            missing.push((*pack, candidates.to_vec()));
        }
        let copier = std::sync::Arc::clone(&state.copier);
        let progress = std::sync::Arc::clone(&state.progress);
        let (jobs, cancellation) = (self.request.jobs.clamp(1, 3), self.cancellation.clone());
        let (copies, mut tally) =
            blocking(move || copier.copy_all(&missing, jobs, progress.as_ref(), &cancellation)).await??;
        state.copies.extend(copies);
        tally.reused += reused;
        Ok(tally)
    }

    /// The WAL of a backup that the target lacks.
    fn needed_wal(&self, state: &State, entry: &BackupEntry) -> Result<Vec<WalFileName>, CopyError> {
        let there = |file: WalFileName| {
            state
                .prepared
                .target
                .as_ref()
                .is_some_and(|target| target.has(file))
        };
        let mut needed = Vec::new();
        for segment in between(entry.wal.first, entry.wal.last, self.from.segment_size()) {
            let file = WalFileName::Segment(segment);
            if state.prepared.wal.contains_key(&file) {
                needed.push(file);
            } else if !there(file) && !state.prepared.has_copied(file) {
                return Err(CopyError::WalMissing {
                    repository: self.from.description(),
                    label: entry.label,
                    segment,
                });
            }
        }
        let history = WalFileName::TimelineHistory(entry.timeline);
        if state.prepared.wal.contains_key(&history) {
            needed.push(history);
        }
        Ok(needed)
    }

    /// Copies files of WAL. Damaged ones are passed over where no backup needs them.
    async fn wal(
        &self,
        state: &mut State,
        files: Vec<WalFileName>,
        pass_over: bool,
    ) -> Result<(), CopyError> {
        let at_once = if self.from.segment_size().bytes() > LARGE_SEGMENT {
            1
        } else {
            WAL_AT_ONCE
        };
        let (from, to) = (
            WalArchive::new(self.from.clone()),
            WalArchive::new(self.to.clone()),
        );
        let copy = |name: WalFileName| {
            let (from, to) = (from.clone(), to.clone());
            async move {
                let Some(file) = from.get(name).await? else {
                    // Collected since it was listed.
                    return Ok::<_, CopyError>((name, None));
                };
                let file = WalFile::new(name, file.content, file.header.system_identifier)?;
                Ok((name, Some(to.put(&file).await?)))
            }
        };
        let mut running = stream::iter(files.into_iter().map(copy)).buffer_unordered(at_once);
        while let Some(copied) = running.next().await {
            let (name, outcome) = match copied {
                Err(error) if pass_over && error.concerns_one_backup() => {
                    state.copied.failed_wal.push(error);
                    continue;
                }
                copied => copied?,
            };
            if let Some(bytes) = state.prepared.wal.remove(&name) {
                state.progress.advance(bytes);
            }
            if outcome.is_some() {
                state.prepared.note_copied(name);
            }
            if let Some(PutOutcome::Stored(bytes)) = outcome {
                state.copied.wal_files += 1;
                state.copied.wal_stored += bytes;
            }
            if self.cancellation.is_cancelled() {
                return Err(CopyError::Interrupted);
            }
        }
        Ok(())
    }

    /// The label of the copy: the same, unless it was used in the target before. Names are used once there, because
    /// somebody who was stopped for long may still be about to remove the object of that name.
    async fn free_label(&self, state: &State, entry: &BackupEntry) -> Result<Label, CopyError> {
        let is_free = |label| {
            state
                .prepared
                .target
                .as_ref()
                .is_none_or(|target| target.is_free(label))
        };
        let mut label = entry.label;
        loop {
            if is_free(label)
                && !self
                    .to
                    .repository()
                    .exists(&self.to.names().manifest(label))
                    .await?
            {
                if label != entry.label {
                    let text = format!("{} is called {label} in {}", entry.label, self.to.description());
                    self.reporter.message(Level::Detail, &text);
                }
                return Ok(label);
            }
            let suffix = super::stanza::random::<2>()?;
            label = Label::new(entry.label.start(), u16::from_be_bytes(suffix));
        }
    }
}

/// Runs blocking work on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CopyError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| CopyError::Thread)
}
