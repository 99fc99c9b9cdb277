use super::*;
use crate::dump::expire::{decide, policy::Policy};
use crate::dump::manifest::{Companion, CompanionRole, Extent, RestoreTest, SCHEMA_VERSION, Tool, sample};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a timestamp")
}

fn item(name: &str, bytes: u64) -> Item {
    Item {
        name: name.to_owned(),
        bytes,
        modified: at("2026-11-21T03:15:00Z"),
    }
}

fn manifest(file: &str, day: u8) -> DumpManifest {
    let mut manifest = sample();
    manifest.file = file.to_owned();
    manifest.started_at = at(&format!("2026-11-{day:02}T03:15:00Z"));
    manifest.stored.bytes = 100;
    manifest.verification.read_back_at = Some(manifest.started_at);
    manifest
}

fn catalog(items: Vec<Item>, manifests: Vec<AnyManifest>) -> Catalog {
    let mut items = items;
    let mut named = BTreeMap::new();
    for manifest in manifests {
        let name = match &manifest {
            AnyManifest::Dump(manifest) => DumpManifest::name_for(&manifest.file),
            AnyManifest::Bundle(_) => "all.bundle.json".to_owned(),
        };
        items.push(item(&name, 1000));
        named.insert(name, Ok(manifest));
    }
    assemble(items, named)
}

fn of(manifest: DumpManifest) -> AnyManifest {
    AnyManifest::Dump(Box::new(manifest))
}

#[test]
fn a_dump_is_trusted_as_far_as_its_evidence_goes() {
    let mut restored = manifest("restored.sql.gz", 1);
    let test = RestoreTest {
        at: restored.started_at,
        seconds: 1.0,
        passed: true,
        restored: true,
        server_version: String::new(),
        tables_compared: 1,
        assertions: 0,
        detail: None,
    };
    restored.verification.restores = vec![
        RestoreTest {
            passed: false,
            restored: false,
            ..test.clone()
        },
        test.clone(),
    ];
    let mut failed = manifest("failed.sql.gz", 2);
    failed.verification.restores = vec![
        test.clone(),
        RestoreTest {
            passed: false,
            restored: false,
            ..test.clone()
        },
    ];
    let mut doubted = manifest("doubted.sql.gz", 7);
    doubted.verification.restores = vec![RestoreTest {
        passed: false,
        ..test
    }];
    let mut companion = manifest("companion.sql.gz", 3);
    companion.companions.push(Companion {
        role: CompanionRole::Globals,
        file: "companion.sql.gz.globals.sql.gz".to_owned(),
        compression: "gzip:6".to_owned(),
        encryption: None,
        content: Extent::default(),
        stored: Extent {
            bytes: 5,
            sha256: String::new(),
        },
    });
    let mut never_read = manifest("never-read.sql.gz", 4);
    never_read.verification.read_back_at = None;
    let catalog = catalog(
        vec![
            item("restored.sql.gz", 100),
            item("failed.sql.gz", 100),
            item("doubted.sql.gz", 100),
            item("companion.sql.gz", 100),
            item("never-read.sql.gz", 100),
            item("cut.sql.gz", 99),
            item("foreign.dump", 7),
            item("notes.txt", 7),
        ],
        vec![
            of(restored),
            of(failed),
            of(doubted),
            of(companion),
            of(never_read),
            of(manifest("cut.sql.gz", 5)),
            of(manifest("gone.sql.gz", 6)),
        ],
    );
    let trust = |file: &str| {
        catalog
            .dumps
            .iter()
            .find(|entry| entry.file == file)
            .unwrap_or_else(|| panic!("{file}"))
            .trust()
    };
    assert_eq!(trust("restored.sql.gz"), Trust::Restored);
    assert_eq!(trust("failed.sql.gz"), Trust::RestoreFailed);
    assert_eq!(
        trust("doubted.sql.gz"),
        Trust::ReadBack,
        "an assertion that does not hold is not damage"
    );
    assert_eq!(
        trust("companion.sql.gz"),
        Trust::Damaged,
        "its companion is missing"
    );
    assert_eq!(trust("never-read.sql.gz"), Trust::Unverified);
    assert_eq!(trust("cut.sql.gz"), Trust::Damaged);
    assert_eq!(trust("gone.sql.gz"), Trust::Damaged);
    assert_eq!(trust("foreign.dump"), Trust::Unverified);
    assert!(catalog.dumps.iter().all(|entry| entry.file != "notes.txt"));
}

#[test]
fn expiry_leaves_alone_what_it_did_not_make_or_cannot_read() {
    let mut items: Vec<Item> = (1..=9).map(|day| item(&format!("d{day}.sql.gz"), 100)).collect();
    items.push(item("foreign.sql.gz", 1));
    let mut manifests: BTreeMap<String, Result<AnyManifest, ManifestError>> = BTreeMap::new();
    for day in 1..=9 {
        let file = format!("d{day}.sql.gz");
        let name = DumpManifest::name_for(&file);
        items.push(item(&name, 1000));
        let damaged = day == 1;
        let read = if damaged {
            AnyManifest::from_slice(b"{")
        } else {
            Ok(of(manifest(&file, day)))
        };
        manifests.insert(name, read);
    }
    let catalog = assemble(items, manifests);
    let policy = Policy {
        last: 2,
        ..Policy::NOTHING
    };
    let proposal = decide(
        &catalog,
        &policy,
        None,
        at("2026-11-21T12:00:00Z"),
        &jiff::tz::TimeZone::UTC,
    );
    let removed: Vec<&str> = proposal
        .removed()
        .map(|decision| decision.candidate.name.as_str())
        .collect();
    assert_eq!(
        removed,
        [
            "d7.sql.gz",
            "d6.sql.gz",
            "d5.sql.gz",
            "d4.sql.gz",
            "d3.sql.gz",
            "d2.sql.gz"
        ]
    );
    assert_eq!(proposal.freed_bytes(), 600);
    let left: BTreeSet<&str> = proposal
        .left_alone
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(left, BTreeSet::from(["d1.sql.gz", "foreign.sql.gz"]));
    let (files, _) = &proposal.files["d7.sql.gz"];
    assert_eq!(
        files,
        &["d7.sql.gz.manifest.json", "d7.sql.gz"],
        "the manifest goes first"
    );
}

#[test]
fn a_bundle_goes_and_stays_as_a_whole() {
    use crate::dump::manifest::{BundleManifest, BundlePurpose, Member, MemberRole};
    let member = |role, file: &str, database: Option<&str>| Member {
        role,
        file: file.to_owned(),
        database: database.map(str::to_owned),
        stored: Extent {
            bytes: 100,
            sha256: String::new(),
        },
        compression: None,
        encryption: None,
    };
    let bundle = BundleManifest {
        schema_version: SCHEMA_VERSION,
        kind: BundleManifest::KIND.to_owned(),
        tool: Tool::current(),
        purpose: BundlePurpose::AllDatabases,
        started_at: at("2026-11-01T03:15:00Z"),
        finished_at: at("2026-11-01T03:15:00Z"),
        members: vec![
            member(MemberRole::Globals, "all.globals.sql.gz", None),
            member(MemberRole::Full, "all_shop.sql.gz", Some("shop")),
        ],
        skipped: vec![],
    };
    let items = vec![item("all.globals.sql.gz", 100), item("all_shop.sql.gz", 100)];
    let whole = catalog(
        items.clone(),
        vec![
            AnyManifest::Bundle(bundle.clone()),
            of(manifest("all_shop.sql.gz", 1)),
        ],
    );
    assert_eq!(whole.bundles[0].trust(&whole), Trust::ReadBack);
    assert_eq!(whole.dumps.len(), 1, "the globals are not a dump of their own");
    assert_eq!(
        whole.bundles[0].files(&whole),
        [
            "all.bundle.json",
            "all_shop.sql.gz.manifest.json",
            "all_shop.sql.gz",
            "all.globals.sql.gz"
        ]
    );
    let policy = Policy {
        last: 1,
        ..Policy::NOTHING
    };
    let proposal = decide(
        &whole,
        &policy,
        None,
        at("2026-11-21T12:00:00Z"),
        &jiff::tz::TimeZone::UTC,
    );
    assert_eq!(
        proposal.decisions.len(),
        1,
        "members are not decided on their own"
    );
    let torn = catalog(vec![items[0].clone()], vec![AnyManifest::Bundle(bundle)]);
    assert_eq!(torn.bundles[0].trust(&torn), Trust::Damaged);
}
