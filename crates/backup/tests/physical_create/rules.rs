//! PostgreSQL's own rules for what a backup holds and what it does not.

use std::collections::BTreeSet;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::Major;
use pgmahout_types::repository::manifest::{Entry, FileKind};
use pgmahout_types::{BackupLabel, TablespaceMap};
use rstest::rstest;

use crate::support::{Bench, PATIENCE};

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_label_is_the_servers_own_and_never_in_the_data_directory(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let bench = Bench::new(major).await;
    let running = bench.slow_backup().await;
    for name in ["backup_label", "tablespace_map"] {
        assert!(!bench.server.data_dir().join(name).exists(), "{name}");
    }
    let created = running.await.expect("no panic").expect("a backup");
    for name in ["backup_label", "tablespace_map"] {
        assert!(!bench.server.data_dir().join(name).exists(), "{name}");
    }
    let manifest = bench.manifest(created.label).await;
    let label = manifest.header.backup_label.as_bytes();
    let parsed = BackupLabel::parse(label).expect("the server's label");
    assert_eq!(parsed.render().as_bytes(), label);
    assert_eq!(parsed.start.lsn, created.start_lsn);
    assert_eq!(parsed.label, Some(format!("pgmahout {}", created.label)));
    // The server says the same in the backup history file that it archives.
    let history = poll::value(PATIENCE, "the backup history file", async || {
        let entries = std::fs::read_dir(bench.archive.path()).ok()?;
        let file = entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "backup"))?;
        std::fs::read_to_string(file).ok()
    })
    .await;
    for line in std::str::from_utf8(label).expect("ASCII").lines() {
        assert!(history.contains(line), "{line} is not in {history}");
    }
    assert!(history.contains(&format!("STOP WAL LOCATION: {}", created.stop_lsn)));
    assert!(!bench.files(created.label).await.contains_key("backup_label"));
}

/// A path of a tablespace in bytes that are no UTF-8, in a database of a single-byte encoding.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_tablespace_map_is_kept_byte_for_byte(#[values(Major::V15, Major::V18)] major: Major) {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new(major).await;
    let server = &bench.server;
    server
        .sql(
            "postgres",
            "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
        )
        .await;
    let directory = server.new_directory("plain");
    let strange = directory.join(std::ffi::OsStr::from_bytes(b"f\xfcr\\alle"));
    std::fs::create_dir(&strange).expect("ours");
    pgmahout_testkit::account::Account::for_servers().own(&strange);
    server
        .sql(
            "latin",
            &format!(
                "CREATE TABLESPACE strange LOCATION '{}/f\u{fc}r\\alle'",
                directory.display()
            ),
        )
        .await;
    let mut request = bench.request();
    request.connection = crate::support::connection(&server.dsn("latin"));
    let created = bench.try_backup(&request).await.expect("a backup");
    let manifest = bench.manifest(created.label).await;
    let map = manifest.header.tablespace_map.expect("there is a tablespace");
    let parsed = TablespaceMap::parse(map.as_bytes()).expect("the server's map");
    assert_eq!(parsed.links()[0].location, strange);
    assert_eq!(parsed.render(), map.as_bytes());
    assert_eq!(manifest.header.tablespaces[0].path.as_path(), strange);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_the_running_server_is_left_out(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    let server = &bench.server;
    for statement in [
        "CREATE UNLOGGED TABLE unlogged AS SELECT * FROM generate_series(1, 1000) AS n",
        "CREATE TABLE logged AS SELECT * FROM generate_series(1, 1000) AS n",
    ] {
        server.sql("postgres", statement).await;
    }
    let unlogged = server
        .query_text("postgres", "SELECT pg_relation_filepath('unlogged')")
        .await;
    let strays = [
        "base/pgsql_tmp/pgsql_tmp1.0",
        "base/5/t3_16384",
        "postgresql.auto.conf.tmp",
        "base/5/pg_internal.init.77",
        "standby.signal.old",
        "log/today.log",
        "mylog",
    ];
    for stray in strays {
        let path = server.data_dir().join(stray);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("ours");
        std::fs::write(path, "stray").expect("ours");
    }
    let created = bench.backup().await;
    let manifest = bench.manifest(created.label).await;
    let mut files = BTreeSet::new();
    let mut directories = BTreeSet::new();
    for entry in &manifest.entries {
        match entry {
            Entry::File(file) => files.insert(file.path.to_string()),
            Entry::Directory(directory) => directories.insert(directory.path.to_string()),
            _ => false,
        };
    }
    for gone in [
        "postmaster.pid",
        "postmaster.opts",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "base/5/t3_16384",
        "postgresql.auto.conf.tmp",
        "base/5/pg_internal.init.77",
        &unlogged,
    ] {
        assert!(!files.contains(gone), "{gone}");
    }
    let init = format!("{unlogged}_init");
    for there in [
        "PG_VERSION",
        "global/pg_control",
        "postgresql.conf",
        "log/today.log",
        "mylog",
        &init,
    ] {
        assert!(files.contains(there), "{there}");
    }
    for empty in [
        "pg_wal",
        "pg_wal/archive_status",
        "pg_replslot",
        "pg_dynshmem",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_subtrans",
    ] {
        assert!(directories.contains(empty), "{empty}");
        let inside = format!("{empty}/");
        assert!(
            !files.iter().any(|file| file.starts_with(&inside)),
            "{empty} is not empty"
        );
    }
    let controls = manifest
        .entries
        .iter()
        .filter(|entry| matches!(entry, Entry::File(file) if file.kind == FileKind::Control));
    assert_eq!(controls.count(), 1);
    assert_eq!(manifest.header.wal.first.to_string().len(), 24);
    assert!(!manifest.header.owners.is_empty());
}
