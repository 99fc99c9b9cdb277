//! Asking on the terminal.
//!
//! Questions go to stderr and answers come from stdin; without a terminal on both, nobody is asked and
//! the answer is a refusal (status 3), unless `--yes` was given.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use pgmahout_procedure::confirm::{Always, Confirm, ConfirmError, Never, Question, QuestionKind};

/// Answers questions as the command line says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Confirmation {
    /// `--yes`.
    Yes,
    /// A person at a terminal.
    Terminal,
    /// Nobody.
    Nobody,
}

impl Confirmation {
    /// Who answers: `--yes`, else the terminal if there is one.
    pub(crate) fn new(yes: bool) -> Self {
        if yes {
            Self::Yes
        } else if io::stdin().is_terminal() && io::stderr().is_terminal() {
            Self::Terminal
        } else {
            Self::Nobody
        }
    }
}

impl Confirm for Confirmation {
    fn ask(&self, question: &Question) -> Result<(), ConfirmError> {
        match self {
            Self::Yes => Always.ask(question),
            Self::Nobody => Never.ask(question),
            Self::Terminal => ask_person(question),
        }
    }
}

fn ask_person(question: &Question) -> Result<(), ConfirmError> {
    let answers = match &question.kind {
        QuestionKind::YesNo => "[y/N]".to_owned(),
        QuestionKind::TypeWord(word) => format!("(type '{word}' to go on)"),
    };
    let _asking = crate::signals::Asking::begin();
    let read = || -> io::Result<String> {
        let mut stderr = io::stderr().lock();
        write!(stderr, "{} {answers} ", question.text)?;
        stderr.flush()?;
        // Whoever answers with Ctrl-C is told so on the same stream.
        drop(stderr);
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        Ok(line)
    };
    let line = read().map_err(|source| ConfirmError::Terminal {
        question: question.text.clone(),
        source,
    })?;
    let answer = line.trim();
    let agreed = match &question.kind {
        QuestionKind::YesNo => answer.eq_ignore_ascii_case("y") || answer.eq_ignore_ascii_case("yes"),
        QuestionKind::TypeWord(word) => answer == word,
    };
    if agreed {
        Ok(())
    } else {
        Err(ConfirmError::Declined {
            question: question.text.clone(),
        })
    }
}
