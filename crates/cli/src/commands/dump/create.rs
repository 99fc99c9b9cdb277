//! `pgmahout dump create`.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Zoned;
use pgmahout_backup::dump::create::{self, CreateRequest, Created, Scope, SetPart};
use pgmahout_backup::dump::location::Place;
use pgmahout_backup::dump::manifest::{Contents, CountMode, DumpManifest, Format, Options};
use pgmahout_config::Settings;
use pgmahout_config::settings::{Counts, DumpFormat};
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_store::codec::Codec;
use pgmahout_types::diagnostic::Outcome;
use pgmahout_types::{Bytes, HumanDuration};
use serde_json::json;

use super::place::{self, KeyArgs, RepoArgs};
use crate::ExitStatus;
use crate::context::{ConnectionArgs, Context};
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  pgmahout dump create                                 the database of $PGDATABASE, else postgres, into this directory
  pgmahout dump create shop                            backup_shop_YYYY_MM_DD_HHmmss.sql.gz
  pgmahout dump create shop pre_migration.sql.gz       a name of your own
  pgmahout dump create shop --repo                     into the configured repository
  pgmahout dump create shop --format directory --jobs 4 --compress zstd
  pgmahout dump create shop --encrypt --passphrase file:/etc/pgmahout/dump.key
  pgmahout dump create --all-databases                 every database, and roles and tablespaces
  pgmahout dump create shop --set full,schema,data:audit_log,outbox_events

The dump is complete, or it is not there: the file gets its name only after pg_dump ended well and the whole
file was read back, decrypted, decompressed and compared. Beside it lies FILE.manifest.json.";

/// Dump a database into a file or the repository.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The database [default: $PGDATABASE, else postgres].
    database_name: Option<String>,

    /// The file [default: backup_DATABASE_YYYY_MM_DD_HHmmss.sql.gz in dump.directory, else here].
    file: Option<String>,

    #[command(flatten)]
    repo: RepoArgs,

    /// Form of the dump: SQL for psql, one archive for pg_restore, or a tar of a directory for pg_restore.
    #[arg(long, value_enum)]
    format: Option<FormatArg>,

    /// Parallel workers (directory only).
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    jobs: Option<u32>,

    /// Only definitions.
    #[arg(long, conflicts_with = "data_only")]
    schema_only: bool,

    /// Only rows.
    #[arg(long)]
    data_only: bool,

    /// Only tables that match this pattern, with their partitions; may be given several times.
    #[arg(short, long, value_name = "PATTERN")]
    table: Vec<String>,

    /// Only schemas that match this pattern; may be given several times.
    #[arg(short = 'n', long, value_name = "PATTERN")]
    schema: Vec<String>,

    /// Without tables that match this pattern.
    #[arg(long, value_name = "PATTERN")]
    exclude_table: Vec<String>,

    /// Without schemas that match this pattern.
    #[arg(long, value_name = "PATTERN")]
    exclude_schema: Vec<String>,

    /// With the definitions, but without the rows, of tables that match this pattern, and of their partitions.
    #[arg(long, value_name = "PATTERN")]
    exclude_table_data: Vec<String>,

    /// Add roles and tablespaces, in a file beside the dump.
    #[arg(long)]
    globals: bool,

    /// Every database in a dump of its own, with roles and tablespaces.
    #[arg(long, conflicts_with_all = ["set", "table", "schema"])]
    all_databases: bool,

    /// Several dumps of one snapshot: full, schema, data[:TABLE,TABLE..], separated by commas.
    #[arg(long, value_name = "MEMBERS")]
    set: Option<String>,

    /// Keep owners (left out by default, so that the dump restores anywhere).
    #[arg(long)]
    owner: bool,

    /// Keep access rights (left out by default).
    #[arg(long)]
    acl: bool,

    /// gzip[:1-9], zstd[:1-19], lz4 or none [default: gzip].
    #[arg(long, value_name = "CODEC")]
    compress: Option<String>,

    /// Compressing threads [default: one per processor].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    compress_threads: usize,

    /// Encrypt the dump (AES-256-GCM); asks for a passphrase unless a key is given.
    #[arg(long)]
    encrypt: bool,

    #[command(flatten)]
    keys: KeyArgs,

    /// How the rows of each table are counted for the manifest.
    #[arg(long, value_enum)]
    counts: Option<CountsArg>,

    /// How long counting may take; what is left is estimated. Plain dumps are counted in passing.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    count_budget: u64,

    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,

    /// Go on even if the space is too small by estimate.
    #[arg(long)]
    skip_space_check: bool,

    /// Directory of pg_dump, pg_dumpall and pg_restore.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Form of the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    Plain,
    Custom,
    Directory,
}

/// How rows are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CountsArg {
    Exact,
    Estimate,
    None,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let request = request(&args, context.settings()?, context).await?;
    let created = create::create(&request, &context.reporter(), &context.cancellation).await?;
    if context.printer.wants_json() {
        context.printer.json(&to_json(&created))?;
    } else {
        render(&created, context);
    }
    Ok(ExitStatus::SUCCESS)
}

async fn request(args: &Args, settings: &Settings, context: &Context) -> Result<CreateRequest, Failure> {
    let connection = connection(args, context)?;
    let repository = args.repo.repository(settings, args.file.is_some()).await?;
    let (place, file) = match (&repository, &args.file) {
        (Some(repository), file) => {
            if let Some(file) = file.as_ref().filter(|file| file.contains('/')) {
                return Err(Failure::new(
                    Outcome::Usage,
                    format!("\"{file}\" cannot be the name of a dump in a repository"),
                )
                .hint("leave the directory out of FILE, or leave --repo out"));
            }
            (Place::Repository(repository.clone()), file.clone())
        }
        (None, Some(file)) if file == "-" => {
            return Err(Failure::new(
                Outcome::Usage,
                "a dump is not written to standard output: it would have no manifest, and could not be read back",
            )
            .hint("name a file; for one called - write ./-; for a stream to another server: pgmahout dump copy"));
        }
        (None, Some(file)) => {
            let (place, name) = place::path(file)?;
            (place, Some(name))
        }
        (None, None) => (args.repo.place_or(context, None).await?, None),
    };
    let codec = match (&args.compress, settings.dump.compress, &repository) {
        (Some(text), ..) => text.parse::<Codec>()?,
        (None, Some(configured), _) => place::codec(configured)?,
        (None, None, Some(repository)) => repository.compression(),
        (None, None, None) => Codec::default(),
    };
    let scope = match (&args.set, args.all_databases) {
        (Some(text), _) => Scope::Set(SetPart::parse_list(text).map_err(|what| {
            Failure::new(Outcome::Usage, format!("--set: {what}"))
                .hint("for example --set full,schema,data:audit_log,outbox_events")
        })?),
        (None, true) => Scope::AllDatabases,
        (None, false) => Scope::Database,
    };
    if scope == Scope::AllDatabases && args.database_name.is_some() && args.file.is_none() {
        return Err(Failure::new(
            Outcome::Usage,
            "--all-databases and a database exclude each other",
        )
        .hint("leave one of them out"));
    }
    let format = args.format.map_or(settings.dump.format, |format| {
        Some(match format {
            FormatArg::Plain => DumpFormat::Plain,
            FormatArg::Custom => DumpFormat::Custom,
            FormatArg::Directory => DumpFormat::Directory,
        })
    });
    let format = match format {
        None | Some(DumpFormat::Plain) => Format::Plain,
        Some(DumpFormat::Custom) => Format::Custom,
        Some(DumpFormat::Directory) => Format::Directory,
    };
    let counts = args.counts.map_or(settings.dump.counts, |counts| {
        Some(match counts {
            CountsArg::Exact => Counts::Exact,
            CountsArg::Estimate => Counts::Estimate,
            CountsArg::None => Counts::None,
        })
    });
    // Workers that were configured are for the form that can use them.
    let configured_jobs = settings.dump.jobs.filter(|_| format == Format::Directory);
    let sealing = args
        .keys
        .sealing(args.encrypt, settings, repository.as_ref())
        .await?;
    Ok(CreateRequest {
        connection,
        bin_dir: args.bin_dir.clone().or_else(|| settings.server.bin_dir.clone()),
        place,
        file,
        scope,
        options: Options {
            format,
            contents: match (args.schema_only, args.data_only) {
                (true, _) => Contents::Schema,
                (_, true) => Contents::Data,
                _ => Contents::Full,
            },
            jobs: args.jobs.or(configured_jobs).unwrap_or(1),
            tables: args.table.clone(),
            schemas: args.schema.clone(),
            exclude_tables: args.exclude_table.clone(),
            exclude_schemas: args.exclude_schema.clone(),
            exclude_table_data: args.exclude_table_data.clone(),
            owner: args.owner,
            acl: args.acl,
        },
        globals: args.globals,
        codec,
        threads: args.compress_threads,
        sealing,
        counts: match counts {
            None | Some(Counts::Exact) => CountMode::Exact,
            Some(Counts::Estimate) => CountMode::Estimate,
            Some(Counts::None) => CountMode::None,
        },
        count_budget: Duration::from_secs(args.count_budget),
        force: args.force,
        skip_space_check: args.skip_space_check,
        now: Zoned::now(),
    })
}

/// The connection, to the database that was named, else to what libpq's rules give, else to `postgres`:
/// libpq would take the role's name, but people who back up expect a database that exists.
fn connection(args: &Args, context: &Context) -> Result<ConnectionParameters, Failure> {
    let parameters = context.connection(&args.connection)?;
    let named = if args.all_databases {
        None
    } else {
        args.database_name.as_ref()
    };
    if let Some(name) = named {
        if args
            .connection
            .database
            .as_ref()
            .is_some_and(|other| other != name)
        {
            return Err(
                Failure::new(Outcome::Usage, "two databases are named, one by --dbname")
                    .hint("leave --dbname out"),
            );
        }
        return Ok(parameters.with_database(name));
    }
    let says = args.connection.database.is_some()
        || args.connection.dsn.is_some()
        || ["PGDATABASE", "PGSERVICE"]
            .iter()
            .any(|name| context.environment.variable(name).is_some());
    Ok(if says {
        parameters
    } else {
        parameters.with_database("postgres")
    })
}

fn render(created: &Created, context: &Context) {
    let printer = &context.printer;
    for dump in &created.dumps {
        printer.line(&created.place.describe_file(&dump.file));
        printer.note(&format!("  {}", sentence(dump)));
    }
    if let Some((name, bundle)) = &created.bundle {
        printer.line(&created.place.describe_file(name));
        printer.note(&format!("  the bundle of these {} files", bundle.members.len()));
        for database in &bundle.skipped {
            printer.note(&format!("  without database \"{}\"", database.name));
        }
    }
    printer.note(&format!(
        "  done in {}, read back and found right",
        HumanDuration(created.elapsed)
    ));
}

/// What a person wants to know about a new dump, in one line.
fn sentence(dump: &DumpManifest) -> String {
    let mut parts = vec![format!(
        "{} of {} ({}, {})",
        match dump.options.contents {
            Contents::Schema => "definitions",
            Contents::Data => "rows",
            _ => "dump",
        },
        dump.database.name,
        dump.options.format.as_str(),
        dump.compression
    )];
    if dump.encryption.is_some() {
        parts.push("encrypted".to_owned());
    }
    parts.push(format!(
        "{} from {}",
        Bytes::new(dump.stored.bytes),
        Bytes::new(dump.content.bytes)
    ));
    if dump.options.contents.has_rows() {
        let (rows, exact) = dump.total_rows();
        let about = if exact { "" } else { "about " };
        parts.push(format!("{} tables with {about}{rows} rows", dump.tables.len()));
    }
    parts.join(", ")
}

fn to_json(created: &Created) -> serde_json::Value {
    json!({
        "schema_version": 1,
        "place": created.place.describe(),
        "dumps": created.dumps.iter().map(|dump| json!({
            "location": created.place.describe_file(&dump.file),
            "manifest": dump,
        })).collect::<Vec<_>>(),
        "bundle": created.bundle.as_ref().map(|(name, bundle)| json!({
            "location": created.place.describe_file(name),
            "manifest": bundle,
        })),
        "seconds": created.elapsed.as_secs_f64(),
    })
}
