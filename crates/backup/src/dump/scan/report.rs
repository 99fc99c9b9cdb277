//! What a dump in plain SQL holds: collected from the lexer's calls.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::{Oddity, Position, Statement, Unfinished, Visit};
use super::names::{self, TableName};

/// How many oddities and meta-commands are kept; one is enough to refuse.
const KEPT: usize = 50;

/// What a stream of SQL holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScanReport {
    /// The stream's length in bytes.
    pub bytes: u64,
    /// Its length in lines.
    pub lines: u64,
    /// Which program wrote it, by its first comment.
    pub origin: Origin,
    /// Whether the end marker of a pg_dumpall stream was seen.
    pub cluster_complete: bool,
    /// The stream, cut where it connects to another database. The first one is what comes before any
    /// `\connect`.
    pub sections: Vec<Section>,
    /// What psql would stumble over, or what no dump holds.
    pub oddities: Vec<(Oddity, Position)>,
    /// In what the stream ended, where it should not.
    pub unfinished: Option<Unfinished>,
}

/// Which program wrote a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// pg_dump, or pg_restore's script.
    Dump,
    /// pg_dumpall.
    Cluster,
    /// Neither's first comment was seen.
    #[default]
    Unknown,
}

/// What is done in one database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    /// The database that the `\connect` before it names; `None` for the first section.
    pub database: Option<String>,
    /// Where the section begins.
    pub at: Position,
    /// The version of the dumped server, as the dump says it.
    pub server_version: Option<String>,
    /// The version of pg_dump, as the dump says it.
    pub program_version: Option<String>,
    /// Whether `PostgreSQL database dump complete` was seen.
    pub complete: bool,
    /// The first statement after that mark.
    pub after_end: Option<Position>,
    /// What `SET client_encoding` says.
    pub encoding: Option<String>,
    /// Rows by table: of COPY blocks and INSERT statements.
    pub tables: BTreeMap<TableName, u64>,
    /// Whether rows come as INSERT statements.
    pub inserts: bool,
    /// Number of statements.
    pub statements: u64,
    /// How many objects it creates: statements that begin with CREATE.
    pub creates: u64,
    /// How many tables it creates.
    pub tables_created: u64,
    /// Large objects that it creates.
    pub large_objects: u64,
    /// Extensions that it creates.
    pub extensions: BTreeSet<String>,
    /// Schemas that it creates.
    pub schemas: BTreeSet<String>,
    /// Roles that own something.
    pub owners: BTreeSet<String>,
    /// Roles that are given rights, or whose rights are set.
    pub grantees: BTreeSet<String>,
    /// Roles that user mappings of foreign servers are for: needed whatever becomes of owners and rights.
    pub mapped: BTreeSet<String>,
    /// Roles that it creates itself.
    pub roles_created: BTreeSet<String>,
    /// Databases that it creates or drops.
    pub databases: BTreeSet<String>,
    /// Sequences that belong to a table's column: serial and identity columns.
    pub owned_sequences: BTreeMap<TableName, TableName>,
    /// Tablespaces that it uses.
    pub tablespaces: BTreeSet<String>,
    /// Its meta-commands, without `\connect`.
    pub metas: Vec<Meta>,
    /// Statements that PostgreSQL does not run in a transaction, or that would end ours.
    pub transaction_breakers: Vec<(String, Position)>,
}

/// A meta-command in a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The command as written, its first 4096 bytes.
    pub text: String,
    /// Where.
    pub at: Position,
    /// Whether it is one that pg_dump writes into a section: `\restrict` or `\unrestrict` with a key.
    pub permitted: bool,
}

impl Section {
    /// All rows.
    pub fn rows(&self) -> u64 {
        self.tables.values().sum()
    }
}

/// Builds a [`ScanReport`].
#[derive(Debug)]
pub(super) struct Builder {
    report: ScanReport,
    /// The table whose COPY data is coming.
    copying: Option<TableName>,
    /// The beginning of the last INSERT statement through its table's name, and the table.
    inserting: Option<(Vec<u8>, TableName)>,
}

/// Whether this line is `\restrict KEY` or `\unrestrict KEY` as pg_dump writes it: the key of letters and
/// digits only, since psql would run a command in backquotes there.
pub(super) fn is_restriction(text: &[u8]) -> bool {
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let key = text
        .strip_prefix(b"\\restrict ")
        .or_else(|| text.strip_prefix(b"\\unrestrict "));
    key.is_some_and(|key| !key.is_empty() && key.iter().all(u8::is_ascii_alphanumeric))
}

impl Builder {
    pub(super) fn new() -> Self {
        let mut report = ScanReport::default();
        report.sections.push(Section {
            at: Position { offset: 0, line: 1 },
            ..Section::default()
        });
        Self {
            report,
            copying: None,
            inserting: None,
        }
    }

    pub(super) fn finish(mut self, position: Position, unfinished: Option<Unfinished>) -> ScanReport {
        self.report.bytes = position.offset;
        self.report.lines = position.line;
        self.report.unfinished = unfinished;
        self.report
    }

    /// What was seen so far.
    pub(super) fn report(&self) -> &ScanReport {
        &self.report
    }

    fn section(&mut self) -> &mut Section {
        self.report
            .sections
            .last_mut()
            .expect("there is always one section")
    }
}

impl Visit for Builder {
    fn comment(&mut self, text: &[u8], _at: Position) {
        let text = text.trim_ascii();
        match text {
            b"PostgreSQL database dump" if self.report.origin == Origin::Unknown => {
                self.report.origin = Origin::Dump;
            }
            b"PostgreSQL database cluster dump" if self.report.origin == Origin::Unknown => {
                self.report.origin = Origin::Cluster;
            }
            b"PostgreSQL database dump complete" => self.section().complete = true,
            b"PostgreSQL database cluster dump complete" => self.report.cluster_complete = true,
            _ => {
                let version = |prefix: &[u8]| {
                    text.strip_prefix(prefix)
                        .map(|version| String::from_utf8_lossy(version).into_owned())
                };
                if let Some(version) = version(b"Dumped from database version ") {
                    self.section().server_version.get_or_insert(version);
                } else if let Some(version) = version(b"Dumped by pg_dump version ") {
                    self.section().program_version.get_or_insert(version);
                }
            }
        }
    }

    fn statement_ended(&mut self, statement: &Statement<'_>) {
        let as_written = statement.head;
        let section = self.section();
        let decoded = names::decode(section.encoding.as_deref(), statement.head);
        let statement = &Statement {
            head: &decoded,
            ..*statement
        };
        section.statements += 1;
        if section.complete {
            section.after_end.get_or_insert(statement.at);
            return;
        }
        match statement.keyword {
            "copy" if statement.copies_from_stdin => {
                self.copying =
                    Some(names::target_table(statement.head).unwrap_or_else(|| TableName::new("", "?")));
            }
            "insert" => {
                let known = self
                    .inserting
                    .as_ref()
                    .filter(|(prefix, _)| as_written.starts_with(prefix));
                if known.is_none() {
                    self.inserting = insert_prefix(as_written).map(|(prefix, table)| {
                        (prefix, names::target_table(statement.head).unwrap_or(table))
                    });
                }
                if let Some((_, table)) = &self.inserting {
                    let section = self
                        .report
                        .sections
                        .last_mut()
                        .expect("there is always one section");
                    section.inserts = true;
                    if let Some(rows) = section.tables.get_mut(table) {
                        *rows += statement.rows;
                    } else {
                        section.tables.insert(table.clone(), statement.rows);
                    }
                }
            }
            "select" => {
                if statement.head.starts_with(b"SELECT pg_catalog.lo_create(") {
                    section.large_objects += 1;
                }
            }
            "begin" | "start" | "commit" | "end" if is_plain_transaction(statement) => {}
            _ => look_at(section, statement),
        }
    }

    fn data_ended(&mut self, rows: u64) {
        if let Some(table) = self.copying.take() {
            *self.section().tables.entry(table).or_default() += rows;
        }
    }

    fn meta(&mut self, text: &[u8], at: Position, line_start: bool) {
        let line = String::from_utf8_lossy(text);
        let line = line.trim_end();
        if line_start && let Some(database) = names::connect_target(line) {
            self.report.sections.push(Section {
                database: Some(database),
                at,
                ..Section::default()
            });
            return;
        }
        let permitted = line_start && is_restriction(text);
        // The key is another one each time pg_restore writes it, and of no interest.
        let line = if permitted {
            line.split(' ').next().unwrap_or_default()
        } else {
            line
        };
        let section = self.section();
        if section.metas.len() < KEPT {
            section.metas.push(Meta {
                text: line.to_owned(),
                at,
                permitted,
            });
        } else if !permitted && section.metas.iter().all(|meta| meta.permitted) {
            section.metas.pop();
            section.metas.push(Meta {
                text: line.to_owned(),
                at,
                permitted,
            });
        }
    }

    fn oddity(&mut self, oddity: Oddity, at: Position) {
        if self.report.oddities.len() < KEPT {
            self.report.oddities.push((oddity, at));
        }
    }
}

/// `INSERT INTO table ` as this statement has it, a space included so that no longer name matches.
fn insert_prefix(head: &[u8]) -> Option<(Vec<u8>, TableName)> {
    let table = names::target_table(head)?;
    let tokens = names::tokens(&head[..head.len().min(2048)]);
    let used = if tokens.get(3) == Some(&&b"."[..]) { 4 } else { 2 };
    let last = tokens.get(used)?;
    let end = last.as_ptr() as usize - head.as_ptr() as usize + last.len();
    let prefix = head.get(..=end).filter(|prefix| prefix.ends_with(b" "))?;
    Some((prefix.to_vec(), table))
}

/// `BEGIN;` and `COMMIT;`, which pg_dump writes around large objects and which are left out when everything
/// runs in one transaction.
pub(super) fn is_plain_transaction(statement: &Statement<'_>) -> bool {
    if statement.truncated || statement.head.len() > 64 {
        return false;
    }
    let words: Vec<_> = names::tokens(statement.head)
        .iter()
        .map(|token| token.to_ascii_lowercase())
        .collect();
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    matches!(
        words.as_slice(),
        [b"begin" | b"commit" | b"end", b";"]
            | [b"begin" | b"commit" | b"end", b"transaction" | b"work", b";"]
            | [b"start", b"transaction", b";"]
    )
}

fn look_at(section: &mut Section, statement: &Statement<'_>) {
    if !matches!(
        statement.keyword,
        "alter"
            | "create"
            | "grant"
            | "set"
            | "drop"
            | "begin"
            | "start"
            | "commit"
            | "end"
            | "rollback"
            | "abort"
            | "prepare"
            | "vacuum"
            | "reindex"
            | "cluster"
    ) {
        return;
    }
    let limit = if statement.keyword == "create" {
        512
    } else {
        statement.head.len()
    };
    let tokens = names::tokens(&statement.head[..limit.min(statement.head.len())]);
    let word = |index: usize| {
        tokens
            .get(index)
            .map(|token| String::from_utf8_lossy(token).to_ascii_lowercase())
            .unwrap_or_default()
    };
    let name_at = |index: usize| tokens.get(index).and_then(|token| names::name(token));
    let mut breaks = false;
    match (statement.keyword, word(1).as_str()) {
        ("create", what) => {
            section.creates += 1;
            let exists = if word(2) == "if" { 5 } else { 2 };
            match what {
                "table" | "unlogged" => section.tables_created += 1,
                "extension" => section.extensions.extend(name_at(exists)),
                "schema" => section.schemas.extend(name_at(exists)),
                "user" if word(2) == "mapping" => {
                    let place = if word(3) == "if" { 7 } else { 4 };
                    let role = tokens.get(place).and_then(|token| role_name(token));
                    section.mapped.extend(role);
                }
                "role" | "user" | "group" => section.roles_created.extend(name_at(2)),
                "database" => {
                    section.databases.extend(name_at(2));
                    breaks = true;
                }
                "tablespace" => breaks = true,
                "index" | "unique" => {
                    breaks = word(2) == "concurrently" || word(3) == "concurrently";
                }
                "subscription" => {
                    let text = String::from_utf8_lossy(statement.head).to_ascii_lowercase();
                    breaks = !text.contains("connect = false");
                }
                "policy" => roles_after(&tokens, "to", section),
                _ => {}
            }
        }
        ("alter", "database") => {
            section.databases.extend(name_at(2));
            breaks = tokens
                .iter()
                .any(|token| token.eq_ignore_ascii_case(b"tablespace"));
        }
        ("alter", "system") | ("prepare", "transaction") | ("begin" | "start" | "commit" | "end", _) => {
            breaks = true;
        }
        ("alter", "default") => {
            roles_after(&tokens, "role", section);
            roles_after(&tokens, "to", section);
        }
        ("alter", what) => {
            owner_after(&tokens, section);
            if matches!(what, "table" | "sequence") {
                section.owned_sequences.extend(owned_sequence(what, &tokens));
            }
        }
        ("grant", _) => roles_after(&tokens, "to", section),
        ("set", "session") if word(2) == "authorization" => {
            if let Some(role) = tokens.get(3).and_then(|token| role_name(token)) {
                section.owners.insert(role);
            }
        }
        ("set", "role") => section
            .owners
            .extend(tokens.get(2).and_then(|token| role_name(token))),
        ("set", "client_encoding") => {
            if let Some(encoding) = names::client_encoding_setting(statement.head) {
                section.encoding = Some(encoding);
            }
        }
        ("set", "default_tablespace") => {
            let value = tokens
                .get(3)
                .map(|token| String::from_utf8_lossy(token).replace(['\'', '"'], ""));
            section
                .tablespaces
                .extend(value.filter(|value| !value.is_empty() && value != ";"));
        }
        ("drop", "database") => {
            let exists = if word(2) == "if" { 4 } else { 2 };
            section.databases.extend(name_at(exists));
            breaks = true;
        }
        ("drop", "tablespace" | "subscription") | ("vacuum" | "cluster" | "rollback" | "abort", _) => {
            breaks = !(statement.keyword == "rollback" && word(1) == "to");
        }
        ("drop", "index") | ("reindex", _) => {
            breaks = statement.keyword == "reindex"
                || tokens
                    .iter()
                    .any(|token| token.eq_ignore_ascii_case(b"concurrently"));
        }
        _ => {}
    }
    if breaks && section.transaction_breakers.len() < KEPT {
        let mut text = String::from_utf8_lossy(&statement.head[..statement.head.len().min(80)]).into_owned();
        if statement.head.len() > 80 {
            text.push('…');
        }
        section.transaction_breakers.push((text, statement.at));
    }
}

/// `ALTER ... OWNER TO role;`
fn owner_after(tokens: &[&[u8]], section: &mut Section) {
    if let Some(index) = owner_index(tokens) {
        section.owners.extend(role_name(tokens[index]));
    }
}

/// `ALTER SEQUENCE s OWNED BY t.c` and `ALTER TABLE t ALTER COLUMN c ADD GENERATED ... (SEQUENCE NAME s`.
fn owned_sequence(what: &str, tokens: &[&[u8]]) -> Option<(TableName, TableName)> {
    let only = usize::from(names::is(tokens.get(2), "only"));
    let (first, used) = names::table_name(tokens.get(2 + only..)?)?;
    if what == "sequence" {
        let rest = &tokens[2 + used..];
        if !(names::is(rest.first(), "owned") && names::is(rest.get(1), "by")) {
            return None;
        }
        let (table, _) = names::table_name(rest.get(2..)?)?;
        return Some((first, table));
    }
    let place = tokens.windows(2).position(|pair| {
        pair[0].eq_ignore_ascii_case(b"sequence") && pair[1].eq_ignore_ascii_case(b"name")
    })?;
    let (sequence, _) = names::table_name(tokens.get(place + 2..)?)?;
    Some((sequence, first))
}

/// The place of the role in `... OWNER TO role;`.
pub(super) fn owner_index(tokens: &[&[u8]]) -> Option<usize> {
    let last = tokens.len().checked_sub(2)?;
    let fits = last >= 2 && names::is(tokens.get(last - 2), "owner") && names::is(tokens.get(last - 1), "to");
    fits.then_some(last)
}

/// The roles of the list after the last such word outside quotes.
fn roles_after(tokens: &[&[u8]], keyword: &str, section: &mut Section) {
    let Some(index) = tokens
        .iter()
        .rposition(|token| token.eq_ignore_ascii_case(keyword.as_bytes()))
    else {
        return;
    };
    let mut rest = tokens[index + 1..].iter();
    while let Some(token) = rest.next() {
        section.grantees.extend(role_name(token));
        if rest.next() != Some(&&b","[..]) {
            return;
        }
    }
}

fn role_name(token: &[u8]) -> Option<String> {
    let role = match token {
        [b'\'', inner @ .., b'\''] => String::from_utf8_lossy(inner).replace("''", "'"),
        _ => names::name(token)?,
    };
    let unquoted = !token.starts_with(b"\"") && !token.starts_with(b"'");
    let special = matches!(
        role.as_str(),
        "public" | "current_user" | "session_user" | "current_role" | "default" | "none"
    );
    let is_special = (unquoted && special) || role.starts_with("pg_");
    (!is_special).then_some(role)
}
