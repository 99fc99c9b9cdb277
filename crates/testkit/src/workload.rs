//! Data and load: pgbench's tables, and a writer that knows what the server acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use crate::postgres::Postgres;

/// Loads pgbench's tables at `scale` (100,000 accounts each) into a database that exists.
pub fn load_pgbench(server: &Postgres, database: &str, scale: u32) {
    let output = server
        .client_command("pgbench", database)
        .args([
            "--initialize",
            "--quiet",
            "--foreign-keys",
            "--scale",
            &scale.to_string(),
        ])
        .output()
        .expect("pgbench starts");
    assert!(
        output.status.success(),
        "pgbench: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Inserts numbered rows, one transaction each, into the table `written` until stopped.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Writer {
    /// Creates the table `written (id bigint PRIMARY KEY, at timestamptz)` and begins to write.
    pub async fn start(server: &Postgres, database: &str) -> Self {
        let client = server.client(database).await;
        client
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS written \
                 (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())",
            )
            .await
            .expect("the table can be created");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut acknowledged = 0;
            while !stopped.load(Ordering::Relaxed) {
                let statement = format!("INSERT INTO written (id) VALUES ({})", acknowledged + 1);
                if client.batch_execute(&statement).await.is_err() {
                    break;
                }
                acknowledged += 1;
            }
            acknowledged
        });
        Self { stop, task }
    }

    /// Stops writing, and returns how many rows the server acknowledged: rows 1 to this number must
    /// be there, and at most one more.
    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer does not panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Major;

    #[tokio::test]
    async fn every_acknowledged_row_is_there() {
        for major in Major::all() {
            let server = Postgres::start(major).await;
            load_pgbench(&server, "postgres", 1);
            assert_eq!(
                server
                    .query_text("postgres", "SELECT count(*) FROM pgbench_accounts")
                    .await,
                "100000"
            );
            let writer = Writer::start(&server, "postgres").await;
            crate::poll::until(std::time::Duration::from_secs(30), "ten rows", async || {
                server
                    .query_text("postgres", "SELECT count(*) >= 10 FROM written")
                    .await
                    == "t"
            })
            .await;
            let acknowledged = writer.stop().await;
            assert_eq!(
                server
                    .query_text("postgres", "SELECT max(id), count(*) FROM written")
                    .await,
                format!("{acknowledged}|{acknowledged}")
            );
        }
    }
}
