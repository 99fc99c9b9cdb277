//! Backup and restore: the logical half.
