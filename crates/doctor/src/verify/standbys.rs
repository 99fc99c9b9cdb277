//! The row on every standby.
//!
//! The primary's view (`pg_stat_replication`) covers standbys that we cannot reach. A standby reports
//! what it replayed when it receives something (or every `wal_receiver_status_interval`), so the row is
//! touched again while waiting. Standbys whose address we have are asked themselves.

use std::time::{Duration, Instant};

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;

use super::{Part, VerifyOptions, failed};
use crate::health::{Finding, Measure, Rows, Status};

/// How often is looked.
const PAUSE: Duration = Duration::from_millis(50);

/// Follows the row.
pub(super) async fn follow(connection: &Connection, options: &VerifyOptions) -> Part {
    let begun = Instant::now();
    let position: String = match connection
        .query_one("SELECT pg_catalog.pg_current_wal_flush_lsn()::text", &[])
        .await
    {
        Ok(row) => row.get(0),
        Err(error) => return failed("read the position of the row in the WAL", &error),
    };
    let mut rows = Rows::new(["standby", "shows the row after", "seen by"]);
    let mut slowest = 0.0_f64;
    let mut missing = Vec::new();
    loop {
        let touched = connection
            .execute("UPDATE pgmahout.verify SET turn = turn + 1 WHERE id = 1", &[])
            .await;
        if let Err(error) = touched {
            return failed("touch the row", &error);
        }
        let standbys = match connection
            .query(
                "SELECT coalesce(nullif(application_name, ''), 'unnamed') || coalesce(' at ' || host(client_addr), ''),
                        state, coalesce(replay_lsn >= $1::text::pg_lsn, false)
                 FROM pg_catalog.pg_stat_replication
                 WHERE state <> 'backup' ORDER BY 1",
                &[&position],
            )
            .await
        {
            Ok(standbys) => standbys,
            Err(error) => return failed("look at the standbys", &error),
        };
        if standbys.is_empty() && options.standbys.is_empty() {
            return Part::Skipped("no standby is connected".to_owned());
        }
        let late: Vec<String> = standbys
            .iter()
            .filter(|row| !row.get::<_, bool>(2))
            .map(|row| row.get::<_, String>(0))
            .collect();
        let waited = begun.elapsed();
        if late.is_empty() || waited > options.patience {
            for row in &standbys {
                let name: String = row.get(0);
                let after = if row.get::<_, bool>(2) {
                    format!("at most {} ms", waited.as_millis())
                } else {
                    missing.push(name.clone());
                    format!("not within {} s ({})", waited.as_secs(), row.get::<_, String>(1))
                };
                rows.push([name, after, "primary".to_owned()]);
            }
            slowest = slowest.max(waited.as_secs_f64());
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    for standby in &options.standbys {
        let name = standby.describe();
        match shows_row(standby, options.patience).await {
            Ok(took) => {
                slowest = slowest.max(took.as_secs_f64());
                rows.push([name, format!("{} ms", took.as_millis()), "standby".to_owned()]);
            }
            Err(reason) => {
                rows.push([name.clone(), reason, "standby".to_owned()]);
                missing.push(name);
            }
        }
    }
    let total = rows.total;
    let finding = if missing.is_empty() {
        Finding::ok(format!("{total} of {total} standbys show the row"))
    } else {
        Finding::new(
            Status::Crit,
            format!("the row did not arrive at: {}", missing.join(", ")),
        )
        .hint("pgmahout health --only 'replication.*'")
    };
    Part::Found(finding.measured(Measure::seconds(slowest)).rows(rows))
}

async fn shows_row(standby: &ConnectionParameters, patience: Duration) -> Result<Duration, String> {
    let begun = Instant::now();
    let session = Connection::open_secured(standby)
        .await
        .map_err(|error| format!("cannot be reached: {error}"))?;
    let answer = loop {
        let found = session
            .query_opt(
                "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = 'pgmahout' AND c.relname = 'verify'",
                &[],
            )
            .await;
        match found {
            // The table is there; the row follows it in the WAL.
            Ok(Some(_)) => match session
                .query_opt("SELECT 1 FROM pgmahout.verify WHERE id = 1", &[])
                .await
            {
                Ok(Some(_)) => break Ok(begun.elapsed()),
                Ok(None) => {}
                Err(error) => break Err(format!("cannot be read: {error}")),
            },
            Ok(None) => {}
            Err(error) => break Err(format!("cannot be read: {error}")),
        }
        if begun.elapsed() > patience {
            break Err(format!("does not show the row after {} s", patience.as_secs()));
        }
        tokio::time::sleep(PAUSE).await;
    };
    session.close().await;
    answer
}
