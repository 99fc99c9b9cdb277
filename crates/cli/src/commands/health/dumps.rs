//! The dumps that the configuration names, as the health checks see them.

use async_trait::async_trait;
use jiff::Timestamp;
use pgmahout_backup::dump::catalog;
use pgmahout_backup::dump::list;
use pgmahout_backup::dump::location::Place;
use pgmahout_config::Settings;
use pgmahout_config::settings::Storage;
use pgmahout_doctor::health::sources::{BackupSummary, Backups};

use crate::commands::dump::PlaceArgs;

/// Dumps in `dump.directory` and in every configured repository.
pub(super) struct Dumps {
    settings: Settings,
}

impl Dumps {
    /// The dumps of a configuration; none where it names no place for them.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        let any = settings.dump.directory.is_some() || !settings.repositories.is_empty();
        any.then(|| Self {
            settings: settings.clone(),
        })
    }
}

#[async_trait]
impl Backups for Dumps {
    async fn list(&self, _target: &str) -> Result<Vec<BackupSummary>, String> {
        let mut found = Vec::new();
        if let Some(directory) = &self.settings.dump.directory {
            found.extend(look(&Place::Directory(directory.clone()), "directory", false).await?);
        }
        for configured in &self.settings.repositories {
            let args = PlaceArgs {
                repo: Some(configured.name.clone()),
            };
            let opened = args.repository(&self.settings, true).await;
            let repository = opened
                .map_err(|failure| format!("repository {}: {}", configured.name, failure.summary()))?
                .ok_or_else(|| format!("repository {} is not configured", configured.name))?;
            let (storage, off_site) = match &configured.storage {
                Storage::Local { .. } => ("directory", false),
                Storage::S3 { endpoint, .. } => ("s3", !endpoint.as_deref().is_some_and(is_this_host)),
            };
            found.extend(look(&Place::Repository(repository), storage, off_site).await?);
        }
        Ok(found)
    }

    fn now(&self) -> f64 {
        Timestamp::now().as_duration().as_secs_f64()
    }
}

async fn look(place: &Place, storage: &str, off_site: bool) -> Result<Vec<BackupSummary>, String> {
    let failed = |error: &dyn std::error::Error| pgmahout_doctor::health::failure::chain(error);
    let catalog = catalog::read(place).await.map_err(|error| failed(&error))?;
    Ok(list::dumps(&catalog, place, Timestamp::now())
        .into_iter()
        // A dump of the schema or of some tables is no backup of the database.
        .filter(|dump| dump.contents.is_none_or(|contents| contents == "full"))
        .map(|dump| BackupSummary {
            id: dump.file,
            kind: "logical".to_owned(),
            location: dump.location,
            finished: dump.taken_at.as_duration().as_secs_f64(),
            good: dump.trust.is_sound(),
            storage: storage.to_owned(),
            off_site,
            restored: dump
                .last_restore
                .filter(|test| test.passed)
                .map(|test| test.at.as_duration().as_secs_f64()),
        })
        .collect())
}

/// Whether an endpoint is this machine, which is no other site.
pub(super) fn is_this_host(endpoint: &str) -> bool {
    ["://localhost", "://127.", "://[::1]"]
        .iter()
        .any(|local| endpoint.contains(local))
}
