//! Backup and restore, logical and physical.
//!
//! [`dump`] makes, lists, expires, restores and tests logical dumps. PostgreSQL's own `pg_dump`,
//! `pg_dumpall`, `pg_restore` and `psql` do the dumping and the loading; everything around them is here.
//!
//! [`physical`] backs up the files of a whole cluster, page by page.

pub mod dump;
pub mod physical;
