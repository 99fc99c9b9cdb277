//! The threads of a backup, wherever its files come from: workers, uploaders, and the end of both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_procedure::report::Progress;
use pgmahout_store::framed::FrameCodec;
use pgmahout_types::Lsn;
use pgmahout_types::control::ControlFile;
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use pgmahout_types::repository::{Label, PackId};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::error::CreateError;
use super::pack::{PackSettings, PackSizing, PackWriter, Spare};
use super::parent::Parent;
use super::resume::Resume;
use super::shared::{Counts, Findings, Shared};
use super::sink::{Found, Sink};
use super::upload::Uploader;
use crate::physical::files::walk::FileList;
use crate::physical::stanza::BlockingRepository;

/// More workers would need more memory than a backup may take.
const MOST_WORKERS: usize = 32;
/// Threads that store packs.
const UPLOADERS: usize = 2;

/// What the threads are given.
pub(super) struct Pipeline {
    pub(super) repository: BlockingRepository,
    pub(super) parent: Option<Parent>,
    pub(super) resume: Option<Resume>,
    pub(super) run: Label,
    pub(super) codec: FrameCodec,
    pub(super) jobs: usize,
    pub(super) nice: i32,
    pub(super) start: Lsn,
    pub(super) cluster: Cluster,
    pub(super) progress: Box<dyn Progress>,
    pub(super) cancellation: CancellationToken,
}

/// What whoever took the files knows of them.
pub(super) struct Taken {
    /// The files, by their numbers.
    pub(super) list: FileList,
    /// pg_control as it is in the backup, taken last.
    pub(super) control: ControlFile,
}

/// What they made.
pub(super) struct Made {
    pub(super) list: FileList,
    pub(super) found: Found,
    pub(super) findings: Findings,
    pub(super) counts: Counts,
    /// pg_control as it is in the backup.
    pub(super) control: ControlFile,
    /// All packs that the backup uses, in the order of their numbers.
    pub(super) packs: Vec<PackEntry>,
    /// Bytes that were stored.
    pub(super) stored: u64,
    pub(super) progress: Box<dyn Progress>,
}

impl Pipeline {
    /// Runs until everything is stored. Blocking.
    ///
    /// `work` is given as many writers of packs as there are to be workers, and gives them back when all files,
    /// of which there are about so many, have been finished. When it was cancelled, what is stored stays for
    /// the next backup.
    pub(super) fn run(
        self,
        files: usize,
        work: impl FnOnce(&Shared<'_>, Vec<PackWriter>, &mut Failures) -> (Vec<PackWriter>, Option<Taken>),
    ) -> Result<Made, CreateError> {
        let jobs = self.jobs.clamp(1, MOST_WORKERS);
        let settings = Arc::new(PackSettings {
            cipher: self.repository.repository().cipher(),
            codec: self.codec,
            sizing: PackSizing::new(jobs, UPLOADERS),
            run: self.run,
            names: self.repository.repository().names().clone(),
        });
        let (sender, receiver) = sync_channel(1);
        let (returned, spare) = Spare::new();
        let spare = Arc::new(spare);
        let writer = |kind| PackWriter::new(kind, Arc::clone(&settings), sender.clone(), Arc::clone(&spare));
        let uploader = Uploader {
            repository: self.repository.clone(),
            queue: Mutex::new(receiver),
            cancellation: self.cancellation.clone(),
            stored: Mutex::default(),
            bytes: AtomicU64::new(0),
        };
        let shared = Shared {
            parent: self.parent,
            resume: self.resume,
            sink: Sink::new(files, writer(PackKind::Map)),
            key: *self.repository.repository().hash_key(),
            start: self.start,
            checksums: self.cluster.data_checksums,
            segment_blocks: self.cluster.relation_segment_blocks,
            nice: self.nice,
            progress: &*self.progress,
            cancellation: self.cancellation.clone(),
            findings: Mutex::default(),
            counts: Counts::default(),
        };
        let writers: Vec<PackWriter> = (0..jobs).map(|_| writer(PackKind::Data)).collect();
        drop(sender);
        let ended = std::thread::scope(|scope| {
            let uploads: Vec<_> = (0..UPLOADERS)
                .map(|_| {
                    let returned = returned.clone();
                    let uploader = &uploader;
                    scope.spawn(move || uploader.run(&returned))
                })
                .collect();
            let mut failures = Failures::default();
            let (packs, taken) = work(&shared, writers, &mut failures);
            for writer in packs {
                if let Err(error) = writer.finish() {
                    failures.note(error);
                }
            }
            // Its writer of maps is the last that holds the queue open.
            let Shared {
                sink,
                findings,
                counts,
                parent,
                resume,
                ..
            } = shared;
            let found = match sink.into_found() {
                Ok(found) => Some(found),
                Err(error) => {
                    failures.note(error);
                    None
                }
            };
            for upload in uploads {
                match upload.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => failures.note(error),
                    Err(_) => failures.note(CreateError::Thread),
                }
            }
            match (failures.first(), found, taken) {
                (None, Some(found), Some(taken)) => Ok((found, taken, findings, counts, parent, resume)),
                (Some(error), ..) => Err(error),
                _ => Err(CreateError::Interrupted),
            }
        });
        let (found, taken, findings, counts, parent, resume) = ended?;
        let stored = uploader
            .stored
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let resumed = |id: PackId| resume.as_ref()?.packs().find(|pack| pack.id == id).copied();
        let packs = found
            .packs
            .packs()
            .iter()
            .map(|(id, live)| {
                let known = stored
                    .get(id)
                    .copied()
                    .or_else(|| parent.as_ref()?.pack(*id).copied())
                    .or_else(|| resumed(*id));
                known
                    .map(|pack| PackEntry { live: *live, ..pack })
                    .ok_or(CreateError::Thread)
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (stage, spent) in counts.stages() {
            tracing::debug!(stage, seconds = spent.as_secs_f64(), "time of all workers");
        }
        Ok(Made {
            list: taken.list,
            found,
            findings: findings.into_inner().unwrap_or_else(PoisonError::into_inner),
            counts,
            control: taken.control,
            packs,
            stored: uploader.bytes.load(Ordering::Relaxed),
            progress: self.progress,
        })
    }
}

/// What went wrong in several threads: the cause counts, not those that stopped because of it.
#[derive(Default)]
pub(super) struct Failures {
    cause: Option<CreateError>,
    stopped: bool,
}

impl Failures {
    /// Notes one.
    pub(super) fn note(&mut self, error: CreateError) {
        match error {
            CreateError::Interrupted => self.stopped = true,
            error => {
                self.cause.get_or_insert(error);
            }
        }
    }

    /// Whether nothing went wrong.
    pub(super) fn is_empty(&self) -> bool {
        self.cause.is_none() && !self.stopped
    }

    fn first(self) -> Option<CreateError> {
        let stopped = self.stopped.then_some(CreateError::Interrupted);
        self.cause.or(stopped)
    }
}
