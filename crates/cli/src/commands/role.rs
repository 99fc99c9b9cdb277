//! `pgmahout role`.

use std::path::PathBuf;

use pgmahout_config::Secret;
use pgmahout_doctor::role::{MonitorRole, databases};
use pgmahout_durable::write_atomically;
use pgmahout_postgres::connection::Connection;
use pgmahout_procedure::confirm::{Confirm as _, Question};
use pgmahout_types::diagnostic::Outcome;
use serde_json::json;

use crate::ExitStatus;
use crate::context::{ConfirmationArgs, ConnectionArgs, Context};
use crate::failure::Failure;

/// Make roles with the least privileges that their work needs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    CreateMonitor(CreateMonitor),
}

/// Make the role that health checks run as.
///
/// It gets LOGIN, pg_monitor, pg_read_all_settings and CONNECT on every database, no right to read
/// anybody's tables, and limits of its own. An existing role of the name is brought up to date.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Example:\n  pgmahout role create-monitor --generate-password /etc/pgmahout/monitor-password\n  \
                             pgmahout role create-monitor watcher --print > watcher.sql"
)]
pub(crate) struct CreateMonitor {
    /// The role's name.
    #[arg(default_value = "pgmahout_monitor")]
    name: String,

    /// Read its password from this file's first line; only the SCRAM verifier is sent to the server.
    #[arg(long, value_name = "FILE", conflicts_with = "generate_password")]
    password_file: Option<PathBuf>,

    /// Make a random password and write it to this new file, readable by you alone.
    #[arg(long, value_name = "FILE")]
    generate_password: Option<PathBuf>,

    /// Print the SQL script instead of running it.
    #[arg(long)]
    print: bool,

    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::CreateMonitor(args) => create_monitor(args, context).await,
    }
}

async fn create_monitor(args: CreateMonitor, context: &Context) -> Result<ExitStatus, Failure> {
    let password = password(&args)?;
    let role = MonitorRole {
        name: args.name.clone(),
        password,
    };
    let parameters = context.connection(&args.connection)?;
    let mut connection = Connection::open_secured(&parameters).await?;
    let names = databases(&connection).await?;
    let exists = role.exists(&connection).await?;
    if args.print {
        context.printer.data(&role.script(&names, exists));
        return Ok(ExitStatus::SUCCESS);
    }
    context.printer.note(&format!("On {}:", parameters.describe()));
    for statement in role.statements(&names, exists, true) {
        context.printer.note(&format!("  {statement};"));
    }
    if args.confirmation.dry_run {
        return Ok(ExitStatus::SUCCESS);
    }
    context
        .confirmation(&args.confirmation)
        .ask(&Question::yes_no(format!(
            "Create the monitoring role \"{}\"?",
            args.name
        )))?;
    // The password is on disk before the server knows it: a role whose password nobody has is of no use.
    if let (Some(file), Some(password)) = (&args.generate_password, &role.password) {
        write_atomically(file, format!("{}\n", password.expose()).as_bytes(), 0o600)?;
    }
    let made = role.create(&mut connection).await?;
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "role": args.name,
            "existed": made.existed,
            "databases": made.databases,
            "password_file": args.generate_password,
        }))?;
    } else {
        let done = if made.existed { "is up to date" } else { "is made" };
        context.printer.line(&format!("Role \"{}\" {done}.", args.name));
        if role.password.is_none() {
            context.printer.note(&format!(
                "It has no new password: let it in by peer or certificate, or set one with \\password {}.",
                args.name
            ));
        }
        context
            .printer
            .note(&format!("Try it: pgmahout health -U {}", for_shell(&args.name)));
    }
    connection.close().await;
    Ok(ExitStatus::SUCCESS)
}

fn password(args: &CreateMonitor) -> Result<Option<Secret>, Failure> {
    if let Some(file) = &args.password_file {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Failure::caused_by(format!("cannot read the password file {}", file.display()), error)
        })?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(Failure::new(
                Outcome::Usage,
                format!("the password file {} is empty", file.display()),
            )
            .hint("put the password on its first line, or use --generate-password FILE"));
        }
        return Ok(Some(Secret::new(line.to_owned())));
    }
    if let Some(file) = &args.generate_password {
        if file.exists() {
            return Err(
                Failure::new(Outcome::Refused, format!("{} exists already", file.display()))
                    .hint("name a new file, or use --password-file to keep that password"),
            );
        }
        return random_password().map(Some);
    }
    Ok(None)
}

/// 192 random bits as text that needs no quoting anywhere.
fn random_password() -> Result<Secret, Failure> {
    use std::fmt::Write as _;
    use std::io::Read as _;
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::caused_by("cannot read random bytes from /dev/urandom", error))?;
    let text = bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    Ok(Secret::new(text))
}

/// A word as a shell needs it.
fn for_shell(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::for_shell;

    #[test]
    fn odd_names_are_quoted_for_the_shell() {
        assert_eq!(for_shell("watcher"), "watcher");
        assert_eq!(for_shell("We\"ird Mon's"), "'We\"ird Mon'\\''s'");
    }
}
