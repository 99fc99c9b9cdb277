//! Who asks for a file, and what an exit status means to him.
//!
//! To the server the status 1 to 125 of `restore_command` means that the file does not exist: recovery takes that
//! for the end of the WAL. A status of 126 or more ends recovery with an error (`RestoreArchivedFile` in
//! `src/backend/access/transam/xlogarchive.c`, `wait_result_is_any_signal` in `src/common/wait_error.c`). So in a
//! point-in-time recovery, whatever is not *proven* absent must be 126 or more: recovery would end early, and the
//! server would be promoted without rows that the archive has. A standby never ends recovery by itself: there 1
//! makes it try again or stream, and 126 would shut it down.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pgmahout_types::diagnostic::Outcome;

/// The file is not in the archive.
pub const ABSENT: u8 = 1;
/// It is not known whether the file is in the archive, or it cannot be had.
pub const FAILED: u8 = 126;
/// SIGTERM ended it, as a shell says that: the server takes it for its own shutdown.
pub const TERMINATED: u8 = 143;

/// What recovery is going on in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMode {
    /// `standby.signal`: a standby.
    Standby,
    /// `recovery.signal`: an archive recovery that ends with a promotion.
    Recovery,
    /// Neither: a person, `pg_rewind`.
    None,
}

impl RecoveryMode {
    /// What is going on in a data directory. With both files the server takes it for a standby.
    pub fn of(data_directory: &Path) -> Self {
        // What cannot be looked at counts as there: the stricter meaning.
        let is_there = |name: &str| data_directory.join(name).try_exists().unwrap_or(true);
        if is_there("standby.signal") {
            Self::Standby
        } else if is_there("recovery.signal") {
            Self::Recovery
        } else {
            Self::None
        }
    }

    /// The exit status of a fetch that ended with an error.
    pub fn status(self, outcome: Outcome) -> u8 {
        match (self, outcome) {
            (_, Outcome::Interrupted) => TERMINATED,
            (Self::Standby, _) => ABSENT,
            (Self::Recovery | Self::None, _) => FAILED,
        }
    }
}

/// Whether a command line is one of `wal fetch`, and the recovery that it serves: known before the arguments are
/// understood, because a misspelt one must not end recovery.
pub fn of_arguments(arguments: &[OsString]) -> Option<RecoveryMode> {
    directory_of(arguments).map(|directory| RecoveryMode::of(&directory))
}

/// The data directory that a command line of `wal fetch` serves; `None` where it is none.
pub fn directory_of(arguments: &[OsString]) -> Option<PathBuf> {
    let verb = arguments
        .windows(2)
        .position(|pair| pair[0] == "wal" && pair[1] == "fetch")?;
    let rest = &arguments[verb + 2..];
    let is_help = |argument: &OsString| argument == "--help";
    if rest.iter().any(is_help) {
        return None;
    }
    Some(data_directory(arguments, rest))
}

/// The data directory: given, or around the pg_wal of the target, or the current directory, as the server has it.
fn data_directory(arguments: &[OsString], rest: &[OsString]) -> PathBuf {
    for (at, argument) in arguments.iter().enumerate() {
        if argument == "--data-dir" {
            if let Some(value) = arguments.get(at + 1) {
                return PathBuf::from(value);
            }
        } else if let Some(value) = argument
            .to_str()
            .and_then(|text| text.strip_prefix("--data-dir="))
        {
            return PathBuf::from(value);
        }
    }
    let target = rest.iter().map(PathBuf::from).find(|path| {
        path.is_absolute()
            && path
                .parent()
                .and_then(Path::file_name)
                .is_some_and(|name| name == "pg_wal")
    });
    target
        .as_deref()
        .and_then(Path::parent)
        .and_then(Path::parent)
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn in_a_recovery_nothing_but_proven_absence_is_below_126() {
        for outcome in [
            Outcome::Failed,
            Outcome::Usage,
            Outcome::Refused,
            Outcome::Interrupted,
        ] {
            assert!(RecoveryMode::Recovery.status(outcome) >= 126);
            assert!(RecoveryMode::None.status(outcome) >= 126);
        }
    }

    #[test]
    fn a_standby_is_never_shut_down() {
        for outcome in [Outcome::Failed, Outcome::Usage, Outcome::Refused] {
            assert_eq!(RecoveryMode::Standby.status(outcome), 1);
        }
    }

    #[test]
    fn the_recovery_is_known_from_arguments_that_make_no_sense() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("recovery.signal"), "").expect("written");
        std::fs::create_dir(directory.path().join("pg_wal")).expect("made");
        let path = directory.path().display();
        for line in [
            format!("pgmahout wal fetch --no-such-flag X {path}/pg_wal/RECOVERYXLOG"),
            format!("pgmahout --config /nowhere wal fetch --data-dir {path} X Y Z"),
            format!("pgmahout wal fetch X --data-dir={path}"),
        ] {
            assert_eq!(
                of_arguments(&arguments(&line)),
                Some(RecoveryMode::Recovery),
                "{line}"
            );
        }
        assert_eq!(of_arguments(&arguments("pgmahout wal push fetch")), None);
        assert_eq!(of_arguments(&arguments("pgmahout wal fetch --help")), None);
        std::fs::write(directory.path().join("standby.signal"), "").expect("written");
        assert_eq!(RecoveryMode::of(directory.path()), RecoveryMode::Standby);
    }
}
