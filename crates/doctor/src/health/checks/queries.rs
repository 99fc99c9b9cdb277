//! Statements: those that run long, and how long the usual ones take.

use serde::Deserialize;

use super::{Question, our_session, plural, shown_query};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};

const LONG: &[Limit] = &[Limit::above(
    "queries.long",
    Unit::Seconds,
    Some(300.0),
    Some(3600.0),
)];
const LATENCY: &[Limit] = &[Limit::above(
    "queries.latency",
    Unit::Factor,
    Some(2.0),
    Some(5.0),
)];

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "queries.long",
            "longest running client statement",
            LONG,
            |context| Box::pin(long(context)),
        ),
        Question::new(
            "queries.latency",
            "mean execution time against the usual one",
            LATENCY,
            |context| Box::pin(latency(context)),
        ),
    ]
}

const RUNNING: &str = concat!(
    "SELECT pid, coalesce(usename::text, '') AS role, coalesce(datname::text, '') AS database,
            coalesce(application_name, '') AS application,
            extract(epoch FROM clock_timestamp() - query_start)::float8 AS running,
            coalesce(wait_event_type || '/' || wait_event, 'running') AS waits_for, ",
    shown_query!("query"),
    " AS query
       FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND state IN ('active', 'fastpath function call')
        AND NOT ",
    our_session!(),
    " ORDER BY query_start"
);

#[derive(Deserialize)]
struct Statement {
    pid: i64,
    role: String,
    database: String,
    application: String,
    running: f64,
    waits_for: String,
    query: String,
}

async fn long(context: &Context) -> Result<Verdict, Failure> {
    context.facts_with_statistics()?;
    let limit = context.limit("queries.long");
    let statements: Vec<Statement> = context.rows(RUNNING).await?;
    let Some(longest) = statements.first() else {
        return Ok(Finding::judged(Measure::seconds(0.0), limit, "no client statement is running").into());
    };
    let running = Measure::seconds(longest.running.max(0.0));
    let evidence = format!(
        "{}, the longest for {running}: pid {}, role {}, database {}: {}",
        plural(
            statements.len(),
            "client statement is running",
            "client statements are running"
        ),
        longest.pid,
        longest.role,
        longest.database,
        longest.query
    );
    let hint = format!(
        "if nobody needs it, cancel it: SELECT pg_cancel_backend({}); a statement_timeout for the role keeps others \
         from running as long",
        longest.pid
    );
    let rows = Rows::new([
        "pid",
        "role",
        "database",
        "application",
        "running",
        "waits for",
        "query",
    ])
    .with(statements.into_iter().map(|statement| {
        [
            statement.pid.to_string(),
            statement.role,
            statement.database,
            statement.application,
            Measure::seconds(statement.running.max(0.0)).to_string(),
            statement.waits_for,
            statement.query,
        ]
    }));
    Ok(Finding::judged(running, limit, evidence)
        .rows(rows)
        .hint(hint)
        .into())
}

/// Where pg_stat_statements is installed in the database asked, and may be read.
const STATEMENTS_PLACE: &str = "
SELECT format('%I.pg_stat_statements', n.nspname) AS view
  FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = 'pg_stat_statements'";

#[derive(Deserialize)]
struct Place {
    view: String,
}

#[derive(Deserialize)]
struct Mean {
    calls: i64,
    mean: f64,
}

async fn latency(context: &Context) -> Result<Verdict, Failure> {
    let asked = context.is_asked_for("queries.latency");
    let Some(history) = &context.sources().history else {
        return if asked {
            Err(Failure::Source {
                reason: "there is no baseline: no history of earlier samples is kept".to_owned(),
            })
        } else {
            Ok(Verdict::not_applicable("no history of earlier samples is kept"))
        };
    };
    let facts = context.facts_with_statistics()?;
    let Some(place) = context.rows::<Place>(STATEMENTS_PLACE).await?.pop() else {
        return Ok(Verdict::not_applicable(format!(
            "the extension pg_stat_statements is not installed in the database {}",
            facts.database
        )));
    };
    let question = format!(
        "SELECT coalesce(sum(calls), 0)::bigint AS calls, \
         coalesce(sum(total_exec_time) / nullif(sum(calls), 0) / 1000, 0)::float8 AS mean FROM {}",
        place.view
    );
    let now: Mean = context.row(&question).await?;
    let usual = history
        .baseline(&context.target().name, "queries.latency")
        .await
        .map_err(|reason| Failure::Source { reason })?
        .filter(|usual| *usual > 0.0)
        .ok_or_else(|| Failure::Source {
            reason: "there is no baseline for this hour of the week yet".to_owned(),
        })?;
    Ok(Finding::judged(
        Measure::new(now.mean / usual, Unit::Factor),
        context.limit("queries.latency"),
        format!(
            "a statement takes {} on average ({} calls), usually {}",
            Measure::seconds(now.mean),
            now.calls,
            Measure::seconds(usual)
        ),
    )
    .hint("see the costliest: SELECT query, calls, mean_exec_time FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 10")
    .into())
}
