//! All threads of a backup: workers, uploaders, and the end in which pg_control is taken last.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_procedure::report::Progress;
use pgmahout_store::framed::FrameCodec;
use pgmahout_types::Lsn;
use pgmahout_types::control::ControlFile;
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use pgmahout_types::repository::{Label, PackId, PageHash};
use tokio_util::sync::CancellationToken;

use super::chunk::Chunk;
use super::control;
use super::error::CreateError;
use super::pack::{PackSettings, PackSizing, PackWriter, Spare};
use super::parent::{Parent, file_id};
use super::plan;
use super::resume::Resume;
use super::sink::{FinishedFile, Found, Sink};
use super::throttle::Throttle;
use super::upload::Uploader;
use super::worker::{Counts, Findings, Job, Worker};
use crate::physical::files::classify::FileKind;
use crate::physical::files::walk::FileList;
use crate::physical::stanza::BlockingRepository;

/// More workers would need more memory than a backup may take.
const MOST_WORKERS: usize = 32;
/// Threads that store packs.
const UPLOADERS: usize = 2;

/// What the threads are given.
pub(super) struct Pipeline {
    pub(super) repository: BlockingRepository,
    pub(super) data_dir: PathBuf,
    pub(super) list: FileList,
    pub(super) parent: Option<Parent>,
    pub(super) resume: Option<Resume>,
    pub(super) run: Label,
    pub(super) codec: FrameCodec,
    pub(super) jobs: usize,
    pub(super) nice: i32,
    pub(super) rate_limit: Option<u64>,
    pub(super) start: Lsn,
    pub(super) control: ControlFile,
    pub(super) progress: Box<dyn Progress>,
    pub(super) cancellation: CancellationToken,
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
    /// When it was cancelled, what is stored stays for the next backup.
    pub(super) fn run(self) -> Result<Made, CreateError> {
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
        let mut control_number = None;
        let files = self.list.files().filter_map(|file| {
            let number = file.index() as u32;
            if file.kind() == FileKind::Control {
                control_number = Some(number);
                return None;
            }
            Some((number, file.size()))
        });
        let tasks = plan::tasks(files);
        let job = Job {
            list: &self.list,
            data_dir: &self.data_dir,
            tasks,
            next: AtomicUsize::new(0),
            parent: self.parent,
            resume: self.resume,
            sink: Sink::new(self.list.len(), writer(PackKind::Map)),
            key: *self.repository.repository().hash_key(),
            start: self.start,
            checksums: self.control.data_checksums.is_on(),
            segment_blocks: self.control.relation_segment_blocks,
            throttle: Throttle::new(self.rate_limit),
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
            let mut packs = work(&job, writers, &mut failures);
            let control = if failures.is_empty() {
                match take_control(&job, control_number, &mut packs) {
                    Ok(control) => Some(control),
                    Err(error) => {
                        failures.note(error);
                        None
                    }
                }
            } else {
                None
            };
            for writer in packs {
                if let Err(error) = writer.finish() {
                    failures.note(error);
                }
            }
            // Its writer of maps is the last that holds the queue open.
            let Job {
                sink,
                findings,
                counts,
                parent,
                resume,
                ..
            } = job;
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
            match (failures.first(), found, control) {
                (None, Some(found), Some(control)) => Ok((found, control, findings, counts, parent, resume)),
                (Some(error), ..) => Err(error),
                _ => Err(CreateError::Interrupted),
            }
        });
        let (found, control, findings, counts, parent, resume) = ended?;
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
            list: self.list,
            found,
            findings: findings.into_inner().unwrap_or_else(PoisonError::into_inner),
            counts,
            control,
            packs,
            stored: uploader.bytes.load(Ordering::Relaxed),
            progress: self.progress,
        })
    }
}

/// Runs the workers to their end, and gives back their packs.
fn work(job: &Job<'_>, writers: Vec<PackWriter>, failures: &mut Failures) -> Vec<PackWriter> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = writers
            .into_iter()
            .map(|packs| scope.spawn(move || Worker::new(job, packs).run()))
            .collect();
        let mut packs = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(Ok(writer)) => packs.push(writer),
                Ok(Err(error)) => failures.note(error),
                Err(_) => {
                    job.cancellation.cancel();
                    failures.note(CreateError::Thread);
                }
            }
        }
        packs
    })
}

/// Takes pg_control when everything else was read: recovery of a standby's backup goes on to the position that
/// stands in it.
fn take_control(
    job: &Job<'_>,
    number: Option<u32>,
    packs: &mut [PackWriter],
) -> Result<ControlFile, CreateError> {
    let (bytes, control) = control::read(job.data_dir)?;
    let (Some(number), Some(packs)) = (number, packs.first_mut()) else {
        return Err(CreateError::Unexpected {
            what: format!("there is no {} in the data directory", ControlFile::PATH),
        });
    };
    let id = file_id(&job.key, ControlFile::PATH.as_bytes());
    let mut chunk = Chunk::new(0);
    for (block, bytes) in (0..).zip(bytes.chunks(crate::physical::page::BLOCK_SIZE)) {
        let hash = PageHash::of(&job.key, bytes);
        let place = packs.add(id, block, hash, bytes)?;
        chunk.new_block(hash, place);
    }
    let frames = packs.take_frames()?;
    job.counts.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    job.counts.new.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    job.sink.finish(&FinishedFile {
        number,
        id,
        size: bytes.len() as u64,
        parts: vec![(&chunk, &frames)],
        parent: None,
    })?;
    Ok(control)
}

/// What went wrong in several threads: the cause counts, not those that stopped because of it.
#[derive(Default)]
struct Failures {
    cause: Option<CreateError>,
    stopped: bool,
}

impl Failures {
    fn note(&mut self, error: CreateError) {
        match error {
            CreateError::Interrupted => self.stopped = true,
            error => {
                self.cause.get_or_insert(error);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.cause.is_none() && !self.stopped
    }

    fn first(self) -> Option<CreateError> {
        let stopped = self.stopped.then_some(CreateError::Interrupted);
        self.cause.or(stopped)
    }
}
