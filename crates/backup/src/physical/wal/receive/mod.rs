//! `wal receive`: WAL as the server writes it, by streaming replication.
//!
//! What arrives is written into a local file of the segment's name and `.partial`, synced, and only then reported
//! as flushed: a server that waits for this receiver as its synchronous standby has lost nothing when it is lost. A
//! whole segment gets its name and is stored in the repositories, by a task of its own, so that a slow repository
//! holds up nobody; until then it stays here. After a kill the segment is received again from its first byte, over
//! the bytes that are there, which are the same.
//!
//! At the end of a timeline its unfinished segment is stored as `.partial`, filled with zeros, then the history of
//! the next timeline, which begins with the same segment.
//!
//! * `server`: what the server says first, and what is refused;
//! * `segment`: the files; `store`: from them into the repositories;
//! * `slots`: the slot on every member of a cluster;
//! * [`left`]: what is here and in no repository yet, for a restore.

pub mod left;
mod segment;
mod server;
mod slots;
mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgmahout_durable::{FileLock, LockError, create_directory_durably, write_atomically};
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::connection::replication::{
    NextTimeline, ReplicationConnection, ReplicationError, StreamMessage,
};
use pgmahout_postgres::params::{ConnectionParameters, TargetSessionAttributes};
use pgmahout_types::diagnostic::Diagnose;
use pgmahout_types::{Lsn, TimelineHistory, TimelineId, WalFileName};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::error::WalError;
use super::place::Destination;
use crate::physical::stanza::{RepositoryMemory, StanzaName};
use left::ServerNote;
use segment::{MOST_UNSYNCED, Receiver, resume};
use slots::Received;
use store::{Repositories, Store};

/// How often the server hears from us though nothing happens.
const STATUS: Duration = Duration::from_secs(5);
/// The pause before another connection.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be received.
#[derive(Debug)]
pub struct ReceiveRequest {
    /// The server. Its `application_name` is what `synchronous_standby_names` may name.
    pub server: ConnectionParameters,
    /// The replication slot, which keeps WAL while nobody receives.
    pub slot: String,
    /// Whether the slot is made where it is missing.
    pub create_slot: bool,
    /// Where segments are until they are stored.
    pub directory: PathBuf,
    /// Whether the server may wait for this receiver. It is found out as well: whoever
    /// `synchronous_standby_names` names is waited for.
    pub synchronous: bool,
    /// The server is on another host, though its address is one of this one.
    pub other_host: bool,
    /// What manages the cluster and its elections, where that is known.
    pub ha_agent: Option<String>,
    /// Where they are stored.
    pub destinations: Vec<Destination>,
    /// The stanza.
    pub stanza: StanzaName,
    /// What this host remembers of repositories.
    pub memory: RepositoryMemory,
}

/// Why WAL cannot be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The archive or the local files.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Another receiver is at work in the directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The connection.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// A question to the server failed.
    #[error("cannot ask the server about its replication")]
    Sql(#[source] tokio_postgres::Error),
    /// A safety rule.
    #[error("{what}")]
    Refused {
        /// What is not done.
        what: String,
        /// What to do instead.
        hint: String,
    },
}

impl Diagnose for ReceiveError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Wal(error) => error.hint(),
            Self::Lock(error) => error.hint(),
            Self::Replication(error) => error.hint(),
            Self::Sql(_) => None,
            Self::Refused { hint, .. } => Some(hint.clone()),
        }
    }

    fn outcome(&self) -> pgmahout_types::diagnostic::Outcome {
        match self {
            Self::Wal(error) => error.outcome(),
            Self::Lock(error) => error.outcome(),
            Self::Refused { .. } => pgmahout_types::diagnostic::Outcome::Refused,
            _ => pgmahout_types::diagnostic::Outcome::Failed,
        }
    }
}

/// Receives until it is cancelled. Connections that break are opened again, and repositories that are out of reach
/// get their segments later.
///
/// # Errors
///
/// What no new connection heals: another cluster, a missing slot, WAL that is gone, a full disk, a refusal; a segment
/// of which a repository holds another content.
pub async fn receive(request: &ReceiveRequest, cancellation: &CancellationToken) -> Result<(), ReceiveError> {
    let repositories = Arc::new(Repositories::new(
        &request.destinations,
        &request.stanza,
        &request.memory,
    ));
    repositories.open().await?;
    create_directory_durably(&request.directory, 0o700).map_err(WalError::from)?;
    // Two receivers would write the same files.
    let _lock = FileLock::try_acquire(request.directory.join("lock"), "wal receive")?;
    let job = Job {
        request,
        repositories: Arc::clone(&repositories),
        whole: Arc::new(Notify::new()),
        received: Received::default(),
    };
    let store = Store {
        directory: request.directory.clone(),
        repositories,
        whole: Arc::clone(&job.whole),
    };
    let ended = cancellation.child_token();
    let mut storing = tokio::spawn({
        let ended = ended.clone();
        async move { store.run(&ended).await }
    });
    let result = tokio::select! {
        result = job.connections(cancellation) => result,
        // What it refuses it would refuse for ever, while the disk fills.
        stored = &mut storing => return stored.unwrap_or(Ok(())).map_err(ReceiveError::from),
        () = slots::keep(request, &job.received) => Ok(()),
    };
    ended.cancel();
    let stored = storing.await.unwrap_or(Ok(()));
    result.and(stored.map_err(ReceiveError::from))
}

/// One receiver at work.
struct Job<'a> {
    request: &'a ReceiveRequest,
    repositories: Arc<Repositories>,
    /// A segment has become whole.
    whole: Arc<Notify>,
    received: Received,
}

impl Job<'_> {
    async fn connections(&self, cancellation: &CancellationToken) -> Result<(), ReceiveError> {
        loop {
            let error = tokio::select! {
                // What is written here stays, and is received again.
                () = cancellation.cancelled() => return Ok(()),
                result = self.one_connection() => match result {
                    Ok(()) => continue,
                    Err(error) => error,
                },
            };
            match &error {
                ReceiveError::Replication(
                    ReplicationError::Connect(_) | ReplicationError::Io(_) | ReplicationError::Startup(_),
                )
                | ReceiveError::Sql(_) => tracing::warn!(%error, "connecting again"),
                // The server is being shut down, or the slot is held by our own dead connection.
                ReceiveError::Replication(ReplicationError::Server { code, .. })
                    if code.starts_with("57P") || code == "55006" =>
                {
                    tracing::warn!(%error, "connecting again");
                }
                _ => return Err(error),
            }
            tokio::select! {
                () = cancellation.cancelled() => return Ok(()),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn one_connection(&self) -> Result<(), ReceiveError> {
        let request = self.request;
        let mut parameters = request.server.clone();
        if parameters.hosts.len() > 1 && parameters.target_session_attributes == TargetSessionAttributes::Any
        {
            parameters.target_session_attributes = TargetSessionAttributes::Primary;
        }
        let connection = Connection::open_secured(&parameters)
            .await
            .map_err(ReplicationError::from)?;
        let server = server::look(request, &connection).await?;
        let mut replication = ReplicationConnection::open(&connection).await?;
        let identity = replication.identify().await?;
        self.repositories
            .check_identity(identity.system, connection.server_version().major())?;
        if let Some(host) = connection.parameters().hosts.first() {
            let note = ServerNote::new(identity.system, host);
            if let Some(other) = note.write(&request.directory)? {
                return Err(ReceiveError::Refused {
                    what: format!(
                        "{} holds WAL of cluster {}, and the server is cluster {}",
                        request.directory.display(),
                        other.system_identifier,
                        identity.system
                    ),
                    hint: "receive into another directory: --directory".to_owned(),
                });
            }
        }
        connection.close().await;
        if !server.has_slot {
            if !request.create_slot {
                return Err(ReceiveError::Refused {
                    what: format!("the server has no replication slot {}", request.slot),
                    hint: "let it be made: --create-slot".to_owned(),
                });
            }
            match replication.create_slot(&request.slot).await {
                // Made meanwhile, as on every member.
                Err(ReplicationError::Server { code, .. }) if code == "42710" => {}
                made => made?,
            }
        }
        let (mut timeline, mut position) = if let Some(here) = resume(&request.directory, server.size)? {
            here
        } else {
            let start = server.slot_start.unwrap_or(identity.flushed);
            (
                timeline_at(&mut replication, identity.timeline, start).await?,
                start,
            )
        };
        if identity.timeline > TimelineId::FIRST {
            // Whoever restores follows it; it may not have been noted when the timelines changed.
            self.keep_history(&mut replication, identity.timeline).await?;
        }
        position = Lsn::new(position.as_u64() - u64::from(server.size.offset_of(position)));
        loop {
            let began = replication.start(Some(&request.slot), position, timeline).await?;
            let mut receiver = Receiver {
                directory: request.directory.clone(),
                size: server.size,
                timeline,
                position,
                open: None,
            };
            let next = match began {
                Some(StreamMessage::TimelineEnded(next)) => next,
                _ => self.stream(&mut replication, &mut receiver).await?,
            };
            let Some(NextTimeline {
                timeline: next,
                start,
            }) = next
            else {
                return Ok(());
            };
            self.keep_history(&mut replication, next).await?;
            receiver.end().map_err(|source| receiver.failed(source))?;
            self.whole.notify_one();
            timeline = next;
            position = Lsn::new(start.as_u64() - u64::from(server.size.offset_of(start)));
        }
    }

    /// Puts a timeline's history beside the segments, from where it is stored.
    async fn keep_history(
        &self,
        replication: &mut ReplicationConnection,
        timeline: TimelineId,
    ) -> Result<(), ReceiveError> {
        let content = replication.timeline_history(timeline).await?;
        let path = self
            .request
            .directory
            .join(WalFileName::TimelineHistory(timeline).to_string());
        write_atomically(path, &content, 0o600).map_err(WalError::from)?;
        self.whole.notify_one();
        Ok(())
    }

    /// Receives until the timeline's end.
    async fn stream(
        &self,
        replication: &mut ReplicationConnection,
        receiver: &mut Receiver,
    ) -> Result<Option<NextTimeline>, ReceiveError> {
        let mut flushed = receiver.position;
        loop {
            match tokio::time::timeout(STATUS, replication.readable()).await {
                Err(_) => {
                    replication.report(receiver.position, flushed).await?;
                    continue;
                }
                Ok(readable) => readable?,
            }
            let mut reply = false;
            match replication.next().await? {
                StreamMessage::Data { start, bytes } => {
                    if start != receiver.position {
                        return Err(ReplicationError::Unexpected(format!(
                            "WAL of {start} where {} was to come",
                            receiver.position
                        ))
                        .into());
                    }
                    if receiver.write(bytes).map_err(|source| receiver.failed(source))? {
                        self.whole.notify_one();
                    }
                }
                StreamMessage::KeepAlive { reply: wanted, .. } => reply = wanted,
                StreamMessage::TimelineEnded(next) => {
                    receiver.sync().map_err(|source| receiver.failed(source))?;
                    return Ok(next);
                }
            }
            // What has arrived already is written first: one sync for all of it, within bounds.
            let unsynced = receiver.position.bytes_since(flushed);
            if replication.has_message() && !reply && unsynced < MOST_UNSYNCED {
                continue;
            }
            if flushed < receiver.position {
                receiver.sync().map_err(|source| receiver.failed(source))?;
                flushed = receiver.position;
                self.received.note(flushed);
                reply = true;
            }
            if reply {
                replication.report(receiver.position, flushed).await?;
            }
        }
    }
}

/// The timeline that a position is on, in the history of the server's timeline.
async fn timeline_at(
    replication: &mut ReplicationConnection,
    current: TimelineId,
    position: Lsn,
) -> Result<TimelineId, ReceiveError> {
    if current == TimelineId::FIRST {
        return Ok(current);
    }
    let content = replication.timeline_history(current).await?;
    let history = TimelineHistory::parse(current, &content)
        .map_err(|error| WalError::content(WalFileName::TimelineHistory(current), error))?;
    Ok(history.timeline_at(position))
}
