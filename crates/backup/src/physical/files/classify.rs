//! What a path of a data directory is, by PostgreSQL's own rules.
//!
//! Pure: a path goes in, relative to the data directory and with `/` between its parts; what it is comes
//! out. Paths are bytes, as a stray file may have any name. The rules are those of a base backup
//! (`src/backend/backup/basebackup.c`), of the names of relations (`src/common/relpath.c`,
//! `parse_filename_for_nontemp_relation` in `src/backend/storage/file/reinit.c`), and of `pg_checksums`.
//!
//! What a single path cannot tell is whether a relation is unlogged: its directory holds an init fork. Whoever
//! lists the directory knows, and skips the other forks ([`SkipReason::Unlogged`]).
//!
//! Three things are meant differently than by `pg_basebackup`:
//!
//! - `current_logfiles`, `backup_label.old`, `tablespace_map.old`, `recovery.signal` and `standby.signal` are
//!   left out too: they say something about the server that runs now, and a restore writes its own.
//! - Files that only mean something at the top of a data directory (`postmaster.pid`, `backup_label` and the
//!   like) are left out there alone; elsewhere the name is somebody's own file. Temporary files and
//!   `pg_internal.init` are left out wherever they lie, as PostgreSQL makes them in many places.
//! - `lost+found` at the top, which belongs to the file system.
//!
//! Everything else is copied, also what PostgreSQL does not know: the directory `log`, certificates, files of
//! extensions and of other tools. A log directory that is configured elsewhere is not below the data
//! directory and does not come along.

/// A relation of one of the tablespaces, or of all databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// Where it lies.
    pub tablespace: Tablespace,
    /// OID of the database; 0 for the relations that all databases share.
    pub database: u32,
    /// Number of the file (`relfilenode`), which is the relation's OID until it is rewritten.
    pub number: u32,
    /// Which of the relation's forks.
    pub fork: Fork,
    /// Which segment of the fork, counted from zero. The first file has no number in its name.
    pub segment: u32,
}

/// Where a relation lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tablespace {
    /// `pg_global`: the directory `global`.
    Global,
    /// `pg_default`: the directory `base`.
    Default,
    /// Any other, by its OID: below `pg_tblspc`.
    Other(u32),
}

/// A fork of a relation (`ForkNumber` in `src/include/common/relpath.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The rows.
    Main,
    /// The free space map, which is not WAL-logged.
    FreeSpace,
    /// The visibility map.
    Visibility,
    /// What an unlogged relation is set to after a crash.
    Init,
}

/// What a regular file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileKind {
    /// A segment of a relation's fork.
    Relation(RelationFile),
    /// A segment of transaction status and its like: `pg_xact`, `pg_multixact`, `pg_commit_ts`.
    Slru,
    /// `global/pg_control`: copied last.
    Control,
    /// `pg_filenode.map`: which files the mapped catalogs lie in.
    RelationMap,
    /// `PG_VERSION` of the cluster or of a database.
    Version,
    /// Configuration at the top: `*.conf` and `postgresql.auto.conf`.
    Configuration,
    /// Any other file.
    Other,
}

/// Why something is not copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SkipReason {
    /// A temporary file of a query or of a rewrite.
    Temporary,
    /// A temporary relation: `t<N>_<N>`.
    TemporaryRelation,
    /// An unlogged relation; its init fork is copied.
    Unlogged,
    /// Says something about the running server alone: `postmaster.pid` and its like.
    Running,
    /// A cache that the server builds again.
    Cache,
    /// A file of an older or of this backup: `backup_label`, `tablespace_map`, `backup_manifest`.
    Backup,
    /// `recovery.signal` or `standby.signal`.
    Signal,
    /// WAL, which is taken from the archive.
    Wal,
    /// Below a directory that the server empties when it starts.
    Volatile,
    /// `lost+found` of a file system.
    FileSystem,
}

/// What is to happen with a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileVerdict {
    /// It is copied.
    Copy(FileKind),
    /// It is left out.
    Skip(SkipReason),
}

/// What is to happen with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DirectoryVerdict {
    /// It is copied with what it holds.
    Copy(DirectoryKind),
    /// It is kept as an empty directory, also where it is a symbolic link.
    Empty,
    /// It is left out with all that it holds.
    Skip(SkipReason),
}

/// What a directory whose contents are copied is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DirectoryKind {
    /// Holds relations of a database: unlogged ones are found by their init forks.
    Database {
        /// Where it lies.
        tablespace: Tablespace,
        /// OID of the database.
        database: u32,
    },
    /// `pg_tblspc`: every entry is a tablespace.
    Tablespaces,
    /// `pg_tblspc/<oid>`: only the directory of the server's own version in it is ours.
    Tablespace(u32),
    /// Any other directory.
    Other,
}

/// Directories whose contents mean nothing after a restart (`excludeDirContents` in `basebackup.c`).
const EMPTIED: [&[u8]; 7] = [
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_replslot",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat_tmp",
    b"pg_subtrans",
];

/// Directories that a base backup adds below `pg_wal`: all versions, and 17 and later.
const WAL_SUBDIRECTORIES: [&str; 2] = ["pg_wal/archive_status", "pg_wal/summaries"];

/// Where WAL is kept.
pub const WAL_DIRECTORY: &str = "pg_wal";
/// Where the links to tablespaces are kept.
pub const TABLESPACE_DIRECTORY: &str = "pg_tblspc";

/// The directories that must exist, empty, in a restored `pg_wal` of a major version.
pub fn wal_subdirectories(major: u32) -> &'static [&'static str] {
    if major >= 17 {
        &WAL_SUBDIRECTORIES
    } else {
        &WAL_SUBDIRECTORIES[..1]
    }
}

/// The name of the directory in a tablespace that belongs to one major version
/// (`TABLESPACE_VERSION_DIRECTORY` in `src/include/common/relpath.h`): `PG_15_202209061`.
pub fn tablespace_version_directory(major: u32, catalog_version: u32) -> String {
    format!("PG_{major}_{catalog_version}")
}

/// What is to happen with a regular file at `path`.
pub fn file(path: &[u8]) -> FileVerdict {
    let (directory, name) = split(path);
    if let Some(reason) = left_out(directory, name) {
        return FileVerdict::Skip(reason);
    }
    let top = first_part(path);
    if directory.is_empty() {
        return FileVerdict::Copy(match name {
            b"PG_VERSION" => FileKind::Version,
            _ if name.ends_with(b".conf") => FileKind::Configuration,
            _ => FileKind::Other,
        });
    }
    if top == WAL_DIRECTORY.as_bytes() {
        return FileVerdict::Skip(SkipReason::Wal);
    }
    if EMPTIED.contains(&top) {
        return FileVerdict::Skip(SkipReason::Volatile);
    }
    if path == b"global/pg_control" {
        return FileVerdict::Copy(FileKind::Control);
    }
    if let Some((tablespace, database)) = relation_directory(directory) {
        return match name {
            b"PG_VERSION" => FileVerdict::Copy(FileKind::Version),
            b"pg_filenode.map" => FileVerdict::Copy(FileKind::RelationMap),
            // Nobody makes temporary relations for all databases.
            _ if tablespace != Tablespace::Global && is_temporary_relation(name) => {
                FileVerdict::Skip(SkipReason::TemporaryRelation)
            }
            _ => FileVerdict::Copy(relation(name).map_or(FileKind::Other, |(number, fork, segment)| {
                FileKind::Relation(RelationFile {
                    tablespace,
                    database,
                    number,
                    fork,
                    segment,
                })
            })),
        };
    }
    FileVerdict::Copy(match directory {
        b"pg_xact" | b"pg_commit_ts" | b"pg_multixact/members" | b"pg_multixact/offsets" => FileKind::Slru,
        _ => FileKind::Other,
    })
}

/// What is to happen with a directory at `path`, or with a symbolic link to one. The data directory itself is
/// the empty path.
pub fn directory(path: &[u8]) -> DirectoryVerdict {
    let (parent, name) = split(path);
    if let Some(reason) = left_out(parent, name) {
        return DirectoryVerdict::Skip(reason);
    }
    if parent.is_empty() {
        if name == WAL_DIRECTORY.as_bytes() || EMPTIED.contains(&name) {
            return DirectoryVerdict::Empty;
        }
        if name == TABLESPACE_DIRECTORY.as_bytes() {
            return DirectoryVerdict::Copy(DirectoryKind::Tablespaces);
        }
        return DirectoryVerdict::Copy(DirectoryKind::Other);
    }
    match first_part(path) {
        top if top == WAL_DIRECTORY.as_bytes() => {
            if WAL_SUBDIRECTORIES.iter().any(|known| known.as_bytes() == path) {
                DirectoryVerdict::Empty
            } else {
                DirectoryVerdict::Skip(SkipReason::Wal)
            }
        }
        top if EMPTIED.contains(&top) => DirectoryVerdict::Skip(SkipReason::Volatile),
        _ => DirectoryVerdict::Copy(match relation_directory(path) {
            Some((tablespace, database)) if tablespace != Tablespace::Global => {
                DirectoryKind::Database { tablespace, database }
            }
            _ if parent == TABLESPACE_DIRECTORY.as_bytes() => {
                number(name).map_or(DirectoryKind::Other, DirectoryKind::Tablespace)
            }
            _ => DirectoryKind::Other,
        }),
    }
}

impl FileVerdict {
    /// The kind of a file that is copied.
    pub fn kind(self) -> Option<FileKind> {
        match self {
            Self::Copy(kind) => Some(kind),
            Self::Skip(_) => None,
        }
    }
}

impl FileKind {
    /// Whether the file consists of data pages with checksums, where the cluster has them.
    ///
    /// PostgreSQL 17 and later verify relations alone in a base backup, as here; older versions and
    /// `pg_checksums` also look into strangers in the directories of relations, which nobody gave checksums.
    pub fn has_checksums(self) -> bool {
        matches!(self, Self::Relation(_))
    }

    /// The relation, where it is one.
    pub fn relation(self) -> Option<RelationFile> {
        match self {
            Self::Relation(relation) => Some(relation),
            _ => None,
        }
    }
}

impl Fork {
    /// The end of a file name that says the fork; nothing for the main one.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::FreeSpace => "_fsm",
            Self::Visibility => "_vm",
            Self::Init => "_init",
        }
    }
}

/// Reads the name of a file of a relation that is not temporary: number, fork, segment.
///
/// Strict as PostgreSQL 17 and later are: no leading zeros, and no segment zero in a name.
pub fn relation(name: &[u8]) -> Option<(u32, Fork, u32)> {
    let (stem, segment) = match position(name, b'.') {
        Some(dot) => (&name[..dot], number(&name[dot + 1..])?),
        None => (name, 0),
    };
    let (digits, fork) = match position(stem, b'_') {
        Some(at) => (
            &stem[..at],
            match &stem[at..] {
                b"_fsm" => Fork::FreeSpace,
                b"_vm" => Fork::Visibility,
                b"_init" => Fork::Init,
                _ => return None,
            },
        ),
        None => (stem, Fork::Main),
    };
    Some((number(digits)?, fork, segment))
}

/// Whether a name is that of a temporary relation: `t<backend>_<number>`, perhaps with a fork and a segment
/// (`looks_like_temp_rel_name` in `src/backend/storage/file/fd.c`).
pub fn is_temporary_relation(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"t") else {
        return false;
    };
    let Some(at) = position(rest, b'_') else {
        return false;
    };
    let (backend, relation) = (&rest[..at], &rest[at + 1..]);
    if !digits(backend) {
        return false;
    }
    let stem = match position(relation, b'.') {
        Some(dot) if digits(&relation[dot + 1..]) => &relation[..dot],
        Some(_) => return false,
        None => relation,
    };
    match position(stem, b'_') {
        Some(at) => digits(&stem[..at]) && matches!(&stem[at..], b"_fsm" | b"_vm" | b"_init"),
        None => digits(stem),
    }
}

/// The tablespace and the database whose relations lie in a directory.
fn relation_directory(path: &[u8]) -> Option<(Tablespace, u32)> {
    let mut parts = path.split(|byte| *byte == b'/');
    let found = match parts.next()? {
        b"global" => (Tablespace::Global, 0),
        b"base" => (Tablespace::Default, number(parts.next()?)?),
        top if top == TABLESPACE_DIRECTORY.as_bytes() => {
            let tablespace = number(parts.next()?)?;
            if !parts.next()?.starts_with(b"PG_") {
                return None;
            }
            (Tablespace::Other(tablespace), number(parts.next()?)?)
        }
        _ => return None,
    };
    parts.next().is_none().then_some(found)
}

/// What is left out by its name, be it a file or a directory.
fn left_out(directory: &[u8], name: &[u8]) -> Option<SkipReason> {
    if name.starts_with(b"pgsql_tmp") {
        return Some(SkipReason::Temporary);
    }
    if name.starts_with(b"pg_internal.init") {
        return Some(SkipReason::Cache);
    }
    if !directory.is_empty() {
        return None;
    }
    match name {
        b"postmaster.pid" | b"postmaster.opts" => Some(SkipReason::Running),
        b"postgresql.auto.conf.tmp" => Some(SkipReason::Temporary),
        b"recovery.signal" | b"standby.signal" => Some(SkipReason::Signal),
        b"lost+found" => Some(SkipReason::FileSystem),
        b"backup_manifest"
        | b"backup_label"
        | b"backup_label.old"
        | b"tablespace_map"
        | b"tablespace_map.old" => Some(SkipReason::Backup),
        _ if name.starts_with(b"current_logfiles") => Some(SkipReason::Running),
        _ => None,
    }
}

/// The directory and the name of a path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn first_part(path: &[u8]) -> &[u8] {
    position(path, b'/').map_or(path, |at| &path[..at])
}

fn position(bytes: &[u8], wanted: u8) -> Option<usize> {
    memchr::memchr(wanted, bytes)
}

fn digits(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}

/// A decimal number of 32 bits that is not zero, as PostgreSQL writes it.
fn number(bytes: &[u8]) -> Option<u32> {
    if bytes.is_empty() || bytes.len() > 10 || bytes[0] == b'0' {
        return None;
    }
    bytes.iter().try_fold(0_u32, |sum, byte| {
        byte.is_ascii_digit()
            .then_some(())
            .and_then(|()| sum.checked_mul(10)?.checked_add(u32::from(byte - b'0')))
    })
}

#[cfg(test)]
mod tests;
