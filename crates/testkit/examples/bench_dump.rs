//! Dumps of one database by pgmahout, by `pg_dump | gzip -6` and by `pg_dump | zstd -T0`, alternating:
//! `cargo xtask bench dump`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "prints its figures")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgmahout_testkit::measure::{self, Measured};
use pgmahout_testkit::postgres::{Major, Postgres};

const MIB: f64 = 1024.0 * 1024.0;
const DATABASE: &str = "shop";

/// How one of the compared commands is started, and what came of its rounds.
struct Contender {
    name: &'static str,
    file: &'static str,
    command: fn(&Setting, &Path) -> Command,
    rounds: Vec<Measured>,
    size: u64,
}

struct Setting {
    server: Postgres,
    binary: PathBuf,
    home: tempfile::TempDir,
}

impl Setting {
    fn pipe(&self, compressor: &str, file: &Path) -> Command {
        let client = self.server.client_command("pg_dump", DATABASE);
        let pg_dump = client.get_program().to_owned();
        let mut bash = Command::new("bash");
        let script = format!("set -o pipefail; \"$0\" --no-owner --no-acl | {compressor} >\"$1\"");
        bash.args(["-c", &script]).arg(pg_dump).arg(file);
        bash.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
        bash
    }

    fn pgmahout(&self, codec: &str, file: &Path) -> Command {
        let client = self.server.client_command("pg_dump", DATABASE);
        let mut command = Command::new(&self.binary);
        command
            .args(["dump", "create", DATABASE])
            .arg(file)
            .args(["--compress", codec])
            .env("HOME", self.home.path())
            .env("PGMAHOUT_STATE_DIR", self.home.path().join("state"))
            .envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null());
        command
    }
}

fn main() {
    let mut scale = 1.0_f64;
    let mut rounds = 3_usize;
    let mut binary = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_else(|| usage(&word));
        match word.as_str() {
            "--scale" => scale = value.parse().unwrap_or_else(|_| usage(&word)),
            "--rounds" => rounds = value.parse().unwrap_or_else(|_| usage(&word)),
            "--binary" => binary = Some(PathBuf::from(value)),
            _ => usage(&word),
        }
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let server = runtime.block_on(
        Postgres::builder(Major::V15)
            .setting("shared_buffers", "512MB")
            .setting("max_wal_size", "8GB")
            .setting("wal_level", "minimal")
            .setting("max_wal_senders", "0")
            .setting("checkpoint_timeout", "1h")
            .start(),
    );
    runtime.block_on(server.createdb(DATABASE));
    println!("loading about {scale} GiB");
    server.psql(DATABASE, &data(scale));

    let setting = Setting {
        server,
        binary: binary.unwrap_or_else(|| usage("--binary")),
        home: tempfile::tempdir().expect("the temporary directory is writable"),
    };
    let bytes = plain_size(&setting);
    println!("{:.0} MiB as plain SQL, {} cores\n", bytes as f64 / MIB, cores());
    let mut contenders = contenders();
    for round in 0..rounds {
        // Each round begins with another one, so that none always profits from the one before.
        for index in 0..contenders.len() {
            let contender = &mut contenders[(round + index) % 4];
            let directory = tempfile::tempdir().expect("the temporary directory is writable");
            let file = directory.path().join(contender.file);
            let measured = measure::run(&mut (contender.command)(&setting, &file));
            assert!(
                measured.status.success(),
                "{}: {}",
                contender.name,
                measured.stderr
            );
            contender.size = std::fs::metadata(&file).expect("it wrote its file").len();
            check(&file);
            println!(
                "round {}: {:<26} {:6.2} s",
                round + 1,
                contender.name,
                measured.elapsed.as_secs_f64()
            );
            contender.rounds.push(measured);
        }
    }
    print(&contenders, bytes);
}

fn contenders() -> [Contender; 4] {
    let contender = |name, file, command| Contender {
        name,
        file,
        command,
        rounds: Vec::new(),
        size: 0,
    };
    [
        contender("pg_dump | gzip -6", "peer.sql.gz", |setting, file| {
            setting.pipe("gzip -6", file)
        }),
        contender("pgmahout --compress gzip:6", "ours.sql.gz", |setting, file| {
            setting.pgmahout("gzip:6", file)
        }),
        contender("pg_dump | zstd -T0", "peer.sql.zst", |setting, file| {
            setting.pipe("zstd -q -T0", file)
        }),
        contender("pgmahout --compress zstd", "ours.sql.zst", |setting, file| {
            setting.pgmahout("zstd", file)
        }),
    ]
}

fn print(contenders: &[Contender; 4], bytes: u64) {
    println!(
        "\n{:<28}{:>10}{:>10}{:>12}{:>12}{:>16}",
        "", "median s", "MiB/s", "file MiB", "peak MiB", "with children"
    );
    for contender in contenders {
        let time = middle(contender);
        let most = |memory: fn(&Measured) -> u64| {
            contender.rounds.iter().map(memory).max().unwrap_or_default() as f64 / MIB
        };
        println!(
            "{:<28}{:>10.2}{:>10.0}{:>12.1}{:>12.0}{:>16.0}",
            contender.name,
            time.as_secs_f64(),
            bytes as f64 / MIB / time.as_secs_f64(),
            contender.size as f64 / MIB,
            most(|measured| measured.peak),
            most(|measured| measured.peak_with_children)
        );
    }
    let [gzip, our_gzip, zstd, our_zstd] = contenders;
    let ratio = |peer: &Contender, ours: &Contender| {
        let ratio = middle(peer).as_secs_f64() / middle(ours).as_secs_f64();
        println!(
            "{:<28} {ratio:.2} times the throughput of {}",
            ours.name, peer.name
        );
    };
    println!();
    ratio(gzip, our_gzip);
    ratio(gzip, our_zstd);
    ratio(zstd, our_zstd);
}

fn middle(contender: &Contender) -> Duration {
    let times: Vec<Duration> = contender.rounds.iter().map(|round| round.elapsed).collect();
    measure::median(&times)
}

/// The size of the plain dump; also brings the database into memory before anything is measured.
fn plain_size(setting: &Setting) -> u64 {
    let file = setting.home.path().join("plain.sql");
    let measured = measure::run(&mut setting.pipe("cat", &file));
    assert!(measured.status.success(), "pg_dump: {}", measured.stderr);
    let size = std::fs::metadata(&file).expect("it wrote its file").len();
    std::fs::remove_file(&file).expect("the file is ours");
    size
}

/// The ordinary tools can read what was written.
fn check(file: &Path) {
    let tool = if file.extension().is_some_and(|extension| extension == "gz") {
        "gzip"
    } else {
        "zstd"
    };
    let status = Command::new(tool)
        .args(["-q", "-t"])
        .arg(file)
        .status()
        .expect("the tool starts");
    assert!(status.success(), "{tool} cannot read {}", file.display());
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// A shop's data: words of uneven frequency, JSON, numbers and times; about a GiB of SQL per `scale`.
fn data(scale: f64) -> String {
    let rows = |per_gib: f64| (per_gib * scale) as u64;
    format!(
        "SELECT setseed(0.5);
         CREATE TABLE words AS SELECT array_agg(substr(md5(i::text), 1, 3 + i % 7)) AS list FROM generate_series(1, 400) i;
         CREATE TABLE notes (id bigint PRIMARY KEY, written timestamptz NOT NULL, body text NOT NULL);
         INSERT INTO notes SELECT i, timestamptz '2026-01-01' + i * interval '7 s', (
             SELECT string_agg(list[1 + floor(400 * random() ^ 3)::int + 0 * g], ' ') FROM generate_series(1, 100 + i % 100) g)
         FROM generate_series(1, {notes}) i, words;
         CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL, kind text NOT NULL, payload jsonb NOT NULL);
         INSERT INTO events SELECT i, timestamptz '2026-01-01' + i * interval '1.3 s',
             (ARRAY['viewed', 'ordered', 'paid', 'shipped', 'returned'])[1 + floor(5 * random() ^ 2)::int],
             jsonb_build_object('session', md5(random()::text), 'customer', floor(100000 * random()), 'path',
                 '/shop/' || list[1 + floor(400 * random() ^ 3)::int] || '/' || floor(5000 * random()), 'amount',
                 round((1000 * random() ^ 4)::numeric, 2), 'tags', jsonb_build_array(list[1 + i % 400], list[1 + i % 13]))
         FROM generate_series(1, {events}) i, words;
         CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint NOT NULL, placed timestamptz NOT NULL,
             total numeric(12, 2) NOT NULL, weight float8 NOT NULL, paid boolean NOT NULL);
         INSERT INTO orders SELECT i, floor(100000 * random()), timestamptz '2026-01-01' + i * interval '3.7 s',
             round((500 * random())::numeric, 2), random() * 10, random() < 0.9
         FROM generate_series(1, {orders}) i;
         CREATE INDEX ON events (at); CREATE INDEX ON orders (customer);
         VACUUM ANALYZE; CHECKPOINT;",
        notes = rows(315_000.0),
        events = rows(2_900_000.0),
        orders = rows(3_150_000.0)
    )
}

fn usage(word: &str) -> ! {
    eprintln!("error: {word}: usage: --binary PATH [--scale GIB] [--rounds N]");
    std::process::exit(2)
}
