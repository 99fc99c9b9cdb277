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
            l.mode, l.locktype || coalesce(' ' || c.relname,
                                           ' with OID ' || l.relation || ' in database ' || d.datname, '') AS object,
            array_to_string(pg_blocking_pids(a.pid), ', ') AS blocked_by, ",
    shown_query!("a.query"),
    " AS query
       FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
       LEFT JOIN pg_class c ON c.oid = l.relation
             AND l.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
       LEFT JOIN pg_database d ON d.oid = l.database
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

/// What stands in `blocked_by` for a prepared transaction, which has no process (documentation of
/// `pg_blocking_pids`).
const PREPARED: &str = "0";

/// Prepared transactions with a lock on what somebody waits for. Their locks carry no process; the one on
/// their own transaction id tells which is whose (lock.c, twophase.c).
const PREPARED_HOLDERS: &str = "
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks)
SELECT DISTINCT l.pid, l.mode AS wanted, held.mode AS held, p.gid, p.database::text AS database
  FROM locks l
  JOIN locks held ON held.pid IS NULL AND held.granted AND held.locktype = l.locktype
   AND (held.database, held.relation, held.page, held.tuple, held.virtualxid, held.transactionid, held.classid,
        held.objid, held.objsubid)
       IS NOT DISTINCT FROM
       (l.database, l.relation, l.page, l.tuple, l.virtualxid, l.transactionid, l.classid, l.objid, l.objsubid)
  JOIN locks own ON own.pid IS NULL AND own.locktype = 'transactionid'
   AND own.virtualtransaction = held.virtualtransaction
  JOIN pg_prepared_xacts p ON p.transaction = own.transactionid
 WHERE NOT l.granted
 ORDER BY p.gid";

#[derive(Deserialize)]
struct PreparedHolder {
    pid: i64,
    wanted: String,
    held: String,
    gid: String,
    database: String,
}

impl PreparedHolder {
    fn label(&self) -> String {
        format!("prepared transaction {} in {}", self.gid, self.database)
    }
}

/// Whether one lock keeps another from being granted (documentation, "Conflicting Lock Modes").
fn conflicts(wanted: &str, held: &str) -> bool {
    // For each mode, from the weakest on, the weakest that it conflicts with; all above that do too, except
    // that ShareLock does not conflict with itself.
    const MODES: [(&str, usize); 8] = [
        ("AccessShareLock", 7),
        ("RowShareLock", 6),
        ("RowExclusiveLock", 4),
        ("ShareUpdateExclusiveLock", 3),
        ("ShareLock", 2),
        ("ShareRowExclusiveLock", 2),
        ("ExclusiveLock", 1),
        ("AccessExclusiveLock", 0),
    ];
    let rank = |mode: &str| MODES.iter().position(|(name, _)| *name == mode);
    let (Some(wanted), Some(held)) = (rank(wanted), rank(held)) else {
        return false;
    };
    held >= MODES[wanted].1 && (MODES[wanted].0, MODES[held].0) != ("ShareLock", "ShareLock")
}

/// Who holds a session up, in words; the prepared transactions by name, where they are known.
fn blockers(session: &Waiter, prepared: &[PreparedHolder]) -> String {
    let mut names: Vec<String> = Vec::new();
    for pid in session.blocked_by.split(", ").filter(|pid| !pid.is_empty()) {
        if pid != PREPARED {
            names.push(format!("pid {pid}"));
            continue;
        }
        let before = names.len();
        names.extend(
            prepared
                .iter()
                .filter(|holder| holder.pid == session.pid)
                .map(PreparedHolder::label),
        );
        if names.len() == before {
            names.push("a prepared transaction".to_owned());
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    if names.is_empty() {
        "nobody any more".to_owned()
    } else {
        names.join(", ")
    }
}

/// What ends the queue.
fn ending(sessions: &[Waiter], prepared: &[PreparedHolder]) -> String {
    // A queue has one head: whoever blocks somebody and does not wait itself.
    let waiters: Vec<String> = sessions.iter().map(|session| session.pid.to_string()).collect();
    let heads: std::collections::BTreeSet<&str> = sessions
        .iter()
        .flat_map(|session| session.blocked_by.split(", "))
        .filter(|pid| !pid.is_empty() && !waiters.iter().any(|waiter| waiter == pid))
        .collect();
    let mut steps = Vec::new();
    if heads.contains(PREPARED) {
        let mut decided: Vec<String> = prepared
            .iter()
            .map(|holder| {
                let gid = holder.gid.replace('\'', "''");
                format!(
                    "connected to {}: ROLLBACK PREPARED '{gid}' or COMMIT PREPARED '{gid}'",
                    holder.database
                )
            })
            .collect();
        decided.dedup();
        steps.push(if decided.is_empty() {
            "a prepared transaction is its head: see SELECT * FROM pg_prepared_xacts, and decide it with ROLLBACK \
             PREPARED or COMMIT PREPARED in its database"
                .to_owned()
        } else {
            format!(
                "a prepared transaction has no session to end: ask its transaction manager, then, {}",
                decided.join("; ")
            )
        });
    }
    let pids: Vec<&str> = heads.into_iter().filter(|pid| *pid != PREPARED).collect();
    if !pids.is_empty() {
        steps.push(format!(
            "see SELECT pid, state, query FROM pg_stat_activity WHERE pid IN ({}); then, if it may go, SELECT \
             pg_terminate_backend(pid)",
            pids.join(", ")
        ));
    }
    if steps.is_empty() {
        return "the queue is moving: look again".to_owned();
    }
    format!("the queue ends when its head does: {}", steps.join("; "))
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
    let behind_prepared = sessions
        .iter()
        .any(|session| session.blocked_by.split(", ").any(|pid| pid == PREPARED));
    let mut prepared: Vec<PreparedHolder> = if behind_prepared {
        context.rows(PREPARED_HOLDERS).await?
    } else {
        Vec::new()
    };
    prepared.retain(|holder| conflicts(&holder.wanted, &holder.held));
    let waited = Measure::seconds(longest.waiting.max(0.0));
    let long = sessions
        .iter()
        .filter(|session| session.waiting >= SHORT_WAIT)
        .count();
    let share = long as f64 / active.count.max(sessions.len() as i64) as f64;
    let evidence = format!(
        "{} for a lock, the longest for {waited}: pid {} wants {} on {}, held up by {}",
        plural(sessions.len(), "session waits", "sessions wait"),
        longest.pid,
        longest.mode,
        longest.object,
        blockers(longest, &prepared)
    );
    let hint = ending(&sessions, &prepared);
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
        let blocked_by = blockers(&session, &prepared);
        [
            session.pid.to_string(),
            session.role,
            session.database,
            Measure::seconds(session.waiting.max(0.0)).to_string(),
            session.mode,
            session.object,
            blocked_by,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_conflict_as_the_documentation_has_it() {
        for (wanted, held, expected) in [
            ("AccessShareLock", "ExclusiveLock", false),
            ("AccessShareLock", "AccessExclusiveLock", true),
            ("RowShareLock", "RowExclusiveLock", false),
            ("RowExclusiveLock", "ShareUpdateExclusiveLock", false),
            ("RowExclusiveLock", "ShareLock", true),
            ("ShareUpdateExclusiveLock", "ShareUpdateExclusiveLock", true),
            ("ShareLock", "ShareLock", false),
            ("ShareLock", "RowExclusiveLock", true),
            ("ShareLock", "ExclusiveLock", true),
            ("ShareRowExclusiveLock", "ShareRowExclusiveLock", true),
            ("ExclusiveLock", "AccessShareLock", false),
            ("AccessExclusiveLock", "AccessShareLock", true),
            ("AccessExclusiveLock", "SIReadLock", false),
        ] {
            assert_eq!(conflicts(wanted, held), expected, "{wanted} {held}");
        }
    }
}
