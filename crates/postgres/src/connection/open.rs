//! The walk over hosts and addresses (`fe-connect.c`, `PQconnectPoll`).

use super::error::{Attempt, ConnectError};
use super::failure::Failure;
use super::socket::{self, Address};
use super::{ConnectErrorKind as Kind, Connection, establish};
use crate::params::{
    ConnectionParameters, Host, LoadBalanceHosts, PasswordLookup, SslMode, TargetSessionAttributes,
};
use std::hash::{BuildHasher, Hasher, RandomState};
use tokio_postgres::SimpleQueryMessage;

pub(super) async fn open(parameters: &ConnectionParameters) -> Result<Connection, ConnectError> {
    let mut hosts = parameters.hosts.clone();
    if parameters.load_balance_hosts == LoadBalanceHosts::Random {
        shuffle(&mut hosts);
    }
    let passes: &[TargetSessionAttributes] = match parameters.target_session_attributes {
        TargetSessionAttributes::PreferStandby => {
            &[TargetSessionAttributes::Standby, TargetSessionAttributes::Any]
        }
        ref one => std::slice::from_ref(one),
    };
    let mut attempts = Vec::new();
    for wanted in passes {
        // The second pass meets the same hosts again: each counts once.
        attempts.clear();
        for host in &hosts {
            match try_host(parameters, host, *wanted, &mut attempts).await {
                Some(connection) => return Ok(connection),
                None if attempts
                    .last()
                    .is_some_and(|attempt: &Attempt| !attempt.failure.next_host) =>
                {
                    return Err(ConnectError::new(parameters, &attempts));
                }
                None => {}
            }
        }
    }
    Err(ConnectError::new(parameters, &attempts))
}

/// Tries every address of a host, and notes every failure.
async fn try_host(
    parameters: &ConnectionParameters,
    host: &Host,
    wanted: TargetSessionAttributes,
    attempts: &mut Vec<Attempt>,
) -> Option<Connection> {
    let password = parameters.password_for(host);
    let note = |address: Option<&Address>, failure: Failure| {
        let asks_password = matches!(failure.kind, Kind::WrongPassword | Kind::PasswordMissing);
        Attempt {
            host: host.clone(),
            address: address.map(ToString::to_string),
            failure,
            ignored_password_file: match &password {
                PasswordLookup::Ignored(ignored) if asks_password => Some(ignored.clone()),
                _ => None,
            },
            password_file_used: parameters.password.is_none() && matches!(password, PasswordLookup::Found(_)),
        }
    };
    if let PasswordLookup::Ignored(ignored) = &password {
        tracing::warn!("{ignored}");
    }
    let mut addresses = match limited(parameters, socket::look_up(host)).await {
        Some(Ok(addresses)) if !addresses.is_empty() => addresses,
        Some(Ok(_)) => {
            attempts.push(note(
                None,
                Failure::new(Kind::NameNotFound, "the name has no address"),
            ));
            return None;
        }
        Some(Err(error)) => {
            attempts.push(note(None, Failure::of_lookup(&host.name(), &error)));
            return None;
        }
        None => {
            attempts.push(note(None, timed_out(parameters)));
            return None;
        }
    };
    if parameters.load_balance_hosts == LoadBalanceHosts::Random {
        shuffle(&mut addresses);
    }
    for address in &addresses {
        let mut failures = Vec::new();
        let tried = limited(parameters, async {
            let connection = try_address(parameters, host, address, &password, &mut failures).await?;
            match unmet(&connection, wanted).await {
                None => Some(connection),
                Some(failure) => {
                    failures.push(failure);
                    connection.close().await;
                    None
                }
            }
        })
        .await;
        match tried {
            Some(Some(connection)) => return Some(connection),
            Some(None) => {}
            None => failures.push(timed_out(parameters)),
        }
        attempts.extend(failures.into_iter().map(|failure| note(Some(address), failure)));
        let last = attempts.last()?;
        // A server that answered is not asked again at its other address, in as far as libpq does not.
        if !last.failure.next_host || last.failure.kind == Kind::NotAccepting {
            return None;
        }
    }
    None
}

/// Tries the ways of encryption that the mode allows, the preferred one first.
async fn try_address(
    parameters: &ConnectionParameters,
    host: &Host,
    address: &Address,
    password: &PasswordLookup,
    failures: &mut Vec<Failure>,
) -> Option<Connection> {
    let ways: &[bool] = match (address, parameters.tls.mode) {
        (Address::Unix(_), _) | (_, SslMode::Disable) => &[false],
        (_, SslMode::Allow) => &[false, true],
        (_, SslMode::Prefer) => &[true, false],
        _ => &[true],
    };
    for encrypted in ways {
        match establish::session(parameters, host, address, *encrypted, password).await {
            Ok(connection) => {
                if let Some(failure) = failures.last().filter(|_| connection.tls().is_none()) {
                    tracing::warn!("connected to {host} without TLS, for with it: {}", failure.text);
                }
                return Some(connection);
            }
            Err(failure) => {
                let try_other = failure.other_encryption_may_help;
                failures.push(failure);
                if !try_other {
                    break;
                }
            }
        }
    }
    None
}

async fn limited<T>(parameters: &ConnectionParameters, work: impl Future<Output = T>) -> Option<T> {
    match parameters.connect_timeout {
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
        None => Some(work.await),
    }
}

fn timed_out(parameters: &ConnectionParameters) -> Failure {
    let seconds = parameters.connect_timeout.unwrap_or_default().as_secs_f64();
    Failure::new(
        Kind::TimedOut,
        format!("timed out after {seconds} s (connect_timeout)"),
    )
}

/// Why the session is not of the wanted kind. The server's own report answers without a query (servers 14
/// and newer); a proxy that does not pass it on is asked.
async fn unmet(connection: &Connection, wanted: TargetSessionAttributes) -> Option<Failure> {
    use TargetSessionAttributes::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
    let (needs_recovery, needs_read_only) = match wanted {
        Any | PreferStandby => return None,
        Primary => (Some(false), None),
        Standby => (Some(true), None),
        ReadWrite => (None, Some(false)),
        ReadOnly => (None, Some(true)),
    };
    let is_on = async |parameter: &str, query: &str| match connection.reported_parameter(parameter) {
        Some(value) => Ok(value == "on"),
        None => ask(connection, query).await,
    };
    let facts = async {
        let recovery = is_on("in_hot_standby", "SELECT pg_catalog.pg_is_in_recovery()").await?;
        let read_only = match needs_read_only {
            Some(_) => {
                recovery || is_on("default_transaction_read_only", "SHOW transaction_read_only").await?
            }
            None => recovery,
        };
        Ok::<_, tokio_postgres::Error>((recovery, read_only))
    };
    let (recovery, read_only) = match facts.await {
        Ok(facts) => facts,
        Err(error) => {
            return Some(Failure::new(
                Kind::Other,
                format!("the kind of session cannot be asked for: {error}"),
            ));
        }
    };
    let reason = match (needs_recovery, needs_read_only) {
        (Some(true), _) if !recovery => "the server is not in hot standby mode",
        (Some(false), _) if recovery => "the server is in hot standby mode",
        (_, Some(true)) if !read_only => "the session is not read-only",
        (_, Some(false)) if read_only => "the session is read-only",
        _ => return None,
    };
    Some(Failure::new(
        Kind::TargetSessionUnmet,
        format!("{reason}, and target_session_attrs is {}", wanted.as_str()),
    ))
}

async fn ask(connection: &Connection, query: &str) -> Result<bool, tokio_postgres::Error> {
    let messages = connection.simple_query(query).await?;
    Ok(messages.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => matches!(row.get(0), Some("t" | "on")),
        _ => false,
    }))
}

/// Fisher and Yates; the randomness of a hash key is plenty for spreading load.
fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_usize(last);
        let index =
            usize::try_from(hasher.finish() % (last as u64 + 1)).expect("less than the slice's length");
        items.swap(last, index);
    }
}
