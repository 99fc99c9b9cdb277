//! Replication as a standby sees it: how far behind it is, and what recovery cancelled.
//!
//! That everything received is replayed says nothing while nothing is received. "Not behind" is therefore
//! only said where the walreceiver is alive, or where the primary itself was asked in the same run.

use std::time::Duration;

use serde::Deserialize;

use super::interval::no_window;
use super::replication::lag_hint;
use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::facts::Facts;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit, human_seconds};
use crate::health::result::{Finding, Rows};
use crate::health::status::Status;

const CONFLICTS: &[Limit] = &[Limit::above(
    "replication.conflicts",
    Unit::Count,
    Some(1.0),
    None,
)];

/// How often a standby that is only just behind is asked again: WAL is always on its way somewhere.
const SECOND_LOOKS: usize = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "replication.conflicts",
        "statements that recovery cancelled on a standby, over an interval",
        CONFLICTS,
        |context| Box::pin(conflicts(context)),
    )]
}

const POSITION: &str = "
SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::bigint AS received,
       pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint AS replayed,
       pg_last_wal_replay_lsn()::text AS replayed_at,
       extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS replayed_age,
       pg_get_wal_replay_pause_state() AS pause,
       r.status, r.sender_host, r.sender_port,
       pg_wal_lsn_diff(r.latest_end_lsn, '0/0')::bigint AS announced,
       extract(epoch FROM clock_timestamp() - r.last_msg_receipt_time)::float8 AS silent
  FROM (SELECT) AS once LEFT JOIN pg_stat_wal_receiver r ON true";

/// Where a standby stands.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Position {
    /// Bytes since 0/0 that were received by streaming; none where nothing ever was.
    pub(super) received: Option<i64>,
    /// Bytes since 0/0 that are replayed.
    pub(super) replayed: Option<i64>,
    /// The same as PostgreSQL writes it.
    pub(super) replayed_at: Option<String>,
    /// Seconds since the last replayed transaction committed on the primary.
    pub(super) replayed_age: Option<f64>,
    /// `not paused`, `pause requested`, `paused`.
    pub(super) pause: String,
    /// The walreceiver's state; none where there is no walreceiver.
    pub(super) status: Option<String>,
    /// Whom it receives from.
    pub(super) sender_host: Option<String>,
    pub(super) sender_port: Option<i64>,
    /// The primary's position as it last said.
    pub(super) announced: Option<i64>,
    /// Seconds since it last said anything.
    pub(super) silent: Option<f64>,
}

impl Position {
    /// Whether a walreceiver streams.
    pub(super) fn is_streaming(&self) -> bool {
        self.status.as_deref() == Some("streaming")
    }

    pub(super) async fn ask(context: &Context) -> Result<Self, Failure> {
        context.row(POSITION).await
    }

    fn paused(&self) -> &'static str {
        if self.pause == "not paused" {
            ""
        } else {
            "; replay is paused"
        }
    }
}

/// Where the primary is, as far as can be told from here.
enum Reference {
    /// Asked in this run.
    Primary { name: String, lsn: i64 },
    /// Said by the sender to a live walreceiver.
    Announced(i64),
}

async fn reference(context: &Context, facts: &Facts, position: &Position) -> Option<Reference> {
    if let Some(member) = context.fleet().primary_of(&facts.system_identifier).await
        && let Some(lsn) = member.lsn
    {
        return Some(Reference::Primary {
            name: member.target,
            lsn,
        });
    }
    if !position.is_streaming() {
        return None;
    }
    // What was announced last can be older than what has arrived since.
    position
        .announced
        .max(position.received)
        .map(Reference::Announced)
}

/// Asks until the standby has caught up with where the primary was at first, a few times: WAL that is on
/// its way is no lag.
async fn settled(context: &Context, target: i64) -> Result<Position, Failure> {
    let mut position = Position::ask(context).await?;
    for _ in 0..SECOND_LOOKS {
        if position.replayed.is_some_and(|replayed| replayed >= target) {
            break;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
        position = Position::ask(context).await?;
    }
    Ok(position)
}

pub(super) async fn lag_bytes(context: &Context, facts: &Facts) -> Result<Verdict, Failure> {
    let position = Position::ask(context).await?;
    let limit = context.limit("replication.lag_bytes");
    let Some(replayed) = position.replayed else {
        return Err(Failure::Source {
            reason: "the standby has not replayed any WAL yet".to_owned(),
        });
    };
    let (behind, seen) = match reference(context, facts, &position).await {
        Some(Reference::Primary { name, lsn }) => (
            lsn - replayed,
            format!("the primary {name}, asked in the same run"),
        ),
        Some(Reference::Announced(lsn)) => (lsn - replayed, "what its walreceiver last heard".to_owned()),
        None => {
            let reason = format!(
                "no walreceiver is streaming, so how far the primary has gone cannot be seen from here; everything up \
                 to {} is replayed, which says nothing about what never arrived",
                position.replayed_at.as_deref().unwrap_or("an unknown position")
            );
            return Ok(Finding::unknown(reason, None)
                .hint("ask both in one run: pgmahout health -h PRIMARY,STANDBY; and see replication.receiver")
                .into());
        }
    };
    let behind = Measure::bytes(behind.max(0));
    Ok(Finding::judged(
        behind,
        limit,
        format!(
            "{behind} behind {seen}; replayed up to {}{}",
            position.replayed_at.as_deref().unwrap_or_default(),
            position.paused()
        ),
    )
    .hint(hint(context, facts, &position).await)
    .into())
}

/// What to do about a standby that lags. One whose settings are lower than the primary's pauses by itself,
/// and shuts down when replay is resumed (documentation, "Hot Standby", "Administrator's Overview"); it
/// looks as if somebody had paused it.
async fn hint(context: &Context, facts: &Facts, position: &Position) -> String {
    if position.pause == "not paused" {
        return lag_hint().to_owned();
    }
    if let Some(primary) = context.fleet().primary_of(&facts.system_identifier).await {
        let low: Vec<String> = primary
            .standby_minimums
            .iter()
            .filter_map(|(name, minimum)| {
                let own = facts.number(name).filter(|own| own < minimum)?;
                Some(format!(
                    "{name} is {own} here and {minimum} on {}",
                    primary.target
                ))
            })
            .collect();
        if !low.is_empty() {
            return format!(
                "replay has paused because settings are lower than the primary's: {}. Raise them on this standby and \
                 restart it; do not resume replay, which would shut it down",
                low.join(", ")
            );
        }
    }
    "look into this server's log before anything else: where it says 'insufficient parameter settings', replay has \
     paused because the settings named there are lower than the primary's; raise them here and restart, for \
     pg_wal_replay_resume() would shut this server down. Otherwise somebody has paused it (SELECT \
     pg_get_wal_replay_pause_state()): ask who, then SELECT pg_wal_replay_resume()"
        .to_owned()
}

pub(super) async fn lag_seconds(context: &Context, facts: &Facts) -> Result<Verdict, Failure> {
    let limit = context.limit("replication.lag_seconds");
    let first = Position::ask(context).await?;
    let reference = reference(context, facts, &first).await;
    let goal = match &reference {
        Some(Reference::Primary { lsn, .. } | Reference::Announced(lsn)) => Some(*lsn),
        None => None,
    };
    let position = match goal {
        Some(goal) if first.is_streaming() => settled(context, goal).await?,
        _ => first,
    };
    let caught_up = goal
        .zip(position.replayed)
        .is_some_and(|(goal, replayed)| replayed >= goal);
    if caught_up && position.is_streaming() {
        return Ok(Finding::judged(
            Measure::seconds(0.0),
            limit,
            "the walreceiver streams and everything it has heard of is replayed",
        )
        .into());
    }
    let state = match position.status.as_deref() {
        None => "no walreceiver is running: nothing arrives",
        Some("streaming") => "the walreceiver streams, replay has not caught up",
        Some(_) => "the walreceiver is not streaming: nothing arrives",
    };
    let Some(age) = position.replayed_age else {
        return Ok(Finding::unknown(
            format!("{state}, and no transaction was replayed since the start that a time could be taken of"),
            None,
        )
        .hint(hint(context, facts, &position).await)
        .into());
    };
    let age = Measure::seconds(age.max(0.0));
    Ok(Finding::judged(
        age,
        limit,
        format!(
            "{state}; the last transaction replayed was committed {age} ago{}",
            position.paused()
        ),
    )
    .hint(if position.is_streaming() {
        hint(context, facts, &position).await
    } else {
        "see replication.receiver: nothing is received".to_owned()
    })
    .into())
}

/// What cancelled statements, since the statistics were reset; the window says how many of late.
const KINDS: &str = "
SELECT datname::text AS database, confl_tablespace AS tablespace, confl_lock AS lock, confl_snapshot AS snapshot,
       confl_bufferpin AS bufferpin, confl_deadlock AS deadlock
  FROM pg_stat_database_conflicts
 WHERE confl_tablespace + confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock > 0 ORDER BY 1";

#[derive(Deserialize)]
struct Kinds {
    database: String,
    tablespace: i64,
    lock: i64,
    snapshot: i64,
    bufferpin: i64,
    deadlock: i64,
}

async fn conflicts(context: &Context) -> Result<Verdict, Failure> {
    if !context.facts()?.in_recovery {
        return Ok(Verdict::not_applicable(
            "only a standby cancels statements for recovery",
        ));
    }
    let window = match context.window().await {
        Ok(window) => window,
        Err(failure) => return Ok(no_window(failure)?.into()),
    };
    let count = window.sum(|counters| counters.conflicts);
    let kinds: Vec<Kinds> = context.rows(KINDS).await?;
    let rows = Rows::new([
        "database",
        "tablespace",
        "lock",
        "snapshot",
        "buffer pin",
        "deadlock",
    ])
    .with(kinds.into_iter().map(|kind| {
        [
            kind.database,
            kind.tablespace.to_string(),
            kind.lock.to_string(),
            kind.snapshot.to_string(),
            kind.bufferpin.to_string(),
            kind.deadlock.to_string(),
        ]
    }));
    let finding = Finding::judged(
        Measure::count(count),
        context.limit("replication.conflicts"),
        format!(
            "recovery cancelled {} in {}",
            plural(count as usize, "statement", "statements"),
            human_seconds(window.seconds)
        ),
    );
    Ok(if finding.status == Status::Ok { finding } else { finding.rows(rows) }
        .hint(
            "snapshot conflicts: hot_standby_feedback = on keeps the rows at the primary's cost; otherwise raise \
             max_standby_streaming_delay, at the cost of lag (the rows are totals since the statistics were reset)",
        )
        .into())
}
