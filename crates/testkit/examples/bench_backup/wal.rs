//! WAL segments: pushed as the server's archiver does, fetched as its startup process does.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use pgmahout_testkit::account::Account;
use pgmahout_testkit::measure::Watch;

use crate::backups::turn;
use crate::cache::Dropping;
use crate::data::Cluster;
use crate::table::Row;
use crate::tools::{Tool, Tools};
use crate::{CACHES, Options};

/// All segments pushed, then all fetched, with nothing between the calls.
pub(crate) fn wal(options: &Options, cluster: &Cluster, tools: &Tools, dropping: Dropping) -> Vec<Row> {
    let segments = cluster.stop_with_segments(options.segments);
    println!("{} segments are ready", segments.len());
    let mut rows = Vec::new();
    for cache in CACHES {
        let mut push = Row::new("wal push", cache, 5.0);
        let mut fetch = Row::new("wal fetch", cache, 5.0);
        for round in 0..options.rounds {
            for tool in turn(&tools.archiving(), round) {
                tools.fresh_repository(tool, &cluster.server);
                if options.wants("push") || options.wants("fetch") {
                    dropping.prepare(cache, &[&cluster.data_dir().join("pg_wal")]);
                    measure(&mut push, tools, tool, || {
                        push_all(cluster, tools, tool, &segments);
                    });
                }
                if options.wants("fetch") {
                    let host = Host::new(cluster, tools);
                    dropping.prepare(cache, &[&tools.path(tool, "repository")]);
                    measure(&mut fetch, tools, tool, || host.fetch_all(tools, tool, &segments));
                    host.compare(cluster, &segments);
                }
            }
        }
        rows.push(push);
        if options.wants("fetch") {
            rows.push(fetch);
        }
    }
    rows
}

fn measure(row: &mut Row, tools: &Tools, tool: Tool, work: impl FnOnce()) {
    let watch = Watch::start(tools.program(tool));
    let begin = Instant::now();
    work();
    let elapsed = begin.elapsed();
    // Both go on in the background for a moment; the next is not to pay for it.
    let peak = watch.stop_when_idle();
    row.add(tool, elapsed, peak);
}

/// One call after the other for what is marked as ready, which is then marked as done.
fn push_all(cluster: &Cluster, tools: &Tools, tool: Tool, segments: &[String]) {
    let line = format!("{} \"$0\"", tools.push_command(tool));
    let status = cluster.data_dir().join("pg_wal/archive_status");
    let mark = |segment: &String, from: &str, to: &str| {
        let (from, to) = (format!("{segment}.{from}"), format!("{segment}.{to}"));
        std::fs::rename(status.join(from), status.join(to)).expect("it is ours");
    };
    for segment in segments {
        call(cluster.data_dir(), &line, &[&format!("pg_wal/{segment}")]);
        mark(segment, "ready", "done");
    }
    for segment in segments {
        mark(segment, "done", "ready");
    }
}

/// A data directory in which a point-in-time recovery runs.
struct Host {
    directory: PathBuf,
}

impl Host {
    fn new(cluster: &Cluster, tools: &Tools) -> Self {
        let directory = tools.place.directory("recovering");
        for name in ["global", "pg_wal"] {
            tools.place.directory(&format!("recovering/{name}"));
        }
        for name in ["PG_VERSION", "global/pg_control"] {
            let content = std::fs::read(cluster.data_dir().join(name)).expect("a cluster has it");
            tools.place.file(directory.join(name), content);
        }
        tools.place.file(directory.join("recovery.signal"), "");
        Self { directory }
    }

    fn fetch_all(&self, tools: &Tools, tool: Tool, segments: &[String]) {
        let line = format!("{} \"$0\" \"$1\"", tools.fetch_command(tool, &self.directory));
        let arrived = self.directory.join("pg_wal/RECOVERYXLOG");
        for segment in segments {
            call(&self.directory, &line, &[segment, "pg_wal/RECOVERYXLOG"]);
            std::fs::rename(&arrived, self.directory.join("pg_wal").join(segment)).expect("it has arrived");
        }
    }

    /// What was fetched is what was pushed.
    fn compare(&self, cluster: &Cluster, segments: &[String]) {
        for segment in segments {
            let read = |directory: &Path| {
                std::fs::read(directory.join("pg_wal").join(segment)).expect("it is there")
            };
            assert!(
                read(&self.directory) == read(cluster.data_dir()),
                "{segment} differs"
            );
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// As the server calls it: by a shell, in the data directory, under its own account.
fn call(directory: &Path, line: &str, arguments: &[&str]) {
    let output = Account::for_servers()
        .command("/bin/sh")
        .arg("-c")
        .arg(line)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .expect("/bin/sh starts");
    assert!(
        output.status.success(),
        "{line} {arguments:?} ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
