//! From text to rules.

use super::token::{self, HbaToken};
use super::{ConnectionType, HbaAddress, HbaContent, HbaError, HbaFile, HbaLine, HbaRule};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// As in the server (`conffiles.h`, `CONF_FILE_MAX_DEPTH`).
const DEEPEST: usize = 10;

impl HbaFile {
    /// Reads a file and what it includes.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or a line is wrong.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, HbaError> {
        let path = path.as_ref();
        Self::parse(&read_text(path)?, path)
    }

    /// Reads text that stands for the content of `path`; relative names count from there.
    ///
    /// # Errors
    ///
    /// As [`HbaFile::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, HbaError> {
        Ok(Self {
            path: path.to_owned(),
            lines: parse_text(text, path, 0)?,
            changed: false,
        })
    }
}

fn read_text(path: &Path) -> Result<String, HbaError> {
    let bytes = std::fs::read(path).map_err(|source| HbaError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(bytes).map_err(|error| HbaError::Unreadable {
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
    })
}

/// Lines of the file, a backslash at the end of one joining it with the next: text, joined text, number.
fn logical_lines(text: &str) -> Vec<(String, String, usize)> {
    let mut lines = Vec::new();
    let mut physical = text.split('\n').enumerate().peekable();
    while let Some((index, first)) = physical.next() {
        if physical.peek().is_none() && first.is_empty() {
            break;
        }
        let (mut raw, mut joined) = (first.to_owned(), first.trim_end_matches('\r').to_owned());
        while joined.ends_with('\\') {
            joined.pop();
            let Some((_, next)) = physical.next() else { break };
            raw.push('\n');
            raw.push_str(next);
            joined.push_str(next.trim_end_matches('\r'));
        }
        lines.push((raw, joined, index + 1));
    }
    lines
}

fn parse_text(text: &str, path: &Path, depth: usize) -> Result<Vec<HbaLine>, HbaError> {
    let mut lines = Vec::new();
    for (raw, joined, number) in logical_lines(text) {
        let place = Place { path, number, depth };
        let content = parse_line(&joined, &place)?;
        lines.push(HbaLine {
            text: raw,
            number,
            file: path.to_owned(),
            content,
        });
    }
    Ok(lines)
}

struct Place<'a> {
    path: &'a Path,
    number: usize,
    depth: usize,
}

impl Place<'_> {
    fn wrong(&self, what: impl Into<String>) -> HbaError {
        HbaError::Syntax {
            path: self.path.to_owned(),
            line: self.number,
            what: what.into(),
        }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new(".")).join(name)
    }
}

pub(super) fn parse_rule(line: &str, path: &Path) -> Result<HbaRule, HbaError> {
    let place = Place {
        path,
        number: 0,
        depth: 0,
    };
    match parse_line(line, &place)? {
        HbaContent::Rule(rule) => Ok(rule),
        _ => Err(place.wrong("this is no rule")),
    }
}

fn parse_line(line: &str, place: &Place<'_>) -> Result<HbaContent, HbaError> {
    let fields = token::fields(line);
    let Some(first) = fields.first() else {
        return Ok(HbaContent::Nothing);
    };
    if let ([directive], [_, target]) = (first.as_slice(), fields.as_slice())
        && matches!(
            directive.text.as_str(),
            "include" | "include_if_exists" | "include_dir"
        )
        && let [target] = target.as_slice()
    {
        return include(&directive.text, &target.text, place);
    }
    let fields = fields
        .into_iter()
        .map(|field| expand(field, place, 0))
        .collect::<Result<Vec<_>, _>>()?;
    rule(&fields, place).map(HbaContent::Rule)
}

fn include(directive: &str, target: &str, place: &Place<'_>) -> Result<HbaContent, HbaError> {
    if place.depth >= DEEPEST {
        return Err(place.wrong("files include each other"));
    }
    let path = place.beside(target);
    let mut files = Vec::new();
    if directive == "include_dir" {
        let unreadable = |source| HbaError::Unreadable {
            path: path.clone(),
            source,
        };
        for entry in std::fs::read_dir(&path).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            let name = file
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            if name.len() > 5 && name.as_bytes().ends_with(b".conf") && !name.starts_with('.') {
                files.push(file);
            }
        }
        files.sort();
    } else if directive == "include" || path.exists() {
        files.push(path);
    }
    let mut lines = Vec::new();
    for file in files {
        lines.extend(parse_text(&read_text(&file)?, &file, place.depth + 1)?);
    }
    Ok(HbaContent::Include {
        directive: directive.to_owned(),
        target: target.to_owned(),
        lines,
    })
}

/// Resolves `@file`: the words of the file, each line of it too.
fn expand(field: Vec<HbaToken>, place: &Place<'_>, depth: usize) -> Result<Vec<HbaToken>, HbaError> {
    let mut expanded = Vec::new();
    for token in field {
        let name = token
            .text
            .strip_prefix('@')
            .filter(|name| !token.quoted && !name.is_empty());
        let Some(name) = name else {
            expanded.push(token);
            continue;
        };
        if depth >= DEEPEST {
            return Err(place.wrong("files name each other with @"));
        }
        let path = place.beside(name);
        let text = read_text(&path)?;
        let inner = Place {
            path: &path,
            number: 1,
            depth: place.depth,
        };
        for (_, line, _) in logical_lines(&text) {
            for field in token::fields(&line) {
                expanded.extend(expand(field, &inner, depth + 1)?);
            }
        }
    }
    Ok(expanded)
}

fn single<'a>(
    field: Option<&'a Vec<HbaToken>>,
    what: &str,
    place: &Place<'_>,
) -> Result<&'a HbaToken, HbaError> {
    match field.map(Vec::as_slice) {
        Some([token]) => Ok(token),
        Some(_) => Err(place.wrong(format!("there can be only one {what}"))),
        None => Err(place.wrong(format!("the line ends before the {what}"))),
    }
}

/// Methods of PostgreSQL 15 to 18 (`hba.c`, `UserAuthName`).
const METHODS: [&str; 14] = [
    "reject",
    "trust",
    "ident",
    "peer",
    "password",
    "md5",
    "scram-sha-256",
    "gss",
    "sspi",
    "pam",
    "bsd",
    "ldap",
    "cert",
    "radius",
];

fn rule(fields: &[Vec<HbaToken>], place: &Place<'_>) -> Result<HbaRule, HbaError> {
    let mut fields = fields.iter();
    let word = single(fields.next(), "connection type", place)?;
    let connection = ConnectionType::ALL
        .into_iter()
        .find(|connection| connection.as_str() == word.text)
        .ok_or_else(|| place.wrong(format!("\"{}\" is no connection type", word.text)))?;
    let list = |field: Option<&Vec<HbaToken>>, what: &str| {
        field
            .cloned()
            .ok_or_else(|| place.wrong(format!("the line ends before the {what}")))
    };
    let databases = list(fields.next(), "database")?;
    let users = list(fields.next(), "role")?;
    let address = if connection == ConnectionType::Local {
        None
    } else {
        let token = single(fields.next(), "address", place)?;
        Some(address(token, &mut fields, place)?)
    };
    let method = single(fields.next(), "authentication method", place)?
        .text
        .clone();
    if !METHODS.contains(&method.as_str()) && method != "oauth" {
        return Err(place.wrong(format!("\"{method}\" is no authentication method")));
    }
    let mut options = Vec::new();
    for field in fields {
        for token in field {
            let (name, value) = token
                .text
                .split_once('=')
                .ok_or_else(|| place.wrong(format!("the option \"{}\" is not name=value", token.text)))?;
            options.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(HbaRule {
        connection,
        databases,
        users,
        address,
        method,
        options,
    })
}

fn address<'a>(
    token: &HbaToken,
    fields: &mut impl Iterator<Item = &'a Vec<HbaToken>>,
    place: &Place<'_>,
) -> Result<HbaAddress, HbaError> {
    for (keyword, address) in [
        ("all", HbaAddress::All),
        ("samehost", HbaAddress::SameHost),
        ("samenet", HbaAddress::SameNet),
    ] {
        if token.is_keyword(keyword) {
            return Ok(address);
        }
    }
    if let Some((text, length)) = token.text.split_once('/') {
        let address: IpAddr = text
            .parse()
            .map_err(|_| place.wrong(format!("a mask can follow an address only, not \"{text}\"")))?;
        let mask = length
            .parse()
            .ok()
            .and_then(|length| mask(address, length))
            .ok_or_else(|| place.wrong(format!("\"{}\" has no valid mask", token.text)))?;
        return Ok(HbaAddress::Network { address, mask });
    }
    let Ok(address) = token.text.parse::<IpAddr>() else {
        return Ok(HbaAddress::Host(token.text.clone()));
    };
    let text = &single(fields.next(), "mask", place)?.text;
    let mask: IpAddr = text
        .parse()
        .map_err(|_| place.wrong(format!("\"{text}\" is no mask")))?;
    if address.is_ipv4() != mask.is_ipv4() {
        return Err(place.wrong("address and mask are of different kinds"));
    }
    Ok(HbaAddress::Network { address, mask })
}

fn mask(address: IpAddr, length: u32) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) if length <= 32 => {
            Some(Ipv4Addr::from(u32::MAX.checked_shl(32 - length).unwrap_or(0)).into())
        }
        IpAddr::V6(_) if length <= 128 => {
            Some(Ipv6Addr::from(u128::MAX.checked_shl(128 - length).unwrap_or(0)).into())
        }
        _ => None,
    }
}

/// The length of a mask that is ones and then zeros.
pub(super) fn prefix_length(mask: IpAddr) -> Option<u32> {
    match mask {
        IpAddr::V4(mask) => {
            let bits = u32::from(mask);
            (bits.leading_ones() + bits.trailing_zeros() >= 32).then(|| bits.leading_ones())
        }
        IpAddr::V6(mask) => {
            let bits = u128::from(mask);
            (bits.leading_ones() + bits.trailing_zeros() >= 128).then(|| bits.leading_ones())
        }
    }
}
