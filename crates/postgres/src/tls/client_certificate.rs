//! The client's own certificate and key.

use super::TlsFailure;
use super::files;
use crate::params::{CertificateMode, TlsParameters};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Certificate and key, `None` where there is none to send.
pub(super) fn load(parameters: &TlsParameters) -> Result<Option<Arc<CertifiedKey>>, TlsFailure> {
    let Some(path) = &parameters.certificate else {
        return Ok(None);
    };
    if parameters.certificate_mode == CertificateMode::Disable {
        return Ok(None);
    }
    // As in libpq a certificate file that does not exist means none, even where it was named.
    if !path.exists() {
        if parameters.certificate_is_explicit {
            tracing::warn!(
                "client certificate {} does not exist; none is sent",
                path.display()
            );
        }
        return Ok(None);
    }
    let chain = files::certificates(path, "client certificate")?;
    let key_path = parameters
        .key
        .as_deref()
        .filter(|key| key.exists())
        .ok_or_else(|| {
            TlsFailure::files(
                format!(
                    "client certificate {} has no private key beside it",
                    path.display()
                ),
                "name the key's file with sslkey (PGSSLKEY)",
            )
        })?;
    check_mode(key_path)?;
    let unusable = |reason: String| {
        TlsFailure::files(
            format!("private key {} cannot be used: {reason}", key_path.display()),
            "it must be an RSA, ECDSA or Ed25519 key in PEM form without a passphrase: openssl pkey -in client.key -out plain.key",
        )
    };
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| unusable(error.to_string()))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| unusable(error.to_string()))?;
    let certified = CertifiedKey::new(chain, key);
    // Certificates of X.509 version 1 cannot be compared here; the server will tell.
    if matches!(
        certified.keys_match(),
        Err(rustls::Error::InconsistentKeys(
            rustls::InconsistentKeys::KeyMismatch
        ))
    ) {
        return Err(TlsFailure::files(
            format!(
                "client certificate {} and private key {} do not belong together",
                path.display(),
                key_path.display()
            ),
            "name the certificate's own key with sslkey (PGSSLKEY)",
        ));
    }
    Ok(Some(Arc::new(certified)))
}

/// libpq's rule: nobody but the owner; a key of root may be readable by a group.
fn check_mode(path: &Path) -> Result<(), TlsFailure> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        TlsFailure::files(
            format!("private key {} cannot be read: {error}", path.display()),
            "make it readable for this user",
        )
    })?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if !metadata.is_file() || metadata.mode() & forbidden != 0 {
        return Err(TlsFailure::files(
            format!(
                "private key {} is not used: others may access it (mode {:04o})",
                path.display(),
                metadata.mode() & 0o7777
            ),
            format!("chmod 600 {}", path.display()),
        ));
    }
    Ok(())
}

/// Sends the certificate to every server that asks, whatever authorities it names, as libpq does.
#[derive(Debug)]
pub(super) struct Resolver {
    identity: Option<Arc<CertifiedKey>>,
    sent: AtomicBool,
}

impl Resolver {
    pub(super) fn new(identity: Option<Arc<CertifiedKey>>) -> Self {
        Self {
            identity,
            sent: AtomicBool::new(false),
        }
    }

    pub(super) fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.sent.store(self.identity.is_some(), Ordering::Relaxed);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}
