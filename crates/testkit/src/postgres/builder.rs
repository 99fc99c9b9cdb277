//! What a server is to be like, before it runs.

use std::path::{Path, PathBuf};

use super::{Major, Postgres, append, control, quoted, template};
use crate::ports::Port;
use crate::sandbox::Sandbox;

/// Describes a server; [`start`](Self::start) makes and starts it.
#[derive(Debug, Clone)]
pub struct PostgresBuilder {
    major: Major,
    initdb_arguments: Vec<String>,
    password: Option<String>,
    own_system_identifier: bool,
    settings: Vec<(String, String)>,
    preload: Vec<String>,
    extensions: Vec<String>,
    hba: Vec<String>,
    tls: Option<(String, String)>,
    client_authority: Option<String>,
    archive_to: Option<String>,
    data_parent: Option<PathBuf>,
    wal_outside: bool,
}

impl PostgresBuilder {
    pub(super) fn new(major: Major) -> Self {
        Self {
            major,
            initdb_arguments: Vec::new(),
            password: None,
            own_system_identifier: false,
            settings: Vec::new(),
            preload: Vec::new(),
            extensions: Vec::new(),
            hba: Vec::new(),
            tls: None,
            client_authority: None,
            archive_to: None,
            data_parent: None,
            wal_outside: false,
        }
    }

    /// Adds a setting to `postgresql.conf`; the last one of a name wins, also over the testkit's own.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a line to `pg_hba.conf`, before the testkit's own lines, which let everybody in from the
    /// loopback and the socket (by password where there is one).
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// Gives the superuser a password and asks for it (SCRAM) on every connection.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Adds an argument for `initdb`, such as `--wal-segsize=1`.
    pub fn initdb_arg(mut self, argument: &str) -> Self {
        self.initdb_arguments.push(argument.to_owned());
        self
    }

    /// Turns data checksums on or off (the default is the version's own: off in 15, on in 18).
    pub fn data_checksums(self, enabled: bool) -> Self {
        match (enabled, self.major) {
            (true, _) => self.initdb_arg("--data-checksums"),
            (false, Major::V18) => self.initdb_arg("--no-data-checksums"),
            (false, Major::V15) => self,
        }
    }

    /// Runs `initdb` for this server alone, so that its system identifier is its own.
    pub fn own_system_identifier(mut self) -> Self {
        self.own_system_identifier = true;
        self
    }

    /// Serves TLS with this certificate chain and key (PEM). Only versions with [`Major::has_tls`].
    pub fn tls(mut self, certificate: &str, key: &str) -> Self {
        assert!(
            self.major.has_tls(),
            "this build of PostgreSQL {} has no TLS",
            self.major
        );
        self.tls = Some((certificate.to_owned(), key.to_owned()));
        self
    }

    /// Accepts client certificates of this authority (PEM); an hba line must ask for them.
    pub fn client_authority(mut self, certificate: &str) -> Self {
        self.client_authority = Some(certificate.to_owned());
        self
    }

    /// Turns archiving on with this command.
    pub fn archive_command(self, command: &str) -> Self {
        self.setting("archive_mode", "on")
            .setting("archive_command", command)
    }

    /// Turns archiving on, into a directory of this name below [`Postgres::root_dir`].
    pub fn archive_to(mut self, name: &str) -> Self {
        self.archive_to = Some(name.to_owned());
        self
    }

    /// Puts the data directory below a directory that the servers' account can write: a small file
    /// system of its own ([`crate::tmpfs::Tmpfs`]).
    pub fn data_parent(mut self, directory: &Path) -> Self {
        self.data_parent = Some(directory.to_owned());
        self
    }

    /// Keeps the WAL in a directory of its own beside the data directory, `wal` in [`Postgres::root_dir`], to
    /// which `pg_wal` is a link (`initdb --waldir`). The cluster is made for this server alone.
    pub fn wal_outside(mut self) -> Self {
        self.wal_outside = true;
        self.own_system_identifier()
    }

    /// Loads a library at server start (`shared_preload_libraries`).
    pub fn preload(mut self, library: &str) -> Self {
        self.preload.push(library.to_owned());
        self
    }

    /// Creates an extension in `postgres` and `template1`, so that every new database has it.
    pub fn with_extension(mut self, name: &str) -> Self {
        if matches!(name, "pg_stat_statements" | "pg_prewarm") {
            self.preload.push(name.to_owned());
        }
        self.extensions.push(name.to_owned());
        self
    }

    /// Makes the cluster and starts the server; panics with its log where that fails.
    pub async fn start(self) -> Postgres {
        self.try_start()
            .await
            .unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// [`start`](Self::start) for a server that may be unable to start.
    ///
    /// # Errors
    /// Says why it did not start, with the end of its log.
    pub async fn try_start(self) -> Result<Postgres, String> {
        let extensions = self.extensions.clone();
        let server = self.prepare();
        server.spawn();
        server.wait_until_ready().await?;
        for database in ["template1", "postgres"] {
            for extension in &extensions {
                server
                    .sql(database, &format!("CREATE EXTENSION IF NOT EXISTS {extension}"))
                    .await;
            }
        }
        Ok(server)
    }

    /// Makes the cluster without starting it; [`Postgres::start_again`] starts it.
    pub fn prepare(self) -> Postgres {
        let bin_dir = self.major.bin_dir();
        let sandbox = Sandbox::new();
        let mut data_dir = sandbox.path().join("data");
        if let Some(parent) = &self.data_parent {
            // The watchdog finds the server through the link.
            let elsewhere = parent.join("data");
            std::os::unix::fs::symlink(&elsewhere, &data_dir).expect("the sandbox is writable");
            data_dir = elsewhere;
        }
        let mut arguments = self.initdb_arguments.clone();
        if self.wal_outside {
            arguments.push(format!("--waldir={}", sandbox.path().join("wal").display()));
        }
        let options = template::Options {
            bin_dir: &bin_dir,
            arguments: &arguments,
            password: self.password.as_deref(),
        };
        if self.own_system_identifier {
            options.initialize(&data_dir);
        } else {
            options.copy_to(&data_dir);
        }
        let port = Port::reserve();
        self.write_configuration(&sandbox, &data_dir, port.number());
        Postgres {
            major: self.major,
            bin_dir,
            sandbox,
            data_dir,
            port,
            password: self.password,
            child: std::sync::Mutex::new(None),
            leftovers: std::sync::Mutex::new(control::Leftovers::default()),
        }
    }

    fn write_configuration(&self, sandbox: &Sandbox, data_dir: &Path, port: u16) {
        let mut settings = own_settings(sandbox.path(), port);
        if !self.preload.is_empty() {
            settings.push(("shared_preload_libraries".into(), self.preload.join(",")));
        }
        if let Some((certificate, key)) = &self.tls {
            sandbox.file(data_dir.join("server.crt"), certificate);
            sandbox.file(data_dir.join("server.key"), key);
            settings.push(("ssl".into(), "on".into()));
        }
        if let Some(authority) = &self.client_authority {
            sandbox.file(data_dir.join("root.crt"), authority);
            settings.push(("ssl_ca_file".into(), "root.crt".into()));
        }
        if let Some(name) = &self.archive_to {
            let archive = sandbox.directory(name);
            let archive = archive.display();
            settings.push(("archive_mode".into(), "on".into()));
            settings.push((
                "archive_command".into(),
                format!("test ! -f \"{archive}/%f\" && cp %p \"{archive}/%f\""),
            ));
        }
        settings.extend(self.settings.iter().cloned());
        let path = data_dir.join("postgresql.conf");
        for (name, value) in &settings {
            append(&path, &format!("{name} = {}", quoted(value)));
        }

        let method = if self.password.is_some() {
            "scram-sha-256"
        } else {
            "trust"
        };
        let mut hba = self.hba.clone();
        for address in [
            "local all all",
            "host all all 127.0.0.1/32",
            "host all all ::1/128",
        ] {
            hba.push(format!("{address} {method}"));
        }
        for address in ["local replication all", "host replication all 127.0.0.1/32"] {
            hba.push(format!("{address} {method}"));
        }
        sandbox.file(data_dir.join("pg_hba.conf"), hba.join("\n") + "\n");
    }
}

/// What every server of the testkit needs: its own place, and little memory.
pub(super) fn own_settings(socket_dir: &Path, port: u16) -> Vec<(String, String)> {
    [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", socket_dir.display().to_string()),
        ("shared_buffers", "16MB".to_owned()),
        ("fsync", "off".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("log_timezone", "UTC".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}
