//! pg_control against pg_controldata and the server's functions.

use std::collections::BTreeMap;
use std::path::Path;

use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_types::control::{ClusterState, ControlFileError, DataChecksums, UnixTime, WalLevel};
use pgmahout_types::{BackupLabel, ControlFile, Lsn, SegmentName, SegmentSize, TimelineId};

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

/// The columns of the server's functions, from what we have read.
fn function_columns(control: &ControlFile) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let flag = |flag: bool| if flag { "t" } else { "f" }.to_owned();
    let transaction = |xid: Option<u32>| xid.unwrap_or(0).to_string();
    let position = |lsn: Option<Lsn>| lsn.unwrap_or_default().to_string();
    let checkpoint = &control.checkpoint;
    let redo_file = SegmentName::containing(checkpoint.timeline, checkpoint.redo, control.wal_segment_size);
    let minimum_timeline = control.min_recovery.and_then(|point| point.timeline);
    let system = vec![
        ("pg_control_version", control.control_version.to_string()),
        ("catalog_version_no", control.catalog_version.to_string()),
        ("system_identifier", control.system_identifier.to_string()),
        (
            "extract(epoch FROM pg_control_last_modified)::bigint",
            control.modified.seconds().to_string(),
        ),
    ];
    let checkpoint = vec![
        ("checkpoint_lsn", control.checkpoint_location.to_string()),
        ("redo_lsn", checkpoint.redo.to_string()),
        ("redo_wal_file", redo_file.to_string()),
        ("timeline_id", checkpoint.timeline.to_string()),
        ("prev_timeline_id", checkpoint.previous_timeline.to_string()),
        ("full_page_writes", flag(checkpoint.full_page_writes)),
        ("next_xid", checkpoint.next_transaction.to_string()),
        ("next_oid", checkpoint.next_oid.to_string()),
        ("next_multixact_id", checkpoint.next_multixact.to_string()),
        ("next_multi_offset", checkpoint.next_multixact_offset.to_string()),
        ("oldest_xid", checkpoint.oldest_transaction.to_string()),
        (
            "oldest_xid_dbid",
            checkpoint.oldest_transaction_database.to_string(),
        ),
        (
            "oldest_active_xid",
            transaction(checkpoint.oldest_active_transaction),
        ),
        ("oldest_multi_xid", checkpoint.oldest_multixact.to_string()),
        (
            "oldest_multi_dbid",
            checkpoint.oldest_multixact_database.to_string(),
        ),
        (
            "oldest_commit_ts_xid",
            transaction(checkpoint.oldest_commit_timestamp_transaction),
        ),
        (
            "newest_commit_ts_xid",
            transaction(checkpoint.newest_commit_timestamp_transaction),
        ),
        (
            "extract(epoch FROM checkpoint_time)::bigint",
            checkpoint.time.seconds().to_string(),
        ),
    ];
    let mut init = vec![
        ("max_data_alignment", control.maximum_alignment.to_string()),
        ("database_block_size", control.block_size.to_string()),
        ("blocks_per_segment", control.relation_segment_blocks.to_string()),
        ("wal_block_size", control.wal_block_size.to_string()),
        (
            "bytes_per_wal_segment",
            control.wal_segment_size.bytes().to_string(),
        ),
        ("max_identifier_length", control.name_data_length.to_string()),
        ("max_index_columns", control.max_index_keys.to_string()),
        ("max_toast_chunk_size", control.toast_chunk_size.to_string()),
        (
            "large_object_chunk_size",
            control.large_object_chunk_size.to_string(),
        ),
        ("float8_pass_by_value", flag(control.float8_by_value)),
        (
            "data_page_checksum_version",
            control.data_checksums.version().to_string(),
        ),
    ];
    init.extend(
        control
            .default_char_signed
            .map(|signed| ("default_char_signedness", flag(signed))),
    );
    let recovery = vec![
        (
            "min_recovery_end_lsn",
            position(control.min_recovery.map(|point| point.lsn)),
        ),
        (
            "min_recovery_end_timeline",
            minimum_timeline.map_or(0, TimelineId::get).to_string(),
        ),
        ("backup_start_lsn", position(control.backup_start)),
        ("backup_end_lsn", position(control.backup_end)),
        ("end_of_backup_record_required", flag(control.backup_end_required)),
    ];
    vec![
        ("pg_control_system", system),
        ("pg_control_checkpoint", checkpoint),
        ("pg_control_init", init),
        ("pg_control_recovery", recovery),
    ]
}

async fn agrees_with_the_functions(server: &Postgres) {
    for (index, (function, columns)) in function_columns(&control_of(server)).into_iter().enumerate() {
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let query = format!("SELECT {} FROM {function}()", names.join(", "));
        let (control, answer) = control_and_answer(server, &query).await;
        let (_, columns) = function_columns(&control).swap_remove(index);
        let expected: Vec<String> = columns.into_iter().map(|(_, value)| value).collect();
        assert_eq!(answer, expected.join("|"), "{function}");
        // Columns of a later version would be missing above.
        let query =
            format!("SELECT count(*) FROM jsonb_object_keys((SELECT to_jsonb(f) FROM {function}() f))");
        assert_eq!(
            server.query_text("postgres", &query).await,
            expected.len().to_string(),
            "{function}"
        );
    }
    let control = control_of(server);
    assert_eq!(control.major(), Some(server.major().number()));
    // initdb ran for this test alone.
    let created = i64::try_from(control.system_identifier.created_at_unix_seconds()).expect("this century");
    assert!((0..3600).contains(&(control.checkpoint.time.seconds() - created)));
}

/// Files of the versions that no test starts, with what those servers' functions said at the same time.
#[test]
fn pg_control_of_the_versions_between_says_what_their_functions_said() {
    for (major, file, answers) in [
        (
            14,
            &include_bytes!("../fixtures/pg_control-14.bin")[..],
            include_str!("../fixtures/pg_control-14.txt"),
        ),
        (
            16,
            include_bytes!("../fixtures/pg_control-16.bin"),
            include_str!("../fixtures/pg_control-16.txt"),
        ),
        (
            17,
            include_bytes!("../fixtures/pg_control-17.bin"),
            include_str!("../fixtures/pg_control-17.txt"),
        ),
    ] {
        // The rest of the file is zeros, which the fixtures leave out.
        let mut bytes = file.to_vec();
        bytes.resize(ControlFile::FILE_SIZE, 0);
        let control = ControlFile::parse(&bytes).expect("a server wrote it");
        assert_eq!(control.major(), Some(major));
        let answers: BTreeMap<&str, &str> = answers.lines().filter_map(|line| line.split_once('|')).collect();
        let mut compared = 0;
        for (name, value) in function_columns(&control)
            .into_iter()
            .flat_map(|(_, columns)| columns)
        {
            let name = match name {
                "extract(epoch FROM pg_control_last_modified)::bigint" => "modified_epoch",
                "extract(epoch FROM checkpoint_time)::bigint" => "checkpoint_epoch",
                name => name,
            };
            assert_eq!(answers.get(name), Some(&value.as_str()), "{name} of {major}");
            compared += 1;
        }
        // The two moments stand there as text too, and the server's version is no column.
        assert_eq!(compared + 3, answers.len());
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
        assert!(control.track_commit_timestamp);
        assert_eq!(
            control.checkpoint.wal_level,
            (major >= 17).then_some(WalLevel::Logical)
        );
    }
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
            server.account().own(&path);
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

/// Recoveries of base backups that cannot reach the end of the backup, because the WAL after the backup's
/// checkpoint is gone.
async fn an_unfinished_recovery_is_read(major: Major) {
    let primary = Postgres::start(major).await;
    let copy = primary.standby("copy").without_slot().prepare();
    let start = recover_without_wal(&copy).await;
    let control = agrees_with_pg_controldata(&copy, ClusterState::InArchiveRecovery);
    assert_eq!((control.backup_start, control.backup_end), (Some(start), None));
    assert!(control.backup_end_required);

    let standby = primary.standby("standby").without_slot().start().await;
    primary
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id; CHECKPOINT",
        )
        .await;
    primary
        .sql("postgres", "INSERT INTO t SELECT generate_series(1, 1000)")
        .await;
    primary.wait_for_replay(&standby).await;
    let copy = standby.standby("copy").without_slot().prepare();
    let start = recover_without_wal(&copy).await;
    let control = agrees_with_pg_controldata(&copy, ClusterState::InArchiveRecovery);
    assert_eq!(control.backup_start, Some(start));
    assert!(control.backup_end > control.backup_start);
}

/// Starts a copy whose WAL ends after the checkpoint, and kills it; returns where its backup started.
async fn recover_without_wal(copy: &Postgres) -> Lsn {
    let data = copy.data_dir();
    let label = std::fs::read(data.join(BackupLabel::FILE_NAME)).expect("a base backup has a label");
    let label = BackupLabel::parse(&label).expect("the server's label is good");
    let size = SegmentSize::DEFAULT;
    let path = data
        .join("pg_wal")
        .join(SegmentName::containing(TimelineId::FIRST, label.checkpoint, size).to_string());
    let mut segment = std::fs::read(&path).expect("the backup brought its WAL");
    // The record of a checkpoint takes 114 bytes, and the next one begins at a multiple of 8.
    let offset = usize::try_from(size.offset_of(label.checkpoint)).expect("it fits") + 120;
    segment[offset..].fill(0);
    std::fs::write(&path, segment).expect("the segment can be written");

    std::fs::write(data.join("postgresql.auto.conf"), "").expect("primary_conninfo is gone");
    copy.append_conf("hot_standby = off");
    copy.start_again().await;
    copy.kill().await;
    label.start.lsn
}

#[tokio::test]
async fn pg_control_of_an_unfinished_recovery_of_postgresql_15_is_read() {
    an_unfinished_recovery_is_read(Major::V15).await;
}

#[tokio::test]
async fn pg_control_of_an_unfinished_recovery_of_postgresql_18_is_read() {
    an_unfinished_recovery_is_read(Major::V18).await;
}

#[tokio::test]
async fn pg_control_of_postgresql_15_says_what_its_own_programs_say() {
    the_life_of_a_cluster_is_read(Major::V15).await;
}

#[tokio::test]
async fn pg_control_of_postgresql_18_says_what_its_own_programs_say() {
    the_life_of_a_cluster_is_read(Major::V18).await;
}
