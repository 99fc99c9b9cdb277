//! The steps of a restore on the disk, in the order in which they are made. Everything here blocks.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use pgmahout_durable::{remove_durably, replace_atomically, sync_directory};
use pgmahout_postgres::conf_file::Configuration;
use pgmahout_procedure::report::Progress;
use pgmahout_types::ControlFile;
use tokio_util::sync::CancellationToken;

use super::error::RestoreError;
use super::execute::write::{Tally, Writer};
use super::execute::{self, tree};
use super::guard::{self, MARKER, Marker, WAITING_CONTROL};
use super::include;
use super::owner::Ownership;
use super::prepare::Shared;
use super::received;
use super::settings::RecoverySettings;

/// Takes pg_control away and what does not belong there, and makes directories and links. Gives the number of
/// things that were removed.
pub(crate) fn make_room(shared: &Shared, reuse: bool) -> Result<u64, RestoreError> {
    let layout = &shared.layout;
    let owner = shared.owner()?;
    let data = layout.data();
    let mode = tree::root_mode(&shared.manifest);
    if !data.exists() {
        pgmahout_durable::create_directory_durably(data, mode)?;
        if owner.give {
            chown(data, Some(owner.uid), Some(owner.gid))
                .map_err(|error| RestoreError::io("change the owner of", data, error))?;
        }
    }
    shared.hold()?;
    let marker = Marker {
        label: shared.entry.label,
        system_identifier: shared.manifest.header.system_identifier,
    };
    let marker = serde_json::to_vec(&marker).unwrap_or_default();
    write_file(&data.join(MARKER), &marker, mode & 0o640, owner)?;
    // From here on no server starts.
    let control = data.join(ControlFile::PATH);
    match fs::symlink_metadata(&control) {
        Ok(_) => drop(remove_durably(&control)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(RestoreError::io("look at", control, error)),
    }
    let mut removed = 0;
    if reuse {
        let strangers = tree::strangers(&shared.manifest, layout)?;
        tree::remove(&strangers.paths)?;
        removed = strangers.paths.len() as u64;
    }
    let links = tree::links(&shared.manifest, layout);
    // A link may stand where a directory of the data directory is, and the other way round.
    let targets = tree::directories(&shared.manifest, layout);
    let roots = shared.roots();
    tree::make_directories(&targets, &roots, owner)?;
    tree::make_links(&links, owner)?;
    Ok(removed)
}

/// All files but pg_control.
pub(crate) fn files(
    shared: &Shared,
    delta: bool,
    progress: &dyn Progress,
    cancellation: &CancellationToken,
) -> Result<(), RestoreError> {
    let tally = Tally::default();
    let owner = shared.owner()?;
    let restored = shared.with_packs(cancellation, |packs| {
        let writer = Writer {
            packs,
            hash_key: shared.repository.hash_key(),
            owner,
            delta,
            tally: &tally,
            done: &|bytes| progress.advance(bytes),
        };
        execute::files(
            &shared.manifest,
            &shared.layout,
            &shared.selection,
            &writer,
            shared.request.jobs,
            progress,
        )
    });
    shared.set(|outcome| {
        outcome.written = tally.written.load(Ordering::Relaxed);
        outcome.kept = tally.kept.load(Ordering::Relaxed);
        outcome.files_changed = tally.files.load(Ordering::Relaxed);
        outcome.to_drop.clone_from(&shared.to_drop);
    });
    match restored {
        Err(RestoreError::Interrupted { .. }) => Err(RestoreError::Interrupted {
            directory: shared.layout.data().to_owned(),
        }),
        other => other,
    }?;
    include::restore(shared, cancellation)
}

/// `backup_label`, `tablespace_map`, `postgresql.auto.conf`, the signal file, and WAL that the archive has not got.
/// Gives what a person should know.
pub(crate) fn settings(shared: &Shared) -> Result<Vec<String>, RestoreError> {
    let data = shared.layout.data();
    let owner = shared.owner()?;
    let header = &shared.manifest.header;
    let mode = tree::root_mode(&shared.manifest) & 0o640;
    let mut warnings = Vec::new();
    write_file(
        &data.join("backup_label"),
        header.backup_label.as_bytes(),
        mode,
        owner,
    )?;
    let map = data.join("tablespace_map");
    match shared.layout.tablespace_map(header)? {
        Some(content) => write_file(&map, &content, mode, owner)?,
        None => drop(remove_durably(&map)?),
    }
    let request = &shared.request;
    let recovery = RecoverySettings {
        aim: request.aim.clone(),
        timeline: shared.choice.timeline,
        backup_timeline: shared.choice.backup.timeline,
        restore_command: request.restore_command.clone(),
        archiving: request.archiving,
        standby: request.standby.clone(),
    };
    let own = data.join("postgresql.conf");
    let configuration = match own.exists().then(|| Configuration::read(&own)) {
        Some(Ok(configuration)) => Some(configuration),
        Some(Err(error)) => {
            warnings.push(format!(
                "postgresql.conf could not be read, so that all recovery settings are overridden: {error}"
            ));
            None
        }
        None => None,
    };
    let path = data.join("postgresql.auto.conf");
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(RestoreError::io("read", path, error)),
    };
    let rewritten = recovery.rewrite(&path, &before, configuration.as_ref())?;
    write_file(&path, rewritten.text.as_bytes(), mode, owner)?;
    shared.set(|outcome| {
        outcome.settings = rewritten
            .removed
            .iter()
            .chain(&rewritten.overridden)
            .cloned()
            .collect();
    });
    for signal in ["recovery.signal", "standby.signal"] {
        let path = data.join(signal);
        if signal == recovery.signal_file() {
            write_file(&path, b"", mode, owner)?;
        } else {
            remove_durably(&path)?;
        }
    }
    received::place(shared)?;
    if let Some(configuration) = &configuration {
        warnings.extend(of_configuration(configuration, data, request.standby.is_some()));
    }
    Ok(warnings)
}

/// Settings of the backed up server that mean something else here.
fn of_configuration(configuration: &Configuration, data: &Path, standby: bool) -> Vec<String> {
    let set = |name: &str| configuration.get(name).filter(|value| !value.is_empty());
    let mut warnings = Vec::new();
    if let Some(directory) = set("data_directory")
        && fs::canonicalize(directory).ok() != fs::canonicalize(data).ok()
    {
        warnings.push(format!(
            "postgresql.conf names another data_directory, {directory}: correct it before the server is started"
        ));
    }
    if let Some(names) = set("synchronous_standby_names")
        && !standby
    {
        warnings.push(format!(
            "synchronous_standby_names is '{names}': without these standbys every commit waits for ever"
        ));
    }
    warnings
}

/// Everything on the disk, then pg_control in place, then the marker away.
pub(crate) fn publish(shared: &Shared, cancellation: &CancellationToken) -> Result<(), RestoreError> {
    let data = shared.layout.data();
    let owner = shared.owner()?;
    let label = shared.entry.label;
    let file = shared
        .file(ControlFile::PATH)
        .ok_or_else(|| RestoreError::damaged(label, "it has no pg_control"))?;
    let content = shared.content(file, cancellation)?;
    let control = ControlFile::parse(&content).map_err(|error| RestoreError::damaged(label, error))?;
    if control.system_identifier != shared.manifest.header.system_identifier {
        return Err(RestoreError::damaged(
            label,
            "its pg_control is that of another cluster",
        ));
    }
    // Whoever removes backup_label gets no server instead of a corrupt one.
    let content =
        ControlFile::without_checkpoint(&content).map_err(|error| RestoreError::damaged(label, error))?;
    write_file(&data.join(WAITING_CONTROL), &content, file.mode, owner)?;
    for act in last_acts(data, &shared.roots()) {
        act.perform(data)?;
    }
    Ok(())
}

/// What is done on the disk when everything is written.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    /// All files below these directories, and the directories.
    SyncTrees(Vec<PathBuf>),
    /// Refuse where a server runs.
    NoServer,
    /// pg_control gets its name.
    PutControl,
    /// This file.
    SyncFile(PathBuf),
    /// The names in this directory.
    SyncDirectory(PathBuf),
    /// The restore is no longer under way.
    RemoveMarker,
}

/// In the order in which they must be done: pg_control, without which no server starts, gets its name when all else
/// is on the disk.
fn last_acts(data: &Path, roots: &[PathBuf]) -> Vec<Act> {
    let mut acts = vec![
        Act::SyncTrees(roots.to_vec()),
        Act::NoServer,
        Act::PutControl,
        Act::SyncFile(data.join(ControlFile::PATH)),
        Act::SyncDirectory(data.join("global")),
        Act::RemoveMarker,
    ];
    // The directories that hold the roots: a new one must not vanish.
    let parents = roots.iter().filter_map(|root| root.parent());
    acts.extend(parents.map(|parent| Act::SyncDirectory(parent.to_owned())));
    acts
}

impl Act {
    fn perform(&self, data: &Path) -> Result<(), RestoreError> {
        match self {
            Self::SyncTrees(roots) => tree::sync(roots)?,
            Self::NoServer => guard::check_no_server(data)?,
            Self::PutControl => {
                let path = data.join(ControlFile::PATH);
                fs::rename(data.join(WAITING_CONTROL), &path)
                    .map_err(|error| RestoreError::io("put in place", &path, error))?;
            }
            Self::SyncFile(path) => tree::sync_one(path)?,
            Self::SyncDirectory(path) => sync_directory(path)?,
            Self::RemoveMarker => drop(remove_durably(data.join(MARKER))?),
        }
        Ok(())
    }
}

/// Writes a small file, whole or not at all.
pub(crate) fn write_file(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Ownership,
) -> Result<(), RestoreError> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        tree::remove(&[path.to_owned()])?;
    }
    replace_atomically(path, content, mode)?;
    if owner.give {
        chown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|error| RestoreError::io("change the owner of", path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pg_control_gets_its_name_when_all_else_is_on_the_disk_and_is_synced_itself() {
        let (data, space) = (PathBuf::from("/srv/data"), PathBuf::from("/fast/space"));
        let control = data.join("global/pg_control");
        assert_eq!(
            last_acts(&data, &[data.clone(), space.clone()]),
            [
                Act::SyncTrees(vec![data.clone(), space]),
                Act::NoServer,
                Act::PutControl,
                Act::SyncFile(control),
                Act::SyncDirectory(data.join("global")),
                Act::RemoveMarker,
                Act::SyncDirectory("/srv".into()),
                Act::SyncDirectory("/fast".into()),
            ]
        );
    }

    #[test]
    fn what_cannot_be_synced_gets_no_pg_control() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("data");
        fs::create_dir_all(data.join("global")).expect("ours");
        fs::write(data.join(WAITING_CONTROL), "").expect("ours");
        let gone = root.path().join("gone");
        let failed = last_acts(&data, &[data.clone(), gone])
            .iter()
            .try_for_each(|act| act.perform(&data));
        assert!(failed.is_err());
        assert!(!data.join(ControlFile::PATH).exists());
    }
}
