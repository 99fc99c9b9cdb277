//! A writer that keeps a record of every commit that the server acknowledged: when, where in the WAL, under
//! which transaction. After a restore to any target the record says exactly which rows must be there.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::postgres::Postgres;

/// One acknowledged transaction, which inserted the row `id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The row that it inserted into `recorded`; rows are numbered in the order of their commits.
    pub id: u64,
    /// Its transaction id.
    pub xid: u64,
    /// Its commit time by the server's clock, in microseconds since 1970.
    pub time: i64,
    /// The WAL's insert position before it began: everything of it lies at or after this.
    pub before: u64,
    /// The WAL's insert position after its commit: everything of it lies before this.
    pub after: u64,
}

/// Inserts numbered rows, one transaction each, into the table `recorded`, changes pages of the table
/// `churn` with each, and records every acknowledged commit.
#[derive(Debug)]
pub struct Recorder {
    stop: Arc<AtomicBool>,
    commits: Arc<Mutex<Vec<Commit>>>,
    task: JoinHandle<()>,
}

/// Rows of `churn`: some hundred pages, so that every transaction dirties another one.
const CHURN_ROWS: u64 = 5_000;
static PAYLOAD: AtomicU64 = AtomicU64::new(0);

impl Recorder {
    /// Makes the tables where they are missing and begins to write; continues the numbering of what is
    /// there. The server must run with `track_commit_timestamp = on`.
    pub async fn start(server: &Postgres, database: &str) -> Self {
        let client = server.client(database).await;
        client
            .batch_execute(&format!(
                "CREATE TABLE IF NOT EXISTS recorded (id bigint PRIMARY KEY, payload text NOT NULL);
                 CREATE TABLE IF NOT EXISTS churn (id bigint PRIMARY KEY, n bigint NOT NULL, filler text NOT NULL);
                 INSERT INTO churn SELECT i, 0, repeat(md5(i::text), 8) FROM generate_series(1, {CHURN_ROWS}) i
                 ON CONFLICT DO NOTHING"
            ))
            .await
            .expect("the tables can be created");
        let first = one(&client, "SELECT coalesce(max(id), 0) + 1 FROM recorded")
            .await
            .and_then(|text| text.parse::<u64>().ok())
            .expect("rows can be counted");
        let stop = Arc::new(AtomicBool::new(false));
        let commits = Arc::default();
        let task = tokio::spawn(write(client, first, Arc::clone(&stop), Arc::clone(&commits)));
        Self { stop, commits, task }
    }

    /// What was acknowledged so far.
    pub fn commits(&self) -> Vec<Commit> {
        self.commits.lock().expect("nobody panics with it").clone()
    }

    /// How many commits were acknowledged so far.
    pub fn count(&self) -> usize {
        self.commits.lock().expect("nobody panics with it").len()
    }

    /// Waits until `more` further commits were acknowledged.
    pub async fn wait_for(&self, more: usize) {
        let goal = self.count() + more;
        crate::poll::until(std::time::Duration::from_mins(1), "further commits", async || {
            self.count() >= goal
        })
        .await;
    }

    /// Stops writing and gives the record.
    pub async fn stop(self) -> Vec<Commit> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer does not panic");
        self.commits.lock().expect("nobody panics with it").clone()
    }
}

async fn write(client: Client, first: u64, stop: Arc<AtomicBool>, commits: Arc<Mutex<Vec<Commit>>>) {
    let mut id = first;
    while !stop.load(Ordering::Relaxed) {
        // The connection is lost with the server: then nothing was acknowledged.
        let Some(commit) = transaction(&client, id).await else {
            break;
        };
        commits.lock().expect("nobody panics with it").push(commit);
        id += 1;
    }
}

async fn transaction(client: &Client, id: u64) -> Option<Commit> {
    let before = one(client, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").await?;
    let payload = PAYLOAD.fetch_add(1, Ordering::Relaxed);
    let xid = one(
        client,
        &format!(
            "BEGIN;
             INSERT INTO recorded VALUES ({id}, md5('{payload}'));
             UPDATE churn SET n = n + 1 WHERE id = {};
             SELECT pg_current_xact_id()",
            id * 7919 % CHURN_ROWS + 1
        ),
    )
    .await?;
    client.batch_execute("COMMIT").await.ok()?;
    let rest = one(
        client,
        &format!(
            "SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}'::xid)) * 1000000)::bigint
                    || ' ' || (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)"
        ),
    )
    .await?;
    let (time, after) = rest.split_once(' ')?;
    Some(Commit {
        id,
        xid: xid.parse().ok()?,
        time: time.parse().ok()?,
        before: before.parse().ok()?,
        after: after.parse().ok()?,
    })
}

async fn one(client: &Client, query: &str) -> Option<String> {
    let messages = client.simple_query(query).await.ok()?;
    messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// The rows of `recorded` that a server has.
pub async fn rows(server: &Postgres, database: &str) -> BTreeSet<u64> {
    let text = server
        .query_text(
            database,
            "SELECT coalesce(string_agg(id::text, ' '), '') FROM recorded",
        )
        .await;
    text.split_whitespace()
        .map(|id| id.parse().expect("ids are numbers"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Major;

    #[tokio::test]
    async fn the_record_holds_every_row_with_its_time_and_place_in_order() {
        for major in Major::all() {
            let server = Postgres::builder(major)
                .setting("track_commit_timestamp", "on")
                .start()
                .await;
            let recorder = Recorder::start(&server, "postgres").await;
            recorder.wait_for(20).await;
            let commits = recorder.stop().await;
            let ids: BTreeSet<u64> = commits.iter().map(|commit| commit.id).collect();
            assert_eq!(rows(&server, "postgres").await, ids);
            for pair in commits.windows(2) {
                assert!(pair[0].after <= pair[1].before, "{pair:?}");
                assert!(pair[0].time <= pair[1].time, "{pair:?}");
                assert!(pair[0].xid < pair[1].xid, "{pair:?}");
            }
            // Started again, it goes on with the numbers.
            let recorder = Recorder::start(&server, "postgres").await;
            recorder.wait_for(1).await;
            let more = recorder.stop().await;
            assert_eq!(more[0].id, commits.last().expect("there are some").id + 1);
        }
    }
}
