//! Backups across upheavals: whatever happens to a cluster between two backups, or during one, both restore
//! exactly what the server had when each was taken.
//!
//! `cargo xtask proof upheavals` sets `PGMAHOUT_TEST_UPHEAVALS`: longer rows of upheavals, and what writes
//! gigabytes.

mod failover;
mod growth;
mod places;
mod relations;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pgmahout_testkit::contents;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::Postgres;
use pgmahout_testkit::proc::Running;
use serde_json::Value;

use crate::archived::{Archived, PATIENCE, archive_all, recovered};
use crate::backup_rounds::assert_pages_are_sound;

/// The digest of a table without rows.
const NO_ROWS: &str = "0 d41d8cd98f00b204e9800998ecf8427e";

/// The digests of all tables of all databases.
type Contents = BTreeMap<String, BTreeMap<String, String>>;

/// A moment of a server, to which a restore can go back.
struct Moment {
    /// The restore point.
    name: String,
    contents: Contents,
}

/// A backup and what the server had right after it.
struct Point {
    label: String,
    /// What the program said of it.
    json: Value,
    after: Moment,
    /// The tablespaces outside the data directory.
    places: Vec<String>,
}

impl Point {
    /// A number that the program said.
    fn number(&self, key: &str) -> u64 {
        self.json[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {}", self.json))
    }

    fn parent(&self) -> &str {
        self.json["parent"].as_str().unwrap_or_default()
    }
}

/// How many upheavals a proof asks for.
fn asked_for() -> Option<usize> {
    std::env::var("PGMAHOUT_TEST_UPHEAVALS").ok()?.parse().ok()
}

async fn run(server: &Postgres, database: &str, statements: &[&str]) {
    let client = server.client(database).await;
    for statement in statements {
        client
            .batch_execute(statement)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

/// What is in all databases, as a restore has it: unlogged tables are empty.
async fn contents_of(server: &Postgres) -> Contents {
    let databases = server
        .query_text(
            "postgres",
            "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate",
        )
        .await;
    let mut all = Contents::new();
    for database in databases.lines() {
        let mut digests = contents::digests(server, database).await;
        let unlogged = server
            .query_text(
                database,
                "SELECT relnamespace::regnamespace || '.' || relname FROM pg_class \
                 WHERE relpersistence = 'u' AND relkind = 'r'",
            )
            .await;
        for table in unlogged.lines() {
            let digest = digests.get_mut(table).expect("it is a table");
            NO_ROWS.clone_into(digest);
        }
        all.insert(database.to_owned(), digests);
    }
    all
}

/// Remembers this moment of a primary; all its WAL is archived then.
async fn moment(server: &Postgres, name: &str) -> Moment {
    let contents = contents_of(server).await;
    server
        .query_text("postgres", &format!("SELECT pg_create_restore_point('{name}')"))
        .await;
    archive_all(server).await;
    Moment {
        name: name.to_owned(),
        contents,
    }
}

/// Takes a backup; what the program says of it.
async fn take(scene: &Archived, server: &Postgres, arguments: &[&str]) -> Value {
    let finished = scene
        .pgmahout_at(server, &["backup", "create", "--json", "--data-dir"])
        .arg(server.data_dir())
        .args(arguments)
        .run()
        .await
        .expect_status(0);
    first_backup(&finished.stdout)
}

fn first_backup(output: &str) -> Value {
    let json: Value = serde_json::from_str(output).unwrap_or_else(|error| panic!("{error}: {output}"));
    json["backups"][0].clone()
}

/// A backup of a primary, and this moment of it.
async fn point(scene: &Archived, server: &Postgres, name: &str) -> Point {
    let json = take(scene, server, &[]).await;
    point_of(json, server, name).await
}

/// A backup that was taken, and this moment of the primary.
async fn point_of(json: Value, primary: &Postgres, name: &str) -> Point {
    let after = moment(primary, name).await;
    let places = primary
        .query_text(
            "postgres",
            "SELECT oid FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'",
        )
        .await;
    Point {
        label: json["label"].as_str().expect("a label").to_owned(),
        json,
        after,
        places: places.lines().map(str::to_owned).collect(),
    }
}

/// Starts a backup that is slow, and waits until the server is in backup mode and files are read.
async fn slow_backup(scene: &Archived, server: &Postgres, rate: &str, arguments: &[&str]) -> Running {
    let running = scene
        .pgmahout_at(server, &["backup", "create", "--json", "--rate-limit", rate])
        .arg("--data-dir")
        .arg(server.data_dir())
        .args(arguments)
        .spawn();
    poll::until(PATIENCE, "the backup's start", async || {
        server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout backup' \
                 AND state = 'idle' AND query LIKE '%pg_backup_start%'",
            )
            .await
            == "1"
    })
    .await;
    running
}

/// Restores a backup up to a moment into a vacant directory, without starting it.
async fn restored_files(scene: &Archived, from: &Point, to: &Moment, arguments: &[&str]) -> Postgres {
    let copy = Postgres::vacant(scene.server.major());
    let mut restore = scene.restore(
        copy.data_dir(),
        &["--backup", &from.label, "--target-name", &to.name],
    );
    for place in &from.places {
        restore = restore.arg("--tablespace").arg(format!(
            "{place}={}",
            copy.root_dir().join(format!("place-{place}")).display()
        ));
    }
    restore.args(arguments).run().await.expect_status(0);
    copy
}

/// Restores a backup up to a moment; exactly what the server had then must be there, and sound.
async fn prove(scene: &Archived, from: &Point, to: &Moment, arguments: &[&str]) {
    let copy = restored_files(scene, from, to, arguments).await;
    recovered(&copy).await;
    let context = format!("backup {}, up to {} {arguments:?}", from.label, to.name);
    assert_has(copy, &to.contents, &context).await;
}

async fn assert_has(copy: Postgres, expected: &Contents, context: &str) {
    let there = contents_of(&copy).await;
    let databases = |contents: &Contents| contents.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(databases(&there), databases(expected), "{context}");
    for (database, tables) in expected {
        assert_eq!(&there[database], tables, "{context}: database {database}");
    }
    assert_pages_are_sound(copy, context).await;
}

/// The labels of all backups, the oldest first.
async fn labels(scene: &Archived) -> Vec<String> {
    let listed: Value = serde_json::from_str(&scene.run(&["backup", "list", "--json"]).await).expect("JSON");
    let backups = listed["repositories"][0]["backups"].as_array().expect("a list");
    backups
        .iter()
        .map(|backup| backup["label"].as_str().expect("a label").to_owned())
        .collect()
}

/// Everything below a directory, links not followed.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).expect("readable") {
            let entry = entry.expect("readable");
            if entry.file_type().expect("known").is_dir() {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

/// Whether a text stands in any pack of a repository that is neither compressed nor encrypted.
fn is_in_packs(repository: &Path, text: &str) -> bool {
    below(repository).iter().any(|path| {
        path.to_string_lossy().contains("/pack/")
            && path.is_file()
            && memchr::memmem::find(&fs::read(path).expect("readable"), text.as_bytes()).is_some()
    })
}
