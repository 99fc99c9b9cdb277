//! Passes a dump on to psql without what must not reach it, and with what was asked for: one section of a
//! pg_dumpall stream, some tables, other owners.
//!
//! What is always taken out: meta-commands (the caller refuses all but `\restrict` and `\unrestrict`
//! before) and a byte order mark. In a restore that runs in one transaction of ours, also the `BEGIN` and
//! `COMMIT` that pg_dump writes around large objects: its `COMMIT` would commit half a restore.
//!
//! Memory: at most [`HOLD_LENGTH`] bytes of a statement are held back until it is known what it is.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::{Class, Lexer, Oddity, Position, Statement, Visit};
use super::names::{self, TableName};
use super::report::{self, Builder, ScanReport};

/// How much of a statement is held back at most.
const HOLD_LENGTH: usize = 256 * 1024;

/// What of a dump is passed on, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only this section of the stream, as an index into [`ScanReport::sections`]; all if absent.
    pub section: Option<usize>,
    /// Leave out `BEGIN` and `COMMIT`, since the whole runs in one transaction.
    pub one_transaction: bool,
    /// Leave out rows.
    pub schema_only: bool,
    /// Leave out definitions.
    pub data_only: bool,
    /// Only these tables, with their indexes, constraints, triggers and owned sequences. An empty schema
    /// matches every schema.
    pub tables: Vec<TableName>,
    /// Only what is in these schemas.
    pub schemas: BTreeSet<String>,
    /// Sequences that belong to a table, by the scan: they come along with it.
    pub owned_sequences: BTreeMap<TableName, TableName>,
    /// Leave out who owns what.
    pub no_owner: bool,
    /// Leave out who may do what.
    pub no_acl: bool,
    /// Leave out subscriptions, which would be in the way of dropping the database.
    pub no_subscriptions: bool,
    /// Roles to replace, by name.
    pub owner_map: BTreeMap<String, String>,
    /// Statements to run when all rows are there and before indexes, constraints and triggers are: masks.
    pub after_rows: Vec<String>,
}

impl Selection {
    /// Whether everything in the section is restored.
    pub fn is_whole(&self) -> bool {
        !self.schema_only && !self.data_only && self.tables.is_empty() && self.schemas.is_empty()
    }

    /// Whether the rows of this table are passed on.
    pub fn takes_rows_of(&self, table: &TableName) -> bool {
        !self.schema_only
            && (self.tables.is_empty() || self.names(table))
            && (self.schemas.is_empty() || self.schemas.contains(&table.schema))
    }

    fn names(&self, table: &TableName) -> bool {
        self.tables.iter().any(|wanted| {
            wanted.name == table.name && (wanted.schema.is_empty() || wanted.schema == table.schema)
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Drop,
    /// Held back until more is known.
    Hold,
}

/// A rewriting in progress. It scans as well: [`Rewriter::finish`] gives the same report as a scan.
#[derive(Debug)]
pub struct Rewriter {
    lexer: Lexer,
    work: Work,
}

#[derive(Debug)]
struct Work {
    selection: Selection,
    builder: Builder,
    section: usize,
    ended: bool,
    /// The current entry's kind and schema, from the comment before it.
    entry: Entry,
    mode: Mode,
    held: Vec<u8>,
    out: Vec<u8>,
    /// Whether rows of tables were announced.
    rows_seen: bool,
    /// Whether [`Selection::after_rows`] were given out.
    after_rows_done: bool,
    late_rows: bool,
}

#[derive(Debug, Default)]
struct Entry {
    kind: String,
    schema: String,
}

impl Rewriter {
    /// Begins.
    pub fn new(selection: Selection) -> Self {
        Self {
            lexer: Lexer::new(),
            work: Work {
                selection,
                builder: Builder::new(),
                section: 0,
                ended: false,
                entry: Entry::default(),
                mode: Mode::Hold,
                held: Vec::new(),
                out: Vec::new(),
                rows_seen: false,
                after_rows_done: false,
                late_rows: false,
            },
        }
    }

    /// Takes the next piece and gives what psql should get of it.
    pub fn feed(&mut self, bytes: &[u8]) -> &[u8] {
        self.work.out.clear();
        self.lexer.feed(bytes, &mut self.work);
        &self.work.out
    }

    /// What was seen so far.
    pub fn report(&self) -> &ScanReport {
        self.work.builder.report()
    }

    /// Whether rows came after [`Selection::after_rows`]: then these did not see all rows.
    pub fn late_rows(&self) -> bool {
        self.work.late_rows
    }

    /// The stream has ended. Gives what was held back, and the report.
    pub fn finish(mut self) -> (Vec<u8>, ScanReport) {
        self.work.out.clear();
        let unfinished = self.lexer.finish(&mut self.work);
        if self.work.mode == Mode::Hold {
            let held = std::mem::take(&mut self.work.held);
            self.work.out.extend_from_slice(&held);
        }
        if unfinished.is_none() {
            self.work.give_after_rows();
        }
        (
            self.work.out,
            self.work.builder.finish(self.lexer.position(), unfinished),
        )
    }
}

impl Work {
    fn in_section(&self) -> bool {
        self.selection
            .section
            .is_none_or(|wanted| wanted == self.section && !self.ended)
    }

    /// The encoding that the stream has chosen.
    fn encoding(&self) -> Option<&str> {
        self.builder.report().sections.last()?.encoding.as_deref()
    }

    fn give_after_rows(&mut self) {
        if !std::mem::replace(&mut self.after_rows_done, true) {
            for statement in &self.selection.after_rows {
                self.out.extend_from_slice(b"\n");
                self.out.extend_from_slice(statement.as_bytes());
                self.out.extend_from_slice(b";\n");
            }
        }
    }

    /// What is known from the first word and the entry's comment.
    fn decide(&self, keyword: &str) -> Mode {
        if !self.in_section() {
            return Mode::Drop;
        }
        let selection = &self.selection;
        if keyword == "set" && selection.owner_map.is_empty() && !selection.no_owner {
            return Mode::Pass;
        }
        if selection.no_acl && matches!(keyword, "grant" | "revoke") {
            return Mode::Drop;
        }
        if selection.one_transaction && matches!(keyword, "begin" | "commit" | "end" | "start") {
            return Mode::Hold;
        }
        if !self.entry.kind.is_empty() && keyword != "set" {
            let is_data = is_data(&self.entry.kind);
            if (selection.schema_only && is_data) || (selection.data_only && !is_data) {
                return Mode::Drop;
            }
            let is_schema = self.entry.kind == "SCHEMA" && keyword == "create";
            if !selection.schemas.is_empty() && !is_schema && !selection.schemas.contains(&self.entry.schema)
            {
                return Mode::Drop;
            }
            if !selection.tables.is_empty() || (!selection.schemas.is_empty() && is_schema) {
                return Mode::Hold;
            }
        }
        // Of one database of a stream: what is said of the database itself is not for the target.
        let is_of_database = selection.section.is_some()
            && matches!(keyword, "alter" | "comment" | "grant" | "revoke" | "security");
        let is_of_subscription =
            selection.no_subscriptions && matches!(keyword, "alter" | "comment" | "create" | "security");
        if is_of_database || (is_of_subscription && is_small(&self.entry.kind)) {
            return Mode::Hold;
        }
        let changes_roles = !selection.owner_map.is_empty() || selection.no_owner;
        if changes_roles && matches!(keyword, "alter" | "grant" | "revoke" | "set") {
            return Mode::Hold;
        }
        Mode::Pass
    }

    /// What becomes of a statement that was held back, all of it or its beginning.
    fn settle(&mut self, keyword: &str, whole: bool) {
        let held = std::mem::take(&mut self.held);
        self.mode = self.settled(keyword, &held, whole);
        self.held = held;
        self.held.clear();
    }

    fn settled(&mut self, keyword: &str, held: &[u8], whole: bool) -> Mode {
        let selection = &self.selection;
        if (selection.section.is_some() && is_about(keyword, held, "database"))
            || (selection.no_subscriptions && is_about(keyword, held, "subscription"))
        {
            return Mode::Drop;
        }
        let decoded = names::decode(self.encoding(), held);
        if !selection.tables.is_empty() && !self.entry.kind.is_empty() && keyword != "set" {
            let of_wanted = subject(keyword, &decoded).is_some_and(|table| {
                let owner = selection.owned_sequences.get(&table).unwrap_or(&table);
                selection.names(owner) || selection.names(&table)
            });
            if !of_wanted {
                return Mode::Drop;
            }
        }
        if self.entry.kind == "SCHEMA" && keyword == "create" && !selection.schemas.is_empty() {
            let tokens = names::tokens(&decoded);
            let is_wanted = tokens
                .get(2)
                .and_then(|token| names::name(token))
                .is_some_and(|name| selection.schemas.contains(&name));
            // As it is written, in the encoding of the dump.
            if is_wanted && let Some(schema) = names::tokens(held).get(2) {
                self.out.extend_from_slice(b"CREATE SCHEMA IF NOT EXISTS ");
                self.out.extend_from_slice(schema);
                self.out.extend_from_slice(b";");
            }
            return Mode::Drop;
        }
        if whole && (selection.no_owner || !selection.owner_map.is_empty()) {
            match change_roles(selection, keyword, held) {
                Change::None => {}
                Change::Drop => return Mode::Drop,
                Change::Replace(text) => {
                    self.out.extend_from_slice(&text);
                    return Mode::Drop;
                }
            }
        }
        self.out.extend_from_slice(held);
        Mode::Pass
    }
}

impl Visit for Work {
    fn bytes(&mut self, class: Class, bytes: &[u8]) {
        self.builder.bytes(class, bytes);
        match class {
            Class::Between => {
                if self.in_section() {
                    self.out.extend_from_slice(bytes);
                }
            }
            Class::Meta => {}
            Class::Statement | Class::Data => match self.mode {
                Mode::Pass => self.out.extend_from_slice(bytes),
                Mode::Drop => {}
                Mode::Hold => {
                    self.held.extend_from_slice(bytes);
                    if self.held.len() > HOLD_LENGTH {
                        let keyword = names::tokens(&self.held[..64])
                            .first()
                            .map(|token| String::from_utf8_lossy(token).to_ascii_lowercase())
                            .unwrap_or_default();
                        self.settle(&keyword, false);
                    }
                }
            },
        }
    }

    fn comment(&mut self, text: &[u8], at: Position) {
        self.builder.comment(text, at);
        let text = text.trim_ascii();
        if text == b"PostgreSQL database dump complete" {
            self.ended = true;
            self.entry = Entry::default();
        } else if text.starts_with(b"Name: ") || text.starts_with(b"Data for Name: ") {
            let entry = {
                let text = names::decode(self.encoding(), text);
                parse_entry(&String::from_utf8_lossy(&text))
            };
            if let Some(entry) = entry {
                self.entry = entry;
                // Every table's rows come in one run, after the definitions and before what is built on rows.
                match self.entry.kind.as_str() {
                    "TABLE DATA" => self.rows_seen = true,
                    "SEQUENCE SET" | "BLOBS" | "LARGE OBJECTS" => {}
                    _ if self.rows_seen => self.give_after_rows(),
                    _ => {}
                }
            }
        }
    }

    fn statement_started(&mut self, keyword: &str, at: Position) {
        self.builder.statement_started(keyword, at);
        self.late_rows |= self.after_rows_done && matches!(keyword, "copy" | "insert");
        self.mode = match self.decide(keyword) {
            Mode::Hold => Mode::Hold,
            decided => {
                if decided == Mode::Pass {
                    self.out.extend_from_slice(&self.held);
                }
                self.held.clear();
                decided
            }
        };
    }

    fn statement_ended(&mut self, statement: &Statement<'_>) {
        self.builder.statement_ended(statement);
        if self.mode == Mode::Hold {
            let is_transaction = self.selection.one_transaction && report::is_plain_transaction(statement);
            if is_transaction {
                self.held.clear();
                self.mode = Mode::Drop;
            } else {
                self.settle(statement.keyword, true);
            }
        }
        // The data of a COPY statement goes the statement's way; whatever else follows is undecided.
        if !statement.copies_from_stdin {
            self.mode = Mode::Hold;
        }
    }

    fn data_ended(&mut self, rows: u64) {
        self.builder.data_ended(rows);
        self.mode = Mode::Hold;
    }

    fn meta(&mut self, text: &[u8], at: Position, line_start: bool) {
        let before = self.builder.report().sections.len();
        self.builder.meta(text, at, line_start);
        let sections = self.builder.report().sections.len();
        if sections > before {
            self.section = sections - 1;
            self.ended = false;
            self.entry = Entry::default();
        }
    }

    fn oddity(&mut self, oddity: Oddity, at: Position) {
        self.builder.oddity(oddity, at);
    }
}

/// `Name: N; Type: T; Schema: S; Owner: O`, as `_printTocEntry` in `src/bin/pg_dump/pg_backup_archiver.c`
/// writes it. Names may hold anything, so it is read from its end.
fn parse_entry(text: &str) -> Option<Entry> {
    let (rest, _owner) = text.rsplit_once("; Owner: ")?;
    let (rest, schema) = rest.rsplit_once("; Schema: ")?;
    let (_name, kind) = rest.rsplit_once("; Type: ")?;
    Some(Entry {
        kind: kind.to_owned(),
        schema: schema.to_owned(),
    })
}

fn is_data(kind: &str) -> bool {
    matches!(
        kind,
        "TABLE DATA"
            | "SEQUENCE SET"
            | "BLOBS"
            | "BLOB"
            | "BLOB METADATA"
            | "LARGE OBJECT"
            | "LARGE OBJECTS"
            | "MATERIALIZED VIEW DATA"
            | "STATISTICS DATA"
    )
}

/// Whether an entry is of a kind that may be about a subscription; functions and views need not be held back.
fn is_small(kind: &str) -> bool {
    matches!(
        kind,
        "" | "SUBSCRIPTION" | "SUBSCRIPTION TABLE" | "COMMENT" | "SECURITY LABEL"
    )
}

/// Whether a statement is about an object of this kind: a database or a subscription.
fn is_about(keyword: &str, statement: &[u8], kind: &str) -> bool {
    let tokens = names::tokens(&statement[..statement.len().min(8192)]);
    let after_on = || {
        let on = tokens.iter().position(|token| token.eq_ignore_ascii_case(b"on"));
        on.is_some_and(|on| names::is(tokens.get(on + 1), kind))
    };
    match keyword {
        "alter" | "create" | "drop" => names::is(tokens.get(1), kind),
        "comment" | "security" | "grant" | "revoke" => after_on(),
        _ => false,
    }
}

/// The table, or sequence, or view that a statement is about.
fn subject(keyword: &str, statement: &[u8]) -> Option<TableName> {
    let tokens = names::tokens(&statement[..statement.len().min(8192)]);
    let after = |word: &str| {
        tokens
            .iter()
            .position(|token| token.eq_ignore_ascii_case(word.as_bytes()))
    };
    let table_at = |mut index: usize| {
        while ["only", "if", "not", "exists"]
            .iter()
            .any(|word| names::is(tokens.get(index), word))
        {
            index += 1;
        }
        names::table_name(tokens.get(index..)?).map(|(table, _)| table)
    };
    match keyword {
        "copy" | "insert" => names::target_table(statement),
        "alter" | "refresh" => {
            let kind = after("table")
                .or_else(|| after("sequence"))
                .or_else(|| after("view"))
                .or_else(|| after("index"))?;
            if kind > 2 {
                return None;
            }
            if names::is(tokens.get(1), "index") {
                return None;
            }
            table_at(kind + 1)
        }
        "create" => {
            if after("index").is_some_and(|index| index <= 2)
                || after("trigger").is_some_and(|index| index <= 4)
            {
                return table_at(after("on")? + 1);
            }
            if names::is(tokens.get(1), "policy") || names::is(tokens.get(1), "statistics") {
                let word = if names::is(tokens.get(1), "policy") {
                    "on"
                } else {
                    "from"
                };
                return table_at(after(word)? + 1);
            }
            if names::is(tokens.get(1), "rule") {
                return table_at(after("to")? + 1);
            }
            let kind = after("table")
                .or_else(|| after("sequence"))
                .or_else(|| after("view"))?;
            if kind > 4 {
                return None;
            }
            table_at(kind + 1)
        }
        "comment" => {
            let index = after("on")?;
            if names::is(tokens.get(index + 1), "table") {
                return table_at(index + 2);
            }
            if names::is(tokens.get(index + 1), "column") {
                return table_at(index + 2);
            }
            None
        }
        "grant" | "revoke" => {
            let index = after("on")?;
            names::is(tokens.get(index + 1), "table")
                .then(|| table_at(index + 2))
                .flatten()
        }
        "select" => {
            // SELECT pg_catalog.setval('shop.orders_id_seq', 5499, true);
            let index = after("setval")?;
            let argument = tokens.get(index + 2)?;
            let inner = argument.strip_prefix(b"'")?.strip_suffix(b"'")?;
            let inner = String::from_utf8_lossy(inner).replace("''", "'");
            let tokens = names::tokens(inner.as_bytes());
            names::table_name(&tokens).map(|(table, _)| table)
        }
        _ => None,
    }
}

enum Change {
    None,
    Drop,
    Replace(Vec<u8>),
}

fn change_roles(selection: &Selection, keyword: &str, statement: &[u8]) -> Change {
    let tokens = names::tokens(statement);
    let places: Vec<usize> = match keyword {
        "alter" => match report::owner_index(&tokens) {
            Some(_) if selection.no_owner => return Change::Drop,
            Some(index) => vec![index],
            None => return Change::None,
        },
        "set" if names::is(tokens.get(1), "session") && names::is(tokens.get(2), "authorization") => {
            if selection.no_owner {
                return Change::Drop;
            }
            vec![3]
        }
        "grant" | "revoke" => {
            let word: &[u8] = if keyword == "grant" { b"to" } else { b"from" };
            match tokens.iter().rposition(|token| token.eq_ignore_ascii_case(word)) {
                Some(index) => (index + 1..tokens.len()).collect(),
                None => return Change::None,
            }
        }
        _ => return Change::None,
    };
    let start = statement.as_ptr() as usize;
    let mut out = Vec::with_capacity(statement.len() + 16);
    let mut done = 0;
    for token in places.into_iter().filter_map(|index| tokens.get(index)) {
        let role = match token {
            [b'\'', inner @ .., b'\''] => Some(String::from_utf8_lossy(inner).replace("''", "'")),
            _ => names::name(token),
        };
        let Some(replacement) = role.and_then(|role| selection.owner_map.get(&role)) else {
            continue;
        };
        let offset = token.as_ptr() as usize - start;
        out.extend_from_slice(&statement[done..offset]);
        out.extend_from_slice(names::quote_name(replacement).as_bytes());
        done = offset + token.len();
    }
    if done == 0 {
        return Change::None;
    }
    out.extend_from_slice(&statement[done..]);
    Change::Replace(out)
}
