//! `tls`: whether the server offers TLS, and how long the certificate that it serves is still good.
//!
//! The certificate is taken from a TLS handshake with the server, not from the file: a file that was
//! renewed but not reloaded does not help the clients.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use pgmahout_postgres::tls::served_certificates;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::locality;
use crate::health::{Check, Context, Failure, Finding, Limit, Measure, Rows, Status, Unit, Verdict};

/// How long the handshake may take.
const PATIENCE: Duration = Duration::from_secs(3);

const DAY: f64 = 86_400.0;

const LIMITS: &[Limit] = &[Limit::below(
    "tls",
    Unit::Seconds,
    Some(30.0 * DAY),
    Some(7.0 * DAY),
)];

/// The check of this file.
pub fn checks() -> Vec<Box<dyn Check>> {
    vec![Box::new(Tls)]
}

struct Tls;

#[async_trait]
impl Check for Tls {
    fn id(&self) -> &str {
        "tls"
    }

    fn title(&self) -> &str {
        "TLS offered, and time left on the certificate being served"
    }

    fn limits(&self) -> &[Limit] {
        LIMITS
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        let facts = context.facts()?;
        let listens = facts.setting("listen_addresses").unwrap_or_default();
        if facts.address.is_none() && listens.trim().is_empty() {
            return Ok(Verdict::not_applicable(
                "the server listens on no network address",
            ));
        }
        if facts.is_on("ssl") != Some(true) {
            return Ok(Finding::warn("ssl is off: passwords and data cross the network readable")
                .hint("set ssl = on with ssl_cert_file and ssl_key_file, reload, and use hostssl in pg_hba.conf")
                .into());
        }
        let Some((host, port)) = address(context, listens)? else {
            return Ok(Finding::unknown("ssl is on, but there is no address to try it at", None).into());
        };
        match served_certificates(&host, port, PATIENCE).await {
            Ok(Some(chain)) => Ok(judge(context, &chain).into()),
            Ok(None) => Ok(
                Finding::crit("ssl is on in the settings, but the server refuses TLS")
                    .hint("see the server's log for why the certificate or key could not be loaded")
                    .into(),
            ),
            Err(error) => Ok(Finding::unknown(
                format!(
                    "no TLS handshake with {host}:{port}: {}",
                    crate::health::failure::chain(&error)
                ),
                None,
            )
            .hint("see whether a firewall or pg_hba.conf is in the way")
            .into()),
        }
    }
}

/// Where a client on the network would connect.
fn address(context: &Context, listens: &str) -> Result<Option<(String, u16)>, Failure> {
    let facts = context.facts()?;
    if let Some((address, port)) = &facts.address {
        return Ok(u16::try_from(*port).ok().map(|port| (address.clone(), port)));
    }
    if !locality::is_local(context)? {
        return Ok(None);
    }
    let port = facts.number("port").and_then(|port| u16::try_from(port).ok());
    let host = listens.split(',').map(str::trim).find(|host| !host.is_empty());
    Ok(host.zip(port).map(|(host, port)| {
        let host = match host {
            "*" | "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            other => other,
        };
        (host.to_owned(), port)
    }))
}

fn judge(context: &Context, chain: &[Vec<u8>]) -> Finding {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64());
    let mut rows = Rows::new(["certificate", "issued by", "valid from", "valid until"]);
    let mut soonest: Option<(f64, String)> = None;
    for der in chain {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return Finding::unknown("the certificate being served cannot be parsed", None);
        };
        let validity = certificate.validity();
        let subject = certificate.subject().to_string();
        rows.push([
            subject.clone(),
            certificate.issuer().to_string(),
            validity.not_before.to_string(),
            validity.not_after.to_string(),
        ]);
        let left = validity.not_after.timestamp() as f64 - now;
        if soonest.as_ref().is_none_or(|(least, _)| left < *least) {
            soonest = Some((left, subject.clone()));
        }
        if (validity.not_before.timestamp() as f64) > now {
            return Finding::crit(format!("the certificate of {subject} is not valid yet"))
                .rows(rows)
                .hint("see whether the clocks are right: timedatectl");
        }
    }
    let Some((left, subject)) = soonest else {
        return Finding::unknown("the server served no certificate", None);
    };
    let evidence = if left < 0.0 {
        format!(
            "the certificate of {subject} expired {} ago",
            Measure::seconds(-left)
        )
    } else {
        format!(
            "the certificate of {subject} is good for {}",
            Measure::seconds(left)
        )
    };
    let finding = Finding::judged(Measure::seconds(left), context.limit("tls"), evidence).rows(rows);
    let finding = if left < 0.0 {
        finding.at_least(Status::Crit)
    } else {
        finding
    };
    finding.hint(
        "renew the certificate, replace ssl_cert_file and ssl_key_file, and reload: SELECT pg_reload_conf()",
    )
}
