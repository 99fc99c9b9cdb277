//! Full and incremental backups, restores, restores over a damaged directory.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgmahout_testkit::account::Account;

use crate::cache::Dropping;
use crate::data::Cluster;
use crate::table::Row;
use crate::tools::{Tool, Tools, bytes_below};
use crate::{CACHES, Options};

const PAGE: u64 = 8192;

/// Full backups, each into an empty repository.
pub(crate) fn full(options: &Options, cluster: &Cluster, tools: &Tools, dropping: Dropping) -> Vec<Row> {
    let mut participants = tools.both();
    participants.push(Tool::Zstd);
    let mut rows = Vec::new();
    for cache in CACHES {
        let mut row = Row::new("full", cache, 2.5).against_zstd(1.5);
        for round in 0..options.rounds {
            for tool in turn(&participants, round) {
                cluster.archive_with(tools, Tool::Zstd);
                tools.fresh_repository(tool, &cluster.server);
                cluster.archive_with(tools, tool);
                dropping.prepare(cache, &[cluster.data_dir()]);
                let measured = tools.backup(tool, &cluster.server);
                row.add(tool, measured.elapsed, measured.peak_with_children);
            }
        }
        rows.push(row);
    }
    for tool in tools.both() {
        let stored = tools.stored(tool) as f64 / f64::from(1 << 20);
        println!("  {} stored {stored:.1} MiB", tool.name());
    }
    rows
}

/// A first backup in each repository, where there is none yet.
pub(crate) fn first(cluster: &Cluster, tools: &Tools) {
    for tool in tools.both() {
        cluster.archive_with(tools, Tool::Zstd);
        tools.fresh_repository(tool, &cluster.server);
        cluster.archive_with(tools, tool);
        tools.backup(tool, &cluster.server);
    }
}

/// Backups after nothing changed, and after a hundredth of the pages did.
pub(crate) fn incremental(
    options: &Options,
    cluster: &mut Cluster,
    tools: &Tools,
    dropping: Dropping,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for changed in [false, true] {
        for cache in CACHES {
            let name = if changed { "1 % changed" } else { "nothing changed" };
            let mut row = Row::new(name, cache, 3.0);
            let mut growth = [0, 0];
            for round in 0..options.rounds {
                if changed {
                    cluster.change();
                }
                for tool in turn(&tools.both(), round) {
                    let before = tools.stored(tool);
                    cluster.archive_with(tools, tool);
                    dropping.prepare(cache, &[cluster.data_dir(), &tools.path(tool, "repository")]);
                    let measured = tools.backup(tool, &cluster.server);
                    row.add(tool, measured.elapsed, measured.peak_with_children);
                    growth[usize::from(tool == Tool::Peer)] += tools.stored(tool) - before;
                }
            }
            if changed {
                row.set_growth(growth[0], growth[1], 0.7);
            }
            rows.push(row);
        }
    }
    rows
}

/// Restores of the newest backups into no directory.
pub(crate) fn restore(options: &Options, cluster: &Cluster, tools: &Tools, dropping: Dropping) -> Vec<Row> {
    let mut rows = Vec::new();
    for cache in CACHES {
        let mut row = Row::new("restore", cache, 2.0);
        for round in 0..options.rounds {
            for tool in turn(&tools.both(), round) {
                let into = empty(tools, tool);
                dropping.prepare(cache, &[&tools.path(tool, "repository")]);
                let measured = tools.restore(tool, &cluster.server, &into, false);
                row.add(tool, measured.elapsed, measured.peak_with_children);
            }
        }
        rows.push(row);
    }
    compare(cluster, tools);
    rows
}

/// Restores over the directory that was restored, a hundredth of whose pages were overwritten.
pub(crate) fn delta(options: &Options, cluster: &Cluster, tools: &Tools, dropping: Dropping) -> Vec<Row> {
    for tool in tools.both() {
        if !restored(tools, tool).join("PG_VERSION").exists() {
            let into = empty(tools, tool);
            tools.restore(tool, &cluster.server, &into, false);
        }
    }
    let mut rows = Vec::new();
    let mut seed = 1;
    for cache in CACHES {
        let mut row = Row::new("delta, 1 % damaged", cache, 5.0);
        for round in 0..options.rounds {
            seed += 1;
            for tool in turn(&tools.both(), round) {
                let into = restored(tools, tool);
                damage(&into.join("base"), seed);
                dropping.prepare(cache, &[&into, &tools.path(tool, "repository")]);
                let measured = tools.restore(tool, &cluster.server, &into, true);
                row.add(tool, measured.elapsed, measured.peak_with_children);
            }
        }
        rows.push(row);
    }
    compare(cluster, tools);
    rows
}

/// Each round begins with another program, so that none always profits from the one before.
pub(crate) fn turn(tools: &[Tool], round: usize) -> Vec<Tool> {
    let mut turned = tools.to_vec();
    turned.rotate_left(round % tools.len());
    turned
}

fn restored(tools: &Tools, tool: Tool) -> PathBuf {
    tools.path(tool, "restored")
}

fn empty(tools: &Tools, tool: Tool) -> PathBuf {
    let into = restored(tools, tool);
    if into.exists() {
        std::fs::remove_dir_all(&into).expect("it is ours");
    }
    std::fs::create_dir(&into).expect("it is ours");
    std::fs::set_permissions(&into, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("it is ours");
    Account::for_servers().own(&into);
    into
}

/// Both restored the same tables, and those that the server has.
fn compare(cluster: &Cluster, tools: &Tools) {
    let source = cluster.data_dir().join("base");
    for tool in tools.both() {
        let mut diff = Command::new("diff");
        diff.args(["-rq", "-x", "pg_internal.init"])
            .arg(&source)
            .arg(restored(tools, tool).join("base"));
        let output = diff.output().expect("diff is everywhere");
        let differing = String::from_utf8_lossy(&output.stdout).lines().count();
        println!(
            "  {} restored {:.1} MiB below base; {differing} files differ from the running server's",
            tool.name(),
            bytes_below(&restored(tools, tool).join("base")) as f64 / f64::from(1 << 20)
        );
        assert!(differing < 20, "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Overwrites a hundredth of the pages, chosen at random, with what is not there.
fn damage(directory: &Path, seed: u64) {
    let mut state = seed;
    let mut files = Vec::new();
    each_file(directory, &mut files);
    files.sort();
    for path in files {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("it is ours");
        let pages = file.metadata().expect("it is open").len() / PAGE;
        for page in 0..pages {
            if next(&mut state).is_multiple_of(100) {
                let bytes: Vec<u8> = (0..PAGE / 8)
                    .flat_map(|_| next(&mut state).to_le_bytes())
                    .collect();
                file.write_all_at(&bytes, page * PAGE)
                    .expect("the disk takes what is there");
            }
        }
    }
}

fn each_file(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("it is ours").flatten() {
        let kind = entry.file_type().expect("it is there");
        if kind.is_dir() {
            each_file(&entry.path(), files);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
}

/// The next of a fixed sequence of random numbers (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
