//! Cancelling a statement from outside its connection.

use super::socket::Address;
use super::wire::{Ready, Wire};
use super::{establish, failure::Failure};
use crate::params::ConnectionParameters;
use pgmahout_types::diagnostic::Diagnose;
use std::time::Duration;

/// How long a cancel request may take where no `connect_timeout` is set.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the server to cancel whatever the connection runs. Encrypted as the connection itself is.
#[derive(Clone)]
pub struct CancelHandle {
    token: tokio_postgres::CancelToken,
    parameters: ConnectionParameters,
    address: Address,
}

/// The request could not be delivered.
#[derive(Debug, thiserror::Error)]
#[error("cannot deliver a cancel request to {target}: {reason}")]
pub struct CancelError {
    target: String,
    reason: String,
}

impl Diagnose for CancelError {
    fn hint(&self) -> Option<String> {
        Some("end the statement from another session: SELECT pg_cancel_backend(pid)".to_owned())
    }
}

impl CancelHandle {
    pub(super) fn new(
        token: tokio_postgres::CancelToken,
        parameters: ConnectionParameters,
        address: Address,
    ) -> Self {
        Self {
            token,
            parameters,
            address,
        }
    }

    /// Sends the request. The server answers nothing: the statement may have ended before.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached.
    pub async fn cancel(&self) -> Result<(), CancelError> {
        let failed = |reason: String| CancelError {
            target: self.address.to_string(),
            reason,
        };
        let work = async {
            let host = &self.parameters.hosts[0];
            let prepared = establish::channel(&self.parameters, host, &self.address, None)
                .await
                .map_err(|failure: Failure| failed(failure.text))?;
            let (wire, _) = Wire::new(prepared.channel, None, None);
            self.token
                .cancel_query_raw(wire, Ready)
                .await
                .map_err(|error| failed(error.to_string()))
        };
        tokio::time::timeout(self.parameters.connect_timeout.unwrap_or(PATIENCE), work)
            .await
            .unwrap_or_else(|_| Err(failed("no answer in time".to_owned())))
    }
}
