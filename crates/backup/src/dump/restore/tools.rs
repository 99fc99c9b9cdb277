//! PostgreSQL's client programs: where they are and how old.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pgmahout_types::version::ServerVersion;

use super::error::RestoreError;

/// Programs of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// Their directory.
    pub directory: PathBuf,
    /// The version that psql (or the program that was looked for) gives.
    pub version: ServerVersion,
}

impl Tools {
    /// Finds an installation that has this program, of at least this major version: in `bin_dir` if given,
    /// else in `$PATH` and the places where distributions put it. Of several the one of exactly that major
    /// version, else the oldest that is new enough.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(program: &'static str, at_least: u32, bin_dir: Option<&Path>) -> Result<Self, RestoreError> {
        let directories = match bin_dir {
            Some(directory) => vec![directory.to_path_buf()],
            None => candidates(),
        };
        let mut found: Vec<Self> = Vec::new();
        for directory in directories {
            if found.iter().any(|tools| tools.directory == directory) {
                continue;
            }
            if let Some(version) = version_of(&directory.join(program)) {
                found.push(Self { directory, version });
            }
        }
        let fitting = found
            .iter()
            .filter(|tools| tools.version.major() >= at_least)
            .min_by_key(|tools| (tools.version.major(), std::cmp::Reverse(tools.version.number())));
        if let Some(tools) = fitting {
            return Ok(tools.clone());
        }
        let newest = found.iter().map(|tools| tools.version).max();
        Err(RestoreError::Program {
            what: match (newest, bin_dir) {
                (Some(version), _) => {
                    format!(
                        "{program} of PostgreSQL {at_least} or newer is needed, and only {version} is here"
                    )
                }
                (None, Some(directory)) => format!("there is no {program} in {}", directory.display()),
                (None, None) => format!("{program} was not found"),
            },
            hint: format!(
                "install PostgreSQL's client programs (apt-get install postgresql-client-{at_least}), or say where they are with --bin-dir"
            ),
        })
    }

    /// A program of this installation.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Whether psql knows `\restrict`: since the minor releases of August 2025 (CVE-2025-8714).
    pub fn knows_restrict(&self) -> bool {
        match self.version.major() {
            ..13 => false,
            13 => self.version.minor() >= 22,
            14 => self.version.minor() >= 19,
            15 => self.version.minor() >= 14,
            16 => self.version.minor() >= 10,
            17 => self.version.minor() >= 6,
            _ => true,
        }
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for pattern in [
        "/usr/lib/postgresql",
        "/usr/pgsql",
        "/opt/homebrew/opt",
        "/usr/local/opt",
    ] {
        let path = Path::new(pattern);
        let (parent, prefix) = if path.is_dir() {
            (path, "")
        } else {
            (
                path.parent().unwrap_or(path),
                path.file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default(),
            )
        };
        if prefix.is_empty() || prefix == "pgsql" {
            for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
                let fits = entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| name.starts_with(prefix));
                if fits {
                    directories.push(entry.path().join("bin"));
                }
            }
        }
    }
    directories.push("/usr/local/pgsql/bin".into());
    if let Some(path) = std::env::var_os("PATH") {
        directories.extend(std::env::split_paths(&path));
    }
    directories.retain(|directory| directory.is_absolute() && directory.is_dir());
    directories.sort();
    directories.dedup();
    directories
}

/// What `program --version` says; `None` when it is not there or does not run.
fn version_of(program: &Path) -> Option<ServerVersion> {
    if !program.is_file() {
        return None;
    }
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    ServerVersion::parse(&String::from_utf8_lossy(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_an_error_that_says_what_to_install() {
        use pgmahout_types::diagnostic::Diagnose as _;
        let error = Tools::find("psql", 15, Some(Path::new("/nonexistent"))).unwrap_err();
        assert_eq!(error.to_string(), "there is no psql in /nonexistent");
        assert!(error.hint().unwrap().contains("postgresql-client-15"));
        let error = Tools::find("psql", 99, None).unwrap_err();
        assert!(error.to_string().starts_with("psql"), "{error}");
    }

    #[test]
    fn restrict_is_known_since_august_2025() {
        let tools = |number| Tools {
            directory: "/".into(),
            version: ServerVersion::from_number(number),
        };
        assert!(tools(150_014).knows_restrict() && tools(180_000).knows_restrict());
        assert!(!tools(150_013).knows_restrict() && !tools(120_020).knows_restrict());
    }
}
