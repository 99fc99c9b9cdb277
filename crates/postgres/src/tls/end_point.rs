//! The hash of a server's certificate that SCRAM binds to: `tls-server-end-point` (RFC 5929, section 4.1).

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// The hash by the algorithm of the certificate's signature, with MD5 and SHA-1 replaced by SHA-256.
/// `None` where the signature uses no single hash (Ed25519), for which the binding is not defined.
pub(super) fn hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = algorithm(&parsed)?;
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

fn algorithm(certificate: &X509Certificate<'_>) -> Option<&'static Algorithm> {
    let oid = certificate.signature_algorithm.algorithm.to_id_string();
    by_signature(&oid).or_else(|| {
        match SignatureAlgorithm::try_from(&certificate.signature_algorithm).ok()? {
            SignatureAlgorithm::RSASSA_PSS(parameters) => {
                by_hash(&parameters.hash_algorithm_oid().to_id_string())
            }
            _ => None,
        }
    })
}

/// Signature algorithms that name their hash: RSA with PKCS #1 (RFC 8017), ECDSA (RFC 5758).
fn by_signature(oid: &str) -> Option<&'static Algorithm> {
    match oid {
        // md5, sha1 and sha256 with RSA; sha1 and sha256 with ECDSA
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(&SHA256),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(&SHA384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(&SHA512),
        _ => None,
    }
}

fn by_hash(oid: &str) -> Option<&'static Algorithm> {
    match oid {
        "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(&SHA256),
        "2.16.840.1.101.3.4.2.2" => Some(&SHA384),
        "2.16.840.1.101.3.4.2.3" => Some(&SHA512),
        _ => None,
    }
}
