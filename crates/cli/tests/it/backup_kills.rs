//! kill -9 at random moments: the repository stays valid, every completed backup restores, no WAL that was
//! acknowledged to the server is lost, and the next run goes on.
//!
//! `PGMAHOUT_TEST_PHYSICAL_KILLS` asks for more kills of each case; `cargo xtask proof kills` runs many.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use pgmahout_testkit::contents;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::Major;
use pgmahout_testkit::proc::Running;
use pgmahout_testkit::processes::{self, Signal};
use pgmahout_testkit::recorder::{self, Recorder};
use rstest::rstest;

use crate::archived::{Archived, PATIENCE, Storage};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Create,
    Expire,
    Restore,
    Fetch,
    Push,
    Receive,
}

const VICTIMS: [Victim; 6] = [
    Victim::Create,
    Victim::Push,
    Victim::Receive,
    Victim::Restore,
    Victim::Expire,
    Victim::Fetch,
];

#[rstest]
#[case::v15_directory_encrypted(Major::V15, Storage::Directory, true)]
#[case::v18_s3(Major::V18, Storage::S3, false)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_at_any_moment_the_repository_stays_valid_and_no_wal_is_lost(
    #[case] major: Major,
    #[case] storage: Storage,
    #[case] encrypted: bool,
) {
    let kills: usize = std::env::var("PGMAHOUT_TEST_PHYSICAL_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10);
    let scene = Archived::new(major, storage, encrypted).await;
    scene.run(&["backup", "create"]).await;
    let recorder = Recorder::start(&scene.server, "postgres").await;
    recorder.wait_for(10).await;
    scene.archive_all().await;

    let mut usual: BTreeMap<Victim, Duration> = BTreeMap::new();
    let mut killed = 0;
    let mut seed: u64 = 0x5DEE_CE66;
    for round in 0..kills * 3 {
        if killed == kills {
            break;
        }
        let victim = VICTIMS[round % VICTIMS.len()];
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let part = (seed >> 40) as f64 / (1_u64 << 24) as f64;
        let place = PathBuf::from(format!(
            "{}-{round}",
            scene.server.root_dir().join("place").display()
        ));
        let context = format!("round {round}, {victim:?} killed after {part:.3} of its time");
        if victim == Victim::Push {
            killed += usize::from(kill_push(&scene, part).await);
        } else if victim == Victim::Receive {
            killed += usize::from(kill_receive(&scene, part).await);
        } else {
            let command = match victim {
                Victim::Create => scene.pgmahout(&["backup", "create"]),
                Victim::Expire => scene.pgmahout(&["backup", "expire", "--yes"]),
                Victim::Restore => scene.restore(&place, &[]),
                Victim::Fetch | Victim::Push | Victim::Receive => {
                    let segment = scene
                        .server
                        .query_text("postgres", "SELECT last_archived_wal FROM pg_stat_archiver")
                        .await;
                    scene.pgmahout(&["wal", "fetch", &segment]).arg(&place)
                }
            };
            // The first of each kind is left alone, to know how long it takes.
            let Some(whole) = usual.get(&victim) else {
                let finished = command.run().await.expect_status(0);
                usual.insert(victim, finished.elapsed);
                continue;
            };
            let finished = command.spawn().kill_after(whole.mul_f64(part)).await;
            if finished.signal.is_none() {
                assert_eq!(finished.status, Some(0), "{context}: {}", finished.stderr);
            } else {
                killed += 1;
            }
        }
        // A segment that was killed while it was written is not there, or whole.
        if victim == Victim::Fetch && place.exists() {
            assert_eq!(
                place.metadata().expect("it is there").len(),
                16 << 20,
                "{context}"
            );
        }
        let verified = scene.pgmahout(&["backup", "verify", "--full"]).run().await;
        assert_eq!(
            verified.status,
            Some(0),
            "{context}: {}{}",
            verified.stdout,
            verified.stderr
        );
        let _ = std::fs::remove_dir_all(&place).or_else(|_| std::fs::remove_file(&place));
    }
    assert!(killed > kills / 2, "only {killed} of {kills} were killed in time");

    // The next run of everything goes on, without waiting for anybody who is dead.
    scene.run(&["backup", "create"]).await;
    scene.run(&["backup", "expire", "--yes"]).await;
    let commits = recorder.stop().await;
    scene.archive_all().await;
    receive_all(&scene).await;
    scene.run(&["wal", "verify"]).await;
    let copy = scene.restored(&[]).await;
    let rows: Vec<u64> = recorder::rows(&copy, "postgres").await.into_iter().collect();
    let acknowledged: Vec<u64> = commits.iter().map(|commit| commit.id).collect();
    assert_eq!(rows, acknowledged);
    assert_eq!(
        contents::digests(&copy, "postgres").await,
        contents::digests(&scene.server, "postgres").await
    );
}

/// The `wal push` that the archiver runs at the moment: a child of it, or of its shell.
fn pushing(scene: &Archived) -> Option<u32> {
    let archiver = scene
        .server
        .processes()
        .into_iter()
        .find(|process| process.title.contains("archiver"))?;
    let children = processes::describe_children(archiver.pid);
    let below = children
        .iter()
        .flat_map(|child| processes::describe_children(child.pid));
    below
        .chain(children.iter().cloned())
        .find(|process| process.title.contains("wal push") && !process.title.starts_with("sh "))
        .map(|process| process.pid)
}

/// Kills the archiver's `wal push` of the next segment; false where none was caught.
async fn kill_push(scene: &Archived, part: f64) -> bool {
    let archived = "SELECT archived_count FROM pg_stat_archiver";
    let before = scene.server.query_text("postgres", archived).await;
    scene
        .server
        .sql(
            "postgres",
            "SELECT pg_logical_emit_message(false, 'test', 'something'); SELECT pg_switch_wal()",
        )
        .await;
    let begin = Instant::now();
    let mut caught = false;
    while begin.elapsed() < Duration::from_secs(5) {
        if let Some(pid) = pushing(scene) {
            tokio::time::sleep(Duration::from_secs_f64(part * 0.04)).await;
            caught = processes::is_running(pid);
            processes::signal(pid, Signal::KILL);
            break;
        }
        if scene.server.query_text("postgres", archived).await != before {
            break;
        }
    }
    // The server tries again by itself: nothing that it has reported is lost.
    poll::until(PATIENCE, "the segment's arrival after all", async || {
        scene.server.query_text("postgres", archived).await != before
    })
    .await;
    caught
}

/// The receiver, which stores the same segments as `wal push`.
fn receiver(scene: &Archived) -> Running {
    scene.pgmahout(&["wal", "receive", "--create-slot"]).spawn()
}

/// Kills a receiver while it receives what was written since the last one was killed.
async fn kill_receive(scene: &Archived, part: f64) -> bool {
    let running = receiver(scene);
    scene
        .server
        .sql(
            "postgres",
            "SELECT pg_logical_emit_message(false, 'test', repeat('x', 100000)); SELECT pg_switch_wal()",
        )
        .await;
    let killed = running.kill_after(Duration::from_secs_f64(part * 0.6)).await;
    assert!(killed.signal.is_some(), "it ended by itself: {}", killed.stderr);
    true
}

/// The next receiver goes on where the last one was killed, up to the end, and leaves nothing behind.
async fn receive_all(scene: &Archived) {
    let end = scene
        .server
        .query_text("postgres", "SELECT pg_current_wal_flush_lsn()")
        .await;
    let running = receiver(scene);
    poll::until(PATIENCE, "everything to be received", async || {
        let received = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgmahout' AND flush_lsn >= '{end}'"
        );
        scene.server.query_text("postgres", &received).await == "1"
    })
    .await;
    running.signal(Signal::TERM);
    running.wait().await.expect_status(0);
    let directory = scene.state().join("wal/main/receive");
    let whole: Vec<String> = std::fs::read_dir(directory)
        .expect("it is there")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.len() == 24)
        .collect();
    assert!(whole.is_empty(), "received and not stored: {whole:?}");
}

/// Makes every lease, and every object that is not yet listed, look as old as if days had gone by: the storage's
/// clock is what leases are judged by.
fn let_days_go_by(repository: &Path) {
    let past = SystemTime::now() - Duration::from_hours(72);
    for part in ["lease", "pack", "map", "manifest", "condemned"] {
        age(&repository.join("stanza/main").join(part), past);
    }
}

fn age(directory: &Path, past: SystemTime) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            age(&path, past);
        } else if let Ok(file) = std::fs::File::options().write(true).open(&path) {
            file.set_modified(past).expect("the owner may change times");
        }
    }
}

#[rstest]
#[case::a_backup("create")]
#[case::a_collection("expire")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_frozen_past_its_lease_and_woken_leaves_no_backup_without_its_packs(#[case] frozen: &str) {
    let rounds: u32 = std::env::var("PGMAHOUT_TEST_FREEZES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(6);
    let scene = Archived::new(Major::V15, Storage::Directory, false).await;
    scene.run(&["backup", "create"]).await;
    let mut usual = Duration::ZERO;
    let (mut frozen_in_time, mut published) = (0, 0);
    for round in 0..=rounds {
        scene
            .server
            .sql(
                "postgres",
                &format!(
                    "DROP TABLE IF EXISTS fresh;
                     CREATE TABLE fresh AS SELECT i, md5((i + {round})::text) FROM generate_series(1, 20000) i"
                ),
            )
            .await;
        // More backups than are kept, so that there is something to collect.
        scene.run(&["backup", "create"]).await;
        let command = if frozen == "create" {
            scene.pgmahout(&["backup", "create"])
        } else {
            scene.pgmahout(&["backup", "expire", "--yes"])
        };
        if round == 0 {
            usual = command.run().await.expect_status(0).elapsed;
            continue;
        }
        let context = format!("{frozen}, round {round} of {rounds}");
        let running = command.spawn();
        tokio::time::sleep(usual.mul_f64(f64::from(round) / f64::from(rounds + 1))).await;
        running.signal(Signal::STOP);
        frozen_in_time += usize::from(processes::is_running(running.pid()));
        // Another host, which knows nothing of it, works on for days.
        let_days_go_by(&scene.repository);
        let other = |arguments: &[&str]| {
            let command = scene.pgmahout(arguments);
            let state = command.home().join("state");
            command.env("PGMAHOUT_STATE_DIR", state)
        };
        other(&["backup", "expire", "--yes"]).run().await.expect_status(0);
        let theirs = other(&["backup", "create"]).run().await;
        let refused = theirs.status == Some(3) && frozen == "create";
        assert!(
            theirs.status == Some(0) || refused,
            "{context}: {:?} {}",
            theirs.status,
            theirs.stderr
        );
        let_days_go_by(&scene.repository);
        other(&["backup", "expire", "--yes"]).run().await.expect_status(0);
        running.signal(Signal::CONT);
        let woken = running.wait().await;
        if woken.status == Some(0) {
            published += 1;
        } else {
            assert!(woken.stderr.contains("error:"), "{context}: {}", woken.stderr);
        }
        let verified = scene.pgmahout(&["backup", "verify", "--full"]).run().await;
        assert_eq!(
            verified.status,
            Some(0),
            "{context}: {}{}",
            verified.stdout,
            verified.stderr
        );
        scene.archive_all().await;
        let copy = scene.restored(&[]).await;
        assert_eq!(
            contents::digests(&copy, "postgres").await,
            contents::digests(&scene.server, "postgres").await,
            "{context}"
        );
    }
    assert!(frozen_in_time > 0, "nothing was frozen in time");
    println!("{frozen}: {frozen_in_time} frozen, {published} ended well");
}
