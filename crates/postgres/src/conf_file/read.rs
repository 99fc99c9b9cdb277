//! Reading a file with everything that it includes.

use super::ConfError;
use super::lexer::{Line, read_line};
use std::path::{Path, PathBuf};

/// As in the server (`conffiles.h`, `CONF_FILE_MAX_DEPTH`).
const DEEPEST: usize = 10;

/// One line that sets something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfSetting {
    /// The name in lower case; names do not depend on case.
    pub name: String,
    /// The value without quotes and escapes.
    pub value: String,
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: usize,
}

/// Everything that a configuration file sets, in the order of reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    settings: Vec<ConfSetting>,
    files: Vec<PathBuf>,
}

impl Configuration {
    /// Reads a file and what it includes.
    ///
    /// # Errors
    ///
    /// When a file cannot be read (but for `include_if_exists`) or breaks the grammar.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfError> {
        let mut configuration = Self::default();
        configuration.add_file(path.as_ref(), 0)?;
        Ok(configuration)
    }

    /// Reads `postgresql.conf` and then `postgresql.auto.conf`, which wins, as a server with this data
    /// directory does. Debian keeps the first elsewhere: name it then.
    ///
    /// # Errors
    ///
    /// As [`Configuration::read`].
    pub fn read_server(data_directory: &Path, config_file: Option<&Path>) -> Result<Self, ConfError> {
        let main = config_file.map_or_else(|| data_directory.join("postgresql.conf"), Path::to_owned);
        let mut configuration = Self::read(main)?;
        let auto = data_directory.join("postgresql.auto.conf");
        if auto.exists() {
            configuration.add_file(&auto, 0)?;
        }
        Ok(configuration)
    }

    /// Reads text that stands for the content of `path`; relative includes count from there.
    ///
    /// # Errors
    ///
    /// As [`Configuration::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfError> {
        let mut configuration = Self::default();
        configuration.add_text(text, path, 0)?;
        Ok(configuration)
    }

    /// The value that counts: the last one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.setting(name).map(|setting| setting.value.as_str())
    }

    /// The line that counts.
    pub fn setting(&self, name: &str) -> Option<&ConfSetting> {
        self.settings
            .iter()
            .rev()
            .find(|setting| setting.name.eq_ignore_ascii_case(name))
    }

    /// Every line that sets something, also those that a later one overrides.
    pub fn settings(&self) -> &[ConfSetting] {
        &self.settings
    }

    /// Every file that was read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn add_file(&mut self, path: &Path, depth: usize) -> Result<(), ConfError> {
        if depth > DEEPEST {
            return Err(ConfError::TooDeep {
                path: path.to_owned(),
            });
        }
        let bytes = std::fs::read(path).map_err(|source| ConfError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        self.add_text(&String::from_utf8_lossy(&bytes), path, depth)
    }

    fn add_text(&mut self, text: &str, path: &Path, depth: usize) -> Result<(), ConfError> {
        self.files.push(path.to_owned());
        for (index, line) in text.split('\n').enumerate() {
            let number = index + 1;
            let syntax = |what: String| ConfError::Syntax {
                path: path.to_owned(),
                line: number,
                what,
            };
            let Line::Setting { name, value, .. } = read_line(line).map_err(syntax)? else {
                continue;
            };
            let beside = || path.parent().unwrap_or(Path::new(".")).join(&value);
            match name.to_ascii_lowercase().as_str() {
                "include" => self.add_file(&beside(), depth + 1)?,
                "include_if_exists" => {
                    let included = beside();
                    if included.exists() {
                        self.add_file(&included, depth + 1)?;
                    }
                }
                "include_dir" => {
                    for included in conf_files(&beside())? {
                        self.add_file(&included, depth + 1)?;
                    }
                }
                lower => self.settings.push(ConfSetting {
                    name: lower.to_owned(),
                    value,
                    file: path.to_owned(),
                    line: number,
                }),
            }
        }
        Ok(())
    }
}

/// The files of an `include_dir`: names that end in `.conf` and do not begin with a dot, in the order of
/// their bytes (`conffiles.c`, `GetConfFilesInDir`).
fn conf_files(directory: &Path) -> Result<Vec<PathBuf>, ConfError> {
    let unreadable = |source| ConfError::Unreadable {
        path: directory.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let is_conf = name.len() > 5 && name.as_bytes().ends_with(b".conf") && !name.starts_with('.');
        if is_conf && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
