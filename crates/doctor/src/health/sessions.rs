//! The sessions of one run on one server: at most three at any moment, reused, reconnected to another
//! database where a question needs that.
//!
//! Questions are sent with the simple query protocol and answered as JSON rows: one round trip each, no
//! prepared statement that a pooler could lose, and one place that turns rows into types.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_types::diagnostic::Diagnose as _;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::failure::Failure;

/// How many sessions a run has on one server at most.
pub const MOST_SESSIONS: usize = 3;
/// How long a question may take on the server.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a question may wait for a lock.
pub const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the client waits for an answer: longer than the server lets a statement run, for a server or
/// a network that does not answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(7);
/// How long an ended session is waited for before another is opened in its place.
const ENDING_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a backend that has gone from `pg_stat_activity` still counts as a connection, at most, on a machine
/// that is not overloaded.
const LEAVING: Duration = Duration::from_millis(2);

/// Settings that every session gets when it connects.
const SESSION_SETTINGS: &str =
    "-c lock_timeout=500ms -c statement_timeout=5s -c default_transaction_read_only=on";
/// How every session names itself.
const APPLICATION: &str = "pgmahout";

/// Why no connection could be had.
#[derive(Debug, Clone)]
pub struct ConnectFailure {
    /// The chain of causes in one line, without any secret.
    pub message: String,
    /// SQLSTATE, where it was the server that refused.
    pub code: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ConnectFailure {
    /// Whether the server has no connection left (SQLSTATE 53300, too_many_connections).
    pub fn is_full(&self) -> bool {
        self.code.as_deref() == Some("53300")
    }
}

/// How to open a session on one server.
#[async_trait]
pub trait Connect: Send + Sync {
    /// Opens a session on `database`, or on the one of the connection parameters, with the timeouts and
    /// the read-only mode in force from its first statement.
    ///
    /// # Errors
    ///
    /// Why there is none.
    async fn connect(&self, database: Option<&str>) -> Result<Connection, ConnectFailure>;
}

/// Opens sessions as the connection parameters say.
#[derive(Debug, Clone)]
pub struct Opener {
    parameters: ConnectionParameters,
}

impl Opener {
    /// Sessions with these parameters.
    pub fn new(parameters: &ConnectionParameters) -> Self {
        Self {
            parameters: parameters
                .with_application_name(APPLICATION)
                .with_options_appended(SESSION_SETTINGS),
        }
    }
}

#[async_trait]
impl Connect for Opener {
    async fn connect(&self, database: Option<&str>) -> Result<Connection, ConnectFailure> {
        let opened = match database {
            Some(name) => Connection::open_secured(&self.parameters.with_database(name)).await,
            None => Connection::open_secured(&self.parameters).await,
        };
        opened.map_err(|error| {
            let message = super::failure::chain(&error);
            // A pooler passes no settings on (PgBouncer: "unsupported startup parameter").
            let hint = if message.contains("startup parameter") {
                Some("this looks like a pooler: give the server's own host and port, and the pooler with --pooler".to_owned())
            } else {
                error.hint()
            };
            ConnectFailure { message, code: error.sqlstate().map(str::to_owned), hint }
        })
    }
}

struct Session {
    /// None is the database of the connection parameters.
    database: Option<String>,
    link: Arc<Connection>,
}

#[derive(Default)]
struct State {
    idle: Vec<Session>,
    /// Every session that is open, in use or not.
    links: Vec<Weak<Connection>>,
    open: usize,
    /// How many the server was found to allow, where it is fewer than [`MOST_SESSIONS`].
    lost: usize,
}

/// The sessions of one run on one server.
pub struct Sessions {
    connect: Arc<dyn Connect>,
    permits: Semaphore,
    state: Mutex<State>,
    /// Held while one session ends: the next to end may be the one that is asked about it.
    ending: tokio::sync::Mutex<()>,
}

/// A session in use; it goes back when dropped.
pub struct Lease<'a> {
    sessions: &'a Sessions,
    session: Option<Session>,
    _permit: SemaphorePermit<'a>,
}

impl Sessions {
    /// No session yet.
    pub fn new(connect: Arc<dyn Connect>) -> Self {
        Self {
            connect,
            permits: Semaphore::new(MOST_SESSIONS),
            state: Mutex::default(),
            ending: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the first session, on the database of the connection parameters.
    ///
    /// # Errors
    ///
    /// Why the server could not be reached.
    pub async fn open_first(&self) -> Result<(), ConnectFailure> {
        let session = self.open(None).await?;
        let mut state = self.state();
        state.open += 1;
        state.idle.push(session);
        Ok(())
    }

    /// A session on `database`; None is the one of the connection parameters.
    ///
    /// # Errors
    ///
    /// [`Failure::Connection`] where none can be had.
    pub async fn lease(&self, database: Option<&str>) -> Result<Lease<'_>, Failure> {
        loop {
            let permit = self.permits.acquire().await.map_err(|_| Failure::Connection {
                message: "the run has ended".to_owned(),
            })?;
            let (reuse, replaced, may_open) = {
                let mut state = self.state();
                if let Some(index) = state
                    .idle
                    .iter()
                    .position(|session| session.database.as_deref() == database)
                {
                    (Some(state.idle.swap_remove(index)), None, false)
                } else if state.open + state.lost < MOST_SESSIONS {
                    state.open += 1;
                    (None, None, true)
                } else {
                    (None, state.idle.pop(), false)
                }
            };
            if let Some(session) = reuse {
                return Ok(Lease {
                    sessions: self,
                    session: Some(session),
                    _permit: permit,
                });
            }
            if let Some(old) = replaced {
                self.end(old).await;
            } else if !may_open {
                // Another lease has it for a moment, to see an old session end.
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            match self.open(database).await {
                Ok(session) => {
                    return Ok(Lease {
                        sessions: self,
                        session: Some(session),
                        _permit: permit,
                    });
                }
                Err(failure) => {
                    let others = {
                        let mut state = self.state();
                        state.open -= 1;
                        let others = state.open > 0;
                        if failure.is_full() && others {
                            state.lost += 1;
                        }
                        others
                    };
                    if failure.is_full() && others {
                        // The server has no more to give: go on with those there are.
                        permit.forget();
                        continue;
                    }
                    return Err(Failure::Connection {
                        message: failure.message,
                    });
                }
            }
        }
    }

    async fn open(&self, database: Option<&str>) -> Result<Session, ConnectFailure> {
        let link = Arc::new(self.connect.connect(database).await?);
        self.state().links.push(Arc::downgrade(&link));
        Ok(Session {
            database: database.map(str::to_owned),
            link,
        })
    }

    /// Ends a session and waits, as far as another session can tell, until the server has let it go, so
    /// that there are never more than three.
    async fn end(&self, old: Session) {
        let _one_at_a_time = self.ending.lock().await;
        let process = old.link.backend_pid();
        farewell(old).await;
        let watcher = {
            let mut state = self.state();
            state.links.retain(|link| link.strong_count() > 0);
            state.links.iter().find_map(Weak::upgrade)
        };
        let Some(watcher) = watcher else {
            // Nobody to ask: a backend ends within milliseconds of its client.
            tokio::time::sleep(Duration::from_millis(5)).await;
            return;
        };
        // It may be in use: what it is asked now is answered after what it was asked before.
        let question = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {process}");
        let wait = async {
            while let Ok(rows) = raw_rows(&watcher, &question).await
                && rows.first().is_some_and(|count| count != "0")
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // A backend takes its name off pg_stat_activity before it leaves the list by which connections are
            // counted: exit callbacks run last in, first out (`InitPostgres`, `shmem_exit`).
            tokio::time::sleep(LEAVING).await;
        };
        // Not ended in time: then there is a fourth for a moment, which harms less than no answer.
        let _ = tokio::time::timeout(ENDING_TIMEOUT, wait).await;
    }

    /// Goes on with one session fewer, for a run that changes databases: a backend outlives its session by
    /// a moment, and must not be the fourth while the next is already there.
    pub fn leave_room_for_endings(&self) {
        self.state().lost += 1;
        self.permits.forget_permits(1);
    }

    /// Ends all sessions that nobody uses.
    pub async fn close(&self) {
        let idle = std::mem::take(&mut self.state().idle);
        futures::future::join_all(idle.into_iter().map(farewell)).await;
    }
}

/// Tells the server that the session ends.
async fn farewell(session: Session) {
    // Nobody else has it: whoever asks on it to see another end does so before this one may.
    if let Ok(connection) = Arc::try_unwrap(session.link) {
        connection.close().await;
    }
}

impl Lease<'_> {
    /// Asks one question; each row comes back as `T`, its columns by name.
    ///
    /// # Errors
    ///
    /// [`Failure`]: refused, locked, timed out, broken, or not as `T` expects.
    pub async fn rows<T: DeserializeOwned>(&mut self, sql: &str) -> Result<Vec<T>, Failure> {
        self.ask(&as_json(sql)).await
    }

    /// As [`Lease::rows`], for a question of the user's own: names are looked up as in the user's sessions,
    /// for this statement alone.
    ///
    /// # Errors
    ///
    /// As [`Lease::rows`].
    pub async fn rows_as_user<T: DeserializeOwned>(&mut self, sql: &str) -> Result<Vec<T>, Failure> {
        self.ask(&format!("SET LOCAL search_path TO DEFAULT; {}", as_json(sql)))
            .await
    }

    async fn ask<T: DeserializeOwned>(&mut self, question: &str) -> Result<Vec<T>, Failure> {
        self.execute(question)
            .await?
            .iter()
            .map(|text| {
                serde_json::from_str(text).map_err(|error| Failure::Answer {
                    message: error.to_string(),
                })
            })
            .collect()
    }

    /// Sends a statement as it is; answers the first column of each row.
    ///
    /// # Errors
    ///
    /// [`Failure`]: refused, locked, timed out, broken.
    pub async fn execute(&mut self, sql: &str) -> Result<Vec<String>, Failure> {
        let Some(session) = &self.session else {
            return Err(Failure::Connection {
                message: "the session has ended".to_owned(),
            });
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, raw_rows(&session.link, sql)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => {
                if error.is_closed() {
                    self.session = None;
                }
                Err(Failure::from_sql(&error))
            }
            Err(_) => {
                // Its answer may still come; nobody else may take it for theirs.
                self.session = None;
                Err(Failure::TimedOut {
                    limit: ANSWER_TIMEOUT,
                })
            }
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.sessions.state();
        match self.session.take() {
            Some(session) if !session.link.is_closed() => state.idle.push(session),
            _ => state.open -= 1,
        }
    }
}

/// A question whose answer is one JSON object for each row.
fn as_json(sql: &str) -> String {
    format!("SELECT pg_catalog.row_to_json(answer)::pg_catalog.text FROM ({sql}) AS answer")
}

/// The first column of each row, as text.
async fn raw_rows(client: &Client, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        })
        .collect())
}
