//! Sessions that wait for locks, and for whom.

use serde::Deserialize;

use super::{Question, our_session, plural, shown_query};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};

const WAITING: &[Limit] = &[
    Limit::above("locks.waiting", Unit::Seconds, Some(30.0), Some(120.0)),
    Limit::above("locks.waiting.share", Unit::Ratio, Some(0.01), Some(0.05)),
];

/// Locks change hands all the time: only a wait longer than this counts for the share.
const SHORT_WAIT: f64 = 1.0;

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "locks.waiting",
        "longest wait for a lock, and how many wait",
        WAITING,
        |context| Box::pin(waiting(context)),
    )]
}

/// `waitstart` is NULL for the moment in which a wait begins (documentation of pg_locks); the statement's
/// begin bounds it from above.
const WAITING_SESSIONS: &str = concat!(
    "SELECT a.pid, coalesce(a.usename::text, '') AS role, coalesce(a.datname::text, '') AS database,
            extract(epoch FROM clock_timestamp() - coalesce(l.waitstart, a.query_start))::float8 AS waiting,
            l.mode, l.locktype || coalesce(' ' || c.relname, '') AS object,
            array_to_string(pg_blocking_pids(a.pid), ', ') AS blocked_by, ",
    shown_query!("a.query"),
    " AS query
       FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
       LEFT JOIN pg_class c ON c.oid = l.relation
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      WHERE NOT l.granted AND a.backend_type = 'client backend'
      ORDER BY 4 DESC LIMIT 200"
);

#[derive(Deserialize)]
struct Waiter {
    pid: i64,
    role: String,
    database: String,
    waiting: f64,
    mode: String,
    object: String,
    blocked_by: String,
    query: String,
}

const ACTIVE: &str = concat!(
    "SELECT count(*) AS count FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND state = 'active' AND NOT ",
    our_session!()
);

#[derive(Deserialize)]
struct Active {
    count: i64,
}

async fn waiting(context: &Context) -> Result<Verdict, Failure> {
    context.facts_with_statistics()?;
    let limit = context.limit("locks.waiting");
    let sessions: Vec<Waiter> = context.rows(WAITING_SESSIONS).await?;
    let Some(longest) = sessions.first() else {
        return Ok(Finding::judged(Measure::seconds(0.0), limit, "no session waits for a lock").into());
    };
    let active: Active = context.row(ACTIVE).await?;
    let waited = Measure::seconds(longest.waiting.max(0.0));
    let long = sessions
        .iter()
        .filter(|session| session.waiting >= SHORT_WAIT)
        .count();
    let share = long as f64 / active.count.max(sessions.len() as i64) as f64;
    let evidence = format!(
        "{} for a lock, the longest for {waited}: pid {} wants {} on {}, held up by pid {}",
        plural(sessions.len(), "session waits", "sessions wait"),
        longest.pid,
        longest.mode,
        longest.object,
        longest.blocked_by
    );
    // A queue has one head: whoever blocks somebody and does not wait itself.
    let waiters: Vec<String> = sessions.iter().map(|session| session.pid.to_string()).collect();
    let heads: std::collections::BTreeSet<String> = sessions
        .iter()
        .flat_map(|session| session.blocked_by.split(", "))
        .filter(|pid| !pid.is_empty() && !waiters.iter().any(|waiter| waiter == pid))
        .map(str::to_owned)
        .collect();
    let head = heads.into_iter().collect::<Vec<_>>().join(", ");
    let hint = format!(
        "the queue ends when its head does: see SELECT pid, state, query FROM pg_stat_activity WHERE pid IN ({head}); \
         then, if it may go, SELECT pg_terminate_backend(pid)"
    );
    let rows = Rows::new([
        "pid",
        "role",
        "database",
        "waiting",
        "mode",
        "object",
        "blocked by",
        "query",
    ])
    .with(sessions.into_iter().map(|session| {
        [
            session.pid.to_string(),
            session.role,
            session.database,
            Measure::seconds(session.waiting.max(0.0)).to_string(),
            session.mode,
            session.object,
            session.blocked_by,
            session.query,
        ]
    }));
    Ok(Finding::judged(waited, limit, evidence)
        .figure(
            "locks.waiting.share",
            Measure::ratio(share),
            context.limit("locks.waiting.share"),
        )
        .rows(rows)
        .hint(hint)
        .into())
}
