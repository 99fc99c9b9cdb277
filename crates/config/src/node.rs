//! A YAML document as a tree in which every node knows where it stands.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use crate::problem::{Origin, Problem};
use crate::scalar::Scalar;

/// The most nodes that a document may have once its aliases are filled in.
const MOST_NODES: usize = 100_000;

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) origin: Origin,
    pub(crate) content: Content,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// A text, and whether it was written plain: only plain ones can be numbers or truth values.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// In the order of the file.
    Mapping(Vec<(Node, Node)>),
}

impl Node {
    /// A scalar that does not come from a file.
    pub(crate) fn scalar(origin: Origin, text: impl Into<String>) -> Self {
        Self {
            origin,
            content: Content::Scalar {
                text: text.into(),
                plain: true,
            },
        }
    }

    /// An empty mapping.
    pub(crate) fn mapping(origin: Origin) -> Self {
        Self {
            origin,
            content: Content::Mapping(Vec::new()),
        }
    }

    /// Whether it is nothing: `key:` with nothing after it, `~`, `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar { text, plain: true } if Scalar::resolve(text) == Scalar::Null)
    }

    /// The text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The value of a key; of the last one where a key stands twice.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.content {
            Content::Mapping(entries) => entries
                .iter()
                .rev()
                .find(|(name, _)| name.text() == Some(key))
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value of a key, which is made if it is missing.
    pub(crate) fn entry(&mut self, key: &str, origin: &Origin) -> &mut Node {
        if !matches!(self.content, Content::Mapping(_)) {
            self.content = Content::Mapping(Vec::new());
        }
        let Content::Mapping(entries) = &mut self.content else {
            unreachable!("made a mapping just now");
        };
        let at = entries
            .iter()
            .rposition(|(name, _)| name.text() == Some(key))
            .unwrap_or_else(|| {
                entries.push((Self::scalar(origin.clone(), key), Self::mapping(origin.clone())));
                entries.len() - 1
            });
        &mut entries[at].1
    }

    /// What kind of thing it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.content {
            Content::Scalar { .. } if self.is_null() => "nothing",
            Content::Scalar { .. } => "a single value",
            Content::Sequence(_) => "a list",
            Content::Mapping(_) => "a mapping",
        }
    }

    /// As PyYAML would load it, with merge keys (`<<`) filled in.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::{Map, Value};
        match &self.content {
            Content::Scalar { text, plain: true } => Scalar::resolve(text).into_json(),
            Content::Scalar { text, plain: false } => Value::String(text.clone()),
            Content::Sequence(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Content::Mapping(entries) => {
                let mut merged = Map::new();
                for (_, value) in entries.iter().filter(|(key, _)| key.is_merge()) {
                    let sources = match value.to_json() {
                        Value::Array(items) => items,
                        one => vec![one],
                    };
                    for source in sources {
                        if let Value::Object(source) = source {
                            for (key, value) in source {
                                merged.entry(key).or_insert(value);
                            }
                        }
                    }
                }
                for (key, value) in entries.iter().filter(|(key, _)| !key.is_merge()) {
                    merged.insert(key.key_text(), value.to_json());
                }
                Value::Object(merged)
            }
        }
    }

    fn is_merge(&self) -> bool {
        matches!(&self.content, Content::Scalar { text, plain: true } if text == "<<")
    }

    fn key_text(&self) -> String {
        match self.to_json() {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        }
    }

    fn size(&self) -> usize {
        1 + match &self.content {
            Content::Scalar { .. } => 0,
            Content::Sequence(items) => items.iter().map(Self::size).sum(),
            Content::Mapping(entries) => entries.iter().map(|(key, value)| key.size() + value.size()).sum(),
        }
    }
}

/// Reads the one document of a file. An empty file is an empty mapping.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Node, Problem> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        path: path.to_path_buf(),
        anchors: HashMap::new(),
        nodes: 0,
        depth: 0,
    };
    reader.document()
}

struct Reader<'input> {
    parser: Parser<'input, granit_parser::StrInput<'input>>,
    path: PathBuf,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    depth: usize,
}

/// How deep lists and mappings may be nested.
const DEEPEST: usize = 64;

impl<'input> Reader<'input> {
    fn document(&mut self) -> Result<Node, Problem> {
        let mut root = None;
        while let Some((event, span)) = self.next()? {
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                event if root.is_none() => root = Some(self.node(event, &span)?),
                _ => return Err(self.problem(&span, "a second document begins here; one file has one")),
            }
        }
        let origin = Origin::File {
            path: self.path.clone(),
            line: 1,
            column: 1,
        };
        Ok(match root {
            Some(root) if !root.is_null() => root,
            _ => Node::mapping(origin),
        })
    }

    fn next(&mut self) -> Result<Option<(Event<'input>, Span)>, Problem> {
        self.parser
            .next_event()
            .transpose()
            .map_err(|error| self.syntax(&error))
    }

    fn node(&mut self, event: Event<'input>, span: &Span) -> Result<Node, Problem> {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Err(self.problem(span, "the file is too large, or its aliases multiply"));
        }
        let origin = self.origin(span);
        let (content, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                // An explicit tag other than !!str is left to the text; Patroni's files have none.
                let tagged_text = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let plain = style == ScalarStyle::Plain && !tagged_text;
                (
                    Content::Scalar {
                        text: text.into_owned(),
                        plain,
                    },
                    anchor,
                )
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| self.problem(span, "an alias inside what it stands for"))?;
                self.nodes += node.size();
                return Ok(node);
            }
            Event::SequenceStart(_, anchor, _) => {
                self.descend(span)?;
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.inside(span)?;
                    match event {
                        Event::SequenceEnd => break,
                        event => items.push(self.node(event, &span)?),
                    }
                }
                self.depth -= 1;
                (Content::Sequence(items), anchor)
            }
            Event::MappingStart(_, anchor, _) => {
                self.descend(span)?;
                let mut entries = Vec::new();
                loop {
                    let (event, key_span) = self.inside(span)?;
                    if matches!(event, Event::MappingEnd) {
                        break;
                    }
                    let key = self.node(event, &key_span)?;
                    let (event, value_span) = self.inside(span)?;
                    entries.push((key, self.node(event, &value_span)?));
                }
                self.depth -= 1;
                (Content::Mapping(entries), anchor)
            }
            other => return Err(self.problem(span, format!("unexpected {other:?}"))),
        };
        let node = Node { origin, content };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn descend(&mut self, span: &Span) -> Result<(), Problem> {
        self.depth += 1;
        if self.depth > DEEPEST {
            Err(self.problem(span, "nested too deeply"))
        } else {
            Ok(())
        }
    }

    fn inside(&mut self, start: &Span) -> Result<(Event<'input>, Span), Problem> {
        match self.next()? {
            Some(next) => Ok(next),
            None => Err(self.problem(start, "what begins here does not end")),
        }
    }

    fn origin(&self, span: &Span) -> Origin {
        Origin::File {
            path: self.path.clone(),
            line: span.start.line(),
            column: span.start.col() + 1,
        }
    }

    fn problem(&self, span: &Span, message: impl Into<String>) -> Problem {
        Problem::error(self.origin(span), message)
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        let marker = error.marker();
        let origin = Origin::File {
            path: self.path.clone(),
            line: marker.line(),
            column: marker.col() + 1,
        };
        Problem::error(origin, format!("not valid YAML: {}", error.info()))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Node, Problem> {
        parse(text, Path::new("x.yml"))
    }

    #[test]
    fn a_document_loads_as_pyyaml_would_load_it() {
        let text = "scope: demo\nttl: 30\nyes: on\nmode: 0755\nport: '5432'\nlist: [1, a, ~]\n\
                    base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  b: 3\nempty:\nblock: |\n  one\n  two\n";
        assert_eq!(
            read(text).unwrap().to_json(),
            json!({
                "scope": "demo", "ttl": 30, "true": true, "mode": 493, "port": "5432", "list": [1, "a", null],
                "base": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}, "empty": null, "block": "one\ntwo\n"
            })
        );
        assert_eq!(read("").unwrap().to_json(), json!({}));
        assert_eq!(read("# nothing\n---\n").unwrap().to_json(), json!({}));
    }

    #[test]
    fn nodes_and_errors_know_line_and_column() {
        let root = read("a: 1\nb:\n  - c: 2\n").unwrap();
        let Content::Sequence(items) = &root.get("b").unwrap().content else {
            panic!()
        };
        assert_eq!(items[0].get("c").unwrap().origin.to_string(), "x.yml:3:8");
        let error = read("a: [1, 2\nb: 3\n").unwrap_err().to_string();
        assert!(
            error.starts_with("x.yml:2:") && error.contains("not valid YAML"),
            "{error}"
        );
        assert!(
            read("a: 1\n---\nb: 2\n")
                .unwrap_err()
                .to_string()
                .contains("second document")
        );
    }

    #[test]
    fn aliases_cannot_multiply_without_end() {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..8 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(",");
            writeln!(text, "a{level}: &a{level} [{aliases}]").unwrap();
        }
        assert!(read(&text).unwrap_err().to_string().contains("multiply"));
        assert!(read(&"[".repeat(5000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn reading_any_text_never_panics(text in "[-\\[\\]{}:,&*#|>'\"%@!? a-c\n\t0-9~<]{0,60}") {
            if let Ok(node) = read(&text) {
                let _ = node.to_json();
            }
        }
    }
}
