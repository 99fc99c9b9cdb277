//! Changing one setting and nothing else. Comments, order, line ends, owner and mode stay; the file is
//! replaced at once, and a copy of the old one is kept.

use super::ConfError;
use super::lexer::{Line, read_line};
use pgmahout_durable::replace_atomically;
use std::path::{Path, PathBuf};

/// The text of one file, changed in memory until it is saved.
#[derive(Debug, Clone)]
pub struct ConfFile {
    path: PathBuf,
    lines: Vec<String>,
    changed: bool,
}

/// What saving did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditOutcome {
    /// Whether the file was written at all: it is not, when nothing changes.
    pub changed: bool,
    /// The copy of the file as it was before.
    pub backup: Option<PathBuf>,
}

impl ConfFile {
    /// Reads a file for editing; one that does not exist is empty.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ConfError> {
        let path = path.as_ref();
        match std::fs::read(path) {
            Ok(bytes) => {
                let text = String::from_utf8(bytes).map_err(|error| ConfError::Unreadable {
                    path: path.to_owned(),
                    source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
                })?;
                Ok(Self::from_text(path, &text))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::from_text(path, "")),
            Err(source) => Err(ConfError::Unreadable {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The same for text at hand.
    pub fn from_text(path: impl AsRef<Path>, text: &str) -> Self {
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        // What follows the last line end is no line, unless it holds something.
        if lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        Self {
            path: path.as_ref().to_owned(),
            lines,
            changed: false,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text as it will be saved.
    pub fn text(&self) -> String {
        self.lines
            .iter()
            .fold(String::new(), |text, line| text + line + "\n")
    }

    /// The value of the last line in this file that sets it; includes are not followed.
    ///
    /// # Errors
    ///
    /// When a line breaks the grammar.
    pub fn get(&self, name: &str) -> Result<Option<String>, ConfError> {
        Ok(self.places(name)?.pop().map(|place| place.value))
    }

    /// Sets a value: in the last line that sets it, where there is one, with its comment; else in a new
    /// line at the end. Earlier lines, which did not count, stay as they are.
    ///
    /// # Errors
    ///
    /// When name or value cannot stand in the file, or a line breaks the grammar.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConfError> {
        check_name(name)?;
        if value.contains(['\n', '\r', '\0']) {
            return Err(ConfError::BadValue {
                name: name.to_owned(),
            });
        }
        match self.places(name)?.pop() {
            Some(place) if place.value == value => {}
            Some(place) => {
                self.lines[place.line].replace_range(place.span, &quote(value));
                self.changed = true;
            }
            None => {
                self.lines.push(format!("{name} = {}", quote(value)));
                self.changed = true;
            }
        }
        Ok(())
    }

    /// Removes every line that sets it, so that the default counts again. Gives the number of lines.
    ///
    /// # Errors
    ///
    /// When a line breaks the grammar.
    pub fn remove(&mut self, name: &str) -> Result<usize, ConfError> {
        check_name(name)?;
        let places = self.places(name)?;
        for place in places.iter().rev() {
            self.lines.remove(place.line);
            self.changed = true;
        }
        Ok(places.len())
    }

    /// Whether something is to be saved.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Replaces the file durably and keeps the old one beside it, as `NAME.pgmahout-backup`. Owner and mode
    /// stay; a new file belongs to the owner of its directory and has mode 0600.
    ///
    /// # Errors
    ///
    /// When the copy or the new file cannot be written; the file is then as before.
    pub fn save(&mut self) -> Result<EditOutcome, ConfError> {
        if !self.changed {
            return Ok(EditOutcome {
                changed: false,
                backup: None,
            });
        }
        let backup = keep_backup(&self.path).map_err(|source| ConfError::Backup {
            path: self.path.clone(),
            source,
        })?;
        replace(&self.path, self.text().as_bytes()).map_err(|source| ConfError::Unwritable {
            path: self.path.clone(),
            source,
        })?;
        self.changed = false;
        Ok(EditOutcome {
            changed: true,
            backup,
        })
    }

    fn places(&self, name: &str) -> Result<Vec<Place>, ConfError> {
        let mut places = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            let read = read_line(line).map_err(|what| ConfError::Syntax {
                path: self.path.clone(),
                line: index + 1,
                what,
            })?;
            if let Line::Setting {
                name: found,
                value,
                value_span,
            } = read
                && found.eq_ignore_ascii_case(name)
            {
                places.push(Place {
                    line: index,
                    value,
                    span: value_span,
                });
            }
        }
        Ok(places)
    }
}

struct Place {
    line: usize,
    value: String,
    span: std::ops::Range<usize>,
}

fn check_name(name: &str) -> Result<(), ConfError> {
    let part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && part
                .chars()
                .all(|character| character.is_ascii_alphanumeric() || matches!(character, '_' | '$'))
    };
    let is_include = matches!(
        name.to_ascii_lowercase().as_str(),
        "include" | "include_dir" | "include_if_exists"
    );
    if name.split('.').all(part) && !is_include {
        Ok(())
    } else {
        Err(ConfError::BadName {
            name: name.to_owned(),
        })
    }
}

/// Always in quotes, as `ALTER SYSTEM` writes them (`guc.c`, `escape_single_quotes_ascii`).
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Copies a file beside itself with owner and mode, over an earlier copy.
pub(crate) fn keep_backup(path: &Path) -> std::io::Result<Option<PathBuf>> {
    use std::os::unix::fs::MetadataExt;
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".pgmahout-backup");
    let backup = PathBuf::from(name);
    let bytes = std::fs::read(path)?;
    replace(&backup, &bytes).map_err(std::io::Error::other)?;
    let current = std::fs::metadata(&backup)?;
    if (current.uid(), current.gid()) != (metadata.uid(), metadata.gid()) {
        std::os::unix::fs::chown(&backup, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    std::fs::set_permissions(&backup, metadata.permissions())?;
    Ok(Some(backup))
}

/// Replaces a file that exists with owner and mode kept; gives a new one to its directory's owner.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), pgmahout_durable::DurableError> {
    use std::os::unix::fs::MetadataExt;
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_new = !real.exists();
    replace_atomically(&real, bytes, 0o600)?;
    if is_new
        && rustix::process::geteuid().is_root()
        && let Some(owner) = real
            .parent()
            .and_then(|directory| std::fs::metadata(directory).ok())
    {
        // Only root can hand it over; failing leaves a file that root owns, which the server then names.
        let _ = std::os::unix::fs::chown(&real, Some(owner.uid()), Some(owner.gid()));
    }
    Ok(())
}
