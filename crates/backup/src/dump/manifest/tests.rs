use super::*;

#[test]
fn a_manifest_survives_being_stored() {
    let manifest = sample();
    assert_eq!(
        DumpManifest::from_slice(&manifest.to_vec()).expect("reads"),
        manifest
    );
}

#[test]
fn keys_and_words_of_a_later_version_do_not_prevent_reading() {
    let mut value: serde_json::Value = serde_json::from_slice(&sample().to_vec()).expect("json");
    value["invented_later"] = serde_json::json!({"a": [1]});
    value["options"]["format"] = "parquet".into();
    value["options"]["invented"] = 3.into();
    value["tables"][0]["precision"] = "sampled".into();
    let read = DumpManifest::from_slice(&serde_json::to_vec(&value).expect("json")).expect("reads");
    assert_eq!(read.options.format, Format::Unknown);
    assert_eq!(read.tables[0].precision, Precision::None);
    assert_eq!(read.total_rows(), (3, false));
}

#[test]
fn a_manifest_of_a_newer_schema_is_refused_and_not_misread() {
    let mut value: serde_json::Value = serde_json::from_slice(&sample().to_vec()).expect("json");
    value["schema_version"] = 2.into();
    let error = AnyManifest::from_slice(&serde_json::to_vec(&value).expect("json")).expect_err("refused");
    assert!(matches!(error, ManifestError::Newer { found: 2 }), "{error}");
}

#[test]
fn a_cut_manifest_is_damaged() {
    let bytes = sample().to_vec();
    for length in [0, 1, bytes.len() / 2, bytes.len() - 3] {
        let error = DumpManifest::from_slice(&bytes[..length]).expect_err("refused");
        assert!(matches!(error, ManifestError::Damaged(_)), "{error}");
    }
}

#[test]
fn the_two_kinds_are_told_apart() {
    let bundle = BundleManifest {
        schema_version: SCHEMA_VERSION,
        kind: BundleManifest::KIND.to_owned(),
        tool: Tool::current(),
        purpose: BundlePurpose::Set,
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        members: vec![],
    };
    let read = AnyManifest::from_slice(&bundle.to_vec()).expect("reads");
    assert_eq!(read, AnyManifest::Bundle(bundle.clone()));
    assert!(matches!(
        DumpManifest::from_slice(&bundle.to_vec()),
        Err(ManifestError::WrongKind { .. })
    ));
}
