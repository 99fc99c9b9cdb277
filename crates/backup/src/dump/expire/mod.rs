//! Removing dumps that a retention policy no longer keeps.
//!
//! [`propose`] reads a place and decides, [`carry_out`] removes what was decided and nothing else. Dumps of
//! one server, database and selection are one series; a bundle is one thing. What has no readable manifest
//! is not ours to remove: it is reported and left alone.

pub mod plan;
pub mod policy;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

use super::catalog::{self, Catalog};
use super::error::DumpError;
use super::location::Place;
use plan::{Candidate, Decision};
use policy::Policy;

/// What would become of everything in a place.
#[derive(Debug)]
pub struct Proposal {
    /// The decisions, by series, newest first within a series.
    pub decisions: Vec<Decision>,
    /// For each decided name, the files that go with it (manifest first) and their bytes.
    pub files: BTreeMap<String, (Vec<String>, u64)>,
    /// What is left alone, and why.
    pub left_alone: Vec<(String, String)>,
}

impl Proposal {
    /// What goes.
    pub fn removed(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| decision.is_removed())
    }

    /// How many bytes that frees.
    pub fn freed_bytes(&self) -> u64 {
        self.removed()
            .filter_map(|decision| self.files.get(&decision.candidate.name))
            .map(|(_, bytes)| bytes)
            .sum()
    }
}

/// Decides for everything in a place, or for one database.
///
/// # Errors
/// When the place cannot be read.
pub async fn propose(
    place: &Place,
    policy: &Policy,
    database: Option<&str>,
    now: Timestamp,
    zone: &TimeZone,
) -> Result<Proposal, DumpError> {
    let catalog = catalog::read(place).await?;
    Ok(decide(&catalog, policy, database, now, zone))
}

/// The same, of a catalog that was read.
pub fn decide(
    catalog: &Catalog,
    policy: &Policy,
    database: Option<&str>,
    now: Timestamp,
    zone: &TimeZone,
) -> Proposal {
    let mut candidates = Vec::new();
    let mut files = BTreeMap::new();
    let mut left_alone = Vec::new();
    for bundle in &catalog.bundles {
        let Some(series) = bundle.series(catalog) else {
            left_alone.push((bundle.file.clone(), "its manifest cannot be read".to_owned()));
            continue;
        };
        files.insert(
            bundle.file.clone(),
            (bundle.files(catalog), bundle.bytes(catalog)),
        );
        candidates.push(Candidate {
            name: bundle.file.clone(),
            series,
            taken_at: bundle.taken_at(),
            sound: bundle.trust(catalog).is_sound(),
            covers: bundle
                .members(catalog)
                .filter_map(catalog::Entry::covers)
                .collect(),
        });
    }
    for entry in catalog.dumps.iter().filter(|entry| entry.bundle.is_none()) {
        let Some(series) = entry.series() else {
            let why = match entry.manifest {
                catalog::ManifestState::Damaged(_) => "its manifest cannot be read",
                _ => "it has no manifest: made by another program, or incomplete",
            };
            left_alone.push((entry.file.clone(), why.to_owned()));
            continue;
        };
        files.insert(entry.file.clone(), (entry.files(), entry.bytes()));
        candidates.push(Candidate {
            name: entry.file.clone(),
            series,
            taken_at: entry.taken_at(),
            sound: entry.trust().is_sound(),
            covers: entry.covers().into_iter().collect(),
        });
    }
    // Every candidate is planned with, also for one database: a bundle may hold the only sound dump of it.
    let mut decisions = plan::plan(&candidates, policy, now, zone);
    if let Some(database) = database {
        let wanted: BTreeSet<String> = catalog
            .dumps
            .iter()
            .filter(|entry| entry.bundle.is_none())
            .filter(|entry| {
                entry
                    .readable()
                    .is_some_and(|manifest| manifest.database.name == database)
            })
            .map(|entry| entry.file.clone())
            .collect();
        decisions.retain(|decision| wanted.contains(&decision.candidate.name));
    }
    Proposal {
        decisions,
        files,
        left_alone,
    }
}

/// What was removed.
#[derive(Debug, Default)]
pub struct Removed {
    /// The dumps and bundles.
    pub names: Vec<String>,
    /// How many bytes were freed.
    pub bytes: u64,
}

/// Removes what the proposal says, oldest first, the manifest of each before its other files. After
/// cancellation or an error, what is not in the result may be gone in part; its manifest is gone first, so
/// that it does not look whole.
///
/// # Errors
/// [`DumpError::ExpireInterrupted`] after cancellation; otherwise what the place says, for the first file that
/// could not be removed.
pub async fn carry_out(
    place: &Place,
    proposal: &Proposal,
    cancellation: &CancellationToken,
) -> Result<Removed, DumpError> {
    let mut going: Vec<&Decision> = proposal.removed().collect();
    going.sort_by_key(|decision| decision.candidate.taken_at);
    let mut removed = Removed::default();
    for decision in going {
        if cancellation.is_cancelled() {
            return Err(DumpError::ExpireInterrupted {
                removed: removed.names.len(),
            });
        }
        let Some((files, bytes)) = proposal.files.get(&decision.candidate.name) else {
            continue;
        };
        for file in files {
            place.remove(file).await?;
        }
        removed.names.push(decision.candidate.name.clone());
        removed.bytes += bytes;
    }
    Ok(removed)
}
