//! The manifest of what was found.

use std::collections::HashMap;
use std::path::Path;

use jiff::Timestamp;
use pgmahout_types::repository::manifest::{
    self, Area, Content, Directory, Entry, File, Finding, Header, Link, Owner, PackEntry, Problem,
    Tablespace, WalRange, Work,
};
use pgmahout_types::repository::page_map::InlineMap;
use pgmahout_types::repository::{ExactBytes, FileStamp, Label, LinkTarget, Method, PackId, RelativePath};
use pgmahout_types::version::ServerVersion;
use pgmahout_types::{Lsn, SegmentName, TablespaceMap, TimelineId, WalFileName};

use super::error::CreateError;
use super::outside::Outside;
use super::pipeline::Made;
use super::server::Stopped;
use crate::physical::files::classify::{FileKind, Fork};
use crate::physical::files::owners;
use crate::physical::files::stamp;
use crate::physical::files::walk::FileList;
use crate::physical::page::verify::BadPage;
use crate::physical::stanza::PhysicalRepository;
use crate::physical::stanza::manifest::{FinishedManifest, ManifestBuilder};

/// What the manifest says beside the files.
pub(super) struct Description<'a> {
    pub(super) label: Label,
    pub(super) method: Method,
    pub(super) version: ServerVersion,
    pub(super) parent: Option<Label>,
    pub(super) start: Lsn,
    pub(super) start_time: Timestamp,
    pub(super) stop_time: Timestamp,
    pub(super) timeline: TimelineId,
    pub(super) segments: &'a [SegmentName],
    pub(super) stopped: &'a Stopped,
    pub(super) history: Option<Vec<u8>>,
    pub(super) annotations: std::collections::BTreeMap<String, String>,
    /// Damaged pages, by the number of the file.
    pub(super) bad: &'a [(u32, BadPage)],
    pub(super) work: Work,
    /// Files from outside the data directory.
    pub(super) outside: Outside,
}

/// Owners, each once.
#[derive(Default)]
struct OwnerTable {
    numbers: HashMap<(u32, u32), u32>,
    list: Vec<Owner>,
}

impl OwnerTable {
    fn number(&mut self, owner: &owners::Owner) -> u32 {
        *self.numbers.entry((owner.uid, owner.gid)).or_insert_with(|| {
            self.list.push(Owner {
                uid: owner.uid,
                gid: owner.gid,
                user: owner.user.clone(),
                group: owner.group.clone(),
            });
            (self.list.len() - 1) as u32
        })
    }
}

/// Makes the manifest. Blocking: a million files take seconds.
pub(super) fn manifest(
    repository: &PhysicalRepository,
    made: &Made,
    description: Description<'_>,
) -> Result<FinishedManifest, CreateError> {
    let list = &made.list;
    let mut owners = OwnerTable::default();
    for directory in list.directories() {
        owners.number(list.directory_owner(directory));
    }
    for file in list.files() {
        owners.number(file.owner());
    }
    for owner in description.outside.owners() {
        owners.number(owner);
    }
    let work = description.work;
    let bad = description.bad;
    let mut description = description;
    let outside = std::mem::take(&mut description.outside);
    let roots = outside.roots.clone();
    let mut header = header(repository, made, description, std::mem::take(&mut owners.list))?;
    header.outside = roots;
    let machine = header.machine;
    let mut builder = repository.manifest_builder(header)?;
    for directory in list.directories() {
        builder.write(&Entry::Directory(Directory {
            path: path(&directory.path)?,
            area: Area::Data,
            mode: u32::from(directory.mode),
            owner: owners.number(list.directory_owner(directory)),
        }))?;
    }
    for link in list.links() {
        builder.write(&Entry::Link(Link {
            path: path(&link.path)?,
            area: Area::Data,
            target: target(&link.target)?,
        }))?;
    }
    for file in list.files() {
        let Some((size, content)) = made.found.content(file.index()) else {
            continue;
        };
        builder.write(&Entry::File(File {
            path: path(&file.path())?,
            area: Area::Data,
            kind: kind(file.kind()),
            mode: u32::from(file.mode()),
            owner: owners.number(file.owner()),
            size,
            mtime: i64::try_from(file.modified().as_nanosecond()).unwrap_or(i64::MAX),
            stamp: machine.and(file.stamp()),
            content,
        }))?;
    }
    let mut packs = made.packs.clone();
    write_outside(&mut builder, &outside, &mut owners, &mut packs)?;
    for (number, page) in bad {
        builder.write(&Entry::Finding(Box::new(Finding {
            path: path(&list.file(*number as usize).path())?,
            block: page.block,
            problem: Problem::Checksum,
            expected: page.expected,
            found: page.found,
        })))?;
    }
    Ok(builder.finish(packs, work)?)
}

/// The files from outside the data directory, whose packs come behind the others.
fn write_outside(
    builder: &mut ManifestBuilder,
    outside: &Outside,
    owners: &mut OwnerTable,
    packs: &mut Vec<PackEntry>,
) -> Result<(), CreateError> {
    let first = packs.len();
    packs.extend(&outside.packs);
    let number = |id: PackId| {
        let place = packs[first..].iter().position(|pack| pack.id == id);
        place.map_or(u32::MAX, |place| (first + place) as u32)
    };
    for (path, mode, owner) in &outside.directories {
        builder.write(&Entry::Directory(Directory {
            path: path.clone(),
            area: Area::Outside,
            mode: *mode,
            owner: owners.number(outside.owner(*owner)),
        }))?;
    }
    for (path, target) in &outside.links {
        builder.write(&Entry::Link(Link {
            path: path.clone(),
            area: Area::Outside,
            target: target.clone(),
        }))?;
    }
    for file in &outside.files {
        builder.write(&Entry::File(File {
            path: file.path.clone(),
            area: Area::Outside,
            kind: manifest::FileKind::Other,
            mode: file.mode,
            owner: owners.number(outside.owner_of(file)),
            size: file.map.size(),
            mtime: file.mtime,
            stamp: None,
            content: Content::Inline(InlineMap::new(&file.map, number)),
        }))?;
    }
    Ok(())
}

fn header(
    repository: &PhysicalRepository,
    made: &Made,
    description: Description<'_>,
    owners: Vec<Owner>,
) -> Result<Header, CreateError> {
    let control = &made.control;
    let Description {
        label,
        method,
        version,
        parent,
        start,
        start_time,
        stop_time,
        timeline,
        segments,
        stopped,
        history,
        annotations,
        ..
    } = description;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(CreateError::Unexpected {
            what: format!("the backup needs no WAL from {start} to {}", stopped.stop),
        });
    };
    Ok(Header {
        format: manifest::FORMAT,
        label,
        method,
        stanza: repository.stanza().to_string(),
        system_identifier: control.system_identifier,
        server_version: version,
        catalog_version: control.catalog_version,
        control_version: control.control_version,
        page_size: control.block_size,
        relation_segment_blocks: control.relation_segment_blocks,
        wal_segment_size: control.wal_segment_size,
        data_checksums: control.data_checksums,
        start_time,
        stop_time,
        timeline,
        start_lsn: start,
        stop_lsn: stopped.stop,
        wal: WalRange {
            first: *first,
            last: *last,
        },
        timeline_history: history.map(ExactBytes::from),
        parent,
        backup_label: ExactBytes::from(stopped.label.clone()),
        tablespace_map: (!stopped.tablespace_map.is_empty())
            .then(|| ExactBytes::from(stopped.tablespace_map.clone())),
        tablespaces: tablespaces(&made.list, stopped)?,
        outside: Vec::new(),
        owners,
        annotations,
        written_by: concat!("pgmahout ", env!("CARGO_PKG_VERSION")).to_owned(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        machine: machine(method),
    })
}

/// The machine whose file systems were asked; none where the files came through a connection.
fn machine(method: Method) -> Option<FileStamp> {
    match method {
        Method::Local | Method::Standby => stamp::machine(),
        Method::Remote => None,
    }
}

/// The tablespaces, with the places that the server itself gives where it gives them.
fn tablespaces(list: &FileList, stopped: &Stopped) -> Result<Vec<Tablespace>, CreateError> {
    let named = TablespaceMap::parse(&stopped.tablespace_map).unwrap_or_default();
    list.tablespaces()
        .iter()
        .map(|tablespace| {
            let server = named.links().iter().find(|link| link.oid == tablespace.oid);
            let in_place = tablespace.location.is_none();
            let inside = format!("pg_tblspc/{}", tablespace.oid);
            let location = server
                .map(|link| link.location.as_path())
                .or(tablespace.location.as_deref())
                .unwrap_or_else(|| Path::new(&inside));
            Ok(Tablespace {
                oid: tablespace.oid,
                name: stopped.tablespace_names.get(&tablespace.oid).cloned(),
                path: target(location)?,
                in_place,
            })
        })
        .collect()
}

/// The content of the history file of a timeline, where the server still has it.
pub(super) fn history(data_dir: &Path, timeline: TimelineId) -> Option<Vec<u8>> {
    if timeline == TimelineId::FIRST {
        return None;
    }
    let name = WalFileName::TimelineHistory(timeline).to_string();
    std::fs::read(data_dir.join("pg_wal").join(name)).ok()
}

fn kind(kind: FileKind) -> manifest::FileKind {
    match kind {
        FileKind::Relation(relation) => match relation.fork {
            Fork::Main => manifest::FileKind::Relation,
            Fork::FreeSpace => manifest::FileKind::Fsm,
            Fork::Visibility => manifest::FileKind::Vm,
            Fork::Init => manifest::FileKind::Init,
        },
        FileKind::Control => manifest::FileKind::Control,
        _ => manifest::FileKind::Other,
    }
}

fn path(bytes: &[u8]) -> Result<RelativePath, CreateError> {
    if bytes.is_empty() {
        return Ok(RelativePath::root());
    }
    RelativePath::new(bytes).map_err(|error| CreateError::Unexpected {
        what: error.to_string(),
    })
}

fn target(path: &Path) -> Result<LinkTarget, CreateError> {
    LinkTarget::from_path(path).map_err(|error| CreateError::Unexpected {
        what: error.to_string(),
    })
}
