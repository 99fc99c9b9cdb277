//! `pgmahout wal receive`.

use std::path::PathBuf;

use pgmahout_backup::physical::wal::receive::{self, ReceiveRequest};
use pgmahout_procedure::StateDirectory;

use super::destinations;
use crate::ExitStatus;
use crate::commands::physical::{self, RepositoryArgs};
use crate::context::{ConnectionArgs, Context};
use crate::failure::Failure;

/// The slot where nothing else is said.
const SLOT: &str = "pgmahout";

/// Receive WAL by streaming replication, straight into the repositories.
///
/// Runs until a signal ends it. What was reported to the server as flushed is on this host's disk; whole segments are
/// in the repositories. A replication slot keeps the server's WAL while nothing receives it: watch it, it can fill the
/// server's disk.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout wal receive -h db1 -U replicator --create-slot
  pgmahout wal receive -h db1 -U replicator --synchronous

With --synchronous the server may wait for it (synchronous_standby_names = 'pgmahout'): nothing that was committed is
lost with the server. That is refused on the server's own host, and with synchronous_commit = remote_apply.")]
pub(crate) struct Args {
    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    connection: ConnectionArgs,

    /// The replication slot [default: wal.receive.slot, else pgmahout].
    #[arg(long, value_name = "SLOT")]
    slot: Option<String>,

    /// Make the slot where it is missing.
    #[arg(long)]
    create_slot: bool,

    /// Where the segment that is being received is kept [default: wal.receive.directory, else in the state directory].
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,

    /// Let the server wait for this receiver.
    #[arg(long)]
    synchronous: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let settings = context.settings()?;
    let stanza = args.repository.stanza(settings)?;
    let configured = &settings.wal.receive;
    let given = args.directory.or_else(|| configured.directory.clone());
    let directory = given.map_or_else(
        || {
            let state = StateDirectory::locate()?;
            Ok::<_, Failure>(state.path().join("wal").join(stanza.as_str()).join("receive"))
        },
        Ok,
    )?;
    let mut server = context.connection(&args.connection)?;
    server.application_name = Some("pgmahout".to_owned());
    let request = ReceiveRequest {
        server,
        slot: args
            .slot
            .or_else(|| configured.slot.clone())
            .unwrap_or_else(|| SLOT.to_owned()),
        create_slot: args.create_slot,
        directory,
        synchronous: args.synchronous || configured.synchronous,
        destinations: destinations(&args.repository, settings)?,
        stanza,
        memory: physical::memory(),
    };
    receive::receive(&request, &context.cancellation).await?;
    Ok(ExitStatus::SUCCESS)
}
