//! The receiver's slot on every member of a cluster: after a failover the new primary has kept what the receiver has
//! not got yet.
//!
//! Physical slots are not replicated. Where several hosts are given, each that is not streamed from gets the slot too,
//! and it is moved on with what was received, so that it holds back no more than it must.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::{Host, TargetSessionAttributes};
use pgmahout_types::Lsn;

use super::ReceiveRequest;

/// How often the slots of the other members are moved on.
const EVERY: Duration = Duration::from_secs(10);

/// How far the receiver is, for the slots.
#[derive(Clone, Default)]
pub(super) struct Received(Arc<AtomicU64>);

impl Received {
    pub(super) fn note(&self, flushed: Lsn) {
        self.0.store(flushed.as_u64(), Ordering::Relaxed);
    }

    fn flushed(&self) -> Lsn {
        Lsn::new(self.0.load(Ordering::Relaxed))
    }
}

/// Keeps the slot on all hosts, until it is dropped.
pub(super) async fn keep(request: &ReceiveRequest, received: &Received) {
    if request.server.hosts.len() < 2 {
        return std::future::pending().await;
    }
    loop {
        for host in &request.server.hosts {
            if let Err(error) = keep_one(request, host, received.flushed()).await {
                tracing::debug!(%error, %host, "the slot of a member could not be kept");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn keep_one(
    request: &ReceiveRequest,
    host: &Host,
    flushed: Lsn,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut parameters = request.server.at_host(host);
    parameters.target_session_attributes = TargetSessionAttributes::Any;
    parameters.application_name = Some("pgmahout slots".to_owned());
    let connection = Connection::open_secured(&parameters).await?;
    let found = connection
        .query_opt(
            "SELECT restart_lsn::text, active FROM pg_catalog.pg_replication_slots WHERE slot_name = $1",
            &[&request.slot],
        )
        .await?;
    match found {
        None if request.create_slot => {
            connection
                .execute(
                    "SELECT pg_catalog.pg_create_physical_replication_slot($1, true)",
                    &[&request.slot],
                )
                .await?;
        }
        None => {
            tracing::warn!(
                "{host} has no replication slot {}: after a failover to it WAL may be missing; --create-slot makes it",
                request.slot
            );
        }
        Some(row) => {
            let kept = row
                .get::<_, Option<String>>(0)
                .and_then(|text| text.parse::<Lsn>().ok());
            // An active one is moved by its stream. A standby moves it no further than it has replayed.
            if !row.get::<_, bool>(1) && kept.is_some_and(|kept| kept < flushed) {
                connection
                    .execute(
                        "SELECT pg_catalog.pg_replication_slot_advance($1, $2::text::pg_catalog.pg_lsn)",
                        &[&request.slot, &flushed.to_string()],
                    )
                    .await?;
            }
        }
    }
    connection.close().await;
    Ok(())
}
