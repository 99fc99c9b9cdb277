//! One attempt: connect, agree on encryption, start the session.

use super::failure::Failure;
use super::observer::Greeting;
use super::socket::{self, Address, Socket};
use super::wire::{self, Channel, Ready, Wire};
use super::{ConnectErrorKind as Kind, Connection, Facts, MOST_NOTICES, Notice, Notices};
use crate::params::{
    self, AuthenticationMethod, ConnectionParameters, Host, HostTarget, PasswordLookup, SslMode,
    SslNegotiation,
};
use crate::tls::{self, TlsFacts};
use pgmahout_types::version::ServerVersion;
use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::AsyncMessage;

/// A connected byte stream and what its encryption offers.
pub(super) struct Prepared {
    pub(super) channel: Channel,
    pub(super) end_point: Option<Vec<u8>>,
    pub(super) facts: Option<TlsFacts>,
}

/// Connects, and encrypts where the parameters ask for it. `encrypted` overrides `allow` and `prefer`.
pub(super) async fn channel(
    parameters: &ConnectionParameters,
    host: &Host,
    address: &Address,
    encrypted: Option<bool>,
) -> Result<Prepared, Failure> {
    let mut socket = socket::connect(address, parameters)
        .await
        .map_err(|error| Failure::of_socket(&error))?;
    let plain = |socket| Prepared {
        channel: Channel::Plain(socket),
        end_point: None,
        facts: None,
    };
    let wanted = encrypted.unwrap_or(parameters.tls.mode > SslMode::Allow);
    if !wanted || matches!(address, Address::Unix(_)) {
        return Ok(plain(socket));
    }
    let direct = parameters.tls.negotiation == SslNegotiation::Direct;
    if !direct && !server_offers_tls(&mut socket).await? {
        if parameters.tls.mode < SslMode::Require {
            return Ok(plain(socket));
        }
        return Err(Failure::new(
            Kind::TlsNotOffered,
            format!(
                "the server does not offer TLS, and sslmode is {}",
                parameters.tls.mode.as_str()
            ),
        ));
    }
    // What the certificate must name: never the address that stands for a name.
    let name = match &host.target {
        HostTarget::Address { name, .. } => name.clone(),
        _ => Some(host.name()),
    };
    let secured = tls::handshake(socket, &parameters.tls, name.as_deref())
        .await
        .map_err(Failure::of_tls)?;
    Ok(Prepared {
        channel: Channel::Encrypted(Box::new(secured.stream)),
        end_point: secured.end_point,
        facts: Some(secured.facts),
    })
}

/// Asks for TLS (protocol documentation, "SSL Session Encryption").
pub(super) async fn server_offers_tls(socket: &mut Socket) -> Result<bool, Failure> {
    // Length 8 and the code 80877103, which no protocol version can be.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Failure::new(
                Kind::Closed,
                "the server closed the connection before the session began",
            )
        }
        _ => Failure::of_socket(&error),
    };
    socket.write_all(&SSL_REQUEST).await.map_err(lost)?;
    let mut answer = [0];
    // Exactly one byte: anything after it in plain text would be an injection, and breaks the handshake.
    socket.read_exact(&mut answer).await.map_err(lost)?;
    match answer[0] {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // A server that cannot start a process for us answers with an error of its own; it is not
        // authenticated, so its words are not shown (as libpq since 17.1).
        b'E' => Err(Failure::new(
            Kind::NotAccepting,
            "the server sent an error in answer to the request for TLS",
        )),
        other => Err(Failure {
            next_host: false,
            ..Failure::new(
                Kind::Other,
                format!(
                    "what answers there does not speak PostgreSQL's protocol (answer byte 0x{other:02x})"
                ),
            )
        }),
    }
}

/// One session over one way of encryption.
pub(super) async fn session(
    parameters: &ConnectionParameters,
    host: &Host,
    address: &Address,
    encrypted: bool,
    password: &PasswordLookup,
) -> Result<Connection, Failure> {
    let prepared = channel(parameters, host, address, Some(encrypted)).await?;
    let is_encrypted = prepared.facts.is_some();
    let (wire, greeting) = Wire::new(
        prepared.channel,
        prepared.end_point,
        parameters.require_authentication.clone(),
    );
    let config = configuration(parameters, password);
    let started = config.connect_raw(wire, Ready).await;
    let greeting = greeting.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (client, driver) = started
        .map_err(|error| Failure::of_startup(&error, &greeting, parameters, is_encrypted))
        .map_err(|failure| Failure {
            // Without encryption to begin with there is nothing to take away.
            other_encryption_may_help: failure.other_encryption_may_help && is_encrypted == encrypted,
            ..failure
        })?;
    Ok(assemble(
        parameters,
        host,
        address,
        client,
        driver,
        &greeting,
        prepared.facts,
    ))
}

pub(super) fn configuration(
    parameters: &ConnectionParameters,
    password: &PasswordLookup,
) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    wire::configure(&mut config);
    config.user(&parameters.user).dbname(&parameters.database);
    config.channel_binding(match parameters.channel_binding {
        params::ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
        params::ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
        params::ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
    });
    if let PasswordLookup::Found(password) = password {
        config.password(password.expose());
    }
    if let Some(name) = &parameters.application_name {
        config.application_name(name);
    }
    if let Some(options) = &parameters.options {
        config.options(options);
    }
    config
}

type Driver = tokio_postgres::Connection<Wire, Wire>;

/// Parameters that a server reports unasked (PostgreSQL documentation, `PQparameterStatus`).
const REPORTED: [&str; 15] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "scram_iterations",
    "search_path",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
];

fn assemble(
    parameters: &ConnectionParameters,
    host: &Host,
    address: &Address,
    client: tokio_postgres::Client,
    driver: Driver,
    greeting: &Greeting,
    mut tls: Option<TlsFacts>,
) -> Connection {
    let reported = REPORTED
        .into_iter()
        .filter_map(|name| Some((name, driver.parameter(name)?.to_owned())))
        .collect::<std::collections::BTreeMap<_, _>>();
    let server_version = reported
        .get("server_version")
        .and_then(|text| ServerVersion::parse(text))
        .unwrap_or_else(|| ServerVersion::from_number(0));
    if let Some(tls) = &mut tls {
        tls.channel_bound = greeting.channel_bound;
    }
    let notices = Notices::default();
    let facts = Facts {
        parameters: parameters.at_host(&reached(host, address)),
        address: address.clone(),
        server_version,
        reported,
        backend_pid: greeting.backend_pid.unwrap_or_default(),
        authentication: greeting.authentication.unwrap_or(AuthenticationMethod::None),
        tls,
    };
    let driver = tokio::spawn(drive(driver, Notices::clone(&notices)));
    Connection {
        client,
        driver,
        facts,
        notices,
    }
}

/// The host with the address that was reached, so that the next connection meets the same server.
fn reached(host: &Host, address: &Address) -> Host {
    match (&host.target, address) {
        (HostTarget::Name(name), Address::Tcp(address)) => Host {
            target: HostTarget::Address {
                name: Some(name.clone()),
                address: address.ip().to_string(),
            },
            port: host.port,
        },
        _ => host.clone(),
    }
}

async fn drive(mut driver: Driver, notices: Notices) {
    loop {
        match poll_fn(|context| driver.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => keep(&notices, &notice),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                // Whoever waits for a result gets this error too.
                tracing::debug!(%error, "the connection to the server broke");
                return;
            }
            None => return,
        }
    }
}

fn keep(notices: &Mutex<std::collections::VecDeque<Notice>>, notice: &tokio_postgres::error::DbError) {
    let mut notices = notices.lock().unwrap_or_else(PoisonError::into_inner);
    if notices.len() == MOST_NOTICES {
        notices.pop_front();
    }
    notices.push_back(Notice {
        severity: notice.severity().to_owned(),
        code: notice.code().code().to_owned(),
        message: notice.message().to_owned(),
        detail: notice.detail().map(str::to_owned),
        hint: notice.hint().map(str::to_owned),
    });
}
