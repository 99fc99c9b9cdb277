//! Root certificates and revocation lists from their files.

use super::TlsFailure;
use crate::params::{RootCertificate, SslMode, TlsParameters};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::path::{Path, PathBuf};

/// Whom to trust, and whom no longer.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
    /// The file, `None` for the operating system's list.
    pub(super) file: Option<PathBuf>,
}

/// `None` where nothing is verified: no file, and a mode that allows that.
pub(super) fn trust(parameters: &TlsParameters) -> Result<Option<Trust>, TlsFailure> {
    let (roots, file) = match &parameters.root_certificate {
        RootCertificate::System => {
            let loaded = rustls_native_certs::load_native_certs();
            if loaded.certs.is_empty() {
                return Err(TlsFailure::files(
                    "sslrootcert=system, but the operating system has no list of trusted authorities",
                    "install it: apt-get install ca-certificates",
                ));
            }
            (loaded.certs, None)
        }
        RootCertificate::File(path) if path.exists() => {
            (certificates(path, "root certificate file")?, Some(path.clone()))
        }
        other if parameters.mode >= SslMode::VerifyCa => {
            let what = match other {
                RootCertificate::File(path) => {
                    format!("root certificate file {} does not exist", path.display())
                }
                _ => "there is no root certificate file, for there is no home directory".to_owned(),
            };
            return Err(TlsFailure::files(
                format!("{what}, and sslmode is {}", parameters.mode.as_str()),
                "name the file with the authority's certificate (sslrootcert=/path/to/root.crt), or trust the operating system's list with sslrootcert=system and sslmode=verify-full",
            ));
        }
        _ => return Ok(None),
    };
    Ok(Some(Trust {
        roots,
        revoked: revocation_lists(parameters)?,
        file,
    }))
}

/// All certificates of a PEM file, at least one.
pub(super) fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, TlsFailure> {
    let unusable = |reason: String| {
        TlsFailure::files(
            format!("{what} {} cannot be used: {reason}", path.display()),
            format!(
                "it must hold certificates in PEM form; see with: openssl x509 -noout -text -in {}",
                path.display()
            ),
        )
    };
    let bytes = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let found = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    if found.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(found)
}

fn revocation_lists(
    parameters: &TlsParameters,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsFailure> {
    let mut paths: Vec<PathBuf> = parameters.revocation_list.iter().cloned().collect();
    if let Some(directory) = &parameters.revocation_directory {
        let entries = std::fs::read_dir(directory).map_err(|error| {
            TlsFailure::files(
                format!(
                    "directory of revocation lists {} cannot be read: {error}",
                    directory.display()
                ),
                "correct sslcrldir (PGSSLCRLDIR)",
            )
        })?;
        paths.extend(
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_file()),
        );
    }
    let mut lists = Vec::new();
    for path in paths {
        let unusable = |reason: String| {
            TlsFailure::files(
                format!("revocation list {} cannot be used: {reason}", path.display()),
                "it must hold revocation lists in PEM form; correct sslcrl (PGSSLCRL)",
            )
        };
        let bytes = std::fs::read(&path).map_err(|error| unusable(error.to_string()))?;
        for list in CertificateRevocationListDer::pem_slice_iter(&bytes) {
            lists.push(list.map_err(|error| unusable(error.to_string()))?);
        }
    }
    Ok(lists)
}
