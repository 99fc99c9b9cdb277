//! One SQL connection, made as libpq would make it.
//!
//! [`Connection::open`] walks hosts and addresses, negotiates TLS itself (tokio-postgres is handed a
//! stream that is ready for the startup packet), checks the kind of session that was asked for, and keeps
//! a task that drives the protocol. The value dereferences to [`tokio_postgres::Client`].

mod cancel;
mod error;
mod establish;
mod failure;
mod observer;
mod open;
mod probe;
pub mod replication;
mod socket;
mod wire;

pub use cancel::{CancelError, CancelHandle};
pub use error::{ConnectError, ConnectErrorKind};

use crate::params::{AuthenticationMethod, ConnectionParameters};
use pgmahout_types::version::ServerVersion;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinHandle;

pub use crate::tls::TlsFacts;
pub use probe::{ProbeError, served_certificates};

/// Notices kept for [`Connection::notices`]; older ones are dropped.
const MOST_NOTICES: usize = 1000;

/// How long a server may take to read the farewell.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(5);

/// A message of the server that belongs to no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `NOTICE`, `WARNING`, ... in the server's language.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// Detail, where there is one.
    pub detail: Option<String>,
    /// The server's hint, where there is one.
    pub hint: Option<String>,
}

type Notices = Arc<Mutex<VecDeque<Notice>>>;

/// An open connection. Dropping it ends the session; [`Connection::close`] also waits for that. A statement
/// that runs at that time goes on in the server until it ends: cancel it first, by
/// [`Connection::cancel_handle`], or bound it by `statement_timeout`.
pub struct Connection {
    client: tokio_postgres::Client,
    driver: JoinHandle<()>,
    facts: Facts,
    notices: Notices,
}

/// What was learnt while connecting.
struct Facts {
    parameters: ConnectionParameters,
    address: socket::Address,
    server_version: ServerVersion,
    reported: BTreeMap<&'static str, String>,
    backend_pid: i32,
    authentication: AuthenticationMethod,
    tls: Option<TlsFacts>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("to", &self.facts.parameters.describe())
            .field("server_version", &self.facts.server_version)
            .field("backend_pid", &self.facts.backend_pid)
            .finish_non_exhaustive()
    }
}

/// Leaves nothing on the search path but the system's own schema.
const SECURE_SEARCH_PATH: &str = "SELECT pg_catalog.set_config('search_path', 'pg_catalog', false)";

impl Connection {
    /// Connects to the first host and address that gives a session of the wanted kind.
    ///
    /// Costs no query of its own: version, recovery state and process id come with the server's greeting.
    /// Dropping the future ends a session that is half open.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] with every host and address that was tried, and why each failed.
    pub async fn open(parameters: &ConnectionParameters) -> Result<Self, ConnectError> {
        open::open(parameters).await
    }

    /// As [`Connection::open`], with a `search_path` of `pg_catalog` alone, as PostgreSQL's own programs set
    /// it (`ALWAYS_SECURE_SEARCH_PATH_SQL` in `src/include/common/connect.h`).
    ///
    /// Whoever may create functions in a database could otherwise have them called in place of the
    /// system's, with the rights of the role that connects. For every session in which our own statements
    /// run in a database of somebody else's; other tables are then named with their schema.
    ///
    /// # Errors
    ///
    /// As [`Connection::open`].
    pub async fn open_secured(parameters: &ConnectionParameters) -> Result<Self, ConnectError> {
        let connection = Self::open(parameters).await?;
        match connection.simple_query(SECURE_SEARCH_PATH).await {
            Ok(_) => Ok(connection),
            Err(error) => Err(ConnectError::of_session(connection.parameters(), &error)),
        }
    }

    /// The server's version as it reports it. PgBouncer's administration console reports its own.
    pub fn server_version(&self) -> ServerVersion {
        self.facts.server_version
    }

    /// The parameters of this connection, narrowed to the host and address that were reached: opening them
    /// again, or handing them to a client program, reaches the same server.
    pub fn parameters(&self) -> &ConnectionParameters {
        &self.facts.parameters
    }

    /// A parameter that the server reported when the session began: `server_version`, `server_encoding`,
    /// `TimeZone`, `in_hot_standby`, `default_transaction_read_only`, `is_superuser`,
    /// `session_authorization`, `integer_datetimes`, `standard_conforming_strings`, `search_path` (18).
    pub fn reported_parameter(&self, name: &str) -> Option<&str> {
        self.facts.reported.get(name).map(String::as_str)
    }

    /// The process id of the server process; PgBouncer gives one of its own.
    pub fn backend_pid(&self) -> i32 {
        self.facts.backend_pid
    }

    /// How the server had this client prove who it is.
    pub fn authentication_method(&self) -> AuthenticationMethod {
        self.facts.authentication
    }

    /// What is known about the encryption, `None` for a plain session.
    pub fn tls(&self) -> Option<&TlsFacts> {
        self.facts.tls.as_ref()
    }

    /// Takes the notices that have come in since the last call.
    pub fn notices(&self) -> Vec<Notice> {
        self.notices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .collect()
    }

    /// What cancels a running statement of this connection from another task.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle::new(
            self.client.cancel_token(),
            self.facts.parameters.clone(),
            self.facts.address.clone(),
        )
    }

    /// The same as [`Connection::cancel_handle`].
    pub fn cancel_token(&self) -> CancelHandle {
        self.cancel_handle()
    }

    /// Ends the session and waits until the server has been told.
    pub async fn close(self) {
        let Self { client, driver, .. } = self;
        drop(client);
        // The driver ends once the farewell is sent; what goes wrong with that has nothing to add here, and
        // a server that takes nothing any more is not waited for.
        let _ = tokio::time::timeout(FAREWELL, driver).await;
    }
}

impl Deref for Connection {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}
