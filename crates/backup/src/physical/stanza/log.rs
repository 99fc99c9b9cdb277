//! The head log: reading the newest head, and writing the one after it.
//!
//! A head is an object whose number nobody used before, created only where nothing is. Of two who write the
//! same number one wins; the other reads what the winner wrote and decides again. Nothing is ever overwritten,
//! so an answer that was lost is found out by reading: each head holds a random nonce of its writer.
//!
//! # Finding the newest
//!
//! What this process or this host saw last is looked at first, and the numbers after it are tried one by one.
//! Where that leads nowhere, the log is listed. Listings may be behind, so the numbers after the greatest are
//! tried in any case. A head that this host has seen and that is gone or another one now means that somebody
//! set the repository back: [`StanzaError::RolledBack`].
//!
//! # Old heads
//!
//! Heads of the last 400 days are kept, to see what happened. A process that was stopped for longer than that
//! could take a number that was used and removed; so after each write the head before must still be there.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use pgmahout_store::repository::CreateOutcome;
use pgmahout_types::repository::head::{Clearance, PublishError};
use pgmahout_types::repository::{BackupEntry, CondemnedId, CondemnedObjects, Head, Nonce};
use tokio_util::sync::CancellationToken;

use super::PhysicalRepository;
use super::error::{Refusal, StanzaError};
use super::memory::SeenHead;
use super::names::{StanzaObject, kind};
use super::protocol::{self, References};

/// For how long heads are kept.
pub const HEADS_ARE_KEPT: Duration = Duration::from_hours(400 * 24);

/// The largest head that is read.
const LARGEST_HEAD: u64 = 64 << 20;

/// The largest list of condemned objects that is read: a few million names.
const LARGEST_LIST: u64 = 512 << 20;

/// How many numbers are tried one by one before the log is listed.
const STEPS: u64 = 16;

/// How often a change is tried against others who change the head too.
const ATTEMPTS: u32 = 60;

/// The first pause between attempts; later ones are longer.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl PhysicalRepository {
    /// The newest head.
    ///
    /// # Errors
    ///
    /// [`StanzaError::RolledBack`], [`StanzaError::HeadLost`], or what the storage says.
    pub async fn head(&self) -> Result<Head, StanzaError> {
        let head = self.newest().await?;
        self.remember(&head).await;
        Ok(head)
    }

    /// Notes that this head was seen, here and in the state directory.
    async fn remember(&self, head: &Head) {
        let seen = SeenHead {
            sequence: head.seq,
            nonce: head.nonce,
        };
        let before = self
            .inner
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(seen);
        if before == Some(seen) {
            return;
        }
        let (memory, id, stanza) = (
            self.inner.memory.clone(),
            self.id().to_string(),
            self.stanza().clone(),
        );
        let remembered = tokio::task::spawn_blocking(move || memory.remember(&id, &stanza, seen)).await;
        if let Ok(Err(error)) = remembered {
            tracing::warn!(%error, "the newest head of the repository cannot be remembered");
        }
    }

    async fn newest(&self) -> Result<Head, StanzaError> {
        let known = self.known();
        let mut start = match known {
            Some(seen) => self.read_head(seen.sequence).await?,
            None => None,
        };
        if let (Some(seen), Some(head)) = (known, &start)
            && head.nonce != seen.nonce
        {
            return Err(self.rolled_back(seen, head.seq));
        }
        // Heads may be removed between looking and reading, but not the newest: a few rounds are plenty.
        for _ in 0..STEPS {
            if start.is_none() {
                start = self.listed_head().await?;
            }
            if let Some(from) = start.take() {
                let newest = self.last_after(from).await?;
                return match known {
                    Some(seen) if newest.seq < seen.sequence => Err(self.rolled_back(seen, newest.seq)),
                    _ => Ok(newest),
                };
            }
        }
        Err(self.contended(STEPS as u32))
    }

    /// The greatest head of a listing; `None` where it was removed since.
    async fn listed_head(&self) -> Result<Option<Head>, StanzaError> {
        if let Some(greatest) = self.greatest_listed().await? {
            return self.read_head(greatest).await;
        }
        // A listing that is behind may show nothing of a stanza that is new.
        match self.read_head(1).await? {
            Some(first) => Ok(Some(first)),
            None => Err(StanzaError::HeadLost {
                repository: self.description(),
                stanza: self.stanza().to_string(),
            }),
        }
    }

    /// The last head of the row that begins there. Now and then it is listed, which is quicker where the row is long;
    /// but the listing may be further behind than we are.
    async fn last_after(&self, mut newest: Head) -> Result<Head, StanzaError> {
        let mut steps = 0_u64;
        while let Some(next) = self.read_head(newest.seq + 1).await? {
            newest = next;
            steps += 1;
            if steps.is_multiple_of(STEPS)
                && let Some(greatest) = self.greatest_listed().await?
                && greatest > newest.seq
                && let Some(listed) = self.read_head(greatest).await?
            {
                newest = listed;
            }
        }
        Ok(newest)
    }

    /// Whether the repository still holds the newest head that this host has seen: for those who need no head. What
    /// cannot be read now is no proof of anything.
    ///
    /// # Errors
    ///
    /// [`StanzaError::RolledBack`], [`StanzaError::HeadLost`].
    pub async fn check_memory(&self) -> Result<(), StanzaError> {
        let Some(seen) = self.known() else {
            return Ok(());
        };
        match self.read_head(seen.sequence).await {
            Ok(Some(head)) if head.nonce == seen.nonce => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "whether the repository was set back cannot be told");
                return Ok(());
            }
        }
        match self.newest().await {
            Err(error @ (StanzaError::RolledBack { .. } | StanzaError::HeadLost { .. })) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the repository as it is, though this host has seen a newer head: for whoever set it back on purpose.
    /// Gives what is there now, and the number that had been seen, where it was another head.
    ///
    /// # Errors
    ///
    /// When there is no head, or what was seen cannot be forgotten.
    pub async fn accept_rollback(&self) -> Result<(Head, Option<u64>), StanzaError> {
        let seen = match self.head().await {
            Ok(head) => return Ok((head, None)),
            Err(StanzaError::RolledBack { seen, .. }) => seen,
            Err(error) => return Err(error),
        };
        let (id, stanza) = (self.id().to_string(), self.stanza().clone());
        let memory = self.inner.memory.clone();
        let forgotten = tokio::task::spawn_blocking(move || memory.forget(&id, &stanza)).await;
        if let Ok(forgotten) = forgotten {
            forgotten?;
        }
        *self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok((self.head().await?, Some(seen)))
    }

    /// The newest head that this process or this host knows.
    fn known(&self) -> Option<SeenHead> {
        let inner = &*self.inner;
        let here = *inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = inner.memory.recall(&self.id().to_string(), self.stanza());
        here.into_iter()
            .chain(remembered)
            .max_by_key(|seen| seen.sequence)
    }

    async fn greatest_listed(&self) -> Result<Option<u64>, StanzaError> {
        let listed = self.list_heads().await?;
        Ok(listed.last().map(|(sequence, _)| *sequence))
    }

    /// The numbers of the heads that a listing shows, ascending, and when they were written.
    async fn list_heads(&self) -> Result<Vec<(u64, SystemTime)>, StanzaError> {
        let names = &self.inner.names;
        let listed = self
            .repository()
            .list(&names.heads(), &CancellationToken::new())
            .await?;
        let mut heads: Vec<(u64, SystemTime)> = listed
            .iter()
            .filter_map(|entry| {
                let object = StanzaObject::parse(names.relative(&entry.name)?)?;
                match object {
                    StanzaObject::Head(sequence) => Some((sequence, entry.modified)),
                    _ => None,
                }
            })
            .collect();
        heads.sort_unstable_by_key(|(sequence, _)| *sequence);
        Ok(heads)
    }

    /// The head of that number; `None` where there is none.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read.
    pub async fn read_head(&self, sequence: u64) -> Result<Option<Head>, StanzaError> {
        let name = self.inner.names.head(sequence);
        let content = match self.get_small(kind::HEAD, &name, LARGEST_HEAD).await {
            Ok(content) => content,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let head = Head::decode(&content).map_err(|error| self.format(&name, error))?;
        if head.seq != sequence {
            let problem = format!("it says that it is number {}", head.seq);
            return Err(self.format(&name, problem));
        }
        Ok(Some(head))
    }

    /// Changes the head. `decide` is given the newest head and changes it; where somebody else is quicker it is
    /// given theirs and decides again. A head that it leaves as it is is not written.
    ///
    /// # Errors
    ///
    /// What `decide` says; [`StanzaError::Contended`] after a minute of lost races; what the storage says.
    /// [`StanzaError::OutcomeUnknown`] when an answer was lost and cannot be found out.
    pub async fn swap<T, E, F>(&self, mut decide: F) -> Result<T, E>
    where
        E: From<StanzaError>,
        F: FnMut(&mut Head) -> Result<T, E>,
    {
        for attempt in 0..ATTEMPTS {
            let head = self.head().await?;
            let mut next = head.clone();
            let decided = decide(&mut next)?;
            if next == head || self.follow(&head, next).await?.is_some() {
                return Ok(decided);
            }
            pause(attempt).await;
        }
        Err(self.contended(ATTEMPTS).into())
    }

    /// Writes `next` as the head after `head`, and gives it back as written; `None` where somebody else was
    /// first.
    pub(crate) async fn follow(&self, head: &Head, mut next: Head) -> Result<Option<Head>, StanzaError> {
        next.advance(
            Nonce::from_bytes(super::random()?),
            Timestamp::now(),
            &super::writer(),
        );
        let name = self.inner.names.head(next.seq);
        let bytes = self.seal_small(kind::HEAD, &name, &next.encode())?;
        let error = match self.repository().create_once(&name, bytes).await {
            Ok(CreateOutcome::Created) => None,
            Ok(CreateOutcome::AlreadyThere) => return Ok(None),
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            match self.read_head(next.seq).await {
                Ok(Some(there)) if there.nonce == next.nonce => {}
                Ok(Some(_)) => return Ok(None),
                Ok(None) if !error.is_retryable() => return Err(error.into()),
                // It may still arrive.
                Ok(None) | Err(_) => {
                    return Err(StanzaError::OutcomeUnknown {
                        repository: self.description(),
                        stanza: self.stanza().to_string(),
                        source: Box::new(error),
                    });
                }
            }
        }
        if !self.repository().exists(&self.inner.names.head(head.seq)).await? {
            // The number was used and removed while we slept, and what we wrote is after nothing.
            self.repository().delete(&name).await?;
            return Err(StanzaError::TooLate {
                repository: self.description(),
                stanza: self.stanza().to_string(),
            });
        }
        self.remember(&next).await;
        Ok(Some(next))
    }

    /// Lists a finished backup: the last step of making one, after its manifest was written. `basis` is the epoch
    /// of the head that the backup read *before* it looked for anything to reuse (its parent, packs of an
    /// interrupted run).
    ///
    /// # Errors
    ///
    /// [`StanzaError::Refused`] when something that it is made of was condemned since; otherwise as
    /// [`PhysicalRepository::swap`].
    pub async fn publish(
        &self,
        entry: &BackupEntry,
        basis: u64,
        references: &References,
    ) -> Result<Head, StanzaError> {
        let refused = |source: Refusal| StanzaError::Refused {
            repository: self.description(),
            label: entry.label,
            source: Box::new(source),
        };
        let mut clearance = Clearance {
            epoch: basis,
            checked: BTreeSet::new(),
        };
        for attempt in 0..ATTEMPTS {
            let head = self.head().await?;
            let mut next = head.clone();
            match next.publish(entry.clone(), &clearance) {
                // It is there: the answer to an earlier call was lost.
                Ok(()) if next == head => return Ok(head),
                Ok(()) => {
                    if let Some(written) = self.follow(&head, next).await? {
                        return Ok(written);
                    }
                }
                Err(PublishError::Unchecked { lists, .. }) => {
                    for id in lists {
                        // A list that is gone was forgotten meanwhile: the next head says so.
                        let Some(list) = self.read_condemned(id).await? else {
                            continue;
                        };
                        if let Some(conflict) = protocol::conflict(&list, references) {
                            return Err(refused(conflict.into()));
                        }
                        clearance.checked.insert(id);
                    }
                    continue;
                }
                Err(error) => return Err(refused(error.into())),
            }
            pause(attempt).await;
        }
        Err(self.contended(ATTEMPTS))
    }

    /// A list of condemned objects; `None` where there is no such list any more.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read.
    pub async fn read_condemned(&self, id: CondemnedId) -> Result<Option<CondemnedObjects>, StanzaError> {
        let name = self.inner.names.condemned(id);
        let content = match self.get_small(kind::CONDEMNED, &name, LARGEST_LIST).await {
            Ok(content) => content,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let list = CondemnedObjects::decode(&content).map_err(|error| self.format(&name, error))?;
        Ok(Some(list))
    }

    /// Removes heads that are older than [`HEADS_ARE_KEPT`], the oldest first, and never the newest. Returns how
    /// many.
    ///
    /// # Errors
    ///
    /// When one cannot be removed.
    pub async fn prune_heads(&self, now: SystemTime) -> Result<u64, StanzaError> {
        let heads = self.list_heads().await?;
        let Some((_, all_but_newest)) = heads.split_last() else {
            return Ok(0);
        };
        let mut removed = 0;
        for (sequence, written) in all_but_newest {
            let age = now.duration_since(*written).unwrap_or_default();
            if age <= HEADS_ARE_KEPT {
                break;
            }
            self.repository()
                .delete(&self.inner.names.head(*sequence))
                .await?;
            removed += 1;
        }
        Ok(removed)
    }

    fn rolled_back(&self, seen: SeenHead, found: u64) -> StanzaError {
        StanzaError::RolledBack {
            repository: self.description(),
            stanza: self.stanza().to_string(),
            found,
            seen: seen.sequence,
            file: self.inner.memory.file(&self.id().to_string(), self.stanza()),
        }
    }

    fn contended(&self, attempts: u32) -> StanzaError {
        StanzaError::Contended {
            repository: self.description(),
            stanza: self.stanza().to_string(),
            attempts,
        }
    }
}

/// Waits between attempts: longer each time, and never as long as the others.
async fn pause(attempt: u32) {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << attempt.min(10))
        .min(LONGEST_PAUSE);
    let [random] = super::random::<1>().unwrap_or_default();
    tokio::time::sleep(longest.mul_f64(f64::from(random) / 255.0)).await;
}
