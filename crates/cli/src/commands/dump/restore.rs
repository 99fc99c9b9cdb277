//! `pgmahout dump restore`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args as ClapArgs;
use pgmahout_backup::dump::create::{self, CreateRequest};
use pgmahout_backup::dump::location::Place;
use pgmahout_backup::dump::manifest::{Contents, CountMode, Format, Options};
use pgmahout_backup::dump::read::{Dump, OpenOptions, Source};
use pgmahout_backup::dump::restore::{
    BackupFirst, CountRow, KIND, Mode, Restore, RestoreError, RestoreRequest, owner_map,
};
use pgmahout_backup::dump::scan::{ScanReport, Selection, TableName};
use pgmahout_backup::dump::verify;
use pgmahout_config::Settings;
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_procedure::report::{Reporter, Task, Unit};
use pgmahout_procedure::{
    Ended, Procedure, Registry, RunOptions, Runner, StepContext, StepError, Surroundings,
};
use pgmahout_store::codec::Codec;
use pgmahout_store::seal::Keyring;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{KeyArgs, PlaceArgs, settings};
use crate::ExitStatus;
use crate::context::{ConfirmationArgs, ConnectionArgs, Context};
use crate::failure::Failure;
use crate::printer::Align;

/// Restore a dump into a database.
///
/// Reads what pgmahout dump create, pg_dump, pg_dumpall, gzip, zstd and lz4 write, told apart by content.
/// The whole file is read and checked before anything is changed. Then it is loaded in one transaction
/// that is committed only when the dump has ended well and every table has the rows it should have; a
/// failure at any point leaves the target as it was.
///
/// Examples:
///   pgmahout dump restore shop.sql.gz shop
///   pgmahout dump restore shop.sql.gz --into shop_copy
///   pgmahout dump restore shop.sql.gz shop --clean --yes
///   pgmahout dump restore all.sql.gz shop --database shop
#[derive(Debug, Clone, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The dump: a file, a directory of pg_dump -Fd, - for standard input; with --repo its name there.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The database to restore into [default: --dbname, $PGDATABASE, else postgres].
    #[arg(value_name = "DATABASE")]
    target: Option<String>,

    /// Create the database, which must not exist.
    #[arg(long, conflicts_with = "clean")]
    create: bool,

    /// Restore into this new database.
    #[arg(long, value_name = "NEW", conflicts_with_all = ["clean", "create", "target"])]
    into: Option<String>,

    /// Replace the database: restore into a new one, end the sessions on the old one, exchange them.
    #[arg(long)]
    clean: bool,

    /// Dump the database before, into this file or directory.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = ".")]
    backup_first: Option<PathBuf>,

    /// Of a pg_dumpall stream, or a dump that connects to its database: this database.
    #[arg(long = "database", value_name = "NAME")]
    section: Option<String>,

    /// Of a tar of several dumps: this file.
    #[arg(long, value_name = "NAME")]
    member: Option<String>,

    /// Definitions only.
    #[arg(long, conflicts_with = "data_only")]
    schema_only: bool,

    /// Rows only.
    #[arg(long)]
    data_only: bool,

    /// Only this table, with its indexes, constraints and sequences; may be given several times.
    #[arg(short = 't', long = "table", value_name = "[SCHEMA.]TABLE")]
    tables: Vec<String>,

    /// Only what is in this schema; may be given several times.
    #[arg(short = 'n', long = "schema", value_name = "SCHEMA")]
    schemas: Vec<String>,

    /// Give what OLD owns, and its rights, to NEW; may be given several times.
    #[arg(long, value_name = "OLD=NEW")]
    owner_map: Vec<String>,

    /// Leave out who owns what: everything belongs to the restoring role.
    #[arg(long)]
    no_owner: bool,

    /// Leave out who may do what.
    #[arg(long)]
    no_acl: bool,

    /// Load custom and directory archives by so many workers, without a common transaction.
    #[arg(short = 'j', long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: u32,

    /// Let every statement take effect by itself; what was restored before a failure stays.
    #[arg(long)]
    no_transaction: bool,

    /// Directory of psql and pg_restore.
    #[arg(long, value_name = "DIRECTORY")]
    bin_dir: Option<PathBuf>,

    /// Directory for what must be unpacked before it can be read.
    #[arg(long, value_name = "DIRECTORY")]
    temp_dir: Option<PathBuf>,

    #[command(flatten)]
    place: PlaceArgs,

    #[command(flatten)]
    key: KeyArgs,

    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

/// Where a dump is, from what was typed.
pub(super) async fn source(file: &Path, place: &PlaceArgs, settings: &Settings) -> Result<Source, Failure> {
    match place.repository(settings, place.repo.is_none()).await? {
        Some(repository) => Ok(Source::Stored {
            place: Place::Repository(repository),
            name: file.to_string_lossy().into_owned(),
        }),
        None => Ok(Source::of_path(file)?),
    }
}

/// The keys that may open a dump: those given or configured, and the repository's.
pub(super) async fn keyring(
    keys: &KeyArgs,
    source: &Source,
    settings: &Settings,
    cancellation: &CancellationToken,
) -> Result<Keyring, Failure> {
    if let Some((keyring, _)) = keys.given(settings)? {
        return Ok(keyring);
    }
    if let Source::Stored {
        place: Place::Repository(repository),
        ..
    } = source
        && let Some(keyring) = repository.keyring(cancellation).await?
    {
        return Ok((*keyring).clone());
    }
    Ok(Keyring::new())
}

/// The database that was meant: the argument, else the connection's, else postgres.
fn target(args: &Args, context: &Context) -> Result<ConnectionParameters, Failure> {
    let parameters = context.connection(&args.connection)?;
    let named = args.into.as_ref().or(args.target.as_ref());
    if let Some(name) = named {
        return Ok(parameters.with_database(name));
    }
    let environment = context.environment.variable("PGDATABASE").is_some();
    let in_dsn = args.connection.dsn.as_deref().is_some_and(names_database);
    if args.clean && !(args.connection.database.is_some() || in_dsn || environment) {
        return Err(RestoreError::Usage {
            what: "--clean does not say which database is to be replaced".to_owned(),
            hint: format!(
                "name it: pgmahout dump restore {} DATABASE --clean",
                args.file.display()
            ),
        }
        .into());
    }
    let says = args.connection.database.is_some() || args.connection.dsn.is_some() || environment;
    Ok(if says {
        parameters
    } else {
        parameters.with_database("postgres")
    })
}

/// Whether a connection string names a database.
fn names_database(dsn: &str) -> bool {
    match dsn.split_once("://") {
        Some((_, rest)) => {
            let (address, options) = rest.split_once('?').unwrap_or((rest, ""));
            address.split_once('/').is_some_and(|(_, name)| !name.is_empty())
                || options.split('&').any(|option| option.starts_with("dbname="))
        }
        None => dsn
            .split_ascii_whitespace()
            .any(|word| word.starts_with("dbname")),
    }
}

fn table(text: &str) -> TableName {
    match text.split_once('.') {
        Some((schema, name)) => TableName::new(schema, name),
        None => TableName::new("", text),
    }
}

fn request(
    args: &Args,
    target: ConnectionParameters,
    settings: &Settings,
    context: &Context,
) -> Result<RestoreRequest, Failure> {
    let backup_first: Option<Arc<dyn BackupFirst>> = match &args.backup_first {
        None => None,
        Some(path) => Some(Arc::new(TargetDump {
            request: backup_request(args, path, &target, settings)?,
            reporter: context.reporter(),
        })),
    };
    Ok(RestoreRequest {
        mode: if args.clean {
            Mode::Replace
        } else if args.create || args.into.is_some() {
            Mode::New
        } else {
            Mode::Existing
        },
        selection: Selection {
            schema_only: args.schema_only,
            data_only: args.data_only,
            tables: args.tables.iter().map(|text| table(text)).collect(),
            schemas: args.schemas.iter().cloned().collect(),
            no_owner: args.no_owner,
            no_acl: args.no_acl,
            owner_map: owner_map(&args.owner_map)?,
            ..Selection::default()
        },
        database: args.section.clone(),
        jobs: args.jobs,
        no_transaction: args.no_transaction,
        bin_dir: args.bin_dir.clone(),
        backup_first,
        parameters: json!({ "arguments": arguments(args, &target) }),
        target,
    })
}

/// What would be typed to do the same again, from any directory and without secrets: for the journal.
fn arguments(args: &Args, target: &ConnectionParameters) -> Vec<String> {
    let absolute = |path: &PathBuf| {
        std::path::absolute(path)
            .unwrap_or_else(|_| path.clone())
            .display()
            .to_string()
    };
    let in_repository = args.place.repo.is_some();
    let file = if in_repository {
        args.file.display().to_string()
    } else {
        absolute(&args.file)
    };
    let mut words = vec!["restore".to_owned(), file];
    let mut option = |name: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("--{name}={value}")));
    };
    let secretive = |dsn: &String| dsn.to_ascii_lowercase().contains("password") || dsn.contains('@');
    if let Some(dsn) = args.connection.dsn.as_ref().filter(|dsn| !secretive(dsn)) {
        option("dsn", Some(dsn.clone()));
    } else {
        let hosts: Vec<String> = target
            .hosts
            .iter()
            .map(pgmahout_postgres::params::Host::name)
            .collect();
        let ports: Vec<String> = target.hosts.iter().map(|host| host.port.to_string()).collect();
        option("host", Some(hosts.join(",")));
        option("port", Some(ports.join(",")));
        option("username", Some(target.user.clone()));
    }
    option("repo", args.place.repo.clone());
    option("database", args.section.clone());
    option("member", args.member.clone());
    option("jobs", Some(args.jobs.to_string()));
    option("passphrase", args.key.passphrase.clone());
    option("key-file", args.key.key_file.as_ref().map(absolute));
    option("bin-dir", args.bin_dir.as_ref().map(absolute));
    option("temp-dir", args.temp_dir.as_ref().map(absolute));
    option("backup-first", args.backup_first.as_ref().map(absolute));
    for (name, values) in [
        ("table", &args.tables),
        ("schema", &args.schemas),
        ("owner-map", &args.owner_map),
    ] {
        for value in values {
            option(name, Some(value.clone()));
        }
    }
    for (given, name) in [
        (args.create, "--create"),
        (args.clean, "--clean"),
        (args.schema_only, "--schema-only"),
        (args.data_only, "--data-only"),
        (args.no_owner, "--no-owner"),
        (args.no_acl, "--no-acl"),
        (args.no_transaction, "--no-transaction"),
    ] {
        if given {
            words.push(name.to_owned());
        }
    }
    if args.into.is_some() {
        words.push(format!("--into={}", target.database));
    } else {
        words.extend(["--".to_owned(), target.database.clone()]);
    }
    words
}

/// `--backup-first`.
struct TargetDump {
    request: CreateRequest,
    reporter: Arc<dyn Reporter>,
}

#[async_trait::async_trait]
impl BackupFirst for TargetDump {
    async fn make(&self, context: &StepContext<'_>) -> Result<String, StepError> {
        let created = create::create(&self.request, &self.reporter, context.cancellation).await?;
        let file = created
            .dumps
            .first()
            .map(|dump| created.place.describe_file(&dump.file));
        file.ok_or_else(|| StepError::failed("no dump of the target was made"))
    }
}

/// The dump that `--backup-first` makes: plain SQL with owners and rights, so that it restores what was
/// there; into the file or directory that was named.
fn backup_request(
    args: &Args,
    path: &Path,
    target: &ConnectionParameters,
    settings: &Settings,
) -> Result<CreateRequest, Failure> {
    let (place, file) = if path.is_dir() {
        let configured = settings.dump.directory.clone().filter(|_| path == Path::new("."));
        (
            Place::Directory(configured.unwrap_or_else(|| path.to_path_buf())),
            None,
        )
    } else {
        let (place, file) = super::place::path(&path.to_string_lossy())?;
        (place, Some(file))
    };
    Ok(CreateRequest {
        connection: target.clone(),
        bin_dir: args.bin_dir.clone(),
        place,
        file,
        scope: create::Scope::Database,
        options: Options {
            format: Format::Plain,
            contents: Contents::Full,
            jobs: 1,
            tables: Vec::new(),
            schemas: Vec::new(),
            exclude_tables: Vec::new(),
            exclude_schemas: Vec::new(),
            exclude_table_data: Vec::new(),
            owner: true,
            acl: true,
        },
        globals: false,
        codec: Codec::default(),
        threads: 0,
        sealing: None,
        counts: CountMode::Exact,
        count_budget: std::time::Duration::from_mins(5),
        force: false,
        skip_space_check: false,
        now: jiff::Zoned::now(),
    })
}

/// Reads the dump and makes the procedure.
async fn prepare(args: &Args, context: &Context) -> Result<Restore, Failure> {
    let target = target(args, context)?;
    let settings = settings(context)?;
    let bin_dir = args.bin_dir.clone().or_else(|| settings.server.bin_dir.clone());
    let args = &Args {
        bin_dir,
        ..args.clone()
    };
    let source = source(&args.file, &args.place, &settings).await?;
    let options = OpenOptions {
        keyring: keyring(&args.key, &source, &settings, &context.cancellation).await?,
        bin_dir: args.bin_dir.clone(),
        temp_dir: args.temp_dir.clone(),
        member: args.member.clone(),
        target_major: major(&target).await,
    };
    let request = request(args, target, &settings, context)?;
    let (dump, report) = read(source, options, context, false).await?;
    let restore = Restore::new(request, dump, report);
    match restore.unfit() {
        Some(error) => Err(error.into()),
        None => Ok(restore),
    }
}

/// Restores that did not end can be built again from their journals.
pub(crate) fn register<'a>(registry: &mut Registry<'a>, context: &'a Context) {
    registry.register(KIND, move |parameters| async move {
        let arguments: Vec<String> = parameters
            .get("arguments")
            .and_then(|arguments| serde_json::from_value(arguments.clone()).ok())
            .ok_or_else(|| StepError::failed("the journal does not say how the restore was begun"))?;
        let matches = Args::augment_args(clap::Command::new("restore").disable_help_flag(true))
            .try_get_matches_from(&arguments)
            .map_err(|error| {
                StepError::failed(format!("the journal's arguments are not understood: {error}"))
            })?;
        let args = <Args as clap::FromArgMatches>::from_arg_matches(&matches).map_err(|error| {
            StepError::failed(format!("the journal's arguments are not understood: {error}"))
        })?;
        match prepare(&args, context).await {
            Ok(restore) => Ok(Box::new(restore) as Box<dyn Procedure>),
            Err(failure) => {
                let answer = failure.to_json();
                let text = |name: &str| answer["error"][name].as_str().unwrap_or_default().to_owned();
                Err(StepError::failed(text("message")).hint(text("hint")))
            }
        }
    });
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let restore = prepare(&args, context).await?;
    let reporter = context.reporter();
    let confirmation = context.confirmation(&args.confirmation);
    let ended = Runner::new()?
        .run(
            &restore,
            RunOptions {
                dry_run: args.confirmation.dry_run,
                ..RunOptions::default()
            },
            Surroundings {
                confirm: &confirmation,
                reporter: &reporter,
                cancellation: &context.cancellation,
            },
        )
        .await;
    match ended? {
        Ended::DryRun(plan) => {
            if context.printer.wants_json() {
                context
                    .printer
                    .json(&json!({ "schema_version": 1, "dry_run": true, "plan": plan }))?;
            } else {
                context.printer.data(&plan.to_string());
            }
        }
        Ended::Done(report) => {
            let outcome = restore.outcome();
            if context.printer.wants_json() {
                context.printer.json(&json!({
                    "schema_version": 1,
                    "restored": restore.file(),
                    "database": restore.database(),
                    "procedure": report,
                    "backup": outcome.backup,
                    "tables": counts_json(&outcome.counts),
                }))?;
            } else {
                print_counts(context, &outcome.counts);
                let rows: u64 = outcome.counts.iter().filter_map(|row| row.found).sum();
                context.printer.line(&format!(
                    "Restored {} into {}: {} tables, {rows} rows, in {:.1} s.",
                    restore.file(),
                    restore.database(),
                    outcome.counts.len(),
                    report.seconds
                ));
            }
        }
    }
    Ok(ExitStatus::SUCCESS)
}

/// The target's major version, 0 where it cannot be asked: the preflight says why.
async fn major(target: &ConnectionParameters) -> u32 {
    for database in [target.database.as_str(), "postgres", "template1"] {
        if let Ok(connection) = Connection::open_secured(&target.with_database(database)).await {
            let major = connection.server_version().major();
            connection.close().await;
            return major;
        }
    }
    0
}

/// Opens a dump and reads it whole. A test records in the manifest that it cannot be read.
pub(super) async fn read(
    source: Source,
    options: OpenOptions,
    context: &Context,
    is_test: bool,
) -> Result<(Arc<Dump>, ScanReport), Failure> {
    let dump = Arc::new(Dump::open(source, options).await?);
    let progress = context.reporter().start(Task::new(
        format!("checking {}", dump.describe()),
        Unit::Bytes,
        dump.stored_bytes(),
    ));
    let report = match dump.inspect(progress.as_ref(), &context.cancellation).await {
        Ok(report) => report,
        Err(error) => {
            if is_test {
                verify::record_failure(&dump, &error).await?;
            }
            return Err(error.into());
        }
    };
    progress.finish("complete");
    Ok((dump, report))
}

/// Expected and found rows, as JSON.
pub(super) fn counts_json(counts: &[CountRow]) -> serde_json::Value {
    counts
        .iter()
        .map(|row| {
            json!({
                "schema": row.table.schema,
                "name": row.table.name,
                "expected": row.expected,
                "found": row.found,
            })
        })
        .collect()
}

/// Expected and found rows, as a table.
pub(super) fn print_counts(context: &Context, counts: &[CountRow]) {
    if counts.is_empty() {
        return;
    }
    let rows = counts
        .iter()
        .map(|row| {
            vec![
                row.table.to_string(),
                row.expected.to_string(),
                row.found
                    .map_or_else(|| "missing".to_owned(), |found| found.to_string()),
                if row.matches() {
                    String::new()
                } else {
                    "differs".to_owned()
                },
            ]
        })
        .collect();
    context.printer.table(
        &[
            ("table", Align::Left),
            ("in dump", Align::Right),
            ("restored", Align::Right),
            ("", Align::Left),
        ],
        rows,
    );
}
