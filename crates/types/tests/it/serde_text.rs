//! The text forms in JSON.

use pgmahout_types::{Lsn, SegmentName, SystemIdentifier, TimelineId, WalFileName};

/// Writes `value` and reads it back.
fn round_trip<T>(value: &T, json: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    assert_eq!(serde_json::to_string(value).expect("can be written"), json);
    assert_eq!(serde_json::from_str::<T>(json).expect("can be read"), *value);
}

#[test]
fn types_are_written_as_postgresql_writes_them() {
    let segment: SegmentName = "000000010000000000000003".parse().expect("a segment");
    round_trip(&Lsn::new(0x300_0028), r#""0/3000028""#);
    round_trip(&TimelineId::new(7).expect("not zero"), "7");
    round_trip(&SystemIdentifier::new(u64::MAX), r#""18446744073709551615""#);
    round_trip(&segment, r#""000000010000000000000003""#);
    round_trip(
        &WalFileName::Partial(segment),
        r#""000000010000000000000003.partial""#,
    );
}

#[test]
fn a_system_identifier_may_be_a_number_too() {
    let read: SystemIdentifier = serde_json::from_str("7383921345678901234").expect("a number");
    assert_eq!(read, SystemIdentifier::new(7_383_921_345_678_901_234));
}

#[test]
fn impossible_values_are_not_read() {
    assert!(serde_json::from_str::<TimelineId>("0").is_err());
    assert!(serde_json::from_str::<Lsn>("3").is_err());
    let error = serde_json::from_str::<Lsn>(r#""0-3""#).expect_err("no position");
    assert!(
        error.to_string().starts_with("\"0-3\" is not a WAL position"),
        "{error}"
    );
    assert!(serde_json::from_str::<SystemIdentifier>("-1").is_err());
    assert!(serde_json::from_str::<WalFileName>(r#""00000000.history""#).is_err());
}
