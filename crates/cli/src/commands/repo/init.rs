//! `pgmahout repo init`.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use pgmahout_backup::physical::stanza::{InitOptions, PhysicalRepository};
use pgmahout_store::repository::Location;
use pgmahout_types::repository::StanzaInfo;
use serde_json::json;

use super::server;
use crate::ExitStatus;
use crate::commands::physical::{self, DataDirectoryArgs, RepositoryArgs, name_of};
use crate::context::{ConnectionArgs, Context};
use crate::failure::Failure;

/// Set up a repository for the physical backups and the WAL of this cluster.
///
/// Makes the repository where it is new (its identity, and for an encrypted one its key), and in it a stanza
/// for this cluster: its system identifier, version and segment size, against which every later command is
/// held. The storage must prove that of writers who create the same object at the same moment one wins: eight
/// race for it. Running it again changes nothing.
///
/// A directory that root makes belongs to the server's account, and so does what root writes into it later: the
/// server archives into it.
///
/// The cluster is the one of --data-dir where that can be read, else that of the running server.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout repo init                              every configured repository
  pgmahout repo init --repo /srv/pgmahout --stanza shop -h /run/postgresql -U postgres
  pgmahout repo init --stanza shop-18             after pg_upgrade: a stanza for the new cluster; the old one stays")]
pub(crate) struct Args {
    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    server: DataDirectoryArgs,

    #[command(flatten)]
    connection: ConnectionArgs,

    /// Promise that one host alone writes to the repository, for storages that cannot keep writers apart.
    #[arg(long)]
    single_writer: bool,

    /// The cluster was upgraded to a new major version: give it the stanza of the old one, which must have neither
    /// backups nor WAL yet. Names of WAL begin anew with an upgrade, so that anything else would collide.
    #[arg(long)]
    upgrade: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let settings = context.settings()?;
    let stanza = args.repository.stanza(settings)?;
    let chosen = args.repository.chosen(settings)?;
    let data_dir = args.server.given(context)?;
    let mut owner = data_dir.as_deref().and_then(owner_of);
    let system = match data_dir {
        Some(directory) if args.server.data_dir.is_some() || directory.join("global/pg_control").exists() => {
            server::of_directory(&directory).await?
        }
        _ => {
            let connection = physical::connect(&args.connection, context)
                .await
                .map_err(|failure| {
                    failure.hint(
                        "start the server, say where it is with -h and -p, or name its files with --data-dir",
                    )
                })?;
            let system = server::of_server(&connection).await?;
            if owner.is_none() {
                owner = server::data_directory(&connection)
                    .await
                    .and_then(|directory| owner_of(&directory));
            }
            connection.close().await;
            system
        }
    };
    let info = StanzaInfo::new(stanza.as_str(), system.clone());
    let memory = physical::memory();
    let mut results = Vec::new();
    for mut chosen in chosen {
        chosen.store.single_writer |= args.single_writer;
        let name = name_of(&chosen.store);
        if let (Some(owner), Location::Directory(path)) = (owner, chosen.store.location()) {
            make_for(&path, owner)?;
        }
        let store = chosen.open_store().await?;
        let options = InitOptions {
            upgrade: args.upgrade,
        };
        let made = PhysicalRepository::init(store, stanza.clone(), info.clone(), options, &memory).await?;
        let what = match (made.new_repository, made.new_stanza, made.upgraded) {
            (true, ..) => "made",
            (false, true, _) => "stanza added",
            (false, false, true) => "stanza upgraded",
            (false, false, false) => "as it was",
        };
        let encrypted = made.repository.cipher().is_encrypted();
        if !context.printer.wants_json() {
            context.printer.line(&format!(
                "{}: {what}; stanza {stanza} of cluster {} (PostgreSQL {}), {}.",
                made.repository.description(),
                system.system_identifier,
                system.major,
                if encrypted { "encrypted" } else { "not encrypted" },
            ));
            if made.new_repository && !encrypted {
                context.printer.warn(&format!(
                    "repository {name} is not encrypted: whoever can read it can read the database"
                ));
            }
            if made.new_repository && encrypted {
                context.printer.note(
                    "Keep what opens it somewhere else too: without the passphrase or key nobody can restore.",
                );
            }
        }
        results.push(json!({
            "repository": name,
            "location": chosen.store.location().to_string(),
            "id": made.repository.id().to_string(),
            "encrypted": encrypted,
            "new_repository": made.new_repository,
            "new_stanza": made.new_stanza,
            "upgraded": made.upgraded,
        }));
    }
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "stanza": stanza.as_str(),
            "system_identifier": system.system_identifier.to_string(),
            "major": system.major,
            "wal_segment_size": system.wal_segment_size.bytes(),
            "repositories": results,
        }))?;
    } else if results.is_empty() {
        context.printer.note("Nothing was to be done.");
    } else {
        context
            .printer
            .note("Next: pgmahout wal enable, then pgmahout repo check, then pgmahout backup create");
    }
    Ok(ExitStatus::SUCCESS)
}

/// Whose a directory is.
fn owner_of(directory: &Path) -> Option<(u32, u32)> {
    let metadata = std::fs::metadata(directory).ok()?;
    Some((metadata.uid(), metadata.gid()))
}

/// Makes a repository's directory for the server's account where root sets it up: the server archives into it.
/// What is there already is left as it is.
fn make_for(path: &Path, (user, group): (u32, u32)) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() || user == 0 || path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let failed = |error| Failure::caused_by(format!("cannot make {}", path.display()), error);
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        // What is above it is missing, or in the way: opening the repository says so better.
        Err(_) => Ok(()),
        Ok(()) => std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(failed),
    }
}
