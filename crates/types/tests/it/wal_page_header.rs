//! What the first page of a segment says, compared with what the server says.

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_types::wal::{SegmentName, SegmentSize};
use pgmahout_types::{SystemIdentifier, WalPageHeader};

async fn the_first_page_says_whose_wal_it_is(major: Major) {
    let server = Postgres::builder(major)
        .own_system_identifier()
        .initdb_arg("--wal-segsize=4")
        .start()
        .await;
    let name = server
        .query_text("postgres", "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        .await;
    let name: SegmentName = name.trim().parse().expect("a name");
    let identifier = server
        .query_text("postgres", "SELECT system_identifier FROM pg_control_system()")
        .await;
    let identifier: SystemIdentifier = identifier.trim().parse().expect("a number");

    let segment =
        std::fs::read(server.data_dir().join("pg_wal").join(name.to_string())).expect("it is there");
    let header = WalPageHeader::parse(&segment).expect("the server's own page");
    assert_eq!(header.major(), Some(major.number()));
    assert_eq!(header.system_identifier, identifier);
    assert_eq!(header.segment_size, SegmentSize::new(4 << 20).expect("a size"));
    assert_eq!(header.block_size, 8192);
    assert_eq!(header.check_name(name), Ok(()));
    let next = name
        .next(header.segment_size)
        .expect("of this size")
        .expect("not the last");
    assert!(header.check_name(next).is_err());
}

#[tokio::test]
async fn a_segment_of_postgresql_15_is_recognised() {
    the_first_page_says_whose_wal_it_is(Major::V15).await;
}

#[tokio::test]
async fn a_segment_of_postgresql_18_is_recognised() {
    the_first_page_says_whose_wal_it_is(Major::V18).await;
}
