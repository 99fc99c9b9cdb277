//! Replication as the primary sees it: who streams, and how far behind each is.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};
use crate::health::status::Status;

const LAG_BYTES: &[Limit] = &[Limit::above(
    "replication.lag_bytes",
    Unit::Bytes,
    Some(10_485_760.0),
    Some(104_857_600.0),
)];
const LAG_SECONDS: &[Limit] = &[Limit::above(
    "replication.lag_seconds",
    Unit::Seconds,
    Some(5.0),
    Some(30.0),
)];

/// Less than this behind without a time is a standby that is just being sent something.
const UNTIMED_BYTES: i64 = 16 * 1024 * 1024;

/// How often, and how long apart, standbys with WAL outstanding are asked for again.
const SECOND_LOOKS: usize = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "replication.standbys",
            "standbys that stream, against those expected",
            &[],
            |context| Box::pin(standbys(context)),
        ),
        Question::new(
            "replication.lag_bytes",
            "WAL between the primary and what a standby has replayed",
            LAG_BYTES,
            |context| Box::pin(lag_bytes(context)),
        ),
        Question::new(
            "replication.lag_seconds",
            "how far behind in time a standby is",
            LAG_SECONDS,
            |context| Box::pin(lag_seconds(context)),
        ),
    ]
}

/// Physical standbys only: a base backup, a WAL receiver that writes files (it replays nothing) and logical
/// subscribers are in the view as well.
const STANDBYS: &str = "
SELECT coalesce(r.application_name, '') AS name, coalesce(host(r.client_addr), 'local') AS client,
       coalesce(r.state, '') AS state, coalesce(r.sync_state, '') AS sync_state,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                       r.replay_lsn)::bigint AS behind,
       extract(epoch FROM r.replay_lag)::float8 AS replay_lag,
       extract(epoch FROM clock_timestamp() - r.reply_time)::float8 AS silent,
       extract(epoch FROM r.reply_time)::float8 AS replied, r.pid,
       pg_wal_lsn_diff(r.replay_lsn, '0/0')::bigint AS replayed
  FROM pg_stat_replication r
  LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
 WHERE r.state IS DISTINCT FROM 'backup' AND s.slot_type IS DISTINCT FROM 'logical'
   AND (r.replay_lsn IS NOT NULL OR r.state IN ('startup', 'catchup'))
 ORDER BY behind DESC NULLS FIRST, 1";

#[derive(Debug, Deserialize)]
struct Standby {
    name: String,
    client: String,
    state: String,
    sync_state: String,
    behind: Option<i64>,
    replay_lag: Option<f64>,
    /// Seconds since it last said anything, by the standby's own clock.
    silent: Option<f64>,
    /// When that was, in seconds since the epoch by its own clock.
    replied: Option<f64>,
    /// Its walsender.
    pid: i64,
    /// Bytes since 0/0 that it says to have replayed.
    replayed: Option<i64>,
}

impl Standby {
    /// How far behind in time; none where the primary cannot tell. The primary only measures while WAL
    /// flows and is acknowledged, so no measurement means caught up only where nothing is outstanding
    /// (documentation of pg_stat_replication). And a measurement stands still until the next one: where WAL is
    /// outstanding, the time since then has to be added, and it has stood `still` at least since an earlier run.
    fn seconds(&self, still: f64) -> Option<f64> {
        if self.behind == Some(0) {
            return Some(0.0);
        }
        let silent = self.silent.unwrap_or(0.0).max(0.0);
        match (self.behind, self.replay_lag) {
            (Some(bytes), None) if bytes >= UNTIMED_BYTES => (still > 0.0).then_some(still),
            (Some(_), lag) if lag.is_some() || self.silent.is_some() => {
                Some((lag.unwrap_or(0.0) + silent).max(still))
            }
            (_, lag) => lag,
        }
    }

    /// Whether it has replayed up to this position.
    fn has_replayed(&self, position: i64) -> bool {
        self.replayed.is_some_and(|replayed| replayed >= position)
    }

    /// What the answer rests on, where it may be old.
    fn last_said(&self) -> String {
        match (self.behind, self.silent) {
            (Some(0) | None, _) | (_, None) => String::new(),
            (Some(bytes), Some(silent)) => format!(
                "; {} outstanding by its last report, {} ago",
                Measure::bytes(bytes.max(0)),
                Measure::seconds(silent.max(0.0))
            ),
        }
    }

    fn label(&self) -> String {
        format!("{} ({})", self.name, self.client)
    }
}

fn rows_of(standbys: &[Standby]) -> Rows {
    Rows::new(["standby", "client", "state", "sync", "behind", "replay lag"]).with(standbys.iter().map(
        |standby| {
            [
                standby.name.clone(),
                standby.client.clone(),
                standby.state.clone(),
                standby.sync_state.clone(),
                standby
                    .behind
                    .map_or_else(String::new, |bytes| Measure::bytes(bytes.max(0)).to_string()),
                standby
                    .replay_lag
                    .map_or_else(String::new, |seconds| Measure::seconds(seconds).to_string()),
            ]
        },
    ))
}

async fn standbys(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts_with_statistics()?;
    let expected = context.target().expectations.standbys;
    if facts.in_recovery {
        return Ok(Verdict::not_applicable("this server is a standby"));
    }
    let all: Vec<Standby> = context.rows(STANDBYS).await?;
    let streaming = all.iter().filter(|standby| standby.state == "streaming").count();
    let synchronous = facts
        .setting("synchronous_standby_names")
        .is_some_and(|names| !names.trim().is_empty());
    let has_synchronous = all.iter().any(|standby| {
        standby.state == "streaming" && matches!(standby.sync_state.as_str(), "sync" | "quorum")
    });
    if expected.is_none() && all.is_empty() && !synchronous {
        return Ok(Verdict::not_applicable(
            "no standby is expected and none is connected",
        ));
    }
    let mut evidence = match expected {
        Some(expected) => format!(
            "{streaming} of {} streaming",
            plural(expected as usize, "standby", "standbys")
        ),
        None => format!("{} streaming", plural(streaming, "standby", "standbys")),
    };
    let mut status = match expected.map(|expected| expected as usize) {
        Some(expected) if expected > 0 && streaming == 0 => Status::Crit,
        Some(expected) if streaming < expected => Status::Warn,
        None if streaming < all.len() => Status::Warn,
        _ => Status::Ok,
    };
    if synchronous && !has_synchronous {
        status = Status::Crit;
        evidence.push_str("; synchronous_standby_names is set and no standby is synchronous: commits wait");
    }
    Ok(Finding::new(status, evidence)
        .measured(Measure::count(streaming as i64))
        .rows(rows_of(&all))
        .hint(
            "look at the standby that is missing: pgmahout health -h STANDBY --only 'replication.*'; its log says why \
             it does not stream",
        )
        .into())
}

async fn lag_bytes(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts_with_statistics()?;
    if facts.in_recovery {
        return super::standby::lag_bytes(context, facts).await;
    }
    let all: Vec<Standby> = context.rows(STANDBYS).await?;
    let Some(worst) = all
        .iter()
        .max_by_key(|standby| standby.behind.unwrap_or(i64::MAX))
    else {
        return Ok(Verdict::not_applicable("no standby is connected"));
    };
    let Some(behind) = worst.behind.map(|bytes| Measure::bytes(bytes.max(0))) else {
        return Ok(Finding::warn(format!(
            "{} has connected but not said what it has replayed",
            worst.label()
        ))
        .rows(rows_of(&all))
        .hint("it is starting or catching up: look again, and at its log if it stays so")
        .into());
    };
    Ok(Finding::judged(
        behind,
        context.limit("replication.lag_bytes"),
        format!(
            "the furthest behind of {} is {}, by {behind}",
            plural(all.len(), "standby", "standbys"),
            worst.label()
        ),
    )
    .rows(rows_of(&all))
    .hint(lag_hint())
    .into())
}

async fn lag_seconds(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts_with_statistics()?;
    if facts.in_recovery {
        return super::standby::lag_seconds(context, facts).await;
    }
    let all = settled(context).await?;
    if all.is_empty() {
        return Ok(Verdict::not_applicable("no standby is connected"));
    }
    let still: Vec<f64> = all
        .iter()
        .map(|standby| stands_still(context, facts.now, standby))
        .collect();
    let timed: Vec<(Option<f64>, &Standby)> = all
        .iter()
        .zip(&still)
        .map(|(standby, still)| (standby.seconds(*still), standby))
        .collect();
    let limit = context.limit("replication.lag_seconds");
    let untimed: Vec<&Standby> = timed
        .iter()
        .filter(|(seconds, standby)| {
            seconds.is_none() && standby.behind.is_none_or(|bytes| bytes >= UNTIMED_BYTES)
        })
        .map(|(_, standby)| *standby)
        .collect();
    let worst = timed
        .iter()
        .filter_map(|(seconds, standby)| Some(((*seconds)?, *standby)))
        .max_by(|left, right| left.0.total_cmp(&right.0));
    let finding = match worst {
        Some((seconds, standby)) => Finding::judged(
            Measure::seconds(seconds),
            limit,
            format!(
                "the furthest behind of {} is {}, by {}{}",
                plural(all.len(), "standby", "standbys"),
                standby.label(),
                Measure::seconds(seconds),
                standby.last_said()
            ),
        ),
        None if untimed.is_empty() => Finding::judged(
            Measure::seconds(0.0),
            limit,
            format!(
                "{}, none waits for more than is on its way",
                plural(all.len(), "standby", "standbys")
            ),
        ),
        None => Finding::ok(""),
    };
    if let (Some(standby), false) = (untimed.first(), finding.status == Status::Crit) {
        return Ok(Finding::unknown(
            format!(
                "{} is behind and has acknowledged nothing that a time could be taken of: only the standby itself \
                 can tell since when",
                standby.label()
            ),
            None,
        )
        .rows(rows_of(&all))
        .hint("ask the standby: pgmahout health -h STANDBY --only replication.lag_seconds")
        .into());
    }
    Ok(finding.rows(rows_of(&all)).hint(lag_hint()).into())
}

/// Asks until every standby has replayed up to where the primary was at first, or has at least said something
/// since, a few times: WAL that is on its way is no lag.
async fn settled(context: &Context) -> Result<Vec<Standby>, Failure> {
    let mut all: Vec<Standby> = context.rows(STANDBYS).await?;
    let position = |standby: &Standby| Some(standby.replayed? + standby.behind?);
    let Some(goal) = all.iter().filter_map(position).max() else {
        return Ok(all);
    };
    let first: HashMap<i64, Option<f64>> = all.iter().map(|standby| (standby.pid, standby.replied)).collect();
    let has_answered = |standby: &Standby| {
        standby.has_replayed(goal)
            || first
                .get(&standby.pid)
                .is_none_or(|replied| *replied != standby.replied)
    };
    for _ in 0..SECOND_LOOKS {
        if all.iter().all(has_answered) {
            break;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
        all = context.rows(STANDBYS).await?;
    }
    for standby in &mut all {
        if standby.has_replayed(goal) {
            // What was written since the first look is on its way.
            standby.behind = Some(0);
        }
    }
    Ok(all)
}

/// For how long, from run to run, a standby with WAL outstanding has said to have replayed the same.
fn stands_still(context: &Context, now: f64, standby: &Standby) -> f64 {
    let (Some(1..), Some(replayed)) = (standby.behind, standby.replayed) else {
        return 0.0;
    };
    let key = format!(
        "replication.lag_seconds {} {} {replayed}",
        standby.name, standby.client
    );
    (now - context.holds_since(&key, now)).max(0.0)
}

pub(super) fn lag_hint() -> &'static str {
    "on the standby see whether replay is paused (SELECT pg_get_wal_replay_pause_state()), held up by a query \
     (pg_stat_activity, max_standby_streaming_delay) or short of disk or network. It also pauses by itself where \
     settings are lower than the primary's (its log: 'insufficient parameter settings'): raise those on it and \
     restart it; to resume would shut it down"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standby(behind: Option<i64>, replay_lag: Option<f64>) -> Standby {
        Standby {
            name: "s".to_owned(),
            client: "local".to_owned(),
            state: "streaming".to_owned(),
            sync_state: "async".to_owned(),
            behind,
            replay_lag,
            silent: None,
            replied: None,
            pid: 1,
            replayed: Some(100),
        }
    }

    #[test]
    fn no_measurement_is_no_lag_only_where_nothing_is_outstanding() {
        assert_eq!(standby(Some(0), None).seconds(0.0), Some(0.0));
        assert_eq!(standby(Some(5), None).seconds(0.0), None);
        assert_eq!(standby(Some(5), Some(2.0)).seconds(0.0), Some(2.0));
        assert_eq!(standby(None, None).seconds(0.0), None);
    }

    #[test]
    fn a_measurement_grows_older_while_wal_is_outstanding() {
        let silent = |behind, replay_lag| Standby {
            silent: Some(8.0),
            ..standby(Some(behind), replay_lag)
        };
        assert_eq!(silent(5, Some(0.25)).seconds(0.0), Some(8.25));
        assert_eq!(silent(5, None).seconds(0.0), Some(8.0));
        assert_eq!(silent(5, Some(0.25)).seconds(60.0), Some(60.0));
        assert_eq!(silent(0, Some(0.25)).seconds(0.0), Some(0.0));
        assert_eq!(silent(UNTIMED_BYTES, None).seconds(0.0), None);
        assert_eq!(silent(UNTIMED_BYTES, None).seconds(60.0), Some(60.0));
    }
}
