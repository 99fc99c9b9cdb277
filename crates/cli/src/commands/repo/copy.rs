//! `pgmahout repo copy`.

use clap::Args as ClapArgs;
use pgmahout_backup::physical::copy::{self, Copied, CopyError, CopyRequest, Plan, WalChoice};
use pgmahout_backup::physical::stanza::{InitOptions, PhysicalRepository, StanzaError};
use pgmahout_backup::physical::verify::VerifyMemory;
use pgmahout_procedure::StateDirectory;
use pgmahout_types::Bytes;
use pgmahout_types::diagnostic::Outcome;
use pgmahout_types::repository::Label;
use serde_json::json;

use crate::ExitStatus;
use crate::commands::backup::{policy_of, time};
use crate::commands::physical::{Chosen, Opened, RepositoryArgs, memory, open};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::Align;

/// Copy backups and their WAL to another repository.
///
/// Everything is opened with the keys of the one and sealed with those of the other, so that codec and encryption
/// may differ, and every block is proven on the way. What the other repository has already is not copied again, also
/// after an interruption. Without --label all backups are copied that it lacks and that its `retention` would keep.
/// Afterwards what was copied is read back. A repository that is not set up yet is set up for this stanza.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  pgmahout repo copy --from local --to offsite
  pgmahout repo copy --from local --to offsite --label 20261121T104500Z-3f9a
  pgmahout repo copy --from local --to ./drive --dry-run")]
pub(crate) struct Args {
    /// The repository to copy from: its name, or its location.
    #[arg(long, value_name = "NAME|LOCATION")]
    from: String,

    /// The repository to copy to.
    #[arg(long, value_name = "NAME|LOCATION")]
    to: String,

    /// This backup only; may be given more than once.
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<Label>,

    /// This cluster's name in the repositories [default: `stanza` or `scope` of the configuration, else main].
    #[arg(long, value_name = "NAME")]
    stanza: Option<String>,

    /// Which WAL: all from the oldest backup on, or what the copied backups need.
    #[arg(long, value_name = "WHICH", default_value = "all")]
    wal: Wal,

    /// How many packs are copied at the same time, up to 3.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=3))]
    jobs: u8,

    /// Do not read back what was copied.
    #[arg(long)]
    no_verify: bool,

    /// Say what would be copied, and copy nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Which WAL is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wal {
    /// All from the oldest backup on.
    All,
    /// What the copied backups need.
    Needed,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let (from, to) = (
        chosen(&args, &args.from, context)?,
        chosen(&args, &args.to, context)?,
    );
    let stanza = repository_args(&args, &args.from).stanza(context.settings()?)?;
    let memory = memory();
    let Opened { repository: from, .. } = open(from, &stanza, &memory).await?;
    let request = CopyRequest {
        labels: args.labels.clone(),
        policy: to
            .configured
            .as_ref()
            .map(|repository| policy_of(&repository.retention)),
        wal: match args.wal {
            Wal::All => WalChoice::All,
            Wal::Needed => WalChoice::Needed,
        },
        jobs: usize::from(args.jobs),
        verify: !args.no_verify,
    };
    if args.dry_run {
        let store = to.open_store().await?;
        let to = match PhysicalRepository::open(store, stanza, &memory).await {
            Ok(to) => Some(to),
            Err(StanzaError::NotInitialised { .. } | StanzaError::NoSuchStanza { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let plan = copy::plan(&from, to.as_ref(), &request, &context.cancellation).await?;
        render_plan(&plan, &args, to.is_none(), context)?;
        return Ok(ExitStatus::SUCCESS);
    }
    let store = to.open_store().await?;
    let made = PhysicalRepository::init(
        store,
        stanza,
        from.stanza_info().clone(),
        InitOptions::default(),
        &memory,
    )
    .await?;
    let to = made.repository;
    if !context.printer.wants_json() && (made.new_repository || made.new_stanza) {
        context.printer.note(&format!(
            "{} is set up for stanza {}.",
            to.description(),
            to.stanza()
        ));
        if made.new_repository && !to.cipher().is_encrypted() {
            context.printer.warn(&format!(
                "repository {} is not encrypted: whoever can read it can read the database",
                args.to
            ));
        }
    }
    let mut verified = match StateDirectory::locate() {
        Ok(state) => VerifyMemory::load(&state, &to),
        Err(_) => VerifyMemory::none(),
    };
    let reporter = context.reporter();
    let copied = copy::copy(
        &from,
        &to,
        &request,
        &mut verified,
        reporter.as_ref(),
        &context.cancellation,
    )
    .await?;
    let complete = copied.is_complete();
    if context.printer.wants_json() {
        context.printer.json(&to_json(&args, &copied))?;
    } else {
        render(&args, &to, copied, context);
    }
    Ok(ExitStatus(u8::from(!complete)))
}

fn repository_args(args: &Args, repo: &str) -> RepositoryArgs {
    RepositoryArgs {
        repo: Some(repo.to_owned()),
        stanza: args.stanza.clone(),
        ..RepositoryArgs::default()
    }
}

fn chosen(args: &Args, repo: &str, context: &Context) -> Result<Chosen, Failure> {
    let chosen = repository_args(args, repo).chosen(context.settings()?)?;
    chosen.into_iter().next().ok_or_else(|| {
        Failure::new(Outcome::Usage, format!("there is no repository {repo}"))
            .hint("name one of the configuration, or its location: ./DIRECTORY or s3://BUCKET/PREFIX")
    })
}

fn render_plan(plan: &Plan, args: &Args, is_new: bool, context: &Context) -> Result<(), Failure> {
    let printer = &context.printer;
    if printer.wants_json() {
        printer.json(&json!({
            "schema_version": 1,
            "from": args.from,
            "to": args.to,
            "to_is_new": is_new,
            "plan": plan,
        }))?;
        return Ok(());
    }
    if is_new {
        printer.note(&format!("{} would be set up.", args.to));
    }
    let rows: Vec<Vec<String>> = plan
        .backups
        .iter()
        .map(|backup| {
            vec![
                backup.label.to_string(),
                time(backup.stop_time),
                Bytes::new(backup.bytes).to_string(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let columns = [
            ("to copy", Align::Left),
            ("taken", Align::Left),
            ("files", Align::Right),
        ];
        printer.table(&columns, rows);
    }
    printer.line(&format!(
        "{} backups to copy: {} packs ({}; {} more are there already), {} WAL files ({}).{}",
        plan.backups.len(),
        plan.packs,
        Bytes::new(plan.pack_bytes),
        plan.packs_there,
        plan.wal_files,
        Bytes::new(plan.wal_bytes),
        others(plan.already.len(), plan.unwanted.len()),
    ));
    Ok(())
}

/// What is not copied, and why.
fn others(already: usize, unwanted: usize) -> String {
    let already = (already > 0).then(|| format!(" {already} are there already."));
    let unwanted = (unwanted > 0).then(|| format!(" {unwanted} are older than what is kept there."));
    [already, unwanted].into_iter().flatten().collect()
}

fn to_json(args: &Args, copied: &Copied) -> serde_json::Value {
    let failed: Vec<_> = copied
        .failed
        .iter()
        .map(|failed| json!({"label": failed.label, "error": failed.error.in_one_line()}))
        .collect();
    let verified = copied.verified.as_ref().map(|report| {
        json!({
            "passed": report.is_sound(),
            "objects": report.objects,
            "bytes": report.bytes,
            "damages": report.damages,
        })
    });
    json!({
        "schema_version": 1,
        "from": args.from,
        "to": args.to,
        "complete": copied.is_complete(),
        "backups": copied.backups,
        "failed": failed,
        "failed_wal": copied.failed_wal.iter().map(CopyError::in_one_line).collect::<Vec<_>>(),
        "already": copied.already,
        "unwanted": copied.unwanted,
        "packs": copied.packs,
        "packs_there": copied.packs_there,
        "stored_bytes": copied.stored,
        "wal_files": copied.wal_files,
        "wal_stored_bytes": copied.wal_stored,
        "verified": verified,
    })
}

fn render(args: &Args, to: &PhysicalRepository, copied: Copied, context: &Context) {
    let printer = &context.printer;
    for backup in &copied.backups {
        let name = if backup.copy == backup.label {
            String::new()
        } else {
            format!(" as {}", backup.copy)
        };
        printer.line(&format!(
            "copied {}{name}: {}",
            backup.label,
            Bytes::new(backup.bytes)
        ));
    }
    for failed in copied.failed {
        printer.warn(&format!(
            "{} was not copied: {}",
            failed.label,
            failed.error.in_one_line()
        ));
    }
    for error in copied.failed_wal {
        printer.warn(&format!("a file of WAL was not copied: {}", error.in_one_line()));
    }
    printer.line(&format!(
        "{}: {} backups copied: {} packs ({} were there), {} stored; {} WAL files, {} stored.{}",
        to.description(),
        copied.backups.len(),
        copied.packs,
        copied.packs_there,
        Bytes::new(copied.stored),
        copied.wal_files,
        Bytes::new(copied.wal_stored),
        others(copied.already.len(), copied.unwanted.len()),
    ));
    let Some(report) = copied.verified else { return };
    if report.is_sound() {
        printer.line(&format!(
            "read back: {} objects ({}), nothing wrong.",
            report.objects,
            Bytes::new(report.bytes)
        ));
        return;
    }
    for damage in &report.damages {
        printer.line(&format!(
            "{} {}: {}",
            printer.palette().bad("damaged:"),
            damage.object,
            damage.problem
        ));
    }
    printer.note(&format!(
        "hint: see what it hits: pgmahout backup verify --repo {0}; then run the copy again: a copy that is known to be \
         damaged is not counted as one",
        args.to
    ));
}
