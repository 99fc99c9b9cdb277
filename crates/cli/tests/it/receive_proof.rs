//! `wal receive` as the only synchronous standby of a server that archives nothing else: killed at random moments
//! under load, then the server destroyed. No commit that was acknowledged is missing after a restore.
//!
//! `PGMAHOUT_TEST_RECEIVE` asks for more kills; `cargo xtask proof receive` runs many.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Pgmahout;
use pgmahout_testkit::sandbox::Sandbox;
use rstest::rstest;
use tokio::task::JoinHandle;

use crate::archived::PATIENCE;

const WRITERS: u64 = 4;
/// Kills of one server's life.
const KILLS: usize = 6;

/// A server that archives nothing, a repository, and a receiver on "another host".
pub(crate) struct Received {
    pub(crate) server: Postgres,
    sandbox: Sandbox,
}

/// A receiver that runs; killed when dropped.
pub(crate) struct Receiver {
    child: std::process::Child,
    /// Its home goes with it.
    _command: Pgmahout,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Received {
    pub(crate) async fn new(major: Major) -> Self {
        let server = Postgres::builder(major)
            .own_system_identifier()
            .initdb_arg("--wal-segsize=1")
            .data_checksums(true)
            .setting("wal_level", "replica")
            .start()
            .await;
        let sandbox = Sandbox::new();
        sandbox.directory("state");
        let scene = Self { server, sandbox };
        let key = scene.sandbox.file("key", "5f".repeat(32));
        scene.sandbox.file(
            "pgmahout.yml",
            format!(
                "stanza: main\npostgresql:\n  data_dir: {}\n  bin_dir: {}\nrepository:\n  - name: main\n    type: local\n    \
                 path: {}\n    encryption: {{ key_file: {} }}\n",
                scene.server.data_dir().display(),
                scene.server.bin_dir().display(),
                scene.sandbox.path().join("repository").display(),
                key.display(),
            ),
        );
        scene.pgmahout(&["repo", "init"]).run().await.expect_status(0);
        scene
    }

    pub(crate) fn pgmahout(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args(arguments)
            .env("PGHOST", self.server.host())
            .env("PGPORT", self.server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGMAHOUT_CONFIG", self.sandbox.path().join("pgmahout.yml"))
            .env("PGMAHOUT_STATE_DIR", self.sandbox.path().join("state"))
            .timeout(PATIENCE)
            .as_server_account()
    }

    fn log(&self) -> PathBuf {
        self.sandbox.path().join("receiver.log")
    }

    /// Starts to receive, and waits until the server streams.
    pub(crate) async fn receiver(&self) -> Receiver {
        // The tests' servers are all on this host, as if a tunnel led to them.
        let command = self.pgmahout(&["wal", "receive", "--create-slot", "--synchronous", "--other-host"]);
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.log())
            .expect("writable");
        let child = command.to_std().stderr(log).spawn().expect("it starts");
        let receiver = Receiver {
            child,
            _command: command,
        };
        poll::until(PATIENCE, "the server to stream", async || {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            assert!(!log.contains("error:"), "{log}");
            self.streams().await
        })
        .await;
        receiver
    }

    async fn streams(&self) -> bool {
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgmahout' \
                         AND state = 'streaming'";
        self.server.query_text("postgres", streaming).await == "1"
    }

    /// Commits wait for the receiver from now on.
    async fn make_synchronous(&self) {
        self.server
            .sql(
                "postgres",
                "ALTER SYSTEM SET synchronous_standby_names = 'pgmahout'",
            )
            .await;
        self.server.reload().await;
        poll::until(PATIENCE, "the receiver to be synchronous", async || {
            let state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
            self.server.query_text("postgres", state).await == "1"
        })
        .await;
    }

    /// The primary's machine is gone.
    pub(crate) async fn destroy(&self) {
        self.server.kill().await;
        fs::remove_dir_all(self.server.data_dir()).expect("nothing runs in it");
    }

    /// Restores what there is, and starts it.
    async fn restored(&self, arguments: &[&str]) -> Postgres {
        let copy = Postgres::vacant(self.server.major());
        let restored = self
            .pgmahout(&["restore", "--yes", "--data-dir"])
            .arg(copy.data_dir())
            .args(arguments)
            .run()
            .await
            .expect_status(0);
        assert!(
            restored.stderr.contains("received WAL") || restored.stdout.contains("received WAL"),
            "{}{}",
            restored.stdout,
            restored.stderr
        );
        copy.settle(&[("synchronous_standby_names", "")]);
        copy.start_again().await;
        poll::until(PATIENCE, "the end of recovery", async || {
            copy.query_text("postgres", "SELECT pg_is_in_recovery()").await == "f"
        })
        .await;
        copy
    }
}

/// Sessions that insert rows, and the rows whose commit was acknowledged.
struct Writers {
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    async fn start(server: &Postgres) -> Self {
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let client = server.client("postgres").await;
            let acknowledged = Arc::clone(&acknowledged);
            tasks.push(tokio::spawn(async move {
                for number in 0_u64.. {
                    let id = number * WRITERS + writer;
                    // Some large ones, which span segments.
                    let rows = if number % 97 == 96 { 3000 } else { 1 };
                    let insert = format!(
                        "INSERT INTO acknowledged SELECT {id}, i, repeat(md5(i::text), 12) FROM generate_series(1, {rows}) i"
                    );
                    if client.batch_execute(&insert).await.is_err() {
                        break;
                    }
                    acknowledged.lock().expect("nobody panics with it").insert(id);
                }
            }));
        }
        Self { acknowledged, tasks }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("nobody panics with it").len()
    }

    async fn wait_for(&self, more: usize) {
        let goal = self.count() + more;
        poll::until(PATIENCE, "further commits", async || self.count() >= goal).await;
    }

    /// Their server is gone: what it has acknowledged.
    async fn end(self) -> BTreeSet<u64> {
        for task in self.tasks {
            task.await.expect("a writer does not panic");
        }
        self.acknowledged.lock().expect("nobody panics with it").clone()
    }
}

#[rstest]
#[case::pg15(Major::V15, 0x1515)]
#[case::pg18(Major::V18, 0x1818)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_commit_is_lost_with_a_server_whose_only_standby_is_a_killed_receiver(
    #[case] major: Major,
    #[case] mut seed: u64,
) {
    let kills: usize = std::env::var("PGMAHOUT_TEST_RECEIVE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(KILLS);
    for life in 0..kills.div_ceil(KILLS) {
        one_life(major, life, &mut seed).await;
    }
}

async fn one_life(major: Major, life: usize, seed: &mut u64) {
    let mut random = || {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 40) as f64 / (1_u64 << 24) as f64
    };
    let scene = Received::new(major).await;
    scene
        .server
        .sql(
            "postgres",
            "CREATE EXTENSION amcheck;
             CREATE TABLE acknowledged (id bigint, part int, filler text, PRIMARY KEY (id, part))",
        )
        .await;
    let mut receiver = scene.receiver().await;
    scene
        .pgmahout(&["backup", "create", "--no-archive-check"])
        .run()
        .await
        .expect_status(0);
    scene.make_synchronous().await;
    let writers = Writers::start(&scene.server).await;
    for round in 0..KILLS {
        writers.wait_for(10).await;
        tokio::time::sleep(Duration::from_secs_f64(random() * 0.4)).await;
        drop(receiver);
        if round == 0 {
            // Without it nothing is acknowledged, but what it had already answered for.
            poll::until(PATIENCE, "the end of the stream", async || !scene.streams().await).await;
            let before = writers.count();
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(
                writers.count() <= before + WRITERS as usize,
                "nobody waits for it"
            );
        }
        receiver = scene.receiver().await;
    }
    writers.wait_for(20).await;
    tokio::time::sleep(Duration::from_secs_f64(random() * 0.4)).await;
    scene.destroy().await;
    drop(receiver);
    let acknowledged = writers.end().await;
    let copy = scene.restored(&[]).await;
    let text = copy
        .query_text(
            "postgres",
            "SELECT coalesce(string_agg(DISTINCT id::text, ' '), '') FROM acknowledged",
        )
        .await;
    let there: BTreeSet<u64> = text
        .split_whitespace()
        .map(|id| id.parse().expect("ids are numbers"))
        .collect();
    let missing: Vec<_> = acknowledged.difference(&there).collect();
    assert!(
        missing.is_empty(),
        "life {life}: of {} acknowledged commits these are missing: {missing:?}",
        acknowledged.len()
    );
    // One of each session may have arrived without an answer.
    assert!(there.len() <= acknowledged.len() + WRITERS as usize);
    let mut amcheck = copy.client_command("pg_amcheck", "postgres");
    let output = amcheck
        .args(["--all", "--heapallindexed", "--install-missing"])
        .output()
        .expect("it runs");
    assert!(
        output.status.success(),
        "life {life}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[tokio::test]
async fn the_last_segment_of_a_receiver_is_left_alone_while_its_server_answers() {
    let scene = Received::new(Major::V18).await;
    let receiver = scene.receiver().await;
    scene
        .pgmahout(&["backup", "create", "--no-archive-check"])
        .run()
        .await
        .expect_status(0);
    scene
        .server
        .sql("postgres", "CREATE TABLE late AS SELECT 1 AS a")
        .await;
    let flushed = scene
        .server
        .query_text("postgres", "SELECT pg_current_wal_flush_lsn()")
        .await;
    poll::until(PATIENCE, "the receiver to report", async || {
        let reported = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{flushed}'");
        scene.server.query_text("postgres", &reported).await == "1"
    })
    .await;
    drop(receiver);
    let place = scene.sandbox.path().join("place");
    let plan = async |arguments: &[&str]| {
        scene
            .pgmahout(&["restore", "--dry-run", "--data-dir"])
            .arg(&place)
            .args(arguments)
            .run()
            .await
            .expect_status(0)
            .stdout
    };
    let text = plan(&[]).await;
    assert!(
        text.contains("still answers") && text.contains("--primary-gone"),
        "{text}"
    );
    assert!(!text.contains("received WAL"), "{text}");
    let text = plan(&["--primary-gone"]).await;
    assert!(
        text.contains("received WAL") && !text.contains("answer"),
        "{text}"
    );
    scene.destroy().await;
    let text = plan(&[]).await;
    assert!(
        text.contains("received WAL") && text.contains("does not answer"),
        "{text}"
    );
    let copy = scene.restored(&["--target-action", "promote"]).await;
    assert_eq!(
        copy.query_text("postgres", "SELECT count(*) FROM late").await,
        "1"
    );
}
