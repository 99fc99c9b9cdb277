//! A cluster of very many files: what the manifest of a backup costs.

use std::time::Duration;

use pgmahout_testkit::account::Account;
use pgmahout_testkit::measure::Measured;

use crate::Options;
use crate::data::{Cluster, DATABASE};
use crate::tools::{Tool, Tools};

const MIB: f64 = 1024.0 * 1024.0;
const TIME: Duration = Duration::from_secs(30);
const MEMORY: u64 = 512 << 20;

/// Backups of the cluster with so many small files more: the first, two that are compared with the one before, and
/// the plan of a restore. Gives back whether each took as little as it should.
pub(crate) fn files(options: &Options, cluster: &Cluster, tools: &Tools) -> bool {
    let question = format!("SELECT oid FROM pg_database WHERE datname = '{DATABASE}'");
    let database = cluster.server.psql("postgres", &question);
    let directory = cluster.data_dir().join("base").join(database.trim());
    let name = |number: u32| directory.join(format!("bench.{number}"));
    for number in 0..options.files {
        let file = name(number);
        std::fs::write(&file, format!("file {number}\n"))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Account::for_servers().own(&file);
    }
    cluster.archive_with(tools, Tool::Zstd);
    tools.fresh_repository(Tool::Ours, &cluster.server);
    cluster.archive_with(tools, Tool::Ours);
    println!("\n{} files more", options.files);
    let mut fine = true;
    let mut line = |what: &str, measured: &Measured| {
        let ok = measured.elapsed < TIME && measured.peak_with_children < MEMORY;
        fine &= ok;
        println!(
            "  {what:<24} {:6.2} s of at most {} s {:6.0} MiB of at most {:.0} MiB{}",
            measured.elapsed.as_secs_f64(),
            TIME.as_secs(),
            measured.peak_with_children as f64 / MIB,
            MEMORY as f64 / MIB,
            if ok { "" } else { "  MISSED" }
        );
    };
    // The data itself is stored with the first; from then on only the files count.
    for what in ["first backup", "second backup", "third backup"] {
        line(what, &tools.backup(Tool::Ours, &cluster.server));
    }
    line("plan of a restore", &tools.plan(&cluster.server));
    for number in 0..options.files {
        let _ = std::fs::remove_file(name(number));
    }
    fine
}
