//! Active proof, for after a change: writes a row and follows it everywhere it must arrive.
//!
//! Each part answers as a health check does ([`CheckResult`]), under an id of its own:
//!
//! | id | proves |
//! | --- | --- |
//! | `verify.write` | a row can be written, committed, and read back by another session |
//! | `verify.standbys` | every standby shows the row, and after how long |
//! | `verify.pool` | the row is read and changed through PgBouncer |
//! | `verify.archive` | a WAL segment is archived, and can be read back where `restore_command` is set |
//! | `verify.amcheck` | heap and B-tree indexes are consistent, within a time budget |
//! | `verify.expect` | the extensions, settings and roles that the configuration expects are there |
//!
//! What writes does so in the schema `pgmahout`, which is made for the purpose and dropped afterwards,
//! also when a part fails or the run is cancelled. With `read_only` nothing is written.

mod amcheck;
mod archive;
mod expect;
mod scratch;
mod standbys;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use tokio_util::sync::CancellationToken;

use crate::health::{CheckResult, Finding, Skipped};

/// What must exist on the server: the configuration's `expect:` section.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Extensions, each `name` or `name>=version`; looked for in the database connected to.
    pub extensions: Vec<String>,
    /// Settings and the values they must have, compared as the server normalises them.
    pub settings: BTreeMap<String, String>,
    /// Roles.
    pub roles: Vec<String>,
}

/// What to prove.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Leave out everything that writes.
    pub read_only: bool,
    /// How long the row may take to arrive anywhere.
    pub patience: Duration,
    /// Standbys to read the row from, beside asking the primary what they have replayed.
    pub standbys: Vec<ConnectionParameters>,
    /// A pooler in front of the server.
    pub pooler: Option<ConnectionParameters>,
    /// Tables for amcheck, as `schema.table`; none: as many as the budget allows, in random order.
    pub tables: Vec<String>,
    /// How long amcheck may run; zero leaves it out.
    pub amcheck_budget: Duration,
    /// What must exist.
    pub expected: Expected,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            patience: Duration::from_secs(30),
            standbys: Vec::new(),
            pooler: None,
            tables: Vec::new(),
            amcheck_budget: Duration::from_secs(10),
            expected: Expected::default(),
        }
    }
}

/// Why the proof could not even begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A schema of our name is there, and not ours.
    #[error("the schema \"pgmahout\" exists already and was not made by pgmahout verify")]
    ForeignSchema,
    /// The server refused something that every part needs.
    #[error("cannot {action}")]
    Server {
        /// What was being done.
        action: &'static str,
        /// The server's answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A signal stopped it; the schema was dropped.
    #[error("interrupted; the schema \"pgmahout\" was dropped")]
    Interrupted,
}

impl Diagnose for VerifyError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::ForeignSchema => {
                "rename or drop it, or leave out what writes: pgmahout verify --read-only".into()
            }
            Self::Server { .. } => {
                "connect as a role that may CREATE in the database, or use pgmahout verify --read-only".into()
            }
            Self::Interrupted => "run pgmahout verify again".into(),
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::ForeignSchema => Outcome::Refused,
            Self::Server { .. } => Outcome::Failed,
            Self::Interrupted => Outcome::Interrupted,
        }
    }
}

/// What was proved, and what does not apply.
#[derive(Debug, Clone, Default)]
pub struct Proof {
    /// The answers.
    pub results: Vec<CheckResult>,
    /// What was left out, and why.
    pub skipped: Vec<Skipped>,
}

/// What a part answers.
#[allow(clippy::large_enum_variant, reason = "there are six of them in a run")]
enum Part {
    Found(Finding),
    Skipped(String),
}

impl Proof {
    fn add(&mut self, id: &str, target: &str, part: Part, begun: Instant) {
        match part {
            Part::Found(finding) => {
                self.results
                    .push(CheckResult::new(id, target, finding, begun.elapsed()));
            }
            Part::Skipped(reason) => self.skipped.push(Skipped {
                id: id.to_owned(),
                target: target.to_owned(),
                reason,
            }),
        }
    }
}

/// Proves what the options ask for.
///
/// # Errors
///
/// When the scratch schema cannot be made, or the run was cancelled. A part that fails is a result.
pub async fn run(
    connection: &Connection,
    target: &str,
    options: &VerifyOptions,
    cancellation: &CancellationToken,
) -> Result<Proof, VerifyError> {
    let standby: bool = connection
        .query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])
        .await
        .map_err(|source| VerifyError::Server {
            action: "ask for the server's role",
            source,
        })?
        .get(0);
    let writes = !options.read_only && !standby;
    let why_not = if options.read_only {
        "--read-only"
    } else {
        "the server is a standby, which takes no writes"
    };
    if writes {
        scratch::create(connection).await?;
    }
    let outcome = tokio::select! {
        proof = prove(connection, target, options, writes, why_not) => Ok(proof),
        () = cancellation.cancelled() => Err(VerifyError::Interrupted),
    };
    if writes {
        scratch::remove(connection).await?;
    }
    outcome
}

async fn prove(
    connection: &Connection,
    target: &str,
    options: &VerifyOptions,
    writes: bool,
    why_not: &str,
) -> Proof {
    let mut proof = Proof::default();
    let skipped = || Part::Skipped(why_not.to_owned());

    let begun = Instant::now();
    let part = if writes {
        scratch::write_and_read(connection).await
    } else {
        skipped()
    };
    proof.add("verify.write", target, part, begun);

    let begun = Instant::now();
    let part = if writes {
        standbys::follow(connection, options).await
    } else {
        skipped()
    };
    proof.add("verify.standbys", target, part, begun);

    let begun = Instant::now();
    let part = match (&options.pooler, writes) {
        (None, _) => Part::Skipped("no pooler is named (--pooler DSN)".to_owned()),
        (Some(_), false) => skipped(),
        (Some(pooler), true) => scratch::through_pooler(pooler).await,
    };
    proof.add("verify.pool", target, part, begun);

    let begun = Instant::now();
    let part = if writes {
        archive::switch_and_wait(connection, options.patience).await
    } else {
        skipped()
    };
    proof.add("verify.archive", target, part, begun);

    let begun = Instant::now();
    let part = amcheck::check(connection, options, writes).await;
    proof.add("verify.amcheck", target, part, begun);

    let begun = Instant::now();
    let part = expect::check(connection, &options.expected).await;
    proof.add("verify.expect", target, part, begun);
    proof
}

/// A part that could not do its work, in the server's words.
fn failed(action: &str, error: &tokio_postgres::Error) -> Part {
    let message = error
        .as_db_error()
        .map_or_else(|| error.to_string(), |error| error.message().to_owned());
    Part::Found(Finding::crit(format!("cannot {action}: {message}")))
}
