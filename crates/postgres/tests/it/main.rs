//! Against real servers of every version that the testkit has.

mod conf;
mod connect;
mod control;
mod docker;
mod hba;
mod hosts;
mod parity;
mod systemd;
mod tls;

use pgmahout_postgres::connection::{ConnectError, Connection};
use pgmahout_postgres::params::{ConnectionParameters, Environment};

/// An environment with a home that holds nothing.
pub(crate) fn empty_environment() -> Environment {
    Environment::from_pairs([("HOME", "/nonexistent")]).with_os_user("postgres")
}

pub(crate) fn parameters(dsn: &str) -> ConnectionParameters {
    ConnectionParameters::from_dsn(dsn, &empty_environment()).expect("valid parameters")
}

pub(crate) async fn open(dsn: &str) -> Result<Connection, ConnectError> {
    Connection::open(&parameters(dsn)).await
}

/// The error with its chain, as a person reads it.
pub(crate) fn rendered(error: &ConnectError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str("\n  caused by: ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
