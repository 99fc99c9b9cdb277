//! Client connections: how many, and those that do nothing.

use serde::Deserialize;

use super::{Question, our_session, plural, shown_query};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};
use crate::health::status::Status;

const USED: &[Limit] = &[Limit::above(
    "connections.used",
    Unit::Ratio,
    Some(0.8),
    Some(0.9),
)];
const IN_TRANSACTION: &[Limit] = &[Limit::above(
    "connections.idle_in_transaction",
    Unit::Seconds,
    Some(300.0),
    Some(600.0),
)];
const IDLE: &[Limit] = &[Limit::above(
    "connections.idle",
    Unit::Count,
    Some(20.0),
    Some(50.0),
)];

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "connections.used",
            "client connections against those allowed",
            USED,
            |context| Box::pin(used(context)),
        ),
        Question::new(
            "connections.idle_in_transaction",
            "longest session idle in a transaction",
            IN_TRANSACTION,
            |context| Box::pin(idle_in_transaction(context)),
        ),
        Question::new(
            "connections.idle",
            "sessions idle for over 30 minutes",
            IDLE,
            |context| Box::pin(idle(context)),
        ),
    ]
}

/// Background processes are in the view too, without a state or a database: only client backends take a
/// connection of `max_connections`.
const USED_BY: &str = concat!(
    "SELECT coalesce(usename::text, '') AS role, coalesce(datname::text, '') AS database,
            coalesce(application_name, '') AS application, coalesce(host(client_addr), 'local') AS client,
            count(*) AS sessions, count(*) FILTER (WHERE state = 'active') AS active
       FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND NOT ",
    our_session!(),
    " GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC"
);

#[derive(Deserialize)]
struct UsedBy {
    role: String,
    database: String,
    application: String,
    client: String,
    sessions: i64,
    active: i64,
}

async fn used(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts_with_statistics()?;
    let setting = |name: &str| facts.number(name).unwrap_or(0);
    let most = setting("max_connections");
    // `reserved_connections` exists since 16.
    let reserved = setting("superuser_reserved_connections") + setting("reserved_connections");
    let allowed = (most - reserved).max(1);
    let groups: Vec<UsedBy> = context.rows(USED_BY).await?;
    let used: i64 = groups.iter().map(|group| group.sessions).sum();
    let share = Measure::ratio(used as f64 / allowed as f64);
    let rows = Rows::new(["role", "database", "application", "client", "sessions", "active"]).with(
        groups.into_iter().map(|group| {
            [
                group.role,
                group.database,
                group.application,
                group.client,
                group.sessions.to_string(),
                group.active.to_string(),
            ]
        }),
    );
    Ok(Finding::judged(
        share,
        context.limit("connections.used"),
        format!("{used} of {allowed} connections are used ({most} less {reserved} reserved)"),
    )
    .figure("connections.used.sessions", Measure::count(used), None)
    .rows(rows)
    .hint(
        "see who holds them (the rows), end what is idle, and put a pooler such as PgBouncer in front: raising \
         max_connections costs a restart and memory",
    )
    .into())
}

const IDLE_IN_TRANSACTION: &str = concat!(
    "SELECT pid, coalesce(usename::text, '') AS role, coalesce(datname::text, '') AS database,
            coalesce(application_name, '') AS application, state,
            extract(epoch FROM clock_timestamp() - state_change)::float8 AS idle,
            extract(epoch FROM clock_timestamp() - xact_start)::float8 AS transaction, ",
    shown_query!("query"),
    " AS query
       FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND state LIKE 'idle in transaction%'
      ORDER BY state_change"
);

#[derive(Deserialize)]
struct IdleInTransaction {
    pid: i64,
    role: String,
    database: String,
    application: String,
    state: String,
    idle: f64,
    transaction: Option<f64>,
    query: String,
}

async fn idle_in_transaction(context: &Context) -> Result<Verdict, Failure> {
    context.facts_with_statistics()?;
    let limit = context.limit("connections.idle_in_transaction");
    let sessions: Vec<IdleInTransaction> = context.rows(IDLE_IN_TRANSACTION).await?;
    let Some(longest) = sessions.first() else {
        return Ok(Finding::judged(
            Measure::seconds(0.0),
            limit,
            "no session is idle in a transaction",
        )
        .into());
    };
    let idle = Measure::seconds(longest.idle.max(0.0));
    let evidence = format!(
        "{} idle in a transaction, the longest for {idle}: pid {}, role {}, database {}, after: {}",
        plural(sessions.len(), "session is", "sessions are"),
        longest.pid,
        longest.role,
        longest.database,
        longest.query
    );
    let hint = format!(
        "it holds locks and keeps vacuum from removing dead rows: end it with SELECT pg_terminate_backend({}); \
         and set idle_in_transaction_session_timeout so that none stays",
        longest.pid
    );
    let rows = Rows::new([
        "pid",
        "role",
        "database",
        "application",
        "state",
        "idle",
        "transaction",
        "query",
    ])
    .with(sessions.into_iter().map(|session| {
        [
            session.pid.to_string(),
            session.role,
            session.database,
            session.application,
            session.state,
            Measure::seconds(session.idle.max(0.0)).to_string(),
            session.transaction.map_or_else(String::new, |seconds| {
                Measure::seconds(seconds.max(0.0)).to_string()
            }),
            session.query,
        ]
    }));
    Ok(Finding::judged(idle, limit, evidence)
        .rows(rows)
        .hint(hint)
        .into())
}

const LONG_IDLE: &str = concat!(
    "SELECT coalesce(usename::text, '') AS role, coalesce(datname::text, '') AS database,
            coalesce(application_name, '') AS application, count(*) AS sessions,
            extract(epoch FROM max(clock_timestamp() - state_change))::float8 AS longest
       FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND state = 'idle'
        AND state_change < clock_timestamp() - interval '30 minutes' AND NOT ",
    our_session!(),
    " GROUP BY 1, 2, 3 ORDER BY 4 DESC"
);

#[derive(Deserialize)]
struct LongIdle {
    role: String,
    database: String,
    application: String,
    sessions: i64,
    longest: f64,
}

async fn idle(context: &Context) -> Result<Verdict, Failure> {
    context.facts_with_statistics()?;
    let groups: Vec<LongIdle> = context.rows(LONG_IDLE).await?;
    let count: i64 = groups.iter().map(|group| group.sessions).sum();
    let evidence = match groups.iter().map(|group| group.longest).reduce(f64::max) {
        None => "no session is idle for over 30 minutes".to_owned(),
        Some(longest) => format!(
            "{} idle for over 30 minutes, the longest for {}",
            plural(count as usize, "session is", "sessions are"),
            Measure::seconds(longest)
        ),
    };
    let rows = Rows::new(["role", "database", "application", "sessions", "longest"]).with(
        groups.into_iter().map(|group| {
            [
                group.role,
                group.database,
                group.application,
                group.sessions.to_string(),
                Measure::seconds(group.longest).to_string(),
            ]
        }),
    );
    let finding = Finding::judged(Measure::count(count), context.limit("connections.idle"), evidence);
    Ok(if finding.status == Status::Ok { finding } else { finding.rows(rows) }
        .hint(
            "a pool that is larger than its load keeps them: make the pool smaller or set idle_session_timeout; do \
             not end a pooler's server connections by hand",
        )
        .into())
}
