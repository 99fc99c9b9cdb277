//! Five faults of everyday life, made for real and mended again.

use std::time::{Duration, Instant};

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::throwaway::ThrowawayServer;
use pgmahout_types::diagnostic::Outcome;

use super::sql;
use crate::failure::Failure;

/// The faults that stand; the forgotten session is held open here.
pub(super) struct Faults {
    forgotten: Connection,
}

impl Faults {
    /// What was broken, a line each.
    pub(super) fn described() -> impl Iterator<Item = &'static str> {
        LIST.iter().map(|(_, text)| *text)
    }

    /// The checks that must report them.
    pub(super) fn checks() -> impl Iterator<Item = &'static str> {
        LIST.iter().map(|(check, _)| *check)
    }
}

const LIST: [(&str, &str); 5] = [
    (
        "connections.idle_in_transaction",
        "a session forgot its transaction",
    ),
    (
        "indexes.invalid",
        "CREATE UNIQUE INDEX CONCURRENTLY met duplicates and left an invalid index",
    ),
    ("replication.standbys", "the standby died; its slot now holds WAL"),
    ("sequences.used", "a smallint sequence is nearly used up"),
    ("wal.archiving", "the archive command fails"),
];

/// Breaks things.
pub(super) async fn make(
    primary: &ThrowawayServer,
    shop: &Connection,
    standby: &mut ThrowawayServer,
) -> Result<Faults, Failure> {
    let forgotten = Connection::open(&primary.parameters("shop")?).await?;
    sql(&forgotten, "BEGIN; SELECT count(*) FROM customers").await?;
    if shop
        .batch_execute("CREATE UNIQUE INDEX CONCURRENTLY events_kind ON events_2026_01 (kind)")
        .await
        .is_ok()
    {
        return Err(Failure::new(
            Outcome::Failed,
            "the demo's duplicate values were accepted as unique",
        ));
    }
    sql(
        shop,
        "CREATE TABLE coupons (id smallserial PRIMARY KEY, code text)",
    )
    .await?;
    sql(shop, "SELECT setval('coupons_id_seq', 31500)").await?;
    standby.stop().await;
    sql(shop, "ALTER SYSTEM SET archive_command = 'false'").await?;
    sql(shop, "SELECT pg_reload_conf()").await?;
    sql(shop, "SELECT pg_switch_wal()").await?;
    until(
        "the archive command to fail",
        shop,
        "SELECT failed_count > 0 FROM pg_stat_archiver",
    )
    .await?;
    // The forgotten transaction must be older than the threshold that the demo asks for.
    until(
        "the transaction to age",
        shop,
        "SELECT coalesce(max(now() - state_change) > interval '600 ms', false) FROM pg_stat_activity WHERE state = 'idle in transaction'",
    )
    .await?;
    Ok(Faults { forgotten })
}

impl Faults {
    /// Mends what [`make`] broke.
    pub(super) async fn mend(self, shop: &Connection, standby: &mut ThrowawayServer) -> Result<(), Failure> {
        self.forgotten.close().await;
        sql(shop, "DROP INDEX CONCURRENTLY IF EXISTS events_kind").await?;
        sql(
            shop,
            "ALTER TABLE coupons ALTER COLUMN id TYPE bigint; ALTER SEQUENCE coupons_id_seq AS bigint",
        )
        .await?;
        sql(shop, "ALTER SYSTEM RESET archive_command").await?;
        sql(shop, "SELECT pg_reload_conf()").await?;
        standby.start().await?;
        wait_for_standby(shop).await?;
        until(
            "the archive to catch up",
            shop,
            "SELECT last_archived_time > last_failed_time FROM pg_stat_archiver",
        )
        .await
    }
}

/// Waits until the standby streams and has replayed everything.
pub(super) async fn wait_for_standby(primary: &Connection) -> Result<(), Failure> {
    until(
        "the standby to stream",
        primary,
        "SELECT coalesce(bool_and(state = 'streaming' AND replay_lsn = pg_current_wal_lsn()), false) FROM pg_stat_replication",
    )
    .await
}

pub(super) async fn until(what: &str, connection: &Connection, question: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer: Option<bool> = connection
            .query_one(question, &[])
            .await
            .map_err(|error| Failure::caused_by(format!("cannot wait for {what}"), error))?
            .get(0);
        if answer == Some(true) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::new(
                Outcome::Failed,
                format!("waited 30 s in vain for {what}"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
