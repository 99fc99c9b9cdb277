//! Rounds of backup and restore to a random target, with a writer running: exactly the rows that should be
//! there are there, and the cluster is sound.
//!
//! `PGMAHOUT_TEST_ROUNDS` asks for more rounds of each case; `cargo xtask rounds` runs many.

use std::collections::BTreeSet;

use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_testkit::recorder::{self, Commit, Recorder};
use rstest::rstest;

use crate::archived::{Archived, Storage};

const DATABASE: &str = "postgres";
/// Transactions before, during and after each backup.
const SOME: usize = 15;

#[derive(Debug, Clone, Copy)]
enum TargetKind {
    Time,
    Lsn,
    Xid,
    Name,
    Latest,
    Immediate,
}

const KINDS: [TargetKind; 6] = [
    TargetKind::Time,
    TargetKind::Lsn,
    TargetKind::Xid,
    TargetKind::Name,
    TargetKind::Latest,
    TargetKind::Immediate,
];

/// How the files of a backup are read. All but the first are incremental.
#[derive(Debug, Clone, Copy)]
enum Files {
    /// The directory of the primary.
    Local,
    /// The directory of the standby.
    Standby,
    /// Through the replication protocol.
    Remote,
}

const FILES: [Files; 3] = [Files::Local, Files::Standby, Files::Remote];

/// A small generator of numbers: the rounds of one seed are always the same.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).expect("it is below a usize")
    }
}

#[rstest]
#[case::v15_directory_encrypted(Major::V15, Storage::Directory, true, 1)]
#[case::v15_s3(Major::V15, Storage::S3, false, 2)]
#[case::v18_directory(Major::V18, Storage::Directory, false, 3)]
#[case::v18_s3_encrypted(Major::V18, Storage::S3, true, 4)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_to_any_target_has_exactly_the_rows_that_were_committed_by_then(
    #[case] major: Major,
    #[case] storage: Storage,
    #[case] encrypted: bool,
    #[case] seed: u64,
) {
    let rounds: usize = std::env::var("PGMAHOUT_TEST_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    let mut numbers = Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let scene = Archived::with(major, storage, encrypted, |builder| {
        builder.setting("allow_in_place_tablespaces", "on")
    })
    .await;
    let standby = scene
        .server
        .standby("second")
        .setting("hot_standby", "on")
        .setting("archive_mode", "off")
        .start()
        .await;
    scene
        .server
        .sql(
            DATABASE,
            "CREATE TABLE junk AS SELECT i, md5(i::text) AS t FROM generate_series(1, 20000) i;
             CREATE INDEX ON junk (t);
             CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS a",
        )
        .await;
    let mut commits: Vec<Commit> = Vec::new();
    for round in 0..rounds {
        upheaval(&scene.server, numbers.next(8), round).await;
        let recorder = Recorder::start(&scene.server, DATABASE).await;
        recorder.wait_for(SOME).await;
        let files = FILES[(round + seed as usize) % FILES.len()];
        let backup = backup(&scene, files, &standby).await;
        recorder.wait_for(SOME).await;
        commits.extend(recorder.stop().await);
        let name = format!("point_{round}");
        scene
            .server
            .sql(DATABASE, &format!("SELECT pg_create_restore_point('{name}')"))
            .await;
        let at_name = commits.len();
        let recorder = Recorder::start(&scene.server, DATABASE).await;
        recorder.wait_for(SOME).await;
        commits.extend(recorder.stop().await);
        scene.archive_all().await;

        let kind = KINDS[(round + numbers.next(KINDS.len())) % KINDS.len()];
        let after_backup: Vec<&Commit> = commits
            .iter()
            .filter(|commit| commit.before > backup.stop && commit.time > backup.stop_time)
            .collect();
        let chosen = after_backup[numbers.next(after_backup.len())];
        let (arguments, rows) = target(kind, chosen, &name, &commits, at_name, backup.stop);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let context = format!(
            "round {round}, {files:?} backup {}, target {kind:?} {arguments:?}",
            backup.label
        );
        let copy = scene.restored(&arguments).await;
        let there = recorder::rows(&copy, DATABASE).await;
        rows.check(&there, &context);
        assert_sound(copy, &context).await;
    }
}

/// What must be there after a restore, and what may be.
struct Rows {
    must: BTreeSet<u64>,
    may: BTreeSet<u64>,
}

impl Rows {
    fn check(&self, there: &BTreeSet<u64>, context: &str) {
        let missing: Vec<_> = self.must.difference(there).collect();
        let surplus: Vec<_> = there.difference(&self.may).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "{context}: missing {missing:?}, too many {surplus:?}"
        );
    }
}

fn target(
    kind: TargetKind,
    chosen: &Commit,
    name: &str,
    commits: &[Commit],
    at_name: usize,
    stop: u64,
) -> (Vec<String>, Rows) {
    let exactly = |commits: &[Commit]| {
        let ids: BTreeSet<u64> = commits.iter().map(|commit| commit.id).collect();
        Rows {
            must: ids.clone(),
            may: ids,
        }
    };
    let up_to_chosen = || {
        let last = commits.iter().position(|commit| commit.id == chosen.id);
        exactly(&commits[..=last.expect("it is one of them")])
    };
    match kind {
        TargetKind::Time => (vec!["--target-time".into(), time(chosen.time)], up_to_chosen()),
        TargetKind::Lsn => (vec!["--target-lsn".into(), lsn(chosen.after)], up_to_chosen()),
        TargetKind::Xid => (
            vec!["--target-xid".into(), chosen.xid.to_string()],
            up_to_chosen(),
        ),
        TargetKind::Name => (
            vec!["--target-name".into(), name.to_owned()],
            exactly(&commits[..at_name]),
        ),
        TargetKind::Latest => (Vec::new(), exactly(commits)),
        TargetKind::Immediate => {
            let ids = |keep: &dyn Fn(&Commit) -> bool| {
                commits
                    .iter()
                    .filter(|commit| keep(commit))
                    .map(|commit| commit.id)
                    .collect()
            };
            (
                vec!["--target-immediate".into()],
                Rows {
                    must: ids(&|commit| commit.after <= stop),
                    may: ids(&|commit| commit.before < stop),
                },
            )
        }
    }
}

/// `2026-01-02 03:04:05.678901+00` of microseconds since 1970.
fn time(microseconds: i64) -> String {
    jiff::Timestamp::from_microsecond(microseconds)
        .expect("a time of this century")
        .strftime("%Y-%m-%d %H:%M:%S%.6f+00")
        .to_string()
}

fn lsn(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff)
}

struct Backup {
    label: String,
    stop: u64,
    /// Microseconds since 1970: our own clock, a little after the server's stop.
    stop_time: i64,
}

async fn backup(scene: &Archived, files: Files, standby: &Postgres) -> Backup {
    let command = match files {
        Files::Standby => scene
            .pgmahout_at(
                standby,
                &["backup", "create", "--json", "--from-standby", "--data-dir"],
            )
            .arg(standby.data_dir())
            .arg("--primary")
            .arg(scene.server.dsn(DATABASE)),
        Files::Local => scene.pgmahout(&["backup", "create", "--json"]),
        Files::Remote => scene.pgmahout(&["backup", "create", "--json", "--remote"]),
    };
    let output = command.run().await.expect_status(0).stdout;
    let json: serde_json::Value = serde_json::from_str(&output).expect("one JSON object");
    let backup = json.get("backups").map_or(&json, |backups| &backups[0]);
    let text = |key: &str| {
        backup[key]
            .as_str()
            .unwrap_or_else(|| panic!("{key} in {output}"))
            .to_owned()
    };
    let stop = text("stop_lsn");
    let (high, low) = stop.split_once('/').expect("an LSN");
    let number = |digits: &str| u64::from_str_radix(digits, 16).expect("hexadecimal");
    Backup {
        label: text("label"),
        stop: number(high) << 32 | number(low),
        stop_time: text("stop_time")
            .parse::<jiff::Timestamp>()
            .expect("a time")
            .as_microsecond(),
    }
}

/// Something between two backups that naive engines stumble over.
async fn upheaval(server: &Postgres, kind: usize, round: usize) {
    let statements: Vec<String> = match kind {
        0 => vec!["VACUUM FULL junk".into()],
        1 => vec![
            "TRUNCATE junk".into(),
            "INSERT INTO junk SELECT i, md5((i + 7)::text) FROM generate_series(1, 15000) i".into(),
        ],
        2 => vec![format!("CREATE DATABASE copied_{round} STRATEGY file_copy")],
        3 => vec![format!("CREATE DATABASE logged_{round} STRATEGY wal_log")],
        4 => vec!["UPDATE junk SET t = md5(t) WHERE i % 10 = 3".into()],
        5 => vec![
            format!("CREATE TABLESPACE place_{round} LOCATION ''"),
            format!("CREATE TABLE placed_{round} TABLESPACE place_{round} AS SELECT * FROM junk"),
        ],
        6 => vec![
            "DELETE FROM junk WHERE i % 3 = 0".into(),
            "VACUUM junk".into(),
            "REINDEX TABLE junk".into(),
        ],
        _ => vec![
            format!("CREATE UNLOGGED TABLE fleeting_{round} AS SELECT * FROM junk"),
            format!("ALTER TABLE fleeting_{round} SET LOGGED"),
        ],
    };
    let client = server.client(DATABASE).await;
    for statement in statements {
        client
            .batch_execute(&statement)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

/// pg_amcheck, a whole pg_dump, and after a clean stop pg_checksums find nothing.
async fn assert_sound(copy: Postgres, context: &str) {
    let mut dump = copy.client_command("pg_dumpall", DATABASE);
    dump.stdout(std::process::Stdio::null());
    assert_runs(dump, context);
    assert_pages_are_sound(copy, context).await;
}

/// pg_amcheck, and after a clean stop pg_checksums find nothing.
pub(crate) async fn assert_pages_are_sound(copy: Postgres, context: &str) {
    let mut amcheck = copy.client_command("pg_amcheck", DATABASE);
    amcheck.args(["--all", "--heapallindexed", "--install-missing"]);
    assert_runs(amcheck, context);
    copy.stop(StopMode::Fast).await;
    let mut checksums = copy.server_command("pg_checksums");
    checksums.arg("--check").arg("--pgdata").arg(copy.data_dir());
    assert_runs(checksums, context);
}

fn assert_runs(mut command: std::process::Command, context: &str) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{context}: {command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
