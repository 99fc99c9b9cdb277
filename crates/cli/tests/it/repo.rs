//! `repo init`, `repo check`, `repo info`, `repo keys`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgmahout_testkit::account::Account;
use pgmahout_testkit::postgres::Major;
use pgmahout_testkit::proc::Pgmahout;
use rstest::rstest;

use crate::archived::{Archived, Storage};
use crate::physical_scene::Scene;

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_repository_is_set_up_checked_to_the_end_and_shown(#[case] major: Major) {
    let scene = Scene::without_repository(major, true).await;
    let nothing = scene.run(&["repo", "info"]).await.expect_status(2);
    assert!(
        nothing.stderr.contains("pgmahout repo init"),
        "{}",
        nothing.stderr
    );

    let made = scene.json(&["repo", "init"], 0).await;
    assert_eq!(made["repositories"][0]["new_repository"], true, "{made}");
    assert_eq!(made["repositories"][0]["encrypted"], true, "{made}");
    let again = scene.json(&["repo", "init"], 0).await;
    assert_eq!(again["repositories"][0]["new_repository"], false, "{again}");
    assert_eq!(again["repositories"][0]["new_stanza"], false, "{again}");
    assert_eq!(again["system_identifier"], made["system_identifier"]);

    // Nothing is archived yet: the check says so, and what to do.
    let failed = scene
        .run(&["repo", "check", "--timeout", "1s"])
        .await
        .expect_status(1);
    assert!(failed.stdout.contains("did not arrive"), "{}", failed.stdout);
    assert!(failed.stderr.contains("pgmahout wal enable"), "{}", failed.stderr);

    scene.archive().await;
    let checked = scene.json(&["repo", "check"], 0).await;
    let names: Vec<&str> = checked["checks"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|check| check["check"].as_str())
        .collect();
    assert_eq!(
        names,
        ["write and read", "lock", "lease and clock", "head", "WAL"]
    );

    scene.fill(1000).await;
    scene.backup().await;
    let info = scene.json(&["repo", "info"], 0).await;
    let local = &info["repositories"][0];
    assert_eq!(local["backups"], 1, "{info}");
    assert!(
        local["wal_files"].as_u64().is_some_and(|files| files >= 1),
        "{info}"
    );
    assert!(
        local["shared_ratio"].as_f64().is_some_and(|ratio| ratio > 1.0),
        "{info}"
    );
    let shown = scene.run(&["repo", "info"]).await.expect_status(0);
    assert!(shown.stdout.contains("RESTORABLE"), "{}", shown.stdout);
}

#[tokio::test]
async fn another_cluster_cannot_take_a_stanza_over() {
    let scene = Scene::new(Major::V18, false).await;
    let other = Scene::without_repository(Major::V18, false).await;
    let refused = other
        .pgmahout(&["repo", "init", "--repo"])
        .arg(&scene.repository)
        .run()
        .await
        .expect_status(3);
    assert!(
        refused.stderr.contains("belongs to cluster"),
        "{}",
        refused.stderr
    );
    // Under its own name it may.
    other
        .pgmahout(&["repo", "init", "--stanza", "other", "--repo"])
        .arg(&scene.repository)
        .run()
        .await
        .expect_status(0);
}

#[tokio::test]
async fn without_a_repository_it_is_said_what_to_write() {
    let finished = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(["repo", "check", "--no-wal"])
        .run()
        .await
        .expect_status(2);
    assert!(
        finished.stderr.contains("no repository is configured"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("repository:\n"), "{}", finished.stderr);
}

#[tokio::test]
async fn keys_are_added_listed_removed_and_rotated_and_old_backups_stay_readable() {
    let scene = Scene::new(Major::V18, true).await;
    scene.fill(500).await;
    scene.backup().await;
    let second = scene.config.with_file_name("second");
    let second = second.display().to_string();

    scene
        .run(&["repo", "keys", "add", "--new-key-file", &second, "--generate"])
        .await
        .expect_status(0);
    let listed = scene.json(&["repo", "keys", "list"], 0).await;
    let slots = listed["keys"][0]["slots"].as_array().expect("a list");
    assert_eq!(slots.len(), 2, "{listed}");
    let other = slots
        .iter()
        .find(|slot| slot["opens"] == false)
        .and_then(|slot| slot["id"].as_str())
        .expect("the new one");

    // The new key alone opens it.
    let repository = scene.repository.display().to_string();
    let with_second = [
        "backup",
        "list",
        "--repo",
        repository.as_str(),
        "--key-file",
        &second,
    ];
    scene.run(&with_second).await.expect_status(0);

    // Removing asks first; nobody is there to answer.
    scene
        .run(&["repo", "keys", "remove", other])
        .await
        .expect_status(3);
    scene
        .run(&["repo", "keys", "remove", other, "--yes"])
        .await
        .expect_status(0);
    scene.run(&with_second).await.expect_status(1);

    scene
        .run(&["repo", "keys", "rotate", "--data", "--yes"])
        .await
        .expect_status(0);
    let listed = scene.json(&["repo", "keys", "list"], 0).await;
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(2), "{listed}");
    scene.fill(800).await;
    scene.backup().await;
    scene.json(&["backup", "verify", "--full"], 0).await;

    // A new key file in place of the old one.
    scene
        .run(&["repo", "keys", "rotate", "--new-key-file", &second, "--yes"])
        .await
        .expect_status(0);
    scene.run(&["backup", "list"]).await.expect_status(1);
    scene.run(&with_second).await.expect_status(0);
}

#[tokio::test]
async fn a_storage_that_cannot_be_written_fails_the_check_with_its_reason() {
    let scene = Scene::new(Major::V18, false).await;
    fs::remove_dir_all(&scene.repository).expect("ours");
    fs::write(&scene.repository, "a file").expect("ours");
    let failed = scene.run(&["repo", "check", "--no-wal"]).await.expect_status(1);
    assert!(failed.stdout.contains("FAILED"), "{}", failed.stdout);
}

/// Everything below a directory, itself included, with whose it is.
fn owners(directory: &Path) -> Vec<(PathBuf, u32)> {
    let owner = |path: &Path| fs::symlink_metadata(path).expect("it is there").uid();
    let mut all = vec![(directory.to_owned(), owner(directory))];
    for entry in fs::read_dir(directory).expect("readable").flatten() {
        if entry.path().is_dir() {
            all.extend(owners(&entry.path()));
        } else {
            all.push((entry.path(), owner(&entry.path())));
        }
    }
    all
}

#[tokio::test]
async fn what_root_writes_into_the_servers_repository_belongs_to_the_server() {
    let account = Account::for_servers();
    let scene = Archived::new(Major::V15, Storage::Directory, true).await;
    // As root where the tests run as root; otherwise there is one account, and nothing to confuse.
    let by_us = |arguments: &[&str]| scene.pgmahout_as_tests(&scene.server, arguments);
    by_us(&["backup", "create"]).run().await.expect_status(0);
    let new = scene.server.root_dir().join("new");
    let location = new.display().to_string();
    by_us(&["repo", "init", "--repo", &location])
        .run()
        .await
        .expect_status(0);
    for (path, owner) in owners(&scene.repository).into_iter().chain(owners(&new)) {
        assert_eq!(owner, account.uid, "{}", path.display());
    }
    // The server's account goes on with it.
    scene.archive_all().await;
    scene.run(&["backup", "verify"]).await;
    scene.restored(&[]).await;
}
