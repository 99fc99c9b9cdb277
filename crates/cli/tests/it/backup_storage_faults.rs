//! Disks that are full, and repositories that were set back to an older state.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Finished;
use pgmahout_testkit::s3::{Fault, Rule};
use pgmahout_testkit::tmpfs::Tmpfs;
use serde_json::Value;

use crate::archived::{Archived, PATIENCE, Storage, recovered};

const MIB: u64 = 1 << 20;

/// A small file system, where this machine lets us have one: only root may mount.
fn small(size: u64) -> Option<Tmpfs> {
    Tmpfs::new(size).ok()
}

/// Changes the configuration.
fn configure(scene: &Archived, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(scene.configuration()).expect("ours");
    fs::write(scene.configuration(), change(text)).expect("ours");
}

/// For S3: waits little, tries for some seconds.
fn impatient(text: &str) -> String {
    text.replace(
        "    path_style: true\n",
        "    path_style: true\n    request_timeout: 5s\n    stall_timeout: 4s\n    retry_timeout: 2s\n",
    )
}

async fn fill(server: &Postgres, rows: u32) {
    let text = format!(
        "CREATE TABLE IF NOT EXISTS filled (id serial PRIMARY KEY, text text); \
         INSERT INTO filled (text) SELECT md5(random()::text) || md5(random()::text) FROM generate_series(1, {rows}); \
         CHECKPOINT"
    );
    server.sql("postgres", &text).await;
}

async fn digest(server: &Postgres) -> String {
    let query = "SELECT count(*) || ' ' || md5(string_agg(id || text, ',' ORDER BY id)) FROM filled";
    server.query_text("postgres", query).await
}

async fn labels(scene: &Archived) -> Vec<String> {
    let listed = scene.run(&["backup", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let backups = listed["repositories"][0]["backups"].as_array().expect("a list");
    let label = |backup: &Value| backup["label"].as_str().expect("a label").to_owned();
    backups.iter().map(label).collect()
}

fn says(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(finished.stderr.contains(word), "{word}: {}", finished.stderr);
    }
    assert!(finished.stderr.contains("hint:"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
}

/// Replaces a directory by a copy of another.
fn replace(directory: &Path, by: &Path) {
    if directory.exists() {
        fs::remove_dir_all(directory).expect("ours");
    }
    let copied = Command::new("cp")
        .arg("-a")
        .arg(by)
        .arg(directory)
        .status()
        .expect("cp runs");
    assert!(copied.success());
}

#[tokio::test]
async fn a_backup_into_a_full_repository_says_so_and_the_next_one_goes_on_with_what_is_there() {
    let Some(disk) = small(160 * MIB) else { return };
    let scene = Archived::new(Major::V18, Storage::Directory, true).await;
    let repository = disk.path().join("repository");
    configure(&scene, |text| {
        text.replace(
            &scene.repository.display().to_string(),
            &repository.display().to_string(),
        )
    });
    scene.run(&["repo", "init"]).await;
    fill(&scene.server, 200_000).await;
    scene.archive_all().await;
    let filler = disk.fill(6 * MIB);

    let failed = scene.pgmahout(&["backup", "create"]).run().await.expect_status(1);
    says(&failed, &["no space", &disk.path().display().to_string()]);
    assert_eq!(labels(&scene).await.len(), 0);
    let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgmahout%backup%'";
    poll::until(PATIENCE, "the end of the backup's session", async || {
        scene.server.query_text("postgres", query).await == "0"
    })
    .await;
    // Reading needs no room.
    scene.run(&["backup", "list"]).await;
    scene.run(&["wal", "list"]).await;

    fs::remove_file(filler).expect("ours");
    scene.archive_all().await;
    scene.run(&["backup", "create"]).await;
    assert_eq!(labels(&scene).await.len(), 1);
    scene.run(&["backup", "verify", "--full"]).await;
    let copy = scene.restored(&[]).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
}

#[tokio::test]
async fn a_full_spool_of_wal_push_leaves_the_wal_with_postgresql() {
    let Some(disk) = small(48 * MIB) else { return };
    let scene = Archived::new(Major::V18, Storage::S3, false).await;
    fill(&scene.server, 1_000).await;
    scene.run(&["backup", "create"]).await;
    // No push of the time before goes on.
    scene.archive_all().await;
    let spool = disk.path().join("spool");
    configure(&scene, |text| {
        format!(
            "{}wal:\n  spool: {{ path: {}, size: 1GB }}\n",
            impatient(&text),
            spool.display()
        )
    });
    let s3 = scene.s3.as_ref().expect("a bucket");
    s3.inject(Rule::new(Fault::Status(503)).always());
    let archived = "SELECT archived_count FROM pg_stat_archiver";
    let failed = "SELECT failed_count FROM pg_stat_archiver";
    let before = scene.server.query_text("postgres", archived).await;
    // Two segments find room, and then none does.
    for _ in 0..5 {
        fill(&scene.server, 500).await;
        scene.server.sql("postgres", "SELECT pg_switch_wal()").await;
    }
    let held = async || {
        let count = scene.server.query_text("postgres", archived).await;
        count.parse::<u64>().expect("a number")
    };
    let before: u64 = before.parse().expect("a number");
    poll::until(PATIENCE, "segments in the spool", async || held().await > before).await;
    poll::until(PATIENCE, "a push that fails", async || {
        scene.server.query_text("postgres", failed).await != "0"
    })
    .await;
    let ready = || {
        fs::read_dir(scene.server.data_dir().join("pg_wal/archive_status"))
            .expect("readable")
            .filter(|entry| {
                let name = entry.as_ref().expect("readable").file_name();
                name.to_string_lossy().ends_with(".ready")
            })
            .count()
    };
    assert!(ready() >= 2, "the server keeps what nobody took");

    s3.clear_faults();
    fill(&scene.server, 10).await;
    scene.archive_all().await;
    let whole = scene
        .pgmahout(&["wal", "list", "--json"])
        .run()
        .await
        .expect_status(0);
    let whole: Value = serde_json::from_str(&whole.stdout).expect("JSON");
    assert!(!whole.to_string().contains("\"gaps\":[{"), "{whole}");
    let copy = scene.restored(&[]).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
}

#[tokio::test]
async fn a_full_spool_of_wal_fetch_keeps_nothing_from_recovery() {
    let Some(disk) = small(4 * MIB) else { return };
    let scene = Archived::new(Major::V15, Storage::Directory, true).await;
    fill(&scene.server, 1_000).await;
    scene.run(&["backup", "create"]).await;
    for _ in 0..4 {
        fill(&scene.server, 500).await;
        scene.archive_all().await;
    }
    let spool = disk.path().join("prefetch");
    disk.fill(64 << 10);
    configure(&scene, |text| {
        format!(
            "{text}wal:\n  prefetch: {{ segments: 8, path: {} }}\n",
            spool.display()
        )
    });
    let copy = scene.restored(&[]).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
}

#[tokio::test]
async fn a_restore_into_a_full_file_system_is_refused_or_ends_unstartable_and_delta_completes_it() {
    let Some(disk) = small(160 * MIB) else { return };
    let scene = Archived::new(Major::V18, Storage::S3, true).await;
    fill(&scene.server, 300_000).await;
    scene.run(&["backup", "create"]).await;
    scene.archive_all().await;
    configure(&scene, |text| impatient(&text));
    let copy = Postgres::builder(Major::V18).data_parent(disk.path()).prepare();
    fs::remove_dir_all(copy.data_dir()).expect("ours");

    // The planner looks first.
    let filler = disk.fill(20 * MIB);
    let refused = scene.restore(copy.data_dir(), &[]).run().await.expect_status(3);
    says(&refused, &["space", &disk.path().display().to_string()]);
    assert!(!copy.data_dir().join("PG_VERSION").exists());
    fs::remove_file(&filler).expect("ours");

    // Somebody else takes the room meanwhile: while answers hang.
    let s3 = scene.s3.as_ref().expect("a bucket");
    let hanging = Rule::new(Fault::StallBody { after: 1 << 20 });
    s3.inject(hanging.method("GET").containing("/pack/").always());
    let running = scene.restore(copy.data_dir(), &[]).spawn();
    poll::until(PATIENCE, "files in the data directory", async || {
        copy.data_dir().join("base").exists()
    })
    .await;
    let filler = disk.path().join("filler");
    let mut file = fs::File::create(&filler).expect("ours");
    // Whoever comes first gets the room, until there is none.
    while file.write_all(&[b'x'; 4096]).is_ok() {}
    drop(file);
    s3.clear_faults();
    let failed = running.wait().await.expect_status(1);
    says(&failed, &["space", &disk.path().display().to_string()]);
    assert!(
        !copy.data_dir().join("global/pg_control").exists(),
        "no server starts from this"
    );

    fs::remove_file(&filler).expect("ours");
    s3.clear_faults();
    scene
        .restore(copy.data_dir(), &["--delta"])
        .run()
        .await
        .expect_status(0);
    recovered(&copy).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
}

#[tokio::test]
async fn a_repository_that_was_set_back_is_refused_by_a_host_that_remembers_until_it_is_accepted() {
    let scene = Archived::new(Major::V18, Storage::Directory, true).await;
    fill(&scene.server, 1_000).await;
    scene.run(&["backup", "create"]).await;
    scene.archive_all().await;
    let old = scene.directory("old").join("copy");
    replace(&old, &scene.repository);
    fill(&scene.server, 1_000).await;
    scene.run(&["backup", "create"]).await;
    scene.archive_all().await;
    let labels_before = labels(&scene).await;
    let segment = scene
        .server
        .query_text("postgres", "SELECT last_archived_wal FROM pg_stat_archiver")
        .await;
    replace(&scene.repository, &old);

    let target = scene.directory("fetched").join("RECOVERYXLOG");
    let target = target.to_string_lossy();
    let empty = Postgres::vacant(Major::V18);
    let data_dir = empty.data_dir().to_string_lossy().into_owned();
    let label = labels_before[0].as_str();
    for command in [
        &["backup", "list"][..],
        &["backup", "show", label],
        &["backup", "annotate", label, "a=b"],
        &["backup", "create"],
        &["backup", "verify"],
        &["backup", "expire", "--keep-last", "1", "--yes"],
        &["restore", "--yes", "--data-dir", &data_dir],
        &["wal", "list"],
        &["wal", "verify"],
        &["repo", "info"],
    ] {
        let refused = scene.pgmahout(command).run().await;
        assert_eq!(refused.status, Some(3), "{command:?}: {refused:?}");
        says(
            &refused,
            &["set back to an older state", "repo check --accept-rollback"],
        );
    }
    let fetched = scene.pgmahout(&["wal", "fetch", &segment, &target]).run().await;
    assert!(
        !matches!(fetched.status, Some(0 | 1)),
        "absent would be a lie: {fetched:?}"
    );
    says(&fetched, &["set back to an older state"]);
    let checked = scene.pgmahout(&["repo", "check", "--no-wal"]).run().await;
    assert_ne!(checked.status, Some(0));
    // Nothing is archived into it either.
    let failed = "SELECT failed_count FROM pg_stat_archiver";
    let before = scene.server.query_text("postgres", failed).await;
    fill(&scene.server, 100).await;
    scene.server.sql("postgres", "SELECT pg_switch_wal()").await;
    poll::until(PATIENCE, "a push that is refused", async || {
        scene.server.query_text("postgres", failed).await != before
    })
    .await;

    // A host that has seen nothing notices nothing.
    let elsewhere = scene.directory("elsewhere");
    let listed = scene
        .pgmahout(&["backup", "list"])
        .env("PGMAHOUT_STATE_DIR", &elsewhere);
    listed.run().await.expect_status(0);

    let accepted = scene
        .run(&["repo", "check", "--no-wal", "--accept-rollback"])
        .await;
    assert!(accepted.contains("backup create"), "{accepted}");
    assert_eq!(labels(&scene).await, labels_before[..1]);
    scene.archive_all().await;
    scene.run(&["backup", "create"]).await;
    assert_eq!(labels(&scene).await.len(), 2);
    let copy = scene.restored(&[]).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
}
