use proptest::prelude::*;

use super::*;

fn copied(path: &str) -> FileKind {
    match file(path.as_bytes()) {
        FileVerdict::Copy(kind) => kind,
        FileVerdict::Skip(reason) => panic!("{path} is skipped: {reason:?}"),
    }
}

fn skipped(path: &str) -> SkipReason {
    match file(path.as_bytes()) {
        FileVerdict::Skip(reason) => reason,
        FileVerdict::Copy(kind) => panic!("{path} is copied: {kind:?}"),
    }
}

#[test]
fn relations_are_known_by_tablespace_database_number_fork_and_segment() {
    let relation = |tablespace, database, number, fork, segment| {
        FileKind::Relation(RelationFile {
            tablespace,
            database,
            number,
            fork,
            segment,
        })
    };
    for (path, kind) in [
        (
            "global/1262",
            relation(Tablespace::Global, 0, 1262, Fork::Main, 0),
        ),
        (
            "global/1262_fsm",
            relation(Tablespace::Global, 0, 1262, Fork::FreeSpace, 0),
        ),
        (
            "base/5/1259",
            relation(Tablespace::Default, 5, 1259, Fork::Main, 0),
        ),
        (
            "base/5/16384.12",
            relation(Tablespace::Default, 5, 16384, Fork::Main, 12),
        ),
        (
            "base/5/16384_vm.1",
            relation(Tablespace::Default, 5, 16384, Fork::Visibility, 1),
        ),
        (
            "base/5/16384_init",
            relation(Tablespace::Default, 5, 16384, Fork::Init, 0),
        ),
        (
            "pg_tblspc/16390/PG_15_202209061/5/16391.3",
            relation(Tablespace::Other(16390), 5, 16391, Fork::Main, 3),
        ),
        (
            "base/4294967295/4294967295",
            relation(Tablespace::Default, u32::MAX, u32::MAX, Fork::Main, 0),
        ),
    ] {
        assert_eq!(copied(path), kind, "{path}");
        assert!(kind.has_checksums());
    }
}

#[test]
fn strangers_among_relations_are_copied_without_checksums() {
    for path in [
        "base/5/notes.txt",
        "base/5/016384",
        "base/5/16384.0",
        "base/5/16384.01",
        "base/5/16384.",
        "base/5/16384_foo",
        "base/5/16384_fsm_vm",
        "base/5/_init",
        "base/5/4294967296",
        "base/5/12345678901",
        "base/0/1259",
        "base/5/6/1259",
        "base/1259",
        "global/sub/1262",
        "pg_tblspc/16390/5/16391",
        "pg_tblspc/16390/other/5/16391",
        "pg_tblspc/16390/PG_15_202209061/16391",
        "1259",
        "mine/5/1259",
    ] {
        let kind = copied(path);
        assert_eq!(kind, FileKind::Other, "{path}");
        assert!(!kind.has_checksums());
    }
    for path in [
        "global/pg_control",
        "global/pg_filenode.map",
        "base/5/pg_filenode.map",
        "base/5/PG_VERSION",
    ] {
        assert!(!copied(path).has_checksums(), "{path}");
    }
}

#[test]
fn every_kind_is_named() {
    for (path, kind) in [
        ("PG_VERSION", FileKind::Version),
        ("base/5/PG_VERSION", FileKind::Version),
        ("pg_tblspc/16390/PG_15_202209061/5/PG_VERSION", FileKind::Version),
        ("global/pg_control", FileKind::Control),
        ("global/pg_filenode.map", FileKind::RelationMap),
        ("base/5/pg_filenode.map", FileKind::RelationMap),
        ("postgresql.conf", FileKind::Configuration),
        ("postgresql.auto.conf", FileKind::Configuration),
        ("pg_xact/0000", FileKind::Slru),
        ("pg_multixact/members/0000", FileKind::Slru),
        ("pg_multixact/offsets/0000", FileKind::Slru),
        ("pg_commit_ts/0000", FileKind::Slru),
        ("pg_logical/replorigin_checkpoint", FileKind::Other),
        ("pg_stat/pgstat.stat", FileKind::Other),
        ("pg_twophase/00000000000002E5", FileKind::Other),
        ("server.key", FileKind::Other),
    ] {
        assert_eq!(copied(path), kind, "{path}");
    }
}

#[test]
fn what_a_base_backup_leaves_out_is_left_out() {
    for (path, reason) in [
        ("base/pgsql_tmp/pgsql_tmp123.0", SkipReason::Temporary),
        ("pgsql_tmp_leftover", SkipReason::Temporary),
        ("pg_tblspc/1/PG_15_202209061/pgsql_tmp/x", SkipReason::Volatile),
        ("postmaster.pid", SkipReason::Running),
        ("postmaster.opts", SkipReason::Running),
        ("current_logfiles", SkipReason::Running),
        ("current_logfiles.tmp", SkipReason::Running),
        ("global/pg_internal.init", SkipReason::Cache),
        ("base/5/pg_internal.init.1234", SkipReason::Cache),
        ("postgresql.auto.conf.tmp", SkipReason::Temporary),
        ("backup_label", SkipReason::Backup),
        ("backup_label.old", SkipReason::Backup),
        ("tablespace_map", SkipReason::Backup),
        ("tablespace_map.old", SkipReason::Backup),
        ("backup_manifest", SkipReason::Backup),
        ("recovery.signal", SkipReason::Signal),
        ("standby.signal", SkipReason::Signal),
        ("base/5/t3_16400", SkipReason::TemporaryRelation),
        ("base/5/t3_16400_fsm", SkipReason::TemporaryRelation),
        ("base/5/t3_16400.1", SkipReason::TemporaryRelation),
        (
            "pg_tblspc/1/PG_15_202209061/5/t12_16400_vm.2",
            SkipReason::TemporaryRelation,
        ),
        ("pg_wal/000000010000000000000001", SkipReason::Wal),
        (
            "pg_wal/archive_status/000000010000000000000001.done",
            SkipReason::Wal,
        ),
        ("pg_replslot/standby/state", SkipReason::Volatile),
        ("pg_stat_tmp/global.stat", SkipReason::Volatile),
        ("pg_subtrans/0000", SkipReason::Volatile),
    ] {
        if path.ends_with("pgsql_tmp/x") {
            // Its directory is left out; the file alone does not show it.
            assert_eq!(
                directory(b"pg_tblspc/1/PG_15_202209061/pgsql_tmp"),
                DirectoryVerdict::Skip(SkipReason::Temporary)
            );
            continue;
        }
        assert_eq!(skipped(path), reason, "{path}");
    }
}

#[test]
fn the_log_directory_and_strangers_with_well_known_names_are_copied() {
    for path in [
        "log/postgresql-2026-11-21.log",
        "pg_log/postgresql.log",
        "mine/postmaster.pid",
        "mine/backup_label",
        "mine/standby.signal",
        "mine/lost+found/x",
        "base/5/t3",
        "base/5/t3_",
        "base/5/t_1",
        "base/5/tx_1",
        "base/5/t3_1_foo",
        "base/5/t3_1.",
        "global/t3_16400",
    ] {
        copied(path);
    }
    assert_eq!(directory(b"log"), DirectoryVerdict::Copy(DirectoryKind::Other));
}

#[test]
fn directories_that_a_start_empties_are_kept_empty() {
    for path in [
        "pg_wal",
        "pg_wal/archive_status",
        "pg_wal/summaries",
        "pg_replslot",
        "pg_dynshmem",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_subtrans",
    ] {
        assert_eq!(directory(path.as_bytes()), DirectoryVerdict::Empty, "{path}");
    }
    assert_eq!(
        directory(b"pg_replslot/standby"),
        DirectoryVerdict::Skip(SkipReason::Volatile)
    );
    assert_eq!(
        directory(b"mine/pg_notify"),
        DirectoryVerdict::Copy(DirectoryKind::Other)
    );
    assert_eq!(wal_subdirectories(15), ["pg_wal/archive_status"]);
    assert_eq!(
        wal_subdirectories(17),
        ["pg_wal/archive_status", "pg_wal/summaries"]
    );
}

#[test]
fn directories_of_databases_and_tablespaces_are_known() {
    for (path, kind) in [
        ("", DirectoryKind::Other),
        ("base", DirectoryKind::Other),
        (
            "base/5",
            DirectoryKind::Database {
                tablespace: Tablespace::Default,
                database: 5,
            },
        ),
        ("base/mine", DirectoryKind::Other),
        ("global", DirectoryKind::Other),
        ("pg_tblspc", DirectoryKind::Tablespaces),
        ("pg_tblspc/16390", DirectoryKind::Tablespace(16390)),
        ("pg_tblspc/mine", DirectoryKind::Other),
        ("pg_tblspc/16390/PG_15_202209061", DirectoryKind::Other),
        (
            "pg_tblspc/16390/PG_15_202209061/5",
            DirectoryKind::Database {
                tablespace: Tablespace::Other(16390),
                database: 5,
            },
        ),
    ] {
        assert_eq!(directory(path.as_bytes()), DirectoryVerdict::Copy(kind), "{path}");
    }
    assert_eq!(tablespace_version_directory(15, 202_209_061), "PG_15_202209061");
}

proptest! {
    #[test]
    fn any_path_has_a_verdict(path in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = file(&path);
        let _ = directory(&path);
    }

    #[test]
    fn paths_made_of_the_words_of_the_rules_have_a_verdict(
        path in "(base|global|pg_tblspc|pg_wal|t)(/(0|5|PG_1_2|t3_4|16384)(_fsm|_init|\\.1|\\.)?){0,4}"
    ) {
        let _ = file(path.as_bytes());
        let _ = directory(path.as_bytes());
    }

    #[test]
    fn names_of_relations_round_trip(number in 1_u32.., fork in 0_usize..4, segment in 0_u32..) {
        let fork = [Fork::Main, Fork::FreeSpace, Fork::Visibility, Fork::Init][fork];
        let suffix = fork.suffix();
        let name = if segment == 0 { format!("{number}{suffix}") } else { format!("{number}{suffix}.{segment}") };
        prop_assert_eq!(relation(name.as_bytes()), Some((number, fork, segment)));
        prop_assert!(!is_temporary_relation(name.as_bytes()));
        let temporary = format!("t7_{name}");
        prop_assert!(is_temporary_relation(temporary.as_bytes()));
        prop_assert_eq!(relation(temporary.as_bytes()), None);
    }
}
