//! Section `dump`: logical backups.

use std::path::PathBuf;

use serde::Serialize;

use super::repository::{Compression, Encryption, Retention, read_encryption};
use crate::section::{Problems, Section};

/// Section `dump`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Dump {
    /// Where dumps go when no file is named; the current directory by default.
    pub directory: Option<PathBuf>,
    /// The repository that they go to instead.
    pub repository: Option<String>,
    /// The form.
    pub format: Option<DumpFormat>,
    /// How they are compressed.
    pub compress: Option<Compression>,
    /// What encrypts those that go to a directory; a repository has its own.
    pub encryption: Option<Encryption>,
    /// How rows are counted.
    pub counts: Option<Counts>,
    /// How many workers pg_dump and pg_restore have, where the form allows it.
    pub jobs: Option<u32>,
    /// What must be true of a restored dump.
    pub assertions: Vec<Assertion>,
    /// What `dump expire` keeps in a directory.
    #[serde(flatten)]
    pub retention: Retention,
}

/// The form of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DumpFormat {
    /// SQL.
    Plain,
    /// pg_dump's custom archive.
    Custom,
    /// pg_dump's directory archive.
    Directory,
}

/// How the rows of a dump are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counts {
    /// Exactly, in the dump's own snapshot.
    Exact,
    /// By the planner's figures.
    Estimate,
    /// Not at all.
    None,
}

/// Something that must be true of a restored dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assertion {
    /// Its name in reports.
    pub name: String,
    /// A query that returns one true.
    pub sql: String,
    /// The database that it is about; every one where none is named.
    pub database: Option<String>,
}

pub(crate) fn read(root: &Section<'_>, problems: &Problems) -> Dump {
    let section = root.section("dump");
    let dump = Dump {
        directory: section.path("directory"),
        repository: section.text("repository"),
        format: section.one_of(
            "format",
            &[
                ("plain", DumpFormat::Plain),
                ("custom", DumpFormat::Custom),
                ("directory", DumpFormat::Directory),
            ],
        ),
        compress: section.read(
            "compress",
            "one of none, lz4, gzip:1-9, zstd:1-19",
            Compression::parse,
        ),
        encryption: read_encryption(&section),
        counts: section.one_of(
            "counts",
            &[
                ("exact", Counts::Exact),
                ("estimate", Counts::Estimate),
                ("none", Counts::None),
            ],
        ),
        jobs: section.integer("jobs", 1..=512),
        assertions: read_assertions(&section, problems),
        retention: Retention::read(&section),
    };
    section.finish();
    dump
}

/// Reads `assertions`: queries that must answer true.
pub(super) fn read_assertions(section: &Section<'_>, problems: &Problems) -> Vec<Assertion> {
    section
        .list("assertions")
        .into_iter()
        .filter_map(|(path, node)| {
            let assertion = Section::new(path, Some(node), problems);
            let (name, sql) = (assertion.text("name"), assertion.text("sql"));
            for (key, value) in [("name", &name), ("sql", &sql)] {
                if value.is_none() {
                    assertion.missing(key);
                }
            }
            let database = assertion.text("database");
            assertion.finish();
            Some(Assertion {
                name: name?,
                sql: sql?,
                database,
            })
        })
        .collect()
}
