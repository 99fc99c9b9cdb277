use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::*;

/// One request on a connection of its own; the raw answer until its end.
fn exchange(server: &S3Server, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(server.address())?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let host = server.address();
    write!(
        stream,
        "{request} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn requests_fail_as_told_and_no_more_often() {
    let server = S3Server::start();
    let plain = exchange(&server, "GET /backups/key").unwrap();
    assert!(plain.contains("403"), "an unsigned request is refused: {plain}");

    server.inject(
        Rule::new(Fault::Status(503))
            .method("PUT")
            .containing("key")
            .after(1)
            .times(2),
    );
    let statuses: Vec<bool> = (0..4)
        .map(|_| {
            exchange(&server, "PUT /backups/key")
                .unwrap()
                .contains("SlowDown")
        })
        .collect();
    assert_eq!(statuses, [false, true, true, false]);

    server.inject(Rule::new(Fault::Reset));
    assert_eq!(exchange(&server, "GET /backups/key").unwrap_or_default(), "");

    server.inject(Rule::new(Fault::Stall));
    let error = exchange(&server, "GET /backups/key").unwrap_err();
    assert!(matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    ));

    server.inject(Rule::new(Fault::CutBody { after: 10 }).always());
    let cut = exchange(&server, "GET /backups/key").unwrap();
    let body = cut.split_once("\r\n\r\n").unwrap().1;
    assert!(body.contains("<?xml") && !body.contains("</Error>"), "{cut}");
    server.clear_faults();
    assert!(
        exchange(&server, "GET /backups/key")
            .unwrap()
            .contains("</Error>")
    );
    assert_eq!(server.requests()[0], "GET /backups/key");
    assert_eq!(server.recorded()[0].headers["connection"], "close");

    server.inject(Rule::new(Fault::LoseAnswer));
    assert_eq!(exchange(&server, "GET /backups/key").unwrap_or_default(), "");
}

#[test]
fn a_listing_that_is_behind_shows_only_what_was_there() {
    let entry = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
    let listing = format!(
        "<List>{}{}<KeyCount>2</KeyCount></List>",
        entry("old"),
        entry("new")
    );
    let listed = BTreeSet::from(["old".to_owned()]);
    assert_eq!(
        without_newer(&listing, &listed),
        format!("<List>{}<KeyCount>2</KeyCount></List>", entry("old"))
    );
}

#[test]
fn a_seed_decides_which_requests_fail() {
    let failures = |seed| {
        let faults = Faults::default();
        faults.set_weather(seed, 20, &[Fault::Status(503), Fault::Reset]);
        (0..500).map(|_| faults.take("GET", "/")).collect::<Vec<_>>()
    };
    let one = failures(7);
    assert_eq!(one, failures(7));
    assert_ne!(one, failures(8));
    let failed = one.iter().flatten().count();
    assert!((60..140).contains(&failed), "{failed} of 500");
}
