//! The demo, as a newcomer runs it, at a small scale.

use pgmahout_testkit::postgres::Major;
use pgmahout_testkit::proc::Pgmahout;
use rstest::rstest;
use std::time::Duration;

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn the_demo_proves_its_restore_and_leaves_nothing_behind(#[case] major: Major) {
    let directory = tempfile::tempdir_in("/tmp").expect("a directory");
    std::fs::set_permissions(
        directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("its mode is set");
    let finished = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(["demo", "--scale", "0.05", "--bin-dir"])
        .arg(major.bin_dir())
        .env("TMPDIR", directory.path())
        .timeout(Duration::from_mins(4))
        .run()
        .await
        .expect_status(0);
    for text in [
        "replication.standbys",
        "indexes.invalid",
        "sequences.used",
        "payments",
        "equal, row by row",
        "backup create",
        "--target-time",
        "The second before",
        "In all",
    ] {
        assert!(
            finished.stdout.contains(text),
            "the demo does not mention {text}:\n{}",
            finished.stdout
        );
    }
    assert!(!finished.stdout.contains("DIFFERENT") && !finished.stdout.contains("MISSING"));
    let left: Vec<_> = std::fs::read_dir(directory.path()).expect("readable").collect();
    assert!(left.is_empty(), "the demo left {left:?} behind");
}
