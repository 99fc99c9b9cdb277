//! libpq's connection options: keyword, environment variable (PostgreSQL's `fe-connect.c`,
//! `PQconninfoOptions`), and a bag that holds their values while they are gathered.

use std::collections::BTreeMap;

/// One connection option.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keyword {
    pub(crate) name: &'static str,
    pub(crate) variable: Option<&'static str>,
}

const fn with(name: &'static str, variable: &'static str) -> Keyword {
    Keyword {
        name,
        variable: Some(variable),
    }
}

const fn without(name: &'static str) -> Keyword {
    Keyword { name, variable: None }
}

/// Every option that libpq of PostgreSQL 15 to 18 knows.
pub(crate) const KEYWORDS: &[Keyword] = &[
    with("service", "PGSERVICE"),
    with("servicefile", "PGSERVICEFILE"),
    with("user", "PGUSER"),
    with("password", "PGPASSWORD"),
    with("passfile", "PGPASSFILE"),
    with("channel_binding", "PGCHANNELBINDING"),
    with("connect_timeout", "PGCONNECT_TIMEOUT"),
    with("dbname", "PGDATABASE"),
    with("host", "PGHOST"),
    with("hostaddr", "PGHOSTADDR"),
    with("port", "PGPORT"),
    with("client_encoding", "PGCLIENTENCODING"),
    with("options", "PGOPTIONS"),
    with("application_name", "PGAPPNAME"),
    without("fallback_application_name"),
    without("keepalives"),
    without("keepalives_idle"),
    without("keepalives_interval"),
    without("keepalives_count"),
    without("tcp_user_timeout"),
    with("sslmode", "PGSSLMODE"),
    with("sslnegotiation", "PGSSLNEGOTIATION"),
    with("sslcompression", "PGSSLCOMPRESSION"),
    with("sslcert", "PGSSLCERT"),
    with("sslkey", "PGSSLKEY"),
    with("sslcertmode", "PGSSLCERTMODE"),
    without("sslpassword"),
    with("sslrootcert", "PGSSLROOTCERT"),
    with("sslcrl", "PGSSLCRL"),
    with("sslcrldir", "PGSSLCRLDIR"),
    with("sslsni", "PGSSLSNI"),
    without("sslkeylogfile"),
    with("requirepeer", "PGREQUIREPEER"),
    with("require_auth", "PGREQUIREAUTH"),
    with("min_protocol_version", "PGMINPROTOCOLVERSION"),
    with("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    with("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    with("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    with("gssencmode", "PGGSSENCMODE"),
    with("krbsrvname", "PGKRBSRVNAME"),
    with("gsslib", "PGGSSLIB"),
    with("gssdelegation", "PGGSSDELEGATION"),
    without("replication"),
    with("target_session_attrs", "PGTARGETSESSIONATTRS"),
    with("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    without("scram_client_key"),
    without("scram_server_key"),
    without("oauth_issuer"),
    without("oauth_client_id"),
    without("oauth_client_secret"),
    without("oauth_scope"),
];

/// The table's own spelling of a keyword, `None` for one that libpq does not know.
pub(crate) fn find(name: &str) -> Option<&'static str> {
    KEYWORDS
        .iter()
        .find(|keyword| keyword.name == name)
        .map(|keyword| keyword.name)
}

/// Values of connection options by keyword. May hold a password: no `Debug`.
#[derive(Clone, Default)]
pub(crate) struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// Sets a value over an earlier one.
    pub(crate) fn set(&mut self, keyword: &'static str, value: impl Into<String>) {
        self.0.insert(keyword, value.into());
    }

    /// Sets a value where there is none yet.
    pub(crate) fn set_if_absent(&mut self, keyword: &'static str, value: impl Into<String>) {
        self.0.entry(keyword).or_insert_with(|| value.into());
    }

    /// Forgets a value.
    pub(crate) fn remove(&mut self, keyword: &'static str) {
        self.0.remove(keyword);
    }

    /// Takes over all values of `other`, which win.
    pub(crate) fn override_with(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The value, `Some("")` where one was given and is empty.
    pub(crate) fn get(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(String::as_str)
    }

    /// The value, `None` also where it is empty: for most options empty means "the default".
    pub(crate) fn nonempty(&self, keyword: &str) -> Option<&str> {
        self.get(keyword).filter(|value| !value.is_empty())
    }

    #[cfg(test)]
    pub(crate) fn pairs(&self) -> Vec<(&'static str, &str)> {
        self.0
            .iter()
            .map(|(keyword, value)| (*keyword, value.as_str()))
            .collect()
    }
}
