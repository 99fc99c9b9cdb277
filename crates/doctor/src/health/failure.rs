//! Why a check could not answer. The runner turns it into UNKNOWN; the other checks go on.

use std::error::Error;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::result::Finding;

/// A check that could not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The server refused: the role lacks a privilege.
    #[error("permission denied: {message}")]
    Denied {
        /// The server's words.
        message: String,
    },
    /// Something holds a lock that the question needs.
    #[error("gave up after 500 ms behind a lock: {message}")]
    Locked {
        /// The server's words.
        message: String,
    },
    /// The question took longer than it may.
    #[error("gave up: no answer within {}", super::measure::human_seconds(limit.as_secs_f64()))]
    TimedOut {
        /// How long was waited.
        limit: Duration,
    },
    /// No session for the question could be had, or it broke.
    #[error("no session: {message}")]
    Connection {
        /// Why not.
        message: String,
    },
    /// The server answered with another error.
    #[error("the server answered: {message} ({code})")]
    Sql {
        /// SQLSTATE.
        code: String,
        /// The server's words.
        message: String,
    },
    /// The answer was not what the check understands.
    #[error("cannot read the answer: {message}")]
    Answer {
        /// What is wrong with it.
        message: String,
    },
    /// What the check reads from does not exist in this build or configuration, or could not be read.
    #[error("{reason}")]
    Source {
        /// One sentence.
        reason: String,
    },
}

impl Failure {
    /// What a server answered to a question.
    pub fn from_sql(error: &tokio_postgres::Error) -> Self {
        let Some(server) = error.as_db_error() else {
            return Self::Connection {
                message: chain(error),
            };
        };
        let message = server.message().to_owned();
        match *server.code() {
            SqlState::INSUFFICIENT_PRIVILEGE => Self::Denied { message },
            SqlState::LOCK_NOT_AVAILABLE => Self::Locked { message },
            SqlState::QUERY_CANCELED => Self::TimedOut {
                limit: super::sessions::STATEMENT_TIMEOUT,
            },
            ref code => Self::Sql {
                code: code.code().to_owned(),
                message,
            },
        }
    }

    /// The UNKNOWN that it means. `grant` is what the check says shows what was denied.
    pub fn into_finding(self, grant: Option<String>) -> Finding {
        let grant = if matches!(self, Self::Denied { .. }) {
            grant
        } else {
            None
        };
        let hint = match &self {
            Self::Locked { .. } => Some(
                "see who holds the lock: SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE \
                 wait_event_type = 'Lock'",
            ),
            Self::TimedOut { .. } => Some("run this check alone with --only, when the server is less busy"),
            Self::Connection { .. } => Some("see the server's log for why the session ended"),
            _ => None,
        };
        let finding = Finding::unknown(self.to_string(), grant);
        match hint {
            Some(hint) => finding.hint(hint),
            None => finding,
        }
    }
}

/// An error and its causes in one line, each once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
