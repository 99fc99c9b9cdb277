//! `pgmahout verify`: active proof, after everything that `health` does.

use std::time::Duration;

use pgmahout_doctor::health::{CheckResult, HealthReport, Skipped, Status};
use pgmahout_doctor::verify::{Expected, VerifyOptions};
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use serde::Serialize;

use super::health::{self, CheckArgs};
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Prove that a server works, by doing: for after a change.
///
/// Runs every health check, then writes a row and reads it back, follows it to each standby and through
/// the pooler, forces a WAL segment into the archive and reads it back, checks tables and indexes with
/// amcheck, and compares the configuration's expect: section. What it writes is in its own schema,
/// pgmahout, removed afterwards.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Example:\n  pgmahout verify -h db1 -U postgres -d shop\n  \
                             pgmahout verify --read-only --table public.orders --amcheck-budget 5min"
)]
pub(crate) struct Args {
    #[command(flatten)]
    check: CheckArgs,

    /// Leave out everything that writes.
    #[arg(long)]
    read_only: bool,

    /// A standby to read the row from; may be given more than once.
    #[arg(long = "standby", value_name = "DSN")]
    standbys: Vec<String>,

    /// A table to check with amcheck, as SCHEMA.TABLE; may be given more than once [default: a sample].
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,

    /// How long amcheck may run; 0 leaves it out.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    amcheck_budget: Duration,

    /// How long a row or a WAL segment may take to arrive.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    patience: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    pgmahout_doctor::health::Unit::Seconds
        .parse(text)
        .map_err(|error| error.to_string())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()))
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Answer {
    schema_version: u32,
    status: Status,
    health: HealthReport,
    proof: Vec<CheckResult>,
    skipped: Vec<Skipped>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let parameters = context.connection(args.check.connection())?;
    let health = health::examine(&args.check, context).await?;
    let connection = Connection::open_secured(&parameters).await?;
    let target = health
        .targets
        .first()
        .cloned()
        .unwrap_or_else(|| parameters.describe());
    let options = VerifyOptions {
        read_only: args.read_only,
        patience: args.patience,
        standbys: args
            .standbys
            .iter()
            .map(|dsn| ConnectionParameters::from_dsn(dsn, &context.environment))
            .collect::<Result<_, _>>()?,
        pooler: pooler(&args, &parameters, context)?,
        tables: args.tables.clone(),
        amcheck_budget: args.amcheck_budget,
        expected: expected(context)?,
    };
    let proof = pgmahout_doctor::verify::run(&connection, &target, &options, &context.cancellation).await;
    connection.close().await;
    let proof = proof?;
    let status = Status::overall(
        [health.status]
            .into_iter()
            .chain(proof.results.iter().map(|result| result.status)),
    );
    if context.printer.wants_json() {
        context.printer.json(&Answer {
            schema_version: 1,
            status,
            health,
            proof: proof.results,
            skipped: proof.skipped,
        })?;
    } else {
        context
            .printer
            .data(&health::render_text(&health, false, &context.printer));
        let written = HealthReport::new(
            health.taken_at,
            Duration::ZERO,
            vec![target],
            proof.results,
            proof.skipped,
            Vec::new(),
        );
        context
            .printer
            .data(&health::render_text(&written, true, &context.printer));
    }
    Ok(ExitStatus(u8::from(status == Status::Crit)))
}

/// The database itself through the pooler whose console the health checks ask.
fn pooler(
    args: &Args,
    parameters: &ConnectionParameters,
    context: &Context,
) -> Result<Option<ConnectionParameters>, Failure> {
    Ok(args
        .check
        .pooler(context)?
        .map(|console| console.with_database(&parameters.database)))
}

fn expected(context: &Context) -> Result<Expected, Failure> {
    let expect = &context.settings()?.expect;
    Ok(Expected {
        extensions: expect.extensions.clone(),
        settings: expect.settings.clone(),
        roles: expect.roles.clone(),
    })
}
