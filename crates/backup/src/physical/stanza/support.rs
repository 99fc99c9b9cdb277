//! For tests: repositories, and backups that are nothing but their objects.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgmahout_config::secret::SecretReference;
use pgmahout_store::repository::{
    Location, Patience, PutMode, Repository, RepositorySettings, S3Settings, StorageSettings,
};
use pgmahout_testkit::s3::S3Server;
use pgmahout_types::control::DataChecksums;
use pgmahout_types::repository::manifest::{Header, PackEntry, PackKind, WalRange, Work};
use pgmahout_types::repository::stanza_info::StanzaSystem;
use pgmahout_types::repository::{Method, Salt};
use pgmahout_types::version::ServerVersion;
use pgmahout_types::{Lsn, SegmentName, TimelineId};

use super::manifest::FinishedManifest;
use super::*;

pub(crate) async fn local(path: &Path) -> Repository {
    let location = Location::Directory(path.to_path_buf());
    Repository::open(RepositorySettings::at("", location))
        .await
        .unwrap()
}

pub(crate) fn info(stanza: &str, system: u64, major: u32) -> StanzaInfo {
    StanzaInfo::new(
        stanza,
        StanzaSystem {
            system_identifier: SystemIdentifier::new(system),
            major,
            control_version: 1300,
            catalog_version: 202_209_061,
            wal_segment_size: SegmentSize::DEFAULT,
            since: Timestamp::UNIX_EPOCH,
        },
    )
}

pub(crate) async fn init(path: &Path, stanza: &str) -> Result<Initialised, StanzaError> {
    let (name, options) = (stanza.parse().unwrap(), InitOptions::default());
    let memory = RepositoryMemory::none();
    PhysicalRepository::init(local(path).await, name, info(stanza, 1, 15), options, &memory).await
}

pub(crate) async fn open(path: &Path, stanza: &str) -> Result<PhysicalRepository, StanzaError> {
    let memory = RepositoryMemory::none();
    PhysicalRepository::open(local(path).await, stanza.parse().unwrap(), &memory).await
}

async fn bucket(server: &S3Server) -> Repository {
    let mut settings = RepositorySettings::at(
        "offsite",
        Location::S3 {
            bucket: server.bucket().to_owned(),
            prefix: "pg".to_owned(),
        },
    );
    settings.storage = StorageSettings::S3(S3Settings {
        prefix: "pg".to_owned(),
        endpoint: Some(server.endpoint()),
        region: Some(server.region().to_owned()),
        path_style: Some(true),
        access_key: Some(SecretReference::Literal(server.access_key().into())),
        secret_key: Some(SecretReference::Literal(server.secret_key().into())),
        session_token: None,
        ca_cert: None,
        patience: Patience {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(10),
            stall: Duration::from_secs(1),
            retry: Duration::from_secs(20),
        },
        ..S3Settings::new(server.bucket())
    });
    Repository::open(settings).await.unwrap()
}

pub(crate) async fn init_s3(server: &S3Server, stanza: &str) -> PhysicalRepository {
    let (name, options) = (stanza.parse().unwrap(), InitOptions::default());
    let memory = RepositoryMemory::none();
    PhysicalRepository::init(bucket(server).await, name, info(stanza, 1, 15), options, &memory)
        .await
        .unwrap()
        .repository
}

pub(crate) async fn open_s3(server: &S3Server, stanza: &str) -> PhysicalRepository {
    let memory = RepositoryMemory::none();
    PhysicalRepository::open(bucket(server).await, stanza.parse().unwrap(), &memory)
        .await
        .unwrap()
}

/// A segment of the first timeline.
pub(crate) fn segment(number: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, number, SegmentSize::DEFAULT).unwrap()
}

/// A backup of one pack of its own, one map, and whatever packs of others it uses. It starts and stops in the
/// segment of its number, and was made so many days ago as the numbers up to 100.
#[derive(Debug, Clone)]
pub(crate) struct FakeBackup {
    pub(crate) number: u8,
    pub(crate) shared: Vec<PackId>,
    pub(crate) pinned: bool,
}

impl FakeBackup {
    pub(crate) fn new(number: u8) -> Self {
        Self {
            number,
            shared: Vec::new(),
            pinned: false,
        }
    }

    pub(crate) fn sharing(number: u8, others: &[u8]) -> Self {
        Self {
            shared: others.iter().map(|other| Self::new(*other).pack()).collect(),
            ..Self::new(number)
        }
    }

    pub(crate) fn pack(&self) -> PackId {
        PackId::from_bytes([self.number; 16])
    }

    pub(crate) fn map(&self) -> PackId {
        PackId::from_bytes([self.number | 0x80; 16])
    }

    pub(crate) fn time(&self) -> Timestamp {
        // The same at every call: labels are made of it.
        static NOW: std::sync::OnceLock<Timestamp> = std::sync::OnceLock::new();
        let now = *NOW.get_or_init(Timestamp::now);
        now - SignedDuration::from_hours(24 * (100 - i64::from(self.number)))
    }

    pub(crate) fn label(&self) -> Label {
        Label::new(self.time(), u16::from(self.number))
    }

    /// Its packs and its segment.
    pub(crate) async fn put_objects(&self, repository: &PhysicalRepository) {
        let names = repository.names();
        let segment = names.wal(segment(self.number.into()).into());
        for name in [names.pack(self.pack()), names.map(self.map()), segment] {
            let put = repository
                .repository()
                .put_bytes(&name, vec![self.number; 100], PutMode::Create);
            put.await.unwrap();
        }
    }

    pub(crate) async fn write(
        &self,
        repository: &PhysicalRepository,
    ) -> Result<FinishedManifest, StanzaError> {
        let segment = segment(self.number.into());
        let start = segment.start(SegmentSize::DEFAULT).unwrap();
        let mut packs = vec![(self.pack(), PackKind::Data), (self.map(), PackKind::Map)];
        packs.extend(self.shared.iter().map(|id| (*id, PackKind::Data)));
        let made = MadeBackup {
            label: self.label(),
            time: self.time(),
            timeline: TimelineId::FIRST,
            start,
            stop: Lsn::new(start.as_u64() + 1000),
            packs,
            pinned: self.pinned,
        };
        made.write(repository).await
    }

    pub(crate) async fn publish(&self, repository: &PhysicalRepository) -> Result<Label, StanzaError> {
        let basis = repository.head().await?.epoch;
        self.put_objects(repository).await;
        let manifest = self.write(repository).await?;
        let mut entry = manifest.entry();
        entry.pinned = self.pinned;
        repository.publish(&entry, basis, &manifest.references()).await?;
        Ok(entry.label)
    }
}

/// A backup of which everything is said.
#[derive(Debug, Clone)]
pub(crate) struct MadeBackup {
    pub(crate) label: Label,
    pub(crate) time: Timestamp,
    pub(crate) timeline: TimelineId,
    pub(crate) start: Lsn,
    pub(crate) stop: Lsn,
    pub(crate) packs: Vec<(PackId, PackKind)>,
    pub(crate) pinned: bool,
}

impl MadeBackup {
    pub(crate) fn wal(&self) -> WalRange {
        WalRange {
            first: SegmentName::containing(self.timeline, self.start, SegmentSize::DEFAULT),
            last: SegmentName::ending_at(self.timeline, self.stop, SegmentSize::DEFAULT),
        }
    }

    /// Writes its manifest.
    pub(crate) async fn write(
        &self,
        repository: &PhysicalRepository,
    ) -> Result<FinishedManifest, StanzaError> {
        let builder = repository.manifest_builder(Header {
            format: 1,
            label: self.label,
            method: Method::Local,
            stanza: repository.stanza().to_string(),
            system_identifier: SystemIdentifier::new(1),
            server_version: ServerVersion::from_number(150_018),
            catalog_version: 202_209_061,
            control_version: 1300,
            page_size: 8192,
            relation_segment_blocks: 131_072,
            wal_segment_size: SegmentSize::DEFAULT,
            data_checksums: DataChecksums::Off,
            start_time: self.time,
            stop_time: self.time,
            timeline: self.timeline,
            start_lsn: self.start,
            stop_lsn: self.stop,
            wal: self.wal(),
            timeline_history: None,
            parent: None,
            backup_label: "START WAL LOCATION".into(),
            tablespace_map: None,
            tablespaces: Vec::new(),
            outside: Vec::new(),
            owners: Vec::new(),
            annotations: std::collections::BTreeMap::new(),
            written_by: String::new(),
            host: String::new(),
            machine: None,
        })?;
        let pack = |(id, kind): &(PackId, PackKind)| PackEntry {
            id: *id,
            kind: *kind,
            key: 0,
            salt: Salt::from_bytes([0; 32]),
            size: 100,
            live: 100,
        };
        let manifest = builder.finish(self.packs.iter().map(pack).collect(), Work::default())?;
        repository.write_manifest(&manifest).await?;
        Ok(manifest)
    }
}

/// The entry of some backup.
pub(crate) fn entry() -> BackupEntry {
    let segment = segment(1);
    BackupEntry {
        label: FakeBackup::new(1).label(),
        manifest: pgmahout_types::repository::Digest::from_bytes([0; 32]),
        method: Method::Local,
        system_identifier: SystemIdentifier::new(1),
        server_version: ServerVersion::from_number(150_018),
        timeline: TimelineId::FIRST,
        start_lsn: segment.start(SegmentSize::DEFAULT).unwrap(),
        stop_lsn: segment.last_byte(SegmentSize::DEFAULT).unwrap(),
        wal: WalRange {
            first: segment,
            last: segment,
        },
        start_time: Timestamp::UNIX_EPOCH,
        stop_time: Timestamp::UNIX_EPOCH,
        parent: None,
        files: 0,
        bytes: 0,
        read: 0,
        new: 0,
        stored: 0,
        findings: 0,
        pinned: false,
        annotations: std::collections::BTreeMap::new(),
        verified: None,
        drilled: None,
        other: serde_json::Map::new(),
    }
}
