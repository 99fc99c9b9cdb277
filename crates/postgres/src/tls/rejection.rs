//! Why a server's certificate is not accepted.

use std::path::PathBuf;

/// The reason, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error("the server's certificate is signed by no authority in {}", place(.roots.as_ref()))]
    UnknownAuthority { roots: Option<PathBuf> },
    #[error("the server's certificate expired on {0}")]
    Expired(String),
    #[error("the server's certificate is not valid before {0}")]
    NotYetValid(String),
    #[error("the server's certificate is for {}, not for host \"{wanted}\"", list(.presented))]
    WrongName { wanted: String, presented: Vec<String> },
    #[error("sslmode=verify-full needs a host name, and only an address was given")]
    NoName,
    #[error("the server's certificate is revoked")]
    Revoked,
    #[error("whether the server's certificate is revoked cannot be told: {0}")]
    RevocationUnknown(String),
    #[error("the server's certificate may not be used for servers")]
    WrongPurpose,
    #[error("the server's certificate carries a wrong signature")]
    WrongSignature,
    #[error("the server's certificate cannot be used: {0}")]
    Unusable(String),
}

fn place(roots: Option<&PathBuf>) -> String {
    match roots {
        Some(path) => path.display().to_string(),
        None => "the operating system's list".to_owned(),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "no name at all".to_owned()
    } else {
        names
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Rejection {
    pub(super) fn hint(&self) -> String {
        match self {
            Self::UnknownAuthority { roots: Some(path) } => format!(
                "put the certificate of the authority that signed the server's into {}, or name its file with sslrootcert",
                path.display()
            ),
            Self::UnknownAuthority { roots: None } => {
                "name the file with the authority's certificate: sslrootcert=/path/to/root.crt".to_owned()
            }
            Self::Expired(_) => {
                "give the server a new certificate and reload it; see its dates with: openssl x509 -noout -dates -in server.crt"
                    .to_owned()
            }
            Self::NotYetValid(_) => "compare the clocks of this machine and of the server's authority".to_owned(),
            Self::WrongName { .. } => {
                "connect by a name that the certificate has, or issue one with this name as subjectAltName; sslmode=verify-ca leaves the name unchecked"
                    .to_owned()
            }
            Self::NoName => "give the name with -h beside hostaddr, or use sslmode=verify-ca".to_owned(),
            Self::Revoked => "give the server a new certificate".to_owned(),
            Self::RevocationUnknown(_) => "renew the revocation list named by sslcrl or sslcrldir".to_owned(),
            Self::WrongPurpose => {
                "issue a certificate with extendedKeyUsage=serverAuth for the server".to_owned()
            }
            Self::WrongSignature | Self::Unusable(_) => {
                "look at the certificate with: openssl s_client -starttls postgres -connect HOST:PORT".to_owned()
            }
        }
    }
}
