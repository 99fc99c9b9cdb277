//! Looking at a server's certificates without logging in.

use super::establish::server_offers_tls;
use super::socket;
use crate::params::{ConnectionParameters, Environment, Host, HostTarget};
use crate::tls;
use pgmahout_types::diagnostic::Diagnose;
use std::time::Duration;

/// The server's certificates could not be seen.
#[derive(Debug, thiserror::Error)]
#[error("cannot see the certificates of {place}: {reason}")]
pub struct ProbeError {
    place: String,
    reason: String,
    hint: Option<String>,
}

impl Diagnose for ProbeError {
    fn hint(&self) -> Option<String> {
        self.hint.clone().or_else(|| {
            Some(format!(
                "see whether the server answers there: pg_isready ({})",
                self.place
            ))
        })
    }
}

/// The chain of certificates, in DER form and the server's own first, that a server shows to whoever asks
/// for TLS. Any certificate is accepted for that, and nothing is sent after the handshake. `None` where
/// the server does not offer TLS, or `host` is a socket directory.
///
/// # Errors
///
/// When no address of the host answers within `timeout`, or the handshake fails.
pub async fn served_certificates(
    host: &str,
    port: u16,
    timeout: Duration,
) -> Result<Option<Vec<Vec<u8>>>, ProbeError> {
    let host = Host {
        target: HostTarget::Name(host.to_owned()),
        port,
    };
    if host.name().starts_with(['/', '@']) {
        return Ok(None);
    }
    let failed = |reason: String, hint: Option<String>| ProbeError {
        place: host.to_string(),
        reason,
        hint,
    };
    // Only the TLS part counts: take any certificate, show none.
    let environment = Environment::from_pairs([
        ("PGUSER", "nobody"),
        ("PGSSLMODE", "require"),
        ("PGSSLCERTMODE", "disable"),
    ]);
    let parameters = ConnectionParameters::from_dsn("", &environment)
        .map_err(|error| failed(error.to_string(), error.hint()))?
        .at_host(&host);
    let look = async {
        let addresses = socket::look_up(&host)
            .await
            .map_err(|error| failed(error.to_string(), None))?;
        let mut last = failed("the name has no address".to_owned(), None);
        for address in addresses {
            let mut stream = match socket::connect(&address, &parameters).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = failed(error.to_string(), None);
                    continue;
                }
            };
            if !server_offers_tls(&mut stream)
                .await
                .map_err(|failure| failed(failure.text, failure.hint))?
            {
                return Ok(None);
            }
            let secured = tls::handshake(stream, &parameters.tls, Some(&host.name()))
                .await
                .map_err(|failure| failed(failure.text, failure.hint))?;
            return Ok(Some(secured.facts.peer_certificates));
        }
        Err(last)
    };
    tokio::time::timeout(timeout, look).await.unwrap_or_else(|_| {
        Err(failed(
            format!("no answer within {} s", timeout.as_secs_f64()),
            None,
        ))
    })
}
