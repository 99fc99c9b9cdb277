//! Who keeps vacuum from removing dead rows: the oldest holder of a snapshot or a transaction id.

use serde::Deserialize;

use super::{Question, our_session};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit, human_count};
use crate::health::result::{Finding, Rows};

const HORIZON: &[Limit] = &[Limit::above(
    "xmin.horizon",
    Unit::Seconds,
    Some(3600.0),
    Some(43_200.0),
)];

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "xmin.horizon",
        "oldest holder of old row versions, by age",
        HORIZON,
        |context| Box::pin(horizon(context)),
    )]
}

/// Sessions, prepared transactions, slots and standbys that hold the horizon (GetOldestNonRemovable-
/// TransactionId in procarray.c). A standby's feedback without a slot is its walsender's `backend_xmin`.
/// Neither a slot nor feedback says since when: `seconds` is NULL for them. A vacuum that is not FULL is looked
/// past there (PROC_IN_VACUUM), and so are its parallel workers; pg_stat_progress_vacuum has just those.
const HOLDERS: &str = concat!(
    "SELECT 'session' AS kind, a.pid::text AS name, coalesce(a.usename::text, '') AS role,
            coalesce(a.datname::text, '') AS database,
            extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds,
            greatest(age(a.backend_xmin), age(a.backend_xid))::bigint AS ids,
            coalesce(a.backend_xmin, a.backend_xid)::text AS xmin
       FROM (SELECT * FROM pg_stat_activity
              WHERE backend_type NOT IN ('walsender', 'autovacuum worker')
                AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v
                                 WHERE v.pid IN (pg_stat_activity.pid, pg_stat_activity.leader_pid))
                AND NOT ",
    our_session!(),
    ") a
      WHERE a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL
     UNION ALL
     SELECT 'standby feedback', r.application_name, coalesce(r.usename::text, ''), '', NULL,
            age(r.backend_xmin), r.backend_xmin::text
       FROM pg_stat_replication r WHERE r.backend_xmin IS NOT NULL
     UNION ALL
     SELECT 'slot', s.slot_name::text, '', coalesce(s.database::text, ''), NULL,
            greatest(age(s.xmin), age(s.catalog_xmin)), coalesce(s.xmin, s.catalog_xmin)::text
       FROM pg_replication_slots s WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL
     UNION ALL
     SELECT 'prepared transaction', p.gid, p.owner::text, p.database::text,
            extract(epoch FROM clock_timestamp() - p.prepared)::float8, age(p.transaction), p.transaction::text
       FROM pg_prepared_xacts p"
);

#[derive(Deserialize)]
struct Holder {
    kind: String,
    name: String,
    role: String,
    database: String,
    seconds: Option<f64>,
    ids: Option<i64>,
    xmin: String,
}

impl Holder {
    fn hint(&self) -> String {
        let quoted = self.name.replace('\'', "''");
        match self.kind.as_str() {
            "session" => format!(
                "see what it does (SELECT * FROM pg_stat_activity WHERE pid = {0}); if it may go: SELECT \
                 pg_terminate_backend({0})",
                self.name
            ),
            "slot" => format!(
                "bring its consumer back, or, if it is gone for good: SELECT pg_drop_replication_slot('{quoted}')"
            ),
            "prepared transaction" => format!(
                "decide it, connected to {}: COMMIT PREPARED '{quoted}' or ROLLBACK PREPARED '{quoted}'",
                self.database
            ),
            _ => "a query on the standby holds it through hot_standby_feedback: look there with pgmahout health \
                  --only queries.long"
                .to_owned(),
        }
    }
}

async fn horizon(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts_with_statistics()?;
    let holders: Vec<Holder> = context.rows(HOLDERS).await?;
    let mut aged: Vec<(f64, bool, Holder)> = holders
        .into_iter()
        .map(|holder| {
            if let Some(seconds) = holder.seconds {
                return (seconds.max(0.0), true, holder);
            }
            // The same xmin as at the last run has been held at least since then.
            let key = format!("xmin.horizon {} {} {}", holder.kind, holder.name, holder.xmin);
            (
                (facts.now - context.holds_since(&key, facts.now)).max(0.0),
                false,
                holder,
            )
        })
        .collect();
    aged.sort_by(|left, right| right.0.total_cmp(&left.0).then(right.2.ids.cmp(&left.2.ids)));
    let limit = context.limit("xmin.horizon");
    let Some((seconds, exact, oldest)) = aged.first() else {
        return Ok(Finding::judged(Measure::seconds(0.0), limit, "nobody holds old row versions").into());
    };
    let age = Measure::seconds(*seconds);
    let ids = aged
        .iter()
        .filter_map(|(_, _, holder)| holder.ids)
        .max()
        .unwrap_or(0);
    let evidence = format!(
        "{} {} has held xmin {} for {}{age}; the horizon is {} transactions back",
        oldest.kind,
        oldest.name,
        oldest.xmin,
        if *exact { "" } else { "at least " },
        human_count(ids as f64)
    );
    let hint = oldest.hint();
    let rows = Rows::new([
        "held by",
        "name",
        "role",
        "database",
        "for",
        "transactions",
        "xmin",
    ])
    .with(aged.into_iter().map(|(seconds, exact, holder)| {
        [
            holder.kind,
            holder.name,
            holder.role,
            holder.database,
            format!("{}{}", if exact { "" } else { ">= " }, Measure::seconds(seconds)),
            holder.ids.map_or_else(String::new, |ids| human_count(ids as f64)),
            holder.xmin,
        ]
    }));
    Ok(Finding::judged(age, limit, evidence)
        .figure(
            "xmin.horizon.transactions",
            Measure::new(ids as f64, Unit::Transactions),
            None,
        )
        .rows(rows)
        .hint(hint)
        .into())
}
