//! Backup and restore: the logical half.
//!
//! [`dump`] makes, lists, expires, restores and tests logical dumps. PostgreSQL's own `pg_dump`,
//! `pg_dumpall`, `pg_restore` and `psql` do the dumping and the loading; everything around them is here.

pub mod dump;
