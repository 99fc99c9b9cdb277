//! What goes wrong in a restore: each fault ends with a clear error and a status other than zero, and leaves
//! the target as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgmahout_testkit::contents;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Finished;
use pgmahout_testkit::tmpfs::Tmpfs;
use pgmahout_testkit::workload;
use rstest::rstest;

use crate::dump_roundtrip::{dump, output, pgmahout, shop};

/// A server with a small database and its dumps, and a target that must not change.
struct Scene {
    server: Postgres,
    directory: PathBuf,
    before: BTreeMap<String, String>,
}

const TARGET: &str = "target";

/// The database that is restored into, with a table that must survive.
async fn make_target(server: &Postgres) {
    server.createdb(TARGET).await;
    server
        .sql(
            TARGET,
            "CREATE TABLE precious AS SELECT n FROM generate_series(1, 100) n",
        )
        .await;
}

impl Scene {
    async fn new(major: Major) -> Self {
        let server = Postgres::start(major).await;
        server.createdb("small").await;
        server
            .sql(
                "small",
                "CREATE TABLE customers (id int PRIMARY KEY, name text);
                 INSERT INTO customers SELECT n, md5(n::text) FROM generate_series(1, 2000) n;
                 CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers);
                 INSERT INTO orders SELECT n, 1 + n % 2000 FROM generate_series(1, 3000) n",
            )
            .await;
        Self::around(server).await
    }

    async fn around(server: Postgres) -> Self {
        make_target(&server).await;
        let directory = server.new_directory("dumps");
        let before = contents::digests(&server, TARGET).await;
        Self {
            server,
            directory,
            before,
        }
    }

    async fn create(&self, arguments: &[&str]) {
        let mut all = vec!["create", "small"];
        all.extend(arguments);
        dump(&self.server, &self.directory, &all)
            .run()
            .await
            .expect_status(0);
    }

    async fn restore(&self, arguments: &[&str]) -> Finished {
        let mut all = vec!["restore"];
        all.extend(arguments);
        dump(&self.server, &self.directory, &all).run().await
    }

    /// The target is as it was, and no database was left behind.
    async fn nothing_changed(&self, what: &str) {
        assert_eq!(
            contents::digests(&self.server, TARGET).await,
            self.before,
            "{what} changed the target"
        );
        let left = self
            .server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_database WHERE datname ~ '^pgmahout'",
            )
            .await;
        assert_eq!(left, "0", "{what} left a database behind");
    }

    /// The restore fails with these words, and nothing has changed.
    async fn fails(&self, arguments: &[&str], status: i32, words: &[&str]) {
        let finished = self.restore(arguments).await.expect_status(status);
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "no \"{word}\" in:\n{}",
                finished.stderr
            );
        }
        assert!(
            finished.stderr.contains("hint:"),
            "no hint in:\n{}",
            finished.stderr
        );
        self.nothing_changed(&format!("{arguments:?}")).await;
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.directory.join(name)).expect("it is there")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.directory.join(name), bytes).expect("it can be written");
    }
}

fn key(directory: &Path, name: &str, byte: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join(name);
    std::fs::write(&path, byte.repeat(32)).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode can be set");
    path.display().to_string()
}

/// Numbers that are the same in every run, and well spread (a linear congruential generator, Knuth's MMIX).
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed), |last| {
        Some(
            last.wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407),
        )
    })
    .skip(1)
    .map(|number| number >> 24)
}

#[tokio::test]
async fn a_truncated_file_is_refused_at_every_length() {
    let scene = Scene::new(Major::V15).await;
    scene.write("plain", &output_of(&scene, &[]));
    scene.write("custom", &output_of(&scene, &["-Fc"]));
    scene.write("tar", &output_of(&scene, &["-Ft"]));
    let gzip = std::process::Command::new("gzip")
        .args(["-k", "plain"])
        .current_dir(&scene.directory)
        .status();
    assert!(gzip.expect("gzip runs").success());
    let secret = key(&scene.directory, "key", "a1");
    scene
        .create(&["sealed", "--encrypt", "--key-file", &secret, "--compress", "none"])
        .await;
    scene.create(&["listed", "--compress", "none"]).await;
    for name in ["plain", "plain.gz", "custom", "tar", "sealed", "listed"] {
        let whole = scene.read(name);
        let mut lengths: Vec<usize> = numbers(7)
            .take(8)
            .map(|number| number as usize % whole.len())
            .collect();
        // The last byte of plain SQL is a line end that nobody misses.
        let marker = if name == "plain" { 120 } else { 1 };
        lengths.extend([0, 1, 5, 100, whole.len() - marker]);
        for length in lengths {
            scene.write("cut", &whole[..length]);
            if name == "listed" {
                std::fs::copy(
                    scene.directory.join("listed.manifest.json"),
                    scene.directory.join("cut.manifest.json"),
                )
                .expect("copied");
            }
            let finished = scene.restore(&["cut", TARGET, "--key-file", &secret]).await;
            assert_ne!(
                finished.status,
                Some(0),
                "{name} cut to {length} bytes was restored"
            );
            assert!(
                finished.stderr.contains("error:") && finished.stderr.contains("hint:"),
                "{name} cut to {length}: {}",
                finished.stderr
            );
        }
        let _ = std::fs::remove_file(scene.directory.join("cut.manifest.json"));
        scene.nothing_changed(name).await;
    }
}

fn output_of(scene: &Scene, arguments: &[&str]) -> Vec<u8> {
    let mut all = vec!["-d", "small"];
    all.extend(arguments);
    output(&scene.server, "pg_dump", &all, None)
}

#[rstest]
#[case::encrypted(true)]
#[case::with_a_manifest(false)]
#[tokio::test]
async fn two_hundred_flipped_bytes_are_each_refused(#[case] encrypted: bool) {
    let scene = Scene::new(Major::V15).await;
    let secret = key(&scene.directory, "key", "a1");
    if encrypted {
        scene
            .create(&["dump", "--compress", "gzip:1", "--encrypt", "--key-file", &secret])
            .await;
    } else {
        scene.create(&["dump", "--compress", "gzip:1"]).await;
    }
    let whole = scene.read("dump");
    if encrypted {
        // The encryption alone must notice.
        std::fs::remove_file(scene.directory.join("dump.manifest.json")).expect("removed");
    }
    let mut random = numbers(20_261_121);
    for round in 0..200 {
        let mut bytes = whole.clone();
        let place = random.next().expect("endless") as usize % bytes.len();
        let flip = 1 << (random.next().expect("endless") % 8);
        bytes[place] ^= flip;
        scene.write("dump", &bytes);
        let finished = scene.restore(&["dump", TARGET, "--key-file", &secret]).await;
        assert_ne!(
            finished.status,
            Some(0),
            "round {round}: byte {place} flipped by {flip} was restored"
        );
        assert!(
            finished.stderr.contains("hint:"),
            "byte {place} flipped by {flip}: {}",
            finished.stderr
        );
    }
    scene.nothing_changed("a flipped byte").await;
    scene.write("dump", &whole);
    scene
        .restore(&["dump", TARGET, "--key-file", &secret])
        .await
        .expect_status(0);
}

#[tokio::test]
async fn a_wrong_or_missing_key_is_refused() {
    let scene = Scene::new(Major::V18).await;
    let (right, wrong) = (
        key(&scene.directory, "right", "a1"),
        key(&scene.directory, "wrong", "b2"),
    );
    scene.create(&["sealed", "--encrypt", "--key-file", &right]).await;
    scene
        .fails(
            &["sealed", TARGET, "--key-file", &wrong],
            1,
            &["cannot decrypt", "does not open this file"],
        )
        .await;
    let finished = scene.restore(&["sealed", TARGET]).await;
    assert_ne!(finished.status, Some(0));
    assert!(finished.stderr.contains("--key-file"), "{}", finished.stderr);
    scene.nothing_changed("a missing key").await;
}

#[tokio::test]
async fn a_manifest_that_does_not_fit_is_refused() {
    let scene = Scene::new(Major::V15).await;
    scene.create(&["dump"]).await;
    let manifest = String::from_utf8(scene.read("dump.manifest.json")).expect("UTF-8");
    assert!(manifest.contains("\"rows\": 3000"), "{manifest}");
    scene.write(
        "dump.manifest.json",
        manifest.replace("\"rows\": 3000", "\"rows\": 3001").as_bytes(),
    );
    scene
        .fails(
            &["dump", TARGET],
            3,
            &["public.orders has 3000 rows in the dump and 3001 in its manifest"],
        )
        .await;
    scene.write("dump.manifest.json", b"{");
    let finished = scene.restore(&["dump", TARGET]).await;
    assert_ne!(finished.status, Some(0));
    assert!(finished.stderr.contains("manifest"), "{}", finished.stderr);
    scene.nothing_changed("a damaged manifest").await;
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn rows_that_do_not_arrive_are_noticed_before_the_commit(#[case] major: Major) {
    let scene = Scene::new(major).await;
    scene.create(&["rows", "--data-only"]).await;
    scene
        .server
        .sql(
            TARGET,
            "CREATE TABLE customers (id int, name text);
             CREATE TABLE orders (id int, customer int);
             CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN IF NEW.id % 1000 = 0 THEN RETURN NULL; END IF; RETURN NEW; END';
             CREATE TRIGGER swallow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION swallow();
             INSERT INTO customers VALUES (0, 'was here before')",
        )
        .await;
    let scene = Scene {
        before: contents::digests(&scene.server, TARGET).await,
        ..scene
    };
    scene
        .fails(
            &["rows", TARGET],
            1,
            &[
                "public.orders has 2997 instead of 3000",
                "everything was rolled back and the target is as it was",
            ],
        )
        .await;
    // Rows that were there before are not taken for the dump's.
    scene.server.sql(TARGET, "DROP TRIGGER swallow ON orders").await;
    scene
        .restore(&["rows", TARGET, "--data-only"])
        .await
        .expect_status(0);
    assert_eq!(
        scene
            .server
            .query_text(TARGET, "SELECT count(*) FROM customers")
            .await,
        "2001"
    );
}

#[tokio::test]
async fn a_missing_client_program_is_named_with_what_to_install() {
    let scene = Scene::new(Major::V15).await;
    scene.create(&["dump"]).await;
    let empty = scene.server.new_directory("empty");
    let finished = pgmahout(
        &scene.server,
        &scene.directory,
        &["dump", "restore", "dump", TARGET, "--yes"],
    )
    .arg("--bin-dir")
    .arg(&empty)
    .run()
    .await;
    assert_ne!(finished.status, Some(0));
    assert!(
        finished.stderr.contains("there is no psql in"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("postgresql-client"),
        "{}",
        finished.stderr
    );
    scene.nothing_changed("a missing program").await;
}

#[tokio::test]
async fn a_wrong_password_is_told_from_other_troubles() {
    let server = Postgres::builder(Major::V15).password("right").start().await;
    server.createdb("small").await;
    server.sql("small", "CREATE TABLE t AS SELECT 1 AS a").await;
    let directory = server.new_directory("dumps");
    dump(&server, &directory, &["create", "small", "dump"])
        .env("PGPASSWORD", "right")
        .run()
        .await
        .expect_status(0);
    let finished = dump(&server, &directory, &["restore", "dump", "--into", "again"])
        .env("PGPASSWORD", "wrong")
        .run()
        .await;
    assert_ne!(finished.status, Some(0));
    assert!(
        finished.stderr.contains("password authentication failed"),
        "{}",
        finished.stderr
    );
    assert!(!finished.stderr.contains("wrong\""), "{}", finished.stderr);
    dump(&server, &directory, &["restore", "dump", "--into", "again"])
        .env("PGPASSWORD", "right")
        .run()
        .await
        .expect_status(0);
}

#[tokio::test]
async fn a_cut_pipe_is_refused() {
    let scene = Scene::new(Major::V15).await;
    let whole = output_of(&scene, &[]);
    for length in [whole.len() / 3, whole.len() / 2, whole.len() - 200] {
        let finished = dump(&scene.server, &scene.directory, &["restore", "-", TARGET])
            .stdin(&whole[..length])
            .run()
            .await
            .expect_status(1);
        assert!(
            finished.stderr.contains("standard input is damaged"),
            "{}",
            finished.stderr
        );
        scene.nothing_changed("a cut pipe").await;
    }
}

#[tokio::test]
async fn a_full_disk_leaves_the_target_as_it_was() {
    let tmpfs = match Tmpfs::new(48 * 1024 * 1024) {
        Ok(tmpfs) => tmpfs,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let server = Postgres::start(Major::V15).await;
    server.createdb("bench").await;
    workload::load_pgbench(&server, "bench", 5);
    let small = format!("CREATE TABLESPACE small LOCATION '{}'", tmpfs.path().display());
    server.sql("postgres", &small).await;
    let scene = Scene::around(server).await;
    scene
        .server
        .sql(
            "postgres",
            &format!("ALTER DATABASE {TARGET} SET TABLESPACE small"),
        )
        .await;
    let file = scene.directory.join("bench");
    let dumped = scene
        .server
        .client_command("pg_dump", "bench")
        .arg("-f")
        .arg(&file)
        .status();
    assert!(dumped.expect("pg_dump runs").success());
    let finished = scene.restore(&["bench", TARGET]).await.expect_status(1);
    assert!(
        finished.stderr.contains("could not extend file"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("the server's disk is full"),
        "{}",
        finished.stderr
    );
    scene.nothing_changed("a full disk").await;
    // The tablespace goes before the server does, for its files lie elsewhere.
    scene
        .server
        .sql("postgres", &format!("DROP DATABASE {TARGET}"))
        .await;
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_server_that_is_killed_midway_leaves_the_target_as_it_was(#[case] major: Major) {
    let server = Postgres::start(major).await;
    server.createdb("bench").await;
    workload::load_pgbench(&server, "bench", 5);
    let scene = Scene::around(server).await;
    dump(&scene.server, &scene.directory, &["create", "bench", "dump"])
        .run()
        .await
        .expect_status(0);
    let running = dump(&scene.server, &scene.directory, &["restore", "dump", TARGET]).spawn();
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout dump restore' AND query ~ '^COPY'";
    poll::until(Duration::from_mins(1), "psql copies rows", async || {
        scene.server.query_text("postgres", busy).await != "0"
    })
    .await;
    scene.server.kill().await;
    let finished = running.wait().await.expect_status(1);
    assert!(finished.stderr.contains("hint:"), "{}", finished.stderr);
    let known = [
        "server closed the connection",
        "connection to server was lost",
        "terminat",
    ];
    assert!(
        known.iter().any(|text| finished.stderr.contains(text)),
        "{}",
        finished.stderr
    );
    scene.server.start_again().await;
    scene.nothing_changed("the killed server").await;
}

#[rstest]
#[case::existing(&[])]
#[case::replacing(&["--clean"])]
#[tokio::test]
async fn a_restore_that_is_killed_at_any_moment_leaves_the_target_as_it_was(#[case] options: &[&str]) {
    let rounds: u64 = std::env::var("PGMAHOUT_TEST_KILL_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10);
    let server = Postgres::start(Major::V15).await;
    server.createdb("bench").await;
    workload::load_pgbench(&server, "bench", 3);
    let scene = Scene::around(server).await;
    dump(&scene.server, &scene.directory, &["create", "bench", "dump"])
        .run()
        .await
        .expect_status(0);
    let mut arguments = vec!["restore", "dump", TARGET];
    arguments.extend(options);
    // How long it takes when nobody kills it, in another database.
    scene.server.createdb("measure").await;
    let whole = dump(&scene.server, &scene.directory, &["restore", "dump", "measure"])
        .run()
        .await
        .expect_status(0);
    let mut killed = 0;
    for (round, number) in (0..rounds).zip(numbers(11)) {
        // The last part, when the transaction is committed, is left out: then the restore has succeeded.
        let part = whole.elapsed.mul_f64(0.85 * (number % 1000) as f64 / 1000.0);
        let running = dump(&scene.server, &scene.directory, &arguments).spawn();
        let finished = running.kill_after(part).await;
        if finished.signal.is_none() {
            assert_eq!(finished.status, Some(0), "{}", finished.stderr);
            break;
        }
        killed += 1;
        let sessions =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout dump restore'";
        poll::until(Duration::from_mins(1), "the server has noticed", async || {
            scene.server.query_text("postgres", sessions).await == "0"
        })
        .await;
        let after = contents::digests(&scene.server, TARGET).await;
        if after.contains_key("public.pgbench_accounts") {
            // On a machine that is less busy than when it was measured, it was committed: then all of it.
            let mut all = contents::digests(&scene.server, "bench").await;
            if options.is_empty() {
                all.extend(scene.before.clone());
            }
            assert_eq!(after, all, "round {round}: killed after {part:?}");
            let drop = format!("DROP DATABASE {TARGET} WITH (FORCE)");
            scene.server.sql("postgres", &drop).await;
            make_target(&scene.server).await;
            killed -= 1;
            continue;
        }
        assert_eq!(after, scene.before, "round {round}: killed after {part:?}");
    }
    assert!(killed > 0, "no restore lasted long enough to be killed");
    // What killed restores leave behind bears its purpose in its name and comment.
    let left = scene
        .server
        .query_text("postgres", "SELECT coalesce(string_agg(datname, ' '), '') FROM pg_database WHERE datname ~ '^pgmahout_restore_'")
        .await;
    for database in left.split_whitespace() {
        scene
            .server
            .sql("postgres", &format!("DROP DATABASE \"{database}\""))
            .await;
    }
    dump(
        &scene.server,
        &scene.directory,
        &["restore", "dump", TARGET, "--clean"],
    )
    .run()
    .await
    .expect_status(0);
    assert_eq!(
        contents::digests(&scene.server, TARGET).await,
        contents::digests(&scene.server, "bench").await
    );
}

#[tokio::test]
async fn a_failure_after_large_objects_still_undoes_everything() {
    let server = shop(Major::V15).await;
    let scene = Scene::around(server).await;
    // pg_dump writes BEGIN and COMMIT around large objects; what follows them fails here.
    let text = String::from_utf8(output(&scene.server, "pg_dump", &[], None)).expect("UTF-8");
    assert!(text.contains("\nBEGIN;\n") && text.contains("\nCOMMIT;\n"));
    let broken = text.replace("REFRESH MATERIALIZED VIEW", "REFRESH NOTHING");
    assert_ne!(broken, text);
    scene.write("broken", broken.as_bytes());
    scene
        .fails(&["broken", TARGET], 1, &["psql failed on target", "syntax error"])
        .await;
    assert_eq!(
        scene
            .server
            .query_text(TARGET, "SELECT count(*) FROM pg_largeobject_metadata")
            .await,
        "0"
    );
}

#[tokio::test]
async fn an_interrupted_restore_rolls_back_and_says_so() {
    let server = Postgres::start(Major::V15).await;
    server.createdb("bench").await;
    workload::load_pgbench(&server, "bench", 5);
    let scene = Scene::around(server).await;
    dump(&scene.server, &scene.directory, &["create", "bench", "dump"])
        .run()
        .await
        .expect_status(0);
    for options in [vec![], vec!["--clean"]] {
        let mut arguments = vec!["restore", "dump", TARGET];
        arguments.extend(options);
        let running = dump(&scene.server, &scene.directory, &arguments).spawn();
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout dump restore' AND query ~ '^COPY'";
        poll::until(Duration::from_mins(1), "psql copies rows", async || {
            scene.server.query_text("postgres", busy).await != "0"
        })
        .await;
        running.interrupt();
        let finished = running.wait().await.expect_status(130);
        assert!(finished.stderr.contains("interrupted"), "{}", finished.stderr);
        scene.nothing_changed("an interrupt").await;
    }
}
