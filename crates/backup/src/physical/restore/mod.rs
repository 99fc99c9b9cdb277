//! Restoring a physical backup, to the end of its WAL or to a point in it.
//!
//! [`plan::choose`] finds the backup, the timelines and the WAL that lead to a target, or says why nothing does,
//! and which target comes nearest. [`Restore`] is the procedure: it looks what is in the way, shows the plan,
//! asks, and then brings about the data directory.
//!
//! # What a killed restore leaves
//!
//! A directory without pg_control, on which no server starts, with a file that names the backup. The same restore
//! with `--delta`, or `pgmahout procedure resume`, completes it.
//!
//! # What is proved
//!
//! Every block has the hash that it had when it was backed up, before it is written; in repositories without
//! encryption too. That the WAL between backup and target is there is proved from the archive's listing; that
//! its content is whole is proved when the server fetches it.

mod aside;
mod catalog;
pub mod error;
mod execute;
pub mod extract;
mod guard;
mod include;
mod inventory;
mod layout;
mod moment;
mod owner;
mod place;
pub mod plan;
mod prepare;
mod procedure;
mod received;
mod request;
mod selection;
pub mod settings;
mod space;
mod start;
mod target;

pub use error::{Nearest, RestoreError};
pub use include::Include;
pub use layout::Remap;
pub use moment::Moment;
pub(crate) use owner::user_name;
pub use procedure::{KIND, Restore};
pub use received::ReceiverFiles;
pub use request::{RecoveryEnd, RestoreOutcome, RestoreRequest, ServerState, StartRequest};
pub use settings::{Archiving, StandbySettings, restore_command};
pub use space::SpaceNeed;
pub use target::{Aim, Target, TargetAction, TargetTimeline, Wanted};
