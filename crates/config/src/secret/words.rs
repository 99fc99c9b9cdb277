//! Splitting a command line into words, without a shell.

use super::SecretError;

/// Splits at blanks. Single quotes keep everything, double quotes everything but `\"` and `\\`, a backslash
/// outside quotes the next character. No variables, no substitution, no globs.
pub(super) fn split(line: &str) -> Result<Vec<String>, SecretError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next().ok_or(SecretError::UnclosedQuote)? {
                        '\'' => break,
                        inner => word.push(inner),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next().ok_or(SecretError::UnclosedQuote)? {
                        '"' => break,
                        '\\' => match characters.next().ok_or(SecretError::UnclosedQuote)? {
                            escaped @ ('"' | '\\') => word.push(escaped),
                            other => word.extend(['\\', other]),
                        },
                        inner => word.push(inner),
                    }
                }
            }
            '\\' => {
                let escaped = characters.next().ok_or(SecretError::UnclosedQuote)?;
                word.get_or_insert_default().push(escaped);
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}
