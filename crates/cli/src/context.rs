//! What every command is given: the printer, the global options, the environment, the configuration,
//! and the token that a signal cancels.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use clap::Args;
use pgmahout_config::{Settings, Sources};
use pgmahout_postgres::params::{ConnectionOptions, ConnectionParameters, Environment};
use pgmahout_procedure::report::Reporter;
use tokio_util::sync::CancellationToken;

use crate::confirmation::Confirmation;
use crate::failure::Failure;
use crate::printer::{ColorChoice, Printer};
use crate::progress::TerminalReporter;

/// Options that mean the same on every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Configuration file [default: $PGMAHOUT_CONFIG, ./pgmahout.yml, /etc/pgmahout/pgmahout.yml].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    pub json: bool,

    /// Say more on stderr; twice for even more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Say nothing on stderr but warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// When to colour.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,

    /// Form of the log on stderr.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Print help.
    #[arg(long, global = true, action = clap::ArgAction::HelpLong)]
    pub help: Option<bool>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the server is: libpq's own rules.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection options")]
pub(crate) struct ConnectionArgs {
    /// Server's host name, address or socket directory [default: $PGHOST, or the local socket].
    #[arg(short = 'h', long, value_name = "HOST")]
    pub host: Option<String>,

    /// Server's port [default: $PGPORT, or 5432].
    #[arg(short = 'p', long, value_name = "PORT")]
    pub port: Option<String>,

    /// Role to connect as [default: $PGUSER, or the operating system's user].
    #[arg(short = 'U', long = "username", value_name = "ROLE")]
    pub user: Option<String>,

    /// Database to connect to [default: $PGDATABASE, or the role's name].
    #[arg(short = 'd', long = "dbname", value_name = "DATABASE")]
    pub database: Option<String>,

    /// Connection string: a postgresql:// URI or key=value pairs.
    #[arg(long, value_name = "DSN")]
    pub dsn: Option<String>,
}

impl From<&ConnectionArgs> for ConnectionOptions {
    fn from(args: &ConnectionArgs) -> Self {
        Self {
            dsn: args.dsn.clone(),
            host: args.host.clone(),
            port: args.port.clone(),
            user: args.user.clone(),
            database: args.database.clone(),
            service: None,
        }
    }
}

/// Answers to the questions of a command that changes something.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Safety options")]
pub(crate) struct ConfirmationArgs {
    /// Answer every question with yes.
    #[arg(short = 'y', long)]
    pub yes: bool,

    /// Stop after the plan; change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// What every command is given.
pub(crate) struct Context {
    /// The global options.
    pub global: GlobalArgs,
    /// The one printer.
    pub printer: Arc<Printer>,
    /// Cancelled by SIGINT or SIGTERM.
    pub cancellation: CancellationToken,
    /// The process's environment, as libpq reads it.
    pub environment: Environment,
    settings: OnceLock<Settings>,
}

impl Context {
    /// The context of this process.
    pub(crate) fn new(global: GlobalArgs) -> Self {
        let printer = Arc::new(Printer::new(global.color, global.quiet, global.json));
        Self {
            global,
            printer,
            cancellation: CancellationToken::new(),
            environment: Environment::current(),
            settings: OnceLock::new(),
        }
    }

    /// The configuration file's settings, read at the first call; its warnings are printed then.
    pub(crate) fn settings(&self) -> Result<&Settings, Failure> {
        if let Some(settings) = self.settings.get() {
            return Ok(settings);
        }
        let loaded = Settings::load(self.global.config.as_deref(), &Sources::of_process())?;
        for warning in &loaded.warnings {
            self.printer.warn(&warning.to_string());
        }
        Ok(self.settings.get_or_init(|| loaded.settings))
    }

    /// Resolves the connection options by libpq's rules; the configuration's `server.dsn` stands in where
    /// neither the command line nor the environment says where the server is.
    pub(crate) fn connection(&self, args: &ConnectionArgs) -> Result<ConnectionParameters, Failure> {
        let mut options = ConnectionOptions::from(args);
        let says_where = options.dsn.is_some()
            || options.host.is_some()
            || options.port.is_some()
            || ["PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE"]
                .iter()
                .any(|name| std::env::var_os(name).is_some());
        if !says_where && let Some(reference) = &self.settings()?.server.dsn {
            options.dsn = Some(reference.resolve()?.expose().to_owned());
        }
        Ok(ConnectionParameters::resolve(&options, &self.environment)?)
    }

    /// Progress and messages for this terminal.
    pub(crate) fn reporter(&self) -> Arc<dyn Reporter> {
        Arc::new(TerminalReporter::new(
            Arc::clone(&self.printer),
            self.global.quiet || self.global.json,
        ))
    }

    /// Asks the person at the terminal, or answers as `--yes` says.
    #[allow(
        clippy::unused_self,
        reason = "what answers belongs to the context, whatever it is made of"
    )]
    pub(crate) fn confirmation(&self, args: &ConfirmationArgs) -> Confirmation {
        Confirmation::new(args.yes)
    }
}
