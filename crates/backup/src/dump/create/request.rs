//! What `dump create` was asked for, after every option was understood.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Zoned;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_store::codec::Codec;
use pgmahout_store::seal::Keyring;

use super::super::location::Place;
use super::super::manifest::{Contents, CountMode, Encryption, MemberRole, Options};

/// One run of `dump create`.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// The server. For a single database and for a set, the database to dump; for all databases, one to
    /// begin with.
    pub connection: ConnectionParameters,
    /// Where PostgreSQL's programs are, when that was said.
    pub bin_dir: Option<PathBuf>,
    /// Where the dump goes.
    pub place: Place,
    /// Its name; for bundles, the name without an ending. Without one, the default name.
    pub file: Option<String>,
    /// What to dump.
    pub scope: Scope,
    /// Form, contents and selection. Bundles change [`Options::contents`] and [`Options::tables`] by member.
    pub options: Options,
    /// Whether roles and tablespaces go beside a single database.
    pub globals: bool,
    /// Compression.
    pub codec: Codec,
    /// Compressing threads; 0 means one per processor.
    pub threads: usize,
    /// Encryption.
    pub sealing: Option<Sealing>,
    /// How rows are counted.
    pub counts: CountMode,
    /// How long exact counting by SQL may take.
    pub count_budget: Duration,
    /// Whether an existing file is overwritten.
    pub force: bool,
    /// Whether the estimate of the space needed is not to stop the dump.
    pub skip_space_check: bool,
    /// When the command began, in the time zone of file names.
    pub now: Zoned,
}

/// Which databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The connection's one.
    Database,
    /// Every database that accepts connections, but for templates.
    AllDatabases,
    /// Several views of the connection's one, all of one snapshot.
    Set(Vec<SetPart>),
}

/// The keys of an encrypted dump.
#[derive(Debug, Clone)]
pub struct Sealing {
    /// The keys.
    pub keyring: Keyring,
    /// What the manifest says about them.
    pub description: Encryption,
}

/// One member of `--set`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetPart {
    /// What it holds.
    pub contents: Contents,
    /// The tables, for data; all when empty.
    pub tables: Vec<String>,
}

impl SetPart {
    /// Reads the value of `--set`: members are separated by commas; `data:` takes all names that follow it
    /// up to the next `full`, `schema` or `data`, as in `full,schema,data:audit_log,outbox_events`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut parts: Vec<Self> = Vec::new();
        for word in text.split(',').map(str::trim) {
            let (head, table) = match word.split_once(':') {
                Some((head, table)) => (head, Some(table.trim())),
                None => (word, None),
            };
            let contents = match head {
                "full" => Some(Contents::Full),
                "schema" => Some(Contents::Schema),
                "data" => Some(Contents::Data),
                _ => None,
            };
            match (contents, table) {
                (Some(_), Some("")) => return Err(format!("\"{word}\" names no table after the colon")),
                (Some(Contents::Data), Some(table)) => {
                    parts.push(Self {
                        contents: Contents::Data,
                        tables: vec![table.to_owned()],
                    });
                }
                (Some(other), Some(_)) => {
                    return Err(format!("only data takes tables, not \"{}\"", other.as_str()));
                }
                (Some(contents), None) => parts.push(Self {
                    contents,
                    tables: Vec::new(),
                }),
                (None, _) if word.is_empty() => return Err("a member is empty".to_owned()),
                (None, _) => match parts.last_mut() {
                    Some(last) if !last.tables.is_empty() => last.tables.push(word.to_owned()),
                    _ => {
                        return Err(format!(
                            "\"{word}\" is none of full, schema, data, and follows no data:TABLE"
                        ));
                    }
                },
            }
        }
        for (index, part) in parts.iter().enumerate() {
            if parts[..index].iter().any(|other| other.contents == part.contents) {
                return Err(format!("\"{}\" is named twice", part.contents.as_str()));
            }
        }
        Ok(parts)
    }

    /// The role in the bundle.
    pub fn role(&self) -> MemberRole {
        match self.contents {
            Contents::Full => MemberRole::Full,
            Contents::Schema => MemberRole::Schema,
            Contents::Data => MemberRole::Data,
            Contents::Unknown => MemberRole::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_of_the_application_runbook_is_understood() {
        let parts = SetPart::parse_list("full,schema,data:audit_log,outbox_events").expect("understood");
        let wanted = [
            SetPart {
                contents: Contents::Full,
                tables: vec![],
            },
            SetPart {
                contents: Contents::Schema,
                tables: vec![],
            },
            SetPart {
                contents: Contents::Data,
                tables: vec!["audit_log".to_owned(), "outbox_events".to_owned()],
            },
        ];
        assert_eq!(parts, wanted);
        assert_eq!(
            SetPart::parse_list("data").expect("all data")[0].tables,
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_wrong_set_is_refused_with_what_is_wrong() {
        for (text, part) in [
            ("", "empty"),
            ("full,", "empty"),
            ("full,orders", "orders"),
            ("schema:orders", "only data"),
            ("data:", "names no table"),
            ("full,full", "twice"),
        ] {
            let error = SetPart::parse_list(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
