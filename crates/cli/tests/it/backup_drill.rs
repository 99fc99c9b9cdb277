//! `backup drill`: really restored, examined, measured, recorded, removed.

use std::fs;

use pgmahout_testkit::postgres::Major;
use pgmahout_testkit::tmpfs::Tmpfs;
use rstest::rstest;

use crate::physical_scene::Scene;

#[rstest]
#[case(Major::V15, "latest")]
#[case(Major::V18, "random")]
#[tokio::test]
async fn a_drill_restores_examines_records_and_removes(#[case] major: Major, #[case] to: &str) {
    let scene = Scene::new(major, true).await;
    scene.fill(5_000).await;
    let label = scene.backup().await;
    scene.fill(6_000).await;
    scene.archive_all().await;
    scene.fill(6_500).await;
    scene.archive_all().await;
    let scratch = scene.server.new_directory("scratch");
    let result = scene
        .json(
            &[
                "backup",
                "drill",
                "--to",
                to,
                "--scratch",
                &scratch.display().to_string(),
                "--assert",
                "SELECT count(*) >= 5000 FROM filled",
            ],
            0,
        )
        .await;
    let drill = &result["drill"];
    assert_eq!(drill["label"], label.as_str());
    assert_eq!(drill["passed"], true, "{result}");
    let what: Vec<&str> = drill["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|finding| finding["what"].as_str())
        .collect();
    assert_eq!(
        what,
        [
            "databases",
            "amcheck",
            "assertion \"SELECT count(*) >= 5000 FROM filled\""
        ]
    );
    assert!(
        result["recovery_time_seconds"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0)
    );
    let left: Vec<_> = fs::read_dir(&scratch).expect("readable").collect();
    assert!(left.is_empty(), "{left:?}");

    let listed = scene.json(&["backup", "list"], 0).await;
    assert_eq!(
        listed["repositories"][0]["backups"][0]["drilled"]["passed"], true,
        "{listed}"
    );
    let health = scene
        .run(&["health", "--only", "backup.restore_test", "--all"])
        .await;
    assert!(
        health.stdout.contains("was restored and verified"),
        "{}",
        health.stdout
    );
}

#[tokio::test]
async fn an_assertion_that_does_not_hold_fails_the_drill_and_is_recorded() {
    let scene = Scene::new(Major::V18, false).await;
    scene.fill(100).await;
    scene.backup().await;
    let failed = scene
        .run(&[
            "backup",
            "drill",
            "--no-amcheck",
            "--assert",
            "SELECT count(*) > 100 FROM filled",
        ])
        .await
        .expect_status(1);
    assert!(
        failed.stdout.contains("FAILED") && failed.stdout.contains("it is f"),
        "{}",
        failed.stdout
    );
    let listed = scene.json(&["backup", "list"], 0).await;
    assert_eq!(
        listed["repositories"][0]["backups"][0]["drilled"]["passed"], false,
        "{listed}"
    );
}

#[tokio::test]
async fn a_backup_that_cannot_be_restored_fails_its_drill() {
    let scene = Scene::new(Major::V18, true).await;
    scene.fill(5_000).await;
    scene.backup().await;
    let pack = scene
        .objects()
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("/pack/"))
        .max_by_key(|path| fs::metadata(path).expect("there").len())
        .expect("a pack");
    let mut bytes = fs::read(&pack).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).expect("ours");
    let failed = scene.run(&["backup", "drill"]).await.expect_status(1);
    assert!(failed.stderr.contains("cannot be restored"), "{}", failed.stderr);
    let listed = scene.json(&["backup", "list"], 0).await;
    assert_eq!(
        listed["repositories"][0]["backups"][0]["drilled"]["passed"], false,
        "{listed}"
    );
}

#[tokio::test]
async fn a_drill_refuses_a_disk_that_is_too_small() {
    let Ok(small) = Tmpfs::new(16 << 20) else { return };
    let scene = Scene::new(Major::V18, false).await;
    scene.server.account().own(small.path());
    scene.backup().await;
    let refused = scene
        .pgmahout(&["backup", "drill", "--scratch"])
        .arg(small.path())
        .run()
        .await
        .expect_status(3);
    assert!(refused.stderr.contains("are free"), "{}", refused.stderr);
    let listed = scene.json(&["backup", "list"], 0).await;
    assert!(
        listed["repositories"][0]["backups"][0]["drilled"].is_null(),
        "{listed}"
    );
}
