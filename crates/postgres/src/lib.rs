//! IO with PostgreSQL: finding it, connecting to it as libpq would, controlling a local server, reading and
//! editing its configuration files.
//!
//! * [`params`]: what the user gave, the environment and the files of libpq, resolved once.
//! * [`connection`]: one SQL connection, and errors that say which host failed why and what to do.
//! * [`tls`]: encryption and certificates by libpq's rules.
//! * [`binaries`]: PostgreSQL's own programs of the right major version.
//! * [`control`]: start, stop, restart, reload, promote, through pg_ctl, systemd or Docker.
//! * [`conf_file`], [`hba`]: `postgresql.conf`, `postgresql.auto.conf`, `pg_hba.conf`: read and edited.
//! * [`throwaway`]: private servers for the demo and for restore tests.
//!
//! SQL itself lives with whoever asks the question. Nothing here prints.

pub mod binaries;
pub mod conf_file;
pub mod connection;
pub mod control;
pub mod hba;
pub mod params;
pub mod sql;
pub mod throwaway;
pub mod tls;
