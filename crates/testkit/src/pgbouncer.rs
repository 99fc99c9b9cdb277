//! A real PgBouncer in front of a server.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::account::Account;
use crate::ports::Port;
use crate::postgres::Postgres;
use crate::processes::{self, Signal};
use crate::sandbox::Sandbox;

const PATIENCE: Duration = Duration::from_secs(30);

/// Describes a PgBouncer; [`start`](Self::start) starts it.
#[derive(Debug, Clone)]
pub struct PgBouncerBuilder {
    server: String,
    settings: Vec<(String, String)>,
    databases: Vec<(String, String)>,
    users: Vec<(String, String)>,
    tls: Option<(String, String)>,
}

impl PgBouncerBuilder {
    /// Adds a setting of the `[pgbouncer]` section; the last one of a name wins.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a database; `options` such as `dbname=other pool_size=2` go beside the server's address.
    /// Every other name is passed on as it is.
    pub fn database(mut self, name: &str, options: &str) -> Self {
        self.databases.push((name.to_owned(), options.to_owned()));
        self
    }

    /// Adds a user that may log in. Passwords are asked for only with `auth_type` set.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// Accepts TLS with this certificate and key (PEM).
    pub fn tls(mut self, certificate: &str, key: &str) -> Self {
        self.tls = Some((certificate.to_owned(), key.to_owned()));
        self
    }

    /// Starts it, and waits until its administration console answers.
    pub async fn start(self) -> PgBouncer {
        let program = PathBuf::from("/usr/sbin/pgbouncer");
        assert!(
            program.is_file(),
            "pgbouncer is not installed: run `cargo xtask test`, which installs it"
        );
        let sandbox = Sandbox::new();
        let port = Port::reserve();
        let configuration = self.write(&sandbox, port.number());
        let log_path = sandbox.path().join("pgbouncer.log");
        let child = spawn(&program, &configuration, &log_path);
        let pool = PgBouncer {
            program,
            configuration,
            log_path,
            sandbox,
            port,
            child,
        };
        pool.wait_until_ready().await;
        pool
    }

    fn write(&self, sandbox: &Sandbox, port: u16) -> PathBuf {
        let directory = sandbox.path().display();
        let mut lines = vec!["[databases]".to_owned()];
        for (name, options) in &self.databases {
            lines.push(format!("{name} = {} {options}", self.server));
        }
        lines.push(format!("* = {}", self.server));
        lines.push("[pgbouncer]".to_owned());
        let mut settings: Vec<(String, String)> = [
            ("listen_addr", "127.0.0.1".to_owned()),
            ("listen_port", port.to_string()),
            ("unix_socket_dir", directory.to_string()),
            ("pidfile", format!("{directory}/pgbouncer.pid")),
            ("auth_type", "trust".to_owned()),
            ("auth_file", format!("{directory}/users.txt")),
            ("admin_users", "postgres".to_owned()),
            ("stats_users", "stats".to_owned()),
            (
                "ignore_startup_parameters",
                "extra_float_digits,options".to_owned(),
            ),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        if let Some((certificate, key)) = &self.tls {
            let certificate = sandbox.file("server.crt", certificate);
            let key = sandbox.file("server.key", key);
            settings.push(("client_tls_sslmode".into(), "allow".into()));
            settings.push(("client_tls_cert_file".into(), certificate.display().to_string()));
            settings.push(("client_tls_key_file".into(), key.display().to_string()));
        }
        settings.extend(self.settings.iter().cloned());
        lines.extend(
            settings
                .into_iter()
                .map(|(name, value)| format!("{name} = {value}")),
        );
        let users: Vec<String> = self
            .users
            .iter()
            .map(|(name, password)| format!("\"{name}\" \"{password}\""))
            .collect();
        sandbox.file("users.txt", users.join("\n") + "\n");
        sandbox.file("pgbouncer.ini", lines.join("\n") + "\n")
    }
}

/// A running PgBouncer: stopped and removed when dropped. The users `postgres` (administrator) and
/// `stats` (may look) exist.
#[derive(Debug)]
pub struct PgBouncer {
    program: PathBuf,
    configuration: PathBuf,
    log_path: PathBuf,
    sandbox: Sandbox,
    port: Port,
    child: Child,
}

impl PgBouncer {
    /// Describes a PgBouncer in front of `server`.
    pub fn builder(server: &Postgres) -> PgBouncerBuilder {
        PgBouncerBuilder {
            server: format!("host={} port={}", server.host(), server.port()),
            settings: Vec::new(),
            databases: Vec::new(),
            users: vec![
                (
                    "postgres".to_owned(),
                    server.password().unwrap_or_default().to_owned(),
                ),
                ("stats".to_owned(), String::new()),
            ],
            tls: None,
        }
    }

    /// Starts one in front of `server` with these settings.
    pub async fn start(server: &Postgres, settings: &[(&str, &str)]) -> Self {
        settings
            .iter()
            .fold(Self::builder(server), |builder, (name, value)| {
                builder.setting(name, value)
            })
            .start()
            .await
    }

    /// The TCP address it listens on.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The TCP port, which also names the socket.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.sandbox.path()
    }

    /// Its configuration file.
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Connection URI of `postgres` to a database through the pool, or to the console (`pgbouncer`).
    pub fn dsn(&self, database: &str) -> String {
        format!("postgresql://postgres@{}:{}/{database}", self.host(), self.port())
    }

    /// A session of `postgres` through the pool; keeps a server connection according to `pool_mode`.
    pub async fn client(&self, database: &str) -> Client {
        let connected = self.try_client("postgres", None, database).await;
        connected.unwrap_or_else(|error| panic!("PgBouncer: {error:?}\n{}", self.log()))
    }

    /// A session of any user.
    ///
    /// # Errors
    /// What tokio-postgres reports.
    pub async fn try_client(
        &self,
        user: &str,
        password: Option<&str>,
        database: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config
            .host(self.host())
            .port(self.port())
            .user(user)
            .dbname(database);
        if let Some(password) = password {
            config.password(password);
        }
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }

    /// Sends a command to the console: `SHOW POOLS`, `PAUSE shop`. Returns its rows as maps of column to text.
    pub async fn console(&self, command: &str) -> Vec<std::collections::BTreeMap<String, String>> {
        let client = self.client("pgbouncer").await;
        let messages = client
            .simple_query(command)
            .await
            .unwrap_or_else(|error| panic!("{command}: {error:?}"));
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                row.columns()
                    .iter()
                    .enumerate()
                    .map(|(index, column)| {
                        (column.name().to_owned(), row.get(index).unwrap_or("").to_owned())
                    })
                    .collect(),
            ),
            _ => None,
        });
        rows.collect()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log_path).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Freezes it: it accepts connections (the kernel does) and answers nothing.
    pub fn sigstop(&self) {
        processes::signal(self.pid(), Signal::STOP);
    }

    /// Ends [`sigstop`](Self::sigstop).
    pub fn sigcont(&self) {
        processes::signal(self.pid(), Signal::CONT);
    }

    /// Stops it at once.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(self.sandbox.path().join("pgbouncer.pid"));
    }

    /// Starts it again after [`stop`](Self::stop), on the same port.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.program, &self.configuration, &self.log_path);
        self.wait_until_ready().await;
    }

    async fn wait_until_ready(&self) {
        // Any answer of the console's, also a refusal, is an answer.
        crate::poll::until(PATIENCE, "PgBouncer's console", async || {
            assert!(
                processes::is_running(self.pid()),
                "PgBouncer ended at its start:\n{}",
                self.log()
            );
            match self.try_client("postgres", None, "pgbouncer").await {
                Ok(_) => true,
                Err(error) => error.as_db_error().is_some() || error.to_string().contains("password"),
            }
        })
        .await;
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(program: &Path, configuration: &Path, log_path: &Path) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_path)
        .expect("the log is writable");
    Account::for_servers()
        .command(program)
        .arg(configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("pgbouncer starts")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Major;

    #[tokio::test]
    async fn sessions_go_through_the_pool_and_the_console_shows_them() {
        let server = Postgres::start(Major::V15).await;
        let mut pool = PgBouncer::start(
            &server,
            &[("pool_mode", "transaction"), ("default_pool_size", "1")],
        )
        .await;
        let first = pool.client("postgres").await;
        first.batch_execute("BEGIN; SELECT 1").await.unwrap();
        let second = pool.client("postgres").await;
        let waiting = tokio::spawn(async move { second.simple_query("SELECT 2").await.map(|_| ()) });
        crate::poll::until(PATIENCE, "a waiting client", async || {
            pool.console("SHOW POOLS")
                .await
                .iter()
                .any(|row| row["database"] == "postgres" && row["cl_waiting"] == "1")
        })
        .await;
        first.batch_execute("COMMIT").await.unwrap();
        waiting.await.unwrap().unwrap();
        pool.stop();
        assert!(pool.try_client("postgres", None, "pgbouncer").await.is_err());
        pool.start_again().await;
        assert_eq!(pool.console("SHOW VERSION").await.len(), 1);
    }
}
