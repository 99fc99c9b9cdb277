//! Running the programs that control servers.

use super::ControlError;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Output, Stdio};
use tokio::process::Command;

/// The account that a server runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) name: Option<String>,
}

impl Owner {
    /// Of a file or directory.
    pub(super) fn of(path: &Path) -> Result<Self, ControlError> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).map_err(|source| ControlError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let uid = metadata.uid();
        Ok(Self {
            uid,
            gid: metadata.gid(),
            name: crate::params::account_name(uid),
        })
    }

    /// A command that runs as this account. For root that means changing to it, by `setpriv` where the
    /// account has a name: only so does the server keep its further groups (Debian's servers read their
    /// TLS key as members of `ssl-cert`).
    pub(super) fn command(&self, program: &Path, arguments: &[&OsStr]) -> Command {
        let changes = rustix::process::geteuid().is_root() && self.uid != 0;
        let setpriv = Path::new("/usr/bin/setpriv");
        let mut command = if changes && self.name.is_some() && setpriv.exists() {
            let mut command = Command::new(setpriv);
            command
                .arg(format!("--reuid={}", self.uid))
                .arg(format!("--regid={}", self.gid))
                .args(["--init-groups", "--"])
                .arg(program);
            command
        } else {
            let mut command = Command::new(program);
            if changes {
                command.uid(self.uid).gid(self.gid);
            }
            command
        };
        command.args(arguments).current_dir("/");
        // The postmaster takes PGPORT, PGDATA and their kin for its own.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// Runs to the end, with the output in hand.
pub(super) async fn run(command: &mut Command, program: &Path) -> Result<Output, ControlError> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(false)
        .output()
        .await
        .map_err(|source| ControlError::Program {
            program: program.to_owned(),
            source,
        })
}

/// What a program said, in one line.
pub(super) fn said(output: &Output) -> String {
    let text = [output.stderr.as_slice(), output.stdout.as_slice()]
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned())
        .find(|text| !text.is_empty());
    match text {
        Some(text) => text.lines().map(str::trim).collect::<Vec<_>>().join("; "),
        None => format!("it ended with {}", output.status),
    }
}
