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

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pgmahout_durable::{FileLock, LockError, create_directory_durably, remove_durably, sync_directory};
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::connection::replication::{
    NextTimeline, ReplicationConnection, ReplicationError, StreamMessage,
};
use pgmahout_postgres::params::{ConnectionParameters, HostTarget};
use pgmahout_types::diagnostic::Diagnose;
use pgmahout_types::{
    Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId, WalFileName,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::archive::{WalArchive, compute};
use super::error::WalError;
use super::file::WalFile;
use super::place::Destination;
use crate::physical::stanza::{RepositoryMemory, StanzaName};

/// How often the server hears from us though nothing happens.
const STATUS: Duration = Duration::from_secs(5);
/// The pause before another connection.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause before a segment is stored again that could not be stored.
const RETRY: Duration = Duration::from_secs(5);

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
    /// Whether the server may wait for this receiver.
    pub synchronous: bool,
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

/// Receives until it is cancelled. Connections that break are opened again.
///
/// # Errors
///
/// What no new connection heals: another cluster, a missing slot, WAL that is gone, a full disk, a refusal.
pub async fn receive(request: &ReceiveRequest, cancellation: &CancellationToken) -> Result<(), ReceiveError> {
    let mut archives = Vec::new();
    for destination in &request.destinations {
        archives.push(destination.open(&request.stanza, &request.memory).await?.archive);
    }
    create_directory_durably(&request.directory, 0o700).map_err(WalError::from)?;
    // Two receivers would write the same files.
    let _lock = FileLock::try_acquire(request.directory.join("lock"), "wal receive")?;
    let whole = Arc::new(Notify::new());
    let store = Store {
        directory: request.directory.clone(),
        archives: archives.clone(),
        whole: Arc::clone(&whole),
    };
    let ended = cancellation.child_token();
    let storing = tokio::spawn({
        let ended = ended.clone();
        async move { store.run(&ended).await }
    });
    let result = connections(request, &archives, &whole, cancellation).await;
    ended.cancel();
    let stored = storing.await.unwrap_or(Ok(()));
    result.and(stored.map_err(ReceiveError::from))
}

async fn connections(
    request: &ReceiveRequest,
    archives: &[WalArchive],
    whole: &Notify,
    cancellation: &CancellationToken,
) -> Result<(), ReceiveError> {
    loop {
        let error = tokio::select! {
            // What is written here stays, and is received again.
            () = cancellation.cancelled() => return Ok(()),
            result = one_connection(request, archives, whole) => match result {
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

/// What the server says before anything is received.
struct Server {
    size: SegmentSize,
    slot_start: Option<Lsn>,
    has_slot: bool,
}

async fn one_connection(
    request: &ReceiveRequest,
    archives: &[WalArchive],
    whole: &Notify,
) -> Result<(), ReceiveError> {
    let connection = Connection::open_secured(&request.server)
        .await
        .map_err(ReplicationError::from)?;
    let server = look(request, &connection).await?;
    let mut replication = ReplicationConnection::open(&connection).await?;
    let identity = replication.identify().await?;
    for archive in archives {
        archive
            .repository()
            .check_identity(identity.system, connection.server_version().major())
            .map_err(WalError::from)?;
    }
    connection.close().await;
    if !server.has_slot {
        if !request.create_slot {
            return Err(ReceiveError::Refused {
                what: format!("the server has no replication slot {}", request.slot),
                hint: "let it be made: --create-slot".to_owned(),
            });
        }
        replication.create_slot(&request.slot).await?;
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
            _ => stream(&mut replication, &mut receiver, whole).await?,
        };
        let Some(NextTimeline {
            timeline: next,
            start,
        }) = next
        else {
            return Ok(());
        };
        end_timeline(&receiver, identity.system, archives).await?;
        let history = replication.timeline_history(next).await?;
        for archive in archives {
            archive.put_history(next, history.clone()).await?;
        }
        timeline = next;
        position = Lsn::new(start.as_u64() - u64::from(server.size.offset_of(start)));
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

/// Asks the server, and refuses what cannot work.
async fn look(request: &ReceiveRequest, connection: &Connection) -> Result<Server, ReceiveError> {
    let row = connection
        .query_one(
            "SELECT pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')), \
             (SELECT restart_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = $1), \
             EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1), \
             pg_catalog.current_setting('synchronous_commit')",
            &[&request.slot],
        )
        .await
        .map_err(ReceiveError::Sql)?;
    if request.synchronous {
        if row.get::<_, &str>(3) == "remote_apply" {
            return Err(ReceiveError::Refused {
                what: "with synchronous_commit = remote_apply the server would wait for ever: a receiver applies nothing"
                    .to_owned(),
                hint: "set synchronous_commit to on, or receive without --synchronous".to_owned(),
            });
        }
        if is_local(connection.parameters()) {
            return Err(ReceiveError::Refused {
                what: "a synchronous receiver on the server's own host protects from nothing: both are lost together"
                    .to_owned(),
                hint: "run it on another host, or without --synchronous".to_owned(),
            });
        }
    }
    let size = u64::try_from(row.get::<_, i64>(0)).unwrap_or_default();
    Ok(Server {
        size: SegmentSize::new(size).unwrap_or_default(),
        slot_start: row
            .get::<_, Option<String>>(1)
            .and_then(|text| text.parse::<Lsn>().ok()),
        has_slot: row.get(2),
    })
}

fn is_local(parameters: &ConnectionParameters) -> bool {
    parameters.hosts.iter().any(|host| match &host.target {
        HostTarget::Address { address, .. } => address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback() || is_own(address)),
        HostTarget::Name(_) => false,
        HostTarget::Socket(_) => true,
    })
}

/// Whether an address is one of this host: only such a one can be listened on.
fn is_own(address: std::net::IpAddr) -> bool {
    std::net::TcpListener::bind((address, 0)).is_ok()
}

/// Receives until the timeline's end.
async fn stream(
    replication: &mut ReplicationConnection,
    receiver: &mut Receiver,
    whole: &Notify,
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
                    whole.notify_one();
                }
            }
            StreamMessage::KeepAlive { reply: wanted, .. } => reply = wanted,
            StreamMessage::TimelineEnded(next) => {
                receiver.sync().map_err(|source| receiver.failed(source))?;
                return Ok(next);
            }
        }
        // What has arrived already is written first: one sync for all of it.
        if replication.has_message() && !reply {
            continue;
        }
        if flushed < receiver.position {
            receiver.sync().map_err(|source| receiver.failed(source))?;
            flushed = receiver.position;
            reply = true;
        }
        if reply {
            replication.report(receiver.position, flushed).await?;
        }
    }
}

/// Where to go on by the files that are here: the first byte of the unfinished segment.
fn resume(directory: &Path, size: SegmentSize) -> Result<Option<(TimelineId, Lsn)>, WalError> {
    let entries = fs::read_dir(directory).map_err(|source| WalError::Io {
        doing: "read",
        path: directory.to_path_buf(),
        source,
    })?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<WalFileName>().ok());
    let newest = names
        .filter_map(|name| match name {
            WalFileName::Partial(segment) => Some((segment, false)),
            WalFileName::Segment(segment) => Some((segment, true)),
            _ => None,
        })
        .max();
    let Some((segment, is_whole)) = newest else {
        return Ok(None);
    };
    let start = segment.start(size)?;
    let start = if is_whole {
        start.checked_add(size.bytes()).unwrap_or(start)
    } else {
        start
    };
    Ok(Some((segment.timeline(), start)))
}

/// Writes what arrives.
struct Receiver {
    directory: PathBuf,
    size: SegmentSize,
    timeline: TimelineId,
    /// The next byte.
    position: Lsn,
    open: Option<(File, SegmentName)>,
}

impl Receiver {
    fn failed(&self, source: io::Error) -> WalError {
        WalError::Io {
            doing: "write",
            path: self.directory.clone(),
            source,
        }
    }

    fn partial(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(WalFileName::Partial(segment).to_string())
    }

    /// Writes bytes; `true` when a segment became whole.
    fn write(&mut self, mut bytes: Bytes) -> io::Result<bool> {
        let mut is_whole = false;
        while !bytes.is_empty() {
            let segment = SegmentName::containing(self.timeline, self.position, self.size);
            let offset = u64::from(self.size.offset_of(self.position));
            let file = match &self.open {
                Some((file, open)) if *open == segment => file,
                _ => {
                    // Never cut: what was acknowledged before a kill is in it.
                    let file = OpenOptions::new()
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .mode(0o600)
                        .open(self.partial(segment))?;
                    sync_directory(&self.directory).map_err(io::Error::other)?;
                    &self.open.insert((file, segment)).0
                }
            };
            let fitting = (self.size.bytes() - offset).min(bytes.len() as u64) as usize;
            let piece = bytes.split_to(fitting);
            file.write_all_at(&piece, offset)?;
            self.position = Lsn::new(self.position.as_u64() + piece.len() as u64);
            if self.size.offset_of(self.position) == 0 {
                self.sync()?;
                self.open = None;
                fs::rename(self.partial(segment), self.directory.join(segment.to_string()))?;
                sync_directory(&self.directory).map_err(io::Error::other)?;
                is_whole = true;
            }
        }
        Ok(is_whole)
    }

    fn sync(&self) -> io::Result<()> {
        match &self.open {
            Some((file, _)) => file.sync_data(),
            None => Ok(()),
        }
    }
}

/// Stores a timeline's unfinished segment.
async fn end_timeline(
    receiver: &Receiver,
    system: SystemIdentifier,
    archives: &[WalArchive],
) -> Result<(), WalError> {
    let segment = SegmentName::containing(receiver.timeline, receiver.position, receiver.size);
    let path = receiver.partial(segment);
    let mut content = match fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(receiver.failed(source)),
    };
    content.resize(receiver.size.bytes() as usize, 0);
    let file = WalFile::new(WalFileName::Partial(segment), content.into(), system)?;
    for archive in archives {
        archive.put(&file).await?;
    }
    remove_durably(&path)?;
    Ok(())
}

/// Brings whole segments into the repositories.
struct Store {
    directory: PathBuf,
    archives: Vec<WalArchive>,
    whole: Arc<Notify>,
}

impl Store {
    async fn run(&self, ended: &CancellationToken) -> Result<(), WalError> {
        loop {
            let pause = match self.store_all().await {
                Ok(()) => None,
                // Nothing that waiting heals; the files stay.
                Err(error) if error.is_refusal() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a received segment could not be stored; trying again");
                    Some(RETRY)
                }
            };
            tokio::select! {
                () = ended.cancelled() => return self.store_all().await,
                () = self.whole.notified() => {}
                () = tokio::time::sleep(pause.unwrap_or(Duration::from_mins(1))) => {}
            }
        }
    }

    async fn store_all(&self) -> Result<(), WalError> {
        let directory = self.directory.clone();
        let segments = compute(move || segments_in(&directory)).await;
        for segment in segments {
            let path = self.directory.join(segment.to_string());
            let file = compute(move || WalFile::read(&path)).await?;
            for archive in &self.archives {
                archive.put(&file).await?;
            }
            remove_durably(self.directory.join(segment.to_string()))?;
        }
        Ok(())
    }
}

fn segments_in(directory: &Path) -> Vec<SegmentName> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut segments: Vec<SegmentName> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    segments.sort_unstable();
    segments
}
