//! From a request to everything that a restore needs: the backup, its manifest, the way to the target.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_store::framed::ObjectCipher;
use pgmahout_types::repository::manifest::{Area, Entry, File, Manifest, PackEntry};
use pgmahout_types::repository::{BackupEntry, Head};
use pgmahout_types::version::ServerVersion;
use pgmahout_types::{ControlFile, SegmentSize};
use tokio_util::sync::CancellationToken;

use super::error::RestoreError;
use super::execute::fetch::{ObjectSource, Packs, StoredObjects};
use super::execute::target;
use super::execute::tree::{self, Strangers};
use super::execute::write::{Tally, Writer};
use super::guard::{self, DirectoryLock, Existing};
use super::include;
use super::layout::Layout;
use super::owner::{self, Ownership};
use super::plan::{self, Choice, RestorePlan};
use super::received::Received;
use super::request::{RestoreOutcome, RestoreRequest};
use super::selection::{Selection, database};
use super::{catalog, inventory, space};
use crate::physical::stanza::{LeaseGuard, LeaseKind, LeaseScope, PhysicalRepository};
use crate::physical::wal::receive::left::LeftSegment;

/// Everything about one restore. Shared by its steps.
pub(crate) struct Shared {
    pub(crate) request: RestoreRequest,
    pub(crate) repository: PhysicalRepository,
    pub(crate) entry: BackupEntry,
    pub(crate) choice: Choice,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) layout: Layout,
    pub(crate) selection: Selection,
    /// Databases of which nothing is restored.
    pub(crate) to_drop: Vec<String>,
    /// WAL of the way that a receiver has and the archive has not.
    pub(crate) received: Vec<LeftSegment>,
    pub(crate) segment_size: SegmentSize,
    pub(crate) objects: StoredObjects,
    pub(crate) cipher: ObjectCipher,
    pub(crate) lock: Mutex<Option<DirectoryLock>>,
    pub(crate) outcome: Mutex<RestoreOutcome>,
    /// Keeps the backup from being collected.
    lease: Mutex<Option<LeaseGuard>>,
}

impl Shared {
    /// Reads the repository and finds the way to the target. The backup is kept from being collected from now
    /// on.
    pub(crate) async fn prepare(
        repository: PhysicalRepository,
        request: RestoreRequest,
        cancellation: &CancellationToken,
    ) -> Result<Self, RestoreError> {
        let lease = repository.lease(LeaseKind::Restore, LeaseScope::All).await?;
        let head = repository.head().await?;
        let entries = of_one_cluster(&repository, &head, &request)?;
        let size = entries
            .last()
            .and_then(|entry| repository.stanza_info().system(entry.system_identifier))
            .map_or_else(|| repository.segment_size(), |system| system.wal_segment_size);
        let mut archive = inventory::archive(&repository, size, cancellation).await?;
        let mut received = Received::default();
        // A standby gets the rest from its primary.
        if let (Some(files), None, Some(entry)) = (&request.received, &request.standby, entries.last()) {
            let (files, system) = (files.clone(), entry.system_identifier);
            let looked = tokio::task::spawn_blocking(move || {
                let found = Received::look(&files, system, &mut archive);
                (archive, found)
            });
            let (extended, found) = looked.await.map_err(|_| RestoreError::Thread)?;
            (archive, received) = (extended, found?);
        }
        let candidates: Vec<_> = entries.iter().map(|entry| inventory::candidate(entry)).collect();
        let mut choice = plan::choose(&candidates, &archive, &request.aim, request.label)?;
        choice.warnings.extend(received.warnings);
        received
            .segments
            .retain(|segment| choice.received.contains(&segment.name));
        let entry = repository.backup_in(&head, choice.backup.label)?.clone();
        lease.narrow([entry.label]).await?;
        let manifest = Arc::new(repository.read_manifest(entry.label).await?);
        check_format(&manifest)?;
        let layout = Layout::new(&request.remap, &manifest.header)?;
        let mut shared = Self {
            objects: StoredObjects::new(repository.repository().blocking()),
            received: received.segments,
            segment_size: size,
            cipher: repository.cipher(),
            request,
            repository,
            entry,
            choice,
            manifest,
            layout,
            selection: Selection::all(),
            to_drop: Vec::new(),
            lock: Mutex::new(None),
            outcome: Mutex::default(),
            lease: Mutex::new(Some(lease)),
        };
        if !shared.request.databases.is_empty() {
            let wanted = shared.request.databases.clone();
            let prepared = tokio::task::spawn_blocking(move || {
                let selected = shared.select(&wanted);
                (shared, selected)
            });
            let (back, selected) = prepared.await.map_err(|_| RestoreError::Thread)?;
            shared = back;
            (shared.selection, shared.to_drop) = selected?;
        }
        Ok(shared)
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut RestoreOutcome)) {
        change(&mut self.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn outcome(&self) -> RestoreOutcome {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Holds the data directory, from the first time on until it is given up.
    pub(crate) fn hold(&self) -> Result<(), RestoreError> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            *lock = Some(DirectoryLock::acquire(self.layout.data())?);
        }
        Ok(())
    }

    /// Holds the data directory, of which this restore has said that it is its own. Somebody who has started a
    /// server there since, or begun another restore, has made it something else.
    pub(crate) fn enter(&self) -> Result<(), RestoreError> {
        self.hold()?;
        let data = self.layout.data();
        match guard::read_marker(data)? {
            Some(marker) if marker.label == self.entry.label => Ok(()),
            _ => Err(RestoreError::Refused {
                what: format!("{} is not as this restore left it", data.display()),
                hint: "begin again: pgmahout restore with --delta, or with --keep-old".to_owned(),
            }),
        }
    }

    /// Whether everything is in place, and no server has been started since.
    pub(crate) fn is_published(&self) -> bool {
        let data = self.layout.data();
        data.join(ControlFile::PATH).exists()
            && !data.join(guard::MARKER).exists()
            && std::fs::read(data.join("backup_label"))
                .is_ok_and(|label| label == self.manifest.header.backup_label.as_bytes())
    }

    /// Gives the lease back.
    pub(crate) async fn release(&self) {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lease) = lease
            && let Err(error) = lease.finish().await
        {
            tracing::warn!(%error, "the lease on the backup could not be given back; it runs out by itself");
        }
    }

    pub(crate) fn give_up_hold(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The directories that things are put into.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        self.layout.roots().map(|(_, path)| path.to_owned()).collect()
    }

    /// Who will own the files.
    pub(crate) fn owner(&self) -> Result<Ownership, RestoreError> {
        let recorded = self.manifest.entries.iter().find_map(|entry| match entry {
            Entry::File(file) if file.path.as_bytes() == b"PG_VERSION" => Some(file.owner),
            _ => None,
        });
        let recorded = recorded.and_then(|owner| self.manifest.header.owners.get(owner as usize));
        owner::resolve(self.layout.data(), recorded)
    }

    /// Whether what is there is used: asked for, or begun by a restore of the same backup that goes on.
    pub(crate) fn reuses(&self, resuming: bool) -> Result<bool, RestoreError> {
        if self.request.delta || resuming {
            return Ok(!guard::look(self.layout.data())?.is_free());
        }
        Ok(false)
    }

    /// Works with the packs.
    pub(crate) fn with_packs<T>(
        &self,
        cancellation: &CancellationToken,
        work: impl FnOnce(&Packs<'_>) -> T,
    ) -> T {
        let repository = self.repository.clone();
        let names = move |pack: &PackEntry| repository.pack_object(pack.kind, pack.id);
        let source: &dyn ObjectSource = &self.objects;
        let packs = Packs::new(
            source,
            &self.cipher,
            &self.manifest.end.packs,
            &names,
            cancellation,
        );
        work(&packs)
    }

    /// The content of a file of the backup.
    pub(crate) fn content(
        &self,
        file: &File,
        cancellation: &CancellationToken,
    ) -> Result<Vec<u8>, RestoreError> {
        let tally = Tally::default();
        self.with_packs(cancellation, |packs| {
            let writer = Writer {
                packs,
                hash_key: self.repository.hash_key(),
                owner: Ownership {
                    uid: 0,
                    gid: 0,
                    give: false,
                },
                delta: false,
                tally: &tally,
                done: &|_| {},
            };
            writer.content(&target(&self.manifest, &self.layout, packs, file)?)
        })
    }

    /// A file of the data directory, by its path.
    pub(crate) fn file(&self, path: &str) -> Option<&File> {
        self.manifest.entries.iter().find_map(|entry| match entry {
            Entry::File(file) if file.area == Area::Data && file.path.as_bytes() == path.as_bytes() => {
                Some(file)
            }
            _ => None,
        })
    }

    /// What is needed of each file system, and what does not belong there.
    pub(crate) fn survey(&self, reuse: bool) -> Result<(Vec<space::SpaceNeed>, Strangers), RestoreError> {
        let mut totals: BTreeMap<PathBuf, u64> = self.roots().into_iter().map(|root| (root, 0)).collect();
        for entry in &self.manifest.entries {
            let Entry::File(file) = entry else { continue };
            if file.area != Area::Data || self.selection.is_hollow(&file.path, file.kind) {
                continue;
            }
            let path = self.layout.locate(&file.path);
            // Roots do not lie in each other.
            if let Some((_, total)) = totals.iter_mut().find(|(root, _)| path.starts_with(root)) {
                *total += space::on_disk(file.size);
            }
        }
        let strangers = if reuse {
            tree::strangers(&self.manifest, &self.layout)?
        } else {
            Strangers::default()
        };
        let totals: Vec<(PathBuf, u64)> = totals.into_iter().collect();
        Ok((space::needs(&totals, &strangers.kept_bytes)?, strangers))
    }

    /// The plan as a value.
    pub(crate) fn plan(&self, reuse: bool) -> Result<RestorePlan, RestoreError> {
        let (space, strangers) = self.survey(reuse)?;
        let bytes = self.manifest.end.bytes;
        Ok(RestorePlan {
            choice: self.choice.clone(),
            target: self.request.aim.target.to_string(),
            data_dir: self.layout.data().to_owned(),
            files: self.manifest.end.files,
            bytes,
            read: plan::stored_bytes(&self.manifest),
            space,
            removed: strangers.paths,
            estimate: plan::estimate(bytes, self.choice.wal.bytes, self.request.jobs),
        })
    }

    /// Everything that stands in the way, each with its own advice.
    pub(crate) fn obstacles(&self, resuming: bool) -> Vec<RestoreError> {
        let mut found = Vec::new();
        let mut note = |result: Result<(), RestoreError>| {
            if let Err(error) = result {
                found.push(error);
            }
        };
        note(guard::check_no_server(self.layout.data()));
        note(self.check_directory(resuming));
        note(self.check_other_roots(resuming));
        note(self.owner().map(drop));
        if !resuming {
            note(include::check(self));
        }
        let reuse = self.reuses(resuming).unwrap_or(false);
        match self.survey(reuse && found.is_empty()) {
            Ok((needs, _)) => found.extend(needs.iter().filter_map(|need| need.check().err())),
            Err(error) => found.push(error),
        }
        found
    }

    fn check_directory(&self, resuming: bool) -> Result<(), RestoreError> {
        let data = self.layout.data();
        let existing = guard::look(data)?;
        if existing.is_free() || self.request.keep_old {
            return Ok(());
        }
        let ours = self.manifest.header.system_identifier;
        let found = match &existing {
            Existing::Cluster(found) => Some(*found),
            Existing::Unfinished(marker) => Some(marker.system_identifier),
            _ => None,
        };
        match found {
            Some(found) if found != ours => Err(RestoreError::OtherCluster {
                directory: data.to_owned(),
                found,
                expected: ours,
            }),
            Some(_) if self.request.delta || resuming => Ok(()),
            _ => Err(RestoreError::NotEmpty {
                what: "data directory",
                directory: data.to_owned(),
                found: guard::entries(data)?.unwrap_or_default(),
                is_same_cluster: found.is_some(),
            }),
        }
    }

    /// Tablespaces and the WAL directory: empty, or with --delta what the data directory's own links lead to. A
    /// directory that something else links to may be a running server's.
    fn check_other_roots(&self, resuming: bool) -> Result<(), RestoreError> {
        let reuse = self.request.delta || resuming;
        let mut links: Vec<(&'static str, PathBuf, PathBuf)> = Vec::new();
        for (link, target) in self.layout.links() {
            let what = if self.layout.wal() == Some(&target) {
                "WAL directory"
            } else {
                "tablespace"
            };
            links.push((what, link, target));
        }
        for (what, link, target) in links {
            let Some(found) = guard::entries(&target)?.filter(|found| !found.is_empty()) else {
                continue;
            };
            let linked = std::fs::canonicalize(&link)
                .is_ok_and(|real| std::fs::canonicalize(&target).is_ok_and(|target| real == target));
            if linked && (reuse || self.request.keep_old) {
                continue;
            }
            return Err(RestoreError::NotEmpty {
                what,
                directory: target,
                found,
                is_same_cluster: false,
            });
        }
        Ok(())
    }

    /// Which databases are kept, and the names of the others.
    fn select(&self, wanted: &[String]) -> Result<(Selection, Vec<String>), RestoreError> {
        let cancellation = CancellationToken::new();
        let read = |path: &str| {
            let file = self
                .file(path)
                .ok_or_else(|| RestoreError::damaged(self.entry.label, format!("it has no file {path}")))?;
            self.content(file, &cancellation)
        };
        let file = catalog::file_of_databases(&read("global/pg_filenode.map")?).ok_or_else(|| {
            RestoreError::damaged(self.entry.label, "global/pg_filenode.map is not understood")
        })?;
        let known = catalog::databases(&read(&format!("global/{file}"))?);
        let mut kept = Vec::new();
        for name in wanted {
            let number: Option<u32> = name.parse().ok();
            let found = known
                .iter()
                .find(|(_, known)| known == name)
                .or_else(|| known.iter().find(|(oid, _)| Some(*oid) == number));
            let Some((oid, _)) = found else {
                let names: Vec<&str> = known.iter().map(|(_, name)| name.as_str()).collect();
                return Err(RestoreError::Usage {
                    what: format!("backup {} has no database {name}", self.entry.label),
                    hint: format!("it has {}", names.join(", ")),
                });
            };
            kept.push(*oid);
        }
        let selection = Selection::only(kept);
        let mut present: Vec<u32> = self
            .manifest
            .entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::File(file) if file.area == Area::Data => database(&file.path),
                _ => None,
            })
            .collect();
        present.sort_unstable();
        present.dedup();
        let to_drop = present
            .into_iter()
            .filter(|oid| !selection.keeps(*oid))
            .map(|oid| {
                let name = known.iter().find(|(known, _)| *known == oid);
                name.map_or_else(|| format!("number {oid}"), |(_, name)| name.clone())
            })
            .collect();
        Ok((selection, to_drop))
    }
}

/// The backups of the cluster that is meant: that of the named backup, else the stanza's current one.
fn of_one_cluster<'head>(
    repository: &PhysicalRepository,
    head: &'head Head,
    request: &RestoreRequest,
) -> Result<Vec<&'head BackupEntry>, RestoreError> {
    let named = request.label.and_then(|label| head.backup(label));
    let current = repository.stanza_info().history.last();
    let wanted = named
        .map(|entry| entry.system_identifier)
        .or(current.map(|system| system.system_identifier))
        .ok_or(RestoreError::NoBackup)?;
    Ok(head
        .backups
        .iter()
        .filter(|entry| entry.system_identifier == wanted)
        .collect())
}

/// Refuses what this program does not know how to restore.
fn check_format(manifest: &Manifest) -> Result<(), RestoreError> {
    let header = &manifest.header;
    let version: ServerVersion = header.server_version;
    if version.major() < 14 || version.major() > ServerVersion::NEWEST_MAJOR {
        return Err(RestoreError::Refused {
            what: format!(
                "backup {} is of PostgreSQL {}, which is not known",
                header.label,
                version.major()
            ),
            hint: "use a pgmahout that knows this version".to_owned(),
        });
    }
    if header.page_size != pgmahout_types::repository::BLOCK_SIZE {
        return Err(RestoreError::Refused {
            what: format!("backup {} has pages of {} bytes", header.label, header.page_size),
            hint: "only servers with pages of 8192 bytes are supported".to_owned(),
        });
    }
    Ok(())
}
