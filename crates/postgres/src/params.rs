//! Where to connect and how: libpq's rules, resolved once into a value that says everything.
//!
//! Precedence, as libpq and psql have it: a connection string given as the database name (`-d`), then the
//! options, then `--dsn`, then the service file, then `PG*` variables, then the defaults. The password
//! file is read when a connection is made, for its lines depend on host and database.
//!
//! Left out: GSSAPI (authentication and encryption), Kerberos, LDAP service lookup, OAuth, passphrases of
//! client keys, TLS key logs; the session always speaks UTF-8, and `PGTZ`, `PGDATESTYLE` and `PGGEQO` are
//! not passed on. Options that would weaken security if they were ignored are refused.

mod client_environment;
mod conninfo;
mod environment;
mod error;
mod keyword;
mod passfile;
mod resolve;
mod service;
mod tls;

pub use environment::Environment;
pub(crate) use environment::account_name;
pub use error::ParameterError;
pub use passfile::{IgnoredPasswordFile, PasswordLookup};
pub use tls::{CertificateMode, RootCertificate, SslMode, SslNegotiation, TlsParameters, TlsVersion};

use pgmahout_config::Secret;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the user gave on the command line; libpq's rules fill the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// `--dsn`: a URI or `key=value` pairs. The other options win over it.
    pub dsn: Option<String>,
    /// `-h`: host name, address or socket directory, or a list of them.
    pub host: Option<String>,
    /// `-p`: port, or a list of ports.
    pub port: Option<String>,
    /// `-U`.
    pub user: Option<String>,
    /// `-d`: a database name, or a connection string, which then wins over all other options as in psql.
    pub database: Option<String>,
    /// A section of the service file.
    pub service: Option<String>,
}

/// One place where a server may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// Name, directory or address.
    pub target: HostTarget,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
}

/// How a host is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostTarget {
    /// The directory of a Unix socket, or `@name` for an abstract one.
    Socket(PathBuf),
    /// A name to be looked up, or an address in text form.
    Name(String),
    /// A network address that needs no lookup, with the name for certificates and the password file.
    Address {
        /// What certificate and password file are checked for, where one was given.
        name: Option<String>,
        /// The address.
        address: String,
    },
}

impl Host {
    /// Name, address or directory, as libpq uses it for certificates and the password file.
    pub fn name(&self) -> String {
        match &self.target {
            HostTarget::Socket(directory) => directory.display().to_string(),
            HostTarget::Name(name) => name.clone(),
            HostTarget::Address { name, address } => name.clone().unwrap_or_else(|| address.clone()),
        }
    }

    /// The socket's path: `DIRECTORY/.s.PGSQL.PORT` (`pqcomm.h`, `UNIXSOCK_PATH`).
    pub fn socket_path(&self) -> Option<PathBuf> {
        match &self.target {
            HostTarget::Socket(directory) => {
                let mut path = directory.clone().into_os_string();
                path.push(format!("/.s.PGSQL.{}", self.port));
                Some(path.into())
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Host {
    /// `db.example.org:5432`, `[::1]:5432`, `/run/postgresql:5432`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.name();
        if name.contains(':') && !name.starts_with(['/', '@']) {
            write!(formatter, "[{name}]:{}", self.port)
        } else {
            write!(formatter, "{name}:{}", self.port)
        }
    }
}

/// Whether the SCRAM exchange is bound to the TLS channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where TLS and server allow it.
    #[default]
    Prefer,
    /// Or no connection.
    Require,
}

/// What kind of session is wanted when several hosts are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetSessionAttributes {
    /// Any.
    #[default]
    Any,
    /// Transactions can write by default.
    ReadWrite,
    /// Transactions cannot write by default.
    ReadOnly,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery if there is one, else any.
    PreferStandby,
}

impl TargetSessionAttributes {
    /// libpq's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }
}

/// In which order hosts and their addresses are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadBalanceHosts {
    /// As given.
    #[default]
    Disable,
    /// Shuffled for each connection.
    Random,
}

/// Probes that find a peer which vanished. `None`: the operating system's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepalives {
    /// Whether probes are sent at all.
    pub enabled: bool,
    /// Idle time before the first probe.
    pub idle: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Lost probes until the connection counts as dead.
    pub count: Option<u32>,
    /// How long sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

/// Authentication methods that are acceptable: libpq's `require_auth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequireAuthentication {
    /// The methods named.
    pub methods: Vec<AuthenticationMethod>,
    /// Whether the named ones are the forbidden ones (`!md5`) rather than the allowed ones.
    pub negated: bool,
}

impl RequireAuthentication {
    /// Whether the method may be used.
    pub fn allows(&self, method: AuthenticationMethod) -> bool {
        self.methods.contains(&method) != self.negated
    }
}

/// How the server asks a client to prove who it is (protocol documentation, `AuthenticationRequest`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthenticationMethod {
    /// The server asks for nothing (`trust`, `peer`, `cert`).
    None,
    /// Clear text password.
    Password,
    /// MD5 hash.
    Md5,
    /// SCRAM-SHA-256, with or without channel binding.
    ScramSha256,
    /// GSSAPI, which this client cannot do.
    Gss,
    /// Windows' SSPI, which this client cannot do.
    Sspi,
    /// OAuth, which this client cannot do.
    OAuth,
}

impl AuthenticationMethod {
    /// The word that `require_auth` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::ScramSha256 => "scram-sha-256",
            Self::Gss => "gss",
            Self::Sspi => "sspi",
            Self::OAuth => "oauth",
        }
    }

    pub(crate) const ALL: [Self; 7] = [
        Self::None,
        Self::Password,
        Self::Md5,
        Self::ScramSha256,
        Self::Gss,
        Self::Sspi,
        Self::OAuth,
    ];
}

/// Everything that decides a connection, resolved.
#[derive(Debug, Clone)]
pub struct ConnectionParameters {
    /// Where to look for the server, in this order; never empty.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// A password that was given outright; the password file is asked only without one.
    pub password: Option<Secret>,
    /// The password file, which need not exist.
    pub password_file: Option<PathBuf>,
    /// Encryption.
    pub tls: TlsParameters,
    /// SCRAM's channel binding.
    pub channel_binding: ChannelBinding,
    /// Acceptable ways of authentication.
    pub require_authentication: Option<RequireAuthentication>,
    /// The operating system user that a server on a Unix socket must run as.
    pub require_peer: Option<String>,
    /// What kind of session is wanted.
    pub target_session_attributes: TargetSessionAttributes,
    /// Order of hosts.
    pub load_balance_hosts: LoadBalanceHosts,
    /// Time for each host and address; `None`: as long as it takes.
    pub connect_timeout: Option<Duration>,
    /// Shown in `pg_stat_activity`.
    pub application_name: Option<String>,
    /// Settings for the session: `-c name=value ...`.
    pub options: Option<String>,
    /// TCP probes.
    pub keepalives: Keepalives,
    /// The default socket directory: libpq's password file knows it as `localhost`.
    pub(crate) default_socket_directory: PathBuf,
}

impl ConnectionParameters {
    /// Applies libpq's rules to what the user gave.
    ///
    /// # Errors
    ///
    /// When something given cannot be understood, contradicts itself or is not supported; when a service
    /// is not defined.
    pub fn resolve(options: &ConnectionOptions, environment: &Environment) -> Result<Self, ParameterError> {
        resolve::resolve(options, environment)
    }

    /// The same for a connection string alone.
    ///
    /// # Errors
    ///
    /// As [`ConnectionParameters::resolve`].
    pub fn from_dsn(dsn: &str, environment: &Environment) -> Result<Self, ParameterError> {
        let options = ConnectionOptions {
            dsn: Some(dsn.to_owned()),
            ..ConnectionOptions::default()
        };
        Self::resolve(&options, environment)
    }

    /// The same for another database. The name is taken literally, never as a connection string.
    pub fn with_database(&self, name: &str) -> Self {
        Self {
            database: name.to_owned(),
            ..self.clone()
        }
    }

    /// The same under another name in `pg_stat_activity`.
    pub fn with_application_name(&self, name: &str) -> Self {
        Self {
            application_name: Some(name.to_owned()),
            ..self.clone()
        }
    }

    /// The same with more settings for the session, for example `-c statement_timeout=5s`; later ones win.
    pub fn with_options_appended(&self, options: &str) -> Self {
        let options = match &self.options {
            Some(present) if !present.is_empty() => format!("{present} {options}"),
            _ => options.to_owned(),
        };
        Self {
            options: Some(options),
            ..self.clone()
        }
    }

    /// The same with this password in place of any other.
    pub fn with_password(&self, password: Secret) -> Self {
        Self {
            password: Some(password),
            ..self.clone()
        }
    }

    /// The same for one host only.
    pub fn at_host(&self, host: &Host) -> Self {
        Self {
            hosts: vec![host.clone()],
            ..self.clone()
        }
    }

    /// What and where, for people: `shop on db.example.org:5432 as postgres`. Holds no secret.
    pub fn describe(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        format!("{} on {} as {}", self.database, hosts.join(" or "), self.user)
    }

    /// Whether every host is this machine: a socket, a loopback address or `localhost`.
    pub fn is_local(&self) -> bool {
        let loopback = |text: &str| {
            text.eq_ignore_ascii_case("localhost")
                || text
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        };
        self.hosts.iter().all(|host| match &host.target {
            HostTarget::Socket(_) => true,
            HostTarget::Name(name) => loopback(name),
            HostTarget::Address { address, .. } => loopback(address),
        })
    }

    /// The password for one host: the one given, else the password file's.
    pub fn password_for(&self, host: &Host) -> PasswordLookup {
        if let Some(password) = &self.password {
            return PasswordLookup::Found(password.clone());
        }
        let Some(path) = &self.password_file else {
            return PasswordLookup::NotFound;
        };
        let name = match &host.target {
            HostTarget::Socket(directory) if *directory == self.default_socket_directory => {
                "localhost".to_owned()
            }
            HostTarget::Socket(directory) => directory.display().to_string(),
            _ => host.name(),
        };
        let wanted = passfile::Wanted {
            host: &name,
            port: &host.port.to_string(),
            database: &self.database,
            user: &self.user,
        };
        passfile::look_up(path, &wanted)
    }

    /// The password file's path, where the password would come from it.
    pub(crate) fn consulted_password_file(&self) -> Option<&Path> {
        self.password_file.as_deref().filter(|_| self.password.is_none())
    }
}
