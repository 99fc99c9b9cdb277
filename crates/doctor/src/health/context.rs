//! What a check is given: the sessions, the facts, the thresholds, and what the run has already seen.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use super::checks::survey::{self, Survey};
use super::facts::Facts;
use super::failure::Failure;
use super::limits::{Limits, Thresholds};
use super::runner::Fleet;
use super::sample::{Sample, Window};
use super::select::Selection;
use super::sessions::{ConnectFailure, Sessions};
use super::sources::Sources;
use super::target::Target;

/// How the server was reached.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Connecting and the first answer.
    pub elapsed: Duration,
    /// Why not, where it was not.
    pub failure: Option<ConnectFailure>,
}

/// What a check is given.
pub struct Context {
    pub(super) target: Target,
    pub(super) sessions: Sessions,
    pub(super) reach: Reach,
    pub(super) facts: Result<Facts, Failure>,
    pub(super) limits: Arc<Limits>,
    pub(super) selection: Arc<Selection>,
    pub(super) sources: Sources,
    pub(super) fleet: Arc<Fleet>,
    pub(super) interval: Option<Duration>,
    pub(super) previous: Option<Sample>,
    pub(super) current: Mutex<Sample>,
    pub(super) window: OnceCell<Result<Option<Window>, Failure>>,
    pub(super) survey: OnceCell<Arc<Survey>>,
}

impl Context {
    /// The server that is looked at.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How it was reached.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// What is known of the server.
    ///
    /// # Errors
    ///
    /// Where it could not be asked.
    pub fn facts(&self) -> Result<&Facts, Failure> {
        self.facts.as_ref().map_err(Clone::clone)
    }

    /// As [`Context::facts`], for a check that needs to see other sessions' statistics.
    ///
    /// # Errors
    ///
    /// [`Failure::Denied`] where the role may not; NULLs would otherwise pass for zeros.
    pub fn facts_with_statistics(&self) -> Result<&Facts, Failure> {
        let facts = self.facts()?;
        if facts.sees_statistics {
            return Ok(facts);
        }
        Err(Failure::Denied {
            message: format!(
                "the role {} does not see other roles' sessions and statistics",
                facts.role
            ),
        })
    }

    /// The thresholds in force for a limit's id.
    pub fn limit(&self, id: &str) -> Option<Thresholds> {
        self.limits.get(id)
    }

    /// Whether the check was asked for by name.
    pub fn is_asked_for(&self, id: &str) -> bool {
        self.selection.asks_for(id)
    }

    /// What there is beside the server.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The other targets of this run.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Asks a question on the database of the connection parameters.
    ///
    /// # Errors
    ///
    /// [`Failure`]: no session, refused, locked, timed out, not as `T` expects.
    pub async fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, Failure> {
        self.sessions.lease(None).await?.rows(sql).await
    }

    /// As [`Context::rows`], for a question with exactly one row.
    ///
    /// # Errors
    ///
    /// As [`Context::rows`], and [`Failure::Answer`] where there is no row.
    pub async fn row<T: DeserializeOwned>(&self, sql: &str) -> Result<T, Failure> {
        self.rows(sql).await?.pop().ok_or_else(|| Failure::Answer {
            message: "no row where one was expected".to_owned(),
        })
    }

    /// The sessions, for questions about another database.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The last run's sample of this server.
    pub fn previous(&self) -> Option<&Sample> {
        self.previous.as_ref()
    }

    /// Adds to what the next run will find.
    pub fn remember(&self, change: impl FnOnce(&mut Sample)) {
        change(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Since when something has been so, in seconds since the epoch by the server's clock: now, if the last
    /// run did not see it. To be called once a run while it holds.
    pub fn holds_since(&self, key: &str, now: f64) -> f64 {
        let since = self
            .previous
            .as_ref()
            .and_then(|sample| sample.since.get(key))
            .copied()
            .unwrap_or(now);
        self.remember(|sample| {
            sample.since.insert(key.to_owned(), since);
        });
        since
    }

    /// What the databases did over the interval that was asked for, or else since the last run.
    ///
    /// # Errors
    ///
    /// [`Failure::Source`] where there is neither; otherwise why the counters could not be read.
    pub async fn window(&self) -> Result<&Window, Failure> {
        let answer = self
            .window
            .get_or_init(|| super::checks::interval::observe(self))
            .await;
        match answer {
            Ok(Some(window)) => Ok(window),
            Ok(None) => Err(Failure::Source {
                reason: "counters say nothing without an earlier sample to compare with: none is stored yet"
                    .to_owned(),
            }),
            Err(failure) => Err(failure.clone()),
        }
    }

    /// The tables, indexes and sequences of all databases that need a look, collected in one pass each.
    pub async fn survey(&self) -> &Survey {
        self.survey
            .get_or_init(|| async { Arc::new(survey::collect(self).await) })
            .await
    }
}
