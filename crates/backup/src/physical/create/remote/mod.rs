//! The files of a server whose disk is out of reach: they come through the replication protocol.
//!
//! ```text
//! session --bytes--> tar archives --pieces of 1 MiB--> workers: page checksums -> hash, compare -> frames -> pack
//! ```
//!
//! `BASE_BACKUP` is backup mode and the files in one: the server sends a tar archive for each tablespace and one
//! for the data directory, in it `backup_label` and `tablespace_map` first and pg_control last. It leaves backup
//! mode when the session ends, however it ends. Nothing is written to any disk on the way; a file can neither be
//! read again nor in another order, so that a page with a wrong checksum is judged by its LSN alone. (The server
//! itself reads such a page twice before it sends it.)
//!
//! # Memory
//!
//! Beside what every backup takes (see [`super`]): 2 MiB of the stream, and 1 MiB for each worker and its place in
//! the queue.

mod facts;
mod intake;
mod tape;
mod worker;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Instant;

use jiff::Timestamp;
use pgmahout_postgres::connection::replication::{
    BackupEnd, BackupMessage, BackupOptions, BackupTablespace, ReplicationConnection, ReplicationError,
};
use pgmahout_procedure::report::{Level, Task, Unit};
use pgmahout_types::repository::Label;
use pgmahout_types::tablespace_map::TablespaceLink;
use pgmahout_types::{BackupLabel, TablespaceMap, TimelineId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::error::CreateError;
use super::parent::Parent;
use super::pipeline::Pipeline;
use super::resume::Resume;
use super::server::Stopped;
use super::{Copied, Run, WATCH, unless_cancelled};
use crate::physical::files::classify::tablespace_version_directory;
use crate::physical::files::walk::FileList;
use intake::{Intake, Texts};
use tape::Event;

pub(super) use facts::RemoteFacts;

/// Messages of the stream, of 32 KiB each, between the session and the threads.
const MESSAGES: usize = 64;
/// One stream does not keep more workers busy. And each has a pack of its own: the pages of a file should not be
/// scattered over many.
const MOST_WORKERS: usize = 8;
/// Warnings of the server that are passed on.
const MOST_WARNINGS: usize = 20;

/// A session that can send the files.
pub(super) struct Stream {
    /// The session.
    pub(super) connection: ReplicationConnection,
    /// What is known of the server.
    pub(super) facts: RemoteFacts,
}

impl Run<'_> {
    /// Takes the files as the server sends them.
    pub(super) async fn copy_stream(
        &self,
        stream: Stream,
        parent: Option<Parent>,
        resume: Option<Resume>,
        label: Label,
    ) -> Result<Copied, CreateError> {
        let cancel = stream.connection.cancel_handle();
        let copied = Box::pin(self.receive(stream, parent, resume, label)).await;
        if self.cancellation.is_cancelled() {
            // While it waits for a checkpoint the server does not notice that the session has gone.
            let _ = cancel.cancel().await;
        }
        copied
    }

    async fn receive(
        &self,
        stream: Stream,
        parent: Option<Parent>,
        resume: Option<Resume>,
        label: Label,
    ) -> Result<Copied, CreateError> {
        let Stream {
            mut connection,
            facts,
        } = stream;
        let started = Instant::now();
        let text = format!("pgmahout {label}");
        let options = BackupOptions {
            label: &text,
            fast_checkpoint: self.request.fast_checkpoint,
            rate_limit: self.request.rate_limit,
            tablespace_map: facts.sends_map(),
        };
        let start = unless_cancelled(self.cancellation, connection.base_backup(&options)).await?;
        let start = match start {
            Ok(start) => start,
            Err(error) => return Err(self.refused("begin the base backup", error).await),
        };
        let progress = self.reporter.start(Task::new(
            "receiving the server's files".to_owned(),
            Unit::Bytes,
            start.bytes,
        ));
        let stop = self.cancellation.child_token();
        let pipeline = Pipeline {
            parent,
            resume,
            progress,
            jobs: self.request.jobs.min(MOST_WORKERS),
            cancellation: stop.clone(),
            ..self.pipeline(label, start.start)
        };
        let (sender, receiver) = mpsc::channel(MESSAGES);
        let major = self.server.facts.version.major();
        let intake = Intake::new(
            receiver,
            &facts,
            tablespace_version_directory(major, self.cluster.catalog_version),
            major,
            start.tablespaces.iter().map(|space| (space.oid, place(space))),
        );
        let threads = tokio::task::spawn_blocking(move || {
            let mut texts = Texts::default();
            let made = pipeline.run(0, |shared, writers, failures| {
                intake.work(shared, writers, failures, &mut texts)
            })?;
            Ok((made, texts))
        });
        let fed = tokio::select! {
            fed = self.feed(&mut connection, sender) => fed,
            lost = self.server.watch(WATCH) => Err(Fault::Other(lost)),
            () = self.stopped(&stop) => Ok(None),
        };
        if !matches!(fed, Ok(Some(_))) {
            stop.cancel();
        }
        let made = threads.await.map_err(|_| CreateError::Thread)?;
        let (end, stop_time, ended) = match fed {
            Ok(Some(end)) => end,
            Ok(None) => return Err(made.err().unwrap_or(CreateError::Interrupted)),
            Err(Fault::Other(error)) => return Err(error),
            Err(Fault::Replication(error)) => {
                return Err(self.refused("receive the server's files", error).await);
            }
        };
        let (made, texts) = made?;
        let backup_mode = ended.duration_since(started);
        self.repository.check_control(&made.control)?;
        if end.timeline != start.timeline {
            return Err(CreateError::TimelineChanged {
                from: start.timeline,
                to: end.timeline,
            });
        }
        self.check_tablespaces(&facts, &made.list).await?;
        let map = if facts.sends_map() {
            texts.map
        } else {
            links(&start.tablespaces)?
        };
        let parsed = BackupLabel::parse(&texts.label)?;
        let stopped = Stopped {
            stop: end.stop,
            parsed,
            label: texts.label,
            tablespace_map: map,
            tablespace_names: self.server.tablespace_names().await?,
        };
        let history = if end.timeline == TimelineId::FIRST {
            None
        } else {
            let content = connection.timeline_history(end.timeline).await.ok();
            content.map(Vec::from)
        };
        Ok(Copied {
            made,
            stopped,
            stop_time,
            backup_mode,
            history,
        })
    }

    /// Passes the stream on to the threads; gives what the server says at its end, and when that was. `None` where
    /// they take no more: they say themselves why.
    async fn feed(
        &self,
        connection: &mut ReplicationConnection,
        sender: mpsc::Sender<Event>,
    ) -> Result<Option<(BackupEnd, Timestamp, Instant)>, Fault> {
        let mut warnings = 0;
        loop {
            let (event, end) = match connection.next_of_backup().await? {
                BackupMessage::Archive { name } => (Event::Archive(name), None),
                BackupMessage::Data(bytes) => (Event::Data(bytes), None),
                BackupMessage::Warning(text) => {
                    warnings += 1;
                    if warnings <= MOST_WARNINGS {
                        self.reporter
                            .message(Level::Warning, &format!("the server says: {text}"));
                    }
                    continue;
                }
                BackupMessage::End(end) => (Event::End, Some((end, Timestamp::now(), Instant::now()))),
            };
            if sender.send(event).await.is_err() {
                return Ok(None);
            }
            if end.is_some() {
                return Ok(end);
            }
        }
    }

    /// Waits until the threads have failed, or all is cancelled.
    async fn stopped(&self, stop: &CancellationToken) {
        stop.cancelled().await;
    }

    /// Why the server does not send, or sends no more.
    async fn refused(&self, doing: &'static str, source: ReplicationError) -> CreateError {
        let was_standby = self.server.facts.in_recovery;
        if was_standby
            && matches!(source, ReplicationError::Server { .. })
            && self.server.was_promoted().await
        {
            return CreateError::Promoted;
        }
        CreateError::Replication { doing, source }
    }

    /// A tablespace in `pg_tblspc` itself that 15 did not send, as it was made when the backup began.
    async fn check_tablespaces(&self, facts: &RemoteFacts, list: &FileList) -> Result<(), CreateError> {
        if !facts.omits_in_place {
            return Ok(());
        }
        let sent = |oid: &u32| list.tablespaces().iter().any(|space| space.oid == *oid);
        match self
            .server
            .in_place_tablespaces()
            .await?
            .iter()
            .find(|oid| !sent(oid))
        {
            Some(oid) => Err(CreateError::Unexpected {
                what: format!("tablespace {oid} was made while the backup began, and was not sent"),
            }),
            None => Ok(()),
        }
    }
}

/// What ended the stream.
enum Fault {
    Replication(ReplicationError),
    Other(CreateError),
}

impl From<ReplicationError> for Fault {
    fn from(error: ReplicationError) -> Self {
        Self::Replication(error)
    }
}

/// Where a tablespace is; `None` for one in `pg_tblspc` itself.
fn place(tablespace: &BackupTablespace) -> Option<PathBuf> {
    let location = PathBuf::from(OsStr::from_bytes(&tablespace.location));
    location.is_absolute().then_some(location)
}

/// What `tablespace_map` would say.
fn links(tablespaces: &[BackupTablespace]) -> Result<Vec<u8>, CreateError> {
    let links = tablespaces.iter().filter_map(|tablespace| {
        Some(TablespaceLink {
            oid: tablespace.oid,
            location: place(tablespace)?,
        })
    });
    let map = TablespaceMap::new(links).map_err(|error| CreateError::Unexpected {
        what: error.to_string(),
    })?;
    Ok(map.render())
}
