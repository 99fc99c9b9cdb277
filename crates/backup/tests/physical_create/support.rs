//! A server that archives, a repository, and a way to put a backup together again that is not the engine's.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use pgmahout_backup::physical::create::{self, CreateError, CreateRequest, Created};
use pgmahout_backup::physical::stanza::{InitOptions, PhysicalRepository, RepositoryMemory};
use pgmahout_backup::physical::wal::{WalArchive, WalFile};
use pgmahout_postgres::params::{ConnectionOptions, ConnectionParameters, Environment};
use pgmahout_procedure::report::{Recording, Reporter};
use pgmahout_store::framed::FramedOpener;
use pgmahout_store::repository::{Location, Repository, RepositorySettings};
use pgmahout_testkit::account::Account;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, PostgresBuilder};
use pgmahout_types::repository::manifest::{Content, Entry, MapRef, PackKind};
use pgmahout_types::repository::page_map::StoredMap;
use pgmahout_types::repository::stanza_info::StanzaSystem;
use pgmahout_types::repository::{Label, Manifest, PackId, PageMap, Source, StanzaInfo};
use pgmahout_types::{ControlFile, WalFileName};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Bytes a second of a slow backup: some seconds for an empty cluster.
const SLOW: u64 = 8 << 20;

/// Everything that a test of backups needs.
pub(crate) struct Bench {
    pub(crate) server: Postgres,
    pub(crate) repository: PhysicalRepository,
    pub(crate) recording: Recording,
    pub(crate) cancellation: CancellationToken,
    /// Where the server archives to.
    pub(crate) archive: TempDir,
    storage: TempDir,
    pusher: JoinHandle<()>,
}

/// A directory that the servers' account may write.
pub(crate) fn servers_directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("ours");
    Account::for_servers().own(directory.path());
    directory
}

/// Copies under another name first, so that a file that is seen is whole.
pub(crate) fn archive_command(archive: &Path) -> String {
    let archive = archive.display();
    format!("cp %p {archive}/.%f && mv {archive}/.%f {archive}/%f")
}

impl Bench {
    pub(crate) async fn new(major: Major) -> Self {
        Self::with(major, |builder| builder).await
    }

    pub(crate) async fn with(major: Major, change: impl FnOnce(PostgresBuilder) -> PostgresBuilder) -> Self {
        let archive = servers_directory();
        let builder = Postgres::builder(major)
            .data_checksums(true)
            .setting("autovacuum", "off")
            .setting("max_wal_size", "4GB")
            .archive_command(&archive_command(archive.path()));
        let server = change(builder).start().await;
        let storage = tempfile::tempdir().expect("a directory");
        let repository = repository(&server, storage.path()).await;
        let pusher = tokio::spawn(push(archive.path().to_owned(), repository.clone()));
        Self {
            server,
            repository,
            recording: Recording::default(),
            cancellation: CancellationToken::new(),
            archive,
            storage,
            pusher,
        }
    }

    pub(crate) fn request(&self) -> CreateRequest {
        request(&self.server)
    }

    pub(crate) async fn backup(&self) -> Created {
        self.try_backup(&self.request())
            .await
            .unwrap_or_else(|error| panic!("no backup: {}", chain(&error)))
    }

    pub(crate) async fn try_backup(&self, request: &CreateRequest) -> Result<Created, CreateError> {
        let reporter: Arc<dyn Reporter> = Arc::new(self.recording.clone());
        create::create(request, &self.repository, &reporter, &self.cancellation).await
    }

    /// A backup in the background, slow enough that something can happen meanwhile: it has begun to read.
    pub(crate) async fn slow_backup(&self) -> JoinHandle<Result<Created, CreateError>> {
        let request = CreateRequest {
            rate_limit: Some(SLOW),
            ..self.request()
        };
        self.slow_backup_of(request).await
    }

    pub(crate) async fn slow_backup_of(
        &self,
        request: CreateRequest,
    ) -> JoinHandle<Result<Created, CreateError>> {
        let before = self.recording.tasks().len();
        let reporter: Arc<dyn Reporter> = Arc::new(self.recording.clone());
        let (repository, cancellation) = (self.repository.clone(), self.cancellation.clone());
        let running =
            tokio::spawn(
                async move { create::create(&request, &repository, &reporter, &cancellation).await },
            );
        poll::until(PATIENCE, "the backup reads files", async || {
            assert!(!running.is_finished(), "the backup has ended already");
            self.recording
                .tasks()
                .get(before)
                .is_some_and(|task| task.position > 0)
        })
        .await;
        running
    }

    /// How many sessions of backups the server has.
    pub(crate) async fn sessions(&self) -> String {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgmahout%backup%'";
        self.server.query_text("postgres", query).await
    }

    /// The same after a cancellation.
    pub(crate) fn uncancelled(mut self) -> Self {
        self.cancellation = CancellationToken::new();
        self
    }

    /// Nothing more reaches the repository from now on.
    pub(crate) fn stop_pushing(&self) {
        self.pusher.abort();
    }

    /// Names of the objects below a prefix of the stanza.
    pub(crate) async fn objects(&self, below: &str) -> Vec<String> {
        let prefix = self.repository.names().full(below);
        let listed = self
            .repository
            .repository()
            .list(&prefix, &CancellationToken::new())
            .await
            .expect("a listing");
        listed.into_iter().map(|entry| entry.name).collect()
    }

    /// Bytes of the packs, of data and of maps.
    pub(crate) fn pack_bytes(&self) -> u64 {
        ["pack", "map"]
            .iter()
            .map(|kind| bytes_below(&self.storage.path().join("stanza/main").join(kind)))
            .sum()
    }

    pub(crate) async fn manifest(&self, label: Label) -> Manifest {
        self.repository.read_manifest(label).await.expect("a manifest")
    }

    /// The content of every file of a backup.
    pub(crate) async fn files(&self, label: Label) -> BTreeMap<String, Vec<u8>> {
        let manifest = self.manifest(label).await;
        let mut reader = Reader::new(&self.repository, &manifest);
        let mut files = BTreeMap::new();
        for entry in &manifest.entries {
            if let Entry::File(file) = entry {
                let content = reader.content(file.size, &file.content).await;
                files.insert(file.path.to_string(), content);
            }
        }
        files
    }

    /// A server of the backup, recovered to the end of the archive.
    pub(crate) async fn restored(&self, label: Label) -> Postgres {
        self.restored_to(label, "").await
    }

    /// A server of the backup, recovered to a target.
    pub(crate) async fn restored_to(&self, label: Label, target: &str) -> Postgres {
        let other = Postgres::builder(self.server.major()).prepare();
        std::fs::remove_dir_all(other.data_dir()).expect("it is ours");
        self.materialise(label, other.data_dir()).await;
        other.append_conf(&format!("port = {}", other.port()));
        other.append_conf(&format!(
            "unix_socket_directories = '{}'",
            other.socket_dir().display()
        ));
        other.append_conf("archive_mode = off");
        other.append_conf(&format!(
            "restore_command = 'cp {}/%f %p'",
            self.archive.path().display()
        ));
        if !target.is_empty() {
            other.append_conf(&format!("recovery_target = '{target}'"));
            other.append_conf("recovery_target_action = promote");
        }
        std::fs::write(other.data_dir().join("recovery.signal"), "").expect("it is ours");
        own_all(other.data_dir());
        other.start_again().await;
        poll::until(PATIENCE, "the end of recovery", async || {
            other.query_text("postgres", "SELECT pg_is_in_recovery()").await == "f"
        })
        .await;
        other
    }

    /// Writes a backup into a directory, as the manifest says.
    async fn materialise(&self, label: Label, directory: &Path) {
        let manifest = self.manifest(label).await;
        std::fs::create_dir(directory).expect("the parent is ours");
        for tablespace in manifest.header.tablespaces.iter().filter(|it| !it.in_place) {
            let place = directory.join(format!("../tablespace-{}", tablespace.oid));
            std::fs::create_dir(&place).expect("the parent is ours");
            std::fs::create_dir_all(directory.join("pg_tblspc")).expect("ours");
            symlink(&place, directory.join(format!("pg_tblspc/{}", tablespace.oid))).expect("ours");
        }
        for entry in &manifest.entries {
            if let Entry::Directory(entry) = entry {
                let path = directory.join(entry.path.as_path());
                std::fs::create_dir_all(&path).expect("ours");
                std::fs::set_permissions(&path, PermissionsExt::from_mode(entry.mode)).expect("ours");
            }
        }
        for (path, content) in self.files(label).await {
            std::fs::write(directory.join(path), content).expect("its directory is in the backup");
        }
        std::fs::write(
            directory.join("backup_label"),
            manifest.header.backup_label.as_bytes(),
        )
        .expect("ours");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.pusher.abort();
    }
}

/// The error and its causes.
pub(crate) fn chain(error: &CreateError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

pub(crate) fn connection(dsn: &str) -> ConnectionParameters {
    let options = ConnectionOptions {
        dsn: Some(dsn.to_owned()),
        ..ConnectionOptions::default()
    };
    ConnectionParameters::resolve(&options, &Environment::default()).expect("a DSN")
}

pub(crate) fn request(server: &Postgres) -> CreateRequest {
    CreateRequest {
        jobs: 2,
        wal_timeout: Duration::from_mins(1),
        ..CreateRequest::new(connection(&server.dsn("postgres")))
    }
}

pub(crate) fn control(server: &Postgres) -> ControlFile {
    for _ in 0..100 {
        let bytes = std::fs::read(server.data_dir().join(ControlFile::PATH)).expect("it is there");
        if let Ok(control) = ControlFile::parse(&bytes) {
            return control;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("pg_control stays torn");
}

pub(crate) async fn repository(server: &Postgres, storage: &Path) -> PhysicalRepository {
    let location = Location::Directory(storage.to_owned());
    let store = Repository::open(RepositorySettings::at("test", location))
        .await
        .expect("a repository");
    let system = StanzaSystem::new(&control(server), Timestamp::now()).expect("a known version");
    PhysicalRepository::init(
        store,
        "main".parse().expect("a name"),
        StanzaInfo::new("main", system),
        InitOptions::default(),
        &RepositoryMemory::none(),
    )
    .await
    .expect("it is set up")
    .repository
}

/// Puts what the server archives into the repository, until it is stopped.
pub(crate) async fn push(archive: PathBuf, repository: PhysicalRepository) {
    let system = repository
        .stanza_info()
        .current()
        .expect("a cluster")
        .system_identifier;
    let wal = WalArchive::new(repository);
    let mut done = std::collections::BTreeSet::new();
    loop {
        let entries = std::fs::read_dir(&archive).map(|entries| entries.flatten().collect::<Vec<_>>());
        for entry in entries.unwrap_or_default() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Ok(name) = file.parse::<WalFileName>() else {
                continue;
            };
            if !done.insert(file) {
                continue;
            }
            let content = Bytes::from(std::fs::read(entry.path()).expect("it is whole"));
            let file = WalFile::new(name, content, system).expect("a file of the server");
            wal.put(&file).await.expect("it is stored");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| {
            let metadata = entry.metadata().expect("it is there");
            if metadata.is_dir() {
                bytes_below(&entry.path())
            } else {
                metadata.len()
            }
        })
        .sum()
}

fn own_all(directory: &Path) {
    let account = Account::for_servers();
    account.own(directory);
    for entry in std::fs::read_dir(directory).expect("ours").flatten() {
        // Links lead to directories that are to be owned too.
        let path = entry.path();
        if path.is_dir() {
            own_all(&path);
        } else {
            account.own(&path);
        }
    }
}

/// Reads the content of files by the formats alone.
struct Reader<'a> {
    repository: &'a PhysicalRepository,
    manifest: &'a Manifest,
    objects: BTreeMap<PackId, (Bytes, FramedOpener)>,
}

impl<'a> Reader<'a> {
    fn new(repository: &'a PhysicalRepository, manifest: &'a Manifest) -> Self {
        Self {
            repository,
            manifest,
            objects: BTreeMap::new(),
        }
    }

    async fn content(&mut self, size: u64, content: &Content) -> Vec<u8> {
        let end = &self.manifest.end;
        let map = match content {
            Content::Inline(map) => map
                .to_map(size, |number| end.pack(number).map(|pack| pack.id))
                .expect("a map"),
            Content::Map(content) => {
                let stored = self.map(content.map).await;
                match (stored, content.base) {
                    (StoredMap::Whole(map), None) => map,
                    (StoredMap::Overlay(overlay), Some(base)) => match self.map(base).await {
                        StoredMap::Whole(base) => overlay.apply(&base).expect("they fit"),
                        StoredMap::Overlay(_) => panic!("an overlay on an overlay"),
                    },
                    _ => panic!("an overlay without a base, or a base without an overlay"),
                }
            }
        };
        assert_eq!(map.size(), size);
        self.bytes(&map).await
    }

    async fn map(&mut self, reference: MapRef) -> StoredMap {
        let pack = self.manifest.end.pack(reference.pack).expect("it is listed").id;
        let content = self.frame(PackKind::Map, pack, reference.location).await;
        StoredMap::decode(&content).expect("a map")
    }

    async fn bytes(&mut self, map: &PageMap) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(map.size()).expect("small")];
        let key = *self.repository.hash_key();
        for run in map.runs() {
            let Source::Frame { frame, offset } = run.extent.source else {
                continue;
            };
            let frame = map.frames()[frame as usize];
            let pack = map.packs()[frame.pack as usize];
            let content = self.frame(PackKind::Data, pack, frame.location).await;
            let begin = run.extent.first as usize * 8192;
            let end = (run.extent.end() as usize * 8192).min(bytes.len());
            let from = offset as usize;
            bytes[begin..end].copy_from_slice(&content[from..from + end - begin]);
            for (block, hash) in bytes[begin..end].chunks(8192).zip(run.hashes) {
                assert_eq!(pgmahout_types::repository::PageHash::of(&key, block), *hash);
            }
        }
        bytes
    }

    async fn frame(
        &mut self,
        pack_kind: PackKind,
        pack: PackId,
        location: pgmahout_types::repository::FrameLocation,
    ) -> Vec<u8> {
        if !self.objects.contains_key(&pack) {
            let listed = self
                .manifest
                .end
                .packs
                .iter()
                .find(|entry| entry.id == pack)
                .expect("it is listed");
            assert_eq!(listed.kind, pack_kind);
            let (kind, name) = self.repository.pack_object(pack_kind, pack);
            let object = self
                .repository
                .repository()
                .get_bytes(&name, 1 << 30)
                .await
                .expect("it is there");
            assert_eq!(listed.size, object.len() as u64);
            let opener =
                FramedOpener::from_salt(&self.repository.cipher(), kind, &name, listed.key, listed.salt)
                    .expect("keys");
            self.objects.insert(pack, (object, opener));
        }
        let (object, opener) = &self.objects[&pack];
        let stored = &object[location.offset as usize..location.end() as usize];
        let mut content = Vec::new();
        opener
            .open(location, false, stored, &mut content)
            .expect("a frame");
        content
    }
}
