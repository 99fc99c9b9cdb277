//! From everything given to [`ConnectionParameters`] (`fe-connect.c`: `conninfo_array_parse`,
//! `conninfo_add_defaults`, `pqConnectOptions2`).

use super::conninfo;
use super::error::ParameterError;
use super::keyword::{KEYWORDS, Values};
use super::tls::{CertificateMode, RootCertificate, SslMode, SslNegotiation, TlsParameters, TlsVersion};
use super::{
    AuthenticationMethod, ChannelBinding, ConnectionOptions, ConnectionParameters, Environment, Host,
    HostTarget, Keepalives, LoadBalanceHosts, RequireAuthentication, TargetSessionAttributes, service,
};
use pgmahout_config::Secret;
use std::path::PathBuf;
use std::time::Duration;

const DEFAULT_PORT: u16 = 5432;

pub(super) fn resolve(
    options: &ConnectionOptions,
    environment: &Environment,
) -> Result<ConnectionParameters, ParameterError> {
    let mut values = gather(options)?;
    if let Some(service) = values
        .get("service")
        .or_else(|| environment.variable("PGSERVICE"))
    {
        let service = service.to_owned();
        service::apply(&mut values, &service, environment)?;
    }
    add_environment(&mut values, environment);
    if values.get("sslrootcert") == Some("system") {
        values.set_if_absent("sslmode", "verify-full");
    }
    refuse_unsupported(&values)?;

    let default_socket_directory = environment.socket_directory();
    let user = values
        .nonempty("user")
        .or_else(|| environment.os_user())
        .ok_or(ParameterError::NoUser)?
        .to_owned();
    Ok(ConnectionParameters {
        hosts: hosts(&values, &default_socket_directory)?,
        database: values.nonempty("dbname").unwrap_or(&user).to_owned(),
        password: values.nonempty("password").map(Secret::from),
        password_file: values
            .nonempty("passfile")
            .map(PathBuf::from)
            .or_else(|| environment.home().map(|home| home.join(".pgpass"))),
        tls: tls(&values, environment)?,
        channel_binding: channel_binding(&values)?,
        require_authentication: require_authentication(&values)?,
        require_peer: values.nonempty("requirepeer").map(str::to_owned),
        target_session_attributes: target_session_attributes(&values)?,
        load_balance_hosts: match values.nonempty("load_balance_hosts") {
            None | Some("disable") => LoadBalanceHosts::Disable,
            Some("random") => LoadBalanceHosts::Random,
            Some(value) => return Err(bad_value("load_balance_hosts", value, "disable, random")),
        },
        connect_timeout: seconds(&values, "connect_timeout")?,
        application_name: values
            .nonempty("application_name")
            .or_else(|| values.nonempty("fallback_application_name"))
            .map(str::to_owned),
        options: values.nonempty("options").map(str::to_owned),
        keepalives: Keepalives {
            enabled: integer(&values, "keepalives")?.is_none_or(|value| value != 0),
            idle: seconds(&values, "keepalives_idle")?,
            interval: seconds(&values, "keepalives_interval")?,
            count: integer(&values, "keepalives_count")?
                .and_then(|count| u32::try_from(count).ok())
                .filter(|count| *count > 0),
            user_timeout: integer(&values, "tcp_user_timeout")?
                .and_then(|value| u64::try_from(value).ok())
                .filter(|value| *value > 0)
                .map(Duration::from_millis),
        },
        user,
        default_socket_directory,
    })
}

/// What was given outright, the stronger over the weaker. Empty options count as not given, as in psql.
fn gather(options: &ConnectionOptions) -> Result<Values, ParameterError> {
    let mut values = Values::default();
    if let Some(dsn) = options.dsn.as_deref().filter(|dsn| !dsn.is_empty()) {
        if conninfo::is_connection_string(dsn) {
            values = conninfo::parse(dsn)?;
        } else {
            values.set("dbname", dsn);
        }
    }
    let given = [
        ("host", &options.host),
        ("port", &options.port),
        ("user", &options.user),
        ("service", &options.service),
    ];
    for (keyword, value) in given {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            values.set(keyword, value);
            if keyword == "host" {
                // An address in the string belongs to the host that the string named.
                values.remove("hostaddr");
            }
        }
    }
    if let Some(database) = options
        .database
        .as_deref()
        .filter(|database| !database.is_empty())
    {
        if conninfo::is_connection_string(database) {
            values.override_with(conninfo::parse(database)?);
        } else {
            values.set("dbname", database);
        }
    }
    Ok(values)
}

fn add_environment(values: &mut Values, environment: &Environment) {
    for keyword in KEYWORDS {
        let Some(value) = keyword
            .variable
            .and_then(|variable| environment.variable(variable))
        else {
            continue;
        };
        values.set_if_absent(keyword.name, value);
    }
    if environment
        .variable("PGREQUIRESSL")
        .is_some_and(|value| value.starts_with('1'))
    {
        values.set_if_absent("sslmode", "require");
    }
}

fn bad_value(name: &'static str, value: &str, allowed: &'static str) -> ParameterError {
    ParameterError::BadValue {
        name,
        value: value.to_owned(),
        allowed,
    }
}

fn refuse_unsupported(values: &Values) -> Result<(), ParameterError> {
    let unsupported = |name, reason, instead| {
        Err(ParameterError::Unsupported {
            name,
            reason,
            instead,
        })
    };
    match values.nonempty("gssencmode") {
        None | Some("disable" | "prefer") => {}
        Some("require") => {
            return unsupported(
                "gssencmode",
                "GSSAPI encryption is left out of this client",
                "set gssencmode=disable and encrypt with TLS: sslmode=verify-full",
            );
        }
        Some(value) => return Err(bad_value("gssencmode", value, "disable, prefer")),
    }
    if values
        .nonempty("replication")
        .is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0"))
    {
        return unsupported(
            "replication",
            "this is a connection for SQL",
            "leave the option out; replication connections are made where they are needed",
        );
    }
    if values.nonempty("sslpassword").is_some() {
        return unsupported(
            "sslpassword",
            "client keys with a passphrase are left out of this client",
            "write the key without a passphrase, readable by its owner only: openssl pkey -in client.key -out plain.key",
        );
    }
    if values.nonempty("scram_client_key").is_some() {
        return unsupported(
            "scram_client_key",
            "SCRAM keys are left out of this client",
            "give the password, best through the password file",
        );
    }
    Ok(())
}

fn list(value: &str) -> Vec<&str> {
    value.split(',').collect()
}

fn hosts(values: &Values, default: &std::path::Path) -> Result<Vec<Host>, ParameterError> {
    let names = values.nonempty("host").map(list);
    let addresses = values.nonempty("hostaddr").map(list);
    let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
    if let (Some(names), Some(addresses)) = (&names, &addresses)
        && names.len() != addresses.len()
    {
        return Err(ParameterError::CountMismatch {
            left: "host names",
            left_count: names.len(),
            right: "hostaddr values",
            right_count: addresses.len(),
        });
    }
    let ports = list(values.nonempty("port").unwrap_or_default());
    if ports.len() != 1 && ports.len() != count {
        return Err(ParameterError::CountMismatch {
            left: "port numbers",
            left_count: ports.len(),
            right: "hosts",
            right_count: count,
        });
    }
    let at = |list: &Option<Vec<&str>>, index: usize| {
        list.as_ref()
            .map(|list| list[index])
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    };
    (0..count)
        .map(|index| {
            let target = match (at(&names, index), at(&addresses, index)) {
                (name, Some(address)) => HostTarget::Address { name, address },
                (Some(name), None) if name.starts_with(['/', '@']) => HostTarget::Socket(name.into()),
                (Some(name), None) => HostTarget::Name(name),
                (None, None) => HostTarget::Socket(default.to_owned()),
            };
            let port = if ports.len() == 1 { ports[0] } else { ports[index] };
            Ok(Host {
                target,
                port: parse_port(port)?,
            })
        })
        .collect()
}

fn parse_port(text: &str) -> Result<u16, ParameterError> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    text.trim()
        .parse::<u16>()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| bad_value("port", text, "a number from 1 to 65535"))
}

fn integer(values: &Values, name: &'static str) -> Result<Option<i64>, ParameterError> {
    values
        .nonempty(name)
        .map(|text| {
            text.trim()
                .parse::<i32>()
                .map(i64::from)
                .map_err(|_| bad_value(name, text, "an integer"))
        })
        .transpose()
}

/// Zero and less stand for "no limit" or "the system's default".
fn seconds(values: &Values, name: &'static str) -> Result<Option<Duration>, ParameterError> {
    Ok(integer(values, name)?
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0)
        .map(Duration::from_secs))
}

fn channel_binding(values: &Values) -> Result<ChannelBinding, ParameterError> {
    match values.nonempty("channel_binding") {
        None | Some("prefer") => Ok(ChannelBinding::Prefer),
        Some("disable") => Ok(ChannelBinding::Disable),
        Some("require") => Ok(ChannelBinding::Require),
        Some(value) => Err(bad_value("channel_binding", value, "disable, prefer, require")),
    }
}

fn target_session_attributes(values: &Values) -> Result<TargetSessionAttributes, ParameterError> {
    use TargetSessionAttributes::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
    const ALLOWED: &str = "any, read-write, read-only, primary, standby, prefer-standby";
    let Some(value) = values.nonempty("target_session_attrs") else {
        return Ok(Any);
    };
    [Any, ReadWrite, ReadOnly, Primary, Standby, PreferStandby]
        .into_iter()
        .find(|attributes| attributes.as_str() == value)
        .ok_or_else(|| bad_value("target_session_attrs", value, ALLOWED))
}

fn require_authentication(values: &Values) -> Result<Option<RequireAuthentication>, ParameterError> {
    const ALLOWED: &str = "a list of password, md5, gss, sspi, scram-sha-256, oauth, none, all of them or none with a leading \"!\"";
    let Some(text) = values.nonempty("require_auth") else {
        return Ok(None);
    };
    let negated = text.starts_with('!');
    let mut methods = Vec::new();
    for word in text.split(',') {
        let name = match (word.strip_prefix('!'), negated) {
            (Some(name), true) => name,
            (None, false) => word,
            _ => return Err(bad_value("require_auth", text, ALLOWED)),
        };
        let method = AuthenticationMethod::ALL
            .into_iter()
            .find(|method| method.as_str() == name)
            .filter(|method| !methods.contains(method))
            .ok_or_else(|| bad_value("require_auth", text, ALLOWED))?;
        methods.push(method);
    }
    Ok(Some(RequireAuthentication { methods, negated }))
}

fn tls(values: &Values, environment: &Environment) -> Result<TlsParameters, ParameterError> {
    use SslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    let mode = match values.nonempty("sslmode") {
        None => Prefer,
        Some(value) => [Disable, Allow, Prefer, Require, VerifyCa, VerifyFull]
            .into_iter()
            .find(|mode| mode.as_str() == value)
            .ok_or_else(|| {
                bad_value(
                    "sslmode",
                    value,
                    "disable, allow, prefer, require, verify-ca, verify-full",
                )
            })?,
    };
    let negotiation = match values.nonempty("sslnegotiation") {
        None | Some("postgres") => SslNegotiation::Postgres,
        Some("direct") => SslNegotiation::Direct,
        Some(value) => return Err(bad_value("sslnegotiation", value, "postgres, direct")),
    };
    if negotiation == SslNegotiation::Direct && mode < Require {
        return Err(ParameterError::WeakSslMode {
            mode: mode.as_str(),
            other: "sslnegotiation=direct",
        });
    }
    let in_home = |name: &str| environment.home().map(|home| home.join(".postgresql").join(name));
    let given = |name: &str| values.nonempty(name).map(PathBuf::from);
    let root_certificate = match values.nonempty("sslrootcert") {
        Some("system") if mode != VerifyFull => {
            return Err(ParameterError::WeakSslMode {
                mode: mode.as_str(),
                other: "sslrootcert=system",
            });
        }
        Some("system") => RootCertificate::System,
        Some(path) => RootCertificate::File(path.into()),
        None => in_home("root.crt").map_or(RootCertificate::None, RootCertificate::File),
    };
    let version = |name: &'static str, default: TlsVersion| match values.nonempty(name) {
        None => Ok(default),
        Some(value) => match value.to_ascii_lowercase().as_str() {
            "tlsv1.3" => Ok(TlsVersion::V13),
            "tlsv1.2" => Ok(TlsVersion::V12),
            // A lower floor is allowed and changes nothing: older versions are never spoken.
            "tlsv1" | "tlsv1.1" if name == "ssl_min_protocol_version" => Ok(TlsVersion::V12),
            _ => Err(bad_value(name, value, "TLSv1.2, TLSv1.3")),
        },
    };
    let (minimum_version, maximum_version) = (
        version("ssl_min_protocol_version", TlsVersion::V12)?,
        version("ssl_max_protocol_version", TlsVersion::V13)?,
    );
    if minimum_version > maximum_version {
        return Err(bad_value(
            "ssl_max_protocol_version",
            maximum_version.as_str(),
            "a version that is not below ssl_min_protocol_version",
        ));
    }
    let certificate = given("sslcert");
    Ok(TlsParameters {
        mode,
        negotiation,
        root_certificate,
        certificate_is_explicit: certificate.is_some(),
        certificate: certificate.or_else(|| in_home("postgresql.crt")),
        key: given("sslkey").or_else(|| in_home("postgresql.key")),
        certificate_mode: match values.nonempty("sslcertmode") {
            None | Some("allow") => CertificateMode::Allow,
            Some("disable") => CertificateMode::Disable,
            Some("require") => CertificateMode::Require,
            Some(value) => return Err(bad_value("sslcertmode", value, "disable, allow, require")),
        },
        revocation_list: given("sslcrl").or_else(|| {
            // libpq reads the default file only where nothing else is named.
            in_home("root.crl").filter(|path| given("sslcrldir").is_none() && path.exists())
        }),
        revocation_directory: given("sslcrldir"),
        minimum_version,
        maximum_version,
        server_name_indication: match values.nonempty("sslsni") {
            None => true,
            Some(value) => !value.starts_with('0'),
        },
    })
}

#[cfg(test)]
mod tests;
