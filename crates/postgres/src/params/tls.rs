//! The part of the parameters that decides encryption.

use std::path::PathBuf;

/// How much encryption and proof of identity is wanted (PostgreSQL documentation, "SSL Mode
/// Descriptions").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS only if the server refuses a plain session.
    Allow,
    /// TLS if the server has it.
    #[default]
    Prefer,
    /// TLS or no connection.
    Require,
    /// And the certificate comes from a trusted authority.
    VerifyCa,
    /// And it names the host.
    VerifyFull,
}

impl SslMode {
    /// libpq's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Whether TLS is asked for in PostgreSQL's protocol or spoken from the first byte (servers 17 and newer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslNegotiation {
    /// Asked for.
    #[default]
    Postgres,
    /// From the first byte.
    Direct,
}

/// Where the trusted authorities are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificate {
    /// A file of PEM certificates. Where it does not exist, nothing is verified, or the connection is
    /// refused where the mode asks for verification.
    File(PathBuf),
    /// The operating system's (`sslrootcert=system`).
    System,
    /// No file given, and no home directory to look in.
    None,
}

/// Whether a client certificate is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CertificateMode {
    /// Never.
    Disable,
    /// When the server asks and there is one.
    #[default]
    Allow,
    /// The server must ask for it.
    Require,
}

/// A version of the TLS protocol. Older ones than 1.2 are not spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2
    V12,
    /// TLS 1.3
    V13,
}

impl TlsVersion {
    /// libpq's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V12 => "TLSv1.2",
            Self::V13 => "TLSv1.3",
        }
    }
}

/// Encryption and proof of identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsParameters {
    /// How much is wanted.
    pub mode: SslMode,
    /// How TLS begins.
    pub negotiation: SslNegotiation,
    /// Whom to trust.
    pub root_certificate: RootCertificate,
    /// The client's certificate. A default file need not exist.
    pub certificate: Option<PathBuf>,
    /// The client's key.
    pub key: Option<PathBuf>,
    /// Whether the certificate was named by the user, and so must exist.
    pub certificate_is_explicit: bool,
    /// Whether it is sent.
    pub certificate_mode: CertificateMode,
    /// Revoked certificates: a file, which must exist if it was named by the user.
    pub revocation_list: Option<PathBuf>,
    /// Revoked certificates: a directory of such files.
    pub revocation_directory: Option<PathBuf>,
    /// The oldest protocol accepted.
    pub minimum_version: TlsVersion,
    /// The newest protocol offered.
    pub maximum_version: TlsVersion,
    /// Whether the host's name is sent in clear at the start, so that proxies can route by it.
    pub server_name_indication: bool,
}
