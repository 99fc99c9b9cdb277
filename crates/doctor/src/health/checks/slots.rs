//! Replication slots: the WAL that they keep, and those that have lost theirs.

use serde::Deserialize;

use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};
use crate::health::status::Status;

const SLOTS: &[Limit] = &[
    Limit::above("replication.slots", Unit::Bytes, Some(1_073_741_824.0), None),
    Limit::above("replication.slots.disk", Unit::Ratio, None, Some(0.1)),
];

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "replication.slots",
        "WAL kept for inactive slots, and slots that lost theirs",
        SLOTS,
        |context| Box::pin(slots(context)),
    )]
}

/// On a standby the current position is what it has replayed. `inactive_since` and `invalidation_reason`
/// exist since 17.
fn question(major: u32) -> String {
    let since_17 = if major >= 17 {
        "extract(epoch FROM clock_timestamp() - inactive_since)::float8 AS inactive, invalidation_reason AS reason"
    } else {
        "NULL::float8 AS inactive, NULL::text AS reason"
    };
    format!(
        "SELECT slot_name::text AS name, slot_type AS type, coalesce(database::text, '') AS database, active,
                coalesce(wal_status, '') AS wal_status, safe_wal_size AS safe,
                pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                     ELSE pg_current_wal_lsn() END, restart_lsn)::bigint AS retained,
                {since_17}
           FROM pg_replication_slots ORDER BY retained DESC NULLS LAST, 1"
    )
}

#[derive(Debug, Deserialize)]
struct Slot {
    name: String,
    r#type: String,
    database: String,
    active: bool,
    wal_status: String,
    safe: Option<i64>,
    retained: Option<i64>,
    inactive: Option<f64>,
    reason: Option<String>,
}

impl Slot {
    /// Whether nothing can ever be read through it again.
    fn is_lost(&self) -> bool {
        self.wal_status == "lost" || self.reason.is_some()
    }

    fn status(&self) -> Status {
        match self.wal_status.as_str() {
            "lost" | "unreserved" => Status::Crit,
            "extended" => Status::Warn,
            _ if self.reason.is_some() => Status::Crit,
            _ => Status::Ok,
        }
    }
}

async fn slots(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    let all: Vec<Slot> = context.rows(&question(facts.version.major())).await?;
    if all.is_empty() {
        return Ok(Verdict::not_applicable("there is no replication slot"));
    }
    let inactive: Vec<&Slot> = all.iter().filter(|slot| !slot.active).collect();
    let retained = inactive
        .iter()
        .filter_map(|slot| slot.retained)
        .max()
        .unwrap_or(0)
        .max(0);
    let worst_state = all
        .iter()
        .max_by_key(|slot| slot.status().code())
        .filter(|slot| slot.status() != Status::Ok);
    let keeps = inactive.iter().max_by_key(|slot| slot.retained);
    let evidence = match (worst_state, keeps) {
        (Some(slot), _) if slot.is_lost() => format!(
            "slot {} is lost ({}): its consumer cannot go on from it",
            slot.name,
            slot.reason.as_deref().unwrap_or("its WAL was removed")
        ),
        (Some(slot), _) => format!(
            "slot {} is {}: it keeps {}{}",
            slot.name,
            slot.wal_status,
            Measure::bytes(slot.retained.unwrap_or(0)),
            slot.safe.map_or_else(String::new, |safe| {
                format!(", {} more and it is lost", Measure::bytes(safe.max(0)))
            })
        ),
        (None, Some(slot)) => format!(
            "inactive slot {} keeps {} of WAL{}",
            slot.name,
            Measure::bytes(slot.retained.unwrap_or(0).max(0)),
            slot.inactive.map_or_else(String::new, |seconds| format!(
                ", inactive for {}",
                Measure::seconds(seconds.max(0.0))
            ))
        ),
        (None, None) => format!("{} in use", plural(all.len(), "slot is", "slots are")),
    };
    let status = worst_state.map_or(Status::Ok, Slot::status);
    let named = worst_state.or(keeps.copied());
    let mut finding = Finding::judged(
        Measure::bytes(retained),
        context.limit("replication.slots"),
        evidence,
    )
    .at_least(status);
    if let Some(disk) = super::wal::disk_of(context) {
        finding = finding.figure(
            "replication.slots.disk",
            Measure::ratio(retained as f64 / disk as f64),
            context.limit("replication.slots.disk"),
        );
    }
    if let Some(slot) = named {
        finding = finding.hint(if slot.is_lost() {
            format!(
                "it cannot be used again: SELECT pg_drop_replication_slot('{}'), and build its consumer anew, with a new \
                 slot: a standby from a base backup (or let it fetch what it lacks from the archive through \
                 restore_command), a subscription with its data copied again",
                slot.name.replace('\'', "''")
            )
        } else if slot.active {
            format!(
                "its consumer is too slow: see pg_stat_replication; raise max_slot_wal_keep_size only with disk to \
                 spare, slot {}",
                slot.name
            )
        } else {
            format!(
                "bring its consumer back, or, if it is gone for good: SELECT pg_drop_replication_slot('{}'); \
                 max_slot_wal_keep_size bounds what a slot may keep",
                slot.name.replace('\'', "''")
            )
        });
    }
    let rows = Rows::new(["slot", "type", "database", "active", "wal status", "retained"]).with(
        all.iter().map(|slot| {
            [
                slot.name.clone(),
                slot.r#type.clone(),
                slot.database.clone(),
                if slot.active { "yes" } else { "no" }.to_owned(),
                slot.wal_status.clone(),
                slot.retained
                    .map_or_else(String::new, |bytes| Measure::bytes(bytes.max(0)).to_string()),
            ]
        }),
    );
    Ok(finding.rows(rows).into())
}
