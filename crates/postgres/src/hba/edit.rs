//! Inserting and removing rules; every other line keeps its text.

use super::{HbaContent, HbaError, HbaFile, HbaLine, HbaRule, parse};
use crate::conf_file::{EditOutcome, keep_backup, replace};
use std::path::Path;

impl HbaFile {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its lines; those of included files hang below the line that includes them.
    pub fn lines(&self) -> &[HbaLine] {
        &self.lines
    }

    /// Every rule in the order in which the server tries them, with its line.
    pub fn rules(&self) -> Vec<(&HbaLine, &HbaRule)> {
        fn gather<'a>(lines: &'a [HbaLine], rules: &mut Vec<(&'a HbaLine, &'a HbaRule)>) {
            for line in lines {
                match &line.content {
                    HbaContent::Nothing => {}
                    HbaContent::Rule(rule) => rules.push((line, rule)),
                    HbaContent::Include { lines, .. } => gather(lines, rules),
                }
            }
        }
        let mut rules = Vec::new();
        gather(&self.lines, &mut rules);
        rules
    }

    /// The index of the first line that is not blank or a comment: where a rule stands that must win.
    pub fn first_rule_index(&self) -> usize {
        self.lines
            .iter()
            .position(|line| line.content != HbaContent::Nothing)
            .unwrap_or(self.lines.len())
    }

    /// Inserts a rule before the line at `index` of [`HbaFile::lines`], or at the end.
    ///
    /// # Errors
    ///
    /// When there is no such place, or the rule cannot be written as a line that reads the same.
    pub fn insert(&mut self, index: usize, rule: HbaRule) -> Result<(), HbaError> {
        if index > self.lines.len() {
            return Err(HbaError::NoSuchLine {
                path: self.path.clone(),
                index,
            });
        }
        let text = rule.to_string();
        if text.contains(['\n', '\r']) || parse::parse_rule(&text, &self.path)? != rule {
            return Err(HbaError::Syntax {
                path: self.path.clone(),
                line: index + 1,
                what: format!("the rule cannot be written as one line: {text:?}"),
            });
        }
        let line = HbaLine {
            text,
            number: 0,
            file: self.path.clone(),
            content: HbaContent::Rule(rule),
        };
        self.lines.insert(index, line);
        self.changed = true;
        Ok(())
    }

    /// Removes the line at `index` of [`HbaFile::lines`] and gives it back.
    ///
    /// # Errors
    ///
    /// When there is no such line.
    pub fn remove(&mut self, index: usize) -> Result<HbaLine, HbaError> {
        if index >= self.lines.len() {
            return Err(HbaError::NoSuchLine {
                path: self.path.clone(),
                index,
            });
        }
        self.changed = true;
        Ok(self.lines.remove(index))
    }

    /// Removes every line of this very file whose rule satisfies the condition; gives their number.
    pub fn remove_rules(&mut self, condition: impl Fn(&HbaRule) -> bool) -> usize {
        let before = self.lines.len();
        self.lines
            .retain(|line| !matches!(&line.content, HbaContent::Rule(rule) if condition(rule)));
        let removed = before - self.lines.len();
        self.changed |= removed > 0;
        removed
    }

    /// The text as it will be saved.
    pub fn text(&self) -> String {
        self.lines
            .iter()
            .fold(String::new(), |text, line| text + &line.text + "\n")
    }

    /// Replaces the file durably, with owner and mode kept, and keeps the old one beside it as
    /// `NAME.pgmahout-backup`. The server reads it when it is told to reload.
    ///
    /// # Errors
    ///
    /// When the copy or the new file cannot be written; the file is then as before.
    pub fn save(&mut self) -> Result<EditOutcome, HbaError> {
        if !self.changed {
            return Ok(EditOutcome {
                changed: false,
                backup: None,
            });
        }
        let backup = keep_backup(&self.path).map_err(|source| HbaError::Backup {
            path: self.path.clone(),
            source,
        })?;
        replace(&self.path, self.text().as_bytes()).map_err(|source| HbaError::Unwritable {
            path: self.path.clone(),
            source,
        })?;
        self.changed = false;
        Ok(EditOutcome {
            changed: true,
            backup,
        })
    }
}
