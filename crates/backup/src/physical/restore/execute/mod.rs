//! Doing what the plan says: files from packs, in parallel, and in an order in which nothing half done can
//! be started.
//!
//! pg_control, without which no server starts, is taken away first and put in place last, after everything
//! else is on the disk. In between the directory has a marker, by which the same restore can be continued.
//!
//! # Memory
//!
//! Each thread holds one request of up to 8 MiB, one frame, and the maps of the files that it is at work on: up
//! to 3 MiB for a file of 1 GiB, or the small files of a group, up to 16 MiB.

pub(crate) mod fetch;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
pub(crate) mod write;

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use pgmahout_procedure::report::Progress;
use pgmahout_types::repository::manifest::{
    Area, Content, Entry, File, FileKind, Manifest, MapRef, PackKind,
};
use pgmahout_types::repository::page_map::StoredMap;
use pgmahout_types::repository::{PackId, PageMap};

use super::error::RestoreError;
use super::layout::Layout;
use super::selection::Selection;
use fetch::Packs;
use write::{Target, Writer};

/// Files of this size and more are a task of their own.
const LARGE: u64 = 1 << 20;
/// Raw bytes of small files in one group.
const GROUP_BYTES: u64 = 16 << 20;
/// Files in one group.
const GROUP_FILES: usize = 512;

/// Files that one thread brings about together.
struct TaskOf<'a> {
    files: Vec<&'a File>,
    bytes: u64,
}

/// Brings about every file of the backup but pg_control.
pub(crate) fn files(
    manifest: &Manifest,
    layout: &Layout,
    selection: &Selection,
    writer: &Writer<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(), RestoreError> {
    let tasks = Mutex::new(tasks(manifest));
    let failed = AtomicBool::new(false);
    let errors: Mutex<Vec<RestoreError>> = Mutex::default();
    let joined = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).pop();
                        let Some(task) = task else { break };
                        if let Some(file) = task.files.first() {
                            progress.set_detail(&file.path.to_text());
                        }
                        if let Err(error) = one(manifest, layout, selection, writer, &task) {
                            failed.store(true, Ordering::Relaxed);
                            errors.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().all(|worker| worker.join().is_ok())
    });
    let mut errors = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Others may have failed because of the first.
    match errors.is_empty() {
        false => Err(errors.swap_remove(0)),
        true if !joined => Err(RestoreError::Thread),
        true => Ok(()),
    }
}

/// The tasks in the order in which they are taken from the end: large files first, so that no thread is left
/// alone with one; small ones by where they lie.
fn tasks(manifest: &Manifest) -> Vec<TaskOf<'_>> {
    let mut large = Vec::new();
    let mut small: Vec<(u32, u64, &File)> = Vec::new();
    for entry in &manifest.entries {
        let Entry::File(file) = entry else { continue };
        if file.area != Area::Data || file.kind == FileKind::Control || is_ours(file) {
            continue;
        }
        match &file.content {
            Content::Inline(map) if file.size < LARGE => {
                let place = map.frames().first();
                let pack = place.map_or(u32::MAX, |frame| frame.pack);
                small.push((pack, place.map_or(0, |frame| frame.location.offset), file));
            }
            _ => large.push(TaskOf {
                files: vec![file],
                bytes: file.size,
            }),
        }
    }
    small.sort_by(|one, other| (one.0, one.1, &one.2.path).cmp(&(other.0, other.1, &other.2.path)));
    let mut groups: Vec<TaskOf<'_>> = Vec::new();
    for (_, _, file) in small {
        match groups.last_mut() {
            Some(group) if group.bytes + file.size <= GROUP_BYTES && group.files.len() < GROUP_FILES => {
                group.bytes += file.size;
                group.files.push(file);
            }
            _ => groups.push(TaskOf {
                files: vec![file],
                bytes: file.size,
            }),
        }
    }
    large.sort_by_key(|task| task.bytes);
    groups.reverse();
    groups.extend(large);
    groups
}

/// Written by the restore itself.
fn is_ours(file: &File) -> bool {
    matches!(file.path.as_bytes(), b"backup_label" | b"tablespace_map")
}

fn one(
    manifest: &Manifest,
    layout: &Layout,
    selection: &Selection,
    writer: &Writer<'_>,
    task: &TaskOf<'_>,
) -> Result<(), RestoreError> {
    let mut targets = Vec::with_capacity(task.files.len());
    for file in &task.files {
        let path = layout.locate(&file.path);
        if selection.is_hollow(&file.path, file.kind) {
            writer.hollow(&path, file.mode, file.size)?;
            continue;
        }
        targets.push(target(manifest, layout, writer.packs, file)?);
    }
    writer.group(&targets)
}

/// A file with its map.
pub(crate) fn target(
    manifest: &Manifest,
    layout: &Layout,
    packs: &Packs<'_>,
    file: &File,
) -> Result<Target, RestoreError> {
    let map = map_of(manifest, packs, file)?;
    let numbers = numbers(manifest, file, &map)?;
    Ok(Target {
        path: layout.locate(&file.path),
        name: file.path.to_text().into_owned(),
        mode: file.mode,
        map,
        packs: numbers,
    })
}

/// The map of a file, from the manifest or from a pack of maps.
pub(crate) fn map_of(manifest: &Manifest, packs: &Packs<'_>, file: &File) -> Result<PageMap, RestoreError> {
    let damaged = |why: String| RestoreError::damaged(manifest.header.label, format!("{}: {why}", file.path));
    let stored = |place: &MapRef| -> Result<StoredMap, RestoreError> {
        let bytes = packs.frame(place.pack, place.location)?;
        StoredMap::decode(&bytes).map_err(|error| damaged(error.to_string()))
    };
    let map = match &file.content {
        Content::Inline(map) => map
            .to_map(file.size, |number| manifest.end.pack(number).map(|pack| pack.id))
            .map_err(|error| damaged(error.to_string()))?,
        Content::Map(content) => match (stored(&content.map)?, &content.base) {
            (StoredMap::Whole(map), _) => map,
            (StoredMap::Overlay(overlay), Some(base)) => match stored(base)? {
                StoredMap::Whole(base) => overlay.apply(&base).map_err(|error| damaged(error.to_string()))?,
                StoredMap::Overlay(_) => {
                    return Err(damaged("the base of its map is itself a change".to_owned()));
                }
            },
            (StoredMap::Overlay(_), None) => {
                return Err(damaged("the base of its map is not named".to_owned()));
            }
        },
    };
    if map.size() == file.size {
        Ok(map)
    } else {
        Err(damaged(format!(
            "its map is of {} bytes, and the file has {}",
            map.size(),
            file.size
        )))
    }
}

/// The numbers in the manifest of a map's packs.
fn numbers(manifest: &Manifest, file: &File, map: &PageMap) -> Result<Vec<u32>, RestoreError> {
    let candidates: Vec<u32> = file.data_packs().collect();
    let number = |id: &PackId| {
        let listed = |number: &u32| {
            manifest
                .end
                .pack(*number)
                .is_some_and(|pack| pack.id == *id && pack.kind == PackKind::Data)
        };
        candidates.iter().copied().find(listed)
    };
    map.packs()
        .iter()
        .map(|id| {
            number(id).ok_or_else(|| {
                RestoreError::damaged(
                    manifest.header.label,
                    format!(
                        "{} lies in pack {id}, which the manifest does not list",
                        file.path
                    ),
                )
            })
        })
        .collect()
}
