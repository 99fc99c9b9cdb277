//! Settings: those that risk data, and those that wait for a restart.

use std::collections::HashMap;
use std::future::ready;

use serde::Deserialize;

use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::facts::{Facts, Setting};
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};
use crate::health::status::Status;

const PENDING: &[Limit] = &[Limit::above(
    "settings.pending_restart",
    Unit::Count,
    Some(1.0),
    None,
)];

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "settings.safety",
            "settings that risk data or logins",
            &[],
            |context| Box::pin(ready(safety(context))),
        ),
        Question::new(
            "settings.pending_restart",
            "changed settings that wait for a restart",
            PENDING,
            |context| Box::pin(pending_restart(context)),
        )
        .grant("GRANT pg_read_all_settings TO {role}"),
    ]
}

/// A setting, the values that are weaker than they should be, and what that means.
struct Rule {
    name: &'static str,
    weak: &'static [&'static str],
    status: Status,
    means: &'static str,
    wanted: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        name: "fsync",
        weak: &["off"],
        status: Status::Crit,
        means: "a crash of the machine destroys the cluster",
        wanted: "on",
    },
    Rule {
        name: "full_page_writes",
        weak: &["off"],
        status: Status::Crit,
        means: "a crash of the machine can leave torn pages",
        wanted: "on",
    },
    Rule {
        name: "synchronous_commit",
        weak: &["off"],
        status: Status::Warn,
        means: "a crash loses the last committed transactions",
        wanted: "on",
    },
    Rule {
        name: "wal_level",
        weak: &["minimal"],
        status: Status::Warn,
        means: "neither physical backups, archiving nor standbys are possible",
        wanted: "replica",
    },
    Rule {
        name: "autovacuum",
        weak: &["off"],
        status: Status::Warn,
        means: "dead rows and old transaction ids stay",
        wanted: "on",
    },
    Rule {
        name: "password_encryption",
        weak: &["md5"],
        status: Status::Warn,
        means: "new passwords are stored as md5, which is deprecated",
        wanted: "scram-sha-256",
    },
    Rule {
        name: "zero_damaged_pages",
        weak: &["on"],
        status: Status::Crit,
        means: "a damaged page is replaced by zeros when it is read",
        wanted: "off",
    },
    Rule {
        name: "ignore_checksum_failure",
        weak: &["on"],
        status: Status::Crit,
        means: "damaged pages are returned as if they were sound",
        wanted: "off",
    },
];

fn safety(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    let weak: Vec<(&Rule, &Setting)> = RULES
        .iter()
        .filter_map(|rule| {
            let setting = facts.settings.get(rule.name)?;
            rule.weak
                .contains(&setting.setting.as_deref()?)
                .then_some((rule, setting))
        })
        .collect();
    let Some((worst, _)) = weak.iter().max_by_key(|(rule, _)| rule.status.code()) else {
        return Ok(Finding::ok(
            "fsync, full_page_writes, synchronous_commit, wal_level, autovacuum and password_encryption are as they \
             should be",
        )
        .measured(Measure::count(0))
        .into());
    };
    let evidence = weak
        .iter()
        .map(|(rule, setting)| {
            format!(
                "{} is {}: {}",
                rule.name,
                setting.setting.as_deref().unwrap_or_default(),
                rule.means
            )
        })
        .collect::<Vec<_>>()
        .join("; ");
    let restart = if worst.name == "wal_level" {
        "restart"
    } else {
        "SELECT pg_reload_conf()"
    };
    let hint = format!(
        "ALTER SYSTEM SET {} = '{}', then {restart}",
        worst.name, worst.wanted
    );
    let rows =
        Rows::new(["setting", "value", "should be", "set in"]).with(weak.iter().map(|(rule, setting)| {
            [
                rule.name.to_owned(),
                setting.setting.clone().unwrap_or_default(),
                rule.wanted.to_owned(),
                place(setting),
            ]
        }));
    Ok(Finding::new(worst.status, evidence)
        .measured(Measure::count(weak.len() as i64))
        .rows(rows)
        .hint(hint)
        .into())
}

fn place(setting: &Setting) -> String {
    setting.place.clone().unwrap_or_else(|| setting.source.clone())
}

/// Only superusers may read the view by default (system_views.sql).
const MAY_READ_FILES: &str = "
SELECT has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')
       AND has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE') AS allowed";

/// What the files say now: of several entries the last counts (documentation of pg_file_settings).
const IN_FILES: &str = "
SELECT DISTINCT ON (lower(name)) lower(name) AS name, coalesce(setting, '') AS setting,
       sourcefile || ':' || sourceline AS place
  FROM pg_file_settings WHERE name IS NOT NULL ORDER BY lower(name), seqno DESC";

#[derive(Deserialize)]
struct Allowed {
    allowed: bool,
}

#[derive(Deserialize)]
struct InFile {
    name: String,
    setting: String,
    place: String,
}

/// The entries of the files, by name; none where the role may not read them.
async fn in_files(context: &Context) -> Result<Option<HashMap<String, InFile>>, Failure> {
    if !context.row::<Allowed>(MAY_READ_FILES).await?.allowed {
        return Ok(None);
    }
    let entries: Vec<InFile> = context.rows(IN_FILES).await?;
    Ok(Some(
        entries
            .into_iter()
            .map(|entry| (entry.name.clone(), entry))
            .collect(),
    ))
}

/// The value that a restart will put in force, and where it is written.
fn to_come(setting: &Setting, files: Option<&HashMap<String, InFile>>) -> (String, String) {
    let Some(files) = files else {
        return (
            "(only superusers see it)".to_owned(),
            "postgresql.auto.conf, postgresql.conf or a file that it includes".to_owned(),
        );
    };
    match files.get(&setting.name.to_ascii_lowercase()) {
        Some(entry) => (entry.setting.clone(), entry.place.clone()),
        None => ("(the default)".to_owned(), "no file any more".to_owned()),
    }
}

async fn pending_restart(context: &Context) -> Result<Verdict, Failure> {
    let facts: &Facts = context.facts()?;
    let mut pending: Vec<&Setting> = facts
        .settings
        .values()
        .filter(|setting| setting.pending_restart)
        .collect();
    pending.sort_by(|left, right| left.name.cmp(&right.name));
    if pending.is_empty() && !facts.sees_settings {
        // Rows of settings for superusers are missing from the view, not empty in it.
        return Err(Failure::Denied {
            message: format!("the role {} does not see every setting", facts.role),
        });
    }
    let evidence = match pending.first() {
        None => "no setting waits for a restart".to_owned(),
        Some(_) => format!(
            "{} for a restart: {}",
            plural(pending.len(), "changed setting waits", "changed settings wait"),
            pending
                .iter()
                .map(|setting| setting.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    let files = if pending.is_empty() {
        None
    } else {
        in_files(context).await?
    };
    let rows = Rows::new(["setting", "value in force", "after a restart", "set in"]).with(
        pending.iter().map(|setting| {
            let (value, place) = to_come(setting, files.as_ref());
            [
                setting.name.clone(),
                setting.setting.clone().unwrap_or_default(),
                value,
                place,
            ]
        }),
    );
    Ok(Finding::judged(
        Measure::count(pending.len() as i64),
        context.limit("settings.pending_restart"),
        evidence,
    )
    .rows(rows)
    .hint(
        "plan a restart, or take the change back: a crash would put it in force at the worst time. A standby whose \
         max_connections and the like are below the primary's will not start",
    )
    .into())
}
