//! Where journals and the audit log live.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pgmahout_durable::{DurableError, create_directory_durably};
use pgmahout_types::diagnostic::{Diagnose, Outcome};

/// The state directory of root.
const SYSTEM: &str = "/var/lib/pgmahout";

/// Why there is no place for state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The directory that was asked for cannot be used.
    #[error("the state directory {} cannot be used", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: DurableError,
    },
    /// None is named and none can be guessed.
    #[error("there is no state directory: neither PGMAHOUT_STATE_DIR nor XDG_STATE_HOME nor HOME is set")]
    Nowhere,
}

impl Diagnose for StateError {
    fn hint(&self) -> Option<String> {
        Some(
            "name a directory that this user can write to and that survives a restart: \
             export PGMAHOUT_STATE_DIR=/path"
                .to_owned(),
        )
    }

    fn outcome(&self) -> Outcome {
        Outcome::Failed
    }
}

/// The directory where journals and the audit log are kept: `$PGMAHOUT_STATE_DIR`, else for root
/// `/var/lib/pgmahout`, else `$XDG_STATE_HOME/pgmahout`, else `~/.local/state/pgmahout`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDirectory {
    path: PathBuf,
    /// What was tried first and why it was not used.
    fallback: Option<String>,
}

/// What decides where the state directory is.
#[derive(Debug, Default)]
struct Clues {
    explicit: Option<OsString>,
    root: bool,
    xdg_state_home: Option<OsString>,
    home: Option<OsString>,
}

impl StateDirectory {
    /// The directory for this process, by the environment. Creates nothing. Where the first of the defaults
    /// cannot be written to, it is the next one, and [`StateDirectory::fallback`] says so; one that
    /// `$PGMAHOUT_STATE_DIR` names is it, whatever it is like.
    ///
    /// # Errors
    ///
    /// [`StateError::Nowhere`].
    pub fn locate() -> Result<Self, StateError> {
        Self::choose(Self::by_clues(&Clues::of_process()))
    }

    /// Creates the directory if it is missing, and proves it writable.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn ensure(&self) -> Result<(), StateError> {
        try_out(&self.path).map_err(|source| StateError::Unusable {
            path: self.path.clone(),
            source,
        })
    }

    /// This very directory.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            fallback: None,
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was tried first, and why that is not it: for a warning.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The directory of the procedures' journals.
    pub fn procedures(&self) -> PathBuf {
        self.path.join("procedures")
    }

    /// The audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.path.join("audit.jsonl")
    }

    fn by_clues(clues: &Clues) -> Vec<PathBuf> {
        let absolute = |value: &Option<OsString>| {
            value
                .as_ref()
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        if let Some(explicit) = clues.explicit.as_ref().filter(|path| !path.is_empty()) {
            return vec![PathBuf::from(explicit)];
        }
        let mut candidates = Vec::new();
        if clues.root {
            candidates.push(PathBuf::from(SYSTEM));
        }
        if let Some(directory) = absolute(&clues.xdg_state_home) {
            candidates.push(directory.join("pgmahout"));
        } else if let Some(home) = absolute(&clues.home) {
            candidates.push(home.join(".local/state/pgmahout"));
        }
        candidates
    }

    fn choose(candidates: Vec<PathBuf>) -> Result<Self, StateError> {
        let first = candidates.first().cloned().ok_or(StateError::Nowhere)?;
        match candidates.into_iter().find(|candidate| is_writable(candidate)) {
            Some(path) if path != first => {
                let fallback = format!("the state directory {} cannot be written to", first.display());
                Ok(Self {
                    path,
                    fallback: Some(fallback),
                })
            }
            // Nothing better: whoever needs to write there gets the error.
            _ => Ok(Self::at(first)),
        }
    }
}

/// Whether the directory, or what is there of the path to it, can be written to.
fn is_writable(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .is_some_and(|existing| {
            existing.is_dir()
                && rustix::fs::access(
                    existing,
                    rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
                )
                .is_ok()
        })
}

impl Clues {
    fn of_process() -> Self {
        Self {
            explicit: std::env::var_os("PGMAHOUT_STATE_DIR"),
            root: rustix::process::geteuid().is_root(),
            xdg_state_home: std::env::var_os("XDG_STATE_HOME"),
            home: std::env::var_os("HOME"),
        }
    }
}

/// Creates the directory and the one for journals, and writes something there.
fn try_out(path: &Path) -> Result<(), DurableError> {
    create_directory_durably(path, 0o700)?;
    let procedures = path.join("procedures");
    create_directory_durably(&procedures, 0o700)?;
    pgmahout_durable::AtomicFile::create(procedures.join("probe"), 0o600)?.discard()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clues(explicit: &str, root: bool, xdg: &str, home: &str) -> Clues {
        let some = |text: &str| (!text.is_empty()).then(|| OsString::from(text));
        Clues {
            explicit: some(explicit),
            root,
            xdg_state_home: some(xdg),
            home: some(home),
        }
    }

    #[test]
    fn the_state_directory_follows_user_and_environment() {
        let first = |clues: Clues| StateDirectory::by_clues(&clues).into_iter().next();
        assert_eq!(first(clues("/s", true, "/x", "/h")), Some("/s".into()));
        assert_eq!(
            first(clues("", true, "/x", "/h")),
            Some("/var/lib/pgmahout".into())
        );
        assert_eq!(first(clues("", false, "/x", "/h")), Some("/x/pgmahout".into()));
        assert_eq!(
            first(clues("", false, "relative", "/h")),
            Some("/h/.local/state/pgmahout".into())
        );
        assert_eq!(first(clues("", false, "", "")), None);
    }

    #[test]
    fn an_unusable_default_gives_way_with_a_word_and_a_named_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let blocked = directory.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let blocked = blocked.join("state");
        let good = directory.path().join("good/state");
        let state = StateDirectory::choose(vec![blocked.clone(), good.clone()]).unwrap();
        assert_eq!(state.path(), good);
        assert!(state.fallback().unwrap().contains(&blocked.display().to_string()));
        assert!(!good.exists());
        state.ensure().unwrap();
        assert!(good.join("procedures").is_dir());
        let state = StateDirectory::choose(vec![blocked.clone()]).unwrap();
        assert_eq!((state.path(), state.fallback()), (blocked.as_path(), None));
        let error = state.ensure().unwrap_err();
        assert!(error.hint().unwrap().contains("PGMAHOUT_STATE_DIR"));
    }
}
