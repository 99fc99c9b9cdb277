//! Handing a resolved connection to PostgreSQL's own programs: through their environment, never through
//! their arguments, which every user of the machine can read.

use super::keyword::KEYWORDS;
use super::tls::{CertificateMode, RootCertificate, SslNegotiation, TlsVersion};
use super::{
    ChannelBinding, ConnectionParameters, Host, HostTarget, LoadBalanceHosts, PasswordLookup,
    TargetSessionAttributes,
};
use std::ffi::OsString;

impl ConnectionParameters {
    /// `PG*` variables for `pg_dump`, `psql` and the rest, `None` for those to remove from the child's
    /// environment: the child then resolves to exactly this connection, whatever the user's environment
    /// says. Keepalive settings have no variable and stay behind.
    ///
    /// The password goes by `PGPASSWORD`; where it comes from the password file and differs by host, by
    /// `PGPASSFILE`.
    pub fn client_environment(&self) -> Vec<(OsString, Option<OsString>)> {
        let mut set: Vec<(&str, OsString)> = vec![
            ("PGHOST", self.join_hosts(host_name)),
            ("PGPORT", self.join_hosts(|host| host.port.to_string())),
            ("PGUSER", self.user.clone().into()),
            ("PGDATABASE", self.database.clone().into()),
            ("PGSSLMODE", self.tls.mode.as_str().into()),
            ("PGGSSENCMODE", "disable".into()),
        ];
        if self
            .hosts
            .iter()
            .any(|host| matches!(host.target, HostTarget::Address { .. }))
        {
            set.push(("PGHOSTADDR", self.join_hosts(host_address)));
        }
        match self.hosts.as_slice() {
            [host] => {
                if let PasswordLookup::Found(password) = self.password_for(host) {
                    set.push(("PGPASSWORD", password.expose().into()));
                }
            }
            _ => {
                if let Some(password) = &self.password {
                    set.push(("PGPASSWORD", password.expose().into()));
                }
            }
        }
        if let Some(path) = self.consulted_password_file() {
            set.push(("PGPASSFILE", path.into()));
        }
        self.push_tls(&mut set);
        match self.channel_binding {
            ChannelBinding::Disable => set.push(("PGCHANNELBINDING", "disable".into())),
            ChannelBinding::Prefer => {}
            ChannelBinding::Require => set.push(("PGCHANNELBINDING", "require".into())),
        }
        if let Some(required) = &self.require_authentication {
            let words: Vec<String> = required
                .methods
                .iter()
                .map(|method| format!("{}{}", if required.negated { "!" } else { "" }, method.as_str()))
                .collect();
            set.push(("PGREQUIREAUTH", words.join(",").into()));
        }
        if let Some(peer) = &self.require_peer {
            set.push(("PGREQUIREPEER", peer.into()));
        }
        if self.target_session_attributes != TargetSessionAttributes::Any {
            set.push((
                "PGTARGETSESSIONATTRS",
                self.target_session_attributes.as_str().into(),
            ));
        }
        if self.load_balance_hosts == LoadBalanceHosts::Random {
            set.push(("PGLOADBALANCEHOSTS", "random".into()));
        }
        if let Some(timeout) = self.connect_timeout {
            set.push(("PGCONNECT_TIMEOUT", timeout.as_secs().max(1).to_string().into()));
        }
        if let Some(name) = &self.application_name {
            set.push(("PGAPPNAME", name.into()));
        }
        if let Some(options) = &self.options {
            set.push(("PGOPTIONS", options.into()));
        }
        let removed = KEYWORDS
            .iter()
            .filter_map(|keyword| keyword.variable)
            .chain(["PGREQUIRESSL"])
            .filter(|variable| !set.iter().any(|(name, _)| name == variable))
            .map(|variable| (OsString::from(variable), None))
            .collect::<Vec<_>>();
        set.into_iter()
            .map(|(name, value)| (name.into(), Some(value)))
            .chain(removed)
            .collect()
    }

    fn join_hosts(&self, part: impl Fn(&Host) -> String) -> OsString {
        self.hosts.iter().map(part).collect::<Vec<_>>().join(",").into()
    }

    fn push_tls(&self, set: &mut Vec<(&str, OsString)>) {
        match &self.tls.root_certificate {
            RootCertificate::File(path) => set.push(("PGSSLROOTCERT", path.into())),
            RootCertificate::System => set.push(("PGSSLROOTCERT", "system".into())),
            RootCertificate::None => {}
        }
        // A default file that does not exist would be an error if it were named.
        let certificate = self
            .tls
            .certificate
            .as_ref()
            .filter(|path| self.tls.certificate_is_explicit || path.exists());
        if let Some(path) = certificate {
            set.push(("PGSSLCERT", path.into()));
            if let Some(key) = &self.tls.key {
                set.push(("PGSSLKEY", key.into()));
            }
        }
        match self.tls.certificate_mode {
            CertificateMode::Allow => {}
            CertificateMode::Disable => set.push(("PGSSLCERTMODE", "disable".into())),
            CertificateMode::Require => set.push(("PGSSLCERTMODE", "require".into())),
        }
        if let Some(path) = &self.tls.revocation_list {
            set.push(("PGSSLCRL", path.into()));
        }
        if let Some(path) = &self.tls.revocation_directory {
            set.push(("PGSSLCRLDIR", path.into()));
        }
        if self.tls.negotiation == SslNegotiation::Direct {
            set.push(("PGSSLNEGOTIATION", "direct".into()));
        }
        if self.tls.minimum_version != TlsVersion::V12 {
            set.push((
                "PGSSLMINPROTOCOLVERSION",
                self.tls.minimum_version.as_str().into(),
            ));
        }
        if self.tls.maximum_version != TlsVersion::V13 {
            set.push((
                "PGSSLMAXPROTOCOLVERSION",
                self.tls.maximum_version.as_str().into(),
            ));
        }
        if !self.tls.server_name_indication {
            set.push(("PGSSLSNI", "0".into()));
        }
    }
}

fn host_name(host: &Host) -> String {
    match &host.target {
        HostTarget::Address { name, .. } => name.clone().unwrap_or_default(),
        _ => host.name(),
    }
}

fn host_address(host: &Host) -> String {
    match &host.target {
        HostTarget::Address { address, .. } => address.clone(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
