//! From the receiver's files into the repositories.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgmahout_durable::remove_durably;
use pgmahout_types::wal::WalPageHeader;
use pgmahout_types::{SystemIdentifier, WalFileName};
use tokio::sync::{Notify, OnceCell};
use tokio_util::sync::CancellationToken;

use super::super::archive::{WalArchive, compute};
use super::super::error::WalError;
use super::super::file::WalFile;
use super::super::place::Destination;
use super::left::read_note;
use super::segment::ENDED;
use crate::physical::stanza::{RepositoryMemory, StanzaName};

/// The pause before a segment is stored again that could not be stored.
const RETRY: Duration = Duration::from_secs(5);

/// The repositories, each opened when it can be: one that is down does not keep WAL from being received.
pub(super) struct Repositories {
    places: Vec<(Destination, OnceCell<WalArchive>)>,
    stanza: StanzaName,
    memory: RepositoryMemory,
}

impl Repositories {
    pub(super) fn new(destinations: &[Destination], stanza: &StanzaName, memory: &RepositoryMemory) -> Self {
        Self {
            places: destinations
                .iter()
                .map(|destination| (destination.clone(), OnceCell::new()))
                .collect(),
            stanza: stanza.clone(),
            memory: memory.clone(),
        }
    }

    /// Opens what can be opened. Those that are only out of reach are opened later.
    pub(super) async fn open(&self) -> Result<(), WalError> {
        for place in &self.places {
            match self.archive(place).await {
                Ok(_) => {}
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "repository {} is opened later", place.0.name());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn archive<'a>(
        &self,
        place: &'a (Destination, OnceCell<WalArchive>),
    ) -> Result<&'a WalArchive, WalError> {
        let open = async || Ok(place.0.open(&self.stanza, &self.memory).await?.archive);
        place.1.get_or_try_init(open).await
    }

    /// Whether a cluster is the stanza's, as far as repositories are open. The others look when they store.
    pub(super) fn check_identity(&self, system: SystemIdentifier, major: u32) -> Result<(), WalError> {
        for archive in self.places.iter().filter_map(|place| place.1.get()) {
            archive.repository().check_identity(system, major)?;
        }
        Ok(())
    }

    /// Stores a file in all of them; each is tried though another one fails.
    async fn put(&self, file: &WalFile) -> Result<(), WalError> {
        let mut problem: Option<WalError> = None;
        for place in &self.places {
            let stored = match self.archive(place).await {
                Ok(archive) => archive.put(file).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = stored
                && (problem.is_none() || error.is_refusal())
            {
                problem = Some(error);
            }
        }
        problem.map_or(Ok(()), Err)
    }
}

/// Brings into the repositories what is complete.
pub(super) struct Store {
    pub(super) directory: PathBuf,
    pub(super) repositories: Arc<Repositories>,
    pub(super) whole: Arc<Notify>,
}

impl Store {
    pub(super) async fn run(&self, ended: &CancellationToken) -> Result<(), WalError> {
        loop {
            let pause = match self.store_all().await {
                Ok(()) => None,
                // Nothing that waiting heals; the files stay.
                Err(error) if error.is_refusal() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a received segment could not be stored; trying again");
                    Some(RETRY)
                }
            };
            tokio::select! {
                () = ended.cancelled() => return self.store_all().await,
                () = self.whole.notified() => {}
                () = tokio::time::sleep(pause.unwrap_or(Duration::from_mins(1))) => {}
            }
        }
    }

    async fn store_all(&self) -> Result<(), WalError> {
        let directory = self.directory.clone();
        for name in compute(move || waiting_in(&directory)).await {
            let (directory, path) = (self.directory.clone(), self.path(name));
            let reading = path.clone();
            let file = compute(move || read(&directory, &reading, name)).await?;
            self.repositories.put(&file).await?;
            remove_durably(path)?;
        }
        Ok(())
    }

    fn path(&self, name: WalFileName) -> PathBuf {
        match name {
            WalFileName::Partial(segment) => self.directory.join(format!("{segment}{ENDED}")),
            other => self.directory.join(other.to_string()),
        }
    }
}

/// What is complete: whole segments, then the last ones of timelines that have ended, then histories.
fn waiting_in(directory: &Path) -> Vec<WalFileName> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut waiting: Vec<WalFileName> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let name = name.to_str()?;
            if let Some(segment) = name.strip_suffix(ENDED) {
                return segment.parse().ok().map(WalFileName::Partial);
            }
            let file = name.parse::<WalFileName>().ok()?;
            matches!(file, WalFileName::Segment(_) | WalFileName::TimelineHistory(_)).then_some(file)
        })
        .collect();
    waiting.sort_unstable();
    waiting
}

fn read(directory: &Path, path: &Path, name: WalFileName) -> Result<WalFile, WalError> {
    let failed = |source| WalError::Io {
        doing: "read",
        path: path.to_path_buf(),
        source,
    };
    let mut content = fs::read(path).map_err(failed)?;
    let page = match name {
        WalFileName::TimelineHistory(_) => None,
        // Not to its end where the timeline ended in it.
        _ => WalPageHeader::parse(&content).ok(),
    };
    if let (WalFileName::Partial(_), Some(page)) = (name, &page) {
        content.resize(page.segment_size.bytes() as usize, 0);
    }
    // A segment says itself whose it is.
    let system = read_note(directory).map_or(SystemIdentifier::new(0), |note| note.system_identifier);
    WalFile::new(name, content.into(), system)
}
