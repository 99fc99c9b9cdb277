//! A process that is killed while it writes leaves nothing under the name.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pgmahout_store::repository::{Location, PutMode, Repository, RepositorySettings};
use pgmahout_testkit::poll;
use tokio_util::sync::CancellationToken;

const DIRECTORY: &str = "PGMAHOUT_TEST_KILLED_WRITER";

/// The process that will be killed: this test program again. Without the variable it does nothing.
#[tokio::test]
async fn writer_to_be_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let repository = open(Path::new(&directory)).await;
    let mut writer = repository
        .writer("dump", PutMode::Create, &CancellationToken::new())
        .await
        .unwrap();
    let piece = vec![7; 100_000];
    loop {
        writer.write_all(&piece).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
}

async fn open(directory: &Path) -> Repository {
    let location = Location::Directory(directory.to_owned());
    Repository::open(RepositorySettings::at("killed", location))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_killed_writer_leaves_nothing_under_the_name_and_its_rest_is_not_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let size = || -> u64 {
        let entries = std::fs::read_dir(directory.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer_to_be_killed"])
        .env(DIRECTORY, directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    poll::until(
        Duration::from_secs(30),
        "the writer has written something",
        async || size() > 1_000_000,
    )
    .await;
    child.kill().unwrap();
    child.wait().unwrap();

    let repository = open(directory.path()).await;
    assert!(!repository.exists("dump").await.unwrap());
    assert_eq!(repository.list("", &CancellationToken::new()).await.unwrap(), []);
    repository
        .put_bytes("dump", "whole", PutMode::Create)
        .await
        .unwrap();
    assert_eq!(&repository.get_bytes("dump", 9).await.unwrap()[..], b"whole");
}
