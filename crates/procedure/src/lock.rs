//! What a procedure touches, and the lock that keeps two from touching it at once.
//!
//! Locks are files that root and the server's user share: in `/run/pgmahout`, which root makes writable for
//! everybody as `/tmp` is; an ordinary user on a machine where that does not exist uses
//! `$XDG_RUNTIME_DIR/pgmahout`, else the `locks` directory beside the journals, and is then safe only from
//! itself. `$PGMAHOUT_RUN_DIR` names another place. A lock dies with its process.
//!
//! An operation on a whole server excludes every other one on that server; operations on two databases of
//! one server do not exclude each other.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgmahout_durable::{AtomicFile, DurableError, FileLock, LockError, create_directory_durably};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// The directory of the locks where there is root.
const SYSTEM: &str = "/run/pgmahout";
/// How long to wait between two looks at a lock that somebody else holds.
const POLL: Duration = Duration::from_millis(50);

/// What a procedure touches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// For people: `database shop on db1:5432`.
    pub description: String,
    /// The cluster's system identifier (`pg_control_system()`), as text, for JSON cannot hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// The server's data directory: a primary and its standby on one machine have one system identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_directory: Option<PathBuf>,
    /// The database, where only one is touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

impl Target {
    /// A target that is nothing but a description: it is locked by that. For what is no server.
    pub fn new(description: impl Into<String>) -> Self {
        Self {
            description: description.into(),
            system_identifier: None,
            data_directory: None,
            database: None,
        }
    }

    /// Belongs to the cluster with this system identifier.
    pub fn system_identifier(mut self, identifier: impl std::fmt::Display) -> Self {
        self.system_identifier = Some(format!("{identifier}"));
        self
    }

    /// Belongs to the server with this data directory.
    pub fn data_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data_directory = Some(directory.into());
        self
    }

    /// Is only this database of the server.
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.database = Some(database.into());
        self
    }

    /// The file name of the server's lock.
    fn server_key(&self) -> String {
        let directory = self
            .data_directory
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned());
        match (&self.system_identifier, directory) {
            (None, None) => format!("target-{:016x}.lock", hash(&self.description)),
            (identifier, directory) => format!(
                "server-{}-{:016x}.lock",
                identifier
                    .as_deref()
                    .filter(|text| is_plain(text))
                    .unwrap_or("unknown"),
                hash(directory.as_deref().unwrap_or_default())
            ),
        }
    }

    /// The beginning of the file names of the locks of its databases.
    fn database_prefix(&self) -> String {
        format!("{}-database-", self.server_key().trim_end_matches(".lock"))
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.len() <= 32 && text.chars().all(|character| character.is_ascii_alphanumeric())
}

/// FNV-1a: short, and the same in every release, for two releases must exclude each other too.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The locks of one target, held until dropped.
#[derive(Debug)]
pub struct TargetLock {
    _locks: Vec<FileLock>,
}

/// The directories in which a target is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockDirectories {
    directories: Vec<PathBuf>,
}

impl LockDirectories {
    /// For this process: see the module. `state` is the state directory.
    ///
    /// # Errors
    ///
    /// When none can be used.
    pub fn prepare(state: &Path) -> Result<Self, DurableError> {
        let variable = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        if let Some(directory) = variable("PGMAHOUT_RUN_DIR") {
            create_shared(&directory)?;
            return Ok(Self::at([directory]));
        }
        let system = Path::new(SYSTEM);
        if rustix::process::geteuid().is_root() {
            create_shared(system)?;
            return Ok(Self::at([system.to_path_buf()]));
        }
        let own = match variable("XDG_RUNTIME_DIR") {
            Some(runtime) if create_directory_durably(runtime.join("pgmahout"), 0o700).is_ok() => {
                runtime.join("pgmahout")
            }
            _ => {
                let beside = state.join("locks");
                create_directory_durably(&beside, 0o700)?;
                beside
            }
        };
        // Both, where both are: one user's processes may not all have the same XDG_RUNTIME_DIR.
        let mut directories = vec![own];
        if is_usable(system) {
            directories.insert(0, system.to_path_buf());
        }
        Ok(Self { directories })
    }

    /// These very directories.
    pub fn at(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            directories: directories.into_iter().collect(),
        }
    }

    /// Takes the locks of a target, waiting for them at most `patience`. `description` says who we are to
    /// those who find them held.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] when somebody else had them for that long, or `cancellation` came first.
    pub async fn acquire(
        &self,
        target: &Target,
        description: &str,
        patience: Duration,
        cancellation: &CancellationToken,
    ) -> Result<TargetLock, LockError> {
        let started = Instant::now();
        loop {
            match self.try_acquire(target, description) {
                Err(LockError::Held { .. })
                    if started.elapsed() < patience && !cancellation.is_cancelled() =>
                {
                    tokio::time::sleep(POLL).await;
                }
                Err(LockError::Held { path, owner, .. }) => {
                    return Err(LockError::Held {
                        path,
                        owner,
                        waited: started.elapsed(),
                    });
                }
                other => return other,
            }
        }
    }

    fn try_acquire(&self, target: &Target, description: &str) -> Result<TargetLock, LockError> {
        let mut locks = Vec::new();
        for directory in &self.directories {
            let server = directory.join(target.server_key());
            if let Some(database) = &target.database {
                locks.push(FileLock::acquire_shared(&server, Duration::ZERO)?);
                let name = format!("{}{:016x}.lock", target.database_prefix(), hash(database));
                locks.push(FileLock::try_acquire(directory.join(name), description)?);
            } else {
                locks.push(FileLock::try_acquire(&server, description).map_err(|error| {
                    // Sharers leave no name there; they have left it on the lock of their database.
                    match error {
                        LockError::Held {
                            path,
                            owner: None,
                            waited,
                        } => {
                            let owner = owner_among(directory, &target.database_prefix());
                            LockError::Held { path, owner, waited }
                        }
                        other => other,
                    }
                })?);
            }
        }
        Ok(TargetLock { _locks: locks })
    }
}

/// Who holds one of the locks whose names begin like this.
fn owner_among(directory: &Path, prefix: &str) -> Option<pgmahout_durable::LockOwner> {
    fs::read_dir(directory)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .find_map(|entry| FileLock::owner(entry.path()))
}

/// Creates a directory that everybody can make files in but nobody can remove others' from (1777).
fn create_shared(directory: &Path) -> Result<(), DurableError> {
    if !directory.is_dir() {
        create_directory_durably(directory, 0o755)?;
    }
    let metadata =
        fs::symlink_metadata(directory).map_err(|error| DurableError::from_io("stat", directory, error))?;
    if metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o7777 != 0o1777 {
        fs::set_permissions(directory, Permissions::from_mode(0o1777))
            .map_err(|error| DurableError::from_io("set the mode of", directory, error))?;
    }
    Ok(())
}

/// Whether the directory is there, is root's, and we can make files in it.
fn is_usable(directory: &Path) -> bool {
    fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == 0)
        && AtomicFile::create(directory.join("probe"), 0o600).is_ok_and(|probe| probe.discard().is_ok())
}

#[cfg(test)]
mod tests {
    use pgmahout_types::diagnostic::Diagnose;

    use super::*;

    fn server(identifier: u64, directory: &str) -> Target {
        Target::new("a server")
            .system_identifier(identifier)
            .data_directory(directory)
    }

    #[test]
    fn procedures_on_one_server_exclude_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let locks = LockDirectories::at([directory.path().to_path_buf()]);
        let primary = server(7, "/primary");
        let first = locks.try_acquire(&primary, "procedure A").unwrap();
        let error = locks.try_acquire(&primary, "procedure B").unwrap_err();
        assert!(error.to_string().contains("procedure A"), "{error}");
        assert_eq!(error.outcome().exit_code(), 3);
        // A standby with its own data directory, and another cluster, are other servers.
        locks.try_acquire(&server(7, "/standby"), "procedure B").unwrap();
        locks.try_acquire(&server(8, "/primary"), "procedure B").unwrap();
        assert!(
            locks
                .try_acquire(&primary.clone().database("shop"), "procedure B")
                .is_err()
        );
        drop(first);
        locks.try_acquire(&primary, "procedure B").unwrap();
    }

    #[test]
    fn databases_of_one_server_are_locked_apart_but_not_from_the_server() {
        let directory = tempfile::tempdir().unwrap();
        let locks = LockDirectories::at([directory.path().to_path_buf()]);
        let server = server(7, "/primary");
        let _shop = locks
            .try_acquire(&server.clone().database("shop"), "procedure A")
            .unwrap();
        let _blog = locks
            .try_acquire(&server.clone().database("blog"), "procedure B")
            .unwrap();
        let error = locks
            .try_acquire(&server.clone().database("shop"), "procedure C")
            .unwrap_err();
        assert!(error.to_string().contains("procedure A"), "{error}");
        let error = locks.try_acquire(&server, "procedure D").unwrap_err().to_string();
        assert!(
            error.contains("procedure A") || error.contains("procedure B"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn waiting_for_a_target_gets_it_when_it_is_freed() {
        let directory = tempfile::tempdir().unwrap();
        let locks = LockDirectories::at([directory.path().to_path_buf()]);
        let target = Target::new("a directory");
        let first = locks.try_acquire(&target, "first").unwrap();
        let token = CancellationToken::new();
        let second = locks.acquire(&target, "second", Duration::from_mins(1), &token);
        let (second, ()) = tokio::join!(second, async {
            tokio::task::yield_now().await;
            drop(first);
        });
        let _second = second.unwrap();
        token.cancel();
        let third = locks
            .acquire(&target, "third", Duration::from_mins(1), &token)
            .await;
        assert!(matches!(third, Err(LockError::Held { .. })));
    }

    #[test]
    fn a_shared_lock_directory_is_open_to_all_and_sticky() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        create_shared(&run).unwrap();
        create_shared(&run).unwrap();
        assert_eq!(fs::metadata(&run).unwrap().mode() & 0o7777, 0o1777);
    }
}
