//! Durable writes: the one place where files that must survive a crash are written.
//!
//! * [`AtomicFile`]: a temporary beside the target, fsynced, then renamed into place, then the directory
//!   fsynced. A reader sees the old file or the whole new one, never a part; after a crash too.
//! * [`append_line`]: one line at the end of a journal, fsynced before it returns, with a torn last line
//!   of an earlier crash cut off first.
//! * [`SoleWriter`]: a journal that one process alone writes, and whose readers see whether it lives.
//! * [`FileLock`]: an advisory lock that dies with its holder and says who holds it.
//! * [`sync_directory`]: makes a created, renamed or removed name durable.
//!
//! An fsync that failed is never tried again on the same file: the kernel may have dropped the dirty pages
//! and would report success (PostgreSQL's own lesson of 2018, release notes of 11.2, `data_sync_retry`).
//! The temporary is thrown away and the error reported.
//!
//! Nothing here knows what is inside the files.

mod append;
mod atomic;
mod directory;
mod error;
mod lock;

pub use append::{SoleWriter, append_line, complete_lines};
pub use atomic::{AtomicFile, Overwrite, replace_atomically, write_atomically};
pub use directory::{create_directory_durably, remove_durably, remove_stale_temporaries, sync_directory};
pub use error::DurableError;
pub use lock::{FileLock, LockError, LockOwner};
