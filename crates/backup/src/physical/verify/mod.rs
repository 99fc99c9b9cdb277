//! Reading a repository back: whether every object of every backup is what was written.
//!
//! # What is read
//!
//! * the **manifest** of a backup: its digest is the one in the head, it opens, and it is whole;
//! * every **pack**: it has the salt that the manifest noted (an older or another copy has not), every frame
//!   opens, and every block has the hash that the pack's index notes;
//! * the **references** of a backup: every block that the map of a file names is in the frame it names, with the
//!   hash that the map notes;
//! * every **WAL segment** of the backup's range, and where no backup is named every file of the archive: it is
//!   there, opens, and its content has the digest that was taken when it was archived;
//! * where no backup is named, the repository's **keys** and their copies, and with [`Budget::Full`] every
//!   **head** that is kept and every list of condemned objects.
//!
//! A block is proven by two of these together: the pack's index says what is in the pack, and the map says that
//! this is what the file had.
//!
//! # Over time
//!
//! What was found whole is noted with the time, on this host, in the state directory ([`VerifyMemory`]). A
//! budget of time or bytes is spent on what was never read or longest ago, so that many short runs read
//! everything once. When everything of a backup has been read back since some moment, the head says so
//! ([`BackupEntry::verified`](pgmahout_types::repository::BackupEntry)).
//!
//! # Memory
//!
//! At most four objects (64 MiB and a little each), 64 MiB of indexes of packs, and about a hundred bytes for
//! each object and each damaged block.

mod damage;
mod error;
mod index_cache;
mod memory;
mod objects;
pub(super) mod pack;
mod plan;
mod references;
mod small;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use pgmahout_procedure::report::{Level, Progress, Reporter, Task, Unit};
use pgmahout_types::WalFileName;
use pgmahout_types::repository::head::Examination;
use pgmahout_types::repository::{Head, Label};
use tokio_util::sync::CancellationToken;

use super::stanza::{LeaseKind, LeaseScope, PhysicalRepository};
pub use damage::{Damage, DamagedBlocks};
pub use error::VerifyError;
pub use memory::VerifyMemory;
pub use objects::ObjectName;

use damage::Damages;
use index_cache::IndexCache;
use objects::{Inventory, Item};

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// All that is asked for.
    Full,
    /// What was never read or was last read longer ago than that.
    OlderThan(Duration),
    /// What was read longest ago first, until the time is over.
    Time(Duration),
    /// What was read longest ago first, so many bytes.
    Bytes(u64),
}

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// These backups; all of them where none is named.
    pub labels: Vec<Label>,
    /// How much of them.
    pub budget: Budget,
    /// How many objects are read at once, 1 to 4.
    pub jobs: usize,
}

/// What became of one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupVerdict {
    /// Its label.
    pub label: Label,
    /// Whether nothing wrong was found with it.
    pub sound: bool,
    /// How many objects it needs.
    pub objects: u64,
    /// How many of them were never read back on this host.
    pub unread: u64,
    /// Since when every one of them has been read back; `None` while some were not.
    pub since: Option<Timestamp>,
}

/// What a verification found.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// Each backup that was asked for or is damaged, the oldest first.
    pub backups: Vec<BackupVerdict>,
    /// How many objects were read.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How many objects were left for another time.
    pub left: u64,
    /// Bytes of those.
    pub left_bytes: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// How long it took.
    pub elapsed: Duration,
}

impl VerifyReport {
    /// Whether nothing wrong was found.
    pub fn is_sound(&self) -> bool {
        self.damages.is_empty()
    }
}

/// Reads back what the request asks for. Damage is no error: it is in the report.
///
/// Cancelled, it ends with [`VerifyError::Cancelled`]; what was found whole until then is remembered.
///
/// # Errors
///
/// When the repository cannot be read (which is not the same as reading something wrong from it), a label is
/// unknown, or the head cannot be changed.
pub async fn verify(
    repository: &PhysicalRepository,
    request: &VerifyRequest,
    memory: &mut VerifyMemory,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<VerifyReport, VerifyError> {
    let lease = repository.lease(LeaseKind::Verify, LeaseScope::All).await?;
    let result = run(repository, request, memory, reporter, cancellation).await;
    // Whatever was found whole stays found.
    let remembered = memory.save();
    if let Err(error) = lease.finish().await {
        tracing::warn!(%error, "the lease of this verification runs out by itself");
    }
    let report = result?;
    if let Err(error) = remembered {
        let text = format!("what was verified cannot be remembered, and will be read again: {error}");
        reporter.message(Level::Warning, &text);
    }
    Ok(report)
}

/// Reads one file of the WAL archive back; what is wrong with it, where something is.
///
/// # Errors
///
/// When the repository cannot be read.
pub async fn archived_file_problem(
    repository: &PhysicalRepository,
    file: WalFileName,
) -> Result<Option<String>, VerifyError> {
    Ok(match wal::check(repository, file).await? {
        Found::Whole(_) => None,
        Found::Damaged(damage) => Some(damage.text()),
    })
}

async fn run(
    repository: &PhysicalRepository,
    request: &VerifyRequest,
    memory: &mut VerifyMemory,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<VerifyReport, VerifyError> {
    let started = Instant::now();
    let head = repository.head().await?;
    let labels = chosen(repository, &head, &request.labels)?;
    let mut damages = Damages::default();
    // All manifests, whatever is asked for: what is damaged may be part of others too.
    let all: Vec<Label> = head.labels().collect();
    let mut inventory = objects::take(repository, &head, &all, &mut damages, cancellation).await?;
    if !request.labels.is_empty() {
        inventory.narrow(&labels);
    }
    if request.labels.is_empty() {
        objects::add_archive(repository, &mut inventory, cancellation).await?;
        small::check(
            repository,
            request.budget == Budget::Full,
            &mut damages,
            cancellation,
        )
        .await?;
        let known: BTreeSet<ObjectName> = inventory.items.iter().map(|item| item.name).collect();
        memory.retain(|name| known.contains(name));
    }
    let plan = plan::plan(&inventory, memory, request.budget, Timestamp::now());

    let total: u64 = plan.iter().map(|item| item.size).sum();
    let progress = reporter.start(Task::new("verifying", Unit::Bytes, Some(total)));
    let mut indexes = IndexCache::default();
    let mut tally = Tally::default();
    let (objects, references): (Vec<Item>, Vec<Item>) = plan
        .into_iter()
        .partition(|item| !matches!(item.name, ObjectName::References(_)));
    let deadline = match request.budget {
        Budget::Time(time) => Some(started + time),
        _ => None,
    };

    let jobs = request.jobs.clamp(1, 4);
    let mut queue = objects.into_iter();
    let mut running = futures::stream::FuturesUnordered::new();
    loop {
        let over = deadline.is_some_and(|deadline| Instant::now() >= deadline) || cancellation.is_cancelled();
        while !over && running.len() < jobs {
            let Some(item) = queue.next() else { break };
            running.push(check(repository, &inventory, item));
        }
        let Some(checked) = running.next().await else {
            break;
        };
        let (item, found) = checked?;
        progress.advance(item.size);
        tally.add(&item);
        note(&item, found, memory, &mut damages, &mut indexes);
    }
    drop(running);
    let mut left: Vec<Item> = queue.collect();
    if cancellation.is_cancelled() {
        return Err(VerifyError::Cancelled);
    }
    for item in references {
        let ObjectName::References(label) = item.name else {
            continue;
        };
        // A backup with damaged packs is walked in any case: only the maps can say which files it hits.
        let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if over && !damages.concerns(&inventory, label) {
            left.push(item);
            continue;
        }
        progress.set_detail(&label.to_string());
        let whole = references::check(
            repository,
            &inventory,
            label,
            &mut indexes,
            &mut damages,
            cancellation,
        )
        .await?;
        progress.advance(item.size);
        tally.add(&item);
        memory.note(&item.name, whole.then(Timestamp::now));
    }
    // Damaged packs of backups whose references were not due.
    for label in damages.unattributed(&inventory) {
        references::check(
            repository,
            &inventory,
            label,
            &mut indexes,
            &mut damages,
            cancellation,
        )
        .await?;
    }
    finish_progress(progress.as_ref(), &tally);

    let mut backups = verdicts(&inventory, &all, memory, &damages);
    record(repository, &head, &backups, started.elapsed(), &damages).await?;
    backups.retain(|backup| !backup.sound || labels.contains(&backup.label));
    Ok(VerifyReport {
        backups,
        objects: tally.objects,
        bytes: tally.bytes,
        left: left.len() as u64,
        left_bytes: left.iter().map(|item| item.size).sum(),
        damages: damages.into_list(&inventory),
        elapsed: started.elapsed(),
    })
}

#[derive(Default)]
struct Tally {
    objects: u64,
    bytes: u64,
}

impl Tally {
    fn add(&mut self, item: &Item) {
        self.objects += 1;
        self.bytes += item.size;
    }
}

fn finish_progress(progress: &dyn Progress, tally: &Tally) {
    progress.finish(&format!(
        "{} objects, {}",
        tally.objects,
        pgmahout_types::Bytes::new(tally.bytes)
    ));
}

/// The backups that are asked for, the oldest first.
fn chosen(repository: &PhysicalRepository, head: &Head, asked: &[Label]) -> Result<Vec<Label>, VerifyError> {
    let mut labels: Vec<Label> = if asked.is_empty() {
        head.labels().collect()
    } else {
        asked.to_vec()
    };
    labels.sort_unstable();
    labels.dedup();
    for label in &labels {
        repository.backup_in(head, *label)?;
    }
    Ok(labels)
}

/// What reading an object gave.
enum Found {
    /// All of it is as it was written. The index of a pack is kept for the references.
    Whole(Option<pack::KnownIndex>),
    /// It is not.
    Damaged(damage::ObjectDamage),
}

async fn check(
    repository: &PhysicalRepository,
    inventory: &Inventory,
    item: Item,
) -> Result<(Item, Found), VerifyError> {
    let found = match &item.name {
        ObjectName::Pack(id) => pack::check(repository, inventory, *id).await?,
        ObjectName::Wal(file) => wal::check(repository, *file).await?,
        // Manifests were read when the inventory was taken, and what is small before that.
        ObjectName::Manifest(_)
        | ObjectName::References(_)
        | ObjectName::Head(_)
        | ObjectName::Condemned(_)
        | ObjectName::Key(_) => Found::Whole(None),
    };
    Ok((item, found))
}

fn note(
    item: &Item,
    found: Found,
    memory: &mut VerifyMemory,
    damages: &mut Damages,
    indexes: &mut IndexCache,
) {
    match found {
        Found::Whole(index) => {
            if let (ObjectName::Pack(id), Some(index)) = (&item.name, index) {
                indexes.put(*id, index);
            }
            memory.note(&item.name, Some(Timestamp::now()));
        }
        Found::Damaged(damage) => {
            memory.note(&item.name, None);
            damages.add(item.name, damage);
        }
    }
}

fn verdicts(
    inventory: &Inventory,
    labels: &[Label],
    memory: &VerifyMemory,
    damages: &Damages,
) -> Vec<BackupVerdict> {
    labels
        .iter()
        .map(|&label| {
            let needed = inventory.needed_by(label);
            let times: Vec<Option<Timestamp>> = needed.iter().map(|name| memory.last(name)).collect();
            let sound = !damages.concerns(inventory, label);
            BackupVerdict {
                label,
                sound,
                objects: needed.len() as u64,
                unread: times.iter().filter(|time| time.is_none()).count() as u64,
                since: times
                    .into_iter()
                    .collect::<Option<Vec<_>>>()
                    .and_then(|times| times.into_iter().min()),
            }
        })
        .collect()
}

/// Writes into the head what is now known of the backups, where that is news.
async fn record(
    repository: &PhysicalRepository,
    head: &Head,
    backups: &[BackupVerdict],
    elapsed: Duration,
    damages: &Damages,
) -> Result<(), VerifyError> {
    let news: BTreeMap<Label, Examination> = backups
        .iter()
        .filter_map(|verdict| {
            let examination = match (verdict.sound, verdict.since) {
                (false, _) => Examination {
                    at: Timestamp::now(),
                    passed: false,
                    detail: damages.summary(),
                    seconds: elapsed.as_secs(),
                },
                (true, Some(since)) => Examination {
                    at: since,
                    passed: true,
                    detail: String::new(),
                    seconds: elapsed.as_secs(),
                },
                (true, None) => return None,
            };
            let known = head.backup(verdict.label)?.verified.as_ref();
            let is_news =
                known.is_none_or(|known| known.passed != examination.passed || known.at < examination.at);
            is_news.then_some((verdict.label, examination))
        })
        .collect();
    if news.is_empty() {
        return Ok(());
    }
    repository
        .swap(|head: &mut Head| {
            for entry in &mut head.backups {
                if let Some(examination) = news.get(&entry.label) {
                    entry.verified = Some(examination.clone());
                }
            }
            Ok::<_, VerifyError>(())
        })
        .await
}
