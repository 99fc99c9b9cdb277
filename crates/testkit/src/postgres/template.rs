//! `initdb` once per binary and options; every server starts from a copy.
//!
//! The cached clusters are made anew every few days, because machines clear files that nobody touches
//! out of the temporary directory.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::account::Account;
use crate::sandbox::{Sandbox, shared_directory};

const RENEWAL: Duration = Duration::from_hours(4 * 24);

/// Arguments of `initdb` beside the directory.
pub(super) struct Options<'a> {
    pub(super) bin_dir: &'a Path,
    pub(super) arguments: &'a [String],
    pub(super) password: Option<&'a str>,
}

impl Options<'_> {
    /// Makes `data_dir` from the cached cluster of these options, creating that first where needed.
    pub(super) fn copy_to(&self, data_dir: &Path) {
        let template = self.template();
        let mut copy = Account::for_servers().command("cp");
        copy.args(["-a", "--reflink=auto"]).arg(&template).arg(data_dir);
        run(copy, "copying the initial cluster");
    }

    /// Runs `initdb` for `data_dir` itself.
    pub(super) fn initialize(&self, data_dir: &Path) {
        let mut initdb = Account::for_servers().command(self.bin_dir.join("initdb"));
        initdb.args([
            "--no-sync",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]);
        initdb.arg("-D").arg(data_dir).args(self.arguments);
        let secrets = self.password.map(|password| {
            let sandbox = Sandbox::new();
            let file = sandbox.file("password", format!("{password}\n"));
            (sandbox, file)
        });
        match &secrets {
            Some((_, file)) => initdb.arg("--auth=scram-sha-256").arg("--pwfile").arg(file),
            None => initdb.arg("--auth=trust"),
        };
        run(initdb, "initdb");
    }

    fn template(&self) -> PathBuf {
        let cache = shared_directory("templates");
        let key = self.key();
        let template = cache.join(&key);
        if template.is_dir() {
            return template;
        }
        let lock = File::create(cache.join(format!("{key}.lock"))).expect("the cache is writable");
        lock.lock().expect("flock works on the temporary directory");
        if !template.is_dir() {
            remove_old(&cache);
            let partial = cache.join(format!("{key}.partial"));
            let _ = std::fs::remove_dir_all(&partial);
            std::fs::create_dir(&partial).expect("the cache is writable");
            Account::for_servers().own(&partial);
            self.initialize(&partial);
            std::fs::rename(&partial, &template).expect("the cache is writable");
        }
        template
    }

    fn key(&self) -> String {
        let postgres = self.bin_dir.join("postgres");
        let metadata = std::fs::metadata(&postgres)
            .unwrap_or_else(|error| panic!("cannot look at {}: {error}", postgres.display()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let period = now.as_secs() / RENEWAL.as_secs();
        let mut hasher = DefaultHasher::new();
        (
            period,
            postgres,
            metadata.mtime(),
            metadata.len(),
            self.arguments,
            self.password,
        )
            .hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

/// Removes clusters that no period in use names any more.
fn remove_old(cache: &Path) {
    let Ok(entries) = std::fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        let made = entry.metadata().and_then(|metadata| metadata.modified());
        if made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > 2 * RENEWAL)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs a command to its end and panics with its output when it fails.
pub(super) fn run(mut command: std::process::Command, what: &str) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{what}: cannot start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{what} failed with {}: {command:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
