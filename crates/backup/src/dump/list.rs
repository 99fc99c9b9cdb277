//! `dump list` and `dump show`: what a place holds, as values to print.

use jiff::Timestamp;
use serde::Serialize;

use super::catalog::{Bundle, Catalog, Entry, Trust};
use super::error::DumpError;
use super::location::Place;
use super::manifest::{BundlePurpose, DumpManifest, RestoreTest, SkippedDatabase};

/// One dump in a listing. Part of the JSON output: keys are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DumpSummary {
    /// The file's name.
    pub file: String,
    /// Where it is, as other commands take it.
    pub location: String,
    /// The database; `null` for foreign dumps.
    pub database: Option<String>,
    /// `full`, `schema` or `data`.
    pub contents: Option<&'static str>,
    /// Whether it is of the whole database, not of some tables or schemas.
    pub whole_database: Option<bool>,
    /// `plain`, `custom` or `directory`.
    pub format: Option<&'static str>,
    /// The compression, for example `gzip:6`.
    pub compression: Option<String>,
    /// Whether it is encrypted.
    pub encrypted: Option<bool>,
    /// The server's version.
    pub server_version: Option<String>,
    /// When its snapshot was taken; for foreign dumps, when the file was written.
    pub taken_at: Timestamp,
    /// Its age in seconds.
    pub age_seconds: i64,
    /// All bytes that it takes.
    pub bytes: u64,
    /// The bytes of its content before compression.
    pub content_bytes: Option<u64>,
    /// How many tables have rows in it.
    pub tables: Option<usize>,
    /// The sum of its rows, where it was counted.
    pub rows: Option<u64>,
    /// Whether every table was counted exactly.
    pub rows_exact: Option<bool>,
    /// How far it can be trusted.
    pub trust: Trust,
    /// Its last test restore.
    pub last_restore: Option<RestoreTest>,
    /// The bundle it belongs to.
    pub bundle: Option<String>,
    /// What is wrong with it, and what its writer warned of.
    pub warnings: Vec<String>,
}

/// One bundle in a listing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BundleSummary {
    /// The file name of its manifest.
    pub file: String,
    /// Where it is, as other commands take it.
    pub location: String,
    /// `all-databases` or `set`.
    pub purpose: Option<BundlePurpose>,
    /// When its first dump began.
    pub taken_at: Timestamp,
    /// Its age in seconds.
    pub age_seconds: i64,
    /// All bytes of its members.
    pub bytes: u64,
    /// Names of its members.
    pub members: Vec<String>,
    /// How far it can be trusted.
    pub trust: Trust,
    /// What is wrong with it.
    pub warnings: Vec<String>,
}

/// Summarises every dump, newest first.
pub fn dumps(catalog: &Catalog, place: &Place, now: Timestamp) -> Vec<DumpSummary> {
    catalog
        .dumps
        .iter()
        .map(|entry| dump(entry, place, now))
        .collect()
}

/// Summarises one dump.
pub fn dump(entry: &Entry, place: &Place, now: Timestamp) -> DumpSummary {
    let manifest = entry.readable();
    let rows = manifest
        .filter(|manifest| manifest.options.contents.has_rows())
        .map(DumpManifest::total_rows);
    let mut warnings = entry.problems();
    warnings.extend(
        manifest
            .iter()
            .flat_map(|manifest| manifest.warnings.iter().cloned()),
    );
    if let Some(detail) = manifest
        .and_then(|manifest| manifest.verification.last_restore())
        .filter(|test| !test.passed)
        .and_then(|test| test.detail.clone())
    {
        warnings.push(format!("its last test restore failed: {detail}"));
    }
    DumpSummary {
        file: entry.file.clone(),
        location: place.describe_file(&entry.file),
        database: manifest.map(|manifest| manifest.database.name.clone()),
        contents: manifest.map(|manifest| manifest.options.contents.as_str()),
        whole_database: manifest.map(|manifest| manifest.options.is_whole_database()),
        format: manifest.map(|manifest| manifest.options.format.as_str()),
        compression: manifest.map(|manifest| manifest.compression.clone()),
        encrypted: manifest.map(|manifest| manifest.encryption.is_some()),
        server_version: manifest.map(|manifest| manifest.server.version.clone()),
        taken_at: entry.taken_at(),
        age_seconds: now.as_second() - entry.taken_at().as_second(),
        bytes: entry.bytes(),
        content_bytes: manifest.map(|manifest| manifest.content.bytes),
        tables: manifest
            .filter(|manifest| manifest.options.contents.has_rows())
            .map(|manifest| manifest.tables.len()),
        rows: rows.map(|(rows, _)| rows),
        rows_exact: rows.map(|(_, exact)| exact),
        trust: entry.trust(),
        last_restore: manifest.and_then(|manifest| manifest.verification.last_restore().cloned()),
        bundle: entry.bundle.clone(),
        warnings,
    }
}

/// Summarises every bundle, newest first.
pub fn bundles(catalog: &Catalog, place: &Place, now: Timestamp) -> Vec<BundleSummary> {
    catalog
        .bundles
        .iter()
        .map(|entry| bundle(entry, catalog, place, now))
        .collect()
}

fn bundle(entry: &Bundle, catalog: &Catalog, place: &Place, now: Timestamp) -> BundleSummary {
    let mut warnings: Vec<String> = entry
        .missing
        .iter()
        .map(|name| format!("its member \"{name}\" is missing"))
        .collect();
    match &entry.manifest {
        Err(error) => warnings.push(error.to_string()),
        Ok(manifest) => warnings.extend(manifest.skipped.iter().map(SkippedDatabase::warning)),
    }
    BundleSummary {
        file: entry.file.clone(),
        location: place.describe_file(&entry.file),
        purpose: entry.manifest.as_ref().ok().map(|manifest| manifest.purpose),
        taken_at: entry.taken_at(),
        age_seconds: now.as_second() - entry.taken_at().as_second(),
        bytes: entry.bytes(catalog),
        members: entry
            .manifest
            .iter()
            .flat_map(|manifest| manifest.members.iter().map(|member| member.file.clone()))
            .collect(),
        trust: entry.trust(catalog),
        warnings,
    }
}

/// Finds one dump or bundle by its file name.
///
/// # Errors
/// When there is none of that name; the error has similar ones.
pub fn find<'a>(catalog: &'a Catalog, place: &Place, name: &str) -> Result<Found<'a>, DumpError> {
    if let Some(entry) = catalog.dumps.iter().find(|entry| entry.file == name) {
        return Ok(Found::Dump(entry));
    }
    if let Some(bundle) = catalog.bundles.iter().find(|bundle| bundle.file == name) {
        return Ok(Found::Bundle(bundle));
    }
    let names = catalog.dumps.iter().map(|entry| &entry.file);
    let names = names.chain(catalog.bundles.iter().map(|bundle| &bundle.file));
    let mut near: Vec<(f64, &String)> = names
        .map(|file| (strsim::normalized_damerau_levenshtein(file, name), file))
        .filter(|(likeness, _)| *likeness > 0.6)
        .collect();
    near.sort_by(|one, other| other.0.total_cmp(&one.0));
    Err(DumpError::NoSuchDump {
        file: name.to_owned(),
        place: place.describe(),
        similar: near.into_iter().take(3).map(|(_, file)| file.clone()).collect(),
    })
}

/// What a name stands for.
#[derive(Debug)]
pub enum Found<'a> {
    /// A dump.
    Dump(&'a Entry),
    /// A bundle.
    Bundle(&'a Bundle),
}
