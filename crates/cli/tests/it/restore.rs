//! Physical restores: what comes back, where recovery ends, what is refused and how.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgmahout_backup::physical::stanza::{PhysicalRepository, RepositoryMemory};
use pgmahout_backup::physical::wal::{WalArchive, WalFile};
use pgmahout_store::repository::{Location, Repository, RepositorySettings};
use pgmahout_testkit::contents;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_testkit::proc::{Finished, Pgmahout, reachable};
use pgmahout_testkit::processes::Signal;
use pgmahout_testkit::tmpfs::Tmpfs;
use pgmahout_types::{ControlFile, WalFileName};
use rstest::rstest;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_mins(1);

/// A server that archives, a repository, and everything archived brought into it.
struct Scene {
    server: Postgres,
    archive: PathBuf,
    repository: PathBuf,
    stop: CancellationToken,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Scene {
    async fn new(major: Major) -> Self {
        let server = Postgres::builder(major)
            .own_system_identifier()
            .archive_to("archive")
            .data_checksums(true)
            .setting("wal_keep_size", "0")
            .start()
            .await;
        Self::of(server).await
    }

    async fn of(server: Postgres) -> Self {
        let archive = server.root_dir().join("archive");
        let repository = server.new_directory("repository");
        let scene = Self {
            server,
            archive,
            repository,
            stop: CancellationToken::new(),
        };
        scene.pgmahout(&["repo", "init"]).run().await.expect_status(0);
        scene.bring_wal().await;
        scene
    }

    /// The program, at this server and repository.
    fn pgmahout(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args(arguments)
            .arg("--repo")
            .arg(&self.repository)
            .env("PGHOST", self.server.host())
            .env("PGPORT", self.server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
    }

    /// Stores whatever the server archives, until the scene ends.
    async fn bring_wal(&self) {
        let settings = RepositorySettings::at("", Location::Directory(self.repository.clone()));
        let store = Repository::open(settings).await.expect("a repository");
        let stanza = "main".parse().expect("a name");
        let repository = PhysicalRepository::open(store, stanza, &RepositoryMemory::none())
            .await
            .expect("it was set up");
        let archive = WalArchive::new(repository);
        let bytes = fs::read(self.server.data_dir().join(ControlFile::PATH)).expect("readable");
        let system = ControlFile::parse(&bytes).expect("whole").system_identifier;
        let (directory, stop) = (self.archive.clone(), self.stop.clone());
        tokio::spawn(async move {
            let mut stored: Vec<String> = Vec::new();
            while !stop.is_cancelled() {
                let listing = fs::read_dir(&directory)
                    .into_iter()
                    .flatten()
                    .filter_map(Result::ok);
                for entry in listing {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let Ok(file) = name.parse::<WalFileName>() else {
                        continue;
                    };
                    if stored.contains(&name) || fs::metadata(entry.path()).is_err() {
                        continue;
                    }
                    let content = fs::read(entry.path()).unwrap_or_default();
                    if matches!(file, WalFileName::Segment(_)) && content.len() != 16 << 20 {
                        continue;
                    }
                    let Ok(file) = WalFile::new(file, content.into(), system) else {
                        continue;
                    };
                    if archive.put(&file).await.is_ok() {
                        stored.push(name);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }

    async fn backup(&self) -> String {
        let finished = self
            .pgmahout(&["backup", "create", "--json"])
            .arg("--data-dir")
            .arg(self.server.data_dir())
            .run()
            .await
            .expect_status(0);
        label_in(&finished.stdout)
    }

    /// Ends the current segment and waits until all WAL up to now is in the repository.
    async fn archive_all(&self) {
        // A segment in which nothing stands yet would not be switched.
        self.ask("SELECT pg_logical_emit_message(false, 'test', 'something')")
            .await;
        let segment = self
            .ask("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
            .await;
        self.ask("SELECT pg_switch_wal()").await;
        self.wait_for(&segment).await;
    }

    async fn wait_for(&self, segment: &str) {
        let stanza = self.repository.join("stanza/main/wal");
        poll::until(PATIENCE, "the segment is in the repository", async || {
            stanza
                .join(&segment[..8])
                .join(&segment[8..16])
                .join(segment)
                .exists()
        })
        .await;
    }

    /// `restore` into a directory, with what fetches WAL without this program.
    fn restore(&self, data_dir: &Path, arguments: &[&str]) -> Pgmahout {
        let command = format!("cp {}/%f \"%p\"", self.archive.display());
        self.pgmahout(&["restore", "--yes"])
            .arg("--restore-command")
            .arg(command)
            .arg("--data-dir")
            .arg(data_dir)
            .arg("--bin-dir")
            .arg(self.server.bin_dir())
            .args(arguments)
    }

    /// Restores into a new server and starts it; waits until it is a primary unless it is to pause.
    async fn restored(&self, arguments: &[&str]) -> Postgres {
        let copy = Postgres::vacant(self.server.major());
        self.restore(copy.data_dir(), arguments)
            .run()
            .await
            .expect_status(0);
        start(&copy).await;
        copy
    }

    async fn sql(&self, statements: &str) {
        self.server.sql("postgres", statements).await;
    }

    async fn ask(&self, query: &str) -> String {
        self.server.query_text("postgres", query).await
    }

    /// An empty directory that belongs to the servers' account.
    fn directory(&self, name: &str) -> PathBuf {
        self.server.new_directory(name)
    }
}

fn label_in(json: &str) -> String {
    let begin = json.find("\"label\"").expect("a label") + 7;
    let rest = &json[begin..];
    let open = rest.find('"').expect("text") + 1;
    rest[open..open + 21].to_owned()
}

/// Starts a restored server at its own port and waits for the end of recovery.
async fn start(copy: &Postgres) {
    copy.settle(&[]);
    copy.start_again().await;
    poll::until(PATIENCE, "recovery has ended", async || {
        copy.query_text("postgres", "SELECT pg_is_in_recovery()").await == "f"
    })
    .await;
}

fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn visit(root: &Path, directory: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(directory).expect("readable").filter_map(Result::ok) {
            let path = entry.path();
            let kind = entry.file_type().expect("known");
            let name = path.strip_prefix(root).expect("inside").to_owned();
            if kind.is_dir() {
                found.insert(name, Vec::new());
                visit(root, &path, found);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                found.insert(name, target.to_string_lossy().into_owned().into_bytes());
            } else {
                found.insert(name, fs::read(&path).expect("readable"));
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(root, root, &mut found);
    found
}

fn assert_says(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "no {word:?} in:\n{}",
            finished.stderr
        );
    }
}

#[rstest]
#[tokio::test]
async fn a_backup_comes_back_with_every_row(#[values(Major::V15, Major::V18)] major: Major) {
    let scene = Scene::new(major).await;
    scene
        .sql(
            "CREATE TABLE words (id serial PRIMARY KEY, word text);
             INSERT INTO words (word) SELECT repeat(md5(n::text), 8) FROM generate_series(1, 40000) n;
             CREATE TABLE empty (); CREATE UNLOGGED TABLE loud AS SELECT 1 AS one;",
        )
        .await;
    scene.server.createdb("other").await;
    scene
        .server
        .sql("other", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        .await;
    scene.backup().await;
    // Rows of after the backup come from the WAL.
    scene
        .sql("INSERT INTO words (word) SELECT 'later' FROM generate_series(1, 100)")
        .await;
    let mut before = contents::digests(&scene.server, "postgres").await;
    let other = contents::digests(&scene.server, "other").await;
    scene.archive_all().await;
    let copy = scene.restored(&[]).await;
    // Unlogged tables are empty after a recovery.
    before.insert(
        "public.loud".to_owned(),
        "0 d41d8cd98f00b204e9800998ecf8427e".to_owned(),
    );
    let mut after = contents::digests(&copy, "postgres").await;
    // A recovered sequence may skip numbers that were written ahead (`SEQ_LOG_VALS`), and never repeats any.
    for digests in [&mut before, &mut after] {
        assert!(digests.remove("public.words_id_seq").is_some());
    }
    assert_eq!(after, before);
    assert_eq!(contents::digests(&copy, "other").await, other);
    copy.sql("postgres", "INSERT INTO words (word) VALUES ('new')")
        .await;
    copy.stop(StopMode::Fast).await;
    let output = copy
        .server_command("pg_checksums")
        .arg("--check")
        .arg("-D")
        .arg(copy.data_dir())
        .output();
    let output = output.expect("pg_checksums runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn start_waits_for_the_end_of_recovery_and_says_where_it_ended() {
    let scene = Scene::new(Major::V15).await;
    scene.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    scene.backup().await;
    scene.sql("INSERT INTO t VALUES (2)").await;
    scene.archive_all().await;
    scene.server.stop(StopMode::Fast).await;
    let finished = scene
        .restore(scene.server.data_dir(), &["--delta", "--start", "--json"])
        .run()
        .await
        .expect_status(0);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let end = &json["outcome"]["recovery"];
    assert_eq!(end["state"], "promoted", "{json:#}");
    assert_eq!(end["timeline"], 1);
    assert_eq!(end["new_timeline"], 2);
    assert!(end["lsn"].as_str().is_some_and(|lsn| lsn.contains('/')), "{end}");
    assert!(end["last_commit"].is_string(), "{end}");
    assert_eq!(
        scene
            .ask("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")
            .await,
        "1,2"
    );
    stop_by_hand(&scene.server);
}

/// Stops a server that the program has started.
fn stop_by_hand(server: &Postgres) {
    let output = server
        .server_command("pg_ctl")
        .args(["stop", "-m", "fast", "-D"])
        .arg(server.data_dir())
        .output()
        .expect("pg_ctl runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A table with a row for each of some points of time, and each point in every form.
struct Points {
    time: String,
    lsn: String,
    xid: String,
}

async fn points(scene: &Scene) -> Points {
    scene
        .sql("CREATE TABLE t (n int); INSERT INTO t VALUES (0)")
        .await;
    scene.backup().await;
    scene.sql("INSERT INTO t VALUES (1)").await;
    let client = scene.server.client("postgres").await;
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (2)")
        .await
        .expect("a transaction");
    let xid = client
        .query_one("SELECT pg_current_xact_id()::text", &[])
        .await
        .expect("an id")
        .get::<_, String>(0);
    client.batch_execute("COMMIT").await.expect("committed");
    let lsn = scene.ask("SELECT pg_current_wal_lsn()").await;
    let time = scene.ask("SELECT clock_timestamp()").await;
    scene
        .ask("SELECT pg_create_restore_point('before the damage')")
        .await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    scene.sql("INSERT INTO t VALUES (3)").await;
    scene.archive_all().await;
    scene.sql("INSERT INTO t VALUES (4)").await;
    scene.archive_all().await;
    Points { time, lsn, xid }
}

async fn rows(copy: &Postgres) -> String {
    copy.query_text("postgres", "SELECT string_agg(n::text, ',' ORDER BY n) FROM t")
        .await
}

#[rstest]
#[tokio::test]
async fn recovery_ends_exactly_at_its_target(#[values(Major::V15, Major::V18)] major: Major) {
    let scene = Scene::new(major).await;
    let Points { time, lsn, xid } = points(&scene).await;
    for (arguments, expected) in [
        (vec!["--target-time", &time], "0,1,2"),
        (
            vec!["--type=time", "--target", &time, "--target-action", "promote"],
            "0,1,2",
        ),
        (vec!["--target-lsn", &lsn], "0,1,2"),
        (vec!["--target-xid", &xid], "0,1,2"),
        (vec!["--target-xid", &xid, "--target-exclusive"], "0,1"),
        (vec!["--target-name", "before the damage"], "0,1,2"),
        (vec!["--target-immediate"], "0"),
        (vec![], "0,1,2,3,4"),
    ] {
        let copy = scene.restored(&arguments).await;
        assert_eq!(rows(&copy).await, expected, "{arguments:?}");
        let control = fs::read(copy.data_dir().join("postgresql.auto.conf")).expect("readable");
        assert!(String::from_utf8_lossy(&control).contains("archive_mode = 'off'"));
    }
}

#[tokio::test]
async fn a_paused_recovery_can_be_looked_at_before_it_is_final() {
    let scene = Scene::new(Major::V15).await;
    let Points { lsn, .. } = points(&scene).await;
    scene.server.stop(StopMode::Fast).await;
    let finished = scene
        .restore(
            scene.server.data_dir(),
            &[
                "--delta",
                "--start",
                "--json",
                "--target-lsn",
                &lsn,
                "--target-action",
                "pause",
            ],
        )
        .run()
        .await
        .expect_status(0);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(json["outcome"]["recovery"]["state"], "paused", "{json:#}");
    assert_eq!(rows(&scene.server).await, "0,1,2");
    stop_by_hand(&scene.server);
}

/// Without backup_label a server would start as if it had crashed, and be corrupt.
#[tokio::test]
async fn a_restored_directory_cannot_start_without_its_wal() {
    let scene = Scene::new(Major::V15).await;
    scene.backup().await;
    let copy = Postgres::vacant(Major::V15);
    scene.restore(copy.data_dir(), &[]).run().await.expect_status(0);
    assert!(copy.data_dir().join("backup_label").is_file());
    assert!(copy.data_dir().join("recovery.signal").is_file());
    let path = copy.data_dir().join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).expect("readable");
    fs::write(&path, text.replace("cp ", "false ")).expect("writable");
    copy.settle(&[]);
    assert!(copy.try_start_again().await.is_err(), "it started without WAL");
    assert!(
        copy.log().contains("could not locate required checkpoint record"),
        "{}",
        copy.log()
    );
}

/// It says where replay begins: without it, pg_control would name a checkpoint of after the start of the backup.
#[rstest]
#[tokio::test]
async fn who_removes_backup_label_gets_no_server(#[values(Major::V15, Major::V18)] major: Major) {
    let scene = Scene::new(major).await;
    scene.backup().await;
    scene.archive_all().await;
    let copy = Postgres::vacant(major);
    scene.restore(copy.data_dir(), &[]).run().await.expect_status(0);
    let label = copy.data_dir().join("backup_label");
    let away = copy.root_dir().join("backup_label");
    fs::rename(&label, &away).expect("renamed");
    copy.settle(&[]);
    // All WAL that there is lies ready, as after a copy of the whole directory.
    for entry in fs::read_dir(&scene.archive).expect("readable").flatten() {
        let segment = copy.data_dir().join("pg_wal").join(entry.file_name());
        fs::copy(entry.path(), &segment).expect("copied");
        copy.account().own(&segment);
    }
    for with_signal in [true, false] {
        if !with_signal {
            fs::remove_file(copy.data_dir().join("recovery.signal")).expect("removed");
        }
        assert!(copy.try_start_again().await.is_err(), "it started");
        assert!(copy.log().contains("checkpoint record"), "{}", copy.log());
    }
    // Nothing is lost by that.
    fs::rename(&away, &label).expect("renamed");
    fs::write(copy.data_dir().join("recovery.signal"), "").expect("written");
    copy.account().own(&copy.data_dir().join("recovery.signal"));
    start(&copy).await;
}

#[tokio::test]
async fn a_target_timeline_is_checked_against_the_history() {
    let scene = Scene::new(Major::V15).await;
    scene
        .sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
        .await;
    scene.backup().await;
    scene.archive_all().await;
    let finished = scene
        .restore(&scene.server.root_dir().join("copy"), &["--target-timeline", "7"])
        .run()
        .await
        .expect_status(3);
    assert_says(
        &finished,
        &["timeline 7 is not in the archive", "00000007.history", "hint: "],
    );
    let finished = scene
        .restore(
            &scene.server.root_dir().join("copy"),
            &["--target-immediate", "--target-timeline", "2"],
        )
        .run()
        .await
        .expect_status(2);
    assert_says(&finished, &["backup's own timeline"]);
    assert!(!scene.server.root_dir().join("copy").exists());
}

#[tokio::test]
async fn a_target_outside_is_refused_with_the_nearest_and_never_becomes_the_latest() {
    let scene = Scene::new(Major::V15).await;
    let before = scene.ask("SELECT clock_timestamp()").await;
    scene.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    let label = scene.backup().await;
    scene.archive_all().await;
    let copy = scene.server.root_dir().join("copy");
    let finished = scene
        .restore(&copy, &["--target-time", &before])
        .run()
        .await
        .expect_status(3);
    assert_says(
        &finished,
        &[
            "lies before the end of backup",
            &label,
            "the nearest possible target is --target-time",
        ],
    );
    let finished = scene
        .restore(&copy, &["--target-time", "2099-01-01 00:00:00Z"])
        .run()
        .await
        .expect_status(3);
    assert_says(
        &finished,
        &[
            "is not in the archive",
            "leave the target out",
            "the nearest possible one is before",
        ],
    );
    let finished = scene
        .restore(&copy, &["--target-lsn", "FF/0"])
        .run()
        .await
        .expect_status(3);
    assert_says(&finished, &["WAL position FF/0 is not in the archive"]);
    assert!(!copy.exists());
}

#[tokio::test]
async fn old_recovery_settings_do_not_survive() {
    let scene = Scene::new(Major::V15).await;
    scene
        .sql("ALTER SYSTEM SET recovery_target_time = '2020-01-01 00:00:00+00'")
        .await;
    scene
        .sql("ALTER SYSTEM SET primary_conninfo = 'host=elsewhere'")
        .await;
    scene.server.append_conf("recovery_target_name = 'old'");
    scene.server.append_conf("recovery_min_apply_delay = '1d'");
    scene.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    scene.backup().await;
    scene.sql("INSERT INTO t VALUES (2)").await;
    let lsn = scene.ask("SELECT pg_current_wal_lsn()").await;
    scene.sql("INSERT INTO t VALUES (3)").await;
    scene.archive_all().await;
    let copy = scene.restored(&["--target-lsn", &lsn]).await;
    assert_eq!(rows(&copy).await, "1,2");
    assert_eq!(copy.query_text("postgres", "SHOW archive_mode").await, "off");
    assert_eq!(copy.query_text("postgres", "SHOW primary_conninfo").await, "");
    let kept = scene.restored(&["--archive", "keep"]).await;
    assert_eq!(kept.query_text("postgres", "SHOW archive_mode").await, "on");
}

#[tokio::test]
async fn running_servers_and_full_directories_are_refused_and_untouched() {
    let scene = Scene::new(Major::V15).await;
    scene.backup().await;
    let running = scene.server.data_dir().to_owned();
    for arguments in [&["--delta"][..], &["--keep-old"], &[]] {
        let finished = scene.restore(&running, arguments).run().await.expect_status(3);
        assert_says(&finished, &["a server is running on"]);
    }
    assert_eq!(scene.ask("SELECT 1").await, "1");
    scene.server.stop(StopMode::Fast).await;
    let before = files(&running);
    let finished = scene.restore(&running, &[]).run().await.expect_status(3);
    assert_says(&finished, &["is not empty", "--delta", "--keep-old"]);

    let foreign = scene.directory("foreign");
    fs::write(foreign.join("thesis.txt"), "precious").expect("writable");
    for arguments in [&[][..], &["--delta"]] {
        let finished = scene.restore(&foreign, arguments).run().await.expect_status(3);
        assert_says(&finished, &["is not empty: it has thesis.txt"]);
    }
    assert_eq!(fs::read(foreign.join("thesis.txt")).expect("there"), b"precious");

    let other = Postgres::builder(Major::V15).own_system_identifier().prepare();
    let theirs = files(other.data_dir());
    let finished = scene
        .restore(other.data_dir(), &["--delta"])
        .run()
        .await
        .expect_status(3);
    assert_says(&finished, &["is the data directory of another cluster"]);
    assert!(files(other.data_dir()) == theirs, "another cluster was touched");
    assert!(files(&running) == before, "a refused restore changed something");
}

#[tokio::test]
async fn links_modes_owners_and_empty_directories_come_back() {
    let server = Postgres::builder(Major::V15)
        .own_system_identifier()
        .archive_to("archive")
        .initdb_arg("--allow-group-access")
        .start()
        .await;
    let scene = Scene::of(server).await;
    let space = scene.directory("space");
    scene
        .sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))
        .await;
    scene
        .sql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 5000) AS n")
        .await;
    let oid = scene
        .ask("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")
        .await;
    scene.backup().await;
    scene.archive_all().await;
    let copy = Postgres::vacant(Major::V15);
    // Where the tablespace was, the running server's is.
    let finished = scene.restore(copy.data_dir(), &[]).run().await.expect_status(3);
    assert_says(&finished, &["tablespace", "is not empty", "--tablespace"]);
    let elsewhere = copy.root_dir().join("elsewhere");
    let wal = copy.root_dir().join("wal");
    let remap = format!("fast={}", elsewhere.display());
    scene
        .restore(
            copy.data_dir(),
            &["--tablespace", &remap, "--wal-dir", &wal.display().to_string()],
        )
        .run()
        .await
        .expect_status(0);
    let link = copy.data_dir().join("pg_tblspc").join(&oid);
    assert_eq!(fs::read_link(&link).expect("a link"), elsewhere);
    assert_eq!(
        fs::read_link(copy.data_dir().join("pg_wal")).expect("a link"),
        wal
    );
    let map = fs::read_to_string(copy.data_dir().join("tablespace_map")).expect("there");
    assert_eq!(map, format!("{oid} {}\n", elsewhere.display()));
    let source = fs::metadata(scene.server.data_dir()).expect("there");
    for path in [copy.data_dir(), &elsewhere, &wal] {
        let metadata = fs::metadata(path).expect("there");
        assert_eq!(
            metadata.permissions().mode() & 0o7777,
            0o750,
            "{}",
            path.display()
        );
        assert_eq!(metadata.uid(), source.uid(), "{}", path.display());
    }
    for name in [
        "pg_replslot",
        "pg_dynshmem",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_subtrans",
        "pg_wal/archive_status",
    ] {
        assert!(copy.data_dir().join(name).is_dir(), "{name}");
    }
    let control = fs::metadata(copy.data_dir().join("global/pg_control")).expect("there");
    assert_eq!(control.uid(), source.uid());
    start(&copy).await;
    assert_eq!(
        copy.query_text("postgres", "SELECT count(*) FROM t").await,
        "5000"
    );
}

/// Kills a restore in its middle: no server may start on what is left, and --delta completes it.
#[tokio::test]
async fn a_killed_restore_cannot_be_started_and_delta_completes_it() {
    let scene = Scene::new(Major::V15).await;
    scene
        .sql(
            "CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS filler FROM generate_series(1, 100000) n;
             CHECKPOINT",
        )
        .await;
    scene.backup().await;
    scene.archive_all().await;
    let digests = contents::digests(&scene.server, "postgres").await;
    let copy = Postgres::vacant(Major::V15);
    let marker = copy.data_dir().join("pgmahout.restore");
    let running = scene.restore(copy.data_dir(), &["--jobs", "1"]).spawn();
    poll::until(PATIENCE, "files are being written", async || {
        marker.exists()
            && copy.data_dir().join("base/1").is_dir()
            && fs::read_dir(copy.data_dir().join("base/1")).is_ok_and(|listing| listing.count() > 3)
    })
    .await;
    running.signal(Signal::KILL);
    let killed = running.wait().await;
    assert_eq!(killed.signal, Some(9), "it was too quick: {}", killed.stderr);
    assert!(!copy.data_dir().join("global/pg_control").exists());
    let output = copy
        .server_command("postgres")
        .arg("--single")
        .arg("-D")
        .arg(copy.data_dir())
        .arg("postgres")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("postgres runs");
    assert!(!output.status.success());
    let finished = scene.restore(copy.data_dir(), &[]).run().await.expect_status(3);
    assert_says(&finished, &["is not empty", "--delta"]);
    scene
        .restore(copy.data_dir(), &["--delta"])
        .run()
        .await
        .expect_status(0);
    assert!(!marker.exists());
    start(&copy).await;
    assert_eq!(contents::digests(&copy, "postgres").await, digests);
}

#[tokio::test]
async fn delta_repairs_whatever_was_done_to_the_directory() {
    let scene = Scene::new(Major::V18).await;
    scene
        .sql(
            "CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS filler FROM generate_series(1, 20000) n;
             CREATE TABLE u AS SELECT n FROM generate_series(1, 50000) n",
        )
        .await;
    // Reading must change nothing any more.
    scene.sql("VACUUM (FREEZE)").await;
    scene.sql("CHECKPOINT").await;
    scene.backup().await;
    scene.archive_all().await;
    let digests = contents::digests(&scene.server, "postgres").await;
    let fresh = Postgres::vacant(Major::V18);
    scene.restore(fresh.data_dir(), &[]).run().await.expect_status(0);
    let expected = files(fresh.data_dir());

    let path = |query: &'static str| scene.ask(query);
    let t = path("SELECT pg_relation_filepath('t')").await;
    let u = path("SELECT pg_relation_filepath('u')").await;
    scene.server.stop(StopMode::Fast).await;
    let data = scene.server.data_dir();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(data.join(&t))
        .expect("writable");
    for block in [3_u64, 40, 41, 100] {
        file.write_all_at(&[0x5a; 300], block * 8192 + 1000)
            .expect("writable");
    }
    let grown = fs::metadata(data.join(&t)).expect("there").len();
    file.write_all_at(&[0x5a; 9000], grown).expect("writable");
    let short = fs::OpenOptions::new()
        .write(true)
        .open(data.join(&u))
        .expect("writable");
    short.set_len(20_000).expect("cut");
    fs::remove_file(data.join("global/pg_filenode.map")).expect("removed");
    fs::remove_dir_all(data.join("pg_notify")).expect("removed");
    fs::write(data.join("base/5/99999"), "stranger").expect("writable");
    fs::create_dir_all(data.join("base/77777")).expect("writable");
    fs::write(data.join("base/77777/1"), "stranger").expect("writable");
    fs::set_permissions(data.join(&u), fs::Permissions::from_mode(0o666)).expect("owned");

    let plan = scene
        .restore(data, &["--delta", "--dry-run"])
        .run()
        .await
        .expect_status(0);
    assert!(plan.stdout.contains("base/5/99999"), "{}", plan.stdout);
    assert!(data.join("base/5/99999").exists(), "a dry run removed something");
    let finished = scene
        .restore(data, &["--delta", "--json"])
        .run()
        .await
        .expect_status(0);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let written = json["outcome"]["written"].as_u64().expect("a number");
    let kept = json["outcome"]["kept"].as_u64().expect("a number");
    assert!(written > 0 && kept > written * 3, "{json:#}");
    let actual = files(data);
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&actual), names(&expected));
    for (name, content) in &expected {
        assert!(actual[name] == *content, "{} differs", name.display());
    }
    assert_eq!(
        fs::metadata(data.join(&u)).expect("there").permissions().mode() & 0o777,
        0o600
    );
    scene.server.start_again().await;
    poll::until(PATIENCE, "recovery has ended", async || {
        scene.ask("SELECT pg_is_in_recovery()").await == "f"
    })
    .await;
    assert_eq!(contents::digests(&scene.server, "postgres").await, digests);
}

#[tokio::test]
async fn keep_old_moves_the_whole_server_aside_and_names_it() {
    let scene = Scene::new(Major::V15).await;
    let space = scene.directory("space");
    scene
        .sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))
        .await;
    scene.sql("CREATE TABLE t TABLESPACE fast AS SELECT 1 AS n").await;
    scene.backup().await;
    scene.sql("INSERT INTO t VALUES (2)").await;
    let lsn = scene.ask("SELECT pg_current_wal_lsn()").await;
    scene.sql("INSERT INTO t VALUES (3)").await;
    scene.archive_all().await;
    let data = scene.server.data_dir().to_owned();
    scene.server.stop(StopMode::Fast).await;
    let finished = scene
        .restore(&data, &["--keep-old", "--json", "--target-lsn", &lsn])
        .run()
        .await
        .expect_status(0);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let moved: Vec<PathBuf> = serde_json::from_value(json["outcome"]["moved"].clone()).expect("paths");
    assert_eq!(moved.len(), 2, "{json:#}");
    scene.server.start_again().await;
    poll::until(PATIENCE, "recovery has ended", async || {
        scene.ask("SELECT pg_is_in_recovery()").await == "f"
    })
    .await;
    assert_eq!(rows(&scene.server).await, "1,2");
    scene.server.stop(StopMode::Fast).await;
    // The old one is whole: its links lead to its own tablespace.
    let aside = data.with_file_name("restored");
    fs::rename(&data, &aside).expect("renamed");
    fs::rename(&moved[0], &data).expect("renamed");
    scene.server.start_again().await;
    assert_eq!(rows(&scene.server).await, "1,2,3");
}

#[tokio::test]
async fn a_dry_run_proves_the_way_and_changes_nothing() {
    let scene = Scene::new(Major::V15).await;
    let label = scene.backup().await;
    scene.archive_all().await;
    let copy = scene.server.root_dir().join("copy");
    let finished = scene
        .restore(&copy, &["--dry-run", "--json"])
        .run()
        .await
        .expect_status(0);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(json["restore"]["backup"]["label"], label, "{json:#}");
    assert!(
        json["restore"]["wal"]["segments"]
            .as_u64()
            .is_some_and(|count| count >= 1)
    );
    assert!(
        json["restore"]["space"][0]["free"]
            .as_u64()
            .is_some_and(|free| free > 0)
    );
    assert!(json["restore"]["estimated_seconds"].is_u64());
    assert!(!copy.exists());
}

#[tokio::test]
async fn missing_wal_is_found_before_anything_is_written() {
    let scene = Scene::new(Major::V15).await;
    scene.backup().await;
    for _ in 0..3 {
        scene
            .sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1)")
            .await;
        scene.archive_all().await;
    }
    let lsn = scene.ask("SELECT pg_current_wal_lsn()").await;
    scene.archive_all().await;
    let wal = scene.repository.join("stanza/main/wal/00000001/00000000");
    let mut names: Vec<PathBuf> = fs::read_dir(&wal)
        .expect("there")
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    names.sort();
    let lost = &names[names.len() - 3];
    fs::remove_file(lost).expect("removed");
    let name = lost.file_name().expect("a name").to_string_lossy().into_owned();
    let copy = scene.server.root_dir().join("copy");
    let finished = scene
        .restore(&copy, &["--target-lsn", &lsn])
        .run()
        .await
        .expect_status(3);
    assert_says(&finished, &["there is a gap", &name]);
    fs::remove_file(&names[0]).expect("removed");
    for name in &names[1..3] {
        fs::remove_file(name).unwrap_or_default();
    }
    let finished = scene.restore(&copy, &[]).run().await.expect_status(1);
    assert_says(
        &finished,
        &["cannot be restored", "which it needs, is not in the archive"],
    );
    assert!(!copy.exists());
}

#[tokio::test]
async fn damage_in_the_repository_is_never_restored() {
    let scene = Scene::new(Major::V15).await;
    scene
        .sql(
            "CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS filler FROM generate_series(1, 20000) n",
        )
        .await;
    scene.backup().await;
    scene.archive_all().await;
    let packs = scene.repository.join("stanza/main/pack");
    let mut flipped = 0;
    for (name, content) in files(&packs) {
        let path = packs.join(name);
        if path.is_file() && content.len() > 100_000 {
            let file = fs::OpenOptions::new().write(true).open(&path).expect("writable");
            let at = content.len() as u64 / 2;
            file.write_all_at(&[content[content.len() / 2] ^ 0x10], at)
                .expect("writable");
            flipped += 1;
        }
    }
    assert!(flipped > 0);
    let copy = Postgres::vacant(Major::V15);
    let finished = scene.restore(copy.data_dir(), &[]).run().await.expect_status(1);
    assert_says(&finished, &["is damaged", "hint: "]);
    assert!(!copy.data_dir().join("global/pg_control").exists());
}

#[tokio::test]
async fn one_database_can_be_restored_alone() {
    let scene = Scene::new(Major::V15).await;
    for name in ["wanted", "large"] {
        scene.server.createdb(name).await;
    }
    scene
        .server
        .sql("wanted", "CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
        .await;
    scene
        .server
        .sql(
            "large",
            "CREATE TABLE t AS SELECT repeat('x', 500) FROM generate_series(1, 50000)",
        )
        .await;
    scene.backup().await;
    scene.server.sql("large", "INSERT INTO t VALUES ('later')").await;
    scene.archive_all().await;
    let oid = scene
        .ask("SELECT oid FROM pg_database WHERE datname = 'large'")
        .await;
    let copy = Postgres::vacant(Major::V15);
    let finished = scene
        .restore(copy.data_dir(), &["--database", "nowhere"])
        .run()
        .await
        .expect_status(2);
    assert_says(&finished, &["has no database nowhere", "wanted"]);
    let finished = scene
        .restore(copy.data_dir(), &["--database", "wanted"])
        .run()
        .await
        .expect_status(0);
    assert!(
        finished.stdout.contains("DROP DATABASE \"large\""),
        "{}",
        finished.stdout
    );
    let blocks: u64 = fs::read_dir(copy.data_dir().join("base").join(&oid))
        .expect("there")
        .filter_map(Result::ok)
        .map(|entry| entry.metadata().expect("there").blocks() * 512)
        .sum();
    assert!(blocks < 1 << 20, "{blocks} bytes of what was not asked for");
    start(&copy).await;
    let watching = copy.client("wanted").await;
    let refused = copy.connect(&copy.config("large")).await.map(drop).unwrap_err();
    let refused = refused
        .as_db_error()
        .expect("the server's answer")
        .message()
        .to_owned();
    assert!(refused.contains("not a valid data directory"), "{refused}");
    assert_eq!(copy.query_text("wanted", "SELECT sum(n) FROM t").await, "5050");
    watching
        .simple_query("SELECT 1")
        .await
        .expect("nobody was thrown out");
    copy.sql("postgres", "DROP DATABASE large").await;
}

#[tokio::test]
async fn a_restored_standby_streams_from_its_primary() {
    let scene = Scene::new(Major::V15).await;
    scene.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    scene.backup().await;
    scene.archive_all().await;
    let copy = Postgres::vacant(Major::V15);
    let primary = scene.server.dsn("postgres");
    scene
        .restore(copy.data_dir(), &["--as-standby", "--primary", &primary])
        .run()
        .await
        .expect_status(0);
    assert!(copy.data_dir().join("standby.signal").is_file());
    assert!(!copy.data_dir().join("recovery.signal").exists());
    copy.settle(&[]);
    copy.start_again().await;
    scene.sql("INSERT INTO t VALUES (2)").await;
    poll::until(PATIENCE, "the row is on the standby", async || {
        rows(&copy).await == "1,2"
    })
    .await;
    assert_eq!(
        copy.query_text("postgres", "SELECT pg_is_in_recovery()").await,
        "t"
    );
}

/// Nothing but our own commands, in an encrypted repository, under the server's account.
#[rstest]
#[tokio::test]
async fn our_own_archive_leads_to_a_point_in_time(#[values(Major::V15, Major::V18)] major: Major) {
    let server = Postgres::builder(major)
        .own_system_identifier()
        .archive_command("false")
        .start()
        .await;
    let repository = server.new_directory("it's a repository");
    let state = server.new_directory("state");
    let passphrase = server.root_dir().join("passphrase");
    fs::write(&passphrase, "correct horse\n").expect("writable");
    server.account().own(&passphrase);
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600)).expect("owned");
    let pgmahout = |arguments: &[&str]| {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .as_server_account()
            .args(arguments)
            .arg("--repo")
            .arg(&repository)
            .arg("--passphrase-file")
            .arg(&passphrase)
            .env("PGHOST", server.host())
            .env("PGPORT", server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGMAHOUT_STATE_DIR", &state)
    };
    pgmahout(&["repo", "init"]).run().await.expect_status(0);
    let command = format!(
        "PGMAHOUT_STATE_DIR={} {} wal push %p --repo \"{}\" --passphrase-file {}",
        state.display(),
        reachable(env!("CARGO_BIN_EXE_pgmahout")).display(),
        repository.display(),
        passphrase.display()
    );
    server.append_conf(&format!("archive_command = '{}'", command.replace('\'', "''")));
    server.reload().await;
    server
        .sql("postgres", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
        .await;
    pgmahout(&["backup", "create"])
        .arg("--data-dir")
        .arg(server.data_dir())
        .run()
        .await
        .expect_status(0);
    server.sql("postgres", "INSERT INTO t VALUES (2)").await;
    let time = server.query_text("postgres", "SELECT clock_timestamp()").await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    server.sql("postgres", "DELETE FROM t").await;
    let segment = server
        .query_text("postgres", "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        .await;
    server.query_text("postgres", "SELECT pg_switch_wal()").await;
    poll::until(PATIENCE, "the segment is archived", async || {
        server
            .query_text("postgres", "SELECT last_archived_wal FROM pg_stat_archiver")
            .await
            >= segment
    })
    .await;
    server.stop(StopMode::Fast).await;
    let finished = pgmahout(&["restore", "--yes", "--delta", "--start", "--json", "--type=time"])
        .arg(format!("--target={time}"))
        .arg("--data-dir")
        .arg(server.data_dir())
        .arg("--bin-dir")
        .arg(server.bin_dir())
        .run()
        .await
        .expect_status(0);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(json["outcome"]["recovery"]["state"], "promoted", "{json:#}");
    assert_eq!(rows(&server).await, "1,2");
    let leases = fs::read_dir(repository.join("stanza/main/lease")).map_or(0, Iterator::count);
    assert_eq!(leases, 0, "the lease was not given back");
    stop_by_hand(&server);
}

#[tokio::test]
async fn a_killed_restore_goes_on_with_procedure_resume_and_a_used_directory_does_not() {
    let scene = Scene::new(Major::V15).await;
    scene
        .sql(
            "CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS filler FROM generate_series(1, 100000) n;
             CHECKPOINT",
        )
        .await;
    scene.backup().await;
    scene.archive_all().await;
    let digests = contents::digests(&scene.server, "postgres").await;
    let state = scene.server.root_dir().join("journals");
    let copy = Postgres::vacant(Major::V15);
    let running = scene
        .restore(copy.data_dir(), &["--jobs", "1"])
        .env("PGMAHOUT_STATE_DIR", &state)
        .spawn();
    let marker = copy.data_dir().join("pgmahout.restore");
    poll::until(PATIENCE, "files are being written", async || {
        marker.exists()
            && fs::read_dir(copy.data_dir().join("base/1")).is_ok_and(|listing| listing.count() > 3)
    })
    .await;
    running.signal(Signal::KILL);
    assert_eq!(running.wait().await.signal, Some(9), "it was too quick");
    let procedures = fs::read_dir(state.join("procedures")).expect("journals");
    let id = procedures
        .filter_map(Result::ok)
        .find_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".jsonl")
                .map(str::to_owned)
        })
        .expect("a journal");
    let resume = || {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args(["procedure", "resume", &id, "--yes"])
            .env("PGMAHOUT_STATE_DIR", &state)
            .run()
    };
    resume().await.expect_status(0);
    start(&copy).await;
    assert_eq!(contents::digests(&copy, "postgres").await, digests);
    assert_ne!(resume().await.status, Some(0));
    assert_eq!(contents::digests(&copy, "postgres").await, digests);
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_refused() {
    let scene = Scene::new(Major::V15).await;
    scene.backup().await;
    scene.archive_all().await;
    if !scene.server.account().is_another() {
        // Only root can make a directory of somebody else.
        return;
    }
    let given = std::process::Command::new("chown")
        .args(["-R", "--reference"])
        .args([scene.server.data_dir(), &scene.repository])
        .status();
    assert!(given.expect("chown runs").success());
    let place = tempfile_in(scene.server.root_dir());
    let finished = scene
        .restore(&place, &[])
        .as_server_account()
        .run()
        .await
        .expect_status(3);
    assert_says(&finished, &["belongs to root", "hint: run this as the owner"]);
    assert_eq!(fs::read_dir(&place).expect("readable").count(), 0);
}

/// An empty directory of whoever runs the tests.
fn tempfile_in(parent: &Path) -> PathBuf {
    let path = parent.join("somebody-elses");
    fs::create_dir(&path).expect("writable");
    path
}

#[tokio::test]
async fn a_file_system_that_is_too_small_is_found_before_anything_is_written() {
    let scene = Scene::new(Major::V15).await;
    scene.backup().await;
    scene.archive_all().await;
    let Ok(small) = Tmpfs::new(16 << 20) else {
        // Mounting wants root.
        return;
    };
    let data = small.path().join("data");
    let finished = scene.restore(&data, &[]).run().await.expect_status(3);
    assert_says(
        &finished,
        &["not enough space on the file system of", "needed", "free"],
    );
    assert!(!data.exists());
}

#[tokio::test]
async fn one_table_comes_back_beside_the_live_one() {
    let scene = Scene::new(Major::V15).await;
    scene.server.createdb("shop").await;
    let shop = async |statements: &str| scene.server.sql("shop", statements).await;
    shop(
        "CREATE TABLE \"Orders\" (id int PRIMARY KEY, note text, at timestamptz DEFAULT now(), tags text[])",
    )
    .await;
    shop("INSERT INTO \"Orders\" SELECT n, E'it''s\\t' || n, now(), ARRAY['a', NULL] FROM generate_series(1, 5000) n").await;
    scene.backup().await;
    shop("INSERT INTO \"Orders\" VALUES (5001, NULL)").await;
    let digest = "SELECT md5(string_agg(o::text, ',' ORDER BY id)) FROM \"Orders\" o";
    let before = scene.server.query_text("shop", digest).await;
    let lsn = scene.ask("SELECT pg_current_wal_lsn()").await;
    shop("DELETE FROM \"Orders\" WHERE id > 10").await;
    scene.archive_all().await;
    let extract = || {
        let command = format!("cp {}/%f \"%p\"", scene.archive.display());
        scene
            .pgmahout(&[
                "restore",
                "--extract-table",
                "public.Orders",
                "--target-lsn",
                &lsn,
            ])
            .arg("--into")
            .arg(scene.server.dsn("shop"))
            .arg("--restore-command")
            .arg(command)
            .arg("--bin-dir")
            .arg(scene.server.bin_dir())
            .run()
    };
    let finished = extract().await.expect_status(0);
    assert!(
        finished.stdout.contains("Copied 5001 rows"),
        "{}",
        finished.stdout
    );
    let copied = digest.replace("\"Orders\"", "\"Orders_restored\"");
    assert_eq!(scene.server.query_text("shop", &copied).await, before);
    assert_eq!(
        scene
            .server
            .query_text("shop", "SELECT count(*) FROM \"Orders\"")
            .await,
        "10"
    );
    let finished = extract().await.expect_status(3);
    assert_says(&finished, &["has a table", "already", "--as NAME"]);
}
