//! What is in the way of a restore: a server that runs, another restore, files of somebody else.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgmahout_types::repository::Label;
use pgmahout_types::{ControlFile, SystemIdentifier};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::error::RestoreError;

/// The file that says that a restore has begun and not ended. No server starts beside it: pg_control is put
/// in place after everything else.
pub(crate) const MARKER: &str = "pgmahout.restore";
/// The name under which pg_control waits.
pub(crate) const WAITING_CONTROL: &str = "global/pg_control.pgmahout";
/// Made by mkfs in the root of a file system, and nobody's.
const LOST_AND_FOUND: &str = "lost+found";
/// How many names a message shows.
const SHOWN: usize = 12;

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// The backup.
    pub(crate) label: Label,
    /// The cluster.
    pub(crate) system_identifier: SystemIdentifier,
}

/// What is in a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It does not exist.
    Missing,
    /// Nothing.
    Empty,
    /// A cluster.
    Cluster(SystemIdentifier),
    /// What a restore left that did not end.
    Unfinished(Marker),
    /// Something else.
    Foreign(Vec<String>),
}

impl Existing {
    /// Whether a restore can begin without removing or keeping anything.
    pub(crate) fn is_free(&self) -> bool {
        matches!(self, Self::Missing | Self::Empty)
    }
}

/// Looks into a data directory.
pub(crate) fn look(data: &Path) -> Result<Existing, RestoreError> {
    let names = match entries(data)? {
        None => return Ok(Existing::Missing),
        Some(names) if names.is_empty() => return Ok(Existing::Empty),
        Some(names) => names,
    };
    if let Some(marker) = read_marker(data)? {
        return Ok(Existing::Unfinished(marker));
    }
    let control = data.join(ControlFile::PATH);
    match fs::read(&control) {
        Ok(bytes) => match ControlFile::parse(&bytes) {
            Ok(control) => Ok(Existing::Cluster(control.system_identifier)),
            // The identifier is the first field of every version.
            Err(_) if bytes.len() >= 8 && data.join("PG_VERSION").is_file() => {
                let first = bytes.first_chunk::<8>().copied().unwrap_or_default();
                Ok(Existing::Cluster(SystemIdentifier::new(u64::from_le_bytes(
                    first,
                ))))
            }
            Err(_) => Ok(Existing::Foreign(names)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Existing::Foreign(names)),
        Err(error) => Err(RestoreError::io("read", control, error)),
    }
}

/// What the marker of an unfinished restore says.
pub(crate) fn read_marker(data: &Path) -> Result<Option<Marker>, RestoreError> {
    let path = data.join(MARKER);
    match fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RestoreError::io("read", path, error)),
    }
}

/// The names in a directory, at most a few, sorted; `None` where there is none. `lost+found` does not count.
pub(crate) fn entries(directory: &Path) -> Result<Option<Vec<String>>, RestoreError> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RestoreError::io("list", directory, error)),
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|error| RestoreError::io("list", directory, error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != LOST_AND_FOUND {
            names.push(name);
        }
    }
    names.sort();
    names.truncate(SHOWN);
    Ok(Some(names))
}

/// Refuses where a server runs on the directory, or left processes behind.
///
/// As the server itself finds out before it starts (`CreateLockFile` in `src/backend/utils/init/miscinit.c`): a
/// living process of the directory's owner that postmaster.pid names, or a shared memory segment it names that
/// somebody is still attached to. Servers in containers with process numbers of their own are not seen.
pub(crate) fn check_no_server(data: &Path) -> Result<(), RestoreError> {
    let path = data.join("postmaster.pid");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(RestoreError::io("read", path, error)),
    };
    let lines: Vec<&str> = text.lines().collect();
    let number = lines.first().and_then(|line| line.trim().parse::<i64>().ok());
    // A standalone backend writes its number negated.
    let pid = number.and_then(|number| u32::try_from(number.unsigned_abs()).ok());
    if let Some(pid) = pid.filter(|pid| *pid > 1)
        && is_servers(pid, data)
    {
        return Err(RestoreError::Running {
            directory: data.to_owned(),
            pid,
        });
    }
    // The seventh line: key and number of the segment.
    let segment = lines
        .get(6)
        .and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    if let Some(shm) = segment
        && attached(shm)
    {
        return Err(RestoreError::Leftovers {
            directory: data.to_owned(),
            shm,
        });
    }
    Ok(())
}

/// Whether the process lives and may be the server: one of another user is not.
fn is_servers(pid: u32, data: &Path) -> bool {
    let own = std::process::id();
    if pid == own || std::os::unix::process::parent_id() == pid {
        return false;
    }
    let Ok(process) = fs::metadata(format!("/proc/{pid}")) else {
        // Without /proc nothing is known but whether it lives.
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        return !Path::new("/proc/self").exists()
            && raw.is_some_and(|pid| {
                !matches!(
                    rustix::process::test_kill_process(pid),
                    Err(rustix::io::Errno::SRCH | rustix::io::Errno::PERM)
                )
            });
    };
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().next());
    if matches!(state, Some("Z" | "X")) {
        return false;
    }
    fs::metadata(data).map_or(true, |directory| directory.uid() == process.uid())
}

/// Whether somebody is attached to a System V shared memory segment (`/proc/sysvipc/shm`, proc(5)).
fn attached(shm: u64) -> bool {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    is_attached(&table, shm)
}

fn is_attached(table: &str, shm: u64) -> bool {
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let column = |name: &str| header.iter().position(|found| *found == name);
    let (Some(id), Some(users)) = (column("shmid"), column("nattch")) else {
        return false;
    };
    lines.any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(id).and_then(|field| field.parse().ok()) == Some(shm)
            && fields.get(users).is_some_and(|field| *field != "0")
    })
}

/// Holds a data directory against other restores, as long as it lives. The lock dies with the process.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _directory: File,
}

impl DirectoryLock {
    /// Locks a directory that exists.
    pub(crate) fn acquire(data: &Path) -> Result<Self, RestoreError> {
        let directory = File::open(data).map_err(|error| RestoreError::io("open", data, error))?;
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                _directory: directory,
            }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(RestoreError::Busy {
                directory: data.to_owned(),
            }),
            // Network file systems may have no locks: then the one of the procedure has to do.
            Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOLCK | rustix::io::Errno::INVAL) => {
                Ok(Self {
                    _directory: directory,
                })
            }
            Err(error) => Err(RestoreError::io("lock", data, error.into())),
        }
    }
}

/// Segments in `pg_wal` that the server has not archived: they are only there.
pub(crate) fn unarchived(data: &Path) -> Vec<String> {
    let status: PathBuf = data.join("pg_wal/archive_status");
    let Ok(listing) = fs::read_dir(status) else {
        return Vec::new();
    };
    let mut names: Vec<String> = listing
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_suffix(".ready").map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn write_pid(data: &Path, pid: i64) {
        let text = format!(
            "{pid}\n{}\n1768910400\n5432\n/tmp\nlocalhost\n  1234   5678\nready   \n",
            data.display()
        );
        fs::write(data.join("postmaster.pid"), text).expect("writable");
    }

    #[test]
    fn a_living_process_of_the_owner_is_a_running_server() {
        let data = directory();
        check_no_server(data.path()).expect("no file, no server");
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("100")
            .spawn()
            .expect("sleep");
        for pid in [i64::from(child.id()), -i64::from(child.id())] {
            write_pid(data.path(), pid);
            let error = check_no_server(data.path()).expect_err("it lives");
            assert!(
                matches!(error, RestoreError::Running { pid, .. } if pid == child.id()),
                "{error}"
            );
        }
        child.kill().expect("killed");
        // Dead and not waited for is dead.
        let mut tries = 0;
        while check_no_server(data.path()).is_err() && tries < 1000 {
            tries += 1;
            std::thread::yield_now();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        check_no_server(data.path()).expect("a zombie runs nothing");
        child.wait().expect("waited for");
        check_no_server(data.path()).expect("a stale file");
    }

    #[test]
    fn our_own_number_in_a_stale_file_is_no_server() {
        let data = directory();
        write_pid(data.path(), i64::from(std::process::id()));
        check_no_server(data.path()).expect("that is us");
        fs::write(data.path().join("postmaster.pid"), "").expect("writable");
        check_no_server(data.path()).expect("an empty file names nobody");
    }

    #[test]
    fn shared_memory_in_use_is_found() {
        let table = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid\n\
                     \x20      1234       5678   600                    56   900   950      3   113   120   113   120\n\
                     \x20      1235       5679   600                    56   900   950      0   113   120   113   120\n";
        assert!(is_attached(table, 5678));
        assert!(!is_attached(table, 5679));
        assert!(!is_attached(table, 1));
        assert!(!is_attached("", 5678));
    }

    #[test]
    fn one_restore_at_a_time() {
        let data = directory();
        let lock = DirectoryLock::acquire(data.path()).expect("free");
        let error = DirectoryLock::acquire(data.path()).expect_err("taken");
        assert!(matches!(error, RestoreError::Busy { .. }), "{error}");
        drop(lock);
        DirectoryLock::acquire(data.path()).expect("free again");
    }

    #[test]
    fn what_is_in_a_directory_is_told_apart() {
        let root = directory();
        let data = root.path().join("data");
        assert_eq!(look(&data).expect("readable"), Existing::Missing);
        fs::create_dir(&data).expect("writable");
        fs::create_dir(data.join(LOST_AND_FOUND)).expect("writable");
        assert_eq!(look(&data).expect("readable"), Existing::Empty);
        fs::write(data.join("notes.txt"), "").expect("writable");
        assert_eq!(
            look(&data).expect("readable"),
            Existing::Foreign(vec!["notes.txt".to_owned()])
        );
        let marker = Marker {
            label: "20261121T104500Z-3f9a".parse().expect("a label"),
            system_identifier: SystemIdentifier::new(7),
        };
        fs::write(data.join(MARKER), serde_json::to_vec(&marker).expect("JSON")).expect("writable");
        assert_eq!(look(&data).expect("readable"), Existing::Unfinished(marker));
    }
}
