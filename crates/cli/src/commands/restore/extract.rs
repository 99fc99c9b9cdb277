//! `pgmahout restore --extract-table`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use pgmahout_backup::physical::restore::extract::{self, ExtractRequest};
use pgmahout_config::quantity;
use pgmahout_postgres::params::{ConnectionOptions, ConnectionParameters};
use serde_json::json;

use super::{Args, arguments, usage};
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Copying one table as it was.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Table options")]
pub(super) struct TableArgs {
    /// Copy this table, as it was at the target, into the database of --into under another name. Nothing else is
    /// changed: a side server is restored for it and removed.
    #[arg(
        long,
        value_name = "SCHEMA.TABLE",
        requires = "into",
        conflicts_with_all = ["delta", "keep_old", "start", "as_standby", "wal_dir", "tablespaces", "include"]
    )]
    extract_table: Option<String>,

    /// Connection string of the database that gets the rows.
    #[arg(long, value_name = "DSN", requires = "extract_table")]
    into: Option<String>,

    /// Name of the new table [default: the table's with _restored].
    #[arg(long = "as", value_name = "NAME", requires = "extract_table")]
    new_name: Option<String>,

    /// Directory for the side server [default: the system's for temporary files].
    #[arg(long, value_name = "DIRECTORY", requires = "extract_table")]
    scratch_dir: Option<PathBuf>,
}

impl TableArgs {
    pub(super) fn is_wanted(&self) -> bool {
        self.extract_table.is_some()
    }
}

fn request(args: &Args, context: &Context) -> Result<ExtractRequest, Failure> {
    let wanted = args.table.extract_table.clone().unwrap_or_default();
    let (schema, table) = wanted.split_once('.').unwrap_or(("public", &wanted));
    if schema.is_empty() || table.is_empty() {
        return Err(usage(
            format!("\"{wanted}\" is not the name of a table"),
            "write SCHEMA.TABLE, for example public.orders",
        ));
    }
    let options = ConnectionOptions {
        dsn: args.table.into.clone(),
        ..ConnectionOptions::default()
    };
    let into = ConnectionParameters::resolve(&options, &context.environment)?;
    let database = match args.place.databases.as_slice() {
        [] => into.database.clone(),
        [one] => one.clone(),
        _ => {
            return Err(usage("a table is in one database", "give --database once"));
        }
    };
    Ok(ExtractRequest {
        aim: args.target.wanted().aim()?,
        label: args.backup,
        database,
        schema: schema.to_owned(),
        table: table.to_owned(),
        new_name: args
            .table
            .new_name
            .clone()
            .unwrap_or_else(|| format!("{table}_restored")),
        into,
        bin_dir: args.directories.bin_dir(context)?,
        scratch: args.table.scratch_dir.clone(),
        jobs: args.place.jobs(),
        restore_command: match &args.server.restore_command {
            Some(command) => command.clone(),
            None => arguments::restore_command(args, context)?,
        },
        timeout: match &args.server.timeout {
            None => Duration::from_hours(24),
            Some(text) => quantity::duration(text).ok_or_else(|| {
                usage(
                    format!("\"{text}\" is not a length of time"),
                    "write for example 90s, 30min or 2h",
                )
            })?,
        },
    })
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<ExitStatus, Failure> {
    let request = request(args, context)?;
    let opened = args.repository.open_one(context).await?;
    let extracted = extract::extract(
        &opened.repository,
        &request,
        &context.reporter(),
        &context.cancellation,
    )
    .await?;
    if context.printer.wants_json() {
        context
            .printer
            .json(&json!({ "schema_version": 1, "extracted": extracted }))?;
    } else {
        context.printer.line(&format!(
            "Copied {} rows of {}.{} as of {} from backup {} into {} of {}, in {:.1} s.",
            extracted.rows,
            request.schema,
            request.table,
            request.aim.target,
            extracted.label,
            extracted.table,
            request.into.describe(),
            extracted.seconds
        ));
    }
    Ok(ExitStatus::SUCCESS)
}
