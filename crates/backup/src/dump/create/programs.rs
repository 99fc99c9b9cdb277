//! Finding PostgreSQL's programs of the server's major version or newer.

use std::path::{Path, PathBuf};

use pgmahout_postgres::binaries::{Binaries, Requirement};
use pgmahout_types::version::ServerVersion;

use super::super::error::Problem;

/// The programs that a dump needs.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) pg_dump: PathBuf,
    pub(super) pg_dumpall: PathBuf,
    pub(super) pg_restore: PathBuf,
    /// pg_dump's version.
    pub(super) version: ServerVersion,
}

impl Programs {
    /// Finds them. Every one that is missing is a problem of its own.
    ///
    /// Without a server to ask, any version will do, so that a missing program is reported even then.
    pub(super) fn find(bin_dir: Option<&Path>, server: Option<ServerVersion>) -> Result<Self, Vec<Problem>> {
        let requirement = server.map_or(Requirement::Any, |server| Requirement::AtLeast(server.major()));
        let mut problems = Vec::new();
        let mut find = |name: &str| match Binaries::find(name, requirement, bin_dir) {
            Ok(program) => Some(program),
            Err(error) => {
                problems.push(Problem::of(&error));
                None
            }
        };
        let found = (find("pg_dump"), find("pg_dumpall"), find("pg_restore"));
        match found {
            (Some(pg_dump), Some(pg_dumpall), Some(pg_restore)) => Ok(Self {
                version: pg_dump.version,
                pg_dump: pg_dump.path,
                pg_dumpall: pg_dumpall.path,
                pg_restore: pg_restore.path,
            }),
            _ => Err(problems),
        }
    }
}
