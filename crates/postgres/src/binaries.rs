//! Finding PostgreSQL's own programs in the right major version.
//!
//! Distributions keep several versions side by side, and what `$PATH` finds first is often too old for the
//! server (pg_dump refuses a newer server) or a wrapper that picks a version by itself.

use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::version::ServerVersion;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which major version will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// Any.
    Any,
    /// This one or a newer one; the oldest that will do is taken, for its output suits the server best.
    AtLeast(u32),
    /// This one alone: what works on a data directory must be of its version.
    Exactly(u32),
}

impl Requirement {
    fn is_met_by(self, version: ServerVersion) -> bool {
        match self {
            Self::Any => true,
            Self::AtLeast(major) => version.major() >= major,
            Self::Exactly(major) => version.major() == major,
        }
    }

    fn major(self) -> Option<u32> {
        match self {
            Self::Any => None,
            Self::AtLeast(major) | Self::Exactly(major) => Some(major),
        }
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => formatter.write_str("of any version"),
            Self::AtLeast(major) => write!(formatter, "of version {major} or newer"),
            Self::Exactly(major) => write!(formatter, "of version {major}"),
        }
    }
}

/// A program that was found and asked for its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Its path.
    pub path: PathBuf,
    /// Its version.
    pub version: ServerVersion,
}

impl Binary {
    /// The directory it is in, where its companions of the same version are.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

/// No program that will do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BinaryError {
    /// None found, or none of the right version.
    #[error("no {program} {requirement} found{}", list(found))]
    NotFound {
        /// The program's name.
        program: String,
        /// What was needed.
        requirement: Requirement,
        /// What was found and will not do.
        found: Vec<Binary>,
        /// The directory that was given, where one was.
        explicit: Option<PathBuf>,
    },
}

fn list(found: &[Binary]) -> String {
    if found.is_empty() {
        return String::new();
    }
    let found: Vec<String> = found
        .iter()
        .map(|binary| format!("{} is {}", binary.path.display(), binary.version))
        .collect();
    format!(" ({})", found.join(", "))
}

impl Diagnose for BinaryError {
    fn hint(&self) -> Option<String> {
        let Self::NotFound {
            program,
            requirement,
            explicit,
            ..
        } = self;
        let package = package(program, *requirement);
        Some(match explicit {
            Some(directory) => format!(
                "--bin-dir names {}: name another directory or leave it out; the programs come with: apt-get install {package}",
                directory.display()
            ),
            None => format!(
                "apt-get install {package} (for a version that the distribution lacks, add PostgreSQL's archive: https://wiki.postgresql.org/wiki/Apt), or name the directory with --bin-dir"
            ),
        })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Failed
    }
}

/// The Debian package that holds a program.
fn package(program: &str, requirement: Requirement) -> String {
    const SERVER: [&str; 14] = [
        "initdb",
        "pg_archivecleanup",
        "pg_checksums",
        "pg_controldata",
        "pg_ctl",
        "pg_resetwal",
        "pg_rewind",
        "pg_test_fsync",
        "pg_test_timing",
        "pg_upgrade",
        "pg_waldump",
        "postgres",
        "oid2name",
        "vacuumlo",
    ];
    let base = if SERVER.contains(&program) {
        "postgresql"
    } else {
        "postgresql-client"
    };
    match requirement.major() {
        Some(major) => format!("{base}-{major}"),
        None => base.to_owned(),
    }
}

/// Where programs are looked for.
#[derive(Debug, Clone, Default)]
pub struct Binaries {
    directories: Vec<PathBuf>,
    explicit: Option<PathBuf>,
}

impl Binaries {
    /// Finds a program on this machine: in `explicit` alone where it is given, else on `$PATH` and in the
    /// directories of the usual packages.
    ///
    /// # Errors
    ///
    /// [`BinaryError::NotFound`], with what was found instead.
    pub fn find(
        program: &str,
        requirement: Requirement,
        explicit: Option<&Path>,
    ) -> Result<Binary, BinaryError> {
        match explicit {
            Some(directory) => Self {
                directories: vec![directory.to_owned()],
                explicit: Some(directory.to_owned()),
            },
            None => Self::system(),
        }
        .look_for(program, requirement)
    }

    /// This machine's directories: `$PATH`, Debian's, Red Hat's, those of the usual installers under /opt
    /// and /usr/local, and what `pg_config` says.
    pub fn system() -> Self {
        let mut directories: Vec<PathBuf> = std::env::var_os("PATH")
            .map(|path| std::env::split_paths(&path).collect())
            .unwrap_or_default();
        for (parent, prefix, suffix) in [
            ("/usr/lib/postgresql", "", "bin"),
            ("/usr", "pgsql-", "bin"),
            ("/opt", "p", "bin"),
            ("/opt/postgresql", "", "bin"),
            ("/opt/homebrew/opt", "postgresql", "bin"),
            ("/usr/local", "pgsql", "bin"),
            ("/usr/local", "postgresql", "bin"),
        ] {
            directories.extend(
                children(Path::new(parent), prefix)
                    .into_iter()
                    .map(|child| child.join(suffix)),
            );
        }
        if let Ok(output) = Command::new("pg_config").arg("--bindir").output()
            && output.status.success()
        {
            directories.push(String::from_utf8_lossy(&output.stdout).trim().into());
        }
        Self::in_directories(directories)
    }

    /// These directories, each once.
    pub fn in_directories(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut kept: Vec<PathBuf> = Vec::new();
        for directory in directories {
            if !kept.contains(&directory) {
                kept.push(directory);
            }
        }
        Self {
            directories: kept,
            explicit: None,
        }
    }

    /// Finds a program in these directories. Of several that will do, the oldest major version is taken,
    /// of that the newest minor, of those the first directory's; with [`Requirement::Any`] the newest.
    ///
    /// # Errors
    ///
    /// [`BinaryError::NotFound`], with what was found instead.
    pub fn look_for(&self, program: &str, requirement: Requirement) -> Result<Binary, BinaryError> {
        let found = self.all(program);
        let mut best: Option<&Binary> = None;
        for binary in found
            .iter()
            .filter(|binary| requirement.is_met_by(binary.version))
        {
            let better = best.is_none_or(|best| {
                let (new, old) = (binary.version, best.version);
                match requirement {
                    Requirement::Any => new > old,
                    _ => {
                        new.major() < old.major() || (new.major() == old.major() && new.minor() > old.minor())
                    }
                }
            });
            if better {
                best = Some(binary);
            }
        }
        best.cloned().ok_or_else(|| BinaryError::NotFound {
            program: program.to_owned(),
            requirement,
            found: found.clone(),
            explicit: self.explicit.clone(),
        })
    }

    /// Every program of this name that tells its version, each file once.
    pub fn all(&self, program: &str) -> Vec<Binary> {
        let mut seen: Vec<PathBuf> = Vec::new();
        let mut found = Vec::new();
        for directory in &self.directories {
            let path = directory.join(program);
            let Ok(real) = path.canonicalize() else { continue };
            // Debian's wrapper runs another version depending on what it is asked to do.
            if seen.contains(&real) || real.file_name().is_some_and(|name| name == "pg_wrapper") {
                continue;
            }
            seen.push(real.clone());
            if let Some(version) = version_of(&path) {
                // A link into another directory: the program's companions are where it really is.
                found.push(Binary { path: real, version });
            }
        }
        found
    }
}

fn children(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut children: Vec<PathBuf> = std::fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    children.sort();
    children
}

/// What the program says about itself: `pg_dump (PostgreSQL) 18.1`.
fn version_of(path: &Path) -> Option<ServerVersion> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_once("(PostgreSQL)")?.1;
    output
        .status
        .success()
        .then(|| ServerVersion::parse(version))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A directory with a program that says this version.
    fn install(root: &Path, name: &str, version: &str) -> PathBuf {
        let directory = root.join(name);
        std::fs::create_dir_all(&directory).expect("created");
        let path = directory.join("pg_dump");
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}'\n"),
        )
        .expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        directory
    }

    #[test]
    fn the_oldest_version_that_will_do_is_taken() {
        let root = tempfile::tempdir().expect("temporary directory");
        let directories = [
            ("a", "14.9"),
            ("b", "18.1"),
            ("c", "16.2"),
            ("d", "16.4 (Debian 16.4-1)"),
            ("e", "17.0"),
        ]
        .map(|(name, version)| install(root.path(), name, version));
        let binaries = Binaries::in_directories(directories.clone());
        let version = |requirement| {
            binaries
                .look_for("pg_dump", requirement)
                .expect("found")
                .version
                .number()
        };
        assert_eq!(version(Requirement::AtLeast(15)), 160_004);
        assert_eq!(version(Requirement::Exactly(17)), 170_000);
        assert_eq!(version(Requirement::Any), 180_001);
    }

    #[test]
    fn the_error_says_what_is_there_and_what_to_install() {
        let root = tempfile::tempdir().expect("temporary directory");
        let old = install(root.path(), "old", "15.4");
        let error = Binaries::in_directories([old.clone()])
            .look_for("pg_dump", Requirement::AtLeast(18))
            .expect_err("too old");
        assert_eq!(
            error.to_string(),
            format!(
                "no pg_dump of version 18 or newer found ({}/pg_dump is 15.4)",
                old.display()
            )
        );
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.starts_with("apt-get install postgresql-client-18"))
        );
        let explicit = Binaries::find("pg_ctl", Requirement::Exactly(16), Some(&old)).expect_err("not there");
        assert_eq!(explicit.to_string(), "no pg_ctl of version 16 found");
        assert!(
            explicit
                .hint()
                .is_some_and(|hint| hint.contains("--bin-dir") && hint.contains("postgresql-16"))
        );
    }

    #[test]
    fn wrappers_and_strangers_do_not_count() {
        let root = tempfile::tempdir().expect("temporary directory");
        let directory = install(root.path(), "bin", "15.4");
        std::fs::rename(directory.join("pg_dump"), directory.join("pg_wrapper")).expect("renamed");
        std::os::unix::fs::symlink("pg_wrapper", directory.join("pg_dump")).expect("linked");
        assert_eq!(Binaries::in_directories([directory]).all("pg_dump"), []);
    }
}
