//! `dump create`, `list` and `show`: every form, codec and place gives a file that PostgreSQL's own tools
//! restore to the same rows.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use pgmahout_backup::dump::create::seal_context;
use pgmahout_backup::dump::manifest::{DumpManifest, Format, Precision};
use pgmahout_store::codec::{Codec, Decompressor};
use pgmahout_store::seal::{Keyring, Opener};
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::{Finished, Pgmahout};
use pgmahout_testkit::s3::S3Server;
use rstest::rstest;

const PASSPHRASE: &str = "correct horse battery staple";

/// Everything that a dump could stumble over, in little.
const SHOP: &str = r#"
    CREATE TABLE customers (id bigserial PRIMARY KEY, name text NOT NULL, document jsonb);
    INSERT INTO customers (name, document)
        SELECT 'customer ' || i, jsonb_build_object('number', i, 'text', md5(i::text)) FROM generate_series(1, 5000) i;
    CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                         customer bigint NOT NULL REFERENCES customers, note text);
    INSERT INTO orders (customer, note) SELECT 1 + i % 5000, E'line one\nCOPY orders FROM stdin;\n\\.\t' || i
        FROM generate_series(1, 3000) i;
    CREATE TABLE events (id bigint, at timestamptz NOT NULL) PARTITION BY RANGE (id);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (100);
    CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (100) TO (1000);
    INSERT INTO events SELECT i, '2026-11-21Z'::timestamptz + i * interval '1 s' FROM generate_series(1, 500) i;
    CREATE SCHEMA "Odd Schema";
    CREATE TABLE "Odd Schema"."We""ird" (a text);
    INSERT INTO "Odd Schema"."We""ird" VALUES (E'tab\tand \\. and NULL'), (NULL);
    CREATE TABLE nothing (a int);
    CREATE FUNCTION trap() RETURNS text LANGUAGE sql AS $$
SELECT 'x'
/*
COPY customers FROM stdin;
1
\.
*/
    $$;
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM customers;
    SELECT lo_from_bytea(0, decode(repeat('c0ffee', 5000), 'hex'));
"#;

/// One digest over the rows of every table.
const DIGEST: &str = r#"
    SELECT md5(concat(
        (SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM customers t),
        (SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM orders t),
        (SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM events t),
        (SELECT md5(string_agg(coalesce(a, 'null'), ',' ORDER BY a)) FROM "Odd Schema"."We""ird" t),
        (SELECT count(*) FROM nothing), (SELECT n FROM counted), trap(),
        (SELECT md5(string_agg(md5(data), ',' ORDER BY pageno)) FROM pg_largeobject),
        (SELECT last_value FROM customers_id_seq)))
"#;

async fn shop(major: Major) -> Postgres {
    let server = Postgres::start(major).await;
    server.createdb("shop").await;
    server.sql("shop", SHOP).await;
    server
}

fn pgmahout(server: &Postgres, directory: &Path, arguments: &[&str]) -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(arguments)
        .env("PGHOST", server.host())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", "postgres")
        .env("TZ", "UTC")
        .env("DUMP_PASSPHRASE", PASSPHRASE)
        .current_dir(directory)
}

fn create(server: &Postgres, directory: &Path, arguments: &[&str]) -> Pgmahout {
    pgmahout(server, directory, &["dump", "create"])
        .args(arguments)
        .arg("--bin-dir")
        .arg(server.bin_dir())
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .expect("the directory can be read")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

fn manifest(directory: &Path, file: &str) -> DumpManifest {
    let bytes = std::fs::read(directory.join(format!("{file}.manifest.json"))).expect("a manifest");
    DumpManifest::from_slice(&bytes).expect("the manifest can be read")
}

/// The bytes inside a stored file.
fn content(path: &Path, codec: Codec, encrypted: bool) -> Vec<u8> {
    let file = std::fs::File::open(path).expect("the dump opens");
    let opened: Box<dyn Read + Send> = if encrypted {
        let keyring = Keyring::from_passphrase(PASSPHRASE).expect("a passphrase");
        Box::new(Opener::new(file, &keyring, &seal_context()).expect("the key opens it"))
    } else {
        Box::new(file)
    };
    let mut bytes = Vec::new();
    Decompressor::new(codec, opened)
        .expect("starts")
        .read_to_end(&mut bytes)
        .expect("it is whole");
    bytes
}

/// Restores with PostgreSQL's own program into a new database.
async fn restore(server: &Postgres, database: &str, format: Format, bytes: &[u8]) {
    server.createdb(database).await;
    let unpacked = tempfile::tempdir().expect("a directory");
    let mut command = match format {
        Format::Plain => {
            let mut psql = server.client_command("psql", database);
            psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"]);
            psql
        }
        Format::Custom => {
            let mut restore = server.client_command("pg_restore", database);
            restore.args(["--exit-on-error", "--no-owner", "-d", database]);
            restore
        }
        _ => {
            let packed = unpacked.path().join("packed.tar");
            std::fs::write(&packed, bytes).expect("written");
            let untar = std::process::Command::new("tar")
                .arg("-xf")
                .arg(&packed)
                .arg("-C")
                .arg(unpacked.path())
                .status();
            assert!(untar.expect("tar runs").success());
            std::fs::remove_file(&packed).expect("removed");
            let mut restore = server.client_command("pg_restore", database);
            restore
                .args(["--exit-on-error", "--no-owner", "-j", "2", "-d", database])
                .arg(unpacked.path());
            restore
        }
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = input.write_all(&bytes);
    });
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn json(finished: &Finished) -> serde_json::Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout))
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn every_form_and_codec_restores_with_the_programs_of_postgresql(#[case] major: Major) {
    let server = shop(major).await;
    let wanted = server.query_text("shop", DIGEST).await;
    let directory = tempfile::tempdir().expect("a directory");
    let cases = [
        (Format::Plain, Codec::GZIP, false),
        (Format::Plain, Codec::ZSTD, true),
        (Format::Plain, Codec::None, false),
        (Format::Custom, Codec::GZIP, true),
        (Format::Custom, Codec::ZSTD, false),
        (Format::Custom, Codec::Lz4, false),
        (Format::Custom, Codec::None, true),
        (Format::Directory, Codec::GZIP, false),
        (Format::Directory, Codec::Lz4, true),
    ];
    for (format, codec, encrypted) in cases {
        let label = format!("{}_{}_{encrypted}", format.as_str(), codec.name());
        let codec_text = codec.to_string();
        let mut command = create(
            &server,
            directory.path(),
            &[
                "shop",
                &label,
                "--format",
                format.as_str(),
                "--compress",
                &codec_text,
            ],
        );
        if encrypted {
            command = command.args(["--passphrase", "env:DUMP_PASSPHRASE"]);
        }
        if format == Format::Directory {
            command = command.args(["--jobs", "2"]);
        }
        command.run().await.expect_status(0);
        let manifest = manifest(directory.path(), &label);
        let stored = std::fs::read(directory.path().join(&label)).expect("the dump");
        assert_eq!(manifest.stored.bytes, stored.len() as u64, "{label}");
        assert_eq!(
            manifest.stored.sha256,
            pgmahout_store::digest::Sha256::of(&stored).to_string(),
            "{label}"
        );
        let inside = content(&directory.path().join(&label), codec, encrypted);
        assert_eq!(manifest.content.bytes, inside.len() as u64, "{label}");
        assert_eq!(manifest.encryption.is_some(), encrypted, "{label}");
        assert!(manifest.verification.read_back_at.is_some(), "{label}");
        assert_eq!(manifest.server.version_number / 10_000, major.number(), "{label}");
        let counted: Vec<(String, Option<u64>, Precision)> = manifest
            .tables
            .iter()
            .map(|table| {
                (
                    format!("{}.{}", table.schema, table.name),
                    table.rows,
                    table.precision,
                )
            })
            .collect();
        let exact = |name: &str, rows| (name.to_owned(), Some(rows), Precision::Exact);
        assert_eq!(
            counted,
            [
                exact("Odd Schema.We\"ird", 2),
                exact("public.customers", 5000),
                exact("public.events_1", 99),
                exact("public.events_2", 401),
                exact("public.nothing", 0),
                exact("public.orders", 3000),
            ],
            "{label}"
        );
        restore(&server, &label, format, &inside).await;
        assert_eq!(server.query_text(&label, DIGEST).await, wanted, "{label}");
    }
}

#[tokio::test]
async fn the_default_is_one_plain_gzip_file_that_gunzip_and_psql_restore() {
    let server = shop(Major::V15).await;
    let directory = tempfile::tempdir().expect("a directory");
    let finished = create(&server, directory.path(), &["shop"])
        .run()
        .await
        .expect_status(0);
    let file = finished.stdout.trim().to_owned();
    let shape: String = file
        .chars()
        .map(|character| {
            if character.is_ascii_digit() {
                '9'
            } else {
                character
            }
        })
        .collect();
    assert_eq!(shape, "backup_shop_9999_99_99_999999.sql.gz");
    assert_eq!(
        names(directory.path()),
        [file.clone(), format!("{file}.manifest.json")]
    );
    let test = std::process::Command::new("gzip")
        .arg("-t")
        .arg(directory.path().join(&file))
        .status();
    assert!(test.expect("gzip runs").success());
    let unzipped = std::process::Command::new("gunzip")
        .arg("-c")
        .arg(directory.path().join(&file))
        .output()
        .expect("gunzip");
    assert!(unzipped.status.success());
    server.createdb("again").await;
    server.psql("again", &String::from_utf8(unzipped.stdout).expect("UTF-8"));
    assert_eq!(
        server.query_text("again", DIGEST).await,
        server.query_text("shop", DIGEST).await
    );
    // Dumps hold everything that the database holds: nobody else may read them.
    let mode = std::fs::metadata(directory.path().join(&file))
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn without_a_name_the_database_is_that_of_the_environment_and_else_postgres() {
    let server = shop(Major::V18).await;
    let directory = tempfile::tempdir().expect("a directory");
    create(&server, directory.path(), &["--json"])
        .run()
        .await
        .expect_status(0);
    create(&server, directory.path(), &[])
        .env("PGDATABASE", "shop")
        .run()
        .await
        .expect_status(0);
    let names = names(directory.path());
    assert!(
        names.iter().any(|name| name.starts_with("backup_postgres_")),
        "{names:?}"
    );
    assert!(
        names.iter().any(|name| name.starts_with("backup_shop_")),
        "{names:?}"
    );
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn the_rows_and_the_dump_are_of_one_snapshot_while_others_write(#[case] major: Major) {
    let server = shop(major).await;
    let directory = tempfile::tempdir().expect("a directory");
    let stop = tokio_util::sync::CancellationToken::new();
    let writer = {
        let client = server.client("shop").await;
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut written = 0;
            while !stop.is_cancelled() {
                client
                    .batch_execute(
                        "INSERT INTO orders (customer, note) SELECT 1, 'new' FROM generate_series(1, 7)",
                    )
                    .await
                    .expect("writes go on");
                written += 1;
            }
            written
        })
    };
    for format in ["plain", "custom", "directory"] {
        create(&server, directory.path(), &["shop", format, "--format", format])
            .run()
            .await
            .expect_status(0);
    }
    stop.cancel();
    assert!(
        writer.await.expect("no panic") > 3,
        "nothing was written meanwhile: the test tests nothing"
    );
    for format in [Format::Plain, Format::Custom, Format::Directory] {
        let name = format.as_str();
        let manifest = manifest(directory.path(), name);
        let orders = manifest
            .tables
            .iter()
            .find(|table| table.name == "orders")
            .expect("counted");
        restore(
            &server,
            name,
            format,
            &content(&directory.path().join(name), Codec::GZIP, false),
        )
        .await;
        let restored = server.query_text(name, "SELECT count(*)::text FROM orders").await;
        assert_eq!(orders.rows.map(|rows| rows.to_string()), Some(restored), "{name}");
    }
}

#[tokio::test]
async fn selections_hold_what_they_say_and_a_pattern_without_a_match_is_an_error() {
    let server = shop(Major::V18).await;
    let directory = tempfile::tempdir().expect("a directory");
    let tables = |file: &str| -> Vec<String> {
        manifest(directory.path(), file)
            .tables
            .into_iter()
            .map(|table| table.name)
            .collect()
    };
    for format in ["plain", "custom"] {
        let some = format!("some_{format}");
        let arguments = [
            "shop",
            &some,
            "--format",
            format,
            "-t",
            "cust*",
            "-t",
            "\"Odd Schema\".*",
        ];
        create(&server, directory.path(), &arguments)
            .run()
            .await
            .expect_status(0);
        assert_eq!(tables(&some), ["We\"ird", "customers"]);
        let less = format!("less_{format}");
        let arguments = [
            "shop",
            &less,
            "--format",
            format,
            "--exclude-schema",
            "\"Odd\"*",
            "--exclude-table-data",
            "events_*",
        ];
        create(&server, directory.path(), &arguments)
            .run()
            .await
            .expect_status(0);
        assert_eq!(tables(&less), ["customers", "nothing", "orders"]);
    }
    let schema = create(&server, directory.path(), &["shop", "schema", "--schema-only"])
        .run()
        .await
        .expect_status(0);
    assert!(!schema.stderr.contains("warning"), "{}", schema.stderr);
    assert_eq!(tables("schema"), Vec::<String>::new());
    let missing = create(&server, directory.path(), &["shop", "missing", "-t", "custmers"])
        .run()
        .await
        .expect_status(1);
    assert!(
        missing
            .stderr
            .contains("no matching tables were found for pattern \"custmers\""),
        "{}",
        missing.stderr
    );
    assert!(
        missing.stderr.contains("hint: check the spelling"),
        "{}",
        missing.stderr
    );
    assert!(!directory.path().join("missing").exists());
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn all_databases_are_dumps_of_their_own_with_the_roles_in_one_bundle(#[case] major: Major) {
    let server = shop(major).await;
    server.createdb("second \"db\"").await;
    server
        .sql("postgres", "CREATE ROLE clerk LOGIN PASSWORD 'x'")
        .await;
    let directory = tempfile::tempdir().expect("a directory");
    let finished = create(
        &server,
        directory.path(),
        &["--all-databases", "--repo", "./repo", "--json"],
    )
    .run()
    .await
    .expect_status(0);
    let value = json(&finished);
    let databases: Vec<&str> = value["dumps"]
        .as_array()
        .expect("dumps")
        .iter()
        .map(|dump| dump["manifest"]["database"]["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(databases, ["postgres", "second \"db\"", "shop"]);
    let members = value["bundle"]["manifest"]["members"]
        .as_array()
        .expect("members");
    assert_eq!(members[0]["role"], "globals");
    let globals = content(
        &directory
            .path()
            .join("repo/dumps")
            .join(members[0]["file"].as_str().expect("a file")),
        Codec::GZIP,
        false,
    );
    assert!(String::from_utf8_lossy(&globals).contains("CREATE ROLE clerk"));
    assert_eq!(members.len(), 4);
    let listed = pgmahout(
        &server,
        directory.path(),
        &["dump", "list", "--repo", "./repo", "--json"],
    )
    .run()
    .await
    .expect_status(0);
    let listed = json(&listed);
    assert_eq!(listed["bundles"][0]["trust"], "read-back", "{listed}");
    assert_eq!(listed["dumps"].as_array().map(Vec::len), Some(3), "{listed}");
}

#[tokio::test]
async fn a_set_is_one_snapshot_seen_three_ways() {
    let server = shop(Major::V15).await;
    let directory = tempfile::tempdir().expect("a directory");
    create(
        &server,
        directory.path(),
        &["shop", "set", "--set", "full,schema,data:customers,orders"],
    )
    .run()
    .await
    .expect_status(0);
    let manifests: Vec<DumpManifest> = ["full", "schema", "data"]
        .into_iter()
        .map(|part| manifest(directory.path(), &format!("set_{part}.sql.gz")))
        .collect();
    let snapshots: Vec<_> = manifests
        .iter()
        .map(|manifest| manifest.snapshot.clone())
        .collect();
    assert!(
        snapshots.windows(2).all(|pair| pair[0] == pair[1]),
        "{snapshots:?}"
    );
    let data: Vec<&str> = manifests[2]
        .tables
        .iter()
        .map(|table| table.name.as_str())
        .collect();
    assert_eq!(data, ["customers", "orders"]);
    server.createdb("rebuilt").await;
    let inside = |part: &str| {
        let bytes = content(
            &directory.path().join(format!("set_{part}.sql.gz")),
            Codec::GZIP,
            false,
        );
        String::from_utf8(bytes).expect("UTF-8")
    };
    server.psql("rebuilt", &inside("schema"));
    // Foreign keys are there already: pg_dump orders the tables of a data-only dump for that.
    server.psql("rebuilt", &inside("data"));
    assert_eq!(
        server
            .query_text("rebuilt", "SELECT count(*)::text FROM orders")
            .await,
        "3000"
    );
    assert!(directory.path().join("set.bundle.json").exists());
}

#[rstest]
#[case(false)]
#[case(true)]
#[tokio::test]
async fn a_dump_goes_to_s3_and_is_listed_there(#[case] encrypted: bool) {
    let server = shop(Major::V18).await;
    let storage = S3Server::start();
    let directory = tempfile::tempdir().expect("a directory");
    let repository = format!("s3://{}/team", storage.bucket());
    let with_storage = |command: Pgmahout| {
        command
            .env("AWS_ENDPOINT_URL", storage.endpoint())
            .env("AWS_ACCESS_KEY_ID", storage.access_key())
            .env("AWS_SECRET_ACCESS_KEY", storage.secret_key())
            .env("AWS_REGION", storage.region())
    };
    let mut command = create(
        &server,
        directory.path(),
        &["shop", "--repo", &repository, "--format", "custom", "--globals"],
    );
    if encrypted {
        command = command.args(["--passphrase", "env:DUMP_PASSPHRASE"]);
    }
    with_storage(command).run().await.expect_status(0);
    let keys = storage.keys();
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(
        keys.iter().all(|key| key.starts_with("team/dumps/backup_shop_")),
        "{keys:?}"
    );
    let listed = with_storage(pgmahout(
        &server,
        directory.path(),
        &["dump", "list", "--repo", &repository, "--json"],
    ))
    .run()
    .await
    .expect_status(0);
    let listed = json(&listed);
    assert_eq!(listed["dumps"][0]["trust"], "read-back", "{listed}");
    assert_eq!(listed["dumps"][0]["encrypted"], encrypted, "{listed}");
    assert_eq!(listed["dumps"][0]["rows"], 5000 + 3000 + 500 + 2, "{listed}");
    assert!(names(directory.path()).is_empty(), "nothing is left here");
}

#[tokio::test]
async fn counting_stops_at_its_budget_and_says_so() {
    let server = shop(Major::V15).await;
    server.sql("shop", "ANALYZE").await;
    let directory = tempfile::tempdir().expect("a directory");
    create(
        &server,
        directory.path(),
        &["shop", "late", "--format", "custom", "--count-budget", "0"],
    )
    .run()
    .await
    .expect_status(0);
    let late = manifest(directory.path(), "late");
    assert!(
        late.tables
            .iter()
            .all(|table| table.precision != Precision::Exact),
        "{:?}",
        late.tables
    );
    let customers = late
        .tables
        .iter()
        .find(|table| table.name == "customers")
        .expect("listed");
    assert_eq!(
        (customers.rows, customers.precision),
        (Some(5000), Precision::Estimate)
    );
    create(
        &server,
        directory.path(),
        &["shop", "none", "--format", "custom", "--counts", "none"],
    )
    .run()
    .await
    .expect_status(0);
    let none = manifest(directory.path(), "none");
    assert_eq!(none.tables.len(), 6);
    assert!(none.tables.iter().all(|table| table.rows.is_none()));
}

#[tokio::test]
async fn a_dump_that_shrank_or_holds_no_table_is_a_warning_with_the_usual_causes() {
    let server = shop(Major::V15).await;
    let directory = tempfile::tempdir().expect("a directory");
    let first = create(&server, directory.path(), &["shop", "first"])
        .run()
        .await
        .expect_status(0);
    assert!(!first.stderr.contains("warning"), "{}", first.stderr);
    server.sql("shop", "TRUNCATE customers, orders").await;
    let second = create(&server, directory.path(), &["shop", "second"])
        .run()
        .await
        .expect_status(0);
    assert!(
        second.stderr.contains("warning: the dump of shop has"),
        "{}",
        second.stderr
    );
    assert!(
        second.stderr.contains("were tables dropped or emptied"),
        "{}",
        second.stderr
    );
    server.createdb("empty").await;
    let empty = create(&server, directory.path(), &["empty", "third"])
        .run()
        .await
        .expect_status(0);
    assert!(
        empty
            .stderr
            .contains("holds no table: is the database empty, is its name right"),
        "{}",
        empty.stderr
    );
    let shown = pgmahout(&server, directory.path(), &["dump", "show", "second"])
        .run()
        .await
        .expect_status(0);
    assert!(
        shown.stderr.contains("were tables dropped or emptied"),
        "{}",
        shown.stderr
    );
    assert!(shown.stdout.contains("public.customers"), "{}", shown.stdout);
}

#[tokio::test]
async fn a_listing_tells_sound_damaged_and_foreign_dumps_apart() {
    let server = shop(Major::V18).await;
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["sound.sql.gz", "cut.sql.gz", "torn.sql.gz"] {
        create(&server, directory.path(), &["shop", name])
            .run()
            .await
            .expect_status(0);
    }
    let path = |name: &str| directory.path().join(name);
    let whole = std::fs::read(path("cut.sql.gz")).expect("the dump");
    std::fs::write(path("cut.sql.gz"), &whole[..whole.len() / 2]).expect("cut");
    std::fs::write(path("torn.sql.gz.manifest.json"), "{\"schema_version\": 1, \"ki").expect("torn");
    std::fs::write(path("foreign.sql.gz"), &whole).expect("written");
    let listed = pgmahout(&server, directory.path(), &["dump", "list", "--json"])
        .run()
        .await
        .expect_status(0);
    let listed = json(&listed);
    let trust = |name: &str| {
        let dumps = listed["dumps"].as_array().expect("dumps");
        let dump = dumps
            .iter()
            .find(|dump| dump["file"] == name)
            .unwrap_or_else(|| panic!("{name}: {listed}"));
        dump["trust"].as_str().expect("a word").to_owned()
    };
    assert_eq!(trust("sound.sql.gz"), "read-back");
    assert_eq!(trust("cut.sql.gz"), "damaged");
    assert_eq!(trust("torn.sql.gz"), "damaged");
    assert_eq!(trust("foreign.sql.gz"), "unverified");
    let text = pgmahout(&server, directory.path(), &["dump", "list"])
        .run()
        .await
        .expect_status(0);
    assert!(
        text.stderr.contains("torn.sql.gz: the manifest is damaged"),
        "{}",
        text.stderr
    );
    let none = pgmahout(&server, directory.path(), &["dump", "show", "soumd.sql.gz"])
        .run()
        .await
        .expect_status(1);
    assert!(none.stderr.contains("similar: sound.sql.gz"), "{}", none.stderr);
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_standby_can_be_dumped_and_the_manifest_says_that_it_was_one(#[case] major: Major) {
    let primary = shop(major).await;
    primary
        .sql("shop", "CREATE UNLOGGED TABLE scratch AS SELECT 1 AS a")
        .await;
    let standby = primary.standby("reader").start().await;
    primary.wait_for_replay(&standby).await;
    let directory = tempfile::tempdir().expect("a directory");
    for format in ["plain", "custom"] {
        create(&standby, directory.path(), &["shop", format, "--format", format])
            .run()
            .await
            .expect_status(0);
        let manifest = manifest(directory.path(), format);
        assert!(manifest.server.in_recovery);
        assert!(manifest.snapshot.is_some_and(|snapshot| snapshot.lsn.is_some()));
        // An unlogged table has no rows on a standby, and pg_dump leaves it out.
        assert!(
            manifest.tables.iter().all(|table| table.name != "scratch"),
            "{:?}",
            manifest.tables
        );
        assert_eq!(manifest.tables.len(), 6, "{:?}", manifest.tables);
        assert!(
            manifest
                .warnings
                .iter()
                .any(|warning| warning.contains("unlogged") && warning.contains("\"public\".\"scratch\"")),
            "{:?}",
            manifest.warnings
        );
    }
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_partitioned_table_comes_and_goes_with_its_partitions(#[case] major: Major) {
    let server = shop(major).await;
    server
        .sql(
            "shop",
            "CREATE SCHEMA parts;
             CREATE TABLE parts.\"Odd |$ \"\"one\" PARTITION OF events FOR VALUES FROM (1000) TO (3000)
                 PARTITION BY RANGE (id);
             CREATE TABLE parts.deep PARTITION OF parts.\"Odd |$ \"\"one\" FOR VALUES FROM (1000) TO (2000);
             CREATE TABLE parts.\"De.ep*\" PARTITION OF parts.\"Odd |$ \"\"one\" FOR VALUES FROM (2000) TO (3000);
             INSERT INTO events SELECT i, '2026-11-21Z' FROM generate_series(1001, 2500) i",
        )
        .await;
    let directory = tempfile::tempdir().expect("a directory");
    let rows = |file: &str| manifest(directory.path(), file).total_rows().0;
    for format in ["plain", "custom", "directory"] {
        let only = format!("only_{format}");
        create(
            &server,
            directory.path(),
            &["shop", &only, "--format", format, "--table", "events"],
        )
        .run()
        .await
        .expect_status(0);
        assert_eq!(rows(&only), 2000, "{format}");
        let without = format!("without_{format}");
        let arguments = [
            "shop",
            &without,
            "--format",
            format,
            "--exclude-table-data",
            "events",
        ];
        create(&server, directory.path(), &arguments)
            .run()
            .await
            .expect_status(0);
        let manifest = manifest(directory.path(), &without);
        assert!(
            manifest
                .tables
                .iter()
                .all(|table| table.schema != "parts" && !table.name.starts_with("events")),
            "{:?}",
            manifest.tables
        );
        assert_eq!(manifest.total_rows().0, 8002, "{format}");
        assert_eq!(
            manifest.options.exclude_table_data,
            ["events"],
            "as it was asked for"
        );
    }
    create(
        &server,
        directory.path(),
        &["shop", "set", "--set", "schema,data:events"],
    )
    .run()
    .await
    .expect_status(0);
    let data = names(directory.path())
        .into_iter()
        .find(|name| name.starts_with("set_data") && !name.ends_with("manifest.json"))
        .expect("the data member");
    assert_eq!(rows(&data), 2000);
    let bytes = content(&directory.path().join("only_plain"), Codec::GZIP, false);
    restore(&server, "again", Format::Plain, &with_schema("parts", bytes)).await;
    assert_eq!(
        server
            .query_text("again", "SELECT count(*)::text FROM events")
            .await,
        "2000"
    );
}

/// A dump of some tables does not have their schema.
fn with_schema(schema: &str, bytes: Vec<u8>) -> Vec<u8> {
    let mut text = format!("CREATE SCHEMA {schema};\n").into_bytes();
    text.extend(bytes);
    text
}

#[tokio::test]
async fn leaving_out_what_is_not_there_is_an_error_and_an_empty_selection_a_warning() {
    let server = shop(Major::V15).await;
    let directory = tempfile::tempdir().expect("a directory");
    for option in ["--exclude-table-data", "--exclude-table", "--exclude-schema"] {
        let refused = create(&server, directory.path(), &["shop", "missing", option, "nosuch"])
            .run()
            .await
            .expect_status(1);
        assert!(
            refused.stderr.contains(&format!("matches {option} 'nosuch'"))
                && refused.stderr.contains("spelling"),
            "{}",
            refused.stderr
        );
        assert_eq!(names(directory.path()), Vec::<String>::new());
    }
    server.sql("shop", "CREATE VIEW viewed AS SELECT 1 AS a").await;
    let view = create(&server, directory.path(), &["shop", "view", "--table", "viewed"])
        .run()
        .await
        .expect_status(0);
    assert!(view.stderr.contains("the rows of no table"), "{}", view.stderr);
}

#[tokio::test]
async fn a_dump_is_not_written_to_a_file_called_dash() {
    let server = Postgres::start(Major::V15).await;
    let directory = tempfile::tempdir().expect("a directory");
    let refused = create(&server, directory.path(), &["postgres", "-"])
        .run()
        .await
        .expect_status(2);
    assert!(refused.stderr.contains("dump copy"), "{}", refused.stderr);
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn all_databases_keep_their_properties_and_name_what_is_left_out(#[case] major: Major) {
    let server = shop(major).await;
    for database in ["closed", "pgmahout_old_0123456789ab"] {
        server.createdb(database).await;
    }
    server
        .sql(
            "postgres",
            "CREATE ROLE clerk; CREATE ROLE boss;
             ALTER DATABASE closed ALLOW_CONNECTIONS false;
             ALTER DATABASE shop OWNER TO boss;
             ALTER DATABASE shop CONNECTION LIMIT 7;
             COMMENT ON DATABASE shop IS 'the shop''s';
             ALTER DATABASE shop SET work_mem = '7MB';
             ALTER DATABASE shop SET search_path = \"$user\", \"Odd Schema\", public;
             ALTER DATABASE shop SET app.motto = 'it''s a \\ day';
             ALTER ROLE clerk IN DATABASE shop SET statement_timeout = '3s';
             REVOKE ALL ON DATABASE shop FROM PUBLIC;
             GRANT CONNECT ON DATABASE shop TO clerk WITH GRANT OPTION",
        )
        .await;
    let directory = tempfile::tempdir().expect("a directory");
    let finished = create(
        &server,
        directory.path(),
        &[
            "--all-databases",
            "--owner",
            "--acl",
            "--format",
            "plain",
            "--json",
        ],
    )
    .env("PGDATABASE", "postgres");
    let finished = finished.run().await.expect_status(0);
    assert!(
        finished
            .stderr
            .contains("\"closed\" is not dumped: it does not allow connections")
            && finished
                .stderr
                .contains("\"pgmahout_old_0123456789ab\" is not dumped"),
        "{}",
        finished.stderr
    );
    let value = json(&finished);
    let skipped: Vec<&str> = value["bundle"]["manifest"]["skipped"]
        .as_array()
        .expect("they are named")
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    assert_eq!(skipped, ["closed", "pgmahout_old_0123456789ab"]);
    let properties = value["dumps"]
        .as_array()
        .expect("dumps")
        .iter()
        .find(|dump| dump["manifest"]["database"]["name"] == "shop")
        .expect("shop")["manifest"]["companions"][0]
        .clone();
    assert_eq!(properties["role"], "properties", "{value}");
    let file = directory
        .path()
        .join(properties["file"].as_str().expect("a file"));
    let text = content(&file, Codec::GZIP, false);
    let question = "SELECT concat_ws('; ', pg_get_userbyid(datdba), datconnlimit, \
                    shobj_description(d.oid, 'pg_database'), datacl::text, \
                    (SELECT string_agg(setrole::regrole || ' ' || setconfig::text, '; ' ORDER BY setrole) \
                     FROM pg_db_role_setting WHERE setdatabase = d.oid)) \
                    FROM pg_database d WHERE datname = 'shop'";
    let before = server.query_text("postgres", question).await;
    assert!(
        before.contains("statement_timeout=3s") && before.contains("it's"),
        "{before}"
    );
    server.sql("postgres", "DROP DATABASE shop").await;
    server.createdb("shop").await;
    assert_ne!(server.query_text("postgres", question).await, before);
    restore_into(&server, "postgres", &text);
    assert_eq!(server.query_text("postgres", question).await, before);
}

/// Lets psql run statements.
fn restore_into(server: &Postgres, database: &str, text: &[u8]) {
    let mut psql = server.client_command("psql", database);
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"]);
    let mut child = psql.stdin(Stdio::piped()).spawn().expect("psql starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(text).expect("psql reads");
    drop(input);
    assert!(
        child.wait().expect("it ends").success(),
        "{}",
        String::from_utf8_lossy(text)
    );
}

#[tokio::test]
async fn what_a_killed_dump_left_is_swept_by_the_next_one() {
    let server = Postgres::start(Major::V15).await;
    let directory = tempfile::tempdir().expect("a directory");
    let left = directory.path().join(".bb.sql.gz.pgmahout-999999-0-1f.tmp");
    let file = std::fs::File::create(&left).expect("created");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
    file.set_modified(long_ago).expect("set");
    let held = directory.path().join(".cc.sql.gz.pgmahout-999998-0-1f.tmp");
    let holder = std::fs::File::create(&held).expect("created");
    holder.set_modified(long_ago).expect("set");
    holder.lock().expect("locked");
    create(&server, directory.path(), &["postgres", "dump"])
        .run()
        .await
        .expect_status(0);
    assert!(!left.exists(), "{:?}", names(directory.path()));
    assert!(held.exists(), "a living one was swept");
}
