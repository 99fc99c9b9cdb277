//! Streaming standbys.

use std::time::Duration;

use super::{Postgres, append, builder, control, quoted, template};
use crate::account::Account;
use crate::ports::Port;
use crate::sandbox::Sandbox;

/// Describes a standby of a running server; [`start`](Self::start) copies and starts it.
#[derive(Debug)]
pub struct StandbyBuilder<'a> {
    primary: &'a Postgres,
    name: String,
    slot: bool,
    settings: Vec<(String, String)>,
}

impl Postgres {
    /// A standby that streams from this server under the application name `name` and, unless told
    /// otherwise, through a physical slot of that name.
    pub fn standby(&self, name: &str) -> StandbyBuilder<'_> {
        StandbyBuilder {
            primary: self,
            name: name.to_owned(),
            slot: true,
            settings: Vec::new(),
        }
    }

    /// Promotes a standby and waits until it takes writes.
    pub async fn promote(&self) {
        let done = self.query_text("postgres", "SELECT pg_promote(true, 60)").await;
        assert_eq!(done, "t", "the standby was not promoted:\n{}", self.log_tail());
    }

    /// Waits until `standby` has replayed everything this server has written until now.
    pub async fn wait_for_replay(&self, standby: &Postgres) {
        let lsn = self.query_text("postgres", "SELECT pg_current_wal_lsn()").await;
        let question = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn");
        crate::poll::until(Duration::from_mins(1), "the standby's replay", async || {
            standby.query_text("postgres", &question).await == "t"
        })
        .await;
    }
}

impl StandbyBuilder<'_> {
    /// Adds a setting of the standby alone; the last one of a name wins.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Streams without a replication slot.
    pub fn without_slot(mut self) -> Self {
        self.slot = false;
        self
    }

    /// Copies the primary (`pg_basebackup -R`), starts the standby and waits until it streams.
    pub async fn start(self) -> Postgres {
        let standby = self.prepare();
        standby.start_again().await;
        let question = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = '{}'",
            self.name
        );
        crate::poll::until(Duration::from_mins(1), "the standby's streaming", async || {
            self.primary.query_text("postgres", &question).await != "0"
        })
        .await;
        standby
    }

    /// Copies the primary without starting the standby; [`Postgres::start_again`] starts it.
    pub fn prepare(&self) -> Postgres {
        let primary = self.primary;
        let sandbox = Sandbox::new();
        let data_dir = sandbox.path().join("data");
        let mut copy = Account::for_servers().command(primary.program("pg_basebackup"));
        copy.arg("--dbname").arg(format!(
            "host={} port={} user=postgres application_name={}",
            primary.socket_dir().display(),
            primary.port(),
            self.name
        ));
        copy.arg("--pgdata").arg(&data_dir);
        copy.args([
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        ]);
        if self.slot {
            copy.args(["--create-slot", "--slot", &self.name]);
        }
        if let Some(password) = primary.password() {
            copy.env("PGPASSWORD", password);
        }
        template::run(copy, "copying the primary");

        let port = Port::reserve();
        let configuration = data_dir.join("postgresql.conf");
        let own = builder::own_settings(sandbox.path(), port.number());
        let place = own.into_iter().filter(|(name, _)| {
            matches!(
                name.as_str(),
                "listen_addresses" | "port" | "unix_socket_directories"
            )
        });
        for (name, value) in place.chain(self.settings.iter().cloned()) {
            append(&configuration, &format!("{name} = {}", quoted(&value)));
        }
        Postgres {
            major: primary.major,
            bin_dir: primary.bin_dir.clone(),
            sandbox,
            data_dir,
            port,
            password: primary.password.clone(),
            child: std::sync::Mutex::new(None),
            leftovers: std::sync::Mutex::new(control::Leftovers::default()),
        }
    }
}

impl Postgres {
    /// A server without a data directory yet: a restore makes it at [`Postgres::data_dir`];
    /// [`Postgres::settle`] then gives it its own port, and [`Postgres::start_again`] starts it.
    pub fn vacant(major: super::Major) -> Self {
        let sandbox = Sandbox::new();
        Self {
            major,
            bin_dir: major.bin_dir(),
            data_dir: sandbox.path().join("data"),
            sandbox,
            port: Port::reserve(),
            password: None,
            child: std::sync::Mutex::new(None),
            leftovers: std::sync::Mutex::new(control::Leftovers::default()),
        }
    }

    /// Appends this server's own address, and further settings, to the configuration that lies in its data
    /// directory.
    pub fn settle(&self, settings: &[(&str, &str)]) {
        let configuration = self.data_dir.join("postgresql.conf");
        let own = builder::own_settings(self.sandbox.path(), self.port.number());
        let place = own.into_iter().filter(|(name, _)| {
            matches!(
                name.as_str(),
                "listen_addresses" | "port" | "unix_socket_directories"
            )
        });
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        for (name, value) in place.chain(settings) {
            append(&configuration, &format!("{name} = {}", quoted(&value)));
        }
    }
}
