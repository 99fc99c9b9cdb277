//! What there is to verify: the objects that backups are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use pgmahout_store::framed::FramedError;
use pgmahout_types::WalFileName;
use pgmahout_types::repository::manifest::{Header, PackEntry, PackKind};
use pgmahout_types::repository::{CondemnedId, Digest, Head, Label, PackId};
use tokio_util::sync::CancellationToken;

use super::damage::{Damages, ObjectDamage};
use super::error::VerifyError;
use crate::physical::stanza::manifest::StoredManifest;
use crate::physical::stanza::{PhysicalRepository, StanzaError, StanzaObject};

/// Something that is verified as a whole. Its text is what is remembered of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// The manifest of a backup.
    Manifest(Label),
    /// A pack, of blocks or of page maps.
    Pack(PackId),
    /// That all that the maps of a backup name is where they say.
    References(Label),
    /// A file of the WAL archive.
    Wal(WalFileName),
    /// A head, by its number.
    Head(u64),
    /// A list of condemned objects.
    Condemned(CondemnedId),
    /// A key of the repository or its copy, by its number.
    Key(u32),
}

impl fmt::Display for ObjectName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(label) => write!(formatter, "manifest {label}"),
            Self::Pack(id) => write!(formatter, "pack {id}"),
            Self::References(label) => write!(formatter, "references {label}"),
            Self::Wal(file) => write!(formatter, "wal {file}"),
            Self::Head(sequence) => write!(formatter, "head {sequence}"),
            Self::Condemned(id) => write!(formatter, "condemned {id}"),
            Self::Key(number) => write!(formatter, "key {number}"),
        }
    }
}

/// A text that names nothing that is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownObject;

impl FromStr for ObjectName {
    type Err = UnknownObject;

    fn from_str(text: &str) -> Result<Self, UnknownObject> {
        let (class, name) = text.split_once(' ').ok_or(UnknownObject)?;
        match class {
            "manifest" => name.parse().map(Self::Manifest).map_err(|_| UnknownObject),
            "pack" => name.parse().map(Self::Pack).map_err(|_| UnknownObject),
            "references" => name.parse().map(Self::References).map_err(|_| UnknownObject),
            "wal" => name.parse().map(Self::Wal).map_err(|_| UnknownObject),
            "head" => name.parse().map(Self::Head).map_err(|_| UnknownObject),
            "condemned" => name.parse().map(Self::Condemned).map_err(|_| UnknownObject),
            "key" => name.parse().map(Self::Key).map_err(|_| UnknownObject),
            _ => Err(UnknownObject),
        }
    }
}

/// One thing to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: ObjectName,
    /// Bytes that have to be read for it, about.
    pub(super) size: u64,
}

/// A backup whose manifest is whole.
pub(super) struct KnownBackup {
    pub(super) header: Header,
    /// The packs by number.
    pub(super) packs: Vec<PackEntry>,
    /// Bytes of its manifest.
    pub(super) manifest_size: u64,
}

/// All that the chosen backups are made of.
#[derive(Default)]
pub(super) struct Inventory {
    pub(super) backups: BTreeMap<Label, KnownBackup>,
    pub(super) packs: BTreeMap<PackId, PackEntry>,
    /// Which backups need a thing.
    pub(super) dependents: BTreeMap<ObjectName, BTreeSet<Label>>,
    pub(super) items: Vec<Item>,
}

impl Inventory {
    /// The backups that need it.
    pub(super) fn dependents(&self, name: &ObjectName) -> impl Iterator<Item = Label> {
        self.dependents.get(name).into_iter().flatten().copied()
    }

    /// All that a backup needs.
    pub(super) fn needed_by(&self, label: Label) -> Vec<ObjectName> {
        let needs =
            |(name, labels): (&ObjectName, &BTreeSet<Label>)| labels.contains(&label).then_some(*name);
        self.dependents.iter().filter_map(needs).collect()
    }

    /// Leaves only what these backups need to be read. Who else needs it stays known.
    pub(super) fn narrow(&mut self, labels: &[Label]) {
        let Self {
            items, dependents, ..
        } = self;
        items.retain(|item| {
            let needing = dependents.get(&item.name);
            needing.is_some_and(|needing| labels.iter().any(|label| needing.contains(label)))
        });
    }

    fn add(&mut self, name: ObjectName, size: u64, label: Label) {
        let labels = self.dependents.entry(name).or_default();
        if labels.is_empty() {
            self.items.push(Item { name, size });
        }
        labels.insert(label);
    }
}

/// Reads the manifests of the backups. A damaged one is noted as damage; what its backup needs is then not known.
pub(super) async fn take(
    repository: &PhysicalRepository,
    head: &Head,
    labels: &[Label],
    damages: &mut Damages,
    cancellation: &CancellationToken,
) -> Result<Inventory, VerifyError> {
    let mut inventory = Inventory::default();
    for &label in labels {
        if cancellation.is_cancelled() {
            return Err(VerifyError::Cancelled);
        }
        let Some(entry) = head.backup(label) else { continue };
        let name = ObjectName::Manifest(label);
        match read_manifest(repository, label, entry.manifest).await? {
            Ok(known) => {
                inventory.add(name, known.manifest_size, label);
                let map_bytes: u64 = map_bytes(&known);
                inventory.add(
                    ObjectName::References(label),
                    known.manifest_size + map_bytes,
                    label,
                );
                for pack in &known.packs {
                    inventory.add(ObjectName::Pack(pack.id), pack.size, label);
                    inventory.packs.insert(pack.id, *pack);
                }
                let size = known.header.wal_segment_size;
                let wal = known.header.wal;
                let mut segment = wal.first;
                loop {
                    inventory.add(
                        ObjectName::Wal(WalFileName::Segment(segment)),
                        size.bytes(),
                        label,
                    );
                    if segment >= wal.last {
                        break;
                    }
                    let Ok(Some(next)) = segment.next(size) else { break };
                    segment = next;
                }
                if known.header.timeline_history.is_some() {
                    let history = WalFileName::TimelineHistory(known.header.timeline);
                    inventory.add(ObjectName::Wal(history), 0, label);
                }
                inventory.backups.insert(label, known);
            }
            Err(damage) => {
                inventory.add(name, 0, label);
                damages.add(name, damage);
            }
        }
    }
    Ok(inventory)
}

fn map_bytes(known: &KnownBackup) -> u64 {
    known
        .packs
        .iter()
        .filter(|pack| pack.kind == PackKind::Map)
        .map(|pack| pack.size)
        .sum()
}

/// Everything else that the WAL archive holds.
pub(super) async fn add_archive(
    repository: &PhysicalRepository,
    inventory: &mut Inventory,
    cancellation: &CancellationToken,
) -> Result<(), VerifyError> {
    let names = repository.names();
    let known: BTreeSet<ObjectName> = inventory.items.iter().map(|item| item.name).collect();
    for entry in repository
        .repository()
        .list(&names.wal_prefix(), cancellation)
        .await?
    {
        let object = names.relative(&entry.name).and_then(StanzaObject::parse);
        if let Some(StanzaObject::Wal(file)) = object
            && !known.contains(&ObjectName::Wal(file))
        {
            inventory.items.push(Item {
                name: ObjectName::Wal(file),
                size: entry.size,
            });
        }
    }
    Ok(())
}

/// Reads a manifest to its end.
async fn read_manifest(
    repository: &PhysicalRepository,
    label: Label,
    digest: Digest,
) -> Result<Result<KnownBackup, ObjectDamage>, VerifyError> {
    let stored = match fetch_manifest(repository, label, digest).await? {
        Ok(stored) => stored,
        Err(damage) => return Ok(Err(damage)),
    };
    let size = repository
        .repository()
        .head(stored.name())
        .await?
        .map_or(0, |entry| entry.size);
    let ends = tokio::task::spawn_blocking(move || stored.ends()).await;
    Ok(match ends.map_err(|_| VerifyError::Cancelled)? {
        Ok((header, end)) if header.label == label => Ok(KnownBackup {
            header,
            packs: end.packs,
            manifest_size: size,
        }),
        Ok((header, _)) => Err(ObjectDamage::whole(format!(
            "it is the manifest of {}",
            header.label
        ))),
        Err(error) => Err(damage_of(error)?),
    })
}

/// A manifest's object, to be read line by line.
pub(super) async fn fetch_manifest(
    repository: &PhysicalRepository,
    label: Label,
    digest: Digest,
) -> Result<Result<StoredManifest, ObjectDamage>, VerifyError> {
    match repository.fetch_manifest(label, Some(digest)).await {
        Ok(stored) => Ok(Ok(stored)),
        Err(error) => damage_of(error).map(Err),
    }
}

/// What is wrong with an object, where the error says that something is wrong with the object.
pub(super) fn damage_of(error: StanzaError) -> Result<ObjectDamage, VerifyError> {
    match error {
        StanzaError::Framed { object, source, .. } => match source {
            source @ (FramedError::KeyNotGiven | FramedError::Compression(_) | FramedError::Crypto) => {
                Err(VerifyError::Key { object, source })
            }
            source => Ok(ObjectDamage::because("it cannot be opened", &source)),
        },
        StanzaError::Format { source, .. } => Ok(ObjectDamage::because("it cannot be understood", &*source)),
        error if error.is_not_found() => Ok(ObjectDamage::whole("it is missing".to_owned())),
        error => Err(error.into()),
    }
}
