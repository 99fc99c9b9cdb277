//! Finding the file, reading it, putting the environment over it, and making settings of it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::node::{self, Content, Node};
use crate::patroni;
use crate::problem::{ConfigError, Origin, Problem, Severity};
use crate::secret::SecretReference;
use crate::section::{Problems, Section};
use crate::settings::{
    Expect, Server, Settings, Targets, read_backup, read_checks, read_dump, read_repositories, read_wal,
};

/// The file of a machine.
const SYSTEM: &str = "/etc/pgmahout/pgmahout.yml";
/// The file of a directory.
const LOCAL: &str = "./pgmahout.yml";

/// Sections of ours that are read.
const SECTIONS: [&str; 8] = [
    "stanza",
    "repository",
    "backup",
    "wal",
    "dump",
    "checks",
    "expect",
    "targets",
];
/// Sections of ours that later versions will read; accepted, so that one file serves several versions.
const LATER: [&str; 6] = ["monitor", "alerts", "notify", "archive_tables", "pool", "route"];

/// The settings, and what should be looked at though it does not make them unusable.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The warnings, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// Where settings come from beside the command line.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The environment variables.
    pub variables: BTreeMap<String, String>,
    /// The files that are tried, in order, when none is named.
    pub candidates: Vec<PathBuf>,
}

impl Sources {
    /// Those of this process.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("PGMAHOUT_") || name.starts_with("PATRONI_"))
            .collect();
        Self {
            variables,
            candidates: vec![PathBuf::from(LOCAL), PathBuf::from(SYSTEM)],
        }
    }
}

impl Settings {
    /// Finds and reads the configuration: the file named by `--config`, else by `$PGMAHOUT_CONFIG`, else
    /// `./pgmahout.yml`, else `/etc/pgmahout/pgmahout.yml`, else none; with `PGMAHOUT_*` and `PATRONI_*`
    /// variables over it.
    ///
    /// # Errors
    ///
    /// When a named file cannot be read, `./pgmahout.yml` could be somebody else's, or something in the
    /// configuration is wrong: all of it at once.
    pub fn load(named: Option<&Path>, sources: &Sources) -> Result<Loaded, ConfigError> {
        let from_variable = sources
            .variables
            .get("PGMAHOUT_CONFIG")
            .filter(|path| !path.is_empty());
        let named = named
            .map(Path::to_path_buf)
            .or_else(|| from_variable.map(PathBuf::from));
        let file = match named {
            Some(path) => {
                let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
                    path: path.clone(),
                    source,
                })?;
                Some((path, text))
            }
            None => find(&sources.candidates)?,
        };
        let Some((path, text)) = file else {
            return Self::read("", None, &sources.variables);
        };
        let mut loaded = Self::read(&text, Some(&path), &sources.variables)?;
        loaded
            .warnings
            .extend(loaded.settings.warn_of_readable_secrets(&path));
        Ok(loaded)
    }

    /// A file that holds secrets itself, and not references to them, is for its owner's eyes.
    fn warn_of_readable_secrets(&self, path: &Path) -> Option<Problem> {
        let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
        let literal = self
            .secrets()
            .iter()
            .any(|(_, reference)| matches!(reference, SecretReference::Literal(_)));
        ((literal || self.patroni.has_secrets()) && mode & 0o004 != 0).then(|| {
            let origin = Origin::File { path: shown(path).to_path_buf(), line: 1, column: 1 };
            let message = format!(
                "the file holds secrets and everybody may read it (mode {mode:04o}); chmod 640 it, or put them \
                 into files of their own and write file:/path"
            );
            Problem::warning(origin, message)
        })
    }

    /// Reads a configuration from its text. `path` is for messages.
    ///
    /// # Errors
    ///
    /// When something in it is wrong: all of it at once.
    pub fn read(
        text: &str,
        path: Option<&Path>,
        variables: &BTreeMap<String, String>,
    ) -> Result<Loaded, ConfigError> {
        let shown = shown(path.unwrap_or(Path::new("pgmahout.yml")));
        let mut root = node::parse(text, shown).map_err(|problem| ConfigError::Invalid {
            problems: vec![problem],
        })?;
        patroni::apply_variables(&mut root, variables);
        apply_variables(&mut root, variables);
        let problems = Problems::default();
        let mut settings = read_settings(&root, &problems);
        settings.file = path.map(Path::to_path_buf);
        let (errors, warnings): (Vec<_>, Vec<_>) = problems
            .into_inner()
            .into_iter()
            .partition(|problem| problem.severity == Severity::Error);
        if errors.is_empty() {
            Ok(Loaded { settings, warnings })
        } else {
            Err(ConfigError::Invalid {
                problems: in_order(errors),
            })
        }
    }
}

/// A path as messages have it.
fn shown(path: &Path) -> &Path {
    path.strip_prefix(".").unwrap_or(path)
}

/// By their place in the file.
fn in_order(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|problem| match problem.origin {
        Origin::File { line, column, .. } => (line, column),
        Origin::Variable(_) => (usize::MAX, 0),
    });
    problems
}

/// The first file that is there.
fn find(candidates: &[PathBuf]) -> Result<Option<(PathBuf, String)>, ConfigError> {
    for path in candidates {
        let read = |source: io::Error| ConfigError::Read {
            path: path.clone(),
            source,
        };
        let mut file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                continue;
            }
            Err(error) => return Err(read(error)),
        };
        let metadata = file.metadata().map_err(read)?;
        if !path.is_absolute() || path.starts_with("./") {
            let ours = rustix::process::geteuid().as_raw();
            if metadata.uid() != ours && metadata.uid() != 0 {
                return Err(ConfigError::Untrusted {
                    path: path.clone(),
                    why: "belongs to another user",
                });
            }
            if metadata.mode() & 0o002 != 0 {
                return Err(ConfigError::Untrusted {
                    path: path.clone(),
                    why: "can be changed by other users",
                });
            }
        }
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text).map_err(read)?;
        return Ok(Some((path.clone(), text)));
    }
    Ok(None)
}

/// Puts `PGMAHOUT_<SECTION>_<KEY>` over what the file says; for a repository
/// `PGMAHOUT_REPOSITORY_<NAME>_<KEY>`.
fn apply_variables(root: &mut Node, variables: &BTreeMap<String, String>) {
    for (variable, value) in variables {
        let Some(name) = variable.strip_prefix("PGMAHOUT_") else {
            continue;
        };
        let name = name.to_ascii_lowercase();
        let origin = Origin::Variable(variable.clone());
        let value = || value_of(value, &origin);
        if name == "stanza" {
            *root.entry("stanza", &origin) = value();
        } else if let Some(rest) = name.strip_prefix("repository_") {
            if let Some((repository, key)) = repository_named(root, rest) {
                *repository.entry(&key, &origin) = value();
            }
        } else if let Some((section, key)) = SECTIONS
            .iter()
            .find_map(|section| Some((*section, name.strip_prefix(section)?.strip_prefix('_')?)))
        {
            *root.entry(section, &origin).entry(key, &origin) = value();
        }
    }
}

/// The repository whose name begins the rest of a variable's name, and the key after it.
fn repository_named<'a>(root: &'a mut Node, rest: &str) -> Option<(&'a mut Node, String)> {
    let Content::Mapping(entries) = &mut root.content else {
        return None;
    };
    let (_, list) = entries
        .iter_mut()
        .rev()
        .find(|(key, _)| key.text() == Some("repository"))?;
    let Content::Sequence(items) = &mut list.content else {
        return None;
    };
    items.iter_mut().find_map(|item| {
        let name = item.get("name")?.text()?.to_ascii_lowercase().replace('-', "_");
        let key = rest.strip_prefix(&name)?.strip_prefix('_')?.to_owned();
        Some((item, key))
    })
}

/// Lists and mappings can be given in YAML's flow form; everything else is taken as it is.
fn value_of(value: &str, origin: &Origin) -> Node {
    if value.trim_start().starts_with(['[', '{'])
        && let Ok(mut node) = node::parse(value, Path::new("environment"))
    {
        node.origin = origin.clone();
        return node;
    }
    Node::scalar(origin.clone(), value)
}

fn read_settings(root: &Node, problems: &Problems) -> Settings {
    let section = Section::new("", Some(root), problems);
    let patroni = patroni::read(root, problems);
    let mut settings = Settings {
        file: None,
        stanza: section
            .read("stanza", STANZA, |text| is_stanza(text).then(|| text.to_owned()))
            .or_else(|| patroni.text("scope")),
        server: read_server(root, problems),
        repositories: read_repositories(&section),
        backup: read_backup(&section, problems),
        wal: read_wal(&section),
        dump: read_dump(&section, problems),
        checks: read_checks(&section, problems),
        expect: read_expect(&section),
        targets: read_targets(&section),
        unused: BTreeMap::new(),
        patroni,
    };
    if let Some(name) = &settings.dump.repository
        && settings.repository(Some(name)).is_none()
        && let Some(node) = root.get("dump").and_then(|dump| dump.get("repository"))
    {
        let problem = Problem::error(node.origin.clone(), format!("there is no repository '{name}'"));
        problems.add(problem.nearest_of(
            name,
            settings.repositories.iter().map(|known| known.name.as_str()),
        ));
    }
    check_min_repositories(root, &settings, problems);
    for name in LATER {
        if let Some(node) = root.get(name).filter(|node| !node.is_null()) {
            let message = format!("'{name}' is not used by this version of pgmahout");
            problems.add(Problem::warning(node.origin.clone(), message));
            settings.unused.insert(name.to_owned(), hidden(node.to_json()));
        }
    }
    warn_of_unknown_sections(&section);
    settings
}

/// `wal push` could never succeed where more repositories are asked for than there are.
fn check_min_repositories(root: &Node, settings: &Settings, problems: &Problems) {
    let count = settings.repositories.len();
    if let Some(asked) = settings.wal.min_repositories
        && asked as usize > count
        && let Some(node) = root.get("wal").and_then(|wal| wal.get("min_repositories"))
    {
        let message = format!("'wal.min_repositories' is {asked}, but the number of repositories is {count}");
        problems.add(Problem::error(node.origin.clone(), message));
    }
}

/// What a stanza's name looks like, for messages.
const STANZA: &str = "a name of up to 64 letters, digits, -, _ and ., the first no - or .";

/// Whether a name can be that of a stanza: it becomes part of the names of objects.
fn is_stanza(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || "-_.".contains(character))
}

/// What is not understood may hold secrets.
fn hidden(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, hidden(value))).collect(),
        Value::Array(items) => items.into_iter().map(hidden).collect(),
        Value::String(_) => Value::from("***"),
        other => other,
    }
}

/// Top-level keys are ours or Patroni's; Patroni itself passes over others, so that one that looks like none
/// of ours is a warning, and one that looks like one of ours an error.
fn warn_of_unknown_sections(section: &Section<'_>) {
    let ours = || SECTIONS.into_iter().chain(LATER);
    let mut seen: Vec<&str> = Vec::new();
    for (key, _) in section.entries() {
        let name = key.text().unwrap_or_default();
        if seen.contains(&name) {
            let message = format!("the section '{name}' stands twice");
            section
                .problems()
                .add(Problem::error(key.origin.clone(), message));
        }
        seen.push(name);
        if ours().any(|known| known == name) || patroni::is_section(name) || name == "<<" {
            continue;
        }
        let message = format!("unknown section '{name}'");
        let problem = match crate::problem::nearest(name, ours()) {
            Some(_) => Problem::error(key.origin.clone(), message).nearest_of(name, ours()),
            None => Problem::warning(key.origin.clone(), message).nearest_of(name, patroni::section_names()),
        };
        section.problems().add(problem);
    }
}

/// Our reading of `postgresql`; unknown keys there are Patroni's business.
fn read_server(root: &Node, problems: &Problems) -> Server {
    let section = Section::new("postgresql", root.get("postgresql"), problems);
    Server {
        data_dir: section.path("data_dir"),
        bin_dir: section.path("bin_dir"),
        dsn: section.secret("dsn"),
        container: section.text("container"),
        unit: section.text("unit"),
    }
}

fn read_expect(root: &Section<'_>) -> Expect {
    let section = root.section("expect");
    let settings = section.section("settings");
    let expect = Expect {
        extensions: section.texts("extensions"),
        settings: settings
            .entries()
            .iter()
            .filter_map(|(key, value)| {
                let name = key.text()?.to_owned();
                let text = value.text().map(str::to_owned);
                if text.is_none() {
                    settings.wrong(&name, value, "a single value");
                }
                Some((name, text?))
            })
            .collect(),
        roles: section.texts("roles"),
    };
    section.finish();
    expect
}

fn read_targets(root: &Section<'_>) -> Targets {
    let section = root.section("targets");
    let targets = Targets {
        rpo: section.duration("rpo"),
        rto: section.duration("rto"),
    };
    section.finish();
    targets
}

#[cfg(test)]
mod tests;
