//! Data directories of real servers: what is listed is what PostgreSQL itself would back up, and its pages
//! pass exactly where PostgreSQL says so.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pgmahout_backup::physical::files::classify::{Fork, Tablespace};
use pgmahout_backup::physical::files::residency::{CachePolicy, ColdReader};
use pgmahout_backup::physical::files::walk::{FileList, WalkOptions, walk};
use pgmahout_backup::physical::page::checksum::{self, Mismatch};
use pgmahout_backup::physical::page::{BLOCK_SIZE, verify};
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_types::{ControlFile, Lsn};
use tokio_util::sync::CancellationToken;

fn control(server: &Postgres) -> ControlFile {
    let bytes = std::fs::read(server.data_dir().join(ControlFile::PATH)).expect("pg_control is there");
    ControlFile::parse(&bytes).expect("the server is quiet")
}

fn list(server: &Postgres) -> FileList {
    let options = WalkOptions::new(server.major().number(), &control(server));
    walk(server.data_dir(), &options, &CancellationToken::new()).expect("the walk works")
}

/// A server with relations of every kind in every kind of tablespace.
async fn server(major: Major) -> Postgres {
    let server = Postgres::builder(major)
        .data_checksums(true)
        .setting("allow_in_place_tablespaces", "on")
        .setting("autovacuum", "off")
        .setting("fsync", "on")
        .start()
        .await;
    let outside = server.new_directory("outside");
    for statement in [
        format!("CREATE TABLESPACE outside LOCATION '{}'", outside.display()),
        "CREATE TABLESPACE inside LOCATION ''".to_owned(),
        "CREATE TABLE plain AS SELECT n, repeat(md5(n::text), 10) AS text FROM generate_series(1, 20000) AS n"
            .to_owned(),
        "CREATE INDEX ON plain (n)".to_owned(),
        "CREATE INDEX ON plain USING hash (text)".to_owned(),
        "CREATE INDEX ON plain USING brin (n)".to_owned(),
        "CREATE TABLE elsewhere TABLESPACE outside AS SELECT * FROM plain".to_owned(),
        "CREATE TABLE within TABLESPACE inside AS SELECT * FROM plain".to_owned(),
        "CREATE UNLOGGED TABLE unlogged AS SELECT * FROM plain".to_owned(),
        "CREATE UNLOGGED TABLE unlogged_elsewhere TABLESPACE outside AS SELECT * FROM plain".to_owned(),
        "CREATE SEQUENCE numbers".to_owned(),
        "DELETE FROM plain WHERE n % 3 = 0".to_owned(),
        "VACUUM plain, elsewhere, unlogged".to_owned(),
        "CREATE DATABASE second TABLESPACE outside".to_owned(),
        "CHECKPOINT".to_owned(),
    ] {
        server.sql("postgres", &statement).await;
    }
    server
}

/// The files of `backup_manifest` but for those that the backup itself adds.
fn of_manifest(backup: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(backup.join("backup_manifest")).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let files = manifest["Files"].as_array().expect("files");
    let paths = files
        .iter()
        .map(|file| file["Path"].as_str().expect("a path").to_owned());
    paths
        .filter(|path| !matches!(path.as_str(), "backup_label" | "tablespace_map"))
        .collect()
}

async fn what_is_listed_is_what_pg_basebackup_copies(major: Major) {
    let server = server(major).await;
    let session = server.client("postgres").await;
    session
        .batch_execute(
            "CREATE TEMP TABLE temporary AS SELECT * FROM plain;
             SET temp_tablespaces = outside;
             CREATE TEMP TABLE temporary_elsewhere AS SELECT * FROM plain",
        )
        .await
        .expect("temporary tables");
    let data_dir = server.data_dir();
    for directory in ["log", "mine", "base/pgsql_tmp"] {
        let directory = data_dir.join(directory);
        std::fs::create_dir_all(&directory).expect("created");
        server.account().own(&directory);
    }
    for stray in [
        "log/today.log",
        "mine/notes",
        "backup_label.old",
        "current_logfiles",
        "postgresql.auto.conf.tmp",
        "base/pgsql_tmp/pgsql_tmp1.0",
    ] {
        let path = data_dir.join(stray);
        std::fs::write(&path, "x").expect("written");
        server.account().own(&path);
    }

    let backup = server.new_directory("backup");
    let outside = server.root_dir().join("outside");
    let moved = server.new_directory("moved");
    let output = server
        .server_command("pg_basebackup")
        .args([
            "--wal-method=none",
            "--checkpoint=fast",
            "--no-sync",
            "-U",
            "postgres",
        ])
        .arg("-h")
        .arg(server.socket_dir())
        .args(["-p", &server.port().to_string()])
        .arg("-D")
        .arg(&backup)
        .arg("-T")
        .arg(format!("{}={}", outside.display(), moved.display()))
        .output()
        .expect("pg_basebackup runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let list = list(&server);
    let listed: BTreeSet<String> = list
        .files()
        .map(|file| String::from_utf8(file.path()).expect("a text"))
        .collect();
    let copied = of_manifest(&backup);
    // What PostgreSQL copies and we do not is documented where paths are classified.
    let left_out: Vec<&String> = copied.difference(&listed).collect();
    assert_eq!(
        left_out,
        ["backup_label.old", "current_logfiles"],
        "PostgreSQL {major}"
    );
    let added: Vec<&String> = listed.difference(&copied).collect();
    assert!(added.is_empty(), "PostgreSQL {major}: {added:?}");

    // Every directory of the backup is listed, and no other one but those of pg_wal, which it needs.
    for entry in list.directories() {
        let path = String::from_utf8_lossy(&entry.path);
        assert!(
            backup.join(&*path).is_dir(),
            "PostgreSQL {major}: {path} is not in the backup"
        );
        assert_eq!(list.directory_owner(entry).uid, server.account().uid);
        assert_eq!(
            list.directory_owner(entry).user.as_deref(),
            Some(&*server.account().name)
        );
    }
    let listed: BTreeSet<&[u8]> = list.directories().iter().map(|entry| &*entry.path).collect();
    let mut pending = vec![backup.clone()];
    while let Some(directory) = pending.pop() {
        let relative = directory.strip_prefix(&backup).expect("below");
        assert!(
            listed.contains(relative.as_os_str().as_bytes()),
            "PostgreSQL {major}: {} is not listed",
            relative.display()
        );
        for entry in std::fs::read_dir(&directory).expect("readable") {
            let entry = entry.expect("readable");
            // The manifest names no directories; links are those of tablespaces.
            if entry.path().is_dir() {
                pending.push(entry.path());
            }
        }
    }

    let locations: Vec<Option<&Path>> = list
        .tablespaces()
        .iter()
        .map(|tablespace| tablespace.location.as_deref())
        .collect();
    assert_eq!(locations, [Some(&*outside), None]);
    assert!(list.skipped().unlogged >= 2 && list.skipped().temporary_relations >= 2);
    let init_forks = list.files().filter_map(|file| file.kind().relation());
    let init_forks = init_forks.filter(|relation| relation.fork == Fork::Init);
    let places: BTreeSet<Tablespace> = init_forks.map(|relation| relation.tablespace).collect();
    assert!(
        places.contains(&Tablespace::Default) && places.len() == 2,
        "{places:?}"
    );
    assert!(list.warnings().is_empty(), "{:?}", list.warnings());
}

#[tokio::test]
async fn what_is_listed_is_what_pg_basebackup_of_15_copies() {
    what_is_listed_is_what_pg_basebackup_copies(Major::V15).await;
}

#[tokio::test]
async fn what_is_listed_is_what_pg_basebackup_of_18_copies() {
    what_is_listed_is_what_pg_basebackup_copies(Major::V18).await;
}

/// All mismatches in all files, and how many pages were looked at.
fn verified(server: &Postgres) -> (Vec<(String, Mismatch)>, usize) {
    let mut all = Vec::new();
    let mut pages = 0;
    let list = list(server);
    for file in list.files() {
        let Some(relation) = file.kind().relation() else {
            continue;
        };
        let mut reader =
            ColdReader::open(&file.path_in(server.data_dir()), CachePolicy::Preserve).expect("opened");
        let mut bytes = vec![0; usize::try_from(file.size()).expect("small")];
        let count = reader.read_at(&mut bytes, 0).expect("read");
        let mut found = Vec::new();
        let first = checksum::block_number(relation.segment, 131_072, 0);
        checksum::verify(&bytes[..count], first, &mut found);
        pages += count / BLOCK_SIZE;
        let path = String::from_utf8(file.path()).expect("a text");
        all.extend(found.into_iter().map(|mismatch| (path.clone(), mismatch)));
    }
    (all, pages)
}

async fn pages_pass_exactly_where_postgresql_says_so(major: Major) {
    let server = server(major).await;
    let path = server
        .query_text("postgres", "SELECT pg_relation_filepath('plain')")
        .await;
    let lsn: Lsn = server
        .query_text("postgres", "SELECT pg_current_wal_insert_lsn()")
        .await
        .parse()
        .expect("an LSN");
    server.stop(StopMode::Fast).await;
    let (found, pages) = verified(&server);
    assert!(found.is_empty(), "PostgreSQL {major}: {found:?}");
    assert!(pages > 5000, "{pages}");

    // The same answer as pg_checksums about a damaged page, to the digit.
    let full = server.data_dir().join(&path);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&full)
        .expect("opened");
    let mut page = [0; BLOCK_SIZE];
    file.read_exact_at(&mut page, 7 * BLOCK_SIZE as u64)
        .expect("read");
    let page_lsn = verify::page_lsn(&page);
    assert!(page_lsn.is_valid() && page_lsn <= lsn, "{page_lsn} of {lsn}");
    page[5000] ^= 1;
    file.write_all_at(&page, 7 * BLOCK_SIZE as u64).expect("written");
    let (found, _) = verified(&server);
    assert_eq!(found.len(), 1, "{found:?}");
    let (bad, mismatch) = &found[0];
    assert_eq!((bad, mismatch.index), (&path, 7));
    let output = server
        .server_command("pg_checksums")
        .arg("--check")
        .arg("-D")
        .arg(server.data_dir())
        .output()
        .expect("pg_checksums runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!(
        "block 7: calculated checksum {:X} but block contains {:X}",
        mismatch.expected, mismatch.found
    );
    assert!(said.contains(&expected), "expected {expected:?} in:\n{said}");

    // And it is found to be damaged, not new: nobody writes it.
    let mut again = page;
    let finding = verify::judge(&mut &file, &mut again, 7, 7, lsn).expect("read");
    assert!(matches!(finding, verify::Finding::Bad(_)), "{finding:?}");
    assert_eq!(again, page);
}

#[tokio::test]
async fn pages_pass_exactly_where_pg_checksums_of_15_says_so() {
    pages_pass_exactly_where_postgresql_says_so(Major::V15).await;
}

#[tokio::test]
async fn pages_pass_exactly_where_pg_checksums_of_18_says_so() {
    pages_pass_exactly_where_postgresql_says_so(Major::V18).await;
}
