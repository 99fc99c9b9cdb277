//! TLS as libpq does it, by rustls.

use crate::connection::ConnectErrorKind;
use crate::params::TlsParameters;
use tokio::io::{AsyncRead, AsyncWrite};

/// What is known about an encrypted session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsFacts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub protocol: String,
    /// The cipher suite.
    pub cipher: String,
    /// The server's certificates in DER form, its own first.
    pub peer_certificates: Vec<Vec<u8>>,
    /// Whether the authentication was bound to the channel (SCRAM-SHA-256-PLUS).
    pub channel_bound: bool,
    /// What is unusual about the server's certificate although it is accepted.
    pub warnings: Vec<String>,
}

/// TLS did not come about.
#[derive(Debug)]
pub(crate) struct TlsFailure {
    pub(crate) kind: ConnectErrorKind,
    pub(crate) text: String,
    pub(crate) hint: Option<String>,
}

/// An encrypted stream.
pub(crate) struct Secured<S> {
    pub(crate) stream: tokio_rustls::client::TlsStream<S>,
    pub(crate) end_point: Option<Vec<u8>>,
    pub(crate) facts: TlsFacts,
}

pub(crate) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    _stream: S,
    _parameters: &TlsParameters,
    _name: Option<&str>,
) -> Result<Secured<S>, TlsFailure> {
    Err(TlsFailure {
        kind: ConnectErrorKind::TlsFailed,
        text: "TLS comes next".to_owned(),
        hint: None,
    })
}
