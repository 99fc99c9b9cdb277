//! Why one attempt at one address failed, in one line, and what that means for the next attempt.

use super::error::ConnectErrorKind as Kind;
use super::observer::Greeting;
use crate::params::ConnectionParameters;
use crate::tls::TlsFailure;
use std::error::Error as _;
use std::io;
use tokio_postgres::error::{DbError, SqlState};

/// One failed attempt.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// What happened, without the address.
    pub(super) text: String,
    pub(super) sqlstate: Option<String>,
    /// What the server named as wrong, for hints: nothing of it is secret.
    pub(super) hint: Option<String>,
    /// The server rejected this client or TLS did not come about: the other encryption may do.
    pub(super) other_encryption_may_help: bool,
    /// libpq would go on to the next host.
    pub(super) next_host: bool,
}

impl Failure {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            sqlstate: None,
            hint: None,
            other_encryption_may_help: false,
            next_host: true,
        }
    }

    /// No connection came about.
    pub(super) fn of_socket(error: &io::Error) -> Self {
        use io::ErrorKind as Io;
        let (kind, text) = match error.kind() {
            Io::ConnectionRefused => (Kind::Refused, "connection refused".to_owned()),
            Io::NotFound => (Kind::SocketMissing, "no server socket there".to_owned()),
            Io::TimedOut => (Kind::TimedOut, "timed out".to_owned()),
            Io::PermissionDenied => (Kind::PermissionDenied, error.to_string()),
            Io::HostUnreachable | Io::NetworkUnreachable => (Kind::Unreachable, error.to_string()),
            _ => (Kind::Other, error.to_string()),
        };
        Self::new(kind, text)
    }

    pub(super) fn of_lookup(name: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::InvalidInput {
            return Self::new(Kind::NameNotFound, format!("\"{name}\" is not a network address"));
        }
        Self::new(
            Kind::NameNotFound,
            format!("the name \"{name}\" cannot be resolved: {error}"),
        )
    }

    pub(super) fn of_tls(failure: TlsFailure) -> Self {
        Self {
            hint: failure.hint,
            other_encryption_may_help: true,
            ..Self::new(failure.kind, failure.text)
        }
    }

    /// The session did not start.
    pub(super) fn of_startup(
        error: &tokio_postgres::Error,
        greeting: &Greeting,
        parameters: &ConnectionParameters,
        encrypted: bool,
    ) -> Self {
        if let Some(method) = greeting.forbidden {
            return Self {
                next_host: false,
                ..Self::new(
                    Kind::AuthenticationNotAllowed,
                    format!(
                        "the server asks for authentication \"{}\", which require_auth forbids",
                        method.as_str()
                    ),
                )
            };
        }
        if let Some(error) = error.as_db_error() {
            return Self::of_server(error, parameters, encrypted);
        }
        let reason = error.source().map(ToString::to_string).unwrap_or_default();
        // tokio-postgres tells these apart by text alone.
        let (kind, text) = match reason.as_str() {
            "password missing" => (
                Kind::PasswordMissing,
                "the server asks for a password and none was found".to_owned(),
            ),
            "server did not use channel binding" => (
                Kind::ChannelBindingUnmet,
                "channel_binding=require, but the server did not authenticate with channel binding"
                    .to_owned(),
            ),
            "unsupported authentication method" => (
                Kind::AuthenticationUnsupported,
                "the server asks for a way of authentication that this client leaves out (GSSAPI, SSPI)"
                    .to_owned(),
            ),
            "unsupported SASL mechanism" => (
                Kind::AuthenticationUnsupported,
                "the server offers no authentication mechanism that this client knows (SCRAM-SHA-256)"
                    .to_owned(),
            ),
            _ if reason.contains("received fatal alert") => (
                Kind::TlsFailed,
                format!("the server refused the TLS session: {reason}"),
            ),
            _ if error.is_closed() || is_lost(error) => (
                Kind::Closed,
                "the server closed the connection before the session began".to_owned(),
            ),
            "" => (Kind::Other, error.to_string()),
            _ => (Kind::Other, format!("{error}: {reason}")),
        };
        Self {
            next_host: matches!(kind, Kind::Closed | Kind::Other),
            ..Self::new(kind, text)
        }
    }

    fn of_server(error: &DbError, parameters: &ConnectionParameters, encrypted: bool) -> Self {
        let code = error.code();
        // The function that raised the error tells more than the code, in every language.
        let routine = error.routine().unwrap_or_default();
        let kind = match code {
            code if *code == SqlState::INVALID_PASSWORD => Kind::WrongPassword,
            code if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => match routine {
                "ClientAuthentication" => Kind::NotAdmitted,
                "InitializeSessionUserId" => Kind::RoleMissing,
                _ => Kind::AuthenticationFailed,
            },
            code if *code == SqlState::INVALID_CATALOG_NAME => Kind::DatabaseMissing,
            code if *code == SqlState::TOO_MANY_CONNECTIONS => Kind::TooManyClients,
            code if *code == SqlState::CANNOT_CONNECT_NOW => Kind::NotAccepting,
            code if *code == SqlState::ADMIN_SHUTDOWN => Kind::NotAccepting,
            code if *code == SqlState::INSUFFICIENT_PRIVILEGE => Kind::NoPrivilege,
            _ => Kind::Other,
        };
        let mut text = format!("{}: {}", error.severity(), error.message());
        if let Some(detail) = error.detail() {
            text.push_str(" (");
            text.push_str(detail);
            text.push(')');
        }
        let hint = match kind {
            Kind::NotAdmitted => Some(format!(
                "add a line to pg_hba.conf on the server and reload it, for example: {} {} {} <your address>/32 scram-sha-256",
                if encrypted { "hostssl" } else { "host" },
                parameters.database,
                parameters.user
            )),
            _ => error.hint().map(str::to_owned),
        };
        Self {
            sqlstate: Some(code.code().to_owned()),
            hint,
            other_encryption_may_help: code.code().starts_with("28"),
            next_host: kind == Kind::NotAccepting,
            ..Self::new(kind, text)
        }
    }
}

/// Whether the stream ended under the session.
fn is_lost(error: &tokio_postgres::Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            )
        })
}
