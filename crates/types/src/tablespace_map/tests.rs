use proptest::prelude::*;

use super::*;

fn link(oid: u32, location: &[u8]) -> TablespaceLink {
    TablespaceLink {
        oid,
        location: OsString::from_vec(location.to_vec()).into(),
    }
}

#[test]
fn a_map_is_read_and_written_back_byte_for_byte() {
    let content = b"16384 /srv/fast disk\n16385 /srv/odd\\\nname\\\\with\\\rall\n16386 pg_tblspc/16386\n";
    let map = TablespaceMap::parse(content).expect("a map");
    assert_eq!(
        map.links(),
        [
            link(16_384, b"/srv/fast disk"),
            link(16_385, b"/srv/odd\nname\\with\rall"),
            link(16_386, b"pg_tblspc/16386")
        ]
    );
    assert_eq!(map.render(), content);
    assert_eq!(TablespaceMap::parse(b""), Ok(TablespaceMap::default()));
}

#[test]
fn line_ends_of_windows_are_taken_as_the_server_does() {
    let map = TablespaceMap::parse(b"16384 /a\r\n16385 /b\r\n").expect("a map");
    assert_eq!(map.links(), [link(16_384, b"/a"), link(16_385, b"/b")]);
}

#[test]
fn maps_that_the_server_refuses_are_refused() {
    let lines: [&[u8]; 9] = [
        b"16384\n",
        b"16384 \n",
        b" /a\n",
        b"x /a\n",
        b"0 /a\n",
        b"-1 /a\n",
        b"4294967296 /a\n",
        b"16384 /a\0b\n",
        b"\xFF /a\n",
    ];
    for content in lines {
        let error = TablespaceMap::parse(content).expect_err("no number and path");
        assert!(
            matches!(error, TablespaceMapError::Line { line: 1, .. }),
            "{content:?}: {error}"
        );
        assert!(error.hint().is_some());
    }
    let unfinished: [&[u8]; 3] = [b"16384 /a", b"16384 /a\n1", b"16384 /a\n\\"];
    for content in unfinished {
        assert_eq!(
            TablespaceMap::parse(content),
            Err(TablespaceMapError::Unfinished),
            "{content:?}"
        );
    }
    assert_eq!(
        TablespaceMap::parse(b"1 /a\n1 /b\n"),
        Err(TablespaceMapError::Twice { oid: 1 })
    );
}

#[test]
fn chosen_links_are_checked_like_read_ones() {
    for bad in [link(0, b"/a"), link(1, b""), link(1, b"/a\0")] {
        assert!(TablespaceMap::new([bad]).is_err());
    }
    assert_eq!(
        TablespaceMap::new([link(1, b"/a"), link(1, b"/b")]),
        Err(TablespaceMapError::Twice { oid: 1 })
    );
}

proptest! {
    #[test]
    fn maps_round_trip(links in proptest::collection::btree_map(1..=u32::MAX, proptest::collection::vec(1_u8..=255, 1..40), 0..5)) {
        let links = links.into_iter().map(|(oid, location)| link(oid, &location));
        let map = TablespaceMap::new(links).expect("links are good");
        prop_assert_eq!(TablespaceMap::parse(&map.render()), Ok(map));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = TablespaceMap::parse(&bytes);
    }

    #[test]
    fn arbitrary_lines_are_a_map_or_an_error(content in "([0-9]{0,3} ?[a/\\\\\r]{0,5}\n?){0,4}") {
        if let Ok(map) = TablespaceMap::parse(content.as_bytes()) {
            prop_assert_eq!(TablespaceMap::parse(&map.render()), Ok(map));
        }
    }
}
