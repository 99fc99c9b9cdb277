//! A connection that could not be made: every attempt once, and what to do.

use super::failure::Failure;
use crate::params::{ConnectionParameters, Host, HostTarget, IgnoredPasswordFile};
use pgmahout_types::diagnostic::Diagnose;

/// What kind of failure it was; of several attempts, the last one that reached furthest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectErrorKind {
    /// Nothing listens there.
    Refused,
    /// The socket file does not exist.
    SocketMissing,
    /// The operating system forbids it, or the server runs as another user than `requirepeer` says.
    PermissionDenied,
    /// No answer in time.
    TimedOut,
    /// The name has no address.
    NameNotFound,
    /// No route to the host.
    Unreachable,
    /// The server ended the connection before the session began.
    Closed,
    /// 28P01.
    WrongPassword,
    /// The server wants a password and there is none.
    PasswordMissing,
    /// No line of `pg_hba.conf` admits this connection, or one rejects it.
    NotAdmitted,
    /// The role does not exist or may not log in.
    RoleMissing,
    /// Authentication other than by password failed.
    AuthenticationFailed,
    /// The server wants GSSAPI, SSPI or OAuth.
    AuthenticationUnsupported,
    /// `require_auth` forbids what the server wants.
    AuthenticationNotAllowed,
    /// `channel_binding=require` could not be met.
    ChannelBindingUnmet,
    /// 3D000.
    DatabaseMissing,
    /// 53300.
    TooManyClients,
    /// 57P03: starting up, shutting down, in recovery.
    NotAccepting,
    /// 42501: no CONNECT privilege.
    NoPrivilege,
    /// The server has TLS turned off.
    TlsNotOffered,
    /// The server's certificate is not acceptable.
    CertificateRejected,
    /// Root certificate, client certificate or key cannot be used.
    TlsFiles,
    /// The TLS handshake failed for another reason.
    TlsFailed,
    /// `target_session_attrs` is met by none of the hosts.
    TargetSessionUnmet,
    /// Anything else.
    Other,
}

impl ConnectErrorKind {
    /// Whether waiting and trying again may help without anybody changing anything.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Refused
                | Self::SocketMissing
                | Self::TimedOut
                | Self::Unreachable
                | Self::Closed
                | Self::TooManyClients
                | Self::NotAccepting
                | Self::TargetSessionUnmet
        )
    }

    /// How far the attempt got: an answer of a server says more than silence.
    fn reach(self) -> u8 {
        match self {
            Self::NameNotFound => 0,
            Self::Refused
            | Self::SocketMissing
            | Self::PermissionDenied
            | Self::TimedOut
            | Self::Unreachable => 1,
            Self::TlsNotOffered | Self::TlsFailed | Self::Closed | Self::TlsFiles | Self::Other => 2,
            _ => 3,
        }
    }
}

/// No connection. The chain of sources holds every attempt, each once.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {target}")]
pub struct ConnectError {
    target: String,
    kind: ConnectErrorKind,
    sqlstate: Option<String>,
    hint: Option<String>,
    #[source]
    attempts: Option<Box<AttemptError>>,
}

/// One attempt; its source is the next one.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct AttemptError {
    text: String,
    #[source]
    next: Option<Box<AttemptError>>,
}

/// An attempt and where it was made.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) host: Host,
    /// The address, where it differs from the host's name.
    pub(super) address: Option<String>,
    pub(super) failure: Failure,
    pub(super) ignored_password_file: Option<IgnoredPasswordFile>,
    pub(super) password_file_used: bool,
}

impl Attempt {
    fn line(&self, parameters: &ConnectionParameters) -> String {
        let place = match (&self.host.target, &self.address) {
            (HostTarget::Socket(_), _) => self.host.socket_path().unwrap_or_default().display().to_string(),
            (_, Some(address)) if *address != self.host.to_string() => format!("{} ({address})", self.host),
            _ => self.host.to_string(),
        };
        let mut line = format!("{place}: {}", self.failure.text);
        if let Some(ignored) = &self.ignored_password_file {
            line.push_str("; ");
            line.push_str(&ignored.to_string());
        } else if self.password_file_used
            && self.failure.kind == ConnectErrorKind::WrongPassword
            && let Some(path) = parameters.consulted_password_file()
        {
            line.push_str("; the password came from ");
            line.push_str(&path.display().to_string());
        }
        line
    }
}

impl ConnectError {
    pub(super) fn new(parameters: &ConnectionParameters, attempts: &[Attempt]) -> Self {
        let decisive = attempts
            .iter()
            .enumerate()
            .max_by_key(|(index, attempt)| (attempt.failure.kind.reach(), *index))
            .map(|(_, attempt)| attempt);
        let mut lines: Vec<String> = Vec::new();
        for attempt in attempts {
            let line = attempt.line(parameters);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let chain = lines
            .into_iter()
            .rev()
            .fold(None, |next, text| Some(Box::new(AttemptError { text, next })));
        Self {
            target: parameters.describe(),
            kind: decisive.map_or(ConnectErrorKind::Other, |attempt| attempt.failure.kind),
            sqlstate: decisive.and_then(|attempt| attempt.failure.sqlstate.clone()),
            hint: decisive.map(|attempt| hint(attempt, parameters)),
            attempts: chain,
        }
    }

    /// A session that opened and then could not be made safe to use.
    pub(super) fn of_session(parameters: &ConnectionParameters, error: &tokio_postgres::Error) -> Self {
        let answer = error.as_db_error();
        let text = answer.map_or_else(|| error.to_string(), |answer| answer.message().to_owned());
        Self {
            target: parameters.describe(),
            kind: ConnectErrorKind::Other,
            sqlstate: answer.map(|answer| answer.code().code().to_owned()),
            hint: Some("see the server's log for why the session could not be used".to_owned()),
            attempts: Some(Box::new(AttemptError { text, next: None })),
        }
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ConnectErrorKind {
        self.kind
    }

    /// The server's error code, where a server answered.
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// Where it was tried to connect to: `shop on db.example.org:5432 as postgres`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Every attempt in one line each.
    pub fn attempts(&self) -> Vec<&str> {
        std::iter::successors(self.attempts.as_deref(), |attempt| attempt.next.as_deref())
            .map(|attempt| attempt.text.as_str())
            .collect()
    }
}

impl Diagnose for ConnectError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

fn hint(attempt: &Attempt, parameters: &ConnectionParameters) -> String {
    use ConnectErrorKind as Kind;
    if let Some(ignored) = &attempt.ignored_password_file {
        return ignored.hint();
    }
    let port = attempt.host.port;
    let name = attempt.host.name();
    let generic = match attempt.failure.kind {
        Kind::Refused | Kind::SocketMissing => {
            let where_else = if matches!(attempt.host.target, HostTarget::Socket(_)) {
                "if it listens elsewhere, give -h and -p"
            } else {
                "if it does, check listen_addresses, the port and the firewall"
            };
            format!("see whether the server runs: pg_isready -h {name} -p {port}; {where_else}")
        }
        Kind::PermissionDenied => "run this as a user who may reach the socket, or connect over TCP with -h".to_owned(),
        Kind::TimedOut | Kind::Unreachable => format!(
            "check the network path and the firewall to {name}, port {port}; connect_timeout sets how long to wait"
        ),
        Kind::NameNotFound => "check the host name given with -h or PGHOST, and the resolver (getent hosts NAME)".to_owned(),
        Kind::Closed => "read the server's log; a proxy or a server that is going down closes connections this way".to_owned(),
        Kind::WrongPassword => format!(
            "check the password in PGPASSWORD or the password file; a superuser sets it anew with: \\password {}",
            parameters.user
        ),
        Kind::PasswordMissing => match parameters.consulted_password_file() {
            Some(path) => format!(
                "add the line {name}:{port}:{}:{}:PASSWORD to {} (mode 600), or set PGPASSWORD",
                parameters.database,
                parameters.user,
                path.display()
            ),
            None => "set PGPASSWORD or PGPASSFILE".to_owned(),
        },
        Kind::NotAdmitted | Kind::TlsFiles | Kind::CertificateRejected | Kind::Other => String::new(),
        Kind::RoleMissing => format!(
            "give another user with -U, or create the role: createuser --login {}",
            parameters.user
        ),
        Kind::AuthenticationFailed => format!(
            "look up in pg_hba.conf on the server how \"{}\" authenticates (peer wants the same operating system user)",
            parameters.user
        ),
        Kind::AuthenticationUnsupported => {
            "add a line for scram-sha-256 or a client certificate to pg_hba.conf on the server".to_owned()
        }
        Kind::AuthenticationNotAllowed => "change require_auth (PGREQUIREAUTH), or pg_hba.conf on the server".to_owned(),
        Kind::ChannelBindingUnmet => {
            "channel binding needs TLS (sslmode=require or stronger), scram-sha-256 in pg_hba.conf and a password stored as SCRAM".to_owned()
        }
        Kind::DatabaseMissing => format!(
            "list the databases with: psql -l -d postgres; create it with: createdb {}",
            parameters.database
        ),
        Kind::TooManyClients => {
            "see who holds the connections in pg_stat_activity (superusers have reserved ones), then raise max_connections or use a pooler".to_owned()
        }
        Kind::NotAccepting => format!("wait until it accepts connections: pg_isready -h {name} -p {port}"),
        Kind::NoPrivilege => format!(
            "grant it: GRANT CONNECT ON DATABASE \"{}\" TO \"{}\"",
            parameters.database, parameters.user
        ),
        Kind::TlsNotOffered => {
            "turn TLS on in the server (ssl = on), or connect without: sslmode=prefer".to_owned()
        }
        Kind::TlsFailed => {
            "see the server's log; a server that wants a client certificate needs sslcert and sslkey, and both sides must allow TLS 1.2 or 1.3"
                .to_owned()
        },
        Kind::TargetSessionUnmet => format!(
            "target_session_attrs is {}: check which host is primary, or use any",
            parameters.target_session_attributes.as_str()
        ),
    };
    match &attempt.failure.hint {
        Some(hint) => hint.clone(),
        None if generic.is_empty() => "read the server's log for this connection".to_owned(),
        None => generic,
    }
}
