//! The validated settings: what the rest of the program sees.
//!
//! Everything is optional in the file; what a section leaves out has its default here. Printed (serialised),
//! secrets show as `***` or as the reference they were given as; the form is that of the file, so that what is
//! printed can be read again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::patroni::Patroni;
use crate::problem::Origin;
use crate::quantity::serialize_duration;
use crate::secret::SecretReference;

mod backup;
mod checks;
mod dump;
mod repository;
mod wal;

pub use backup::{Backup, Checkpoint, ReadFilter};
pub use checks::{Checks, CustomCheck, Probe, Threshold, ValueUnit};
pub use dump::{Assertion, Counts, Dump, DumpFormat};
pub use repository::{Codec, Compression, Encryption, Repository, Retention, Storage, Timeouts};
pub use wal::{Prefetch, Receive, Spool, Wal};

pub(crate) use backup::read as read_backup;
pub(crate) use checks::read as read_checks;
pub(crate) use dump::read as read_dump;
pub(crate) use repository::read as read_repositories;
pub(crate) use wal::read as read_wal;

/// Everything that the configuration says.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Settings {
    /// The file it was read from; none where flags and environment are all there is.
    pub file: Option<PathBuf>,
    /// This cluster's name in the repositories; by default Patroni's `scope`.
    pub stanza: Option<String>,
    /// Patroni's own sections, as PyYAML loads them.
    #[serde(flatten)]
    pub patroni: Patroni,
    /// Where the local server is and how it is controlled: part of Patroni's section `postgresql`.
    #[serde(skip)]
    pub server: Server,
    /// Where dumps and backups are kept.
    #[serde(rename = "repository")]
    pub repositories: Vec<Repository>,
    /// Physical backups.
    pub backup: Backup,
    /// The WAL archive.
    pub wal: Wal,
    /// Logical backups.
    pub dump: Dump,
    /// Health checks.
    pub checks: Checks,
    /// What `verify` expects to exist.
    pub expect: Expect,
    /// What the operator has promised.
    pub targets: Targets,
    /// Sections of ours that this version accepts and does not use yet.
    #[serde(flatten)]
    pub unused: BTreeMap<String, Value>,
}

impl Settings {
    /// A repository by its name; without one the first. `None` where there is none.
    pub fn repository(&self, name: Option<&str>) -> Option<&Repository> {
        match name {
            Some(name) => self
                .repositories
                .iter()
                .find(|repository| repository.name == name),
            None => self.repositories.first(),
        }
    }

    /// Every secret that the configuration refers to, with the name of its key.
    pub fn secrets(&self) -> Vec<(String, &SecretReference)> {
        let mut secrets: Vec<(String, Option<&SecretReference>)> = Vec::new();
        let mut add = |key: String, reference| secrets.push((key, reference));
        add("postgresql.dsn".to_owned(), self.server.dsn.as_ref());
        for (at, repository) in self.repositories.iter().enumerate() {
            let key = |name: &str| format!("repository[{at}].{name}");
            if let Some(encryption) = &repository.encryption {
                add(key("encryption"), encryption.reference());
            }
            if let Storage::S3 {
                access_key,
                secret_key,
                session_token,
                ..
            } = &repository.storage
            {
                add(key("access_key"), access_key.as_ref());
                add(key("secret_key"), secret_key.as_ref());
                add(key("session_token"), session_token.as_ref());
            }
        }
        add(
            "dump.encryption".to_owned(),
            self.dump.encryption.as_ref().and_then(Encryption::reference),
        );
        add("checks.pgbouncer".to_owned(), self.checks.pgbouncer.as_ref());
        secrets
            .into_iter()
            .filter_map(|(key, reference)| Some((key, reference?)))
            .collect()
    }
}

/// Where the local server is and how it is controlled: keys of the section `postgresql`, those of Patroni
/// and three of ours (`dsn`, `container`, `unit`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Server {
    /// The data directory.
    pub data_dir: Option<PathBuf>,
    /// The directory of PostgreSQL's programs.
    pub bin_dir: Option<PathBuf>,
    /// How to connect, as a URI or key=value pairs.
    pub dsn: Option<SecretReference>,
    /// The Docker container that it runs in.
    pub container: Option<String>,
    /// The systemd unit that runs it.
    pub unit: Option<String>,
}

/// Section `expect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Expect {
    /// Extensions: `pg_stat_statements`, `postgis>=3.4`.
    pub extensions: Vec<String>,
    /// Settings and the values that they should have.
    pub settings: BTreeMap<String, String>,
    /// Roles.
    pub roles: Vec<String>,
}

/// Section `targets`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Targets {
    /// How much work may be lost: the recovery point objective.
    #[serde(serialize_with = "serialize_duration")]
    pub rpo: Option<Duration>,
    /// How long recovery may take: the recovery time objective.
    #[serde(serialize_with = "serialize_duration")]
    pub rto: Option<Duration>,
}

/// A value and where it was set, for messages about it later.
#[derive(Debug, Clone, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it was set.
    pub origin: Origin,
}
