//! Restoring some databases of a cluster.
//!
//! The files of the others become files of the right size with nothing in them, which take no space: recovery
//! writes to them and must find them. Their `PG_VERSION` and `pg_filenode.map` are empty like that too, so that
//! nobody can connect to such a database, and it can only be dropped: the server refuses a session without a
//! valid version file (`ValidatePgVersion` in `src/backend/utils/init/miscinit.c`). With one it would go on to
//! the indexes of the catalog, and a damaged one of those is a PANIC (`load_critical_index` in
//! `src/backend/utils/cache/relcache.c`), which throws out every session of the whole server.

use std::collections::BTreeSet;

use pgmahout_types::repository::RelativePath;
use pgmahout_types::repository::manifest::FileKind;

/// The first object identifier of what users create (`FirstNormalObjectId` in `src/include/access/transam.h`).
/// Below it are template0, template1 and postgres.
const FIRST_NORMAL: u32 = 16_384;

/// Which databases are restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// By number; `None` for all.
    databases: Option<BTreeSet<u32>>,
}

impl Selection {
    /// Every database.
    pub(crate) fn all() -> Self {
        Self::default()
    }

    /// These, and those that every cluster has.
    pub(crate) fn only(databases: impl IntoIterator<Item = u32>) -> Self {
        Self {
            databases: Some(databases.into_iter().collect()),
        }
    }

    /// Whether everything is restored.
    pub(crate) fn is_all(&self) -> bool {
        self.databases.is_none()
    }

    /// Whether this database is restored.
    pub(crate) fn keeps(&self, database: u32) -> bool {
        database < FIRST_NORMAL
            || self
                .databases
                .as_ref()
                .is_none_or(|kept| kept.contains(&database))
    }

    /// Whether the file is one of a database that is not restored.
    pub(crate) fn is_hollow(&self, path: &RelativePath, kind: FileKind) -> bool {
        let emptied = match kind {
            FileKind::Relation | FileKind::Fsm | FileKind::Vm | FileKind::Init => true,
            _ => path
                .as_bytes()
                .rsplit(|byte| *byte == b'/')
                .next()
                .is_some_and(|name| matches!(name, b"PG_VERSION" | b"pg_filenode.map")),
        };
        emptied && !self.is_all() && database(path).is_some_and(|database| !self.keeps(database))
    }
}

/// The database that a file belongs to: `base/DATABASE/...` or `pg_tblspc/SPACE/PG_.../DATABASE/...`.
pub(crate) fn database(path: &RelativePath) -> Option<u32> {
    let text = std::str::from_utf8(path.as_bytes()).ok()?;
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        ["base", database, _, ..] | ["pg_tblspc", _, _, database, _, ..] => database.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_other_databases_are_left_hollow() {
        let selection = Selection::only([16_385]);
        let hollow = |path: &str, kind| selection.is_hollow(&RelativePath::new(path).expect("a path"), kind);
        assert!(hollow("base/16390/16400", FileKind::Relation));
        assert!(hollow(
            "pg_tblspc/16500/PG_15_202209061/16390/16400.1",
            FileKind::Relation
        ));
        assert!(hollow("base/16390/16400_fsm", FileKind::Fsm));
        assert!(!hollow("base/16385/16400", FileKind::Relation));
        assert!(!hollow("base/5/1259", FileKind::Relation));
        assert!(!hollow("global/1262", FileKind::Relation));
        assert!(hollow("base/16390/PG_VERSION", FileKind::Other));
        assert!(hollow("base/16390/pg_filenode.map", FileKind::Other));
        assert!(!hollow("base/16385/PG_VERSION", FileKind::Other));
        assert!(!hollow("PG_VERSION", FileKind::Other));
        assert!(!hollow("global/pg_filenode.map", FileKind::Other));
        assert!(!Selection::all().is_hollow(
            &RelativePath::new("base/16390/16400").expect("a path"),
            FileKind::Relation
        ));
    }
}
