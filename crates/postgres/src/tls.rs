//! TLS as libpq does it, by rustls (`fe-secure-openssl.c`, `fe-secure-common.c`).
//!
//! The certificate is verified whenever a root certificate file exists, in every mode that speaks TLS;
//! the host's name only by `verify-full`. What libpq accepts and strict web clients refuse is accepted
//! with a warning: names in the common name only, X.509 version 1, a self-signed authority used as the
//! server's own certificate.

mod chain;
mod client_certificate;
mod end_point;
mod files;
mod name;
mod rejection;
mod verifier;

use crate::connection::ConnectErrorKind;
pub use crate::connection::{ProbeError, served_certificates};
use crate::params::{CertificateMode, SslMode, SslNegotiation, TlsParameters, TlsVersion};
use rejection::Rejection;
use rustls::pki_types::{IpAddr, ServerName};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
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
    /// Whether the chain of certificates was verified.
    pub verified_chain: bool,
    /// Whether the host's name was verified.
    pub verified_name: bool,
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

impl TlsFailure {
    fn files(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            kind: ConnectErrorKind::TlsFiles,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }

    fn handshake(text: impl Into<String>) -> Self {
        Self {
            kind: ConnectErrorKind::TlsFailed,
            text: text.into(),
            hint: None,
        }
    }
}

impl From<Rejection> for TlsFailure {
    fn from(rejection: Rejection) -> Self {
        Self {
            kind: ConnectErrorKind::CertificateRejected,
            hint: Some(rejection.hint()),
            text: rejection.to_string(),
        }
    }
}

/// An encrypted stream.
pub(crate) struct Secured<S> {
    pub(crate) stream: tokio_rustls::client::TlsStream<S>,
    pub(crate) end_point: Option<Vec<u8>>,
    pub(crate) facts: TlsFacts,
}

/// The protocol's name in TLS (PostgreSQL documentation, "SSL Session Encryption": ALPN, servers 17+).
const PROTOCOL: &[u8] = b"postgresql";

const TOO_OLD_FOR_DIRECT: &str = "servers before 17 know no direct TLS: leave sslnegotiation=direct out";

/// Encrypts a connected stream. `name` is what the certificate must name under `verify-full`.
pub(crate) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    parameters: &TlsParameters,
    name: Option<&str>,
) -> Result<Secured<S>, TlsFailure> {
    let trust = files::trust(parameters)?;
    let identity = client_certificate::load(parameters)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verified_chain = trust.is_some();
    let verified_name = parameters.mode == SslMode::VerifyFull;
    let verifier = Arc::new(verifier::Verifier::new(
        &provider,
        trust,
        verified_name.then(|| name.unwrap_or_default().to_owned()),
    )?);
    let resolver = Arc::new(client_certificate::Resolver::new(identity));

    let versions: Vec<&rustls::SupportedProtocolVersion> = [
        (TlsVersion::V13, &rustls::version::TLS13),
        (TlsVersion::V12, &rustls::version::TLS12),
    ]
    .into_iter()
    .filter(|(version, _)| (parameters.minimum_version..=parameters.maximum_version).contains(version))
    .map(|(_, version)| version)
    .collect();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| TlsFailure::handshake(format!("TLS cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_client_cert_resolver(Arc::clone(&resolver) as _);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let (server_name, has_name) = server_name(name);
    config.enable_sni = parameters.server_name_indication && has_name;

    let connected = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(server_name, stream)
        .await;
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            return Err(match verifier.rejection() {
                Some(rejection) => rejection.into(),
                None if parameters.negotiation == SslNegotiation::Direct => TlsFailure {
                    hint: Some(TOO_OLD_FOR_DIRECT.to_owned()),
                    ..TlsFailure::handshake(describe(&error))
                },
                None => TlsFailure::handshake(describe(&error)),
            });
        }
    };
    let (_, session) = stream.get_ref();
    if parameters.negotiation == SslNegotiation::Direct && session.alpn_protocol() != Some(PROTOCOL) {
        return Err(TlsFailure {
            hint: Some(TOO_OLD_FOR_DIRECT.to_owned()),
            ..TlsFailure::handshake("the server did not confirm PostgreSQL's protocol for direct TLS")
        });
    }
    if parameters.certificate_mode == CertificateMode::Require && !resolver.was_sent() {
        return Err(TlsFailure::files(
            "sslcertmode=require, but no client certificate was exchanged",
            "name certificate and key with sslcert and sslkey; the server asks for one only with ssl_ca_file set",
        ));
    }
    let peer_certificates: Vec<Vec<u8>> = session
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.as_ref().to_vec())
        .collect();
    let facts = TlsFacts {
        protocol: match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => TlsVersion::V12.as_str().to_owned(),
            _ => TlsVersion::V13.as_str().to_owned(),
        },
        cipher: session
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str().map(str::to_owned))
            .unwrap_or_default(),
        verified_chain,
        verified_name,
        channel_bound: false,
        warnings: verifier.warnings(),
        peer_certificates,
    };
    for warning in &facts.warnings {
        tracing::warn!("{warning}");
    }
    let end_point = facts
        .peer_certificates
        .first()
        .and_then(|certificate| end_point::hash(certificate));
    Ok(Secured {
        stream,
        end_point,
        facts,
    })
}

/// What rustls needs for the SNI extension. A name that cannot be sent there is not sent: our verifier
/// compares with the name itself.
fn server_name(name: Option<&str>) -> (ServerName<'static>, bool) {
    match name.and_then(|name| ServerName::try_from(name.trim_end_matches('.').to_owned()).ok()) {
        Some(name @ ServerName::DnsName(_)) => (name, true),
        Some(name) => (name, false),
        None => (
            ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
            false,
        ),
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the server ended the connection during the TLS handshake".to_owned()
        }
        _ => format!("the TLS handshake failed: {error}"),
    }
}
