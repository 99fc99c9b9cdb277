//! Restores that did not end well: what resuming, giving up, and other rights than a superuser's come to.

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Finished;
use std::path::{Path, PathBuf};

use crate::dump_roundtrip::{dump, pgmahout};

struct Scene {
    server: Postgres,
    directory: PathBuf,
    state: PathBuf,
}

impl Scene {
    /// Two tables with 10 rows each in `source`, and their definitions in `target`.
    async fn new(checks: bool) -> Self {
        let server = Postgres::start(Major::V15).await;
        let directory = server.new_directory("dumps");
        let state = server.new_directory("state");
        for database in ["source", "target"] {
            server.createdb(database).await;
            server
                .sql(database, "CREATE TABLE a (n int); CREATE TABLE b (n int)")
                .await;
        }
        server
            .sql(
                "source",
                "INSERT INTO a SELECT generate_series(1, 10); INSERT INTO b SELECT generate_series(1, 10)",
            )
            .await;
        if checks {
            server
                .sql("target", "ALTER TABLE b ADD CONSTRAINT small CHECK (n < 5)")
                .await;
        }
        Self {
            server,
            directory,
            state,
        }
    }

    async fn dump(&self, arguments: &[&str]) -> Finished {
        dump(&self.server, &self.directory, arguments)
            .env("PGMAHOUT_STATE_DIR", &self.state)
            .run()
            .await
    }

    fn journal(&self) -> PathBuf {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.state.join("procedures"))
            .expect("procedures")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
            .collect();
        files.sort();
        files.pop().expect("a journal")
    }

    /// The journal as it would be had the program been killed before it wrote this record.
    fn cut_journal(&self, record: &str) {
        let path = self.journal();
        let text = std::fs::read_to_string(&path).expect("text");
        let kept: Vec<&str> = text.lines().take_while(|line| !line.contains(record)).collect();
        assert!(kept.len() < text.lines().count(), "no {record} in {text}");
        std::fs::write(&path, kept.join("\n") + "\n").expect("written");
    }

    async fn procedure(&self, verb: &str) -> Finished {
        let journal = self.journal();
        let id = journal
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        pgmahout(&self.server, Path::new("/"), &["procedure", verb, &id, "--yes"])
            .env("PGMAHOUT_STATE_DIR", &self.state)
            .run()
            .await
    }

    async fn rows(&self, database: &str) -> String {
        self.server
            .query_text(
                database,
                "SELECT concat((SELECT count(*) FROM a), ' ', (SELECT count(*) FROM b))",
            )
            .await
    }
}

fn says(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(
            finished.stderr.contains(word) || finished.stdout.contains(word),
            "no \"{word}\" in:\n{}\n{}",
            finished.stdout,
            finished.stderr
        );
    }
}

#[tokio::test]
async fn resuming_never_loads_rows_twice() {
    for jobs in [false, true] {
        let scene = Scene::new(true).await;
        scene
            .dump(&["create", "source", "rows", "--format", "custom"])
            .await
            .expect_status(0);
        let mut arguments = vec!["restore", "rows", "target", "--data-only", "--no-transaction"];
        if jobs {
            arguments.push("--jobs=2");
        }
        scene.dump(&arguments).await.expect_status(1);
        scene
            .server
            .sql("target", "ALTER TABLE b DROP CONSTRAINT small")
            .await;
        if !jobs {
            assert_eq!(scene.rows("target").await, "10 0");
        }
        let before = scene.rows("target").await;
        if before != "0 0" {
            let finished = scene.procedure("resume").await.expect_status(3);
            says(
                &finished,
                &[
                    "public.a has 10 (0 before the restore, 10 in the dump)",
                    "hint:",
                    "abort",
                ],
            );
            assert_eq!(scene.rows("target").await, before);
        }
        scene.server.sql("target", "TRUNCATE a, b").await;
        scene.procedure("resume").await.expect_status(0);
        assert_eq!(scene.rows("target").await, "10 10");
    }
}

#[tokio::test]
async fn a_restore_that_was_killed_after_its_commit_is_not_loaded_again() {
    let scene = Scene::new(false).await;
    scene
        .dump(&["create", "source", "rows", "--data-only"])
        .await
        .expect_status(0);
    scene.server.sql("target", "INSERT INTO a VALUES (0)").await;
    scene.dump(&["restore", "rows", "target"]).await.expect_status(0);
    scene.cut_journal("\"compared\"");
    let finished = scene.procedure("resume").await.expect_status(0);
    says(&finished, &["nothing is loaded again", "21 rows"]);
    assert_eq!(scene.rows("target").await, "11 10");
}

#[tokio::test]
async fn a_subscription_forbids_to_replace_its_database() {
    let scene = Scene::new(false).await;
    scene.dump(&["create", "source", "rows"]).await.expect_status(0);
    scene
        .server
        .sql(
            "target",
            "CREATE SUBSCRIPTION feed CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE, enabled = false)",
        )
        .await;
    let finished = scene
        .dump(&["restore", "rows", "target", "--clean"])
        .await
        .expect_status(3);
    says(
        &finished,
        &["while subscription feed belongs to it", "DROP SUBSCRIPTION"],
    );
    assert_eq!(scene.rows("target").await, "0 0");
    scene.server.sql("target", "DROP SUBSCRIPTION feed").await;
}

#[tokio::test]
async fn a_replaced_database_that_stayed_is_dropped_when_resumed() {
    let scene = Scene::new(false).await;
    scene.dump(&["create", "source", "rows"]).await.expect_status(0);
    scene
        .dump(&["restore", "rows", "target", "--clean"])
        .await
        .expect_status(0);
    let journal = std::fs::read_to_string(scene.journal()).expect("text");
    let start = journal
        .find("pgmahout_old_")
        .expect("the name of the old database");
    let old = &journal[start..start + "pgmahout_old_".len() + 12];
    // As after a kill between the exchange and the drop.
    scene.server.createdb(old).await;
    scene.cut_journal("audit.downtime");
    let finished = scene
        .dump(&["restore", "rows", "--into", "other", "--dry-run"])
        .await
        .expect_status(0);
    says(&finished, &[&format!("dropdb {old}"), "has replaced"]);
    scene.procedure("resume").await.expect_status(0);
    assert_eq!(scene.rows("target").await, "10 10");
    let left = "SELECT count(*) FROM pg_database WHERE datname ~ '^pgmahout'";
    assert_eq!(scene.server.query_text("postgres", left).await, "0");
}

#[tokio::test]
async fn a_new_database_that_has_its_name_already_is_not_in_its_own_way() {
    let scene = Scene::new(false).await;
    scene.dump(&["create", "source", "rows"]).await.expect_status(0);
    scene
        .dump(&["restore", "rows", "--into", "new"])
        .await
        .expect_status(0);
    // As after a kill between the renaming and the record of it.
    scene.cut_journal("\"step_succeeded\",\"step\":\"publish\"");
    scene.procedure("resume").await.expect_status(0);
    assert_eq!(scene.rows("new").await, "10 10");
}

#[tokio::test]
async fn giving_up_does_not_need_the_dump() {
    let scene = Scene::new(false).await;
    scene.dump(&["create", "source", "rows"]).await.expect_status(0);
    scene
        .dump(&["restore", "rows", "--into", "new"])
        .await
        .expect_status(0);
    scene.cut_journal("\"compared\"");
    std::fs::remove_file(scene.directory.join("rows")).expect("removed");
    let finished = scene.procedure("abort").await.expect_status(0);
    says(&finished, &["dropdb pgmahout_restore_"]);
    let finished = scene.procedure("abort").await;
    assert_ne!(finished.status, Some(0));
    says(&finished, &["aborted"]);
}

#[tokio::test]
async fn an_owner_who_may_create_databases_can_replace_hers() {
    let scene = Scene::new(false).await;
    scene.dump(&["create", "source", "rows"]).await.expect_status(0);
    scene
        .server
        .sql(
            "postgres",
            "CREATE ROLE alice LOGIN CREATEDB; ALTER DATABASE target OWNER TO alice",
        )
        .await;
    dump(
        &scene.server,
        &scene.directory,
        &["restore", "rows", "target", "--clean"],
    )
    .env("PGUSER", "alice")
    .env("PGMAHOUT_STATE_DIR", &scene.state)
    .run()
    .await
    .expect_status(0);
    assert_eq!(scene.rows("target").await, "10 10");
}

#[tokio::test]
async fn tables_whose_owner_is_bound_by_policies_are_restored_and_counted() {
    let scene = Scene::new(false).await;
    scene
        .server
        .sql(
            "source",
            "ALTER TABLE a ENABLE ROW LEVEL SECURITY; ALTER TABLE a FORCE ROW LEVEL SECURITY;
             CREATE POLICY few ON a USING (n < 3)",
        )
        .await;
    scene
        .dump(&["create", "source", "rows", "--format", "custom"])
        .await
        .expect_status(0);
    scene
        .server
        .sql("postgres", "CREATE ROLE alice LOGIN CREATEDB")
        .await;
    for (name, option) in [
        ("one", "--no-acl"),
        ("two", "--no-transaction"),
        ("three", "--jobs=2"),
    ] {
        let finished = dump(
            &scene.server,
            &scene.directory,
            &["restore", "rows", "--into", name, option],
        )
        .env("PGUSER", "alice")
        .env("PGMAHOUT_STATE_DIR", &scene.state)
        .run()
        .await
        .expect_status(0);
        says(&finished, &["20 rows"]);
        assert_eq!(scene.rows(name).await, "10 10");
        assert_eq!(
            scene
                .server
                .query_text(
                    name,
                    "SELECT relforcerowsecurity::text FROM pg_class WHERE relname = 'a'"
                )
                .await,
            "true"
        );
    }
}

#[tokio::test]
async fn workers_and_a_choice_of_tables_exclude_each_other() {
    let scene = Scene::new(false).await;
    scene
        .dump(&["create", "source", "rows", "--format", "custom"])
        .await
        .expect_status(0);
    let finished = scene
        .dump(&["restore", "rows", "--into", "new", "-j2", "--table", "public.a"])
        .await
        .expect_status(2);
    says(
        &finished,
        &["--jobs does not go with --table", "leave --jobs out"],
    );
}

#[tokio::test]
async fn nothing_is_replaced_that_was_not_named() {
    let scene = Scene::new(false).await;
    scene.dump(&["create", "source", "rows"]).await.expect_status(0);
    let finished = scene.dump(&["restore", "rows", "--clean"]).await.expect_status(2);
    says(&finished, &["which database", "hint:"]);
}

#[tokio::test]
async fn a_stream_that_connects_twice_for_the_settings_of_its_database_is_restored() {
    let scene = Scene::new(false).await;
    scene
        .server
        .sql(
            "postgres",
            "ALTER DATABASE source SET work_mem = '8MB'; CREATE ROLE bob; REVOKE TEMPORARY ON DATABASE source FROM PUBLIC",
        )
        .await;
    for (program, name) in [("pg_dump", "created"), ("pg_dumpall", "all")] {
        let mut command = scene.server.client_command(program, "source");
        if program == "pg_dump" {
            command.arg("--create");
        }
        let made = command.output().expect("it runs");
        assert!(made.status.success());
        std::fs::write(scene.directory.join(name), made.stdout).expect("written");
        let rights = "SELECT concat(datacl) FROM pg_database WHERE datname = 'source'";
        let before = scene.server.query_text("postgres", rights).await;
        let into = format!("from_{name}");
        let finished = scene
            .dump(&["restore", name, "--into", &into, "--database", "source"])
            .await
            .expect_status(0);
        says(&finished, &["20 rows", "ALTER DATABASE"]);
        assert_eq!(scene.rows(&into).await, "10 10");
        assert_eq!(
            scene.server.query_text("postgres", rights).await,
            before,
            "the restore changed another database"
        );
    }
}

#[tokio::test]
async fn a_restore_test_leaves_subscriptions_out() {
    let scene = Scene::new(false).await;
    let subscription = "CREATE SUBSCRIPTION feed CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE, enabled = false); COMMENT ON SUBSCRIPTION feed IS 'a feed'";
    for statement in subscription.split("; ") {
        scene.server.sql("source", statement).await;
    }
    scene.dump(&["create", "source", "rows"]).await.expect_status(0);
    scene
        .dump(&["verify", "rows", "--server", &scene.server.dsn("postgres")])
        .await
        .expect_status(0);
    let left = "SELECT count(*) FROM pg_database WHERE datname ~ '^pgmahout'";
    assert_eq!(scene.server.query_text("postgres", left).await, "0");
    scene.server.sql("source", "DROP SUBSCRIPTION feed").await;
}

#[tokio::test]
async fn a_directory_archive_in_a_tar_is_one_dump() {
    let scene = Scene::new(false).await;
    let made = scene
        .server
        .client_command("pg_dump", "source")
        .args(["-Fd", "-f"])
        .arg(scene.directory.join("tree"))
        .status()
        .expect("pg_dump runs");
    assert!(made.success());
    let tar = std::process::Command::new("tar")
        .args(["czf", "tree.tgz", "-C", "tree", "."])
        .current_dir(&scene.directory)
        .status()
        .expect("tar runs");
    assert!(tar.success());
    let finished = scene
        .dump(&["restore", "tree.tgz", "--into", "new"])
        .await
        .expect_status(0);
    says(&finished, &["20 rows"]);
    assert_eq!(scene.rows("new").await, "10 10");
}

#[tokio::test]
async fn what_a_killed_restore_has_unpacked_is_removed_by_the_next_one() {
    let scene = Scene::new(false).await;
    scene.dump(&["create", "source", "rows"]).await.expect_status(0);
    let stale = scene.directory.join("pgmahout-restore-abc123");
    std::fs::create_dir(&stale).expect("created");
    std::fs::write(stale.join("toc.dat"), "secret").expect("written");
    let temp = scene.directory.display().to_string();
    scene
        .dump(&["restore", "rows", "--into", "new", "--temp-dir", &temp])
        .await
        .expect_status(0);
    assert!(!stale.exists(), "the stale directory is still there");
}

#[tokio::test]
async fn names_in_single_byte_encodings_are_read() {
    let scene = Scene::new(false).await;
    scene
        .server
        .sql(
            "postgres",
            "CREATE DATABASE cyrillic TEMPLATE template0 ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C'",
        )
        .await;
    scene
        .server
        .sql(
            "cyrillic",
            "CREATE SCHEMA \"Учёт\"; CREATE TABLE \"Учёт\".\"Заказы\" (n int PRIMARY KEY); CREATE TABLE \"Учёт\".\"Лица_\" (имя text);
             INSERT INTO \"Учёт\".\"Заказы\" SELECT generate_series(1, 7); INSERT INTO \"Учёт\".\"Лица_\" VALUES ('Ольга')",
        )
        .await;
    let made = scene
        .server
        .client_command("pg_dump", "cyrillic")
        .output()
        .expect("pg_dump runs");
    assert!(made.status.success());
    std::fs::write(scene.directory.join("plain"), made.stdout).expect("written");
    scene.dump(&["create", "cyrillic", "own"]).await.expect_status(0);
    for (file, into) in [("plain", "one"), ("own", "two")] {
        let finished = scene
            .dump(&["restore", file, "--into", into])
            .await
            .expect_status(0);
        says(&finished, &["Учёт.Заказы", "8 rows"]);
    }
    let finished = scene
        .dump(&["restore", "plain", "--into", "three", "--schema", "Учёт"])
        .await
        .expect_status(0);
    says(&finished, &["8 rows"]);
}
