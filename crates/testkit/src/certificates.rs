//! Certificates of every kind a server or a client may show.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};

const DAY: Duration = Duration::from_hours(24);

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    from: SystemTime,
    until: SystemTime,
}

impl Validity {
    /// Valid since yesterday, for this long from now.
    pub fn ends_in(remaining: Duration) -> Self {
        let now = SystemTime::now();
        Self {
            from: now - DAY,
            until: now + remaining,
        }
    }

    /// Valid since long ago, ended this long ago.
    pub fn ended(ago: Duration) -> Self {
        let until = SystemTime::now() - ago;
        Self {
            from: until - 365 * DAY,
            until,
        }
    }

    /// Not valid yet: begins in this long.
    pub fn begins_in(delay: Duration) -> Self {
        let from = SystemTime::now() + delay;
        Self {
            from,
            until: from + 365 * DAY,
        }
    }
}

impl Default for Validity {
    /// A year from now.
    fn default() -> Self {
        Self::ends_in(365 * DAY)
    }
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS #8).
    pub key: String,
}

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// An authority of this common name, valid for a year.
    pub fn new(common_name: &str) -> Self {
        let mut parameters = parameters(common_name, &[], Validity::default());
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(parameters, key()).expect("the parameters are complete");
        Self { issuer }
    }

    /// The authority's own certificate (PEM): what `sslrootcert` wants.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A server's certificate. `names` are its subject alternative names: addresses or host names.
    pub fn server(&self, common_name: &str, names: &[&str], validity: Validity) -> Issued {
        self.issue(common_name, names, validity, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate: the common name is the database user's.
    pub fn client(&self, common_name: &str) -> Issued {
        self.issue(
            common_name,
            &[],
            Validity::default(),
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    }

    fn issue(
        &self,
        common_name: &str,
        names: &[&str],
        validity: Validity,
        usage: ExtendedKeyUsagePurpose,
    ) -> Issued {
        let key = key();
        let mut parameters = parameters(common_name, names, validity);
        parameters.extended_key_usages = vec![usage];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters
            .signed_by(&key, &self.issuer)
            .expect("the parameters are complete");
        Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A certificate signed by its own key, as `openssl req -x509` makes it: with no names but the common
/// name where `names` is empty.
pub fn self_signed(common_name: &str, names: &[&str], validity: Validity) -> Issued {
    let key = key();
    let certificate = parameters(common_name, names, validity)
        .self_signed(&key)
        .expect("complete");
    Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

/// A self-signed certificate that is marked as an authority (`openssl req -x509` sets `CA:TRUE`) and
/// served as a server's.
pub fn self_signed_authority(common_name: &str, names: &[&str], validity: Validity) -> Issued {
    let key = key();
    let mut parameters = parameters(common_name, names, validity);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).expect("the parameters are complete");
    Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("the system gives random bytes")
}

fn parameters(common_name: &str, names: &[&str], validity: Validity) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).expect("the names are addresses or host names");
    parameters.distinguished_name = DistinguishedName::new();
    parameters
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + since_epoch(validity.from);
    parameters.not_after = epoch + since_epoch(validity.until);
    parameters
}

/// Whole seconds: X.509 knows no smaller ones.
fn since_epoch(time: SystemTime) -> Duration {
    Duration::from_secs(time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Major, Postgres};

    fn psql(server: &Postgres, conninfo: &str) -> Result<(), String> {
        let output = server
            .client_command("psql", "postgres")
            .args([
                "-X",
                "-d",
                &format!("host=127.0.0.1 {conninfo}"),
                "-c",
                "SELECT 1",
            ])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into())
        }
    }

    #[tokio::test]
    async fn a_server_shows_its_certificate_and_a_client_may_have_to() {
        let authority = Authority::new("testkit CA");
        let issued = authority.server("db", &["127.0.0.1"], Validity::ends_in(DAY));
        let server = Postgres::builder(Major::V15)
            .tls(&issued.certificate, &issued.key)
            .client_authority(&authority.certificate())
            .hba("hostssl all alice 127.0.0.1/32 cert")
            .start()
            .await;
        server.sql("postgres", "CREATE ROLE alice LOGIN").await;
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&path, mode).unwrap();
            path.display().to_string()
        };
        let trusted = format!(
            "sslmode=verify-full sslrootcert={}",
            write("ca", &authority.certificate())
        );
        psql(&server, &trusted).unwrap();
        let alice = authority.client("alice");
        let shown = format!(
            "sslcert={} sslkey={}",
            write("crt", &alice.certificate),
            write("key", &alice.key)
        );
        psql(&server, &format!("{trusted} user=alice {shown}")).unwrap();
        assert!(psql(&server, &format!("{trusted} user=alice")).is_err());
        let other = Authority::new("somebody else");
        let distrusted = format!(
            "sslmode=verify-ca sslrootcert={}",
            write("other", &other.certificate())
        );
        assert!(
            psql(&server, &distrusted)
                .unwrap_err()
                .contains("certificate verify failed")
        );
    }
}
