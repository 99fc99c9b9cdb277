//! Asking before something that cannot be taken back.

use std::sync::Arc;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The question itself, one line, ending with a question mark: `Drop and recreate database shop?`.
    pub text: String,
    /// What counts as a yes.
    pub kind: QuestionKind,
}

/// What counts as a yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuestionKind {
    /// `y` or `yes`; just Enter is a no.
    YesNo,
    /// This word typed out: for what loses data for good.
    TypeWord(String),
}

impl Question {
    /// A question that `y` answers.
    pub fn yes_no(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            kind: QuestionKind::YesNo,
        }
    }

    /// A question that only the word `yes`, typed out, answers.
    pub fn type_yes(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            kind: QuestionKind::TypeWord("yes".to_owned()),
        }
    }
}

/// Why there is no yes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfirmError {
    /// The person said no.
    #[error("not confirmed: {question}")]
    Declined {
        /// What was asked.
        question: String,
    },
    /// There is nobody to ask: no terminal, and no `--yes`.
    #[error("this needs a confirmation and there is no terminal to ask on: {question}")]
    NobodyToAsk {
        /// What would have been asked.
        question: String,
    },
    /// The terminal failed while asking.
    #[error("cannot ask on the terminal: {question}")]
    Terminal {
        /// What was being asked.
        question: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The question was interrupted (Ctrl-C).
    #[error("interrupted while asking: {question}")]
    Interrupted {
        /// What was being asked.
        question: String,
    },
}

impl Diagnose for ConfirmError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Declined { .. } | Self::Interrupted { .. } => {
                Some("nothing was changed; run the command again when you are sure".to_owned())
            }
            Self::NobodyToAsk { .. } | Self::Terminal { .. } => {
                Some("look at the plan with --dry-run, then pass --yes".to_owned())
            }
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Interrupted { .. } => Outcome::Interrupted,
            _ => Outcome::Refused,
        }
    }
}

/// Who answers questions. The command line asks on the terminal; with `--yes` it is [`Always`], without a
/// terminal [`Never`].
pub trait Confirm: Send + Sync {
    /// Asks. Blocks until there is an answer.
    ///
    /// # Errors
    ///
    /// Anything but a clear yes.
    fn ask(&self, question: &Question) -> Result<(), ConfirmError>;
}

impl<T: Confirm + ?Sized> Confirm for Arc<T> {
    fn ask(&self, question: &Question) -> Result<(), ConfirmError> {
        (**self).ask(question)
    }
}

impl<T: Confirm + ?Sized> Confirm for &T {
    fn ask(&self, question: &Question) -> Result<(), ConfirmError> {
        (**self).ask(question)
    }
}

/// Says yes to everything: `--yes`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Always;

impl Confirm for Always {
    fn ask(&self, _question: &Question) -> Result<(), ConfirmError> {
        Ok(())
    }
}

/// Nobody is there to answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Never;

impl Confirm for Never {
    fn ask(&self, question: &Question) -> Result<(), ConfirmError> {
        Err(ConfirmError::NobodyToAsk {
            question: question.text.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_the_answer_is_a_refusal_that_names_yes() {
        let error = Never.ask(&Question::type_yes("Drop database shop?")).unwrap_err();
        assert_eq!(error.outcome().exit_code(), 3);
        assert!(error.hint().unwrap().contains("--yes"));
        assert!(error.to_string().contains("Drop database shop?"));
        assert!(Always.ask(&Question::yes_no("Drop database shop?")).is_ok());
    }
}
