//! A connection for physical streaming replication (PostgreSQL documentation, "Streaming Replication Protocol").
//!
//! The session begins as any other: tokio-postgres negotiates protocol and authentication over a stream that adds
//! `replication=true` to the startup packet. Then the stream is taken back, because tokio-postgres knows no COPY in
//! both directions.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pgmahout_types::diagnostic::Diagnose;
use pgmahout_types::{Lsn, SystemIdentifier, TimelineId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::cancel::CancelHandle;
use super::wire::Wire;
use super::{ConnectError, Connection, establish};
use crate::params::{ConnectionParameters, PasswordLookup};

mod base_backup;

pub use base_backup::{BackupEnd, BackupMessage, BackupOptions, BackupStart, BackupTablespace};

/// The parameter of the startup packet that makes the session a WAL sender.
const REPLICATION: &[u8] = b"replication\0true\0";
/// The server sends no more in one message than 16 pages, and a little around them.
const LARGEST_MESSAGE: usize = 64 << 20;
/// What is read at a time, where so much has arrived.
const READ: usize = 256 << 10;
/// Less room than this is not worth a reading.
const LEAST_ROOM: usize = 16 << 10;
/// Seconds from 1970 to 2000, where the protocol's clock begins.
const EPOCH: u64 = 946_684_800;

/// Why replication cannot begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicationError {
    /// The server cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refuses a replication session.
    #[error("the server refuses a replication session")]
    Startup(#[source] tokio_postgres::Error),
    /// The server refused a command.
    #[error("the server refused: {message}")]
    Server {
        /// The SQLSTATE.
        code: String,
        /// What it said.
        message: String,
    },
    /// The connection broke.
    #[error("the replication connection broke")]
    Io(#[from] io::Error),
    /// An answer that no server gives.
    #[error("the server's answer is not understood: {0}")]
    Unexpected(String),
}

impl Diagnose for ReplicationError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Connect(error) => error.hint(),
            Self::Startup(source) => Some(startup_hint(source).to_owned()),
            Self::Server { code, .. } if code == "42704" => {
                Some("the replication slot does not exist: create it with --create-slot".to_owned())
            }
            Self::Server { code, .. } if code == "58P01" => Some(
                "the server has removed WAL that was not received yet: without a slot that keeps it there is a gap; \
                 take a new backup"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// What to do about a session that does not begin.
fn startup_hint(error: &tokio_postgres::Error) -> &'static str {
    match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            "give the role the right to replicate: ALTER ROLE ... REPLICATION"
        }
        Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
            "pg_hba.conf needs a line for replication: host replication ROLE ADDRESS scram-sha-256 (`all` in its \
             second column does not mean it); then SELECT pg_reload_conf()"
        }
        Some(&SqlState::TOO_MANY_CONNECTIONS) => {
            "all of max_wal_senders are in use: look at pg_stat_replication for those that can end, or raise it \
             (needs a restart)"
        }
        _ => {
            "the role needs REPLICATION (ALTER ROLE ... REPLICATION), pg_hba.conf a line for the database \
             `replication`, and the server a free one of max_wal_senders"
        }
    }
}

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster.
    pub system: SystemIdentifier,
    /// Its timeline.
    pub timeline: TimelineId,
    /// What it has flushed.
    pub flushed: Lsn,
}

/// One message of the stream.
#[derive(Debug, Clone)]
pub enum StreamMessage {
    /// WAL.
    Data {
        /// The position of its first byte.
        start: Lsn,
        /// The bytes.
        bytes: Bytes,
    },
    /// Nothing new.
    KeepAlive {
        /// What the server has sent so far.
        end: Lsn,
        /// Whether it wants to hear from us at once.
        reply: bool,
    },
    /// The timeline is at its end; the session can begin another stream.
    TimelineEnded(Option<NextTimeline>),
}

/// Where the history goes on after a timeline's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    /// The next timeline.
    pub timeline: TimelineId,
    /// Where it begins.
    pub start: Lsn,
}

/// A replication session.
pub struct ReplicationConnection {
    wire: Wire,
    buffer: BytesMut,
    cancel: CancelHandle,
    /// Where the answer to `BASE_BACKUP` is.
    backup: base_backup::Stage,
}

type Row = Vec<Option<Bytes>>;

impl ReplicationConnection {
    /// Opens a session at the server that `connection` has reached, in the same way.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub async fn open(connection: &Connection) -> Result<Self, ReplicationError> {
        let parameters = connection.parameters();
        let host = parameters
            .hosts
            .first()
            .ok_or_else(|| ReplicationError::Unexpected("no host was reached".to_owned()))?;
        let encrypted = connection.tls().is_some();
        let prepared = establish::channel(parameters, host, &connection.facts.address, Some(encrypted))
            .await
            .map_err(|failure| ReplicationError::Unexpected(failure.text))?;
        let (wire, _) = Wire::new(
            prepared.channel,
            prepared.end_point,
            parameters.require_authentication.clone(),
        );
        let shared = Arc::new(Mutex::new(wire));
        let lent = LentWire {
            wire: Arc::clone(&shared),
            startup: Startup::Awaited,
        };
        let password = parameters.password_for(host);
        let token = start(lent, parameters, &password).await?;
        // Client and driver are gone, and with them their share.
        let wire = Arc::try_unwrap(shared)
            .map_err(|_| ReplicationError::Unexpected("the stream is still in use".to_owned()))?;
        Ok(Self {
            wire: wire.into_inner().unwrap_or_else(PoisonError::into_inner),
            buffer: BytesMut::new(),
            cancel: CancelHandle::new(token, parameters.clone(), connection.facts.address.clone()),
            backup: base_backup::Stage::default(),
        })
    }

    /// Something that cancels what the session is doing, from outside of it.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Whose WAL it is.
    ///
    /// # Errors
    ///
    /// When the server does not say.
    pub async fn identify(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let rows = self.command("IDENTIFY_SYSTEM").await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        Ok(SystemIdentity {
            system: field(row, 0)?,
            timeline: field(row, 1)?,
            flushed: field(row, 2)?,
        })
    }

    /// Creates a physical slot that keeps WAL from now on.
    ///
    /// # Errors
    ///
    /// When the server refuses, because it exists for example (SQLSTATE 42710).
    pub async fn create_slot(&mut self, slot: &str) -> Result<(), ReplicationError> {
        let slot = crate::sql::quote_identifier(slot);
        self.command(&format!("CREATE_REPLICATION_SLOT {slot} PHYSICAL RESERVE_WAL"))
            .await?;
        Ok(())
    }

    /// The content of a timeline's history file.
    ///
    /// # Errors
    ///
    /// When the server has none.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Bytes, ReplicationError> {
        let rows = self.command(&format!("TIMELINE_HISTORY {timeline}")).await?;
        rows.into_iter()
            .next()
            .and_then(|mut row| row.pop().flatten())
            .ok_or_else(|| ReplicationError::Unexpected("a history without content".to_owned()))
    }

    /// Begins a stream. `Some` when the timeline has no more WAL from there: no stream has begun.
    ///
    /// # Errors
    ///
    /// When the server refuses: the slot is missing or in use, the WAL is gone.
    pub async fn start(
        &mut self,
        slot: Option<&str>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<Option<StreamMessage>, ReplicationError> {
        let slot = slot
            .map(|slot| format!("SLOT {} ", crate::sql::quote_identifier(slot)))
            .unwrap_or_default();
        self.send_query(&format!(
            "START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}"
        ))
        .await?;
        let (tag, body) = self.read().await?;
        match tag {
            b'W' => Ok(None),
            b'E' => {
                let error = server_error(&body);
                self.until_ready().await?;
                Err(error)
            }
            _ => {
                let rows = self.rows(Some((tag, body))).await?;
                Ok(Some(StreamMessage::TimelineEnded(next_timeline(&rows)?)))
            }
        }
    }

    /// The next message of the stream. Not safe to drop while it waits, but after [`Self::has_message`].
    ///
    /// # Errors
    ///
    /// When the connection breaks or the server ends the stream with an error.
    pub async fn next(&mut self) -> Result<StreamMessage, ReplicationError> {
        loop {
            let (tag, mut body) = self.read().await?;
            match tag {
                b'd' if body.first() == Some(&b'w') && body.len() >= 25 => {
                    body.advance(1);
                    let start = Lsn::new(body.get_u64());
                    body.advance(16);
                    return Ok(StreamMessage::Data { start, bytes: body });
                }
                b'd' if body.first() == Some(&b'k') && body.len() >= 18 => {
                    body.advance(1);
                    let end = Lsn::new(body.get_u64());
                    body.advance(8);
                    let reply = body.get_u8() == 1;
                    return Ok(StreamMessage::KeepAlive { end, reply });
                }
                b'c' => {
                    // CopyDone from us, then the result and the end of the command.
                    self.wire.write_all(&[b'c', 0, 0, 0, 4]).await?;
                    self.wire.flush().await?;
                    let rows = self.rows(None).await?;
                    return Ok(StreamMessage::TimelineEnded(next_timeline(&rows)?));
                }
                b'E' => return Err(server_error(&body)),
                // The end of the command, from a server that shuts down (`WalSndDone` in
                // `src/backend/replication/walsender.c`).
                b'C' => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
                b'N' | b'S' => {}
                other => {
                    return Err(ReplicationError::Unexpected(format!(
                        "message {:?} in the stream",
                        char::from(other)
                    )));
                }
            }
        }
    }

    /// Whether a whole message has arrived already.
    pub fn has_message(&self) -> bool {
        let Some(head) = self.buffer.get(..5) else {
            return false;
        };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        self.buffer.len() > length
    }

    /// Waits until a whole message has arrived; safe to drop.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub async fn readable(&mut self) -> Result<(), ReplicationError> {
        while !self.has_message() {
            if self.buffer.capacity() - self.buffer.len() < LEAST_ROOM {
                self.buffer.reserve(READ);
            }
            if self.wire.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(())
    }

    /// Tells the server how far we are. WAL up to `flushed` must be durable here.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub async fn report(&mut self, written: Lsn, flushed: Lsn) -> Result<(), ReplicationError> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let clock = now.as_micros() as u64 - EPOCH * 1_000_000;
        let mut message = BytesMut::with_capacity(39);
        message.put_u8(b'd');
        message.put_u32(4 + 34);
        message.put_u8(b'r');
        message.put_u64(written.as_u64());
        message.put_u64(flushed.as_u64());
        // Nothing is applied here.
        message.put_u64(0);
        message.put_u64(clock);
        message.put_u8(0);
        self.wire.write_all(&message).await?;
        self.wire.flush().await?;
        Ok(())
    }

    async fn command(&mut self, text: &str) -> Result<Vec<Row>, ReplicationError> {
        self.send_query(text).await?;
        self.rows(None).await
    }

    async fn send_query(&mut self, text: &str) -> Result<(), ReplicationError> {
        let mut message = BytesMut::new();
        message.put_u8(b'Q');
        message.put_u32(text.len() as u32 + 5);
        message.put_slice(text.as_bytes());
        message.put_u8(0);
        self.wire.write_all(&message).await?;
        self.wire.flush().await?;
        Ok(())
    }

    /// The rows of a command, up to the end of the command.
    async fn rows(&mut self, first: Option<(u8, Bytes)>) -> Result<Vec<Row>, ReplicationError> {
        let mut rows = Vec::new();
        let mut error = None;
        let mut next = first;
        loop {
            let (tag, body) = match next.take() {
                Some(message) => message,
                None => self.read().await?,
            };
            match tag {
                b'D' => rows.push(row(body)?),
                b'E' => error = Some(server_error(&body)),
                b'Z' => return error.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    async fn until_ready(&mut self) -> Result<(), ReplicationError> {
        while self.read().await?.0 != b'Z' {}
        Ok(())
    }

    /// A whole message: its tag and its body.
    async fn read(&mut self) -> Result<(u8, Bytes), ReplicationError> {
        self.readable().await?;
        let tag = self.buffer.get_u8();
        let length = self.buffer.get_u32() as usize;
        let Some(body) = length.checked_sub(4).filter(|length| *length <= LARGEST_MESSAGE) else {
            return Err(ReplicationError::Unexpected(format!(
                "a message of {length} bytes"
            )));
        };
        Ok((tag, self.buffer.split_to(body).freeze()))
    }
}

impl std::fmt::Debug for ReplicationConnection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ReplicationConnection")
            .finish_non_exhaustive()
    }
}

async fn start(
    lent: LentWire,
    parameters: &ConnectionParameters,
    password: &PasswordLookup,
) -> Result<tokio_postgres::CancelToken, ReplicationError> {
    let config = establish::configuration(parameters, password);
    let started = config.connect_raw(lent, Lent).await;
    started
        .map(|(client, _)| client.cancel_token())
        .map_err(ReplicationError::Startup)
}

fn field<T: std::str::FromStr>(row: &[Option<Bytes>], at: usize) -> Result<T, ReplicationError> {
    row.get(at)
        .and_then(Option::as_ref)
        .and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok())
        .ok_or_else(|| ReplicationError::Unexpected(format!("column {at} of its answer")))
}

fn next_timeline(rows: &[Row]) -> Result<Option<NextTimeline>, ReplicationError> {
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(NextTimeline {
        timeline: field(row, 0)?,
        start: field(row, 1)?,
    }))
}

/// A `DataRow`.
fn row(mut body: Bytes) -> Result<Row, ReplicationError> {
    let short = || ReplicationError::Unexpected("a row that is cut".to_owned());
    if body.len() < 2 {
        return Err(short());
    }
    let columns = body.get_u16();
    let mut row = Vec::new();
    for _ in 0..columns {
        if body.len() < 4 {
            return Err(short());
        }
        // -1 is NULL.
        row.push(match usize::try_from(body.get_i32()) {
            Ok(length) if length > body.len() => return Err(short()),
            Ok(length) => Some(body.split_to(length)),
            Err(_) => None,
        });
    }
    Ok(row)
}

/// An `ErrorResponse`: fields of a letter and a text.
fn server_error(body: &[u8]) -> ReplicationError {
    let (mut code, mut message) = (String::new(), String::new());
    for field in body.split(|&byte| byte == 0) {
        let text = || String::from_utf8_lossy(&field[1..]).into_owned();
        match field.first() {
            Some(b'C') => code = text(),
            Some(b'M') => message = text(),
            _ => {}
        }
    }
    ReplicationError::Server { code, message }
}

/// The startup packet on its way.
enum Startup {
    /// It comes with the first write.
    Awaited,
    /// What is left of it, and the length of the packet that it stands for.
    Sending(Bytes, usize),
    /// It was sent.
    Sent,
}

/// A wire that is taken back when the session has begun.
struct LentWire {
    wire: Arc<Mutex<Wire>>,
    startup: Startup,
}

impl LentWire {
    fn with<T>(&self, work: impl FnOnce(Pin<&mut Wire>) -> T) -> T {
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        work(Pin::new(&mut *wire))
    }
}

impl AsyncRead for LentWire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|wire| wire.poll_read(context, buffer))
    }
}

impl AsyncWrite for LentWire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let lent = self.get_mut();
        if matches!(lent.startup, Startup::Awaited) {
            lent.startup = Startup::Sending(with_replication(bytes)?, bytes.len());
        }
        while let Startup::Sending(rest, length) = &mut lent.startup {
            if rest.is_empty() {
                let length = *length;
                lent.startup = Startup::Sent;
                return Poll::Ready(Ok(length));
            }
            let mut wire = lent.wire.lock().unwrap_or_else(PoisonError::into_inner);
            let written = ready!(Pin::new(&mut *wire).poll_write(context, rest))?;
            rest.advance(written);
        }
        lent.with(|wire| wire.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|wire| wire.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|wire| wire.poll_shutdown(context))
    }
}

/// A startup packet with one more parameter. The packet ends with a zero byte after the last of them.
fn with_replication(packet: &[u8]) -> io::Result<Bytes> {
    let wrong = || io::Error::other("the session does not begin with a startup packet");
    let (length, rest) = packet.split_first_chunk::<4>().ok_or_else(wrong)?;
    let Some((0, parameters)) = rest.split_last().map(|(last, parameters)| (*last, parameters)) else {
        return Err(wrong());
    };
    let length = u32::from_be_bytes(*length);
    if length as usize != packet.len() {
        return Err(wrong());
    }
    let mut whole = BytesMut::with_capacity(packet.len() + REPLICATION.len());
    whole.put_u32(length + REPLICATION.len() as u32);
    whole.put_slice(parameters);
    whole.put_slice(REPLICATION);
    whole.put_u8(0);
    Ok(whole.freeze())
}

impl TlsStream for LentWire {
    fn channel_binding(&self) -> ChannelBinding {
        self.wire
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .channel_binding()
    }
}

/// Takes the wire as it is.
struct Lent;

impl TlsConnect<LentWire> for Lent {
    type Stream = LentWire;
    type Error = io::Error;
    type Future = std::future::Ready<Result<LentWire, io::Error>>;

    fn connect(self, wire: LentWire) -> Self::Future {
        std::future::ready(Ok(wire))
    }
}
