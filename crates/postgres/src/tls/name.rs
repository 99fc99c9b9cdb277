//! Whether a certificate names a host, by libpq's rules (`fe-secure-common.c`,
//! `pq_verify_peer_name_matches_certificate_name`; `fe-secure-openssl.c`,
//! `pgtls_verify_peer_name_matches_certificate_guts`).

use std::net::IpAddr;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// How a certificate's names relate to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One of the alternative names matches.
    AlternativeName,
    /// Only the common name matches, which web clients no longer look at.
    CommonName,
    /// None matches; the names that the certificate has.
    Mismatch(Vec<String>),
}

pub(super) fn check(certificate: &X509Certificate<'_>, host: &str) -> Verdict {
    let address: Option<IpAddr> = host.parse().ok();
    let mut presented = Vec::new();
    // A name of the host's own kind forbids falling back to the common name.
    let mut same_kind = false;
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(pattern) => {
                    same_kind |= address.is_none();
                    if matches(pattern, host) {
                        return Verdict::AlternativeName;
                    }
                    presented.push((*pattern).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    same_kind |= address.is_some();
                    let named = address_of(bytes);
                    if named.is_some() && named == address {
                        return Verdict::AlternativeName;
                    }
                    presented.extend(named.map(|named| named.to_string()));
                }
                _ => {}
            }
        }
    }
    let common_name = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok());
    if let Some(common_name) = common_name.filter(|_| !same_kind) {
        if matches(common_name, host) {
            return Verdict::CommonName;
        }
        presented.push(common_name.to_owned());
    }
    Verdict::Mismatch(presented)
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Case does not matter. A wildcard stands for exactly one label, the first.
fn matches(pattern: &str, host: &str) -> bool {
    if pattern.contains('\0') || host.is_empty() {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(suffix) = pattern
        .strip_prefix('*')
        .filter(|suffix| suffix.len() > 1 && suffix.starts_with('.'))
    else {
        return false;
    };
    host.len() > suffix.len() && host.is_char_boundary(host.len() - suffix.len()) && {
        let (label, rest) = host.split_at(host.len() - suffix.len());
        rest.eq_ignore_ascii_case(suffix) && !label.contains('.')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label() {
        for (pattern, host, expected) in [
            ("db.example.org", "DB.example.ORG", true),
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "a.db.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("*", "db", false),
            ("*.", "db.", false),
            ("d*.example.org", "db.example.org", false),
            ("db.example.org\0.evil.org", "db.example.org", false),
            ("", "", false),
        ] {
            assert_eq!(matches(pattern, host), expected, "{pattern} for {host}");
        }
    }
}
