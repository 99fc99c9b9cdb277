//! The manifest of a bundle: several dumps that belong together.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Encryption, Extent, Tool, to_vec};

/// The manifest of several dumps that were made in one go, stored as `NAME.bundle.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BundleManifest {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION) of the writer.
    pub schema_version: u32,
    /// Always [`BundleManifest::KIND`].
    pub kind: String,
    /// The program that wrote it.
    pub tool: Tool,
    /// Why these dumps belong together.
    pub purpose: BundlePurpose,
    /// When the first began.
    pub started_at: Timestamp,
    /// When the last was complete.
    pub finished_at: Timestamp,
    /// The dumps, in the order in which a restore of everything takes them: globals first.
    pub members: Vec<Member>,
    /// Databases of the server that are not in it, templates aside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedDatabase>,
}

/// A database that `--all-databases` left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedDatabase {
    /// Its name.
    pub name: String,
    /// Why, for people.
    pub why: String,
}

impl SkippedDatabase {
    /// What a person is told about it.
    pub fn warning(&self) -> String {
        format!("database \"{}\" is not dumped: {}", self.name, self.why)
    }
}

impl BundleManifest {
    /// What [`Self::kind`] says.
    pub const KIND: &'static str = "bundle";

    /// The manifest as it is stored: indented JSON that ends in a line feed.
    pub fn to_vec(&self) -> Vec<u8> {
        to_vec(self)
    }
}

/// Why the members of a bundle belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BundlePurpose {
    /// `--all-databases`: every database of a server, and its globals.
    AllDatabases,
    /// `--set`: several views of one database, all of one snapshot.
    Set,
    /// Of a later version of pgmahout.
    #[serde(other)]
    Unknown,
}

/// One dump of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// What this member is.
    pub role: MemberRole,
    /// The file's name, in the bundle's directory.
    pub file: String,
    /// The database; absent for globals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The file as stored, to know it again.
    pub stored: Extent,
    /// The compression; given for globals, which have no manifest of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// The encryption of a globals member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// What a member of a bundle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberRole {
    /// Roles and tablespaces: plain SQL of `pg_dumpall --globals-only`.
    Globals,
    /// A whole database.
    Full,
    /// Definitions only.
    Schema,
    /// Rows only, of all or of some tables.
    Data,
    /// Of a later version of pgmahout.
    #[serde(other)]
    Unknown,
}
