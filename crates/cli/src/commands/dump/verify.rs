//! `pgmahout dump verify`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use pgmahout_backup::dump::read::OpenOptions;
use pgmahout_backup::dump::verify::{self, Assertion, VerifyRequest};
use pgmahout_config::Settings;
use pgmahout_postgres::params::ConnectionParameters;
use serde_json::json;

use super::restore::{counts_json, keyring, print_counts, read, source};
use super::{KeyArgs, PlaceArgs, settings};
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Test a dump by restoring it.
///
/// Starts a private PostgreSQL server of a fitting version on this machine (in a directory of its own, on a
/// private socket, as an unprivileged user), restores the dump into it, compares the rows of every table
/// with the dump and its manifest, asks the assertions, and removes everything. With --server it uses a
/// temporary database of that server instead. The result is recorded in the dump's manifest.
///
/// Examples:
///   pgmahout dump verify shop.sql.gz
///   pgmahout dump verify shop.sql.gz --assert 'SELECT count(*) > 1000 FROM orders'
///   pgmahout dump verify --repo shop.sql.gz --server postgresql://test.example.org/postgres
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The dump: a file, a directory of pg_dump -Fd, - for standard input; with --repo its name there.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// A server in which a temporary database is made, instead of a private one.
    #[arg(long, value_name = "DSN")]
    server: Option<String>,

    /// A query that must return true in the restored database; may be given several times.
    #[arg(long = "assert", value_name = "SQL")]
    assertions: Vec<String>,

    /// Of a pg_dumpall stream, or a dump that connects to its database: this database.
    #[arg(long = "database", value_name = "NAME")]
    section: Option<String>,

    /// Of a tar of several dumps: this file.
    #[arg(long, value_name = "NAME")]
    member: Option<String>,

    /// Directory of initdb, postgres, psql and pg_restore.
    #[arg(long, value_name = "DIRECTORY")]
    bin_dir: Option<PathBuf>,

    /// Directory for the private server, and for what must be unpacked.
    #[arg(long, value_name = "DIRECTORY")]
    temp_dir: Option<PathBuf>,

    #[command(flatten)]
    place: PlaceArgs,

    #[command(flatten)]
    key: KeyArgs,
}

/// Those of the command line, and those of the configuration that are about this database.
fn assertions(args: &Args, settings: &Settings, database: Option<&str>) -> Vec<Assertion> {
    let configured = settings
        .dump
        .assertions
        .iter()
        .filter(|assertion| assertion.database.is_none() || assertion.database.as_deref() == database)
        .map(|assertion| Assertion {
            name: assertion.name.clone(),
            sql: assertion.sql.clone(),
        });
    let given = args.assertions.iter().map(|sql| Assertion {
        name: sql.clone(),
        sql: sql.clone(),
    });
    configured.chain(given).collect()
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let settings = settings(context)?;
    let bin_dir = args.bin_dir.clone().or_else(|| settings.server.bin_dir.clone());
    let server = match &args.server {
        Some(dsn) => Some(ConnectionParameters::from_dsn(dsn, &context.environment)?),
        None => None,
    };
    let source = source(&args.file, &args.place, &settings).await?;
    let options = OpenOptions {
        keyring: keyring(&args.key, &source, &settings, &context.cancellation).await?,
        bin_dir: bin_dir.clone(),
        temp_dir: args.temp_dir.clone(),
        member: args.member.clone(),
        target_major: 0,
    };
    let (dump, report) = read(source, options, context, true).await?;
    let database = dump
        .manifest()
        .map(|manifest| manifest.database.name.clone())
        .or_else(|| args.section.clone());
    let request = VerifyRequest {
        server,
        database: args.section.clone(),
        assertions: assertions(&args, &settings, database.as_deref()),
        bin_dir: bin_dir.clone(),
        temp_dir: args.temp_dir.clone(),
    };
    let reporter = context.reporter();
    let outcome = verify::verify(&request, &dump, report, reporter.as_ref(), &context.cancellation).await?;
    let rows: u64 = outcome.counts.iter().filter_map(|row| row.found).sum();
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "dump": dump.describe(),
            "passed": true,
            "server": outcome.server,
            "server_version": outcome.server_version.to_string(),
            "seconds": outcome.seconds,
            "assertions": outcome.assertions,
            "recorded": outcome.recorded,
            "tables": counts_json(&outcome.counts),
        }))?;
    } else {
        print_counts(context, &outcome.counts);
        context.printer.line(&format!(
            "{} restores: {} tables, {rows} rows, {} assertions, PostgreSQL {} ({}), in {:.1} s.",
            dump.describe(),
            outcome.counts.len(),
            outcome.assertions,
            outcome.server_version,
            outcome.server,
            outcome.seconds
        ));
        if !outcome.recorded {
            context
                .printer
                .note("It has no manifest, so the result is recorded nowhere.");
        }
    }
    Ok(ExitStatus::SUCCESS)
}
