//! What pg_backup_stop gives.

use std::os::unix::ffi::OsStrExt;

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_types::backup_label::{BackupHistory, BackupMethod, BackupSource};
use pgmahout_types::{BackupLabel, Lsn, SegmentName, SegmentSize, TablespaceMap, TimelineId, WalFileName};

/// Position, backup_label and tablespace_map of a backup that copies nothing.
fn back_up(server: &Postgres, name: &str) -> (Lsn, Vec<u8>, Vec<u8>) {
    let script = format!(
        "SET client_min_messages = error;
         SELECT '' FROM pg_backup_start('{name}', true);
         SELECT lsn, encode(convert_to(labelfile, 'UTF8'), 'hex'), encode(convert_to(spcmapfile, 'UTF8'), 'hex')
         FROM pg_backup_stop(false);"
    );
    let output = server.psql("postgres", &script);
    let line = output.lines().last().expect("a row");
    let columns: Vec<&str> = line.split('|').collect();
    let [lsn, label, map] = columns[..] else {
        panic!("three columns: {line}")
    };
    (
        lsn.parse().expect("a position"),
        bytes_of_hex(label),
        bytes_of_hex(map),
    )
}

fn bytes_of_hex(hex: &str) -> Vec<u8> {
    let digits = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).expect("digits"));
    digits
        .map(|pair| u8::from_str_radix(pair, 16).expect("digits"))
        .collect()
}

async fn backups_are_read(major: Major) {
    // Without an archive the server removes the backup history file at once.
    let server = Postgres::builder(major).archive_to("archive").start().await;
    let locations = ["plain", "with blank", "with \\ and \\\\", "with\nline end"];
    for (index, location) in locations.iter().enumerate() {
        let directory = server.new_directory(location);
        let location = directory
            .to_str()
            .expect("UTF-8")
            .replace('\\', "\\\\")
            .replace('\n', "\\n");
        server
            .sql(
                "postgres",
                &format!("CREATE TABLESPACE space{index} LOCATION E'{location}'"),
            )
            .await;
    }

    let (stop, content, map) = back_up(&server, "nightly: \"käse\"");
    let label = BackupLabel::parse(&content).expect("the server's label is good");
    assert_eq!(label.render().as_bytes(), content);
    assert_eq!(label.label.as_deref(), Some("nightly: \"käse\""));
    assert_eq!(
        (&label.method, label.source),
        (&BackupMethod::Streamed, BackupSource::Primary)
    );
    let size = SegmentSize::DEFAULT;
    assert_eq!(
        label.start.file,
        SegmentName::containing(TimelineId::FIRST, label.start.lsn, size)
    );
    assert!(label.start.lsn <= label.checkpoint && label.checkpoint < stop);

    let map_read = TablespaceMap::parse(&map).expect("the server's map is good");
    assert_eq!(map_read.render(), map);
    let query =
        "SELECT oid, encode(convert_to(pg_tablespace_location(oid), 'UTF8'), 'hex') FROM pg_tablespace
                 WHERE pg_tablespace_location(oid) <> '' ORDER BY oid";
    let mut expected = Vec::new();
    for row in server.query_text("postgres", query).await.lines() {
        let (oid, location) = row.split_once('|').expect("two columns");
        expected.push((oid.parse::<u32>().expect("a number"), bytes_of_hex(location)));
    }
    assert_eq!(expected.len(), locations.len());
    let mut found: Vec<_> = map_read
        .links()
        .iter()
        .map(|link| (link.oid, link.location.as_os_str().as_bytes().to_vec()))
        .collect();
    found.sort();
    assert_eq!(found, expected);

    // The backup history file lies beside the WAL under the name that follows from the label.
    let name = WalFileName::backup_history(TimelineId::FIRST, label.start.lsn, size);
    let content =
        std::fs::read(server.data_dir().join("pg_wal").join(name.to_string())).expect("the file is there");
    let history = BackupHistory::parse(&content).expect("the server's backup history is good");
    assert_eq!(history.render().as_bytes(), content);
    assert_eq!(history.label, label);
    assert_eq!(
        (history.end.stop.lsn, history.end.timeline),
        (stop, TimelineId::FIRST)
    );

    // A name that looks like lines of the file changes nothing that counts.
    let (_, content, _) = back_up(
        &server,
        "odd\nSTART WAL LOCATION: 0/1 (file 000000090000000000000009)",
    );
    let odd = BackupLabel::parse(&content).expect("the server's label is good");
    assert_eq!(odd.label.as_deref(), Some("odd"));
    assert_eq!(odd.start.file.timeline(), TimelineId::FIRST);
    assert!(odd.start.lsn > label.start.lsn);
}

async fn backups_of_standbys_are_read(major: Major) {
    let server = Postgres::start(major).await;
    let standby = server.standby("standby").without_slot().start().await;
    let (stop, content, map) = back_up(&standby, "of the standby");
    let label = BackupLabel::parse(&content).expect("the server's label is good");
    assert_eq!(label.render().as_bytes(), content);
    assert_eq!(label.source, BackupSource::Standby);
    assert!(label.start.lsn <= label.checkpoint && label.checkpoint < stop);
    assert_eq!(TablespaceMap::parse(&map), Ok(TablespaceMap::default()));
}

#[tokio::test]
async fn backup_labels_of_postgresql_15_are_read_and_written_back() {
    backups_are_read(Major::V15).await;
}

#[tokio::test]
async fn backup_labels_of_postgresql_18_are_read_and_written_back() {
    backups_are_read(Major::V18).await;
}

#[tokio::test]
async fn backup_labels_of_a_standby_of_postgresql_15_are_read() {
    backups_of_standbys_are_read(Major::V15).await;
}

#[tokio::test]
async fn backup_labels_of_a_standby_of_postgresql_18_are_read() {
    backups_of_standbys_are_read(Major::V18).await;
}
