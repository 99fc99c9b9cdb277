//! What the audience sees: numbered steps with their times, commands with their real output.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgmahout_postgres::throwaway::ThrowawayServer;
use pgmahout_types::diagnostic::Outcome;
use serde_json::{Value, json};

use crate::context::Context;
use crate::failure::Failure;
use crate::printer::{Align, Printer};

/// What a command printed and how it ended.
pub(super) struct Ran {
    shown: String,
    pub(super) output: String,
    status: std::process::ExitStatus,
}

impl Ran {
    /// Fails the demo unless the command ended with 0.
    pub(super) fn expect_success(&self) -> Result<(), Failure> {
        if self.status.success() {
            return Ok(());
        }
        Err(Failure::caused_by(
            format!("a command of the demo failed ({}): {}", self.status, self.shown),
            self.output.trim().to_owned(),
        ))
    }
}

/// Prints the steps and keeps their times.
pub(super) struct Stage {
    printer: Arc<Printer>,
    steps: Vec<(String, Duration)>,
    current: Option<(String, Instant)>,
    environment: Vec<(&'static str, String)>,
    root: PathBuf,
    server_side: Option<ServerSide>,
}

/// How commands are run that share files with the server: as its user, from a place that it can reach.
pub(super) struct ServerSide {
    pub(super) program: PathBuf,
    /// The configuration file.
    pub(super) config: PathBuf,
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Stage {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            printer: Arc::clone(&context.printer),
            steps: Vec::new(),
            current: None,
            environment: Vec::new(),
            root: PathBuf::new(),
            server_side: None,
        }
    }

    /// The commands that follow reach this server through libpq's environment.
    pub(super) fn use_servers(&mut self, primary: &ThrowawayServer, bin_dir: &Path, root: &Path) {
        root.clone_into(&mut self.root);
        let path = std::env::var("PATH").unwrap_or_default();
        self.environment = vec![
            ("PGHOST", primary.socket_directory().display().to_string()),
            ("PGPORT", primary.port().to_string()),
            ("PGUSER", "postgres".into()),
            ("PGDATABASE", "shop".into()),
            ("PATH", format!("{}:{path}", bin_dir.display())),
            ("PGMAHOUT_STATE_DIR", root.join("state").display().to_string()),
        ];
    }

    /// From now on commands run as the server's user does, as those of physical backups must.
    pub(super) fn use_server_side(&mut self, server_side: ServerSide) {
        self.environment
            .push(("PGMAHOUT_CONFIG", server_side.config.display().to_string()));
        self.server_side = Some(server_side);
    }

    fn text(&self, text: &str) {
        if !self.printer.wants_json() {
            self.printer.line(text);
        }
    }

    pub(super) fn title(&self, text: &str) {
        self.text(&self.printer.palette().strong(text));
    }

    pub(super) fn begin(&mut self, name: &str) {
        let number = self.steps.len() + 1;
        self.text("");
        self.text(&self.printer.palette().strong(&format!("{number}. {name}")));
        self.current = Some((name.to_owned(), Instant::now()));
    }

    pub(super) fn end(&mut self) {
        if let Some((name, begun)) = self.current.take() {
            let took = begun.elapsed();
            self.text(
                &self
                    .printer
                    .palette()
                    .faint(&format!("   ({:.1} s)", took.as_secs_f64())),
            );
            self.steps.push((name, took));
        }
    }

    pub(super) fn say(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.text(&format!("   {line}"));
        }
    }

    pub(super) fn table(&self, rows: &[[String; 4]]) {
        let columns = [
            ("table", Align::Left),
            ("rows before", Align::Right),
            ("rows damaged", Align::Right),
            ("after the restore", Align::Left),
        ];
        let text = self
            .printer
            .render_table(&columns, rows.iter().map(|row| row.to_vec()).collect());
        self.say(&text);
    }

    /// Runs this same binary as a user would, and shows what it printed.
    pub(super) async fn pgmahout(&self, arguments: &[&str]) -> Result<Ran, Failure> {
        let shown =
            format!("pgmahout {}", arguments.join(" ")).replace(&format!("{}/", self.root.display()), "");
        self.say(&self.printer.palette().strong(&format!("$ {shown}")));
        let program = match &self.server_side {
            Some(server_side) => server_side.program.clone(),
            None => std::env::current_exe()
                .map_err(|error| Failure::caused_by("cannot find the running program's own file", error))?,
        };
        let mut command = tokio::process::Command::new(program);
        if let Some(server_side) = &self.server_side
            && rustix::process::geteuid().is_root()
        {
            command.uid(server_side.user).gid(server_side.group);
        }
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("PG") {
                command.env_remove(&name);
            }
        }
        let failed = |error: std::io::Error| Failure::caused_by(format!("cannot run {shown}"), error);
        // One pipe for both streams: the audience sees them in the order of a terminal.
        let (mut reader, writer) = std::io::pipe().map_err(failed)?;
        let mut child = command
            .args(arguments)
            .args([
                "--color",
                if self.printer.is_terminal() {
                    "always"
                } else {
                    "never"
                },
            ])
            .envs(
                self.environment
                    .iter()
                    .map(|(name, value)| (*name, value.as_str())),
            )
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        // The command holds our copies of the pipe's writing end, which would keep it open.
        drop(command);
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut text).map(|_| text)
        });
        let status = child.wait().await.map_err(failed)?;
        let bytes = reading
            .await
            .map_err(|error| Failure::caused_by(format!("cannot read what {shown} prints"), error))?
            .map_err(failed)?;
        let output = String::from_utf8_lossy(&bytes).into_owned();
        if status.code() == Some(i32::from(Outcome::Usage.exit_code())) {
            return Err(Failure::caused_by(
                format!("a command of the demo is wrong: {shown}"),
                output,
            ));
        }
        self.say(&output);
        Ok(Ran {
            shown,
            output,
            status,
        })
    }

    pub(super) fn summary(&self, total: Duration) {
        self.text("");
        self.text(&self.printer.palette().strong("Summary"));
        let rows = self
            .steps
            .iter()
            .map(|(name, took)| vec![name.clone(), format!("{:.1} s", took.as_secs_f64())])
            .chain([vec!["In all".to_owned(), format!("{:.1} s", total.as_secs_f64())]])
            .collect();
        let text = self
            .printer
            .render_table(&[("step", Align::Left), ("time", Align::Right)], rows);
        self.say(&text);
    }

    pub(super) fn steps_json(&self) -> Value {
        self.steps
            .iter()
            .map(|(name, took)| json!({ "name": name, "seconds": took.as_secs_f64() }))
            .collect()
    }
}
