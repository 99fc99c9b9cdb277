//! The part of the process's surroundings that decides where a client connects: as a value, so that tests
//! never touch the process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Environment variables, home directory, operating system user and default socket directory.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
    os_user: Option<String>,
    socket_directory: Option<PathBuf>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Names only: PGPASSWORD may be among them.
        formatter
            .debug_struct("Environment")
            .field("variables", &self.variables.keys().collect::<Vec<_>>())
            .field("home", &self.home)
            .field("os_user", &self.os_user)
            .finish_non_exhaustive()
    }
}

impl Environment {
    /// The environment of this process.
    ///
    /// The user is the effective one and its home is `$HOME` or the one in the user database, as libpq
    /// takes them (`fe-connect.c`, `pqGetHomeDirectory`; `fe-auth.c`, `pg_fe_getusername`).
    pub fn current() -> Self {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let account = Account::current();
        let home = variables
            .get("HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from)
            .or_else(|| account.as_ref().map(|account| account.home.clone()));
        Self {
            variables,
            home,
            os_user: account.map(|account| account.name),
            socket_directory: None,
        }
    }

    /// Only these variables; `HOME` among them is the home directory. No operating system user: see
    /// [`Environment::with_os_user`].
    pub fn from_pairs<Name, Value>(pairs: impl IntoIterator<Item = (Name, Value)>) -> Self
    where
        Name: Into<String>,
        Value: Into<String>,
    {
        let variables: BTreeMap<String, String> = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let home = variables.get("HOME").map(PathBuf::from);
        Self {
            variables,
            home,
            ..Self::default()
        }
    }

    /// The same with this home directory.
    pub fn with_home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// The same with this operating system user.
    pub fn with_os_user(mut self, user: impl Into<String>) -> Self {
        self.os_user = Some(user.into());
        self
    }

    /// The same with this default directory of server sockets.
    pub fn with_socket_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.socket_directory = Some(directory.into());
        self
    }

    /// The value of a variable; `Some("")` where it is set and empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The user's home directory.
    pub fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// The operating system's name of the effective user.
    pub fn os_user(&self) -> Option<&str> {
        self.os_user.as_deref()
    }

    /// Where a server's socket is looked for when no host is given: Debian's directory where it exists,
    /// else the one of PostgreSQL built from source (`pg_config_manual.h`, `DEFAULT_PGSOCKET_DIR`).
    pub fn socket_directory(&self) -> PathBuf {
        const DEBIAN: &str = "/var/run/postgresql";
        match &self.socket_directory {
            Some(directory) => directory.clone(),
            None if Path::new(DEBIAN).is_dir() => PathBuf::from(DEBIAN),
            None => PathBuf::from("/tmp"),
        }
    }
}

/// The name of a user of this machine.
pub(crate) fn account_name(uid: u32) -> Option<String> {
    Account::of(uid).map(|account| account.name)
}

struct Account {
    name: String,
    home: PathBuf,
}

impl Account {
    fn current() -> Option<Self> {
        Self::of(rustix::process::geteuid().as_raw())
    }

    fn of(uid: u32) -> Option<Self> {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::find(&passwd, uid).or_else(|| Self::ask_name_service(uid))
    }

    fn find(passwd: &str, uid: u32) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.len() >= 6 && fields[2].parse() == Ok(uid)).then(|| Self {
                name: fields[0].to_owned(),
                home: PathBuf::from(fields[5]),
            })
        })
    }

    /// Users from LDAP or systemd are not in the file; `getent` asks every source that the system knows.
    fn ask_name_service(uid: u32) -> Option<Self> {
        let output = std::process::Command::new("getent")
            .args(["passwd", &uid.to_string()])
            .output()
            .ok()?;
        Self::find(&String::from_utf8_lossy(&output.stdout), uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_never_shows_values_of_variables() {
        let environment = Environment::from_pairs([("PGPASSWORD", "tulip-47")]);
        assert!(!format!("{environment:?}").contains("tulip-47"));
    }

    #[test]
    fn the_user_database_is_read_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\npostgres:x:103:110::/var/lib/postgresql:/bin/bash\n";
        let account = Account::find(passwd, 103).expect("listed");
        assert_eq!(
            (account.name.as_str(), account.home.as_path()),
            ("postgres", Path::new("/var/lib/postgresql"))
        );
        assert!(Account::find(passwd, 7).is_none());
    }
}
