use super::*;

/// A manifest for tests of what reads them.
pub(crate) fn sample() -> DumpManifest {
    let instant: Timestamp = "2026-11-21T03:15:00Z".parse().expect("a timestamp");
    DumpManifest {
        schema_version: SCHEMA_VERSION,
        kind: DumpManifest::KIND.to_owned(),
        tool: Tool::current(),
        file: "backup_shop.sql.gz".to_owned(),
        server: Server {
            version: "15.18".to_owned(),
            version_number: 150_018,
            system_identifier: Some("7375482910283746152".to_owned()),
            address: "localhost:5432".to_owned(),
            in_recovery: false,
        },
        client_version: "15.18".to_owned(),
        database: Database {
            name: "shop".to_owned(),
            encoding: "UTF8".to_owned(),
            collate: "C".to_owned(),
            ctype: "C".to_owned(),
            locale_provider: "libc".to_owned(),
            locale: None,
            collation_version: None,
            collation_actual_version: None,
            collations: BTreeMap::new(),
            extensions: vec![],
            size_bytes: 1,
        },
        snapshot: None,
        started_at: instant,
        finished_at: instant,
        options: Options {
            format: Format::Plain,
            contents: Contents::Full,
            jobs: 1,
            tables: vec![],
            schemas: vec![],
            exclude_tables: vec![],
            exclude_schemas: vec![],
            exclude_table_data: vec![],
            owner: false,
            acl: false,
        },
        compression: "gzip:6".to_owned(),
        encryption: None,
        content: Extent::default(),
        stored: Extent::default(),
        counts: CountMode::Exact,
        tables: vec![TableRows {
            schema: "public".to_owned(),
            name: "orders".to_owned(),
            rows: Some(3),
            precision: Precision::Exact,
        }],
        companions: vec![],
        warnings: vec![],
        verification: Verification::default(),
    }
}

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
        skipped: vec![],
    };
    let read = AnyManifest::from_slice(&bundle.to_vec()).expect("reads");
    assert_eq!(read, AnyManifest::Bundle(bundle.clone()));
    assert!(matches!(
        DumpManifest::from_slice(&bundle.to_vec()),
        Err(ManifestError::WrongKind { .. })
    ));
}
