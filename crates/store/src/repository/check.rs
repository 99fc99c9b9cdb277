//! Proving that a repository does what is needed of it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{PutMode, Repository, Storage};
use crate::digest::hexadecimal;
use crate::error::{Action, StoreError};
use crate::seal::Key;

/// Where the check's own objects are, for as long as it runs.
const CHECK_PREFIX: &str = "check";

/// What [`Repository::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// How long it took to write a small object durably.
    pub write: Duration,
    /// How long it took to read it back.
    pub read: Duration,
    /// Whether "create only" is honoured; see [`Repository::supports_conditional_put`].
    pub conditional_put: bool,
    /// How many creators raced for one name.
    pub creators: usize,
    /// How many of them were told that they had won: one, where "create only" is honoured.
    pub winners: usize,
}

/// How a race of creators ended.
#[derive(Debug, Clone, Copy)]
struct Race {
    winners: usize,
    /// One winner, nobody after it, and its content is there.
    is_exclusive: bool,
}

/// How many creators race.
const CREATORS: usize = 8;

impl Repository {
    /// Lists, writes a small object, reads it back, compares, deletes it, and sees that it is gone. The
    /// object's name is random, so that checks may run side by side; it is deleted whatever happens.
    ///
    /// # Errors
    ///
    /// The first thing that does not work: on S3 within about 15 s when the storage cannot be reached.
    /// [`StoreError::ReadBackDiffers`] when it lies.
    pub async fn check(&self, cancellation: &CancellationToken) -> Result<CheckReport, StoreError> {
        match self.list(CHECK_PREFIX, cancellation).await {
            Ok(_)
            | Err(StoreError::RepositoryMissing {
                kind: "directory", ..
            }) => {}
            Err(error) => return Err(error),
        }
        let (name, content) = self.probe_object()?;
        let checked = self.check_object(&name, content).await;
        if checked.is_err() {
            // The first error is what counts.
            let _ = self.delete(&name).await;
        }
        let (write, read) = checked?;
        if cancellation.is_cancelled() {
            return Err(StoreError::Cancelled {
                subject: self.subject(Action::Write, &name),
            });
        }
        let race = self.race().await?;
        Ok(CheckReport {
            write,
            read,
            conditional_put: race.is_exclusive,
            creators: CREATORS,
            winners: race.winners,
        })
    }

    async fn check_object(&self, name: &str, content: Bytes) -> Result<(Duration, Duration), StoreError> {
        let started = Instant::now();
        self.put_bytes(name, content.clone(), PutMode::Create).await?;
        let write = started.elapsed();
        let started = Instant::now();
        let back = self.get_bytes(name, content.len() as u64).await?;
        let read = started.elapsed();
        let differs = || StoreError::ReadBackDiffers {
            subject: self.subject(Action::Read, name),
        };
        if back != content
            || self
                .head(name)
                .await?
                .is_none_or(|entry| entry.size != content.len() as u64)
        {
            return Err(differs());
        }
        self.delete(name).await?;
        if self.exists(name).await? {
            return Err(differs());
        }
        Ok((write, read))
    }

    /// Whether [`PutMode::Create`] is atomic here, proven by trying: eight creators race for one name and exactly
    /// one may win, one that comes later must lose, and what is there must be the winner's. Where this is `false`,
    /// two writers of one name that race can both succeed, and the later one stays.
    ///
    /// # Errors
    ///
    /// What the storage says, other than that it refuses or does not know conditional writes.
    pub async fn supports_conditional_put(&self) -> Result<bool, StoreError> {
        Ok(self.race().await?.is_exclusive)
    }

    async fn race(&self) -> Result<Race, StoreError> {
        let (name, _) = self.probe_object()?;
        let contents = (0..CREATORS)
            .map(|_| self.probe_object().map(|(_, content)| content))
            .collect::<Result<Vec<_>, _>>()?;
        let result = self.race_for(&name, &contents).await;
        let deleted = self.delete(&name).await;
        let race = result?;
        deleted?;
        Ok(race)
    }

    async fn race_for(&self, name: &str, contents: &[Bytes]) -> Result<Race, StoreError> {
        let creators = contents
            .iter()
            .map(|content| self.attempt_create(name, content.clone()));
        let mut winners = Vec::new();
        let (mut is_refused, mut busy) = (false, None);
        for (won, content) in join_all(creators).await.into_iter().zip(contents) {
            match won {
                Ok(true) => winners.push(content),
                Ok(false) => {}
                // A server that does not know the condition.
                Err(StoreError::Other { .. }) => is_refused = true,
                // "Another conditional write is under way" is how AWS answers the losers of a race.
                Err(error @ StoreError::Unavailable { .. }) => {
                    busy.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let (true, Some(error)) = (winners.is_empty() && !is_refused, busy) {
            return Err(error);
        }
        let count = winners.len();
        let ended = |is_exclusive| {
            Ok(Race {
                winners: count,
                is_exclusive,
            })
        };
        let [winner] = winners[..] else {
            return ended(false);
        };
        if is_refused || self.attempt_create(name, Bytes::from_static(b"late")).await? {
            return ended(false);
        }
        ended(self.get_bytes(name, winner.len() as u64).await? == *winner)
    }

    async fn attempt_create(&self, name: &str, bytes: Bytes) -> Result<bool, StoreError> {
        match &self.storage {
            Storage::S3(store) => match store.attempt_create(name, bytes).await {
                // A server that does not know the header says 501.
                Err(StoreError::Unavailable { source, subject }) if source.0.contains("NotImplemented") => {
                    Err(StoreError::Other {
                        subject,
                        source: Box::new(source),
                    })
                }
                other => other,
            },
            Storage::Local(_) => match self.put_bytes(name, bytes, PutMode::Create).await {
                Ok(()) => Ok(true),
                Err(StoreError::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    /// A name that nobody else uses, and bytes that nobody else writes.
    fn probe_object(&self) -> Result<(String, Bytes), StoreError> {
        let random = Key::generate().map_err(|source| StoreError::Encryption {
            repository: self.description.clone(),
            source,
        })?;
        let text = hexadecimal(random.as_bytes());
        Ok((
            format!("{CHECK_PREFIX}/{text}"),
            Bytes::from(format!("pgmahout repository check {text}\n")),
        ))
    }
}
