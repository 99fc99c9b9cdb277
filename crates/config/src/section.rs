//! Reading our own sections: every key is asked for by name and type; what nobody asked for is an unknown
//! key. All problems are gathered, not only the first.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::node::{Content, Node};
use crate::problem::{Origin, Problem};
use crate::quantity;
use crate::scalar;
use crate::secret::SecretReference;

/// Gathers problems.
#[derive(Debug, Default)]
pub(crate) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(crate) fn add(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    pub(crate) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A mapping that is being read.
pub(crate) struct Section<'a> {
    /// `dump`, `repository[0]`, `repository[0].retention`.
    path: String,
    /// Nothing for a section that is not there.
    node: Option<&'a Node>,
    problems: &'a Problems,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// Begins to read a node. One that is no mapping is a problem, and is read as an empty one.
    pub(crate) fn new(path: impl Into<String>, node: Option<&'a Node>, problems: &'a Problems) -> Self {
        let path = path.into();
        let node = node.filter(|node| !node.is_null());
        if let Some(node) = node
            && !matches!(node.content, Content::Mapping(_))
        {
            problems.add(Problem::error(
                node.origin.clone(),
                format!(
                    "'{path}' must be a mapping of keys to values, not {}",
                    node.kind()
                ),
            ));
            return Self {
                path,
                node: None,
                problems,
                known: RefCell::default(),
            };
        }
        Self {
            path,
            node,
            problems,
            known: RefCell::default(),
        }
    }

    pub(crate) fn problems(&self) -> &'a Problems {
        self.problems
    }

    /// Whether it is there at all.
    pub(crate) fn exists(&self) -> bool {
        self.node.is_some()
    }

    /// The keys and values, in the order of the file.
    pub(crate) fn entries(&self) -> &'a [(Node, Node)] {
        match self.node.map(|node| &node.content) {
            Some(Content::Mapping(entries)) => entries,
            _ => &[],
        }
    }

    /// The name of a key for messages: `dump.jobs`.
    pub(crate) fn full(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The value of a key; `None` where it is missing or empty.
    pub(crate) fn get(&self, key: &'static str) -> Option<&'a Node> {
        self.known.borrow_mut().push(key);
        self.node?.get(key).filter(|node| !node.is_null())
    }

    /// A mapping under a key.
    pub(crate) fn section(&self, key: &'static str) -> Section<'a> {
        Section::new(self.full(key), self.get(key), self.problems)
    }

    /// A value under a key, read by `read`, which says what it should look like when it fails.
    pub(crate) fn read<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let node = self.get(key)?;
        let value = node.text().and_then(read);
        if value.is_none() {
            self.wrong(key, node, expected);
        }
        value
    }

    /// Adds the problem that a value is not what it should be. The value itself is shown only where it is a
    /// short single one.
    pub(crate) fn wrong(&self, key: &str, node: &Node, expected: &str) {
        let found = match node.text() {
            Some(text) if text.len() <= 60 => format!("'{text}'"),
            _ => node.kind().to_owned(),
        };
        let message = format!("'{}' must be {expected}, not {found}", self.full(key));
        self.problems.add(Problem::error(node.origin.clone(), message));
    }

    pub(crate) fn text(&self, key: &'static str) -> Option<String> {
        self.read(key, "a text", |text| Some(text.to_owned()))
    }

    pub(crate) fn path(&self, key: &'static str) -> Option<PathBuf> {
        self.read(key, "a path", |text| {
            (!text.is_empty()).then(|| PathBuf::from(text))
        })
    }

    pub(crate) fn boolean(&self, key: &'static str) -> Option<bool> {
        self.read(key, "true or false", scalar::boolean)
    }

    pub(crate) fn integer(&self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let expected = if *range.end() == u32::MAX {
            format!("a whole number from {}", range.start())
        } else {
            format!("a whole number from {} to {}", range.start(), range.end())
        };
        self.read(key, &expected, |text| {
            text.parse().ok().filter(|value| range.contains(value))
        })
    }

    pub(crate) fn duration(&self, key: &'static str) -> Option<Duration> {
        self.read(key, quantity::DURATION_EXAMPLE, quantity::duration)
    }

    /// A size that is not zero.
    pub(crate) fn size(&self, key: &'static str) -> Option<u64> {
        let expected = format!("{}, more than zero", quantity::SIZE_EXAMPLE);
        self.read(key, &expected, |text| {
            quantity::size(text).filter(|size| *size > 0)
        })
    }

    /// A list of absolute paths.
    pub(crate) fn paths(&self, key: &'static str) -> Vec<PathBuf> {
        self.list(key)
            .into_iter()
            .filter_map(|(name, item)| {
                let path = item.text().map(PathBuf::from).filter(|path| path.is_absolute());
                if path.is_none() {
                    let found = item
                        .text()
                        .map_or_else(|| item.kind().to_owned(), |text| format!("'{text}'"));
                    let message = format!("'{name}' must be an absolute path, not {found}");
                    self.problems.add(Problem::error(item.origin.clone(), message));
                }
                path
            })
            .collect()
    }

    /// One of some words.
    pub(crate) fn one_of<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let node = self.get(key)?;
        let found = node
            .text()
            .and_then(|text| words.iter().find(|(word, _)| *word == text));
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let written = node.text().unwrap_or_default();
            let message = format!("'{}' must be one of {}", self.full(key), names.join(", "));
            self.problems
                .add(Problem::error(node.origin.clone(), message).nearest_of(written, names));
        }
        found.map(|(_, value)| *value)
    }

    /// A secret, or where it is to be had. Its text is never part of a message.
    pub(crate) fn secret(&self, key: &'static str) -> Option<SecretReference> {
        let node = self.get(key)?;
        match node.text().map(SecretReference::parse) {
            Some(Ok(reference)) => Some(reference),
            Some(Err(error)) => {
                let message = format!("'{}': {error}", self.full(key));
                self.problems.add(Problem::error(node.origin.clone(), message));
                None
            }
            None => {
                let message = format!("'{}' must be a single value, not {}", self.full(key), node.kind());
                self.problems.add(Problem::error(node.origin.clone(), message));
                None
            }
        }
    }

    /// The elements of a list, each with its name for messages; a single value counts as a list of one.
    pub(crate) fn list(&self, key: &'static str) -> Vec<(String, &'a Node)> {
        let Some(node) = self.get(key) else {
            return Vec::new();
        };
        match &node.content {
            Content::Sequence(items) => items
                .iter()
                .enumerate()
                .map(|(at, item)| (format!("{}[{at}]", self.full(key)), item))
                .collect(),
            _ => vec![(self.full(key), node)],
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &'static str) -> Vec<String> {
        self.list(key)
            .into_iter()
            .filter_map(|(name, item)| match item.text() {
                Some(text) if !item.is_null() => Some(text.to_owned()),
                _ => {
                    let message = format!("'{name}' must be a text, not {}", item.kind());
                    self.problems.add(Problem::error(item.origin.clone(), message));
                    None
                }
            })
            .collect()
    }

    /// Adds the problem that a key is missing.
    pub(crate) fn missing(&self, key: &str) {
        if let Some(node) = self.node {
            let message = format!("'{}' is missing", self.full(key));
            self.problems.add(Problem::error(node.origin.clone(), message));
        }
    }

    /// A problem of the section as a whole.
    pub(crate) fn problem(&self, message: impl Into<String>) {
        if let Some(node) = self.node {
            self.problems.add(Problem::error(node.origin.clone(), message));
        }
    }

    /// Adds a problem for every key that nobody asked for, and for every key that stands there twice.
    pub(crate) fn finish(self) {
        let known = self.known.borrow();
        let mut seen: Vec<&str> = Vec::new();
        for (key, _) in self.entries() {
            let name = key.text().unwrap_or_default();
            let place = if self.path.is_empty() {
                String::new()
            } else {
                format!(" in '{}'", self.path)
            };
            if seen.contains(&name) {
                let message = format!("the key '{name}' stands twice{place}");
                self.problems.add(Problem::error(key.origin.clone(), message));
            } else if !known.contains(&name) {
                let message = format!("unknown key '{name}'{place}");
                let problem = match key.origin {
                    // A variable may be meant for something else, such as an env: reference.
                    Origin::Variable(_) => Problem::warning(key.origin.clone(), message),
                    Origin::File { .. } => Problem::error(key.origin.clone(), message),
                };
                self.problems.add(problem.nearest_of(name, known.iter().copied()));
            }
            seen.push(name);
        }
    }
}
