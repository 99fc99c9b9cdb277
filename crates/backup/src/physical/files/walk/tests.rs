use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const VERSION: &str = "PG_17_202406281";

/// A directory tree with these files; a path that ends with a slash is a directory.
fn tree(paths: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for path in paths {
        let full = directory.path().join(path);
        if path.ends_with('/') {
            fs::create_dir_all(full).expect("created");
        } else {
            fs::create_dir_all(full.parent().expect("a parent")).expect("created");
            fs::write(full, path.as_bytes()).expect("written");
        }
    }
    directory
}

fn list(data_dir: &Path) -> FileList {
    let options = WalkOptions {
        major: 17,
        version_directory: VERSION.to_owned(),
    };
    walk(data_dir, &options, &CancellationToken::new()).expect("the walk works")
}

fn texts(paths: impl IntoIterator<Item = Vec<u8>>) -> Vec<String> {
    paths
        .into_iter()
        .map(|path| String::from_utf8(path).expect("the tests' names are texts"))
        .collect()
}

fn files(list: &FileList) -> Vec<String> {
    texts(list.files().map(FileEntry::path))
}

fn directories(list: &FileList, contents: Contents) -> Vec<String> {
    let wanted = |entry: &&DirectoryEntry| entry.contents == contents;
    texts(
        list.directories()
            .iter()
            .filter(wanted)
            .map(|entry| entry.path.to_vec()),
    )
}

#[test]
fn files_come_by_directory_and_relations_by_number_fork_and_segment() {
    let tree = tree(&[
        "PG_VERSION",
        "base/5/PG_VERSION",
        "base/5/10000",
        "base/5/2",
        "base/5/10000.10",
        "base/5/10000.9",
        "base/5/10000_fsm",
        "base/16384/1",
        "global/pg_control",
        "global/1262",
    ]);
    let list = list(tree.path());
    assert_eq!(
        files(&list),
        [
            "PG_VERSION",
            "base/5/2",
            "base/5/10000",
            "base/5/10000.9",
            "base/5/10000.10",
            "base/5/10000_fsm",
            "base/5/PG_VERSION",
            "base/16384/1",
            "global/1262",
            "global/pg_control",
        ]
    );
    assert_eq!(
        directories(&list, Contents::Listed),
        ["", "base", "global", "base/5", "base/16384"]
    );
    let file = list.file(2);
    assert_eq!(file.size(), "base/5/10000".len() as u64);
    assert_eq!(file.index(), 2);
    assert_eq!(file.kind().relation().expect("a relation").number, 10_000);
    assert_eq!(file.path_in(tree.path()), tree.path().join("base/5/10000"));
    assert_eq!(
        list.bytes(),
        files(&list).iter().map(|path| path.len() as u64).sum::<u64>()
    );
    assert_eq!(list.len(), 10);
    assert_eq!(list.file(4).owner().uid, rustix::process::geteuid().as_raw());
}

#[test]
fn all_forks_of_unlogged_relations_but_the_init_forks_are_left_out() {
    let tree = tree(&[
        "base/5/16384",
        "base/5/16384.1",
        "base/5/16384_fsm",
        "base/5/16384_vm",
        "base/5/16384_init",
        "base/5/16385",
        "base/5/t3_16386",
        "base/5/t3_16386_fsm",
        "base/6/16384",
        "global/7_init",
        "global/7",
    ]);
    let list = list(tree.path());
    assert_eq!(
        files(&list),
        [
            "base/5/16384_init",
            "base/5/16385",
            "base/6/16384",
            "global/7",
            "global/7_init"
        ]
    );
    assert_eq!(list.skipped().unlogged, 4);
    assert_eq!(list.skipped().temporary_relations, 2);
}

#[test]
fn directories_that_a_start_empties_are_listed_without_what_they_hold() {
    let tree = tree(&[
        "pg_wal/000000010000000000000001",
        "pg_wal/archive_status/000000010000000000000001.done",
        "pg_replslot/standby/state",
        "pg_stat_tmp/x",
        "pg_xact/0000",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "lost+found/x",
    ]);
    let list = list(tree.path());
    assert_eq!(files(&list), ["pg_xact/0000"]);
    assert_eq!(
        directories(&list, Contents::Empty),
        [
            "pg_replslot",
            "pg_stat_tmp",
            "pg_wal",
            "pg_wal/archive_status",
            "pg_wal/summaries"
        ]
    );
    assert_eq!(directories(&list, Contents::Listed), ["", "base", "pg_xact"]);
}

#[test]
fn tablespaces_are_listed_under_their_links_and_only_this_versions_directory() {
    let elsewhere = tree(&[
        &format!("{VERSION}/5/16400"),
        &format!("{VERSION}/5/16401_init"),
        &format!("{VERSION}/5/16401"),
        &format!("{VERSION}/pgsql_tmp/x"),
        "PG_16_202307071/5/16400",
        "mine.txt",
    ]);
    let tree = tree(&["pg_tblspc/16391/"]);
    fs::create_dir_all(tree.path().join(format!("pg_tblspc/16391/{VERSION}/5"))).expect("created");
    fs::write(
        tree.path().join(format!("pg_tblspc/16391/{VERSION}/5/16402")),
        "x",
    )
    .expect("written");
    symlink(elsewhere.path(), tree.path().join("pg_tblspc/16390")).expect("linked");
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o750)).expect("changed");
    let list = list(tree.path());
    assert_eq!(
        files(&list),
        [
            format!("pg_tblspc/16390/{VERSION}/5/16400"),
            format!("pg_tblspc/16390/{VERSION}/5/16401_init"),
            format!("pg_tblspc/16391/{VERSION}/5/16402"),
        ]
    );
    assert_eq!(
        list.tablespaces(),
        [
            TablespaceEntry {
                oid: 16390,
                location: Some(elsewhere.path().to_owned())
            },
            TablespaceEntry {
                oid: 16391,
                location: None
            },
        ]
    );
    let link = list
        .directories()
        .iter()
        .find(|entry| &*entry.path == b"pg_tblspc/16390")
        .expect("listed");
    assert_eq!(link.mode, 0o750, "of the directory, not of the link");
    assert_eq!(link.link.as_deref(), Some(elsewhere.path()));
    assert!(list.links().is_empty());
}

#[test]
fn a_tablespace_within_the_data_directory_is_listed_once() {
    let tree = tree(&[&format!("mine/{VERSION}/5/16400"), "pg_tblspc/"]);
    symlink(tree.path().join("mine"), tree.path().join("pg_tblspc/16390")).expect("linked");
    let list = list(tree.path());
    assert_eq!(files(&list), [format!("pg_tblspc/16390/{VERSION}/5/16400")]);
    assert_eq!(directories(&list, Contents::Elsewhere), ["mine"]);
}

#[test]
fn a_tablespace_of_another_version_alone_is_warned_of() {
    let elsewhere = tree(&["PG_16_202307071/5/16400"]);
    let tree = tree(&["pg_tblspc/"]);
    symlink(elsewhere.path(), tree.path().join("pg_tblspc/16390")).expect("linked");
    let list = list(tree.path());
    assert_eq!(list.warnings(), [WalkWarning::EmptyTablespace { oid: 16390 }]);
    assert!(list.is_empty());
}

#[test]
fn a_linked_pg_wal_is_kept_empty_and_its_target_is_noted() {
    let wal = tree(&["000000010000000000000001"]);
    let tree = tree(&["PG_VERSION"]);
    symlink(wal.path(), tree.path().join("pg_wal")).expect("linked");
    let list = list(tree.path());
    assert_eq!(files(&list), ["PG_VERSION"]);
    let entry = &list.directories()[1];
    assert_eq!((&*entry.path, entry.contents), (&b"pg_wal"[..], Contents::Empty));
    assert_eq!(entry.link.as_deref(), Some(wal.path()));
}

#[test]
fn links_out_of_the_data_directory_are_followed_and_those_within_are_kept() {
    let outside = tree(&["postgresql.conf", "logs/today.log", "logs/deep/er"]);
    let tree = tree(&["base/5/1259", "real.txt"]);
    let link = |target: &Path, name: &str| symlink(target, tree.path().join(name)).expect("linked");
    link(&outside.path().join("postgresql.conf"), "postgresql.conf");
    link(&outside.path().join("logs"), "log");
    link(&outside.path().join("logs"), "log2");
    link(Path::new("real.txt"), "inside.txt");
    link(Path::new("base"), "inside");
    link(Path::new("."), "loop");
    link(Path::new("/"), "everything");
    link(Path::new("/nonexistent/x"), "dangling");
    link(Path::new("myself"), "myself");
    let list = list(tree.path());
    assert_eq!(
        files(&list),
        [
            "postgresql.conf",
            "real.txt",
            "base/5/1259",
            "log/today.log",
            "log/deep/er"
        ]
    );
    assert_eq!(
        list.file(0).link(),
        Some(outside.path().join("postgresql.conf").as_path())
    );
    assert_eq!(list.file(0).size(), "postgresql.conf".len() as u64);
    assert_eq!(list.file(1).link(), None);
    assert_eq!(
        texts(list.links().iter().map(|link| link.path.to_vec())),
        [
            "dangling",
            "everything",
            "inside",
            "inside.txt",
            "log2",
            "loop",
            "myself"
        ]
    );
    assert_eq!(list.links()[2].target, Path::new("base"));
    assert_eq!(list.warnings().len(), 2);
    assert!(
        list.warnings()[0]
            .to_string()
            .contains("dangling leads to /nonexistent/x")
    );
}

#[test]
fn sockets_and_pipes_are_warned_of_and_not_opened() {
    let tree = tree(&["PG_VERSION"]);
    let pipe = tree.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe");
    let list = list(tree.path());
    assert_eq!(files(&list), ["PG_VERSION"]);
    assert_eq!(
        list.warnings(),
        [WalkWarning::Special {
            path: PathBuf::from("pipe")
        }]
    );
}

#[test]
fn names_that_are_no_texts_are_listed() {
    let tree = tree(&["PG_VERSION"]);
    let name = OsStr::from_bytes(b"caf\xe9");
    fs::write(tree.path().join(name), "x").expect("written");
    let list = list(tree.path());
    assert_eq!(list.file(1).path(), b"caf\xe9");
    assert_eq!(fs::read(list.file(1).path_in(tree.path())).expect("read"), b"x");
}

#[test]
fn modes_of_group_readable_clusters_are_kept() {
    let tree = tree(&["PG_VERSION"]);
    for (path, mode) in [("", 0o750), ("PG_VERSION", 0o640)] {
        fs::set_permissions(tree.path().join(path), fs::Permissions::from_mode(mode)).expect("changed");
    }
    let list = list(tree.path());
    assert_eq!(list.directories()[0].mode, 0o750);
    assert_eq!(list.file(0).mode(), 0o640);
}

#[test]
fn what_vanishes_during_the_walk_is_no_error() {
    let tree = tree(&["base/", "PG_VERSION"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let directory = tree.path().join(format!("base/{}", 1 + round % 3));
                let _ = fs::create_dir(&directory);
                for number in 1..20 {
                    let _ = fs::write(directory.join(number.to_string()), "x");
                }
                let _ = fs::remove_dir_all(&directory);
                round += 1;
            }
        });
        for _ in 0..300 {
            let list = list(tree.path());
            assert_eq!(list.file(0).name(), b"PG_VERSION");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_missing_directory_and_an_interruption_say_so() {
    use pgmahout_types::diagnostic::{Diagnose, Outcome};
    let options = WalkOptions {
        major: 17,
        version_directory: VERSION.to_owned(),
    };
    let error = walk(Path::new("/nonexistent/pg"), &options, &CancellationToken::new()).expect_err("missing");
    assert_eq!(error.to_string(), "/nonexistent/pg is no data directory");
    assert_eq!(error.outcome(), Outcome::Usage);
    assert!(error.hint().is_some());
    let stopped = CancellationToken::new();
    stopped.cancel();
    let tree = tree(&["PG_VERSION"]);
    let error = walk(tree.path(), &options, &stopped).expect_err("stopped");
    assert_eq!(error.outcome(), Outcome::Interrupted);
}

/// `cargo test --release -p pgmahout-backup a_million_files -- --ignored --nocapture`
#[test]
#[ignore = "makes a million files; prints how long the walk takes"]
fn a_million_files_are_listed_in_seconds() {
    let tree = tempfile::tempdir_in("/var/tmp").expect("a directory");
    for database in 1..=100 {
        let directory = tree.path().join(format!("base/{database}"));
        fs::create_dir_all(&directory).expect("created");
        for number in 1..=10_000 {
            fs::File::create(directory.join(format!("{}", 16_384 + number))).expect("created");
        }
    }
    let start = std::time::Instant::now();
    let list = list(tree.path());
    let took = start.elapsed();
    assert_eq!(list.len(), 1_000_000);
    println!("a million files in {took:?}");
}
