//! Durable file writes: temporary, fsync, rename, fsync of the directory.
