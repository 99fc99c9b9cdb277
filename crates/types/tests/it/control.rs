//! pg_control against pg_controldata and the server's functions.

use std::collections::BTreeMap;
use std::path::Path;

use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_types::control::{ClusterState, ControlFileError, DataChecksums, UnixTime, WalLevel};
use pgmahout_types::{ControlFile, Lsn, SegmentName, TimelineId};

fn bytes_of(server: &Postgres) -> Vec<u8> {
    std::fs::read(server.data_dir().join(ControlFile::PATH)).expect("pg_control can be read")
}

fn control_of(server: &Postgres) -> ControlFile {
    ControlFile::parse(&bytes_of(server)).expect("the server's pg_control is good")
}

/// What pg_controldata prints of a directory: its status, its lines, its complaints.
fn controldata(server: &Postgres, directory: &Path) -> (bool, BTreeMap<String, String>, String) {
    let output = server
        .server_command("pg_controldata")
        .arg("--pgdata")
        .arg(directory)
        .output()
        .expect("pg_controldata runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let lines = lines
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect();
    let complaints = format!("{}{text}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), lines, complaints)
}

/// A moment as C's `%c` prints it, which is how pg_controldata does.
fn time_text(server: &Postgres, time: UnixTime) -> String {
    let mut command = server.server_command("pg_controldata");
    // The same environment for the other program: the time zone and the locale count.
    let environment: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command = std::process::Command::new("date");
    command
        .envs(environment)
        .arg(format!("--date=@{}", time.seconds()))
        .arg("+%a %b %e %H:%M:%S %Y");
    let output = command.output().expect("date runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Every line of pg_controldata, from what we have read.
fn expected_lines(server: &Postgres, control: &ControlFile) -> BTreeMap<String, String> {
    let on = |flag: bool| if flag { "on" } else { "off" }.to_owned();
    let transaction = |xid: Option<u32>| xid.unwrap_or(0).to_string();
    let position = |lsn: Option<Lsn>| lsn.unwrap_or_default().to_string();
    let checkpoint = &control.checkpoint;
    let redo_file = SegmentName::containing(checkpoint.timeline, checkpoint.redo, control.wal_segment_size);
    let minimum_timeline = control.min_recovery.and_then(|point| point.timeline);
    let nonce = control
        .mock_authentication_nonce
        .iter()
        .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let mut lines = BTreeMap::from(
        [
            ("pg_control version number", control.control_version.to_string()),
            ("Catalog version number", control.catalog_version.to_string()),
            (
                "Database system identifier",
                control.system_identifier.to_string(),
            ),
            ("Database cluster state", control.state.to_string()),
            ("pg_control last modified", time_text(server, control.modified)),
            (
                "Latest checkpoint location",
                control.checkpoint_location.to_string(),
            ),
            ("Latest checkpoint's REDO location", checkpoint.redo.to_string()),
            ("Latest checkpoint's REDO WAL file", redo_file.to_string()),
            ("Latest checkpoint's TimeLineID", checkpoint.timeline.to_string()),
            (
                "Latest checkpoint's PrevTimeLineID",
                checkpoint.previous_timeline.to_string(),
            ),
            (
                "Latest checkpoint's full_page_writes",
                on(checkpoint.full_page_writes),
            ),
            (
                "Latest checkpoint's NextXID",
                checkpoint.next_transaction.to_string(),
            ),
            ("Latest checkpoint's NextOID", checkpoint.next_oid.to_string()),
            (
                "Latest checkpoint's NextMultiXactId",
                checkpoint.next_multixact.to_string(),
            ),
            (
                "Latest checkpoint's NextMultiOffset",
                checkpoint.next_multixact_offset.to_string(),
            ),
            (
                "Latest checkpoint's oldestXID",
                checkpoint.oldest_transaction.to_string(),
            ),
            (
                "Latest checkpoint's oldestXID's DB",
                checkpoint.oldest_transaction_database.to_string(),
            ),
            (
                "Latest checkpoint's oldestActiveXID",
                transaction(checkpoint.oldest_active_transaction),
            ),
            (
                "Latest checkpoint's oldestMultiXid",
                checkpoint.oldest_multixact.to_string(),
            ),
            (
                "Latest checkpoint's oldestMulti's DB",
                checkpoint.oldest_multixact_database.to_string(),
            ),
            (
                "Latest checkpoint's oldestCommitTsXid",
                transaction(checkpoint.oldest_commit_timestamp_transaction),
            ),
            (
                "Latest checkpoint's newestCommitTsXid",
                transaction(checkpoint.newest_commit_timestamp_transaction),
            ),
            ("Time of latest checkpoint", time_text(server, checkpoint.time)),
            (
                "Fake LSN counter for unlogged rels",
                control.unlogged_lsn.to_string(),
            ),
            (
                "Minimum recovery ending location",
                position(control.min_recovery.map(|point| point.lsn)),
            ),
            (
                "Min recovery ending loc's timeline",
                minimum_timeline.map_or(0, TimelineId::get).to_string(),
            ),
            ("Backup start location", position(control.backup_start)),
            ("Backup end location", position(control.backup_end)),
            (
                "End-of-backup record required",
                if control.backup_end_required { "yes" } else { "no" }.to_owned(),
            ),
            ("wal_level setting", control.wal_level.to_string()),
            ("wal_log_hints setting", on(control.wal_log_hints)),
            ("max_connections setting", control.max_connections.to_string()),
            (
                "max_worker_processes setting",
                control.max_worker_processes.to_string(),
            ),
            ("max_wal_senders setting", control.max_wal_senders.to_string()),
            (
                "max_prepared_xacts setting",
                control.max_prepared_transactions.to_string(),
            ),
            (
                "max_locks_per_xact setting",
                control.max_locks_per_transaction.to_string(),
            ),
            (
                "track_commit_timestamp setting",
                on(control.track_commit_timestamp),
            ),
            ("Maximum data alignment", control.maximum_alignment.to_string()),
            ("Database block size", control.block_size.to_string()),
            (
                "Blocks per segment of large relation",
                control.relation_segment_blocks.to_string(),
            ),
            ("WAL block size", control.wal_block_size.to_string()),
            (
                "Bytes per WAL segment",
                control.wal_segment_size.bytes().to_string(),
            ),
            (
                "Maximum length of identifiers",
                control.name_data_length.to_string(),
            ),
            ("Maximum columns in an index", control.max_index_keys.to_string()),
            (
                "Maximum size of a TOAST chunk",
                control.toast_chunk_size.to_string(),
            ),
            (
                "Size of a large-object chunk",
                control.large_object_chunk_size.to_string(),
            ),
            ("Date/time type storage", "64-bit integers".to_owned()),
            (
                "Float8 argument passing",
                if control.float8_by_value {
                    "by value"
                } else {
                    "by reference"
                }
                .to_owned(),
            ),
            (
                "Data page checksum version",
                control.data_checksums.version().to_string(),
            ),
            ("Mock authentication nonce", nonce),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    if let Some(signed) = control.default_char_signed {
        let signedness = if signed { "signed" } else { "unsigned" };
        lines.insert("Default char data signedness".to_owned(), signedness.to_owned());
    }
    lines
}

/// Only for a server that does not write pg_control meanwhile: stopped or killed.
fn agrees_with_pg_controldata(server: &Postgres, state: ClusterState) -> ControlFile {
    let control = control_of(server);
    assert_eq!(control.state, state);
    let (success, lines, complaints) = controldata(server, server.data_dir());
    assert!(success, "{complaints}");
    assert_eq!(lines, expected_lines(server, &control));
    control
}

/// Reads the file and asks the server until both happened without a change between them.
async fn control_and_answer(server: &Postgres, query: &str) -> (ControlFile, String) {
    for _ in 0..100 {
        let before = bytes_of(server);
        let answer = server.query_text("postgres", query).await;
        if let (true, Ok(control)) = (before == bytes_of(server), ControlFile::parse(&before)) {
            return (control, answer);
        }
    }
    panic!("pg_control never rests");
}

async fn agrees_with_the_functions(server: &Postgres) {
    let query = "SELECT pg_control_version, catalog_version_no, system_identifier,
                        extract(epoch FROM pg_control_last_modified)::bigint FROM pg_control_system()";
    let (control, answer) = control_and_answer(server, query).await;
    assert_eq!(
        answer,
        format!(
            "{}|{}|{}|{}",
            control.control_version,
            control.catalog_version,
            control.system_identifier,
            control.modified.seconds()
        )
    );
    assert_eq!(control.major(), Some(server.major().number()));
    // initdb ran for this test alone.
    let age = control.checkpoint.time.seconds()
        - i64::try_from(control.system_identifier.created_at_unix_seconds()).expect("this century");
    assert!((0..3600).contains(&age), "{age}");

    let query =
        "SELECT checkpoint_lsn, redo_lsn, redo_wal_file, timeline_id, prev_timeline_id, full_page_writes,
                        next_xid, next_oid, next_multixact_id, next_multi_offset, oldest_xid, oldest_xid_dbid,
                        oldest_active_xid, oldest_multi_xid, oldest_multi_dbid, oldest_commit_ts_xid,
                        newest_commit_ts_xid, extract(epoch FROM checkpoint_time)::bigint
                 FROM pg_control_checkpoint()";
    let (control, answer) = control_and_answer(server, query).await;
    let checkpoint = &control.checkpoint;
    let redo_file = SegmentName::containing(checkpoint.timeline, checkpoint.redo, control.wal_segment_size);
    let number = |xid: Option<u32>| xid.unwrap_or(0).to_string();
    let expected = [
        control.checkpoint_location.to_string(),
        checkpoint.redo.to_string(),
        redo_file.to_string(),
        checkpoint.timeline.to_string(),
        checkpoint.previous_timeline.to_string(),
        if checkpoint.full_page_writes { "t" } else { "f" }.to_owned(),
        checkpoint.next_transaction.to_string(),
        checkpoint.next_oid.to_string(),
        checkpoint.next_multixact.to_string(),
        checkpoint.next_multixact_offset.to_string(),
        checkpoint.oldest_transaction.to_string(),
        checkpoint.oldest_transaction_database.to_string(),
        number(checkpoint.oldest_active_transaction),
        checkpoint.oldest_multixact.to_string(),
        checkpoint.oldest_multixact_database.to_string(),
        number(checkpoint.oldest_commit_timestamp_transaction),
        number(checkpoint.newest_commit_timestamp_transaction),
        checkpoint.time.seconds().to_string(),
    ];
    assert_eq!(answer, expected.join("|"));

    let signedness = if server.major().number() >= 18 {
        ", default_char_signedness"
    } else {
        ""
    };
    let query = format!(
        "SELECT max_data_alignment, database_block_size, blocks_per_segment, wal_block_size, bytes_per_wal_segment,
                max_identifier_length, max_index_columns, max_toast_chunk_size, large_object_chunk_size,
                float8_pass_by_value, data_page_checksum_version{signedness} FROM pg_control_init()"
    );
    let (control, answer) = control_and_answer(server, &query).await;
    let flag = |flag: bool| if flag { "t" } else { "f" }.to_owned();
    let mut expected = vec![
        control.maximum_alignment.to_string(),
        control.block_size.to_string(),
        control.relation_segment_blocks.to_string(),
        control.wal_block_size.to_string(),
        control.wal_segment_size.bytes().to_string(),
        control.name_data_length.to_string(),
        control.max_index_keys.to_string(),
        control.toast_chunk_size.to_string(),
        control.large_object_chunk_size.to_string(),
        flag(control.float8_by_value),
        control.data_checksums.version().to_string(),
    ];
    expected.extend(control.default_char_signed.map(flag));
    assert_eq!(answer, expected.join("|"));

    let query = "SELECT min_recovery_end_lsn, min_recovery_end_timeline, backup_start_lsn, backup_end_lsn,
                        end_of_backup_record_required FROM pg_control_recovery()";
    let (control, answer) = control_and_answer(server, query).await;
    let expected = [
        control
            .min_recovery
            .map(|point| point.lsn)
            .unwrap_or_default()
            .to_string(),
        control
            .min_recovery
            .and_then(|point| point.timeline)
            .map_or(0, TimelineId::get)
            .to_string(),
        control.backup_start.unwrap_or_default().to_string(),
        control.backup_end.unwrap_or_default().to_string(),
        flag(control.backup_end_required),
    ];
    assert_eq!(answer, expected.join("|"));
}

async fn the_life_of_a_cluster_is_read(major: Major) {
    let primary = Postgres::builder(major)
        .own_system_identifier()
        .data_checksums(true)
        .initdb_arg("--wal-segsize=4")
        .setting("max_connections", "37")
        .setting("max_worker_processes", "11")
        .setting("max_wal_senders", "6")
        .setting("max_prepared_transactions", "3")
        .setting("max_locks_per_transaction", "71")
        .setting("wal_log_hints", "on")
        .setting("wal_level", "logical")
        .setting("track_commit_timestamp", "on")
        .setting("full_page_writes", "off")
        .start()
        .await;
    primary
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id; CHECKPOINT",
        )
        .await;
    agrees_with_the_functions(&primary).await;
    let control = control_of(&primary);
    assert_eq!(control.state, ClusterState::InProduction);
    assert_eq!(
        (
            control.max_connections,
            control.max_worker_processes,
            control.max_wal_senders
        ),
        (37, 11, 6)
    );
    assert_eq!(
        (
            control.max_prepared_transactions,
            control.max_locks_per_transaction
        ),
        (3, 71)
    );
    assert_eq!(
        (control.wal_level, control.wal_log_hints),
        (WalLevel::Logical, true)
    );
    assert_eq!(control.data_checksums, DataChecksums::Version(1));
    assert!(control.checkpoint.newest_commit_timestamp_transaction.is_some());
    assert_eq!(
        control.checkpoint.wal_level,
        (major.number() >= 17).then_some(WalLevel::Logical)
    );
    assert!(!control.checkpoint.full_page_writes);

    let standby = primary.standby("standby").start().await;
    primary
        .sql(
            "postgres",
            "INSERT INTO t SELECT generate_series(1, 1000); CHECKPOINT",
        )
        .await;
    primary.wait_for_replay(&standby).await;
    standby.sql("postgres", "CHECKPOINT").await;
    agrees_with_the_functions(&standby).await;
    let running = control_of(&standby);
    assert_eq!(running.state, ClusterState::InArchiveRecovery);
    assert!(running.min_recovery.is_some());
    standby.stop(StopMode::Fast).await;
    let stopped = agrees_with_pg_controldata(&standby, ClusterState::ShutDownInRecovery);
    assert_eq!(stopped.system_identifier, control.system_identifier);

    primary.kill().await;
    agrees_with_pg_controldata(&primary, ClusterState::InProduction);
    primary.start_again().await;
    primary.stop(StopMode::Fast).await;
    let clean = agrees_with_pg_controldata(&primary, ClusterState::ShutDown);
    assert!(clean.state.is_clean_shutdown());
    assert_eq!(clean.checkpoint.redo, clean.checkpoint_location);

    damage_is_noticed_as_pg_controldata_notices_it(&primary);
}

/// Every byte of the structure, changed in a copy of the server's own file.
fn damage_is_noticed_as_pg_controldata_notices_it(server: &Postgres) {
    let good = bytes_of(server);
    let directory = server.new_directory("damaged");
    let path = server.new_directory("damaged/global").join("pg_control");
    let length = if server.major().number() >= 18 { 296 } else { 292 };
    for offset in 0..length + 4 {
        let mut damaged = good.clone();
        damaged[offset] ^= 0x10;
        let ours = ControlFile::parse(&damaged);
        // A program for each byte is slow: every seventh, and all around the version and the checksum.
        if offset % 7 == 0 || (8..12).contains(&offset) || offset + 8 >= length {
            std::fs::write(&path, &damaged).expect("the copy can be written");
            let (_, _, complaints) = controldata(server, &directory);
            let theirs = complaints.contains("CRC checksum");
            assert_eq!(theirs, ours.is_err(), "byte {offset}: {ours:?}\n{complaints}");
        }
        match ours {
            Ok(control) => {
                assert!(offset >= length, "byte {offset} was not noticed");
                assert_eq!(control, control_of(server));
            }
            Err(ControlFileError::Checksum { .. }) => assert!(offset < length),
            Err(ControlFileError::Version { .. } | ControlFileError::ByteOrder) => {
                assert!((8..12).contains(&offset));
            }
            Err(other) => panic!("byte {offset}: {other}"),
        }
    }
    for length in 0..good.len() {
        assert_eq!(
            ControlFile::parse(&good[..length]),
            Err(ControlFileError::Truncated { length })
        );
    }
}

#[tokio::test]
async fn pg_control_of_postgresql_15_says_what_its_own_programs_say() {
    the_life_of_a_cluster_is_read(Major::V15).await;
}

#[tokio::test]
async fn pg_control_of_postgresql_18_says_what_its_own_programs_say() {
    the_life_of_a_cluster_is_read(Major::V18).await;
}
