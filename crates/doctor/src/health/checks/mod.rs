//! The checks, by what they look at. Each file holds its questions to the server beside the judgement of
//! the answers; [`standard`] lists them all, in the order that reports keep.

mod backup;
mod cache;
mod checksums;
mod cluster;
mod connections;
pub mod custom;
pub mod disk;
pub mod host;
mod indexes;
pub mod interval;
pub mod locality;
mod locks;
pub mod log;
pub mod pool;
mod prepared;
mod queries;
mod receiver;
mod replication;
mod sequences;
mod server;
mod settings;
mod slots;
mod standby;
pub mod survey;
pub mod tls;
mod transactions;
mod vacuum;
mod wal;
mod xmin;

use async_trait::async_trait;
use futures::future::BoxFuture;

use super::check::{Check, Verdict};
use super::context::Context;
use super::failure::Failure;
use super::limits::Limit;

/// Every check that needs no configuration of its own to exist. Those of a pooler, a log file that the
/// configuration names, and the user's own are added by whoever knows the configuration.
pub fn standard() -> Vec<Box<dyn Check>> {
    let mut checks: Vec<Box<dyn Check>> = [
        server::checks(),
        connections::checks(),
        queries::checks(),
        locks::checks(),
        cache::checks(),
        transactions::checks(),
        replication::checks(),
        receiver::checks(),
        standby::checks(),
        slots::checks(),
        wal::checks(),
        vacuum::checks(),
        xmin::checks(),
        prepared::checks(),
        sequences::checks(),
        indexes::checks(),
        checksums::checks(),
        settings::checks(),
        backup::checks(),
        cluster::checks(),
    ]
    .into_iter()
    .flatten()
    .map(|question| Box::new(question) as Box<dyn Check>)
    .collect();
    checks.extend(disk::checks());
    checks.extend(tls::checks());
    checks.extend(host::checks());
    checks
}

type Ask = for<'a> fn(&'a Context) -> BoxFuture<'a, Result<Verdict, Failure>>;

/// A check that is a function.
pub struct Question {
    id: &'static str,
    title: &'static str,
    limits: &'static [Limit],
    grant: &'static str,
    needs_server: bool,
    ask: Ask,
}

impl Question {
    /// A check of this id that asks the server.
    pub const fn new(id: &'static str, title: &'static str, limits: &'static [Limit], ask: Ask) -> Self {
        Self {
            id,
            title,
            limits,
            grant: "GRANT pg_monitor TO {role}",
            needs_server: true,
            ask,
        }
    }

    /// What shows the role that which it may not see.
    pub const fn grant(mut self, grant: &'static str) -> Self {
        self.grant = grant;
        self
    }

    /// It can look without a session.
    pub const fn without_server(mut self) -> Self {
        self.needs_server = false;
        self
    }
}

#[async_trait]
impl Check for Question {
    fn id(&self) -> &str {
        self.id
    }

    fn title(&self) -> &str {
        self.title
    }

    fn limits(&self) -> &[Limit] {
        self.limits
    }

    fn grant(&self) -> &str {
        self.grant
    }

    fn needs_server(&self) -> bool {
        self.needs_server
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        (self.ask)(context).await
    }
}

/// `1 session`, `2 sessions`.
pub(super) fn plural(count: usize, one: &str, many: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {many}")
    }
}

/// SQL for a statement's first characters on one line, and nothing of one that may carry a password.
macro_rules! shown_query {
    ($column:literal) => {
        concat!(
            "CASE WHEN ",
            $column,
            " ~* 'password' THEN '(hidden: it mentions a password)' ELSE left(regexp_replace(",
            $column,
            ", '\\s+', ' ', 'g'), 100) END"
        )
    };
}
pub(crate) use shown_query;

/// SQL that is true of the sessions of a health run: they are looked past where sessions are counted.
macro_rules! our_session {
    () => {
        "(application_name = 'pgmahout' AND usename = current_user \
          AND backend_start > clock_timestamp() - interval '1 minute')"
    };
}
pub(crate) use our_session;
