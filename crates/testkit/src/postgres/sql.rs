//! Speaking to a server as its superuser.

use std::io::Write;
use std::process::Stdio;

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::Postgres;
use crate::account::{Account, clean_environment};

impl Postgres {
    /// How the testkit itself connects: superuser, Unix socket.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(self.socket_dir())
            .port(self.port())
            .user("postgres")
            .dbname(database)
            .application_name("pgmahout-testkit");
        if let Some(password) = self.password() {
            config.password(password);
        }
        config
    }

    /// A superuser's session; it ends when the client is dropped.
    pub async fn client(&self, database: &str) -> Client {
        self.connect(&self.config(database))
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {database}: {error:?}\n{}", self.log_tail()))
    }

    /// A session without TLS as `config` says.
    ///
    /// # Errors
    /// What tokio-postgres reports.
    pub async fn connect(&self, config: &Config) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }

    /// Runs statements in a session of their own; panics with the server's error.
    pub async fn sql(&self, database: &str, statements: &str) {
        let client = self.client(database).await;
        if let Err(error) = client.batch_execute(statements).await {
            panic!("{error:?}\nin: {statements}");
        }
    }

    /// Runs one query and returns its rows as `psql -At` prints them: columns separated by `|`, rows by
    /// a line feed, NULL as nothing.
    pub async fn query_text(&self, database: &str, query: &str) -> String {
        let client = self.client(database).await;
        let messages = client
            .simple_query(query)
            .await
            .unwrap_or_else(|error| panic!("{error:?}\nin: {query}"));
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let columns: Vec<&str> = (0..row.len()).map(|index| row.get(index).unwrap_or("")).collect();
                Some(columns.join("|"))
            }
            _ => None,
        });
        rows.collect::<Vec<_>>().join("\n")
    }

    /// Creates a database.
    pub async fn createdb(&self, name: &str) {
        self.sql(
            "postgres",
            &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")),
        )
        .await;
    }

    /// A client program of this server's version (`pg_dump`, `pgbench`) that connects to it as the
    /// superuser over the socket, through libpq's environment; runs as the tests' own account.
    pub fn client_command(&self, program: &str, database: &str) -> std::process::Command {
        let mut command = std::process::Command::new(self.program(program));
        clean_environment(&mut command);
        command
            .env("PGHOST", self.socket_dir())
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", database)
            .stdin(Stdio::null());
        if let Some(password) = self.password() {
            command.env("PGPASSWORD", password);
        }
        command
    }

    /// Runs a script through `psql` (`ON_ERROR_STOP`, unaligned, tuples only) and returns its output;
    /// panics with its errors.
    pub fn psql(&self, database: &str, script: &str) -> String {
        let mut child = self
            .client_command("psql", database)
            .args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql starts");
        let mut stdin = child.stdin.take().expect("its input is a pipe");
        let bytes = script.as_bytes().to_vec();
        let writer = std::thread::spawn(move || {
            // psql may stop reading at an error; its exit status tells.
            let _ = stdin.write_all(&bytes);
        });
        let output = child.wait_with_output().expect("psql can be waited for");
        writer.join().expect("the writer does not panic");
        assert!(
            output.status.success(),
            "psql ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// A program of this server's version that runs as the server's account (`pg_ctl`, `pg_rewind`).
    pub fn server_command(&self, program: &str) -> std::process::Command {
        let mut command = Account::for_servers().command(self.program(program));
        command.stdin(Stdio::null());
        command
    }
}
