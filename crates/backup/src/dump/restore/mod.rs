//! `dump restore`: any dump into a database, all of it or nothing.
//!
//! The order is: read the whole file once ([`super::read::Dump::inspect`]), so that nothing is begun with a
//! file that is cut, changed or for somebody else; look at the server; show the plan; ask; load. What is
//! loaded goes through one psql in one transaction of ours (module `psql`), whatever the form of the dump:
//! archives are turned into SQL by pg_restore. With `--jobs`, pg_restore loads by itself and without a
//! common transaction.
//!
//! `--clean`, `--create` and `--into` fill a fresh database under a temporary name (module `fresh`) and exchange
//! it for the target in the end, so that a failed restore leaves the target as it was in these cases too,
//! whether there was one transaction or not.

mod baseline;
pub(crate) mod counts;
pub(crate) mod engine;
pub mod error;
pub(crate) mod fitness;
pub(crate) mod fresh;
pub(crate) mod hints;
mod procedure;
pub(crate) mod psql;
pub mod tools;

pub use counts::{CountRow, TargetFacts};
pub use error::RestoreError;
pub use procedure::{BackupFirst, KIND, Mode, Restore, RestoreOutcome, RestoreRequest, owner_map};
