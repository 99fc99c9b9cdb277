//! A private directory of one server, with a watchdog that removes it, and what runs in it, when the
//! test process ends without doing so itself (killed by a timeout, aborted, out of memory).
//!
//! The watchdog is a small shell that reads a pipe whose other end only the test process holds: the
//! kernel closes it however the test ends. (`PR_SET_PDEATHSIG` would fire when the *thread* that
//! started the server ends, and runtimes end threads at will.)

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::account::{Account, clean_environment};

/// Reads until the test process is gone, then stops every process that a `*.pid` file of the
/// directory names, unmounts what `Tmpfs` mounted and removes the directory. `$1` is the directory.
const WATCHDOG: &str = r#"
cat >/dev/null
for file in "$1"/*.pid "$1"/*/*.pid; do
    [ -f "$file" ] || continue
    read -r pid <"$file"
    case "$pid" in ''|*[!0-9]*) continue ;; esac
    case "$(cat "/proc/$pid/comm" 2>/dev/null)" in postgres|pgbouncer) ;; *) continue ;; esac
    kill -CONT "$pid"; kill -QUIT "$pid"
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    kill -KILL "$pid"
done 2>/dev/null
[ -d "$1/tmpfs" ] && umount -l "$1/tmpfs" 2>/dev/null
rm -rf "$1"
"#;

/// A private directory, owned by the servers' account, short enough for sockets.
#[derive(Debug)]
pub struct Sandbox {
    path: PathBuf,
    watchdog: Child,
}

impl Sandbox {
    /// Makes the directory and starts its watchdog.
    pub fn new() -> Self {
        let base = temporary_root();
        let path = tempfile::Builder::new()
            .prefix("pgmahout-test-")
            .tempdir_in(&base)
            .unwrap_or_else(|error| panic!("cannot make a directory in {}: {error}", base.display()))
            .keep();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .expect("the owner may change the mode");
        Account::for_servers().own(&path);
        let mut command = Command::new("/bin/sh");
        clean_environment(&mut command);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let watchdog = command
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("/bin/sh starts");
        Self { path, watchdog }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a subdirectory that belongs to the servers' account, mode 0700.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))
            .expect("the owner may change the mode");
        Account::for_servers().own(&path);
        path
    }

    /// Writes a file that belongs to the servers' account, mode 0600.
    pub fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(path);
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .expect("the owner may change the mode");
        Account::for_servers().own(&path);
        path
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The end of its input makes the watchdog stop what is left and remove the directory.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// A directory that all tests of this account share (`ports`, `templates`).
pub(crate) fn shared_directory(name: &str) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    let path = temporary_root().join(format!("pgmahout-testkit-{uid}-{name}"));
    match std::fs::create_dir(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            panic!("cannot make {}: {error}", path.display())
        }
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(&path)
        .unwrap_or_else(|error| panic!("cannot look at {}: {error}", path.display()));
    assert!(
        metadata.is_dir() && (metadata.uid() == uid),
        "{} belongs to somebody else; remove it",
        path.display()
    );
    path
}

/// Where directories are made: `$TMPDIR` where the servers' account can reach it and a socket's path
/// (107 bytes at most) fits, `/tmp` otherwise.
pub(crate) fn temporary_root() -> PathBuf {
    let wanted = std::env::temp_dir();
    let reachable = !Account::for_servers().is_another()
        || wanted.ancestors().all(|ancestor| {
            std::fs::metadata(ancestor).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
        });
    if reachable && wanted.is_absolute() && wanted.as_os_str().len() < 60 {
        wanted
    } else {
        "/tmp".into()
    }
}
