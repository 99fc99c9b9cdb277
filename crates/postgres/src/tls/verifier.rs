//! The verifier that rustls asks during the handshake.

use super::TlsFailure;
use super::chain::{self, Judge};
use super::files::Trust;
use super::name::{self, Verdict};
use super::rejection::Rejection;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use x509_parser::x509::X509Version;

/// Keeps what it found, for rustls passes on neither reasons in words nor warnings.
#[derive(Debug)]
pub(super) struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    trust: Option<Trusted>,
    /// What the certificate must name; empty where no name is known.
    name: Option<String>,
    found: Mutex<Found>,
}

#[derive(Debug)]
struct Trusted {
    roots: Vec<CertificateDer<'static>>,
    file: Option<PathBuf>,
    /// `None` where webpki understands none of the roots.
    webpki: Option<Arc<WebPkiServerVerifier>>,
    checks_revocation: bool,
}

#[derive(Debug, Default)]
struct Found {
    rejection: Option<Rejection>,
    warnings: Vec<String>,
}

impl Verifier {
    pub(super) fn new(
        provider: &Arc<CryptoProvider>,
        trust: Option<Trust>,
        name: Option<String>,
    ) -> Result<Self, TlsFailure> {
        Ok(Self {
            algorithms: provider.signature_verification_algorithms,
            trust: trust.map(|trust| trusted(provider, trust)).transpose()?,
            name,
            found: Mutex::default(),
        })
    }

    pub(super) fn rejection(&self) -> Option<Rejection> {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .rejection
            .clone()
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .warnings
            .clone()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<String>, Rejection> {
        let mut warnings = Vec::new();
        if let Some(trust) = &self.trust {
            trust.check_chain(self.algorithms, leaf, others, now)?;
            let parsed = chain::parse(leaf)?;
            if parsed.is_ca() {
                warnings.push(
                    "the server uses an authority's certificate as its own; issue one for the server alone"
                        .to_owned(),
                );
            }
            if parsed.version() == X509Version::V1 {
                warnings.push(
                    "the server's certificate is of X.509 version 1, which has no extensions".to_owned(),
                );
            }
        }
        if let Some(host) = &self.name {
            if host.is_empty() {
                return Err(Rejection::NoName);
            }
            match name::check(&chain::parse(leaf)?, host) {
                Verdict::AlternativeName => {}
                Verdict::CommonName => warnings.push(format!(
                    "the server's certificate names \"{host}\" only in its common name; other clients want a subjectAltName"
                )),
                Verdict::Mismatch(presented) => {
                    return Err(Rejection::WrongName { wanted: host.clone(), presented });
                }
            }
        }
        Ok(warnings)
    }

    /// Signatures of the handshake itself. rustls' own functions would parse the certificate as webpki
    /// does, and so refuse version 1.
    fn check_handshake(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        only_first: bool,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme)
            .map(|(_, algorithms)| *algorithms)
            .ok_or(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        // In TLS 1.3 a scheme stands for exactly one algorithm, curve included.
        let algorithms = if only_first {
            &algorithms[..algorithms.len().min(1)]
        } else {
            algorithms
        };
        let outcome = chain::parse(certificate).and_then(|parsed| {
            chain::verify_signature(
                algorithms.iter().copied(),
                parsed.public_key().raw,
                message,
                signed.signature(),
            )
        });
        match outcome {
            Ok(()) => Ok(HandshakeSignatureValid::assertion()),
            Err(rejection) => Err(self.reject(rejection)),
        }
    }

    fn reject(&self, rejection: Rejection) -> rustls::Error {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .rejection = Some(rejection);
        CertificateError::ApplicationVerificationFailure.into()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.judge(leaf, others, now) {
            Ok(warnings) => {
                self.found.lock().unwrap_or_else(PoisonError::into_inner).warnings = warnings;
                Ok(ServerCertVerified::assertion())
            }
            Err(rejection) => Err(self.reject(rejection)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_handshake(message, certificate, signed, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if is_forbidden_in_tls13(signed.scheme) {
            return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        self.check_handshake(message, certificate, signed, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// RFC 8446, section 4.2.3: PKCS #1 padding and SHA-1 sign certificates at most, never a handshake.
fn is_forbidden_in_tls13(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::RSA_PKCS1_SHA1
            | SignatureScheme::RSA_PKCS1_SHA256
            | SignatureScheme::RSA_PKCS1_SHA384
            | SignatureScheme::RSA_PKCS1_SHA512
            | SignatureScheme::ECDSA_SHA1_Legacy
    )
}

fn trusted(provider: &Arc<CryptoProvider>, trust: Trust) -> Result<Trusted, TlsFailure> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(trust.roots.iter().cloned());
    let checks_revocation = !trust.revoked.is_empty();
    let webpki = if store.is_empty() {
        None
    } else {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
            .with_crls(trust.revoked);
        let builder = if checks_revocation {
            builder.enforce_revocation_expiration()
        } else {
            builder
        };
        Some(builder.build().map_err(|error| {
            TlsFailure::files(
                format!("the revocation lists cannot be used: {error}"),
                "correct sslcrl (PGSSLCRL) or sslcrldir (PGSSLCRLDIR)",
            )
        })?)
    };
    Ok(Trusted {
        roots: trust.roots,
        file: trust.file,
        webpki,
        checks_revocation,
    })
}

impl Trusted {
    fn check_chain(
        &self,
        algorithms: WebPkiSupportedAlgorithms,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Rejection> {
        // The name is checked apart from this: any will do.
        let any_name = ServerName::try_from("any.invalid").expect("a valid name");
        let outcome = match &self.webpki {
            Some(webpki) => webpki
                .verify_server_cert(leaf, others, &any_name, &[], now)
                .map(|_| ()),
            None => Err(CertificateError::BadEncoding.into()),
        };
        let error = match outcome {
            Ok(()) => return Ok(()),
            Err(rustls::Error::InvalidCertificate(error)) => error,
            Err(error) => return Err(Rejection::Unusable(error.to_string())),
        };
        let second = |rejection: Rejection| self.with_file(rejection);
        Err(match error {
            // The chain is right; the name does not count here.
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                return Ok(());
            }
            CertificateError::Other(_) | CertificateError::BadEncoding => {
                if self.checks_revocation {
                    return Err(Rejection::RevocationUnknown(
                        "with a revocation list, certificates of X.509 version 1 and authorities as servers are refused".to_owned(),
                    ));
                }
                let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                let judge = Judge {
                    roots: &self.roots,
                    algorithms: algorithms.all,
                    now,
                };
                return judge.verify(leaf, others).map_err(second);
            }
            CertificateError::UnknownIssuer => second(Rejection::UnknownAuthority { roots: None }),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Rejection::Expired(validity(leaf, |validity| validity.not_after.timestamp()))
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Rejection::NotYetValid(validity(leaf, |validity| validity.not_before.timestamp()))
            }
            CertificateError::Revoked => Rejection::Revoked,
            CertificateError::UnknownRevocationStatus => {
                Rejection::RevocationUnknown("no list of its authority is there".to_owned())
            }
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => {
                Rejection::RevocationUnknown("the list of its authority is out of date".to_owned())
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Rejection::WrongPurpose
            }
            CertificateError::BadSignature => Rejection::WrongSignature,
            other => Rejection::Unusable(other.to_string()),
        })
    }

    fn with_file(&self, rejection: Rejection) -> Rejection {
        match rejection {
            Rejection::UnknownAuthority { .. } => Rejection::UnknownAuthority {
                roots: self.file.clone(),
            },
            other => other,
        }
    }
}

/// The end of the leaf's own validity; an authority above it may be the one that expired.
fn validity(leaf: &[u8], end: impl Fn(&x509_parser::certificate::Validity) -> i64) -> String {
    chain::parse(leaf).map_or_else(
        |_| "an unknown date".to_owned(),
        |parsed| chain::date(end(parsed.validity())),
    )
}
