//! Leases: who is at work in a stanza, and what a collection had better leave.
//!
//! A lease is an object that its owner writes again every third of its time to live. It spares work; it fences
//! nothing: whoever is stopped for too long finds its lease gone by and what it read from deleted, and an error
//! says so. What must never happen does not happen because of the head ([`super::protocol`]).
//!
//! A reader writes its lease *before* it reads the head that lists its backup. A collection looks at the leases
//! *after* it has read the head from which it computes the garbage. So either the collection sees the lease, or
//! the reader sees that its backup is gone.
//!
//! # Clocks
//!
//! Whether a lease is alive is judged by the storage's clock alone: when the object was last written against
//! when the judge's own lease was. The clocks of the hosts do not matter. A minute is allowed for storages with
//! several clocks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use pgmahout_store::framed::FrameCodec;
use pgmahout_store::repository::PutMode;
use pgmahout_types::SegmentName;
use pgmahout_types::repository::{Label, Nonce};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::error::StanzaError;
use super::names::{StanzaObject, kind};
use super::{PhysicalRepository, random};

/// How long a lease lives when it is not renewed.
pub const TIME_TO_LIVE: Duration = Duration::from_mins(5);

/// The longest life that is believed of somebody else's lease.
const LONGEST_LIFE: Duration = Duration::from_hours(1);

/// What is added to the life of others' leases, for storages with several clocks.
pub const CLOCK_ALLOWANCE: Duration = Duration::from_mins(1);

/// How long dead leases are left lying, for people to look at.
const DEAD_ARE_KEPT: Duration = Duration::from_hours(24);

/// The largest lease that is read.
const LARGEST_LEASE: u64 = 1 << 20;

/// What the owner of a lease does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseKind {
    /// Makes a backup.
    Backup,
    /// Restores.
    Restore,
    /// Reads everything.
    Verify,
    /// Restores for a test.
    Drill,
    /// Copies to another repository.
    Copy,
    /// Collects garbage.
    Expire,
    /// Something that a newer pgmahout knows.
    #[serde(other)]
    Other,
}

/// Which backups a lease protects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseScope {
    /// All that there are: until it is known which.
    All,
    /// These.
    Labels(BTreeSet<Label>),
}

impl LeaseScope {
    /// One backup.
    pub fn label(label: Label) -> Self {
        Self::Labels(BTreeSet::from([label]))
    }

    /// No backup: for a first backup, which has no parent, and for a collection.
    pub fn none() -> Self {
        Self::Labels(BTreeSet::new())
    }

    /// Whether it protects that backup.
    pub fn covers(&self, label: Label) -> bool {
        match self {
            Self::All => true,
            Self::Labels(labels) => labels.contains(&label),
        }
    }
}

/// What stands in a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What its owner does.
    pub kind: LeaseKind,
    /// Which backups it reads.
    pub scope: LeaseScope,
    /// The backup that it makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Label>,
    /// Packs written since then, by the storage's clock, may be its own: a running backup's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_since: Option<Timestamp>,
    /// The first segment of WAL that it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_from: Option<SegmentName>,
    /// How long it lives when it is not written again, in seconds.
    pub ttl_seconds: u64,
    /// Host and process, for people.
    pub owner: String,
    /// When it was taken, by the owner's clock, for people.
    pub since: Timestamp,
}

/// Somebody else's lease, as a collection sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenLease {
    /// Its id.
    pub id: String,
    /// When it was last written, by the storage's clock.
    pub written: SystemTime,
    /// What stands in it; `None` where it cannot be read: then it protects everything.
    pub lease: Option<Lease>,
}

impl SeenLease {
    /// Whether its owner must be thought alive at a time by the storage's clock.
    pub fn is_alive(&self, now: SystemTime) -> bool {
        let life = self.lease.as_ref().map_or(TIME_TO_LIVE, |lease| {
            Duration::from_secs(lease.ttl_seconds).min(LONGEST_LIFE)
        });
        match now.duration_since(self.written) {
            Ok(age) => age <= life + CLOCK_ALLOWANCE,
            // Written later than now: just now, by another of the storage's clocks, or before the storage's clock was
            // set back. One that lives is renewed soon, by the new time; so a day is more than it needs.
            Err(ahead) => ahead.duration() <= DEAD_ARE_KEPT,
        }
    }

    /// Whether it protects that backup.
    pub fn covers(&self, label: Label) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.scope.covers(label))
    }
}

/// A lease of ours, renewed in the background until it is finished or dropped.
///
/// Made and dropped on a tokio runtime. Dropping removes the object in the background, as well as that goes.
#[derive(Debug)]
pub struct LeaseGuard {
    repository: PhysicalRepository,
    id: String,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
    runtime: Handle,
    finished: bool,
}

#[derive(Debug)]
struct State {
    lease: Lease,
    /// When it was last written, by a clock that does not stop while the machine sleeps.
    renewed: Duration,
    /// Whether it ever was not renewed for longer than it lives.
    lost: bool,
}

impl State {
    fn time_to_live(&self) -> Duration {
        Duration::from_secs(self.lease.ttl_seconds)
    }

    fn note_loss(&mut self) {
        if since_boot().saturating_sub(self.renewed) > self.time_to_live() {
            self.lost = true;
        }
    }
}

impl PhysicalRepository {
    /// Takes a lease of the usual length. It is written when this returns: read the head after that, and look
    /// there whether the backup is still listed.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn lease(&self, kind: LeaseKind, scope: LeaseScope) -> Result<LeaseGuard, StanzaError> {
        self.lease_for(kind, scope, TIME_TO_LIVE).await
    }

    /// The same with another time to live, in whole seconds and at least one.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn lease_for(
        &self,
        kind: LeaseKind,
        scope: LeaseScope,
        time_to_live: Duration,
    ) -> Result<LeaseGuard, StanzaError> {
        let lease = Lease {
            kind,
            scope,
            run: None,
            objects_since: None,
            wal_from: None,
            ttl_seconds: time_to_live.as_secs().max(1),
            owner: super::writer(),
            since: Timestamp::now(),
        };
        let id = Nonce::from_bytes(random()?).to_string();
        let guard = LeaseGuard {
            repository: self.clone(),
            id,
            state: Arc::new(Mutex::new(State {
                lease,
                renewed: since_boot(),
                lost: false,
            })),
            stop: CancellationToken::new(),
            runtime: Handle::current(),
            finished: false,
        };
        guard.write().await?;
        guard.runtime.spawn(renew(
            self.clone(),
            guard.id.clone(),
            Arc::clone(&guard.state),
            guard.stop.clone(),
        ));
        if matches!(kind, LeaseKind::Backup | LeaseKind::Copy) {
            // From now on by the storage's clock; a second less for clocks without fractions.
            let written = guard.written().await?;
            let since = written.checked_sub(Duration::from_secs(2)).unwrap_or(written);
            guard
                .change(|lease| lease.objects_since = Timestamp::try_from(since).ok())
                .await?;
        }
        Ok(guard)
    }

    /// All leases of the stanza but `own`, dead ones too.
    ///
    /// # Errors
    ///
    /// What the storage says. A lease that cannot be understood is no error: it protects everything.
    pub async fn leases(&self, own: Option<&LeaseGuard>) -> Result<Vec<SeenLease>, StanzaError> {
        let names = &self.inner.names;
        let listed = self
            .repository()
            .list(&names.leases(), &CancellationToken::new())
            .await?;
        let mut seen = Vec::new();
        for entry in listed {
            let object = names.relative(&entry.name).and_then(StanzaObject::parse);
            let Some(StanzaObject::Lease(id)) = object else {
                continue;
            };
            if own.is_some_and(|own| own.id == id) {
                continue;
            }
            let lease = match self.get_small(kind::LEASE, &entry.name, LARGEST_LEASE).await {
                Ok(content) => serde_json::from_slice(&content).ok(),
                Err(error) if error.is_not_found() => continue,
                Err(StanzaError::Framed { .. }) => None,
                Err(error) => return Err(error),
            };
            seen.push(SeenLease {
                id,
                written: entry.modified,
                lease,
            });
        }
        Ok(seen)
    }

    /// Removes leases whose owners have been dead for a day.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn sweep_leases(&self, leases: &[SeenLease], now: SystemTime) -> Result<u64, StanzaError> {
        let mut removed = 0;
        for lease in leases {
            let apart = match now.duration_since(lease.written) {
                Ok(age) => age,
                Err(ahead) => ahead.duration(),
            };
            if !lease.is_alive(now) && apart > DEAD_ARE_KEPT {
                let name = self
                    .inner
                    .names
                    .full(&StanzaObject::Lease(lease.id.clone()).to_string());
                self.repository().delete(&name).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl LeaseGuard {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What stands in it.
    pub fn lease(&self) -> Lease {
        self.state().lease.clone()
    }

    /// Changes what stands in it, and writes it. Narrowing from all backups to one is safe at any time; what is
    /// added must be looked for in a head that is read afterwards.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn change(&self, change: impl FnOnce(&mut Lease)) -> Result<(), StanzaError> {
        change(&mut self.state().lease);
        self.write().await
    }

    /// Protects these backups and no others from now on.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn narrow(&self, labels: impl IntoIterator<Item = Label>) -> Result<(), StanzaError> {
        let labels = labels.into_iter().collect();
        self.change(|lease| lease.scope = LeaseScope::Labels(labels))
            .await
    }

    /// Whether it has been alive without a break.
    pub fn is_alive(&self) -> bool {
        let mut state = self.state();
        state.note_loss();
        !state.lost
    }

    /// Makes sure that what the lease protects is still protected. Where it ran out meanwhile it is renewed, and
    /// the head must still list all of its backups.
    ///
    /// # Errors
    ///
    /// [`StanzaError::LeaseLost`] where the lease ran out and a backup is gone; what the storage says.
    pub async fn hold(&self) -> Result<(), StanzaError> {
        if self.is_alive() {
            return Ok(());
        }
        self.write().await?;
        let lost = || StanzaError::LeaseLost {
            repository: self.repository.description(),
            stanza: self.repository.stanza().to_string(),
        };
        let LeaseScope::Labels(labels) = self.lease().scope else {
            return Err(lost());
        };
        let head = self.repository.head().await?;
        let all = labels
            .iter()
            .all(|label| head.backups.iter().any(|entry| entry.label == *label));
        if !all {
            return Err(lost());
        }
        self.state().lost = false;
        Ok(())
    }

    /// When it was last written, by the storage's clock.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn written(&self) -> Result<SystemTime, StanzaError> {
        let name = name(&self.repository, &self.id);
        match self.repository.repository().head(&name).await? {
            Some(entry) => Ok(entry.modified),
            None => Err(StanzaError::LeaseLost {
                repository: self.repository.description(),
                stanza: self.repository.stanza().to_string(),
            }),
        }
    }

    /// Writes it now.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn write(&self) -> Result<(), StanzaError> {
        write(&self.repository, &self.id, &self.state).await
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// When the object cannot be removed; then it runs out by itself.
    pub async fn finish(mut self) -> Result<(), StanzaError> {
        self.finished = true;
        self.stop.cancel();
        self.repository
            .repository()
            .delete(&name(&self.repository, &self.id))
            .await?;
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.stop.cancel();
        if self.finished {
            return;
        }
        let (repository, name) = (self.repository.clone(), name(&self.repository, &self.id));
        self.runtime.spawn(async move {
            if let Err(error) = repository.repository().delete(&name).await {
                tracing::debug!(%error, "a lease was not removed; it runs out by itself");
            }
        });
    }
}

fn name(repository: &PhysicalRepository, id: &str) -> String {
    repository
        .names()
        .full(&StanzaObject::Lease(id.to_owned()).to_string())
}

async fn write(repository: &PhysicalRepository, id: &str, state: &Mutex<State>) -> Result<(), StanzaError> {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let began = since_boot();
    let content = serde_json::to_vec(&lock().lease).unwrap_or_default();
    let name = name(repository, id);
    let bytes = repository.seal_with(kind::LEASE, &name, FrameCodec::None, &content)?;
    repository
        .repository()
        .put_bytes(&name, bytes, PutMode::Overwrite)
        .await?;
    let mut state = lock();
    state.note_loss();
    // It lives from before it was written.
    state.renewed = began;
    Ok(())
}

/// Renews a lease every third of its life, and after a failure sooner.
async fn renew(
    repository: PhysicalRepository,
    id: String,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
) {
    let life = state
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .time_to_live();
    let mut pause = life / 3;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let renewed = tokio::select! {
            () = stop.cancelled() => return,
            renewed = write(&repository, &id, &state) => renewed,
        };
        pause = match renewed {
            Ok(()) => life / 3,
            Err(error) => {
                tracing::warn!(%error, "a lease could not be renewed");
                life / 12
            }
        };
    }
}

/// A clock that goes on while the machine sleeps.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}
