//! Which checks run: `--only` and `--skip` with globs.

use pgmahout_types::diagnostic::{Diagnose, Outcome};

use super::limits::nearest;

/// A selection that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// A pattern that matches no check.
    #[error("no check matches `{pattern}`")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// The check whose name is nearest.
        nearest: Option<String>,
    },
    /// Every check is left out.
    #[error("no check is left to run: all that were asked for are left out again")]
    NothingLeft,
}

impl Diagnose for SelectionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoMatch {
                nearest: Some(nearest),
                ..
            } => format!("did you mean `{nearest}`?"),
            Self::NoMatch { nearest: None, .. } => "list the checks with `pgmahout health --list`".to_owned(),
            Self::NothingLeft => {
                "leave out fewer with --skip, or in the section `checks` of the configuration".to_owned()
            }
        })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

/// The checks that were asked for.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Patterns of the checks to run; none means all.
    pub only: Vec<String>,
    /// Patterns of the checks to leave out.
    pub skip: Vec<String>,
}

impl Selection {
    /// Refuses patterns that match none of `ids`: a typing error must not pass for a healthy server.
    ///
    /// # Errors
    ///
    /// The first pattern without a match, with the nearest id.
    pub fn validate<'a>(&self, ids: impl IntoIterator<Item = &'a str> + Clone) -> Result<(), SelectionError> {
        for pattern in self.only.iter().chain(&self.skip) {
            if !ids.clone().into_iter().any(|id| matches(pattern, id)) {
                return Err(SelectionError::NoMatch {
                    pattern: pattern.clone(),
                    nearest: nearest(pattern, ids),
                });
            }
        }
        Ok(())
    }

    /// Refuses a selection of none of `ids`: a run without a check must not pass for a healthy server.
    ///
    /// # Errors
    ///
    /// [`SelectionError::NothingLeft`].
    pub fn ensure_any<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Result<(), SelectionError> {
        if ids.into_iter().any(|id| self.selects(id)) {
            Ok(())
        } else {
            Err(SelectionError::NothingLeft)
        }
    }

    /// Whether the check runs.
    pub fn selects(&self, id: &str) -> bool {
        (self.only.is_empty() || self.asks_for(id)) && !self.skip.iter().any(|pattern| matches(pattern, id))
    }

    /// Whether the check was asked for by name (`--only`).
    pub fn asks_for(&self, id: &str) -> bool {
        self.only.iter().any(|pattern| matches(pattern, id))
    }
}

/// Whether a glob matches: `*` is any run of characters, `?` one character. The name of a family
/// (`replication`) matches all of it.
pub fn matches(pattern: &str, id: &str) -> bool {
    fn glob(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| glob(rest, &text[skip..])),
            Some((b'?', rest)) => text.split_first().is_some_and(|(_, text)| glob(rest, text)),
            Some((byte, rest)) => text
                .split_first()
                .is_some_and(|(first, text)| first == byte && glob(rest, text)),
        }
    }
    glob(pattern.as_bytes(), id.as_bytes())
        || id.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_and_families_select() {
        for (pattern, id, expected) in [
            ("replication.*", "replication.slots", true),
            ("replication", "replication.slots", true),
            ("replication", "replicationx.slots", false),
            ("*.used", "connections.used", true),
            ("wal.s?ze", "wal.size", true),
            ("wal", "wal", true),
            ("tls", "tls2", false),
            ("deadlocks", "deadlocks", true),
        ] {
            assert_eq!(matches(pattern, id), expected, "{pattern} {id}");
        }
    }

    #[test]
    fn a_pattern_without_a_match_is_refused_with_the_nearest_name() {
        let selection = Selection {
            only: vec!["wal.archivng".to_owned()],
            skip: Vec::new(),
        };
        let error = selection.validate(["wal.archiving", "wal.size"]).unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean `wal.archiving`?");
    }

    #[test]
    fn skipping_wins_over_asking() {
        let selection = Selection {
            only: vec!["wal.*".to_owned()],
            skip: vec!["wal.size".to_owned()],
        };
        assert!(selection.selects("wal.archiving"));
        assert!(!selection.selects("wal.size"));
        assert!(!selection.selects("checksums"));
        assert_eq!(selection.ensure_any(["wal.archiving", "wal.size"]), Ok(()));
        assert_eq!(
            selection.ensure_any(["wal.size", "checksums"]),
            Err(SelectionError::NothingLeft)
        );
    }
}
