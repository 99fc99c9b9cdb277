//! Which rule decides about a connection: the first that matches (`hba.c`, `check_hba`).

use super::{ConnectionType, HbaAddress, HbaContent, HbaFile, HbaLine, HbaRule, HbaToken};
use std::net::IpAddr;

/// Where a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HbaClient {
    /// Through a Unix socket.
    Local,
    /// From this address.
    Address(IpAddr),
}

/// A connection to be judged.
#[derive(Debug, Clone, Copy)]
pub struct HbaQuery<'a> {
    /// The role.
    pub user: &'a str,
    /// The database.
    pub database: &'a str,
    /// Where from.
    pub client: HbaClient,
    /// Whether it is encrypted by TLS.
    pub tls: bool,
    /// Whether it is for physical replication, which only the word `replication` admits.
    pub replication: bool,
    /// Every role that the user is a member of, directly or not, for `+role` and `samerole`; `None`: not
    /// known.
    pub member_of: Option<&'a [String]>,
}

/// The judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HbaVerdict<'a> {
    /// This line decides; its method may be `reject`.
    Decided(&'a HbaLine, &'a HbaRule),
    /// No line matches, which the server rejects.
    NoMatch,
    /// This line may match: what it asks cannot be told from here.
    Unknown(&'a HbaLine, &'static str),
}

/// A match of one part.
enum Part {
    Yes,
    No,
    Unknown(&'static str),
}

impl From<bool> for Part {
    fn from(matches: bool) -> Self {
        if matches { Self::Yes } else { Self::No }
    }
}

impl HbaFile {
    /// The line that decides about a connection.
    pub fn first_match(&self, query: &HbaQuery<'_>) -> HbaVerdict<'_> {
        look(self.lines(), query).unwrap_or(HbaVerdict::NoMatch)
    }

    /// The same for a role, a database, an address (`None`: a socket) and TLS.
    pub fn matches(&self, user: &str, database: &str, address: Option<IpAddr>, tls: bool) -> HbaVerdict<'_> {
        let client = address.map_or(HbaClient::Local, HbaClient::Address);
        self.first_match(&HbaQuery {
            user,
            database,
            client,
            tls,
            replication: false,
            member_of: None,
        })
    }
}

fn look<'a>(lines: &'a [HbaLine], query: &HbaQuery<'_>) -> Option<HbaVerdict<'a>> {
    lines.iter().find_map(|line| match &line.content {
        HbaContent::Nothing => None,
        HbaContent::Include { lines, .. } => look(lines, query),
        HbaContent::Rule(rule) => match judge(rule, query) {
            Part::Yes => Some(HbaVerdict::Decided(line, rule)),
            Part::No => None,
            Part::Unknown(why) => Some(HbaVerdict::Unknown(line, why)),
        },
    })
}

/// All parts must match; one that surely does not outweighs one that cannot be told.
fn judge(rule: &HbaRule, query: &HbaQuery<'_>) -> Part {
    let mut unknown = None;
    for part in [
        Part::from(connection_matches(rule.connection, query)),
        address_matches(rule.address.as_ref(), query.client),
        any(&rule.databases, |token| database_matches(token, query)),
        any(&rule.users, |token| user_matches(token, query)),
    ] {
        match part {
            Part::Yes => {}
            Part::No => return Part::No,
            Part::Unknown(why) => unknown = Some(why),
        }
    }
    unknown.map_or(Part::Yes, Part::Unknown)
}

fn connection_matches(connection: ConnectionType, query: &HbaQuery<'_>) -> bool {
    let is_local = query.client == HbaClient::Local;
    match connection {
        ConnectionType::Local => is_local,
        ConnectionType::Host | ConnectionType::HostNoGssEnc => !is_local,
        ConnectionType::HostSsl => !is_local && query.tls,
        ConnectionType::HostNoSsl => !is_local && !query.tls,
        // This client never encrypts by GSSAPI.
        ConnectionType::HostGssEnc => false,
    }
}

fn address_matches(address: Option<&HbaAddress>, client: HbaClient) -> Part {
    let (Some(address), HbaClient::Address(client)) = (address, client) else {
        return Part::Yes;
    };
    match address {
        HbaAddress::All => Part::Yes,
        HbaAddress::SameHost if client.is_loopback() => Part::Yes,
        HbaAddress::SameHost | HbaAddress::SameNet => {
            Part::Unknown("it depends on the server's own network addresses")
        }
        HbaAddress::Network { address, mask } => masked(*address, *mask)
            .zip(masked(client, *mask))
            .is_some_and(|(rule, client)| rule == client)
            .into(),
        HbaAddress::Host(_) => Part::Unknown("it depends on how the server resolves names"),
    }
}

fn masked(address: IpAddr, mask: IpAddr) -> Option<u128> {
    match (address, mask) {
        (IpAddr::V4(address), IpAddr::V4(mask)) => Some(u128::from(u32::from(address) & u32::from(mask))),
        (IpAddr::V6(address), IpAddr::V6(mask)) => Some(u128::from(address) & u128::from(mask)),
        _ => None,
    }
}

fn any(tokens: &[HbaToken], judge: impl Fn(&HbaToken) -> Part) -> Part {
    let mut outcome = Part::No;
    for token in tokens {
        match judge(token) {
            Part::Yes => return Part::Yes,
            Part::No => {}
            Part::Unknown(why) => outcome = Part::Unknown(why),
        }
    }
    outcome
}

const UNKNOWN_ROLES: &str = "it depends on the roles that the user is a member of";
const REGULAR_EXPRESSION: &str = "it holds a regular expression, which only the server evaluates";

fn database_matches(token: &HbaToken, query: &HbaQuery<'_>) -> Part {
    if query.replication {
        return token.is_keyword("replication").into();
    }
    if token.is_keyword("all") {
        return Part::Yes;
    }
    if token.is_keyword("sameuser") {
        return (query.user == query.database).into();
    }
    if token.is_keyword("samerole") || token.is_keyword("samegroup") {
        return member(query, query.database);
    }
    if token.is_keyword("replication") {
        return Part::No;
    }
    if !token.quoted && token.text.starts_with('/') {
        return Part::Unknown(REGULAR_EXPRESSION);
    }
    (token.text == query.database).into()
}

fn user_matches(token: &HbaToken, query: &HbaQuery<'_>) -> Part {
    if token.is_keyword("all") {
        return Part::Yes;
    }
    if !token.quoted
        && let Some(role) = token.text.strip_prefix('+')
    {
        return member(query, role);
    }
    if !token.quoted && token.text.starts_with('/') {
        return Part::Unknown(REGULAR_EXPRESSION);
    }
    (token.text == query.user).into()
}

fn member(query: &HbaQuery<'_>, role: &str) -> Part {
    match query.member_of {
        _ if query.user == role => Part::Yes,
        Some(roles) => roles.iter().any(|member| member == role).into(),
        None => Part::Unknown(UNKNOWN_ROLES),
    }
}
