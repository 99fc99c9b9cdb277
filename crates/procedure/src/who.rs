//! Who runs us.

use serde::{Deserialize, Serialize};

/// The person and the machine behind an operation, for journals and the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The operating system's user.
    pub user: String,
    /// Its number.
    pub user_id: u32,
    /// Who became that user through sudo or doas, where those say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<String>,
    /// The machine's host name.
    pub host: String,
    /// The process.
    pub process: u32,
}

impl Who {
    /// This process.
    pub fn current() -> Self {
        let user_id = rustix::process::geteuid().as_raw();
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            user: name_of(user_id).unwrap_or_else(|| user_id.to_string()),
            user_id,
            on_behalf_of: variable("SUDO_USER").or_else(|| variable("DOAS_USER")),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            process: std::process::id(),
        }
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}@{}", self.user, self.host)?;
        if let Some(person) = &self.on_behalf_of {
            write!(formatter, " (for {person})")?;
        }
        Ok(())
    }
}

/// The name of a user in `/etc/passwd`; directory services are not asked.
fn name_of(user_id: u32) -> Option<String> {
    let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == user_id.to_string()).then(|| name.to_owned())
    })
}
