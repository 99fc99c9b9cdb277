//! Doing what the plan says: files from packs, in parallel, and in an order in which nothing half done can
//! be started.
//!
//! pg_control, without which no server starts, is taken away first and put in place last, after everything
//! else is on the disk. In between the directory has a marker, by which the same restore can be continued.
//!
//! # Memory
//!
//! Each thread holds two requests of up to 8 MiB each (2 MiB where the repository is on a file system), one frame,
//! 6 MiB that are being written, and the maps of the files that it is at work on: up to 3 MiB for a file of 1 GiB,
//! or the small files of a group, up to 16 MiB.

mod direct;
pub(crate) mod fetch;
mod share;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
pub(crate) mod write;

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use pgmahout_procedure::report::Progress;
use pgmahout_types::repository::manifest::{Content, File, Manifest, MapRef, PackKind};
use pgmahout_types::repository::page_map::StoredMap;
use pgmahout_types::repository::{PackId, PageMap};

use super::error::RestoreError;
use super::layout::Layout;
use super::selection::Selection;
use fetch::Packs;
use share::{Queue, Work};
use write::{Target, Writer};

/// Brings about every file of the backup but pg_control.
pub(crate) fn files(
    manifest: &Manifest,
    layout: &Layout,
    selection: &Selection,
    writer: &Writer<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(), RestoreError> {
    let queue = Mutex::new(Queue::new(manifest, selection));
    let failed = AtomicBool::new(false);
    let errors: Mutex<Vec<RestoreError>> = Mutex::default();
    let joined = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let work = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let done = match work {
                            None => break,
                            Some(Work::Group(files)) => {
                                if let Some(file) = files.first() {
                                    progress.set_detail(&file.path.to_text());
                                }
                                group(manifest, layout, selection, writer, &files)
                            }
                            Some(Work::Large(large)) => {
                                progress.set_detail(&large.file.path.to_text());
                                large.parts.work(
                                    || {
                                        let target = target(manifest, layout, writer.packs, large.file)?;
                                        let opened = writer.open(&target)?;
                                        Ok((target, opened))
                                    },
                                    |(target, opened), blocks| {
                                        writer.part(target, opened, blocks)?;
                                        Ok(!failed.load(Ordering::Relaxed))
                                    },
                                )
                            }
                        };
                        if let Err(error) = done {
                            errors.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                            failed.store(true, Ordering::Relaxed);
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

/// Brings about small files.
fn group(
    manifest: &Manifest,
    layout: &Layout,
    selection: &Selection,
    writer: &Writer<'_>,
    files: &[&File],
) -> Result<(), RestoreError> {
    let mut targets = Vec::with_capacity(files.len());
    for file in files {
        if selection.is_hollow(&file.path, file.kind) {
            writer.hollow(&layout.locate(&file.path), file.mode, file.size)?;
        } else {
            targets.push(target(manifest, layout, writer.packs, file)?);
        }
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
