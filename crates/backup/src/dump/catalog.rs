//! What a place holds: dumps with their manifests, bundles, foreign dumps, and what is missing or damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiff::Timestamp;

use super::error::DumpError;
use super::expire::plan::DatabaseKey;
use super::location::{ENCRYPTED_EXTENSION, Item, Place};
use super::manifest::{
    AnyManifest, BUNDLE_SUFFIX, BundleManifest, BundlePurpose, Contents, DumpManifest, MANIFEST_SUFFIX,
    ManifestError, MemberRole, Options,
};

#[cfg(test)]
mod tests;

/// Everything that a place holds.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Dumps with a manifest, foreign dumps, and manifests whose dump is gone; newest first.
    pub dumps: Vec<Entry>,
    /// Bundles; newest first.
    pub bundles: Vec<Bundle>,
}

/// One dump.
#[derive(Debug)]
pub struct Entry {
    /// The archive's file name.
    pub file: String,
    /// The archive; `None` when only its manifest is there.
    pub item: Option<Item>,
    /// What its manifest says.
    pub manifest: ManifestState,
    /// What of its companions is there.
    pub companions: Vec<Item>,
    /// The bundle it belongs to.
    pub bundle: Option<String>,
}

/// What the manifest of a dump says.
#[derive(Debug)]
pub enum ManifestState {
    /// It can be read.
    Read(Box<DumpManifest>),
    /// It is there and cannot be understood.
    Damaged(ManifestError),
    /// There is none: made by another program, or the writer died before the last step.
    Missing,
}

/// One bundle.
#[derive(Debug)]
pub struct Bundle {
    /// The file name of its manifest.
    pub file: String,
    /// The manifest's own file.
    pub item: Item,
    /// What it says.
    pub manifest: Result<BundleManifest, ManifestError>,
    /// Names of members that are not there.
    pub missing: Vec<String>,
    /// Files of members without a manifest of their own: the globals.
    pub own_files: Vec<Item>,
}

/// How far a dump can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// A test restore succeeded.
    Restored,
    /// It was read back whole after writing.
    ReadBack,
    /// Nothing is known.
    Unverified,
    /// The last test restore failed.
    RestoreFailed,
    /// A file is missing or has another length, or the manifest cannot be read.
    Damaged,
}

impl Trust {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::ReadBack => "read back",
            Self::Unverified => "unverified",
            Self::RestoreFailed => "restore failed",
            Self::Damaged => "damaged",
        }
    }

    /// Whether retention counts it as a sound dump.
    pub fn is_sound(self) -> bool {
        matches!(self, Self::Restored | Self::ReadBack)
    }
}

impl Entry {
    /// The manifest, where it can be read.
    pub fn readable(&self) -> Option<&DumpManifest> {
        match &self.manifest {
            ManifestState::Read(manifest) => Some(manifest),
            _ => None,
        }
    }

    /// When the dump's snapshot was taken; for a foreign dump, when its file was written.
    pub fn taken_at(&self) -> Timestamp {
        match (self.readable(), &self.item) {
            (Some(manifest), _) => manifest
                .snapshot
                .as_ref()
                .map_or(manifest.started_at, |snapshot| snapshot.taken_at),
            (None, Some(item)) => item.modified,
            (None, None) => Timestamp::MIN,
        }
    }

    /// All bytes that it takes in its place, companions included.
    pub fn bytes(&self) -> u64 {
        self.item
            .iter()
            .chain(&self.companions)
            .map(|item| item.bytes)
            .sum()
    }

    /// What is wrong with it, each as a sentence.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let ManifestState::Damaged(error) = &self.manifest {
            problems.push(match error {
                ManifestError::Damaged(source) => format!("{error} ({source})"),
                other => other.to_string(),
            });
        }
        let Some(item) = &self.item else {
            problems.push("the manifest is there, but the dump is not".to_owned());
            return problems;
        };
        if let Some(manifest) = self.readable() {
            if item.bytes != manifest.stored.bytes {
                problems.push(format!(
                    "the file has {} bytes, its manifest says {}",
                    item.bytes, manifest.stored.bytes
                ));
            }
            for companion in &manifest.companions {
                match self.companions.iter().find(|item| item.name == companion.file) {
                    None => problems.push(format!("\"{}\", which belongs to it, is missing", companion.file)),
                    Some(item) if item.bytes != companion.stored.bytes => problems.push(format!(
                        "\"{}\" has {} bytes, the manifest says {}",
                        companion.file, item.bytes, companion.stored.bytes
                    )),
                    Some(_) => {}
                }
            }
        }
        problems
    }

    /// How far it can be trusted.
    pub fn trust(&self) -> Trust {
        if !self.problems().is_empty() {
            return Trust::Damaged;
        }
        let Some(manifest) = self.readable() else {
            return Trust::Unverified;
        };
        match manifest.verification.last_restore() {
            Some(test) if test.passed => Trust::Restored,
            Some(test) if !test.restored => Trust::RestoreFailed,
            _ if manifest.verification.read_back_at.is_some() => Trust::ReadBack,
            _ => Trust::Unverified,
        }
    }

    /// What retention compares it with: dumps of one series take each other's place. `None` for what has no
    /// readable manifest, and so is left alone.
    pub fn series(&self) -> Option<String> {
        self.readable().map(series)
    }

    /// The database that can be restored from it in full.
    pub fn covers(&self) -> Option<DatabaseKey> {
        let manifest = self.readable()?;
        let whole = manifest.options.contents == Contents::Full && manifest.options.is_whole_database();
        whole.then(|| DatabaseKey {
            system_identifier: manifest.server.system_identifier.clone(),
            name: manifest.database.name.clone(),
        })
    }

    /// Every file that goes when it goes, the manifest first: a dump half removed must not look whole.
    pub fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        if !matches!(self.manifest, ManifestState::Missing) {
            files.push(DumpManifest::name_for(&self.file));
        }
        files.extend(
            self.item
                .iter()
                .chain(&self.companions)
                .map(|item| item.name.clone()),
        );
        files
    }
}

/// The series of a dump: server, database, contents, selection.
pub fn series(manifest: &DumpManifest) -> String {
    series_of(
        &manifest.database.name,
        &manifest.options,
        manifest.server.system_identifier.as_deref(),
    )
}

/// The series that a dump of a database would belong to.
pub fn series_of(database: &str, options: &Options, system_identifier: Option<&str>) -> String {
    let mut series = format!("{database}, {}", options.contents.as_str());
    for (word, patterns) in [
        ("tables", &options.tables),
        ("schemas", &options.schemas),
        ("without tables", &options.exclude_tables),
        ("without schemas", &options.exclude_schemas),
        ("without rows of", &options.exclude_table_data),
    ] {
        if !patterns.is_empty() {
            let _ = write!(series, ", {word} {}", patterns.join(" "));
        }
    }
    if let Some(identifier) = system_identifier {
        let _ = write!(series, " (system {identifier})");
    }
    series
}

/// Reads what a place holds. Manifests are small; every one is read.
///
/// # Errors
/// When the place cannot be listed or a manifest cannot be fetched. One that cannot be understood is no
/// error; its entry says so.
pub async fn read(place: &Place) -> Result<Catalog, DumpError> {
    let items = place.list().await?;
    let mut manifests = BTreeMap::new();
    for item in &items {
        if item.name.ends_with(MANIFEST_SUFFIX) || item.name.ends_with(BUNDLE_SUFFIX) {
            // Gone since the listing: as if it had never been listed.
            if let Some(bytes) = place.read(&item.name).await? {
                manifests.insert(item.name.clone(), AnyManifest::from_slice(&bytes));
            }
        }
    }
    Ok(assemble(items, manifests))
}

/// Puts names and manifests together.
fn assemble(
    items: Vec<Item>,
    mut manifests: BTreeMap<String, Result<AnyManifest, ManifestError>>,
) -> Catalog {
    let mut by_name: BTreeMap<String, Item> =
        items.into_iter().map(|item| (item.name.clone(), item)).collect();
    let mut catalog = Catalog::default();
    let bundle_names: Vec<String> = manifests
        .keys()
        .filter(|name| name.ends_with(BUNDLE_SUFFIX))
        .cloned()
        .collect();
    let mut member_of: BTreeMap<String, String> = BTreeMap::new();
    for name in bundle_names {
        let Some(item) = by_name.remove(&name) else {
            continue;
        };
        let manifest = match manifests.remove(&name) {
            Some(Ok(AnyManifest::Bundle(bundle))) => Ok(bundle),
            Some(Ok(AnyManifest::Dump(_))) => Err(ManifestError::WrongKind {
                found: DumpManifest::KIND.to_owned(),
                wanted: BundleManifest::KIND,
            }),
            Some(Err(error)) => Err(error),
            None => continue,
        };
        let mut missing = Vec::new();
        let mut own_files = Vec::new();
        if let Ok(bundle) = &manifest {
            for member in &bundle.members {
                member_of.insert(member.file.clone(), name.clone());
                if !by_name.contains_key(&member.file) {
                    missing.push(member.file.clone());
                } else if member.role == MemberRole::Globals {
                    own_files.extend(by_name.remove(&member.file));
                }
            }
        }
        catalog.bundles.push(Bundle {
            file: name,
            item,
            manifest,
            missing,
            own_files,
        });
    }
    for (name, manifest) in manifests {
        by_name.remove(&name);
        let file = name.strip_suffix(MANIFEST_SUFFIX).unwrap_or(&name).to_owned();
        let manifest = match manifest {
            Ok(AnyManifest::Dump(manifest)) => ManifestState::Read(manifest),
            Ok(AnyManifest::Bundle(_)) => ManifestState::Damaged(ManifestError::WrongKind {
                found: BundleManifest::KIND.to_owned(),
                wanted: DumpManifest::KIND,
            }),
            Err(error) => ManifestState::Damaged(error),
        };
        let names: BTreeSet<&str> = match &manifest {
            ManifestState::Read(manifest) => manifest
                .companions
                .iter()
                .map(|companion| companion.file.as_str())
                .collect(),
            _ => BTreeSet::new(),
        };
        let companions = names.iter().filter_map(|name| by_name.remove(*name)).collect();
        let item = by_name.remove(&file);
        let bundle = member_of.get(&file).cloned();
        catalog.dumps.push(Entry {
            file,
            item,
            manifest,
            companions,
            bundle,
        });
    }
    for (name, item) in by_name {
        if looks_like_a_dump(&name) {
            let bundle = member_of.get(&name).cloned();
            catalog.dumps.push(Entry {
                file: name,
                item: Some(item),
                manifest: ManifestState::Missing,
                companions: Vec::new(),
                bundle,
            });
        }
    }
    catalog.dumps.sort_by(|one, other| {
        other
            .taken_at()
            .cmp(&one.taken_at())
            .then_with(|| one.file.cmp(&other.file))
    });
    catalog.bundles.sort_by(|one, other| {
        other
            .taken_at()
            .cmp(&one.taken_at())
            .then_with(|| one.file.cmp(&other.file))
    });
    catalog
}

impl Bundle {
    /// When its first dump began; for an unreadable one, when its manifest was written.
    pub fn taken_at(&self) -> Timestamp {
        self.manifest
            .as_ref()
            .map_or(self.item.modified, |manifest| manifest.started_at)
    }

    /// What retention compares it with.
    pub fn series(&self, catalog: &Catalog) -> Option<String> {
        let manifest = self.manifest.as_ref().ok()?;
        let system = self
            .members(catalog)
            .find_map(|entry| entry.readable()?.server.system_identifier.clone())
            .map(|identifier| format!(" (system {identifier})"))
            .unwrap_or_default();
        let databases: BTreeSet<&str> = manifest
            .members
            .iter()
            .filter_map(|member| member.database.as_deref())
            .collect();
        let databases: Vec<&str> = databases.into_iter().collect();
        Some(match manifest.purpose {
            BundlePurpose::AllDatabases => format!("all databases{system}"),
            BundlePurpose::Set | BundlePurpose::Unknown => {
                format!("{}, bundle{system}", databases.join(" "))
            }
        })
    }

    /// The members that are there.
    pub fn members<'a>(&'a self, catalog: &'a Catalog) -> impl Iterator<Item = &'a Entry> + 'a {
        catalog
            .dumps
            .iter()
            .filter(|entry| entry.bundle.as_deref() == Some(self.file.as_str()))
    }

    /// How far it can be trusted: as far as its worst member.
    pub fn trust(&self, catalog: &Catalog) -> Trust {
        if self.manifest.is_err() || !self.missing.is_empty() {
            return Trust::Damaged;
        }
        let sizes_differ = self.manifest.as_ref().is_ok_and(|manifest| {
            manifest.members.iter().any(|member| {
                self.own_files
                    .iter()
                    .any(|item| item.name == member.file && item.bytes != member.stored.bytes)
            })
        });
        if sizes_differ {
            return Trust::Damaged;
        }
        let order = |trust: &Trust| match trust {
            Trust::Damaged => 0,
            Trust::RestoreFailed => 1,
            Trust::Unverified => 2,
            Trust::ReadBack => 3,
            Trust::Restored => 4,
        };
        self.members(catalog)
            .map(Entry::trust)
            .min_by_key(order)
            .unwrap_or(Trust::Unverified)
    }

    /// All bytes of its members and its own files.
    pub fn bytes(&self, catalog: &Catalog) -> u64 {
        self.members(catalog).map(Entry::bytes).sum::<u64>()
            + self.own_files.iter().map(|item| item.bytes).sum::<u64>()
    }

    /// Every file that goes when it goes, its manifest first.
    pub fn files(&self, catalog: &Catalog) -> Vec<String> {
        let mut files = vec![self.file.clone()];
        files.extend(self.members(catalog).flat_map(Entry::files));
        files.extend(self.own_files.iter().map(|item| item.name.clone()));
        files
    }
}

/// The newest readable manifest of a series that is older than now, reading only as many manifests as it
/// takes, newest files first.
///
/// # Errors
/// When the place cannot be read.
pub async fn newest_of_series(place: &Place, wanted: &str) -> Result<Option<DumpManifest>, DumpError> {
    /// A dump that was made so many dumps ago is no measure any more.
    const MOST: usize = 60;
    let mut items: Vec<Item> = place
        .list()
        .await?
        .into_iter()
        .filter(|item| item.name.ends_with(MANIFEST_SUFFIX))
        .collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.modified));
    for item in items.iter().take(MOST) {
        let Some(bytes) = place.read(&item.name).await? else {
            continue;
        };
        if let Ok(manifest) = DumpManifest::from_slice(&bytes)
            && series(&manifest) == wanted
        {
            return Ok(Some(manifest));
        }
    }
    Ok(None)
}

/// Whether a file that no manifest speaks of is named as dumps are.
fn looks_like_a_dump(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(ENCRYPTED_EXTENSION).unwrap_or(&name);
    let bare = [".gz", ".zst", ".lz4"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name);
    [".sql", ".dump", ".pgdump", ".backup", ".tar", ".tgz"]
        .iter()
        .any(|ending| bare.ends_with(ending))
}
