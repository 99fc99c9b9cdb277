//! `pgmahout wal receive`.

use std::path::PathBuf;

use pgmahout_backup::physical::stanza::StanzaName;
use pgmahout_backup::physical::wal::receive::{self, ReceiveRequest};
use pgmahout_config::Settings;
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
/// server's disk. With several hosts it receives from the primary and keeps the slot on every one of them.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout wal receive -h db1 -U replicator --create-slot
  pgmahout wal receive -h db1 -U replicator --synchronous
  pgmahout wal receive -h db1,db2,db3 -U replicator --create-slot

With --synchronous the server may wait for it (synchronous_standby_names = 'pgmahout'): nothing that
was committed is lost with the server; `pgmahout restore` on this host finds what no repository has
yet. That is refused on the server's own host, with synchronous_commit = remote_apply, and where
Patroni manages the cluster. A server that names it is refused without --synchronous too.")]
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

    /// The server is on another host, though its address is one of this host: a tunnel, a forwarded port.
    #[arg(long)]
    other_host: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let settings = context.settings()?;
    let stanza = args.repository.stanza(settings)?;
    let configured = &settings.wal.receive;
    let directory = match args.directory {
        Some(directory) => directory,
        None => directory(&stanza, settings)?,
    };
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
        other_host: args.other_host,
        ha_agent: ha_agent(settings),
        destinations: destinations(&args.repository, settings)?,
        stanza,
        memory: physical::memory(),
    };
    Box::pin(receive::receive(&request, &context.cancellation)).await?;
    Ok(ExitStatus::SUCCESS)
}

/// Where a receiver on this host keeps what no repository has yet.
pub(crate) fn directory(stanza: &StanzaName, settings: &Settings) -> Result<PathBuf, Failure> {
    if let Some(directory) = &settings.wal.receive.directory {
        return Ok(directory.clone());
    }
    let state = StateDirectory::locate()?;
    Ok(state.path().join("wal").join(stanza.as_str()).join("receive"))
}

/// What manages the cluster by the configuration: Patroni's sections about its store.
fn ha_agent(settings: &Settings) -> Option<String> {
    let stores = [
        "etcd",
        "etcd3",
        "consul",
        "zookeeper",
        "exhibitor",
        "kubernetes",
        "raft",
    ];
    stores
        .iter()
        .any(|store| settings.patroni.get(store).is_some())
        .then(|| "Patroni".to_owned())
}
