//! What the server says before anything is received, and what is refused.

use std::net::{IpAddr, TcpListener, ToSocketAddrs as _};

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::{ConnectionParameters, HostTarget};
use pgmahout_types::{Lsn, SegmentSize};

use super::{ReceiveError, ReceiveRequest};

/// What the server says before anything is received.
pub(super) struct Server {
    pub(super) size: SegmentSize,
    pub(super) slot_start: Option<Lsn>,
    pub(super) has_slot: bool,
}

/// Asks the server, and refuses what cannot work.
pub(super) async fn look(request: &ReceiveRequest, connection: &Connection) -> Result<Server, ReceiveError> {
    // Who may not see other sessions sees no names, and then nothing can be said.
    let row = connection
        .query_one(
            "SELECT pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')), \
             (SELECT restart_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = $1), \
             EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1), \
             pg_catalog.current_setting('synchronous_commit'), \
             pg_catalog.current_setting('synchronous_standby_names'), \
             (SELECT min(application_name) FROM pg_catalog.pg_stat_activity WHERE application_name LIKE 'Patroni%')",
            &[&request.slot],
        )
        .await
        .map_err(ReceiveError::Sql)?;
    let waits = names_us(
        row.get(4),
        request.server.application_name.as_deref().unwrap_or_default(),
    );
    if request.synchronous || waits {
        let agent = request
            .ha_agent
            .clone()
            .or_else(|| row.get::<_, Option<String>>(5).map(|_| "Patroni".to_owned()));
        refuse(
            row.get(3),
            !request.other_host && is_local(connection.parameters()),
            agent.as_deref(),
            waits,
        )?;
    }
    let size = u64::try_from(row.get::<_, i64>(0)).unwrap_or_default();
    Ok(Server {
        size: SegmentSize::new(size).unwrap_or_default(),
        slot_start: row
            .get::<_, Option<String>>(1)
            .and_then(|text| text.parse::<Lsn>().ok()),
        has_slot: row.get(2),
    })
}

/// What no server may wait for.
fn refuse(
    synchronous_commit: &str,
    is_local: bool,
    agent: Option<&str>,
    waits: bool,
) -> Result<(), ReceiveError> {
    let without = if waits {
        "take it out of synchronous_standby_names, for which commits wait until then"
    } else {
        "receive without --synchronous"
    };
    let refused = |what: String, hint: String| Err(ReceiveError::Refused { what, hint });
    if synchronous_commit == "remote_apply" {
        return refused(
            "with synchronous_commit = remote_apply the server would wait for ever: a receiver applies nothing"
                .to_owned(),
            format!("set synchronous_commit to on, or {without}"),
        );
    }
    if let Some(agent) = agent {
        return refused(
            format!(
                "{agent} manages this cluster: an election would not know what only a synchronous receiver has"
            ),
            format!("let a standby be synchronous, and {without}"),
        );
    }
    if is_local {
        return refused(
            "a synchronous receiver on the server's own host protects from nothing: both are lost together"
                .to_owned(),
            format!(
                "run it on another host, or {without}; where the server is on another one and only its address is \
                 this one's (a tunnel), say --other-host"
            ),
        );
    }
    Ok(())
}

/// Whether `synchronous_standby_names` names a standby of that name (`src/backend/replication/syncrep_gram.y`):
/// names, quoted or not, behind `FIRST n` or `ANY n` in parentheses; `*` is any.
fn names_us(setting: &str, name: &str) -> bool {
    let list = match (setting.find('('), setting.rfind(')')) {
        (Some(open), Some(close)) if open < close => &setting[open + 1..close],
        _ => setting,
    };
    list.split(',')
        .map(str::trim)
        .map(|item| match item.strip_prefix('"') {
            Some(quoted) => quoted.strip_suffix('"').unwrap_or(quoted).replace("\"\"", "\""),
            None => item.to_owned(),
        })
        .any(|item| item == "*" || (!item.is_empty() && item.eq_ignore_ascii_case(name)))
}

/// Whether the server that was reached is on this host.
fn is_local(parameters: &ConnectionParameters) -> bool {
    let ours = |address: IpAddr| address.is_loopback() || is_own(address);
    parameters.hosts.iter().any(|host| match &host.target {
        HostTarget::Address { address, .. } => address.parse().is_ok_and(ours),
        HostTarget::Name(name) => (name.as_str(), host.port)
            .to_socket_addrs()
            .is_ok_and(|mut found| found.any(|address| ours(address.ip()))),
        HostTarget::Socket(_) => true,
    })
}

/// Whether an address is one of this host: only such a one can be listened on.
fn is_own(address: IpAddr) -> bool {
    TcpListener::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_knows_whether_the_server_waits_for_it() {
        for (setting, waits) in [
            ("", false),
            ("pgmahout", true),
            ("PgMahout", true),
            ("one, pgmahout", true),
            ("*", true),
            ("FIRST 1 (one, \"pgmahout\")", true),
            ("ANY 2 (one, *)", true),
            ("2 (one, two)", false),
            ("first, any", false),
            ("pgmahout2", false),
        ] {
            assert_eq!(names_us(setting, "pgmahout"), waits, "{setting}");
        }
    }

    #[test]
    fn what_no_server_may_wait_for_is_refused() {
        let what = |commit, local, agent, waits| match refuse(commit, local, agent, waits) {
            Err(ReceiveError::Refused { what, hint }) => format!("{what}; {hint}"),
            _ => String::new(),
        };
        assert!(what("remote_apply", false, None, false).contains("wait for ever"));
        assert!(what("on", true, None, false).contains("without --synchronous"));
        assert!(what("on", true, None, true).contains("out of synchronous_standby_names"));
        assert!(what("on", false, Some("Patroni"), true).contains("an election"));
        assert_eq!(what("on", false, None, true), "");
    }
}
