//! A small file system of a given size: how a full disk is made.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account::Account;
use crate::sandbox::Sandbox;

/// A mounted tmpfs, owned by the servers' account; unmounted when dropped, or by the sandbox's watchdog.
#[derive(Debug)]
pub struct Tmpfs {
    sandbox: Sandbox,
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts a tmpfs of `size` bytes.
    ///
    /// # Errors
    /// The reason why this account cannot mount here (not root, a container without the capability):
    /// the test says so and skips.
    pub fn new(size: u64) -> Result<Self, String> {
        if rustix::process::geteuid().as_raw() != 0 {
            return Err("only root can mount a tmpfs".to_owned());
        }
        let sandbox = Sandbox::new();
        let path = sandbox.directory("tmpfs");
        let account = Account::for_servers();
        let options = format!("size={size},mode=0755,uid={},gid={}", account.uid, account.gid);
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .output()
            .map_err(|error| format!("cannot start mount: {error}"))?;
        if output.status.success() {
            Ok(Self { sandbox, path })
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file until at most `remain` bytes are free; returns its path.
    pub fn fill(&self, remain: u64) -> PathBuf {
        let path = self.path.join("filler");
        let statistics = rustix::fs::statvfs(&self.path).expect("a mounted file system has statistics");
        let free = statistics.f_bavail * statistics.f_frsize;
        let size = usize::try_from(free.saturating_sub(remain)).expect("the file system is small");
        std::fs::write(&path, vec![b'x'; size]).expect("there is as much free space as statvfs says");
        Account::for_servers().own(&path);
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = &self.sandbox;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_tmpfs_takes_no_more() {
        let Ok(small) = Tmpfs::new(1 << 20) else { return };
        small.fill(4096);
        let error = std::fs::write(small.path().join("more"), vec![0; 64 << 10]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        let path = small.path().to_owned();
        drop(small);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_server_on_a_full_tmpfs_says_so() {
        use crate::postgres::{Major, Postgres};
        let Ok(small) = Tmpfs::new(120 << 20) else { return };
        let server = Postgres::builder(Major::V15)
            .data_parent(small.path())
            .start()
            .await;
        assert!(server.data_dir().starts_with(small.path()));
        small.fill(1 << 20);
        let client = server.client("postgres").await;
        let filling = "CREATE TABLE t AS SELECT repeat(i::text, 100) FROM generate_series(1, 50000) i";
        let error = client.batch_execute(filling).await.unwrap_err();
        assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::DISK_FULL));
        let pid = server.pid();
        drop(server);
        assert!(!crate::processes::is_running(pid));
    }
}
