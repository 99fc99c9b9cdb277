//! Where everything of a backup goes: data directory, WAL directory, tablespaces.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pgmahout_types::TablespaceMap;
use pgmahout_types::repository::RelativePath;
use pgmahout_types::repository::manifest::Header;
use pgmahout_types::tablespace_map::TablespaceLink;

use super::error::RestoreError;

/// The directory of the links to tablespaces.
pub(crate) const LINKS: &str = "pg_tblspc";
/// The directory of the WAL.
pub(crate) const WAL: &str = "pg_wal";

/// Where a person wants things.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remap {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where the WAL goes, in place of a directory in the data directory.
    pub wal_dir: Option<PathBuf>,
    /// Tablespaces, by name or number, and where they go.
    pub tablespaces: Vec<(String, PathBuf)>,
}

/// A tablespace of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TablespaceTarget {
    /// Its number.
    pub(crate) oid: u32,
    /// Its name, where that is known.
    pub(crate) name: Option<String>,
    /// Where it was.
    pub(crate) from: PathBuf,
    /// Where it goes.
    pub(crate) to: PathBuf,
}

impl TablespaceTarget {
    /// Name or number, for people.
    pub(crate) fn title(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.oid.to_string())
    }
}

/// Where everything goes. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    data: PathBuf,
    wal: Option<PathBuf>,
    tablespaces: BTreeMap<u32, TablespaceTarget>,
    version_directory: String,
}

impl Layout {
    /// The layout that is wanted for a backup.
    ///
    /// # Errors
    /// When a tablespace is not in the backup, or directories lie in each other.
    pub(crate) fn new(remap: &Remap, header: &Header) -> Result<Self, RestoreError> {
        let data = absolute(&remap.data_dir)?;
        let wal = remap.wal_dir.as_deref().map(absolute).transpose()?;
        let mut tablespaces = BTreeMap::new();
        for tablespace in header
            .tablespaces
            .iter()
            .filter(|tablespace| !tablespace.in_place)
        {
            let from = tablespace.path.as_path().to_owned();
            tablespaces.insert(
                tablespace.oid,
                TablespaceTarget {
                    oid: tablespace.oid,
                    name: tablespace.name.clone(),
                    to: from.clone(),
                    from,
                },
            );
        }
        for (wanted, to) in &remap.tablespaces {
            let number: Option<u32> = wanted.parse().ok();
            let found = tablespaces
                .values_mut()
                .find(|target| target.name.as_ref() == Some(wanted) || number == Some(target.oid));
            let Some(target) = found else {
                let known: Vec<String> = tablespaces
                    .values()
                    .map(|target| format!("{} ({}, {})", target.title(), target.oid, target.from.display()))
                    .collect();
                return Err(RestoreError::Usage {
                    what: format!("the backup has no tablespace {wanted}"),
                    hint: if known.is_empty() {
                        "it has no tablespaces: leave --tablespace out".to_owned()
                    } else {
                        format!("it has {}", known.join(", "))
                    },
                });
            };
            target.to = absolute(to)?;
        }
        let layout = Self {
            data,
            wal,
            tablespaces,
            version_directory: version_directory(header),
        };
        layout.check()?;
        Ok(layout)
    }

    /// No directory may lie in another one, or be given twice.
    fn check(&self) -> Result<(), RestoreError> {
        let roots: Vec<(String, &Path)> = self.roots().collect();
        for (index, (one, path)) in roots.iter().enumerate() {
            for (other, inner) in &roots[index + 1..] {
                if path.starts_with(inner) || inner.starts_with(path) {
                    return Err(RestoreError::Usage {
                        what: format!(
                            "the {one} {} and the {other} {} lie in each other",
                            path.display(),
                            inner.display()
                        ),
                        hint: "give each a directory of its own".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The directories that things are put into, with what they are.
    pub(crate) fn roots(&self) -> impl Iterator<Item = (String, &Path)> {
        let wal = self.wal.as_deref().map(|path| ("WAL directory".to_owned(), path));
        let tablespaces = self
            .tablespaces
            .values()
            .map(|target| (format!("tablespace {}", target.title()), target.to.as_path()));
        std::iter::once(("data directory".to_owned(), self.data.as_path()))
            .chain(wal)
            .chain(tablespaces)
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The directory of the WAL outside the data directory, where there is one.
    pub(crate) fn wal(&self) -> Option<&Path> {
        self.wal.as_deref()
    }

    /// The tablespaces, by number.
    pub(crate) fn tablespaces(&self) -> impl Iterator<Item = &TablespaceTarget> {
        self.tablespaces.values()
    }

    /// The directory in every tablespace that is of this version: `PG_15_202209061`
    /// (`TABLESPACE_VERSION_DIRECTORY` in `src/include/common/relpath.h`).
    pub(crate) fn version_directory(&self) -> &str {
        &self.version_directory
    }

    /// Where a path of the data directory goes.
    pub(crate) fn locate(&self, path: &RelativePath) -> PathBuf {
        let path = path.as_path();
        let mut parts = path.components();
        let first = parts.next().map(|part| part.as_os_str().as_bytes().to_vec());
        match first.as_deref() {
            Some(b".") | None => self.data.clone(),
            Some(b"pg_wal") => match &self.wal {
                Some(wal) => join(wal, parts.as_path()),
                None => self.data.join(path),
            },
            Some(b"pg_tblspc") => {
                let number = parts
                    .next()
                    .and_then(|part| part.as_os_str().to_str()?.parse::<u32>().ok());
                match number.and_then(|number| self.tablespaces.get(&number)) {
                    Some(target) => join(&target.to, parts.as_path()),
                    None => self.data.join(path),
                }
            }
            Some(_) => self.data.join(path),
        }
    }

    /// The links that the data directory must have: path and what it points at.
    pub(crate) fn links(&self) -> Vec<(PathBuf, PathBuf)> {
        let mut links: Vec<(PathBuf, PathBuf)> = self
            .tablespaces
            .values()
            .map(|target| {
                (
                    self.data.join(LINKS).join(target.oid.to_string()),
                    target.to.clone(),
                )
            })
            .collect();
        if let Some(wal) = &self.wal {
            links.push((self.data.join(WAL), wal.clone()));
        }
        links
    }

    /// The content of `tablespace_map`, from which the server makes the links anew before it recovers. The
    /// backup's own, byte for byte, where no tablespace goes elsewhere; `None` where there is no tablespace.
    ///
    /// # Errors
    /// When the backup's own cannot be read.
    pub(crate) fn tablespace_map(&self, header: &Header) -> Result<Option<Vec<u8>>, RestoreError> {
        let damaged = |why: String| RestoreError::damaged(header.label, why);
        let recorded = header.tablespace_map.as_ref().map(|map| map.as_bytes().to_vec());
        let order: Vec<u32> = match &recorded {
            Some(content) => {
                let map = TablespaceMap::parse(content).map_err(|error| damaged(error.to_string()))?;
                let unchanged = map.links().iter().all(|link| {
                    self.tablespaces
                        .get(&link.oid)
                        .is_some_and(|target| target.to == link.location)
                });
                if unchanged && map.links().len() == self.tablespaces.len() {
                    return Ok(recorded.filter(|content| !content.is_empty()));
                }
                map.links().iter().map(|link| link.oid).collect()
            }
            None => Vec::new(),
        };
        if self.tablespaces.is_empty() {
            return Ok(None);
        }
        let mut numbers: Vec<u32> = order
            .into_iter()
            .filter(|number| self.tablespaces.contains_key(number))
            .collect();
        let rest = self.tablespaces.keys().filter(|number| !numbers.contains(number));
        numbers.extend(rest.copied().collect::<Vec<_>>());
        let links = numbers.iter().filter_map(|number| {
            let target = self.tablespaces.get(number)?;
            Some(TablespaceLink {
                oid: target.oid,
                location: target.to.clone(),
            })
        });
        let map = TablespaceMap::new(links).map_err(|error| damaged(error.to_string()))?;
        Ok(Some(map.render()))
    }
}

/// `base.join("")` would add a slash.
fn join(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() {
        base.to_owned()
    } else {
        base.join(rest)
    }
}

fn version_directory(header: &Header) -> String {
    format!("PG_{}_{}", header.server_version.major(), header.catalog_version)
}

/// An absolute path, with links in what exists of it resolved, so that two names of one directory are found
/// to be one.
fn absolute(path: &Path) -> Result<PathBuf, RestoreError> {
    if path.as_os_str().is_empty()
        || path
            .as_os_str()
            .as_bytes()
            .iter()
            .any(|byte| matches!(byte, b'\n' | b'\r'))
    {
        return Err(RestoreError::Usage {
            what: format!(
                "{:?} cannot be a directory of a server",
                path.display().to_string()
            ),
            hint: "give the path of a directory".to_owned(),
        });
    }
    let path = std::path::absolute(path).map_err(|error| RestoreError::io("find", path, error))?;
    if path
        .components()
        .any(|part| part == std::path::Component::ParentDir)
        && !path.exists()
    {
        return Err(RestoreError::Usage {
            what: format!("{} has a part \"..\", and does not exist", path.display()),
            hint: "write the path without \"..\"".to_owned(),
        });
    }
    let mut rest = Vec::new();
    let mut known = path.as_path();
    loop {
        if let Ok(real) = known.canonicalize() {
            return Ok(rest.iter().rev().fold(real, |path, part| path.join(part)));
        }
        match (known.parent(), known.file_name()) {
            (Some(parent), Some(name)) => {
                rest.push(name.to_owned());
                known = parent;
            }
            _ => return Ok(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgmahout_types::repository::manifest::Tablespace;
    use pgmahout_types::repository::{LinkTarget, Method};

    fn header(tablespaces: &[(u32, &str, &str)], map: Option<&str>) -> Header {
        let timeline = pgmahout_types::TimelineId::FIRST;
        let segment = pgmahout_types::SegmentName::containing(
            timeline,
            pgmahout_types::Lsn::new(0x200_0028),
            pgmahout_types::SegmentSize::DEFAULT,
        );
        let label: pgmahout_types::repository::Label = "20261121T104500Z-3f9a".parse().expect("a label");
        Header {
            format: 1,
            label,
            method: Method::Local,
            stanza: "main".to_owned(),
            system_identifier: pgmahout_types::SystemIdentifier::new(7),
            server_version: pgmahout_types::version::ServerVersion::from_number(150_018),
            catalog_version: 202_209_061,
            control_version: 1300,
            page_size: 8192,
            relation_segment_blocks: 131_072,
            wal_segment_size: pgmahout_types::SegmentSize::DEFAULT,
            data_checksums: pgmahout_types::control::DataChecksums::Off,
            start_time: label.start(),
            stop_time: label.start(),
            timeline,
            start_lsn: pgmahout_types::Lsn::new(0x200_0028),
            stop_lsn: pgmahout_types::Lsn::new(0x200_0100),
            wal: pgmahout_types::repository::manifest::WalRange {
                first: segment,
                last: segment,
            },
            timeline_history: None,
            parent: None,
            backup_label: Vec::new().into(),
            tablespace_map: map.map(|map| map.as_bytes().into()),
            tablespaces: tablespaces
                .iter()
                .map(|(oid, name, path)| Tablespace {
                    oid: *oid,
                    name: Some((*name).to_owned()),
                    path: LinkTarget::new(*path).expect("a path"),
                    in_place: false,
                })
                .collect(),
            outside: Vec::new(),
            owners: Vec::new(),
            annotations: std::collections::BTreeMap::new(),
            written_by: String::new(),
            host: String::new(),
            machine: None,
        }
    }

    fn remap(data: &str, wal: Option<&str>, tablespaces: &[(&str, &str)]) -> Remap {
        Remap {
            data_dir: data.into(),
            wal_dir: wal.map(PathBuf::from),
            tablespaces: tablespaces
                .iter()
                .map(|(name, path)| ((*name).to_owned(), PathBuf::from(path)))
                .collect(),
        }
    }

    const MAP: &str = "16385 /nowhere/fast\n16386 /nowhere/slow\n";

    fn two() -> Header {
        header(
            &[
                (16_385, "fast", "/nowhere/fast"),
                (16_386, "slow", "/nowhere/slow"),
            ],
            Some(MAP),
        )
    }

    #[test]
    fn paths_go_to_where_their_root_goes() {
        let remap = remap("/nowhere/data", Some("/nowhere/wal"), &[("fast", "/nowhere/ssd")]);
        let layout = Layout::new(&remap, &two()).expect("a layout");
        for (path, expected) in [
            (".", "/nowhere/data"),
            ("base/5/1259", "/nowhere/data/base/5/1259"),
            ("pg_wal", "/nowhere/wal"),
            ("pg_wal/archive_status", "/nowhere/wal/archive_status"),
            ("pg_tblspc", "/nowhere/data/pg_tblspc"),
            ("pg_tblspc/16385", "/nowhere/ssd"),
            (
                "pg_tblspc/16385/PG_15_202209061/5/1",
                "/nowhere/ssd/PG_15_202209061/5/1",
            ),
            (
                "pg_tblspc/16386/PG_15_202209061/5/1",
                "/nowhere/slow/PG_15_202209061/5/1",
            ),
            // In place: a directory of the data directory.
            (
                "pg_tblspc/16400/PG_15_202209061/5/1",
                "/nowhere/data/pg_tblspc/16400/PG_15_202209061/5/1",
            ),
        ] {
            let path = RelativePath::new(path).expect("a path");
            assert_eq!(layout.locate(&path), Path::new(expected), "{path}");
        }
        assert_eq!(layout.version_directory(), "PG_15_202209061");
    }

    #[test]
    fn the_tablespace_map_is_the_servers_own_unless_something_moves() {
        let header = two();
        let same = Layout::new(&remap("/nowhere/data", None, &[]), &header).expect("a layout");
        assert_eq!(
            same.tablespace_map(&header).expect("readable").as_deref(),
            Some(MAP.as_bytes())
        );
        let moved = Layout::new(
            &remap("/nowhere/data", None, &[("16386", "/nowhere/ssd")]),
            &header,
        );
        let map = moved
            .expect("a layout")
            .tablespace_map(&header)
            .expect("readable")
            .expect("there");
        assert_eq!(
            String::from_utf8_lossy(&map),
            "16385 /nowhere/fast\n16386 /nowhere/ssd\n"
        );
        let none = super::tests::header(&[], None);
        let layout = Layout::new(&remap("/nowhere/data", None, &[]), &none).expect("a layout");
        assert_eq!(layout.tablespace_map(&none).expect("readable"), None);
    }

    #[test]
    fn directories_that_lie_in_each_other_are_refused() {
        for (data, wal, tablespaces) in [
            ("/nowhere/data", Some("/nowhere/data/pg_wal"), vec![]),
            ("/nowhere/data", None, vec![("fast", "/nowhere/data/pg_tblspc/x")]),
            ("/nowhere/data", None, vec![("fast", "/nowhere/slow")]),
            ("/nowhere/fast/data", None, vec![]),
            ("/nowhere/data", None, vec![("unknown", "/nowhere/x")]),
            ("", None, vec![]),
        ] {
            let error = Layout::new(&remap(data, wal, &tablespaces), &two()).expect_err(data);
            assert!(matches!(error, RestoreError::Usage { .. }), "{error}");
        }
    }
}
