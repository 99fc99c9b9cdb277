//! Where things lie: tablespaces, WAL outside of the data directory, modes, WAL segments of other sizes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use rstest::rstest;

use super::{assert_has, below, point, prove, restored_files, run};
use crate::archived::{Archived, Storage, archive_all, recovered};

async fn make_tablespace(server: &Postgres, name: &str, directory: &Path) {
    let statement = format!("CREATE TABLESPACE {name} LOCATION '{}'", directory.display());
    run(server, "postgres", &[&statement]).await;
}

async fn oid(server: &Postgres, name: &str) -> String {
    server
        .query_text(
            "postgres",
            &format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'"),
        )
        .await
}

/// A tablespace that goes, another of its name elsewhere, and one that is moved by hand and keeps its number.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tablespaces_that_are_added_dropped_replaced_and_moved_are_restored_as_they_were(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let scene = Archived::with(major, Storage::Directory, false, |builder| {
        builder
            .setting("allow_in_place_tablespaces", "on")
            .setting("autovacuum", "off")
    })
    .await;
    let server = &scene.server;
    for name in ["stays", "goes", "replaced", "moved"] {
        make_tablespace(server, name, &server.new_directory(name)).await;
        let statement = format!(
            "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT n, md5('{name}' || n) AS text \
             FROM generate_series(1, 5000) n"
        );
        run(
            server,
            "postgres",
            &[
                &statement,
                &format!("CREATE INDEX ON in_{name} (text) TABLESPACE {name}"),
            ],
        )
        .await;
    }
    run(
        server,
        "postgres",
        &[
            "CREATE TABLESPACE inside LOCATION ''",
            "CREATE TABLE in_inside TABLESPACE inside AS SELECT n FROM generate_series(1, 5000) n",
            "CREATE DATABASE all_there TABLESPACE goes STRATEGY file_copy",
        ],
    )
    .await;
    let first = point(&scene, server, "first").await;
    assert_eq!(first.places.len(), 4);

    run(
        server,
        "postgres",
        &[
            "ALTER TABLE in_goes SET TABLESPACE pg_default",
            "ALTER INDEX in_goes_text_idx SET TABLESPACE stays",
            "ALTER DATABASE all_there SET TABLESPACE stays",
            "DROP TABLESPACE goes",
            "DROP TABLE in_replaced",
            "DROP TABLESPACE replaced",
        ],
    )
    .await;
    for name in ["replaced", "added"] {
        make_tablespace(server, name, &server.new_directory(&format!("other-{name}"))).await;
        let statement = format!("CREATE TABLE again_{name} TABLESPACE {name} AS SELECT * FROM in_stays");
        run(server, "postgres", &[&statement]).await;
    }
    // By hand, as a disk is exchanged: the same number, another place.
    let number = oid(server, "moved").await;
    server.stop(StopMode::Fast).await;
    let (from, to) = (
        server.root_dir().join("moved"),
        server.root_dir().join("moved-away"),
    );
    fs::rename(&from, &to).expect("ours");
    let link = server.data_dir().join("pg_tblspc").join(&number);
    fs::remove_file(&link).expect("ours");
    symlink(&to, &link).expect("ours");
    server.start_again().await;
    run(
        server,
        "postgres",
        &[
            "UPDATE in_moved SET text = reverse(text) WHERE n % 50 = 0",
            "TRUNCATE in_inside",
        ],
    )
    .await;
    let second = point(&scene, server, "second").await;
    assert_eq!(second.parent(), first.label);
    assert_eq!(second.places.len(), 4);
    // What is only moved by hand is not stored again.
    assert!(second.number("new") < first.number("new") / 2, "{}", second.json);

    // By their names.
    let copy = Postgres::vacant(major);
    let mut restore = scene.restore(
        copy.data_dir(),
        &["--backup", &second.label, "--target-name", &second.after.name],
    );
    for name in ["stays", "replaced", "moved", "added"] {
        restore = restore
            .arg("--tablespace")
            .arg(format!("{name}={}", copy.root_dir().join(name).display()));
    }
    restore.run().await.expect_status(0);
    recovered(&copy).await;
    assert_eq!(
        copy.query_text(
            "postgres",
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'moved'"
        )
        .await,
        copy.root_dir().join("moved").display().to_string()
    );
    assert_has(copy, &second.after.contents, "the second").await;
    prove(&scene, &first, &first.after, &[]).await;

    // To where they are, in place of a lost server.
    server.stop(StopMode::Fast).await;
    fs::remove_dir_all(server.data_dir()).expect("ours");
    for place in ["stays", "other-replaced", "moved-away", "other-added"] {
        for entry in fs::read_dir(server.root_dir().join(place)).expect("readable") {
            fs::remove_dir_all(entry.expect("readable").path()).expect("ours");
        }
    }
    scene
        .restore(server.data_dir(), &["--backup", &second.label])
        .run()
        .await
        .expect_status(0);
    recovered(server).await;
    assert_eq!(
        super::contents_of(server).await,
        second.after.contents,
        "in the old places"
    );
    assert_eq!(fs::read_link(&link).expect("a link"), to);
}

/// WAL segments of any size, a pg_wal that is a link, and directories that a group may read.
#[rstest]
#[case::v15_1(Major::V15, 1, true)]
#[case::v15_64(Major::V15, 64, false)]
#[case::v18_1(Major::V18, 1, false)]
#[case::v18_64(Major::V18, 64, true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segment_sizes_linked_wal_and_modes_are_kept(
    #[case] major: Major,
    #[case] megabytes: u64,
    #[case] group: bool,
) {
    let scene = Archived::with(major, Storage::Directory, true, |builder| {
        let builder = builder
            .wal_outside()
            .initdb_arg(&format!("--wal-segsize={megabytes}"))
            .setting("autovacuum", "off");
        if group {
            builder.initdb_arg("--allow-group-access")
        } else {
            builder
        }
    })
    .await;
    let server = &scene.server;
    let outside = server.root_dir().join("wal");
    assert_eq!(
        fs::read_link(server.data_dir().join("pg_wal")).expect("a link"),
        outside
    );
    run(
        server,
        "postgres",
        &[
            "CREATE TABLE t (n int PRIMARY KEY, text text)",
            "INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 20000) n",
        ],
    )
    .await;
    let first = point(&scene, server, "first").await;
    // Over the borders of small segments, before the backup and while it is taken.
    run(
        server,
        "postgres",
        &[
            "UPDATE t SET text = reverse(text) WHERE n % 3 = 0",
            "CREATE TABLE copied AS SELECT * FROM t",
            "VACUUM FULL t",
        ],
    )
    .await;
    let second = point(&scene, server, "second").await;
    let size = server
        .query_text(
            "postgres",
            "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'",
        )
        .await;
    assert_eq!(size, (megabytes << 20).to_string());

    let (directories, files) = if group { (0o750, 0o640) } else { (0o700, 0o600) };
    // The WAL is the running server's: by default it goes into the data directory.
    let copy = restored_files(&scene, &second, &second.after, &[]).await;
    let metadata = fs::symlink_metadata(copy.data_dir().join("pg_wal")).expect("there");
    assert!(metadata.is_dir());
    assert_modes(server.data_dir(), copy.data_dir(), directories, files);
    recovered(&copy).await;
    assert_has(copy, &second.after.contents, "WAL inside").await;

    let copy = Postgres::vacant(major);
    let wal = copy.root_dir().join("elsewhere");
    scene
        .restore(
            copy.data_dir(),
            &["--backup", &first.label, "--target-name", "second"],
        )
        .arg("--wal-dir")
        .arg(&wal)
        .run()
        .await
        .expect_status(0);
    assert_eq!(
        fs::read_link(copy.data_dir().join("pg_wal")).expect("a link"),
        wal
    );
    assert_modes(&outside, &wal, directories, files);
    recovered(&copy).await;
    assert!(
        fs::read_dir(&wal)
            .expect("readable")
            .filter_map(Result::ok)
            .any(|entry| entry.metadata().is_ok_and(|file| file.len() == megabytes << 20)),
        "the WAL is elsewhere"
    );
    assert_has(copy, &second.after.contents, "WAL elsewhere").await;
}

/// What was there has the mode that it had, and what the restore adds that of the cluster.
fn assert_modes(source: &Path, root: &Path, directories: u32, files: u32) {
    let mode = |metadata: &fs::Metadata| metadata.permissions().mode() & 0o7777;
    let owner = fs::metadata(source).expect("there").uid();
    assert_eq!(mode(&fs::metadata(root).expect("there")), directories);
    for path in below(root).into_iter().chain([root.to_owned()]) {
        let metadata = fs::symlink_metadata(&path).expect("there");
        if metadata.is_symlink() {
            continue;
        }
        let was = source.join(path.strip_prefix(root).expect("below it"));
        let expected = match fs::metadata(&was) {
            Ok(was) => mode(&was),
            Err(_) if metadata.is_dir() => directories,
            Err(_) => files,
        };
        assert_eq!(
            mode(&metadata),
            expected,
            "{}: {:o} instead of {expected:o}",
            path.display(),
            mode(&metadata)
        );
        assert_eq!(metadata.uid(), owner, "{}", path.display());
    }
}

/// The WAL says where a tablespace was made: a copy that replays that on the same machine would write into it.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_never_writes_into_the_tablespaces_of_the_server_that_still_runs(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let scene = Archived::with(major, Storage::Directory, true, |builder| {
        builder.setting("autovacuum", "off")
    })
    .await;
    let server = &scene.server;
    run(
        server,
        "postgres",
        &["CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n"],
    )
    .await;
    let first = point(&scene, server, "first").await;
    let place = server.new_directory("place");
    make_tablespace(server, "made_later", &place).await;
    run(
        server,
        "postgres",
        &["CREATE TABLE there TABLESPACE made_later AS SELECT n FROM generate_series(1, 5000) n"],
    )
    .await;
    archive_all(server).await;
    // The server goes on: its pages are newer than what the WAL of before has.
    run(
        server,
        "postgres",
        &["UPDATE there SET n = -n", "VACUUM (FREEZE) there", "CHECKPOINT"],
    )
    .await;
    let before = contents_in(&place);

    let copy = Postgres::vacant(major);
    scene
        .restore(copy.data_dir(), &["--backup", &first.label])
        .run()
        .await
        .expect_status(0);
    copy.settle(&[]);
    let problem = copy.try_start_again().await.err().unwrap_or_default();
    let log = copy.log();
    for words in [
        "makes tablespace",
        &place.display().to_string(),
        &server.data_dir().display().to_string(),
        "recovery would overwrite its files",
    ] {
        assert!(log.contains(words), "no {words:?} in {problem}\n{log}");
    }
    assert!(!copy.is_running());
    assert!(
        contents_in(&place) == before,
        "the tablespace of the server was touched"
    );

    // The same in a drill, until a backup has the tablespace.
    let drilled = scene
        .pgmahout(&["backup", "drill", "--scratch"])
        .arg(server.new_directory("scratch"))
        .run()
        .await
        .expect_status(1);
    assert!(
        drilled.stdout.contains("makes tablespace") || drilled.stderr.contains("makes tablespace"),
        "{}\n{}",
        drilled.stdout,
        drilled.stderr
    );
    assert!(
        contents_in(&place) == before,
        "the tablespace of the server was touched"
    );
    let second = point(&scene, server, "second").await;
    scene
        .pgmahout(&["backup", "drill", "--scratch"])
        .arg(server.root_dir().join("scratch"))
        .run()
        .await
        .expect_status(0);
    prove(&scene, &second, &second.after, &[]).await;
    prove(&scene, &first, &first.after, &[]).await;
    // Where the server is gone, the tablespace is made where it was.
    server.stop(StopMode::Fast).await;
    fs::remove_dir_all(&place).expect("ours");
    server.new_directory("place");
    prove(&scene, &first, &second.after, &[]).await;
}

/// All files below a directory, with their contents.
fn contents_in(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = below(directory)
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| {
            let content = fs::read(&path).expect("readable");
            (path, content)
        })
        .collect();
    files.sort();
    files
}
