//! How a command fails: what the user reads, and the exit status.
//!
//! Libraries say what failed (their error), what to do (the hint beside it) and what it means (the
//! outcome). Here the three become text or JSON on stderr; nothing else in the program prints an error.

use std::error::Error;
use std::fmt::Write as _;

use pgmahout_types::diagnostic::{Diagnose, Outcome};
use serde_json::json;

use crate::printer::Palette;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
    outcome: Outcome,
}

impl<E: Diagnose> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            hint: error.hint(),
            outcome: error.outcome(),
            error: Box::new(error),
        }
    }
}

/// A failure that has no library behind it.
#[derive(Debug)]
struct Message {
    text: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl std::fmt::Display for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Error for Message {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

impl Failure {
    /// A failure of the program's own, for example a usage error that clap cannot see.
    pub(crate) fn new(outcome: Outcome, text: impl Into<String>) -> Self {
        Self {
            error: Box::new(Message {
                text: text.into(),
                source: None,
            }),
            hint: None,
            outcome,
        }
    }

    /// Something that was tried and failed, with its cause.
    pub(crate) fn caused_by(
        text: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            error: Box::new(Message {
                text: text.into(),
                source: Some(source.into()),
            }),
            hint: None,
            outcome: Outcome::Failed,
        }
    }

    /// Adds or replaces the hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being done in front, keeping hint and outcome.
    pub(crate) fn context(self, text: impl Into<String>) -> Self {
        Self {
            error: Box::new(Message {
                text: text.into(),
                source: Some(self.error),
            }),
            hint: self.hint,
            outcome: self.outcome,
        }
    }

    /// What to do about it.
    pub(crate) fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The exit status.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The chain of messages, outermost first, a message that repeats its predecessor left out.
    fn chain(&self) -> Vec<String> {
        let mut messages: Vec<String> = vec![self.error.to_string()];
        let mut source = self.error.source();
        while let Some(error) = source {
            let text = error.to_string();
            if messages.last().is_none_or(|last| !last.ends_with(&text)) {
                messages.push(text);
            }
            source = error.source();
        }
        messages
    }

    /// The error and its causes in one line, for a result that is not the command's own failure.
    pub(crate) fn summary(&self) -> String {
        self.chain().join(": ")
    }

    /// As text: the error, its causes, the hint.
    pub(crate) fn render(&self, palette: &Palette) -> String {
        let chain = self.chain();
        let mut text = String::new();
        for (index, message) in chain.iter().enumerate() {
            let label = if index == 0 {
                palette.bad("error:")
            } else {
                "  caused by:".to_owned()
            };
            let indented = message.trim_end().replace('\n', "\n    ");
            let _ = writeln!(text, "{label} {indented}");
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(
                text,
                "{} {}",
                palette.strong("hint:"),
                hint.replace('\n', "\n      ")
            );
        }
        text
    }

    /// As one JSON object, for `--json`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let chain = self.chain();
        json!({
            "schema_version": 1,
            "error": {
                "message": chain[0],
                "causes": chain[1..],
                "hint": self.hint,
                "outcome": self.outcome.as_str(),
                "exit_status": self.outcome.exit_code(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_said_once_and_the_hint_comes_last() {
        let inner = Failure::new(Outcome::Refused, "the server is running").hint("stop it first");
        let text = inner
            .context("cannot restore into /srv/data")
            .render(&Palette::plain());
        assert_eq!(
            text,
            "error: cannot restore into /srv/data\n  caused by: the server is running\nhint: stop it first\n"
        );
    }

    #[test]
    fn a_cause_that_its_error_already_says_is_not_repeated() {
        let failure = Failure::caused_by("cannot open the file: permission denied", "permission denied");
        assert_eq!(
            failure.render(&Palette::plain()),
            "error: cannot open the file: permission denied\n"
        );
    }
}
