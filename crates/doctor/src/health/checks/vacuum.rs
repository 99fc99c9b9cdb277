//! Vacuum: transaction ids that run out, dead rows that stay, autovacuum that does not run.

use super::survey::{Survey, Table};
use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::facts::{Database, Facts, quote_identifier};
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit, human_count};
use crate::health::result::{Finding, Rows};
use crate::health::status::Status;

const XID_AGE: &[Limit] = &[
    Limit::above("vacuum.xid_age", Unit::Ratio, Some(0.5), Some(0.75)),
    Limit::above("vacuum.xid_age.freeze", Unit::Ratio, Some(1.25), None),
];
const MULTIXID_AGE: &[Limit] = &[
    Limit::above("vacuum.multixid_age", Unit::Ratio, Some(0.5), Some(0.75)),
    Limit::above("vacuum.multixid_age.freeze", Unit::Ratio, Some(1.25), None),
];
const DEAD: &[Limit] = &[
    Limit::above("vacuum.dead_tuples", Unit::Ratio, Some(0.2), Some(0.5)),
    Limit::above("vacuum.dead_tuples.rows", Unit::Count, Some(10_000.0), None),
];
const AUTOVACUUM: &[Limit] = &[Limit::above(
    "vacuum.autovacuum",
    Unit::Seconds,
    Some(86_400.0),
    None,
)];

/// Ids are compared modulo 2^32: half of them lie ahead (documentation, "Preventing Transaction ID
/// Wraparound Failures").
const WRAPAROUND: f64 = 2_147_483_648.0;
/// From this size on a table that is half dead is critical.
const LARGE_TABLE: i64 = 1024 * 1024 * 1024;

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "vacuum.xid_age",
            "oldest transaction id against the limit of 2^31",
            XID_AGE,
            |context| Box::pin(age(context, &XID)),
        ),
        Question::new(
            "vacuum.multixid_age",
            "oldest multixact id against the limit of 2^31",
            MULTIXID_AGE,
            |context| Box::pin(age(context, &MULTIXID)),
        ),
        Question::new(
            "vacuum.dead_tuples",
            "share of dead rows in tables with over 10,000",
            DEAD,
            |context| Box::pin(dead(context)),
        ),
        Question::new(
            "vacuum.autovacuum",
            "autovacuum runs, and keeps up",
            AUTOVACUUM,
            |context| Box::pin(autovacuum(context)),
        ),
    ]
}

/// The two kinds of ids that run out.
struct Kind {
    id: &'static str,
    freeze_limit: &'static str,
    word: &'static str,
    freeze_setting: &'static str,
    of_table: fn(&Table) -> Option<i64>,
}

const XID: Kind = Kind {
    id: "vacuum.xid_age",
    freeze_limit: "vacuum.xid_age.freeze",
    word: "transaction",
    freeze_setting: "autovacuum_freeze_max_age",
    of_table: |table| table.xid_age,
};
const MULTIXID: Kind = Kind {
    id: "vacuum.multixid_age",
    freeze_limit: "vacuum.multixid_age.freeze",
    word: "multixact",
    freeze_setting: "autovacuum_multixact_freeze_max_age",
    of_table: |table| table.multixid_age,
};

async fn age(context: &Context, kind: &Kind) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    let survey = context.survey().await;
    let of_database = |database: &Database| {
        if kind.id == XID.id {
            database.xid_age
        } else {
            database.multixid_age
        }
    };
    let Some(worst) = facts
        .databases
        .iter()
        // Of several that are equally old, the one that something can be said about.
        .max_by_key(|database| {
            (
                of_database(database),
                database.is_looked_into() && database.may_connect,
            )
        })
    else {
        return Err(Failure::Answer {
            message: "the server has no database".to_owned(),
        });
    };
    let oldest = of_database(worst);
    let mut tables: Vec<(i64, &Table)> = tables_of(survey)
        .filter(|(database, _)| *database == worst.name)
        .filter_map(|(_, table)| Some(((kind.of_table)(table)?, table)))
        .collect();
    tables.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
    let mut evidence = format!(
        "database {} is {} {} ids old, {} of the limit",
        worst.name,
        human_count(oldest as f64),
        kind.word,
        Measure::ratio(oldest as f64 / WRAPAROUND)
    );
    match tables.first() {
        Some((age, table)) => {
            evidence = format!(
                "{evidence}; its oldest table is {} ({})",
                table.name,
                human_count(*age as f64)
            );
        }
        None => evidence.push_str("; its tables were not looked into"),
    }
    let mut finding = Finding::judged(
        Measure::ratio(oldest as f64 / WRAPAROUND),
        context.limit(kind.id),
        evidence,
    )
    .figure(
        format!("{}.ids", kind.id),
        Measure::new(oldest as f64, Unit::Transactions),
        None,
    );
    if let Some(freeze) = facts.number(kind.freeze_setting).filter(|freeze| *freeze > 0) {
        finding = finding.figure(
            kind.freeze_limit,
            Measure::ratio(oldest as f64 / freeze as f64),
            context.limit(kind.freeze_limit),
        );
    }
    let hint = format!(
        "find what keeps vacuum from freezing first (pgmahout health --only xmin.horizon,prepared_transactions); then{} {}",
        if facts.in_recovery {
            ", on the primary,"
        } else {
            ""
        },
        freezing(worst, tables.first().map(|(_, table)| *table))
    );
    let rows = Rows::new(["database", "table", "age", "size"]).with(tables.into_iter().take(Rows::MOST).map(
        |(age, table)| {
            [
                worst.name.clone(),
                table.name.clone(),
                human_count(age as f64),
                Measure::bytes(table.bytes).to_string(),
            ]
        },
    ));
    Ok(finding.rows(rows).hint(hint).into())
}

/// How the oldest rows of a database are frozen, as far as it can be entered.
fn freezing(database: &Database, oldest: Option<&Table>) -> String {
    let name = &database.name;
    let quoted = quote_identifier(name);
    if !database.allows_connections {
        return format!(
            "leave it to autovacuum, which freezes {name} although nobody can connect to it; where that does not \
             happen, as a superuser: ALTER DATABASE {quoted} ALLOW_CONNECTIONS true; connected to {name}: VACUUM \
             (FREEZE); then ALTER DATABASE {quoted} ALLOW_CONNECTIONS false"
        );
    }
    if database.template {
        return format!(
            "leave it to autovacuum, or, connected to {name}: VACUUM (FREEZE) (it is a template: while a session is in \
             it, no database can be created from it)"
        );
    }
    match oldest {
        Some(table) => format!(
            "in {name}: VACUUM (FREEZE, VERBOSE) {}",
            table.name.trim_end_matches(" (TOAST)")
        ),
        None => format!("connect to {name} and run VACUUM (FREEZE, VERBOSE) on its oldest tables"),
    }
}

fn tables_of(survey: &Survey) -> impl Iterator<Item = (&str, &Table)> {
    survey.databases.iter().flat_map(|database| {
        database
            .tables
            .iter()
            .flatten()
            .map(|table| (database.database.as_str(), table))
    })
}

/// Databases whose tables were not seen: what could not be, and what would show it.
pub(super) fn unseen<'a, T: 'a>(
    survey: &'a Survey,
    facts: &Facts,
    what: impl Fn(&'a super::survey::DatabaseSurvey) -> &'a Result<T, Failure>,
) -> Option<Finding> {
    if let Some((database, failure)) = survey
        .databases
        .iter()
        .find_map(|database| Some((&database.database, what(database).as_ref().err()?)))
    {
        let grant = facts.grant("GRANT pg_monitor TO {role}");
        let mut finding = failure.clone().into_finding(Some(grant));
        finding.evidence = format!("database {database}: {}", finding.evidence);
        if let Some(unseen) = &mut finding.unseen {
            unseen.what.clone_from(&finding.evidence);
        }
        return Some(finding);
    }
    let grant = survey.connect_grant(facts)?;
    Some(Finding::unknown(
        format!(
            "the role {} may not connect to {}",
            facts.role,
            survey.closed.join(", ")
        ),
        Some(grant),
    ))
}

/// A finding, or, where part could not be seen and the rest is fine, UNKNOWN.
pub(super) fn unless_unseen(finding: Finding, unseen: Option<Finding>) -> Finding {
    match unseen {
        Some(unseen) if finding.status == Status::Ok => Finding {
            evidence: format!("{}; the rest: {}", unseen.evidence, finding.evidence),
            ..unseen
        },
        _ => finding,
    }
}

async fn dead(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    if facts.in_recovery {
        return Ok(Verdict::not_applicable(
            "a standby has no statistics of dead rows; ask the primary",
        ));
    }
    if facts.is_on("track_counts") == Some(false) {
        return Err(Failure::Source {
            reason: "track_counts is off: nobody counts dead rows".to_owned(),
        });
    }
    let survey = context.survey().await;
    let limit = context.limit("vacuum.dead_tuples");
    let fewest = context
        .limit("vacuum.dead_tuples.rows")
        .and_then(|rows| rows.warn)
        .unwrap_or(10_000.0);
    let share = |table: &Table| table.dead as f64 / (table.dead + table.live).max(1) as f64;
    let mut tables: Vec<(&str, &Table)> = tables_of(survey)
        .filter(|(_, table)| table.dead as f64 >= fewest)
        .collect();
    tables.sort_by(|left, right| share(right.1).total_cmp(&share(left.1)));
    let finding = match tables.first() {
        None => Finding::judged(
            Measure::ratio(0.0),
            limit,
            format!("no table has {} dead rows or more", human_count(fewest)),
        ),
        Some((database, worst)) => {
            let mut finding = Finding::judged(
                Measure::ratio(share(worst)),
                limit,
                format!(
                    "{} in {database} has {} dead rows beside {} live ones",
                    worst.name,
                    human_count(worst.dead as f64),
                    human_count(worst.live as f64)
                ),
            );
            let large = tables.iter().any(|(_, table)| {
                table.bytes > LARGE_TABLE
                    && limit.is_some_and(|limit| limit.judge(share(table)) == Status::Crit)
            });
            if finding.status == Status::Crit && !large {
                finding.status = Status::Warn;
            }
            let hint = format!(
                "see what keeps them (pgmahout health --only xmin.horizon), then, in {database}: VACUUM (VERBOSE) {}; \
                 a lower autovacuum_vacuum_scale_factor for the table keeps it from coming back",
                worst.name.trim_end_matches(" (TOAST)")
            );
            finding.hint(hint)
        }
    };
    let rows = Rows::new([
        "database",
        "table",
        "dead",
        "live",
        "dead share",
        "size",
        "last vacuum",
    ])
    .with(tables.iter().map(|(database, table)| {
        [
            (*database).to_owned(),
            table.name.clone(),
            human_count(table.dead as f64),
            human_count(table.live as f64),
            Measure::ratio(share(table)).to_string(),
            Measure::bytes(table.bytes).to_string(),
            ago(table.vacuumed),
        ]
    }));
    Ok(unless_unseen(
        finding.rows(rows),
        unseen(survey, facts, |database| &database.tables),
    )
    .into())
}

fn ago(seconds: Option<f64>) -> String {
    seconds.map_or_else(
        || "never".to_owned(),
        |seconds| format!("{} ago", Measure::seconds(seconds.max(0.0))),
    )
}

/// When autovacuum takes a table, by dead rows: threshold + factor × rows, at most the maximum that 18
/// added (documentation, "Automatic Vacuuming"); storage parameters go before settings.
#[derive(Debug, Clone, Copy)]
struct Trigger {
    threshold: f64,
    factor: f64,
    most: Option<f64>,
}

impl Trigger {
    fn of_server(facts: &Facts) -> Self {
        let number = |name: &str| facts.setting(name).and_then(|text| text.parse::<f64>().ok());
        Self {
            threshold: number("autovacuum_vacuum_threshold").unwrap_or(50.0),
            factor: number("autovacuum_vacuum_scale_factor").unwrap_or(0.2),
            most: number("autovacuum_vacuum_max_threshold"),
        }
    }

    fn rows(mut self, table: &Table) -> f64 {
        for option in table.options.iter().flatten() {
            let Some((name, value)) = option.split_once('=') else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else { continue };
            match name {
                "autovacuum_vacuum_threshold" => self.threshold = value,
                "autovacuum_vacuum_scale_factor" => self.factor = value,
                "autovacuum_vacuum_max_threshold" => self.most = Some(value),
                _ => {}
            }
        }
        let rows = self.threshold + self.factor * table.estimated_rows.max(0.0);
        self.most
            .filter(|most| *most >= 0.0)
            .map_or(rows, |most| rows.min(most))
    }
}

async fn autovacuum(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    for name in ["autovacuum", "track_counts"] {
        if facts.is_on(name) == Some(false) {
            return Ok(
                Finding::crit(format!("{name} is off: dead rows and old transaction ids stay"))
                    .hint(format!(
                        "ALTER SYSTEM SET {name} = on, then SELECT pg_reload_conf()"
                    ))
                    .into(),
            );
        }
    }
    if facts.in_recovery {
        return Ok(Finding::ok("autovacuum is on; it begins to work when this standby is promoted").into());
    }
    let survey = context.survey().await;
    let trigger = Trigger::of_server(facts);
    let mut waiting: Vec<(f64, &str, &Table)> = tables_of(survey)
        .filter(|(_, table)| table.dead as f64 > trigger.rows(table))
        .map(|(database, table)| {
            let since =
                context.holds_since(&format!("vacuum.autovacuum {database}.{}", table.name), facts.now);
            ((facts.now - since).max(0.0), database, table)
        })
        .collect();
    waiting.sort_by(|left, right| right.0.total_cmp(&left.0));
    let longest = waiting.first().map_or(0.0, |(seconds, _, _)| *seconds);
    let evidence = match waiting.first() {
        None => "autovacuum is on and no table waits for it".to_owned(),
        Some((seconds, database, table)) => format!(
            "{} for vacuum, the longest {} in {database}, seen for {} with {} dead rows",
            plural(waiting.len(), "table waits", "tables wait"),
            table.name,
            Measure::seconds(*seconds),
            human_count(table.dead as f64)
        ),
    };
    let switched_off = |table: &Table| {
        table.options.iter().flatten().any(|option| {
            option
                .strip_prefix("autovacuum_enabled=")
                .is_some_and(|value| !matches!(value, "true" | "on" | "1"))
        })
    };
    let hint = match waiting.first() {
        Some((_, database, table)) if switched_off(table) => format!(
            "autovacuum is switched off for it; in {database}: ALTER TABLE {} RESET (autovacuum_enabled)",
            table.name
        ),
        Some((_, database, table)) => format!(
            "in {database}: VACUUM (VERBOSE) {}; if many tables wait, autovacuum is too slow: raise \
             autovacuum_vacuum_cost_limit or autovacuum_max_workers",
            table.name.trim_end_matches(" (TOAST)")
        ),
        None => String::new(),
    };
    let rows = Rows::new([
        "database",
        "table",
        "waits for",
        "dead",
        "last vacuum",
        "autovacuum",
    ])
    .with(waiting.iter().map(|(seconds, database, table)| {
        [
            (*database).to_owned(),
            table.name.clone(),
            Measure::seconds(*seconds).to_string(),
            human_count(table.dead as f64),
            ago(table.vacuumed),
            if switched_off(table) { "off" } else { "on" }.to_owned(),
        ]
    }));
    let finding = Finding::judged(
        Measure::seconds(longest),
        context.limit("vacuum.autovacuum"),
        evidence,
    )
    .rows(rows)
    .hint(hint);
    Ok(unless_unseen(finding, unseen(survey, facts, |database| &database.tables)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_parameters_go_before_settings_and_the_maximum_bounds() {
        let table = |options: Option<Vec<String>>, rows: f64| Table {
            name: "t".to_owned(),
            xid_age: None,
            multixid_age: None,
            dead: 0,
            live: 0,
            estimated_rows: rows,
            bytes: 0,
            vacuumed: None,
            options,
        };
        let trigger = Trigger {
            threshold: 50.0,
            factor: 0.2,
            most: None,
        };
        assert!((trigger.rows(&table(None, 1000.0)) - 250.0).abs() < 1e-9);
        assert!((trigger.rows(&table(None, -1.0)) - 50.0).abs() < 1e-9);
        let own = Some(vec!["autovacuum_vacuum_scale_factor=0".to_owned()]);
        assert!((trigger.rows(&table(own, 1000.0)) - 50.0).abs() < 1e-9);
        let bounded = Trigger {
            most: Some(100.0),
            ..trigger
        };
        assert!((bounded.rows(&table(None, 1e9)) - 100.0).abs() < 1e-9);
    }
}
