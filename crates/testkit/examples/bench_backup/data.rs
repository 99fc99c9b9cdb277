//! The cluster whose backups are measured.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_testkit::sandbox::Sandbox;

use crate::tools::{Tool, Tools, bytes_below};

pub(crate) const DATABASE: &str = "shop";

/// A server with data, which archives as a script says that can be changed at any time.
pub(crate) struct Cluster {
    pub(crate) server: Postgres,
    runtime: tokio::runtime::Runtime,
    script: PathBuf,
    changes: u32,
}

impl Cluster {
    /// pgBackRest wants to find its name in archive_command.
    pub(crate) fn load(place: &Sandbox, scale: f64) -> Self {
        let script = place.file("pgmahout-or-pgbackrest.sh", "exit 0\n");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
        let server = runtime.block_on(
            Postgres::builder(Major::V15)
                .data_checksums(true)
                .own_system_identifier()
                .setting("shared_buffers", "512MB")
                .setting("maintenance_work_mem", "512MB")
                .setting("max_wal_size", "1GB")
                .setting("checkpoint_timeout", "1h")
                .setting("autovacuum", "off")
                .archive_command(&format!("/bin/sh {} %p", script.display()))
                .start(),
        );
        runtime.block_on(server.createdb(DATABASE));
        let started = Instant::now();
        server.psql(DATABASE, include_str!("data.sql"));
        let set = format!("\\set scale {scale}\nSELECT setseed(0.5) \\g /dev/null\n");
        std::thread::scope(|scope| {
            for statements in [include_str!("load_a.sql"), include_str!("load_b.sql")] {
                let (server, script) = (&server, format!("{set}{statements}"));
                scope.spawn(move || server.psql(DATABASE, &script));
            }
        });
        server.psql(DATABASE, "CHECKPOINT");
        let all = bytes_below(server.data_dir());
        let wal = bytes_below(&server.data_dir().join("pg_wal"));
        println!(
            "loaded in {:.0} s: {:.2} GiB without pg_wal",
            started.elapsed().as_secs_f64(),
            (all - wal) as f64 / f64::from(1 << 30)
        );
        Self {
            server,
            runtime,
            script,
            changes: 0,
        }
    }

    /// Archives with this program from now on. Nothing is left to archive of what came before.
    pub(crate) fn archive_with(&self, tools: &Tools, tool: Tool) {
        self.set_script("exit 0\n");
        poll::blocking_until(
            Duration::from_mins(2),
            "the end of what is to be archived",
            || self.ready().is_empty(),
        );
        if tool != Tool::Zstd {
            self.set_script(&format!("exec env {} \"$1\"\n", tools.push_command(tool)));
        }
    }

    fn set_script(&self, text: &str) {
        // Replaced at once: the server may be about to run it.
        let next = self.script.with_extension("next");
        std::fs::write(&next, text).expect("it is ours");
        std::fs::rename(&next, &self.script).expect("it is ours");
    }

    /// The segments that wait to be archived, in the order in which they are.
    pub(crate) fn ready(&self) -> Vec<String> {
        let directory = self.server.data_dir().join("pg_wal/archive_status");
        let entries = std::fs::read_dir(directory).expect("a server has it");
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".ready")?.to_owned()))
            .collect();
        names.sort_unstable();
        names
    }

    /// Changes a hundredth of all pages, chosen at random.
    pub(crate) fn change(&mut self) {
        self.changes += 1;
        let set = format!("\\set round {}\n", self.changes);
        self.server
            .psql(DATABASE, &format!("{set}{}", include_str!("change.sql")));
    }

    /// Stops the server while so many full segments wait to be archived; gives back their names.
    pub(crate) fn stop_with_segments(&self, count: usize) -> Vec<String> {
        self.set_script("exit 0\n");
        self.server.psql(DATABASE, "SELECT pg_switch_wal()");
        poll::blocking_until(
            Duration::from_mins(2),
            "the end of what is to be archived",
            || self.ready().is_empty(),
        );
        self.set_script("exit 1\n");
        self.server.psql(DATABASE, "CREATE TABLE journal (LIKE orders)");
        while self.ready().len() < count {
            let rows = "INSERT INTO journal SELECT * FROM orders WHERE id % 20 = 1 LIMIT 100000";
            let updates = "UPDATE events SET value = value * 1.1 WHERE id % 50 = 7 AND id < 1000000";
            self.server.psql(
                DATABASE,
                &format!("{rows}; {updates}; TRUNCATE journal; CHECKPOINT"),
            );
        }
        self.runtime.block_on(self.server.stop(StopMode::Fast));
        let mut names = self.ready();
        names.truncate(count);
        names
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.server.data_dir()
    }
}
