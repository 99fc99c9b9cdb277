//! WAL by streaming replication.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Pgmahout;
use pgmahout_testkit::processes::{self, Signal};
use rstest::rstest;

const PATIENCE: Duration = Duration::from_secs(90);

/// A server that archives nothing, a repository, and the files of a receiver.
struct Scene {
    server: Postgres,
    root: tempfile::TempDir,
}

/// A receiver that runs. Killed when dropped.
struct Receiver {
    child: std::process::Child,
    /// Its home goes with it.
    _command: Pgmahout,
}

impl Receiver {
    fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it as systemd does.
    fn stop(mut self) {
        processes::signal(self.child.id(), Signal::TERM);
        assert!(self.child.wait().expect("it was started").success());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Scene {
    async fn new(major: Major) -> Self {
        let server = Postgres::builder(major)
            .own_system_identifier()
            .initdb_arg("--wal-segsize=1")
            .start()
            .await;
        let scene = Self {
            server,
            root: tempfile::tempdir().expect("a directory"),
        };
        scene
            .pgmahout(&["repo", "init", "--data-dir"])
            .arg(scene.server.data_dir())
            .run()
            .await
            .expect_status(0);
        scene
    }

    fn repository(&self) -> PathBuf {
        self.root.path().join("repository")
    }

    fn directory(&self) -> PathBuf {
        self.root.path().join("receive")
    }

    fn pgmahout(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .env("PGMAHOUT_REPOSITORY", "")
            .args(&arguments[..2])
            .arg("--repo")
            .arg(self.repository())
            .args(&arguments[2..])
    }

    fn receive(&self, server: &Postgres, more: &[&str]) -> Pgmahout {
        self.pgmahout(&["wal", "receive", "--create-slot", "--dsn"])
            .arg(server.dsn("postgres"))
            .arg("--directory")
            .arg(self.directory())
            .args(more)
    }

    fn log(&self) -> PathBuf {
        self.root.path().join("receiver.log")
    }

    /// Starts to receive, and waits until the server streams.
    async fn receiver(&self, server: &Postgres) -> Receiver {
        let command = self.receive(server, &[]);
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
            let streaming = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgmahout' \
                             AND state = 'streaming'";
            server.query_text("postgres", streaming).await == "1"
        })
        .await;
        receiver
    }

    /// Writes, ends the segment, and waits for it in the repository.
    async fn written(&self, server: &Postgres) -> String {
        let segment = server
            .query_text(
                "postgres",
                "SELECT pg_walfile_name(pg_logical_emit_message(false, 'test', repeat('x', 300000)) - 1::numeric)",
            )
            .await;
        server.sql("postgres", "SELECT pg_switch_wal()").await;
        let object = self.repository().join("stanza/main/wal").join(&segment[..8]);
        let object = object.join(&segment[8..16]).join(&segment);
        poll::until(PATIENCE, &format!("{segment} to be received"), async || {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            assert!(!log.contains("error:"), "{log}");
            object.exists()
        })
        .await;
        segment
    }
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn no_byte_that_was_reported_as_flushed_is_lost_by_a_kill(#[case] major: Major) {
    let scene = Scene::new(major).await;
    for round in 0..4_u64 {
        let receiver = scene.receiver(&scene.server).await;
        scene.written(&scene.server).await;
        // Into an unfinished segment, until the server hears that it is flushed.
        let written = scene
            .server
            .query_text(
                "postgres",
                &format!("SELECT pg_logical_emit_message(false, 'test', repeat('{round}', 50000))"),
            )
            .await;
        scene
            .server
            .sql(
                "postgres",
                "SELECT pg_logical_emit_message(true, 'test', 'commit')",
            )
            .await;
        poll::until(PATIENCE, "the receiver to report", async || {
            scene
                .server
                .query_text(
                    "postgres",
                    &format!(
                        "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgmahout' \
                         AND flush_lsn >= '{written}'"
                    ),
                )
                .await
                == "1"
        })
        .await;
        receiver.kill();
        let name = scene
            .server
            .query_text(
                "postgres",
                &format!("SELECT pg_walfile_name('{written}'::pg_lsn - 1::numeric)"),
            )
            .await;
        let mut partial = scene.directory().join(format!("{name}.partial"));
        if !partial.exists() {
            partial = scene.directory().join(&name);
        }
        let content = fs::read(&partial).expect("it is here");
        let end =
            u64::from_str_radix(written.rsplit('/').next().expect("two halves"), 16).expect("hexadecimal");
        let end = ((end - 1) % (1 << 20) + 1) as usize;
        let real = fs::read(scene.server.data_dir().join("pg_wal").join(&name)).expect("readable");
        assert!(content[..end] == real[..end], "round {round}");
    }
    let receiver = scene.receiver(&scene.server).await;
    scene.written(&scene.server).await;
    receiver.stop();
    scene.pgmahout(&["wal", "verify"]).run().await.expect_status(0);
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_receiver_follows_a_promotion(#[case] major: Major) {
    let scene = Scene::new(major).await;
    let standby = scene.server.standby("standby").start().await;
    let receiver = scene.receiver(&standby).await;
    scene.written(&scene.server).await;
    standby.promote().await;
    let segment = scene.written(&standby).await;
    assert!(segment.starts_with("00000002"), "{segment}");
    let history = scene
        .repository()
        .join("stanza/main/wal/00000002/00000002.history");
    assert!(history.exists());
    // A restart of the server is no end.
    standby.restart().await;
    scene.written(&standby).await;
    receiver.stop();
    scene.pgmahout(&["wal", "verify"]).run().await.expect_status(0);
}

#[tokio::test]
async fn the_slot_is_kept_on_every_member_so_that_a_failover_loses_nothing() {
    let scene = Scene::new(Major::V18).await;
    let standby = scene.server.standby("standby").start().await;
    let hosts = format!(
        "host={host},{host} port={},{} user=postgres dbname=postgres",
        scene.server.port(),
        standby.port(),
        host = scene.server.host()
    );
    let command = scene
        .pgmahout(&["wal", "receive", "--create-slot", "--dsn"])
        .arg(hosts)
        .arg("--directory")
        .arg(scene.directory());
    let log = fs::File::create(scene.log()).expect("writable");
    let receiver = Receiver {
        child: command.to_std().stderr(log).spawn().expect("it starts"),
        _command: command,
    };
    let slot =
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pgmahout' AND restart_lsn IS NOT NULL";
    for member in [&scene.server, &standby] {
        poll::until(PATIENCE, "the slot", async || {
            let log = fs::read_to_string(scene.log()).unwrap_or_default();
            assert!(!log.contains("error:"), "{log}");
            member.query_text("postgres", slot).await == "1"
        })
        .await;
    }
    // Moved on with what was received, though nobody streams from it.
    let reserved = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'pgmahout'";
    let before = standby.query_text("postgres", reserved).await;
    scene.written(&scene.server).await;
    scene.server.wait_for_replay(&standby).await;
    poll::until(PATIENCE, "the standby's slot to move", async || {
        standby.query_text("postgres", reserved).await != before
    })
    .await;
    scene.server.kill().await;
    standby.promote().await;
    let segment = scene.written(&standby).await;
    assert!(segment.starts_with("00000002"), "{segment}");
    receiver.stop();
    scene.pgmahout(&["wal", "verify"]).run().await.expect_status(0);
}

#[tokio::test]
async fn what_would_protect_from_nothing_or_wait_for_ever_is_refused() {
    let scene = Scene::new(Major::V15).await;
    let refused = scene
        .receive(&scene.server, &["--synchronous"])
        .run()
        .await
        .expect_status(3);
    assert!(refused.stderr.contains("own host"), "{}", refused.stderr);
    scene
        .server
        .sql("postgres", "ALTER SYSTEM SET synchronous_commit = remote_apply")
        .await;
    scene.server.reload().await;
    poll::until(PATIENCE, "the setting", async || {
        scene
            .server
            .query_text("postgres", "SHOW synchronous_commit")
            .await
            == "remote_apply"
    })
    .await;
    let refused = scene
        .receive(&scene.server, &["--synchronous"])
        .run()
        .await
        .expect_status(3);
    assert!(refused.stderr.contains("remote_apply"), "{}", refused.stderr);
    let missing = scene
        .pgmahout(&["wal", "receive", "--dsn"])
        .arg(scene.server.dsn("postgres"))
        .run()
        .await
        .expect_status(3);
    assert!(missing.stderr.contains("--create-slot"), "{}", missing.stderr);
}
