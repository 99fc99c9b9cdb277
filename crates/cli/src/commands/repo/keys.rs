//! `pgmahout repo keys`.

use std::path::PathBuf;

use pgmahout_config::secret::SecretReference;
use pgmahout_procedure::confirm::{Confirm as _, Question};
use pgmahout_store::repository::Repository;
use pgmahout_store::seal::{Credential, Key, Keyring, SlotChoice, generate_key_file, read_key_file};
use pgmahout_types::diagnostic::Outcome;
use serde_json::json;

use crate::ExitStatus;
use crate::commands::dump::ask_passphrase;
use crate::commands::physical::{RepositoryArgs, name_of};
use crate::context::{ConfirmationArgs, Context};
use crate::failure::Failure;
use crate::printer::Align;

/// What opens an encrypted repository: list, add, remove, rotate.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(ListArgs),
    Add(AddArgs),
    Remove(RemoveArgs),
    Rotate(RotateArgs),
}

/// Show the keys of a repository and what opens each.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  pgmahout repo keys list --repo offsite")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
}

/// Let one more passphrase or key open a repository. No other object is touched.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout repo keys add --new-passphrase-file /root/second-passphrase
  pgmahout repo keys add --new-key-file /etc/pgmahout/wal.key --generate    a key for wal push on this host")]
pub(crate) struct AddArgs {
    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    new: NewKeyArgs,
}

/// Take a passphrase or key away from a repository. The last one stays.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Example:\n  pgmahout repo keys remove 3f9a12cd     the slot's id, from `repo keys list`"
)]
pub(crate) struct RemoveArgs {
    /// The slot's id.
    #[arg(value_name = "SLOT")]
    slot: String,

    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

/// Replace what opens a repository; with --data begin a new key for what is written from now on.
///
/// Without --data all slots are replaced by the new passphrase or key, and nothing else is written: whoever kept
/// a copy of an old key object and knows its passphrase can still read the repository. With --data a new key
/// seals everything that is written from now on; what was written before stays under the old key, and exposed
/// where that key is.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout repo keys rotate --new-passphrase-file /root/new-passphrase
  pgmahout repo keys rotate --data")]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    repository: RepositoryArgs,

    /// Begin a new repository key.
    #[arg(long)]
    data: bool,

    #[command(flatten)]
    new: NewKeyArgs,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

/// A passphrase or key that is to open the repository.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "New key options")]
pub(crate) struct NewKeyArgs {
    /// Where the new passphrase is: file:PATH, env:NAME or command:PROGRAM ARGUMENTS; asked for where nothing is
    /// given.
    #[arg(long, value_name = "REFERENCE", conflicts_with_all = ["new_passphrase_file", "new_key_file", "new_command"])]
    new_passphrase: Option<String>,

    /// The file that holds the new passphrase.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["new_key_file", "new_command"])]
    new_passphrase_file: Option<PathBuf>,

    /// The file that holds the new key.
    #[arg(long, value_name = "FILE", conflicts_with = "new_command")]
    new_key_file: Option<PathBuf>,

    /// Make that file, with a random key, readable by this user alone.
    #[arg(long, requires = "new_key_file")]
    generate: bool,

    /// The program, with its arguments, that prints the new key, such as a client of a KMS.
    #[arg(long, value_name = "COMMAND")]
    new_command: Option<String>,
}

impl NewKeyArgs {
    fn is_given(&self) -> bool {
        self.new_passphrase.is_some()
            || self.new_passphrase_file.is_some()
            || self.new_key_file.is_some()
            || self.new_command.is_some()
    }

    /// The key that was given, or a passphrase that somebody types.
    fn credential(&self) -> Result<Credential, Failure> {
        if let Some(path) = &self.new_key_file {
            let key = if self.generate {
                generate_key_file(path)?
            } else {
                read_key_file(path)?
            };
            return Ok(Credential::KeyFile(key));
        }
        if let Some(command) = &self.new_command {
            let text = command.strip_prefix("command:").unwrap_or(command);
            let secret = SecretReference::parse(&format!("command:{text}"))?.resolve()?;
            return Ok(Credential::Command(Key::from_material(
                secret.expose().as_bytes(),
            )?));
        }
        let text = match (&self.new_passphrase_file, &self.new_passphrase) {
            (Some(path), _) => SecretReference::File(path.clone()).resolve()?.expose().to_owned(),
            (None, Some(text)) => {
                let reference = SecretReference::parse(text)?;
                if matches!(reference, SecretReference::Literal(_)) {
                    return Err(Failure::new(
                        Outcome::Usage,
                        "a passphrase on the command line can be read by every user of this machine",
                    )
                    .hint("use --new-passphrase file:PATH, env:NAME or command:PROGRAM"));
                }
                reference.resolve()?.expose().to_owned()
            }
            (None, None) => ask_passphrase("New passphrase of the repository")?,
        };
        let keyring = Keyring::from_passphrase(&text)?;
        let credential = keyring.credentials().first().cloned();
        credential.ok_or_else(|| Failure::new(Outcome::Usage, "the passphrase is empty"))
    }
}

/// The one repository that the command is about.
async fn open(args: &RepositoryArgs, context: &Context) -> Result<(String, Repository), Failure> {
    let settings = context.settings()?;
    let mut chosen = args.chosen(settings)?;
    if chosen.len() > 1 {
        let names: Vec<String> = chosen.iter().map(|chosen| name_of(&chosen.store)).collect();
        return Err(
            Failure::new(Outcome::Usage, "several repositories are configured")
                .hint(format!("say which one with --repo: {}", names.join(", "))),
        );
    }
    let Some(chosen) = chosen.pop() else {
        return Err(Failure::new(Outcome::Usage, "no repository is configured"));
    };
    if chosen.store.encryption.is_none() {
        return Err(Failure::new(
            Outcome::Usage,
            format!("repository {} is not encrypted: it has no keys", name_of(&chosen.store)),
        )
        .hint(
            "a repository is encrypted from its beginning: configure `encryption` for a new one and run pgmahout repo \
             init; for one that is named by its location say what opens it with --passphrase or --key-file",
        ));
    }
    Ok((name_of(&chosen.store), chosen.open_store().await?))
}

pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::List(args) => list(&args, context).await,
        Command::Add(args) => add(&args, context).await,
        Command::Remove(args) => remove(&args, context).await,
        Command::Rotate(args) => rotate(&args, context).await,
    }
}

async fn list(args: &ListArgs, context: &Context) -> Result<ExitStatus, Failure> {
    let (name, repository) = open(&args.repository, context).await?;
    let keys = repository.list_slots().await?;
    if context.printer.wants_json() {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| {
                let slots: Vec<_> = key
                    .slots
                    .iter()
                    .map(|slot| json!({"id": slot.id, "kind": slot.kind.to_string(), "opens": slot.opens}))
                    .collect();
                json!({"number": key.number, "slots": slots})
            })
            .collect();
        context
            .printer
            .json(&json!({"schema_version": 1, "repository": name, "keys": keys}))?;
        return Ok(ExitStatus::SUCCESS);
    }
    let newest = keys.last().map(|key| key.number);
    let mut rows = Vec::new();
    for key in &keys {
        for slot in &key.slots {
            let seals = if Some(key.number) == newest {
                "new objects"
            } else {
                "older objects"
            };
            rows.push(vec![
                key.number.to_string(),
                seals.to_owned(),
                slot.id.clone(),
                slot.kind.to_string(),
                if slot.opens { "yes" } else { "no" }.to_owned(),
            ]);
        }
    }
    let columns = [
        ("key", Align::Right),
        ("seals", Align::Left),
        ("slot", Align::Left),
        ("opened by", Align::Left),
        ("used here", Align::Left),
    ];
    context.printer.table(&columns, rows);
    Ok(ExitStatus::SUCCESS)
}

async fn add(args: &AddArgs, context: &Context) -> Result<ExitStatus, Failure> {
    let (name, repository) = open(&args.repository, context).await?;
    repository.add_slot(&args.new.credential()?).await?;
    done(
        context,
        &name,
        "the new passphrase or key opens it now; the others still do",
    )
}

async fn remove(args: &RemoveArgs, context: &Context) -> Result<ExitStatus, Failure> {
    let (name, repository) = open(&args.repository, context).await?;
    let keys = repository.list_slots().await?;
    let slot = keys
        .iter()
        .flat_map(|key| &key.slots)
        .find(|slot| slot.id == args.slot)
        .cloned();
    if let Some(slot) = slot {
        let own = if slot.opens {
            ", with which it was opened just now: whoever has nothing else is locked out"
        } else {
            ""
        };
        let plan = format!(
            "Slot {} ({}) of repository {name} is removed{own}.",
            slot.id, slot.kind
        );
        if !agreed(context, &args.confirmation, &plan, "Remove it?")? {
            return Ok(ExitStatus::SUCCESS);
        }
    }
    repository.remove_slot(&SlotChoice::Id(args.slot.clone())).await?;
    done(context, &name, "what opened that slot opens it no more")
}

async fn rotate(args: &RotateArgs, context: &Context) -> Result<ExitStatus, Failure> {
    let (name, repository) = open(&args.repository, context).await?;
    if args.data {
        let plan = format!(
            "A new key seals what is written into repository {name} from now on. What is there stays under the older \
             keys. Slots other than the configured one are not carried over: add them again with repo keys add."
        );
        if !agreed(context, &args.confirmation, &plan, "Begin a new key?")? {
            return Ok(ExitStatus::SUCCESS);
        }
        let others = if args.new.is_given() {
            vec![args.new.credential()?]
        } else {
            Vec::new()
        };
        let number = repository.add_repository_key(&others).await?;
        return done(context, &name, &format!("key {number} seals new objects"));
    }
    let plan = format!("All slots of repository {name} are replaced by the new passphrase or key.");
    if !agreed(context, &args.confirmation, &plan, "Replace them?")? {
        return Ok(ExitStatus::SUCCESS);
    }
    let keyring = Keyring::new().with_credential(args.new.credential()?);
    repository.rewrap(keyring).await?;
    done(
        context,
        &name,
        "only the new passphrase or key opens it now; change `encryption` in the configuration of every host",
    )
}

/// Shows what will be done and asks; false where only the plan was wanted.
fn agreed(
    context: &Context,
    confirmation: &ConfirmationArgs,
    plan: &str,
    question: &str,
) -> Result<bool, Failure> {
    context.reporter().plan(plan);
    if confirmation.dry_run {
        return Ok(false);
    }
    context
        .confirmation(confirmation)
        .ask(&Question::yes_no(question))?;
    Ok(true)
}

fn done(context: &Context, repository: &str, text: &str) -> Result<ExitStatus, Failure> {
    if context.printer.wants_json() {
        context
            .printer
            .json(&json!({"schema_version": 1, "repository": repository, "done": true}))?;
    } else {
        context.printer.line(&format!("{repository}: {text}."));
    }
    Ok(ExitStatus::SUCCESS)
}
