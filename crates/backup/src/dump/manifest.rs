//! The manifest of a dump: what it is of, how it was made, and how to know that it is whole.
//!
//! Manifests are read by later and by earlier versions of pgmahout than the one that wrote them, so
//! reading is tolerant: unknown keys are ignored, missing ones take a default where there is a harmless
//! one, unknown words become `Unknown`. [`SCHEMA_VERSION`] only grows when the meaning of a key changes;
//! a manifest of a newer schema is refused with a hint to update pgmahout.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod bundle;
#[cfg(test)]
mod tests;

pub use bundle::{BundleManifest, BundlePurpose, Member, MemberRole, SkippedDatabase};
#[cfg(test)]
pub(crate) use tests::sample;

/// The version of the manifest's meaning that this program writes.
pub const SCHEMA_VERSION: u32 = 1;

/// What follows a dump's file name in its manifest's name.
pub const MANIFEST_SUFFIX: &str = ".manifest.json";

/// What a bundle manifest's name ends in.
pub const BUNDLE_SUFFIX: &str = ".bundle.json";

/// Why the bytes of a manifest could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not the JSON of a manifest.
    #[error("the manifest is damaged")]
    Damaged(#[source] serde_json::Error),
    /// Written by a pgmahout whose manifests mean something else.
    #[error("the manifest has schema version {found}; this program understands up to {SCHEMA_VERSION}")]
    Newer {
        /// The version that it says.
        found: u64,
    },
    /// It is a manifest, but of another kind than asked for.
    #[error("the manifest is of kind \"{found}\", not \"{wanted}\"")]
    WrongKind {
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: &'static str,
    },
}

/// A manifest of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyManifest {
    /// Of one dump.
    Dump(Box<DumpManifest>),
    /// Of a bundle of dumps.
    Bundle(BundleManifest),
}

impl AnyManifest {
    /// Reads a manifest of either kind.
    ///
    /// # Errors
    /// When the bytes are no manifest, or one of a newer schema.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Head {
            schema_version: u64,
            kind: String,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(ManifestError::Damaged)?;
        if head.schema_version > u64::from(SCHEMA_VERSION) {
            return Err(ManifestError::Newer {
                found: head.schema_version,
            });
        }
        match head.kind.as_str() {
            DumpManifest::KIND => serde_json::from_slice(bytes).map(|it| Self::Dump(Box::new(it))),
            BundleManifest::KIND => serde_json::from_slice(bytes).map(Self::Bundle),
            _ => {
                return Err(ManifestError::WrongKind {
                    found: head.kind,
                    wanted: DumpManifest::KIND,
                });
            }
        }
        .map_err(ManifestError::Damaged)
    }
}

/// The manifest of one dump, stored beside it as `FILE.manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DumpManifest {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Always [`DumpManifest::KIND`].
    pub kind: String,
    /// The program that wrote it.
    pub tool: Tool,
    /// The archive's file name, without directory.
    pub file: String,
    /// The server that was dumped.
    pub server: Server,
    /// `pg_dump --version`'s number, for example `15.18`.
    pub client_version: String,
    /// The database that was dumped.
    pub database: Database,
    /// The snapshot that both the dump and the row counts saw.
    pub snapshot: Option<Snapshot>,
    /// When the dump began.
    pub started_at: Timestamp,
    /// When it was complete and read back.
    pub finished_at: Timestamp,
    /// What was asked for.
    pub options: Options,
    /// The compression as given, for example `gzip:6`, `zstd:3`, `lz4`, `none`.
    pub compression: String,
    /// How it is encrypted; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The bytes before compression and encryption.
    pub content: Extent,
    /// The bytes of the file as it is stored.
    pub stored: Extent,
    /// How [`Self::tables`] was counted.
    pub counts: CountMode,
    /// Every table whose rows are in the dump, partitions as themselves; without partitioned parents
    /// (which hold no rows), foreign tables, and tables whose data was left out.
    #[serde(default)]
    pub tables: Vec<TableRows>,
    /// Further files that belong to the dump.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub companions: Vec<Companion>,
    /// What the writer warned of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What is known about the dump's soundness.
    #[serde(default)]
    pub verification: Verification,
}

impl DumpManifest {
    /// What [`Self::kind`] says.
    pub const KIND: &'static str = "dump";

    /// Reads a dump's manifest.
    ///
    /// # Errors
    /// When the bytes are no dump manifest, or one of a newer schema.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ManifestError> {
        match AnyManifest::from_slice(bytes)? {
            AnyManifest::Dump(manifest) => Ok(*manifest),
            AnyManifest::Bundle(_) => Err(ManifestError::WrongKind {
                found: BundleManifest::KIND.to_owned(),
                wanted: Self::KIND,
            }),
        }
    }

    /// The manifest as it is stored: indented JSON that ends in a line feed.
    pub fn to_vec(&self) -> Vec<u8> {
        to_vec(self)
    }

    /// The name of a dump's manifest.
    pub fn name_for(file: &str) -> String {
        format!("{file}{MANIFEST_SUFFIX}")
    }

    /// The sum of all counted rows, and whether every one of the counts is exact.
    pub fn total_rows(&self) -> (u64, bool) {
        let rows = self.tables.iter().filter_map(|table| table.rows).sum();
        let exact = self
            .tables
            .iter()
            .all(|table| table.rows.is_some() && table.precision == Precision::Exact);
        (rows, exact)
    }
}

fn to_vec(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("manifests have string keys only");
    bytes.push(b'\n');
    bytes
}

/// The program that wrote a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Tool {
    /// This program.
    pub fn current() -> Self {
        Self {
            name: "pgmahout".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The server that was dumped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// For people: `15.18`.
    pub version: String,
    /// `server_version_num`.
    pub version_number: u32,
    /// From `pg_control_system()`, as text, since JSON's numbers cannot hold it.
    #[serde(default)]
    pub system_identifier: Option<String>,
    /// Where it was reached: host (or socket directory) and port.
    #[serde(default)]
    pub address: String,
    /// Whether it was a standby.
    #[serde(default)]
    pub in_recovery: bool,
}

/// The database that was dumped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its server-side encoding, for example `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    #[serde(default)]
    pub collate: String,
    /// `LC_CTYPE`.
    #[serde(default)]
    pub ctype: String,
    /// `libc`, `icu` or `builtin`.
    #[serde(default)]
    pub locale_provider: String,
    /// The ICU or builtin locale (`daticulocale`, since 17 `datlocale`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// The version that the database's collation was made with (`datcollversion`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collation_version: Option<String>,
    /// The version that the system had when dumping (`pg_database_collation_actual_version`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collation_actual_version: Option<String>,
    /// Versions of the other collations that columns use, by quoted name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub collations: BTreeMap<String, Option<String>>,
    /// Its extensions.
    #[serde(default)]
    pub extensions: Vec<Extension>,
    /// `pg_database_size` in bytes.
    #[serde(default)]
    pub size_bytes: u64,
}

/// An extension of the dumped database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The schema of its objects.
    pub schema: String,
}

/// The snapshot of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What `pg_export_snapshot()` gave.
    pub id: String,
    /// The server's clock when it was taken.
    pub taken_at: Timestamp,
    /// The write position (on a standby: the replay position) when it was taken, as `16/B374D848`.
    /// Every transaction in the dump committed before it.
    #[serde(default)]
    pub lsn: Option<String>,
}

/// What was asked of `dump create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The archive's form.
    pub format: Format,
    /// Definitions, rows, or both.
    #[serde(default)]
    pub contents: Contents,
    /// Parallel workers of pg_dump.
    #[serde(default = "one")]
    pub jobs: u32,
    /// Patterns of tables to include; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// Patterns of schemas to include; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<String>,
    /// Patterns of tables left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_tables: Vec<String>,
    /// Patterns of schemas left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_schemas: Vec<String>,
    /// Patterns of tables whose rows are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_table_data: Vec<String>,
    /// Whether ownership is in it. An archive of the custom or directory form always holds it; `false`
    /// then says that a restore should leave it out.
    #[serde(default)]
    pub owner: bool,
    /// Whether access rights are in it.
    #[serde(default)]
    pub acl: bool,
}

fn one() -> u32 {
    1
}

impl Options {
    /// Whether the dump holds all that its [`Contents`] promises, of the whole database.
    pub fn is_whole_database(&self) -> bool {
        self.tables.is_empty()
            && self.schemas.is_empty()
            && self.exclude_tables.is_empty()
            && self.exclude_schemas.is_empty()
            && self.exclude_table_data.is_empty()
    }
}

/// The form of an archive, before compression and encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// SQL, for psql.
    #[default]
    Plain,
    /// `pg_dump -Fc`.
    Custom,
    /// A tar stream of the files of `pg_dump -Fd`.
    Directory,
    /// Of a later version of pgmahout.
    #[serde(other)]
    Unknown,
}

impl Format {
    /// The word for it, as `--format` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Custom => "custom",
            Self::Directory => "directory",
            Self::Unknown => "unknown",
        }
    }

    /// What names of such archives end in, before the compression's ending.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Plain => ".sql",
            Self::Custom | Self::Unknown => ".dump",
            Self::Directory => ".dir.tar",
        }
    }
}

/// What of the database is in a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contents {
    /// Definitions and rows.
    #[default]
    Full,
    /// Definitions only.
    Schema,
    /// Rows only.
    Data,
    /// Of a later version of pgmahout.
    #[serde(other)]
    Unknown,
}

impl Contents {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Schema => "schema",
            Self::Data => "data",
            Self::Unknown => "unknown",
        }
    }

    /// Whether table rows are in it.
    pub fn has_rows(self) -> bool {
        matches!(self, Self::Full | Self::Data)
    }
}

/// How an archive is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// The cipher, `aes-256-gcm`.
    pub cipher: String,
    /// What the key comes from: `passphrase` or `key-file`.
    pub key: String,
}

/// A length and a digest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extent {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// How the rows were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountMode {
    /// Every row, as far as the time budget went; each table says whether it was counted or estimated.
    #[default]
    Exact,
    /// The planner's figures.
    Estimate,
    /// Not at all; the tables are listed without figures.
    None,
    /// Of a later version of pgmahout.
    #[serde(other)]
    Unknown,
}

/// The rows of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    /// Its schema, unquoted.
    pub schema: String,
    /// Its name, unquoted.
    pub name: String,
    /// How many rows; absent when they were not counted.
    pub rows: Option<u64>,
    /// What the figure is worth.
    pub precision: Precision,
}

/// What a row count is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Counted, in the dump's snapshot.
    Exact,
    /// `pg_class.reltuples`: not to be compared.
    Estimate,
    /// Not counted, or of a later version of pgmahout.
    #[serde(other)]
    None,
}

/// A further file of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// What it is. Its content is plain SQL.
    pub role: CompanionRole,
    /// Its file name, in the dump's directory.
    pub file: String,
    /// Its compression.
    pub compression: String,
    /// Its encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The bytes before compression and encryption.
    pub content: Extent,
    /// The bytes as stored.
    pub stored: Extent,
}

/// What a companion file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompanionRole {
    /// Roles and tablespaces: SQL of `pg_dumpall --globals-only`.
    Globals,
    /// What the server keeps about the database: owner, rights, comment, connection limit, settings.
    Properties,
    /// Citus' metadata ([`crate::dump::citus`]).
    Citus,
    /// Of a later version of pgmahout.
    #[serde(other)]
    Unknown,
}

/// What is known about a dump's soundness.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Verification {
    /// When the whole stored file was last read, decrypted, decompressed and found equal to the digests,
    /// with the format's end marker.
    #[serde(default)]
    pub read_back_at: Option<Timestamp>,
    /// Test restores, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restores: Vec<RestoreTest>,
}

impl Verification {
    /// The last test restore.
    pub fn last_restore(&self) -> Option<&RestoreTest> {
        self.restores.last()
    }
}

/// The record of one test restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreTest {
    /// When it ended.
    pub at: Timestamp,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Whether everything was as it should be.
    pub passed: bool,
    /// Whether the dump came back whole, its rows compared; then, when the test did not pass, what it holds is
    /// not what the user's assertions expect, and the dump is not to blame.
    #[serde(default)]
    pub restored: bool,
    /// The version of the server that it was restored into.
    #[serde(default)]
    pub server_version: String,
    /// How many tables' rows were compared exactly.
    #[serde(default)]
    pub tables_compared: u64,
    /// How many assertions of the user held.
    #[serde(default)]
    pub assertions: u64,
    /// What was wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
