//! `pgmahout dump copy`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use pgmahout_backup::dump::copy::{self, CopyRequest, Mask};
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_procedure::confirm::{Confirm as _, Question};
use serde_json::json;

use super::restore::{counts_json, print_counts};
use crate::ExitStatus;
use crate::context::{ConfirmationArgs, Context};
use crate::failure::Failure;

/// Copy a database into a new one, masking columns on the way.
///
/// Streams from server to server, without a file in between. The target is filled under a temporary name
/// that nobody may enter, and gets its name when all rows are there, masked and counted; a failure leaves
/// nothing behind. Masks are SQL expressions over the row; they are applied before anyone can log in.
///
/// Examples:
///   pgmahout dump copy --from postgresql://prod.example.org/shop --to postgresql://staging.example.org/shop
///   pgmahout dump copy --from service=prod --to 'host=/tmp dbname=shop' --clean \
///     --mask "customers.email='c' || id || '@example.org'" --mask customers.phone=NULL
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The database to copy.
    #[arg(long, value_name = "DSN")]
    from: String,

    /// The database to make.
    #[arg(long, value_name = "DSN")]
    to: String,

    /// Replace a column by an expression; may be given several times.
    #[arg(long = "mask", value_name = "[SCHEMA.]TABLE.COLUMN=EXPRESSION")]
    masks: Vec<String>,

    /// Replace the target if it exists.
    #[arg(long)]
    clean: bool,

    /// Definitions only.
    #[arg(long, conflicts_with = "masks")]
    schema_only: bool,

    /// Leave out the rows of these tables; may be given several times.
    #[arg(long, value_name = "PATTERN")]
    exclude_table_data: Vec<String>,

    /// Copy who owns what and who may do what; the roles must exist in the target's server.
    #[arg(long)]
    owner: bool,

    /// Directory of pg_dump and psql.
    #[arg(long, value_name = "DIRECTORY")]
    bin_dir: Option<PathBuf>,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let masks = args
        .masks
        .iter()
        .map(|text| Mask::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    let request = CopyRequest {
        from: ConnectionParameters::from_dsn(&args.from, &context.environment)?,
        to: ConnectionParameters::from_dsn(&args.to, &context.environment)?,
        replace: args.clean,
        masks,
        schema_only: args.schema_only,
        exclude_table_data: args.exclude_table_data.clone(),
        owner: args.owner,
        bin_dir: args
            .bin_dir
            .clone()
            .or_else(|| context.settings().ok()?.server.bin_dir.clone()),
    };
    let (from, to) = (request.from.describe(), request.to.describe());
    let masked = request.masks.len();
    let name = request.to.database.clone();
    let plan = copy::plan(request).await?;
    let printer = &context.printer;
    printer.note(&format!("Plan: copy {from}"));
    printer.note(&format!("  to {to}"));
    printer.note(&format!(
        "  {} tables with about {} rows",
        plan.source.tables, plan.source.rows
    ));
    if masked > 0 {
        printer.note(&format!("  {masked} columns are masked before anyone can log in"));
    }
    if let Some(target) = &plan.target {
        printer.note(&format!(
            "  will be lost: everything in {name}: {} tables with about {} rows; {} sessions are ended",
            target.tables, target.rows, target.sessions
        ));
    }
    if args.confirmation.dry_run {
        return Ok(ExitStatus::SUCCESS);
    }
    if let Some(target) = &plan.target {
        let text = format!("Replace database {name}?");
        let question = if target.rows > plan.source.rows {
            Question::type_yes(text)
        } else {
            Question::yes_no(text)
        };
        context.confirmation(&args.confirmation).ask(&question)?;
    }
    let reporter = context.reporter();
    let outcome = copy::run(&plan, reporter.as_ref(), &context.cancellation).await?;
    let rows: u64 = outcome.counts.iter().filter_map(|row| row.found).sum();
    if printer.wants_json() {
        printer.json(&json!({
            "schema_version": 1,
            "from": from,
            "to": to,
            "masked_columns": masked,
            "seconds": outcome.seconds,
            "tables": counts_json(&outcome.counts),
        }))?;
    } else {
        print_counts(context, &outcome.counts);
        printer.line(&format!(
            "Copied {from} to {to}: {} tables, {rows} rows, {masked} columns masked, in {:.1} s.",
            outcome.counts.len(),
            outcome.seconds
        ));
    }
    Ok(ExitStatus::SUCCESS)
}
