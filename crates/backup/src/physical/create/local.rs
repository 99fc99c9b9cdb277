//! The files of a server whose data directory is read.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use pgmahout_procedure::report::{Level, Task, Unit};
use pgmahout_types::Lsn;
use pgmahout_types::control::ControlFile;
use pgmahout_types::repository::{Label, PageHash};

use super::chunk::Chunk;
use super::error::CreateError;
use super::filter::Filter;
use super::pack::PackWriter;
use super::parent::{Parent, file_id};
use super::pipeline::{Failures, Made, Pipeline, Taken};
use super::resume::Resume;
use super::shared::Shared;
use super::sink::FinishedFile;
use super::throttle::Throttle;
use super::worker::{Job, Worker};
use super::{Copied, Run, WATCH, control, describe, plan, server, unless_cancelled};
use crate::physical::files::classify::{FileKind, tablespace_version_directory};
use crate::physical::files::walk::{FileList, WalkOptions, walk};

impl Run<'_> {
    /// Holds the server in backup mode, and reads its files meanwhile.
    pub(super) async fn copy_directory(
        &self,
        data_dir: &Path,
        parent: Option<Parent>,
        resume: Option<Resume>,
        label: Label,
    ) -> Result<Copied, CreateError> {
        let started = Instant::now();
        let start = unless_cancelled(
            self.cancellation,
            self.server
                .start(&format!("pgmahout {label}"), self.request.fast_checkpoint),
        )
        .await??;
        let list = self.walk(data_dir).await?;
        let made = self.read(data_dir, list, parent, resume, label, start).await?;
        let stopped = unless_cancelled(self.cancellation, self.server.stop()).await??;
        let history = describe::history(data_dir, server::start_timeline(&stopped.parsed));
        Ok(Copied {
            made,
            stopped,
            stop_time: Timestamp::now(),
            backup_mode: started.elapsed(),
            history,
        })
    }

    async fn walk(&self, data_dir: &Path) -> Result<FileList, CreateError> {
        let major = self.server.facts.version.major();
        let options = WalkOptions {
            major,
            version_directory: tablespace_version_directory(major, self.cluster.catalog_version),
        };
        let (data_dir, cancellation) = (data_dir.to_owned(), self.cancellation.clone());
        let list = tokio::task::spawn_blocking(move || walk(&data_dir, &options, &cancellation))
            .await
            .map_err(|_| CreateError::Thread)?;
        if self.cancellation.is_cancelled() {
            return Err(CreateError::Interrupted);
        }
        let list = list?;
        for warning in list.warnings() {
            self.reporter.message(Level::Warning, &warning.to_string());
        }
        Ok(list)
    }

    /// Runs the threads, and watches the session meanwhile.
    async fn read(
        &self,
        data_dir: &Path,
        list: FileList,
        parent: Option<Parent>,
        resume: Option<Resume>,
        run: Label,
        start: Lsn,
    ) -> Result<Made, CreateError> {
        let progress = self.reporter.start(Task::new(
            format!("backing up {}", data_dir.display()),
            Unit::Bytes,
            Some(list.bytes()),
        ));
        let filter = Filter::choose(self.request, self.cluster, parent.as_ref(), data_dir, &list, run)?;
        if let Filter::Off {
            because: Some(reason),
        } = &filter
        {
            self.reporter
                .message(Level::Detail, &format!("every file is read: {reason}"));
        }
        let stop = self.cancellation.child_token();
        let pipeline = Pipeline {
            parent,
            resume,
            progress,
            cancellation: stop.clone(),
            ..self.pipeline(run, start)
        };
        let files = Files {
            data_dir: data_dir.to_owned(),
            list,
            rate_limit: self.request.rate_limit,
            filter,
        };
        let mut pipeline = tokio::task::spawn_blocking(move || {
            let count = files.list.len();
            pipeline.run(count, |shared, writers, failures| {
                files.work(shared, writers, failures)
            })
        });
        tokio::select! {
            made = &mut pipeline => made.map_err(|_| CreateError::Thread)?,
            lost = self.server.watch(WATCH) => {
                stop.cancel();
                let _ = pipeline.await;
                Err(lost)
            }
        }
    }
}

/// The files, and how they are read.
struct Files {
    data_dir: PathBuf,
    list: FileList,
    rate_limit: Option<u64>,
    filter: Filter,
}

impl Files {
    /// Reads all of them.
    fn work(
        self,
        shared: &Shared<'_>,
        writers: Vec<PackWriter>,
        failures: &mut Failures,
    ) -> (Vec<PackWriter>, Option<Taken>) {
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
            shared,
            list: &self.list,
            data_dir: &self.data_dir,
            tasks,
            next: AtomicUsize::new(0),
            throttle: Throttle::new(self.rate_limit),
            filter: self.filter,
        };
        let mut packs = work(&job, writers, failures);
        if !failures.is_empty() {
            return (packs, None);
        }
        match take_control(&job, control_number, &mut packs) {
            Ok(control) => {
                let list = self.list;
                (packs, Some(Taken { list, control }))
            }
            Err(error) => {
                failures.note(error);
                (packs, None)
            }
        }
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
                    job.shared.cancellation.cancel();
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
    let id = file_id(&job.shared.key, ControlFile::PATH.as_bytes());
    let mut chunk = Chunk::new(0);
    for (block, bytes) in (0..).zip(bytes.chunks(crate::physical::page::BLOCK_SIZE)) {
        let hash = PageHash::of(&job.shared.key, bytes);
        let place = packs.add(id, block, hash, bytes)?;
        chunk.new_block(hash, place);
    }
    let frames = packs.take_frames()?;
    job.shared
        .counts
        .read
        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
    job.shared
        .counts
        .new
        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
    job.shared.sink.finish(&FinishedFile {
        number,
        id,
        size: bytes.len() as u64,
        parts: vec![(&chunk, &frames)],
        parent: None,
    })?;
    Ok(control)
}
