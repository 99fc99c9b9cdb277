//! Physical backups by pgmahout and by pgBackRest, alternating: `cargo xtask bench backup`.
//!
//! Both run under the servers' account on the same machine, with the same codec and level, on as many cores as
//! there are, into a local repository each. What is not the work itself (a new repository, a change of pages,
//! a copy) is not measured, and all that was written is on the disk before a run begins.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "prints its figures")]

mod backups;
mod cache;
mod data;
mod files;
mod table;
mod tools;
mod wal;

use std::path::PathBuf;
use std::process::ExitCode;

use cache::Dropping;
use data::Cluster;
use table::Cache;
use tools::{Tools, cores};

const CACHES: [Cache; 2] = [Cache::Warm, Cache::Cold];
const ROWS: [&str; 7] = [
    "full",
    "incremental",
    "restore",
    "delta",
    "push",
    "fetch",
    "files",
];

/// What was asked for.
struct Options {
    scale: f64,
    rounds: usize,
    segments: usize,
    files: u32,
    only: Vec<String>,
    binary: Option<PathBuf>,
    peer: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Options {
    fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == row)
    }

    fn parse() -> Self {
        let mut options = Self {
            scale: 3.0,
            rounds: 3,
            segments: 200,
            files: 1_000_000,
            only: Vec::new(),
            binary: None,
            peer: None,
            log: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().unwrap_or_else(|| usage(&word));
            match word.as_str() {
                "--scale" => options.scale = value.parse().unwrap_or_else(|_| usage(&word)),
                "--rounds" => options.rounds = value.parse().unwrap_or_else(|_| usage(&word)),
                "--segments" => options.segments = value.parse().unwrap_or_else(|_| usage(&word)),
                "--files" => options.files = value.parse().unwrap_or_else(|_| usage(&word)),
                "--only" => options.only = value.split(',').map(str::to_owned).collect(),
                "--binary" => options.binary = Some(PathBuf::from(value)),
                "--log" => options.log = Some(PathBuf::from(value)),
                "--peer" => options.peer = Some(PathBuf::from(value)),
                _ => usage(&word),
            }
        }
        if options.rounds == 0 || options.only.iter().any(|row| !ROWS.contains(&row.as_str())) {
            usage("--only");
        }
        options
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let binary = options.binary.clone().unwrap_or_else(|| usage("--binary"));
    let tools = Tools::new(&binary, options.peer.as_deref(), options.log.clone());
    let dropping = Dropping::here();
    println!("{} cores, {} rounds", cores(), options.rounds);
    println!("{}{}", tools.describe(), dropping.describe());
    let mut cluster = Cluster::load(&tools.place, options.scale);
    let mut rows = Vec::new();
    if options.wants("full") {
        rows.extend(backups::full(&options, &cluster, &tools, dropping));
    } else if ["incremental", "restore", "delta"]
        .iter()
        .any(|row| options.wants(row))
    {
        backups::first(&cluster, &tools);
    }
    if options.wants("incremental") {
        rows.extend(backups::incremental(&options, &mut cluster, &tools, dropping));
    }
    if options.wants("restore") {
        rows.extend(backups::restore(&options, &cluster, &tools, dropping));
    }
    if options.wants("delta") {
        rows.extend(backups::delta(&options, &cluster, &tools, dropping));
    }
    tools.remove_restored();
    let mut fine = true;
    if options.wants("files") {
        fine &= files::files(&options, &cluster, &tools);
    }
    if options.wants("push") || options.wants("fetch") {
        rows.extend(wal::wal(&options, &cluster, &tools, dropping));
    }
    fine &= table::print(&rows);
    ExitCode::from(u8::from(!fine))
}

fn usage(word: &str) -> ! {
    eprintln!(
        "error: {word}: usage: --binary PATH [--peer PGBACKREST] [--scale GIB] [--rounds N] [--segments N] [--files N] \
         [--log FILE] [--only {}]",
        ROWS.join(",")
    );
    std::process::exit(2)
}
