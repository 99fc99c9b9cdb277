//! The account that servers run under: PostgreSQL refuses to run as root.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// An operating system account.
#[derive(Debug, Clone)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    switch: bool,
}

impl Account {
    /// The account servers run under: `postgres` (or else `nobody`) when the tests run as root, the
    /// tests' own account otherwise.
    pub fn for_servers() -> &'static Self {
        static ACCOUNT: OnceLock<Account> = OnceLock::new();
        ACCOUNT.get_or_init(|| {
            let uid = rustix::process::geteuid().as_raw();
            let gid = rustix::process::getegid().as_raw();
            if uid == 0 {
                let mut account = lookup("postgres")
                    .or_else(|| lookup("nobody"))
                    .expect("one of the accounts postgres and nobody exists; run `cargo xtask test`");
                account.switch = true;
                account
            } else {
                Account {
                    name: name_of(uid).unwrap_or_else(|| uid.to_string()),
                    uid,
                    gid,
                    switch: false,
                }
            }
        })
    }

    /// Whether the tests run as root and servers therefore under another account.
    pub fn is_another(&self) -> bool {
        self.switch
    }

    /// A command that runs as this account, in its own process group (so that a signal to the test's
    /// group does not reach it), without the libpq and pgmahout variables of the caller.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        clean_environment(&mut command);
        command.process_group(0).current_dir("/");
        if self.switch {
            // The standard library drops the supplementary groups when it changes the user as root.
            command
                .uid(self.uid)
                .gid(self.gid)
                .env("USER", &self.name)
                .env("HOME", "/nonexistent");
        }
        command
    }

    /// Makes the account the owner of one file or directory (nothing to do for an ordinary user).
    pub fn own(&self, path: &Path) {
        if self.switch {
            std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
                .unwrap_or_else(|error| panic!("cannot give {} to {}: {error}", path.display(), self.name));
        }
    }
}

/// Removes what would make a child depend on the developer's own environment: `PG*`, `PGMAHOUT_*`,
/// `PATRONI_*`, cargo's library path, colours, and a foreign locale or time zone.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        if text.starts_with("PG")
            || text.starts_with("PATRONI_")
            || text.starts_with("LC_")
            || matches!(
                text,
                "LD_LIBRARY_PATH" | "LANG" | "LANGUAGE" | "CLICOLOR" | "CLICOLOR_FORCE"
            )
        {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
}

fn lookup(name: &str) -> Option<Account> {
    accounts().into_iter().find(|account| account.name == name)
}

fn name_of(uid: u32) -> Option<String> {
    accounts()
        .into_iter()
        .find(|account| account.uid == uid)
        .map(|account| account.name)
}

fn accounts() -> Vec<Account> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Account {
                name,
                uid,
                gid,
                switch: false,
            })
        })
        .collect()
}
