//! Verifying a chain that webpki does not look at: version 1 certificates, and an authority's certificate
//! used as the server's own. Stricter than OpenSSL wherever the two could differ: name constraints,
//! policies and unknown critical extensions are refused rather than interpreted.

use super::rejection::Rejection;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Version;

/// The most certificates between the server's own and a root.
const LONGEST_CHAIN: usize = 6;

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

/// What is needed to judge.
pub(super) struct Judge<'a> {
    pub(super) roots: &'a [CertificateDer<'static>],
    pub(super) algorithms: Algorithms,
    /// Seconds since 1970.
    pub(super) now: i64,
}

impl Judge<'_> {
    pub(super) fn verify(&self, leaf: &[u8], others: &[CertificateDer<'_>]) -> Result<(), Rejection> {
        let parsed = parse(leaf)?;
        self.check_validity(&parsed)?;
        check_extensions(&parsed)?;
        check_purpose(&parsed)?;
        if self.roots.iter().any(|root| root.as_ref() == leaf) {
            return self.check_signature(&parsed, &parsed);
        }
        self.climb(&parsed, others, 0)
    }

    /// Looks for an issuer among the roots, then among what the server sent.
    fn climb(
        &self,
        certificate: &X509Certificate<'_>,
        others: &[CertificateDer<'_>],
        depth: usize,
    ) -> Result<(), Rejection> {
        let mut reason = Rejection::UnknownAuthority { roots: None };
        for (issuer, is_root) in self
            .roots
            .iter()
            .map(|root| (root.as_ref(), true))
            .chain(others.iter().map(|other| (other.as_ref(), false)))
        {
            let Ok(issuer) = parse(issuer) else { continue };
            if issuer.subject().as_raw() != certificate.issuer().as_raw() {
                continue;
            }
            let step = self
                .check_signature(certificate, &issuer)
                .and_then(|()| self.check_validity(&issuer))
                .and_then(|()| check_extensions(&issuer))
                .and_then(|()| check_authority(&issuer, is_root, depth));
            let outcome = match step {
                Ok(()) if is_root => return Ok(()),
                Ok(()) if depth < LONGEST_CHAIN => self.climb(&issuer, others, depth + 1),
                Ok(()) => continue,
                Err(rejection) => Err(rejection),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(Rejection::UnknownAuthority { .. }) => {}
                Err(rejection) => reason = rejection,
            }
        }
        Err(reason)
    }

    fn check_validity(&self, certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
        let validity = certificate.validity();
        if self.now > validity.not_after.timestamp() {
            return Err(Rejection::Expired(date(validity.not_after.timestamp())));
        }
        if self.now < validity.not_before.timestamp() {
            return Err(Rejection::NotYetValid(date(validity.not_before.timestamp())));
        }
        Ok(())
    }

    fn check_signature(
        &self,
        certificate: &X509Certificate<'_>,
        issuer: &X509Certificate<'_>,
    ) -> Result<(), Rejection> {
        let unusable = || Rejection::Unusable("its encoding is broken".to_owned());
        let signature_id = signature_algorithm(certificate.as_raw()).ok_or_else(unusable)?;
        // The signed part must name the same algorithm (RFC 5280, section 4.1.1.2), and a signature is whole
        // bytes.
        if certificate.signature_algorithm != certificate.tbs_certificate.signature
            || certificate.signature_value.unused_bits != 0
        {
            return Err(unusable());
        }
        verify_signature(
            self.algorithms
                .iter()
                .copied()
                .filter(|algorithm| algorithm.signature_alg_id().as_ref() == signature_id),
            issuer.public_key().raw,
            certificate.tbs_certificate.as_ref(),
            certificate.signature_value.data.as_ref(),
        )
    }
}

/// Checks a signature by the first algorithm that fits the key.
pub(super) fn verify_signature(
    algorithms: impl Iterator<Item = &'static dyn SignatureVerificationAlgorithm>,
    public_key_info: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), Rejection> {
    let (key_id, key) = split_key(public_key_info)
        .ok_or_else(|| Rejection::Unusable("its public key's encoding is broken".to_owned()))?;
    let mut fitting = algorithms
        .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == key_id)
        .peekable();
    if fitting.peek().is_none() {
        return Err(Rejection::Unusable(
            "its kind of key or signature is not supported".to_owned(),
        ));
    }
    if fitting.any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok()) {
        Ok(())
    } else {
        Err(Rejection::WrongSignature)
    }
}

pub(super) fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, Rejection> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(Rejection::Unusable("bytes follow its end".to_owned())),
        Err(_) => Err(Rejection::Unusable("its encoding is broken".to_owned())),
    }
}

pub(super) fn date(timestamp: i64) -> String {
    jiff::Timestamp::from_second(timestamp).map_or_else(
        |_| timestamp.to_string(),
        |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    let refuse = |what: &str| Err(Rejection::Unusable(what.to_owned()));
    if certificate.extensions_map().is_err() {
        return refuse("it has an extension twice");
    }
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::ParseError { .. } => return refuse("an extension cannot be read"),
            ParsedExtension::NameConstraints(_) => {
                return refuse(
                    "name constraints together with an unusual server certificate are not supported",
                );
            }
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => {}
            _ if extension.critical => return refuse("it has a critical extension that is not supported"),
            _ => {}
        }
    }
    Ok(())
}

/// What OpenSSL asks of a TLS server's certificate (`v3_purp.c`, `check_purpose_ssl_server`).
fn check_purpose(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    if let Ok(Some(usage)) = certificate.extended_key_usage()
        && !(usage.value.server_auth || usage.value.any)
    {
        return Err(Rejection::WrongPurpose);
    }
    if let Ok(Some(usage)) = certificate.key_usage()
        && !(usage.value.digital_signature() || usage.value.key_encipherment() || usage.value.key_agreement())
    {
        return Err(Rejection::WrongPurpose);
    }
    Ok(())
}

fn check_authority(certificate: &X509Certificate<'_>, is_root: bool, depth: usize) -> Result<(), Rejection> {
    let no_authority = || Rejection::Unusable("a certificate that is no authority's signed it".to_owned());
    match certificate.basic_constraints().ok().flatten() {
        Some(constraints) => {
            let allowed = constraints.value.path_len_constraint;
            if !constraints.value.ca || allowed.is_some_and(|allowed| depth > allowed as usize) {
                return Err(no_authority());
            }
        }
        // Version 1 has no way to say it; only where the user trusts the certificate itself.
        None if is_root && certificate.version() == X509Version::V1 => {}
        None => return Err(no_authority()),
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => Err(no_authority()),
        _ => Ok(()),
    }
}

/// The content of a certificate's `signatureAlgorithm`, as it stands in the bytes.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (_, content, _) = element(certificate)?;
    let (_, _, rest) = element(content)?;
    let (0x30, algorithm, _) = element(rest)? else {
        return None;
    };
    Some(algorithm)
}

/// The content of the algorithm identifier, and the key's bits.
fn split_key(public_key_info: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, content, _) = element(public_key_info)?;
    let (0x30, algorithm, rest) = element(content)? else {
        return None;
    };
    let (0x03, bits, _) = element(rest)? else {
        return None;
    };
    // The first byte counts unused bits, of which keys have none.
    let key = bits.strip_prefix(&[0])?;
    Some((algorithm, key))
}

/// One DER element: its tag, its content, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        let (digits, rest) = rest.split_at(count);
        (
            digits
                .iter()
                .fold(0usize, |length, digit| length << 8 | usize::from(*digit)),
            rest,
        )
    };
    (rest.len() >= length).then(|| (tag, &rest[..length], &rest[length..]))
}

#[cfg(test)]
mod tests;
