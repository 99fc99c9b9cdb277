//! Connection strings: `key=value` pairs and `postgresql://` URIs, by libpq's grammar (PostgreSQL
//! documentation, "Connection Strings"; `fe-connect.c`, `conninfo_parse` and
//! `conninfo_uri_parse_options`). Errors never repeat the string: it may hold a password.

use super::error::ParameterError;
use super::keyword::{self, Values};

/// Whether libpq, and so psql's `-d`, would expand this text as a connection string.
pub(crate) fn is_connection_string(text: &str) -> bool {
    uri_body(text).is_some() || text.contains('=')
}

/// Parses either form.
pub(crate) fn parse(text: &str) -> Result<Values, ParameterError> {
    match uri_body(text) {
        Some(body) => parse_uri(body),
        None => parse_pairs(text),
    }
}

fn uri_body(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
}

fn store(values: &mut Values, name: &str, value: String) -> Result<(), ParameterError> {
    // The way to ask for TLS before PostgreSQL 8.0, still accepted by libpq.
    if name == "requiressl" {
        values.set(
            "sslmode",
            if value.starts_with('1') {
                "require"
            } else {
                "prefer"
            },
        );
        return Ok(());
    }
    let keyword = keyword::find(name).ok_or_else(|| ParameterError::UnknownOption {
        name: name.to_owned(),
    })?;
    values.set(keyword, value);
    Ok(())
}

/// The blanks of C's `isspace`.
fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn parse_pairs(text: &str) -> Result<Values, ParameterError> {
    let mut values = Values::default();
    let mut rest = text.trim_start_matches(is_blank);
    while !rest.is_empty() {
        let end = rest
            .find(|character| character == '=' || is_blank(character))
            .unwrap_or(rest.len());
        let name = &rest[..end];
        rest = rest[end..].trim_start_matches(is_blank);
        let Some(after) = rest.strip_prefix('=') else {
            return Err(ParameterError::MissingEquals {
                name: name.to_owned(),
            });
        };
        let (value, after) = parse_value(after.trim_start_matches(is_blank))?;
        store(&mut values, name, value)?;
        rest = after.trim_start_matches(is_blank);
    }
    Ok(values)
}

/// One value, quoted or not, and what follows it.
fn parse_value(text: &str) -> Result<(String, &str), ParameterError> {
    let (body, quoted) = match text.strip_prefix('\'') {
        Some(body) => (body, true),
        None => (text, false),
    };
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((position, character)) = characters.next() {
        match character {
            // A lone backslash at the very end stands for nothing, as in libpq.
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[position + 1..])),
            blank if !quoted && is_blank(blank) => return Ok((value, &body[position..])),
            other => value.push(other),
        }
    }
    if quoted {
        Err(ParameterError::UnterminatedQuote)
    } else {
        Ok((value, ""))
    }
}

fn parse_uri(body: &str) -> Result<Values, ParameterError> {
    let mut values = Values::default();
    let mut rest = body;
    // Credentials end at the first '@' that comes before any '/'.
    if let Some(end) = rest.find(['@', '/']).filter(|end| rest[*end..].starts_with('@')) {
        let (user, password) = match rest[..end].split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (&rest[..end], None),
        };
        if !user.is_empty() {
            values.set("user", percent_decode(user)?);
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            values.set("password", percent_decode(password)?);
        }
        rest = &rest[end + 1..];
    }
    rest = parse_uri_hosts(rest, &mut values)?;
    if let Some(path) = rest.strip_prefix('/') {
        let end = path.find('?').unwrap_or(path.len());
        if end > 0 {
            values.set("dbname", percent_decode(&path[..end])?);
        }
        rest = &path[end..];
    }
    if let Some(query) = rest.strip_prefix('?').filter(|query| !query.is_empty()) {
        for parameter in query.split('&') {
            parse_uri_parameter(parameter, &mut values)?;
        }
    }
    Ok(values)
}

/// The comma-separated `host[:port]` list; gives back what follows it.
fn parse_uri_hosts<'text>(text: &'text str, values: &mut Values) -> Result<&'text str, ParameterError> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        let host;
        if let Some(bracketed) = rest.strip_prefix('[') {
            let end = bracketed.find(']').ok_or(ParameterError::BadUri {
                what: "a \"[\" is never closed by \"]\"",
            })?;
            host = &bracketed[..end];
            if host.is_empty() {
                return Err(ParameterError::BadUri {
                    what: "the IPv6 address between \"[\" and \"]\" is empty",
                });
            }
            rest = &bracketed[end + 1..];
            if !rest.is_empty() && !rest.starts_with([':', '/', '?', ',']) {
                return Err(ParameterError::BadUri {
                    what: "after \"]\" only \":\", \"/\", \"?\" or \",\" can follow",
                });
            }
        } else {
            let end = rest.find([':', '/', '?', ',']).unwrap_or(rest.len());
            host = &rest[..end];
            rest = &rest[end..];
        }
        hosts.push(host);
        let mut port = "";
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find(['/', '?', ',']).unwrap_or(after.len());
            port = &after[..end];
            rest = &after[end..];
        }
        ports.push(port);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => break,
        }
    }
    let (hosts, ports) = (hosts.join(","), ports.join(","));
    if !hosts.is_empty() {
        values.set("host", percent_decode(&hosts)?);
    }
    if !ports.is_empty() {
        values.set("port", percent_decode(&ports)?);
    }
    Ok(rest)
}

fn parse_uri_parameter(parameter: &str, values: &mut Values) -> Result<(), ParameterError> {
    let (name, value) = parameter.split_once('=').ok_or(ParameterError::BadUri {
        what: "a query parameter has no \"=\"",
    })?;
    if value.contains('=') {
        return Err(ParameterError::BadUri {
            what: "a query parameter has more than one \"=\" (write %3D)",
        });
    }
    let (name, value) = (percent_decode(name)?, percent_decode(value)?);
    // JDBC's spelling, which libpq accepts.
    if name == "ssl" && value == "true" {
        values.set("sslmode", "require");
        return Ok(());
    }
    store(values, &name, value)
}

fn percent_decode(text: &str) -> Result<String, ParameterError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
            return Err(ParameterError::BadUri {
                what: "a \"%\" is not followed by two hexadecimal digits (write %25 for \"%\")",
            });
        };
        match u8::try_from(high * 16 + low).expect("two hexadecimal digits make a byte") {
            0 => {
                return Err(ParameterError::BadUri {
                    what: "%00 is not allowed",
                });
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| ParameterError::BadUri {
        what: "percent-decoding gives no UTF-8 text",
    })
}

#[cfg(test)]
mod tests;
