//! Physical backups, WAL and restores in a bucket whose server fails: at random, for long, unheard, and with listings
//! that are behind.

use std::fs;
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Finished;
use pgmahout_testkit::s3::{Fault, Rule, S3Server};
use rstest::rstest;
use serde_json::Value;

use crate::archived::{Archived, PATIENCE, Storage};

/// The ways in which a request fails. Bodies break off within their first kilobytes.
const STORM: [Fault; 8] = [
    Fault::Status(500),
    Fault::Status(503),
    Fault::Status(429),
    Fault::Reset,
    Fault::LoseAnswer,
    Fault::Stall,
    Fault::CutBody { after: 3000 },
    Fault::StallBody { after: 3000 },
];

/// Waits little and tries for `retry`, so that stalls take seconds.
async fn scene(major: Major, retry: &str) -> Archived {
    let scene = Archived::new(major, Storage::S3, true).await;
    let text = fs::read_to_string(scene.configuration()).expect("ours");
    let text = text.replace(
        "    path_style: true\n",
        &format!(
            "    path_style: true\n    request_timeout: 5s\n    stall_timeout: 1s\n    retry_timeout: {retry}\n"
        ),
    );
    fs::write(scene.configuration(), text).expect("ours");
    scene
}

fn s3(scene: &Archived) -> &S3Server {
    scene.s3.as_ref().expect("the repository is in a bucket")
}

async fn fill(server: &Postgres, rows: u32) {
    server
        .sql(
            "postgres",
            &format!(
                "CREATE TABLE IF NOT EXISTS filled (id int PRIMARY KEY, text text); \
                 INSERT INTO filled SELECT n, md5(n::text) FROM generate_series(1, {rows}) n \
                 ON CONFLICT (id) DO UPDATE SET text = reverse(filled.text); CHECKPOINT"
            ),
        )
        .await;
}

async fn digest(server: &Postgres) -> String {
    let query = "SELECT md5(string_agg(id || text, ',' ORDER BY id)) FROM filled";
    server.query_text("postgres", query).await
}

async fn labels(scene: &Archived) -> Vec<String> {
    let listed = scene.run(&["backup", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    listed["repositories"][0]["backups"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|backup| backup["label"].as_str().expect("a label").to_owned())
        .collect()
}

/// The server left backup mode: no session of ours is left.
async fn out_of_backup_mode(server: &Postgres) {
    poll::until(PATIENCE, "the end of the backup's session", async || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgmahout%backup%'";
        server.query_text("postgres", query).await == "0"
    })
    .await;
}

/// One line that says what failed, and what to do about it.
fn says_what_failed(finished: &Finished) {
    let lines: Vec<&str> = finished.stderr.lines().collect();
    let errors = lines.iter().filter(|line| line.starts_with("error:")).count();
    let hints = lines.iter().filter(|line| line.starts_with("hint:")).count();
    assert_eq!((errors, hints), (1, 1), "{}", finished.stderr);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
}

#[rstest]
#[case(Major::V15, 12)]
#[case(Major::V18, 20)]
#[tokio::test]
async fn every_command_gets_through_a_storm(#[case] major: Major, #[case] percent: u64) {
    let seed = std::env::var("PGMAHOUT_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("PGMAHOUT_TEST_SEED={seed}");
    let scene = scene(major, "60s").await;
    fill(&scene.server, 20_000).await;
    s3(&scene).fail_at_random(seed, percent, &STORM);
    scene.run(&["backup", "create"]).await;
    fill(&scene.server, 3_000).await;
    scene.run(&["backup", "create"]).await;
    fill(&scene.server, 100).await;
    scene.archive_all().await;
    scene.run(&["wal", "list"]).await;
    scene
        .run(&["backup", "expire", "--keep-last", "1", "--yes"])
        .await;
    scene.run(&["backup", "verify", "--full"]).await;
    // Recovery fetches its WAL through the storm too.
    let copy = scene.restored(&[]).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
    let failed = s3(&scene).failed();
    assert!(failed >= 10, "only {failed} requests failed");

    s3(&scene).clear_faults();
    assert_eq!(labels(&scene).await.len(), 1);
    scene.run(&["backup", "verify", "--full"]).await;
}

#[tokio::test]
async fn a_backup_against_a_server_that_stays_down_ends_in_time_and_the_next_one_succeeds() {
    let scene = scene(Major::V18, "2s").await;
    fill(&scene.server, 5_000).await;
    scene.run(&["backup", "create"]).await;
    let before = labels(&scene).await;
    for (what, rule) in [
        (
            "packs",
            Rule::new(Fault::Status(503)).method("PUT").containing("/pack/"),
        ),
        (
            "manifests",
            Rule::new(Fault::Reset).method("PUT").containing("/manifest/"),
        ),
        (
            "heads",
            Rule::new(Fault::Status(500)).method("PUT").containing("/head/"),
        ),
        ("everything", Rule::new(Fault::Stall).after(20)),
    ] {
        fill(&scene.server, 2_000).await;
        scene.archive_all().await;
        s3(&scene).inject(rule.always());
        let failed = scene.pgmahout(&["backup", "create"]).run().await.expect_status(1);
        says_what_failed(&failed);
        assert!(
            failed.elapsed < Duration::from_mins(1),
            "{what}: {:?}",
            failed.elapsed
        );
        out_of_backup_mode(&scene.server).await;
        s3(&scene).clear_faults();
        assert_eq!(labels(&scene).await, before, "{what}: nothing is half published");
    }
    scene.run(&["backup", "create"]).await;
    assert_eq!(labels(&scene).await.len(), before.len() + 1);
    scene.run(&["backup", "verify", "--full"]).await;
    let copy = scene.restored(&[]).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
}

#[tokio::test]
async fn each_other_command_against_a_server_that_stays_down_ends_in_time_and_says_so() {
    let scene = scene(Major::V15, "2s").await;
    fill(&scene.server, 5_000).await;
    scene.run(&["backup", "create"]).await;
    scene.run(&["backup", "create"]).await;
    scene.archive_all().await;
    let segment = scene
        .server
        .query_text("postgres", "SELECT last_archived_wal FROM pg_stat_archiver")
        .await;
    let target = scene.directory("fetched").join("RECOVERYXLOG");
    let target = target.to_string_lossy();
    let copy = Postgres::vacant(Major::V15);
    let data_dir = copy.data_dir().to_string_lossy().into_owned();
    let (down, hangs, resets) = (Fault::Status(503), Fault::Stall, Fault::Reset);
    for (command, skipped, fault) in [
        (&["backup", "list"][..], 0, hangs),
        (&["backup", "verify", "--full"], 12, down),
        (&["backup", "expire", "--keep-last", "1", "--yes"], 12, resets),
        (&["backup", "expire", "--keep-last", "1", "--yes"], 16, down),
        (&["restore", "--yes", "--data-dir", &data_dir], 12, hangs),
        (&["wal", "list"], 4, resets),
        (&["wal", "fetch", &segment, &target], 3, down),
        (&["wal", "fetch", &segment, &target], 1, hangs),
    ] {
        s3(&scene).inject(Rule::new(fault).after(skipped).always());
        let failed = scene.pgmahout(command).run().await;
        s3(&scene).clear_faults();
        let what = format!("{command:?} {fault:?}: {failed:?}");
        assert!(!matches!(failed.status, Some(0) | None), "{what}");
        if command[1] == "fetch" {
            // 1 would mean that the segment does not exist.
            assert_ne!(failed.status, Some(1), "{what}");
        }
        says_what_failed(&failed);
        assert!(failed.elapsed < Duration::from_mins(1), "{what}");
    }
    assert_eq!(labels(&scene).await.len(), 2, "nothing was removed by halves");
    scene.run(&["wal", "fetch", &segment, &target]).await;
    scene.run(&["backup", "verify", "--full"]).await;
    scene
        .run(&["backup", "expire", "--keep-last", "1", "--yes"])
        .await;
    scene.run(&["backup", "verify", "--full"]).await;
    scene
        .run(&["restore", "--yes", "--delta", "--data-dir", &data_dir])
        .await;
}

#[tokio::test]
async fn a_write_that_was_carried_out_unheard_is_neither_lost_nor_done_twice() {
    let scene = scene(Major::V18, "20s").await;
    fill(&scene.server, 1_000).await;
    for part in ["/head/", "/manifest/", "/pack/", "/lease/"] {
        let before = labels(&scene).await.len();
        s3(&scene).inject(Rule::new(Fault::LoseAnswer).method("PUT").containing(part));
        scene.run(&["backup", "create"]).await;
        assert_eq!(labels(&scene).await.len(), before + 1, "{part}");
    }
    // Twice in a row, and then it is there already.
    s3(&scene).inject(
        Rule::new(Fault::LoseAnswer)
            .method("PUT")
            .containing("/wal/")
            .times(2),
    );
    scene.archive_all().await;
    let failures = "SELECT failed_count FROM pg_stat_archiver";
    assert_eq!(scene.server.query_text("postgres", failures).await, "0");
    s3(&scene).inject(Rule::new(Fault::LoseAnswer).method("PUT").containing("/head/"));
    s3(&scene).inject(
        Rule::new(Fault::LoseAnswer)
            .method("PUT")
            .containing("/condemned/"),
    );
    s3(&scene).inject(Rule::new(Fault::LoseAnswer).method("DELETE").times(3));
    scene
        .run(&["backup", "expire", "--keep-last", "2", "--yes"])
        .await;
    assert_eq!(labels(&scene).await.len(), 2);
    scene.run(&["backup", "verify", "--full"]).await;
}

#[tokio::test]
async fn listings_that_are_behind_hide_no_backup_and_no_segment_and_make_expire_delete_nothing_live() {
    let scene = scene(Major::V18, "20s").await;
    fill(&scene.server, 2_000).await;
    scene.run(&["backup", "create"]).await;
    s3(&scene).stale_listings();
    // More heads than are looked for before the log is listed.
    let first = labels(&scene).await.remove(0);
    for number in 0..20 {
        let note = format!("number={number}");
        scene.run(&["backup", "annotate", &first, &note]).await;
    }
    fill(&scene.server, 1_000).await;
    scene.run(&["backup", "create"]).await;
    fill(&scene.server, 100).await;
    scene.archive_all().await;

    // Also for a host that has seen nothing yet.
    let elsewhere = scene.directory("elsewhere");
    let listed = scene
        .pgmahout(&["backup", "list", "--json"])
        .env("PGMAHOUT_STATE_DIR", &elsewhere)
        .run()
        .await
        .expect_status(0);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(
        listed["repositories"][0]["backups"].as_array().map(Vec::len),
        Some(2)
    );
    let segment = scene
        .server
        .query_text("postgres", "SELECT last_archived_wal FROM pg_stat_archiver")
        .await;
    let target = scene.directory("fetched").join("RECOVERYXLOG");
    scene
        .run(&["wal", "fetch", &segment, &target.to_string_lossy()])
        .await;
    scene.run(&["backup", "verify", "--full"]).await;
    let copy = scene.restored(&[]).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
    drop(copy);

    // It sees too little to prove that the new backup is whole, so the old one stays too.
    let newest = labels(&scene).await.pop().expect("a backup");
    let expire = ["backup", "expire", "--keep-last", "1", "--yes"];
    scene.run(&expire).await;
    assert!(labels(&scene).await.contains(&newest));
    s3(&scene).fresh_listings();
    scene.run(&["backup", "verify", "--full"]).await;
    scene.run(&expire).await;
    assert_eq!(labels(&scene).await, [newest]);
    scene.run(&["backup", "verify", "--full"]).await;
    let copy = scene.restored(&[]).await;
    assert_eq!(digest(&copy).await, digest(&scene.server).await);
}
