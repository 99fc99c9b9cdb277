//! What is dumped comes back: every form, codec and place, with and without encryption, and what
//! PostgreSQL's own programs and the usual compressors write.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use pgmahout_testkit::contents;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::{Finished, Pgmahout};
use pgmahout_testkit::s3::S3Server;
use pgmahout_testkit::workload;
use rstest::rstest;

/// A shop with everything that dumps stumble over: quotes, backslashes, line ends and commands in texts and
/// names, identity and serial columns, partitions, large objects, functions that look like dumps.
pub(crate) const SHOP: &str = include_str!("dump_shop.sql");

/// A server with the database `shop`.
pub(crate) async fn shop(major: Major) -> Postgres {
    let server = Postgres::start(major).await;
    server.createdb("shop").await;
    server.psql("shop", SHOP);
    server
}

/// The program, with the server's address in its environment.
pub(crate) fn pgmahout(server: &Postgres, directory: &Path, arguments: &[&str]) -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(arguments)
        .env("PGHOST", server.host())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", "postgres")
        .current_dir(directory)
}

/// The program with PostgreSQL's programs of this server's version, and everything confirmed.
pub(crate) fn dump(server: &Postgres, directory: &Path, arguments: &[&str]) -> Pgmahout {
    let command = pgmahout(server, directory, &["dump"])
        .args(arguments)
        .arg("--bin-dir")
        .arg(server.bin_dir());
    if arguments[0] == "restore" {
        command.arg("--yes")
    } else {
        command
    }
}

/// Everything in a database: rows and sequences by digest, large objects, what views and functions give,
/// and the definitions as pg_dump writes them.
pub(crate) async fn everything(server: &Postgres, database: &str) -> BTreeMap<String, String> {
    let mut all = contents::digests(server, database).await;
    let objects = server
        .query_text(
            database,
            "SELECT coalesce(string_agg(m.oid || ' ' || md5(lo_get(m.oid)), ',' ORDER BY m.oid), '') \
             FROM pg_largeobject_metadata m",
        )
        .await;
    all.insert("large objects".to_owned(), objects);
    let definitions = server
        .client_command("pg_dump", database)
        .args(["--schema-only", "--no-owner", "--no-acl"])
        .output()
        .expect("pg_dump runs");
    assert!(definitions.status.success());
    let definitions: String = String::from_utf8(definitions.stdout)
        .expect("UTF-8")
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .fold(String::new(), |text, line| text + line + "\n");
    all.insert("definitions".to_owned(), definitions);
    all
}

/// Panics where two databases differ.
pub(crate) fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>, what: &str) {
    let differing: Vec<&String> = before
        .keys()
        .chain(after.keys())
        .filter(|name| before.get(*name) != after.get(*name))
        .collect();
    if differing.iter().any(|name| *name == "definitions") {
        assert_eq!(before.get("definitions"), after.get("definitions"), "{what}");
    }
    assert!(differing.is_empty(), "{what}: {differing:?} differ");
}

fn write_key(directory: &Path) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join("dump.key");
    std::fs::write(&path, "5f".repeat(32)).expect("the key can be written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode can be set");
    path.display().to_string()
}

/// Runs a program of the server's version and gives its output, through a compressor if one is named.
pub(crate) fn output(
    server: &Postgres,
    program: &str,
    arguments: &[&str],
    compressor: Option<&str>,
) -> Vec<u8> {
    let mut child = server
        .client_command(program, "shop")
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let stdout = child.stdout.take().expect("it is piped");
    let bytes = match compressor {
        None => {
            let mut bytes = Vec::new();
            std::io::copy(&mut { stdout }, &mut bytes).expect("its output can be read");
            bytes
        }
        Some(compressor) => {
            let output = Command::new(compressor)
                .arg("-c")
                .stdin(stdout)
                .output()
                .expect("the compressor runs");
            assert!(output.status.success());
            output.stdout
        }
    };
    assert!(child.wait().expect("it ends").success());
    bytes
}

async fn restored(server: &Postgres, directory: &Path, arguments: &[&str]) -> Finished {
    let mut all = vec!["restore"];
    all.extend(arguments);
    all.extend(["--into", "again"]);
    dump(server, directory, &all).run().await
}

/// The shop of these tests and pgbench's tables; every form, codec, with and without encryption; a
/// directory and S3.
#[rstest]
#[tokio::test]
async fn every_form_codec_and_encryption_comes_back_the_same(
    #[values(Major::V15, Major::V18)] major: Major,
    #[values("plain", "custom", "directory")] format: &str,
    #[values("shop", "bench")] database: &str,
    #[values("directory", "s3")] place: &str,
) {
    let server = if database == "shop" {
        shop(major).await
    } else {
        let server = Postgres::start(major).await;
        server.createdb(database).await;
        workload::load_pgbench(&server, database, 1);
        // The digests read every row again and again: a tenth of them says as much.
        server
            .sql(database, "DELETE FROM pgbench_accounts WHERE aid > 10000")
            .await;
        server
    };
    let directory = server.new_directory("dumps");
    let key = write_key(&directory);
    let s3 = (place == "s3").then(S3Server::start);
    let repository = s3.as_ref().map(|s3| format!("s3://{}/backups", s3.bucket()));
    let run = async |arguments: &[&str], options: &[&str]| {
        let mut command = dump(&server, &directory, arguments).args(options);
        if let (Some(s3), Some(repository)) = (&s3, &repository) {
            command = command
                .args(["--repo", repository])
                .env("AWS_ENDPOINT_URL_S3", s3.endpoint())
                .env("AWS_ACCESS_KEY_ID", s3.access_key())
                .env("AWS_SECRET_ACCESS_KEY", s3.secret_key())
                .env("AWS_REGION", s3.region());
        }
        command.run().await.expect_status(0)
    };
    let before = everything(&server, database).await;
    for codec in ["gzip:1", "zstd:1", "lz4", "none"] {
        for encrypted in [false, true] {
            let file = format!("{database}-{}-{encrypted}", codec.replace(':', ""));
            let keys: &[&str] = if encrypted { &["--key-file", &key] } else { &[] };
            let encrypt: &[&str] = if encrypted { &["--encrypt"] } else { &[] };
            let options = [&["--format", format, "--compress", codec], encrypt, keys].concat();
            run(&["create", database, &file], &options).await;
            let restored = run(&["restore", &file, "--into", "again"], keys).await;
            assert!(restored.stdout.contains("rows"), "{}", restored.stdout);
            let what = format!("{database} {format} {codec} encrypted: {encrypted} in {place}");
            assert_same(&before, &everything(&server, "again").await, &what);
            server.sql("postgres", "DROP DATABASE again").await;
        }
    }
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn what_the_ordinary_programs_wrote_restores_too(#[case] major: Major) {
    let server = shop(major).await;
    let directory = server.new_directory("dumps");
    let before = everything(&server, "shop").await;
    let write =
        |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).expect("it can be written");
    write("plain", &output(&server, "pg_dump", &[], None));
    write("gzip", &output(&server, "pg_dump", &[], Some("gzip")));
    write(
        "inserts",
        &output(&server, "pg_dump", &["--inserts", "--rows-per-insert=7"], None),
    );
    write("custom", &output(&server, "pg_dump", &["-Fc"], None));
    write(
        "custom.gzip",
        &output(&server, "pg_dump", &["-Fc", "-Z0"], Some("gzip")),
    );
    write("tar", &output(&server, "pg_dump", &["-Ft"], None));
    let path = directory.join("directory");
    output(
        &server,
        "pg_dump",
        &["-Fd", "-j", "2", "-f", path.to_str().expect("UTF-8")],
        None,
    );
    let mut forms = vec![
        "plain",
        "gzip",
        "inserts",
        "custom",
        "custom.gzip",
        "tar",
        "directory",
    ];
    for compressor in ["zstd", "lz4"] {
        if Command::new(compressor).arg("--version").output().is_ok() {
            write(compressor, &output(&server, "pg_dump", &[], Some(compressor)));
            forms.push(compressor);
        }
    }
    for form in forms {
        restored(&server, &directory, &[form]).await.expect_status(0);
        assert_same(&before, &everything(&server, "again").await, form);
        server.sql("postgres", "DROP DATABASE again").await;
    }
    // From a pipe, as people do it.
    let bytes = std::fs::read(directory.join("gzip")).expect("it is there");
    dump(&server, &directory, &["restore", "-", "--into", "again"])
        .stdin(bytes)
        .run()
        .await
        .expect_status(0);
    assert_same(&before, &everything(&server, "again").await, "standard input");
    server.sql("postgres", "DROP DATABASE again").await;
    for jobs in ["custom", "custom.gzip", "directory"] {
        restored(&server, &directory, &[jobs, "--jobs", "3"])
            .await
            .expect_status(0);
        assert_same(&before, &everything(&server, "again").await, "several workers");
        server.sql("postgres", "DROP DATABASE again").await;
    }
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn one_database_of_a_pg_dumpall_stream_restores(#[case] major: Major) {
    let server = shop(major).await;
    server.createdb("it's \"odd\"").await;
    server
        .sql("it's \"odd\"", "CREATE TABLE t AS SELECT 1 AS a")
        .await;
    let directory = server.new_directory("dumps");
    let before = everything(&server, "shop").await;
    std::fs::write(
        directory.join("all"),
        output(&server, "pg_dumpall", &[], Some("gzip")),
    )
    .expect("written");
    restored(&server, &directory, &["all", "--database", "shop"])
        .await
        .expect_status(0);
    assert_same(&before, &everything(&server, "again").await, "pg_dumpall");
    server.sql("postgres", "DROP DATABASE again").await;
    restored(&server, &directory, &["all", "--database", "it's \"odd\""])
        .await
        .expect_status(0);
    assert_eq!(server.query_text("again", "SELECT a FROM t").await, "1");
}

#[tokio::test]
async fn a_tar_of_several_dumps_restores_the_one_that_is_named() {
    let server = shop(Major::V15).await;
    let directory = server.new_directory("dumps");
    let before = everything(&server, "shop").await;
    let inner = directory.join("backup/postgresql");
    std::fs::create_dir_all(&inner).expect("created");
    std::fs::write(
        inner.join("shop_full.backup"),
        output(&server, "pg_dump", &["-Fc"], None),
    )
    .expect("written");
    std::fs::write(
        inner.join("shop_schema.sql"),
        output(&server, "pg_dump", &["-s"], None),
    )
    .expect("written");
    std::fs::write(inner.join("readme"), "no dump").expect("written");
    let tar = Command::new("tar")
        .args(["-czf", "bundle.tar.gz", "backup"])
        .current_dir(&directory)
        .status();
    assert!(tar.expect("tar runs").success());
    let finished = restored(&server, &directory, &["bundle.tar.gz"])
        .await
        .expect_status(2);
    assert!(
        finished
            .stderr
            .contains("backup/postgresql/shop_full.backup (custom archive)"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("--member"), "{}", finished.stderr);
    restored(
        &server,
        &directory,
        &["bundle.tar.gz", "--member", "shop_full.backup"],
    )
    .await
    .expect_status(0);
    assert_same(&before, &everything(&server, "again").await, "bundle");
}
