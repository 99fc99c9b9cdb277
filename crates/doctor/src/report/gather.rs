//! Asking the server for what a report shows.

use std::collections::BTreeMap;

use pgmahout_postgres::connection::Connection;
use pgmahout_types::diagnostic::Diagnose;

use super::history::{Entry, History};
use super::{Kind, Report, Section, Trend};
use crate::health::{HealthReport, Measure};

/// How many rows the tables of a report have.
const MOST_ROWS: i64 = 20;

/// How many tables' sizes are remembered for the growth of the next report.
const MOST_REMEMBERED: i64 = 500;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask the server for {what}")]
pub struct ReportError {
    what: &'static str,
    #[source]
    source: tokio_postgres::Error,
}

impl Diagnose for ReportError {
    fn hint(&self) -> Option<String> {
        Some("report as a role that may see statistics: pgmahout role create-monitor".into())
    }
}

fn asking(what: &'static str) -> impl Fn(tokio_postgres::Error) -> ReportError {
    move |source| ReportError { what, source }
}

/// Bytes of a table with its indexes and TOAST, by the planner's page counts: they open no relation and so
/// wait for no lock, and are as fresh as the last vacuum or analyze.
const TABLE_SIZES: &str = "
SELECT n.nspname || '.' || c.relname AS name,
       (greatest(c.relpages, 0)::int8 + coalesce(greatest(t.relpages, 0), 0)
        + coalesce((SELECT sum(greatest(x.relpages, 0)) FROM pg_catalog.pg_index i
                    JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid), 0)::int8)
       * current_setting('block_size')::int8 AS bytes,
       greatest(c.reltuples, 0)::int8 AS rows
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid
 WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
 ORDER BY 2 DESC, 1
 LIMIT $1";

const STATEMENTS: &str = "
SELECT regexp_replace(left(query, 160), '\\s+', ' ', 'g') AS query, calls,
       total_exec_time, mean_exec_time, rows
  FROM {schema}.pg_stat_statements
 ORDER BY total_exec_time DESC
 LIMIT 10";

/// Makes the report, and the entry by which the next one will know this one's figures.
///
/// `more` are sections from elsewhere: dumps, procedures.
///
/// # Errors
///
/// When the server does not answer a question that every role may ask.
pub async fn gather(
    connection: &Connection,
    kind: Kind,
    target: &str,
    health: HealthReport,
    history: &History,
    more: Vec<Section>,
) -> Result<(Report, Entry), ReportError> {
    connection
        .batch_execute("SET lock_timeout = '500ms'; SET statement_timeout = '30s'; SET default_transaction_read_only = on")
        .await
        .map_err(asking("a quiet session"))?;
    let identity = connection
        .query_one(
            "SELECT pg_is_in_recovery(), pg_postmaster_start_time(), current_database()::text",
            &[],
        )
        .await
        .map_err(asking("its role"))?;
    let made_at = health.taken_at;
    let sizes = table_sizes(connection).await?;
    let entry = Entry {
        schema_version: Entry::VERSION,
        at: made_at,
        figures: health
            .results
            .iter()
            .filter_map(|result| Some((result.id.clone(), result.measure?)))
            .collect(),
        tables: sizes.iter().map(|size| (size.name.clone(), size.bytes)).collect(),
    };
    let mut sections = vec![
        databases(connection).await?,
        largest(&sizes, identity.get(2)),
        growing(&entry, history, kind),
        statements(connection).await?,
    ];
    sections.extend(more);
    let report = Report {
        schema_version: Report::VERSION,
        kind,
        made_at,
        target: target.to_owned(),
        server_version: connection.server_version().to_string(),
        role: if identity.get(0) { "standby" } else { "primary" }.to_owned(),
        started_at: identity.get(1),
        trends: trends(&entry, history, kind),
        health,
        sections,
    };
    Ok((report, entry))
}

struct TableSize {
    name: String,
    bytes: i64,
    rows: i64,
}

async fn table_sizes(connection: &Connection) -> Result<Vec<TableSize>, ReportError> {
    Ok(connection
        .query(TABLE_SIZES, &[&MOST_REMEMBERED])
        .await
        .map_err(asking("the sizes of tables"))?
        .iter()
        .map(|row| TableSize {
            name: row.get(0),
            bytes: row.get(1),
            rows: row.get(2),
        })
        .collect())
}

async fn databases(connection: &Connection) -> Result<Section, ReportError> {
    let mut section = Section::new(
        "Databases",
        ["database", "size", "sessions", "oldest transaction id"],
    );
    let rows = connection
        .query(
            "SELECT d.datname::text,
                    CASE WHEN has_database_privilege(d.oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')
                         THEN pg_database_size(d.oid) END,
                    (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid AND a.backend_type = 'client backend'),
                    age(d.datfrozenxid)::int8
               FROM pg_catalog.pg_database d WHERE d.datallowconn ORDER BY 2 DESC NULLS LAST, 1",
            &[],
        )
        .await
        .map_err(asking("the databases"))?;
    for row in rows {
        let size: Option<i64> = row.get(1);
        section.rows.push(vec![
            row.get(0),
            size.map_or_else(
                || "not visible".to_owned(),
                |bytes| Measure::bytes(bytes).to_string(),
            ),
            row.get::<_, i64>(2).to_string(),
            row.get::<_, i64>(3).to_string(),
        ]);
    }
    Ok(section)
}

fn largest(sizes: &[TableSize], database: &str) -> Section {
    let mut section = Section::new("Largest tables", ["table", "size with indexes", "rows"]).note(format!(
        "In database {database}, by the figures of the last vacuum or analyze."
    ));
    for size in sizes.iter().take(MOST_ROWS as usize) {
        section.rows.push(vec![
            size.name.clone(),
            Measure::bytes(size.bytes).to_string(),
            format!("about {}", size.rows),
        ]);
    }
    section
}

/// The tables that grew most since the oldest report that the kind looks back to.
fn growing(now: &Entry, history: &History, kind: Kind) -> Section {
    let section = Section::new("Fastest-growing tables", ["table", "growth", "size with indexes"]);
    let Some(then) = history.window(now.at, kind).first().copied() else {
        return section.note("Needs an earlier report of this server to compare with.");
    };
    let mut grown: Vec<(&String, i64, i64)> = now
        .tables
        .iter()
        .map(|(name, bytes)| (name, bytes - then.tables.get(name).copied().unwrap_or(0), *bytes))
        .filter(|(_, growth, _)| *growth > 0)
        .collect();
    grown.sort_by_key(|(name, growth, _)| (std::cmp::Reverse(*growth), (*name).clone()));
    let mut section = section.note(format!("Since {}.", then.at.strftime("%Y-%m-%d %H:%M UTC")));
    for (name, growth, bytes) in grown.into_iter().take(MOST_ROWS as usize) {
        section.rows.push(vec![
            name.clone(),
            format!("+{}", Measure::bytes(growth)),
            Measure::bytes(bytes).to_string(),
        ]);
    }
    section
}

async fn statements(connection: &Connection) -> Result<Section, ReportError> {
    let section = Section::new("Costliest queries", ["query", "calls", "total", "mean", "rows"]);
    let schema = connection
        .query_opt(
            "SELECT quote_ident(n.nspname) FROM pg_catalog.pg_extension e
             JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'",
            &[],
        )
        .await
        .map_err(asking("its extensions"))?;
    let Some(schema) = schema.map(|row| row.get::<_, String>(0)) else {
        return Ok(section.note(
            "Needs the extension pg_stat_statements: add it to shared_preload_libraries, restart, CREATE EXTENSION pg_stat_statements.",
        ));
    };
    // The view raises an error where the library was not loaded; the report goes on without it.
    let rows = match connection
        .query(&STATEMENTS.replace("{schema}", &schema), &[])
        .await
    {
        Ok(rows) => rows,
        Err(error) => {
            let message = error
                .as_db_error()
                .map_or_else(|| error.to_string(), |answer| answer.message().to_owned());
            return Ok(section.note(format!("Not available: {message}.")));
        }
    };
    let mut section = section.note("By total execution time since the statistics were reset.");
    for row in rows {
        section.rows.push(vec![
            row.get::<_, Option<String>>(0)
                .unwrap_or_else(|| "(not visible to this role)".to_owned()),
            row.get::<_, i64>(1).to_string(),
            Measure::seconds(row.get::<_, f64>(2) / 1e3).to_string(),
            Measure::seconds(row.get::<_, f64>(3) / 1e3).to_string(),
            row.get::<_, i64>(4).to_string(),
        ]);
    }
    Ok(section)
}

/// Every figure that an earlier report in the window has too.
fn trends(now: &Entry, history: &History, kind: Kind) -> Vec<Trend> {
    let mut series: BTreeMap<&str, Trend> = BTreeMap::new();
    for entry in history.window(now.at, kind).into_iter().chain([now]) {
        for (id, measure) in &entry.figures {
            let trend = series.entry(id).or_insert_with(|| Trend {
                id: id.clone(),
                unit: measure.unit,
                points: Vec::new(),
            });
            if trend.unit == measure.unit {
                trend.points.push((entry.at, measure.value));
            }
        }
    }
    series
        .into_values()
        .filter(|trend| trend.points.len() > 1)
        .collect()
}
