//! Waiting until the WAL of a backup is in the repository.

use std::time::{Duration, Instant};

use pgmahout_store::framed::FramedOpener;
use pgmahout_types::repository::WalObjectHeader;
use pgmahout_types::{SegmentName, SegmentSize, SystemIdentifier, WalFileName};
use tokio_util::sync::CancellationToken;

use super::error::CreateError;
use super::server::ArchiverFacts;
use crate::physical::stanza::{PhysicalRepository, kind};

/// Pauses between looks grow from the first to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What is read of a segment's object: its header and the frame that describes it.
const HEAD: u64 = 16 << 10;

/// What the WAL must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    /// The cluster.
    pub(super) system_identifier: SystemIdentifier,
    /// The size of its segments.
    pub(super) segment_size: SegmentSize,
}

/// Waits until all of the segments are there and are what they should be. Gives back those that are missing
/// when the time is over.
pub(super) async fn wait(
    repository: &PhysicalRepository,
    segments: &[SegmentName],
    expected: Expected,
    patience: Duration,
    cancellation: &CancellationToken,
) -> Result<Vec<SegmentName>, CreateError> {
    let deadline = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    let mut missing = segments.to_vec();
    loop {
        let mut still = Vec::new();
        for segment in missing {
            if cancellation.is_cancelled() {
                return Err(CreateError::Interrupted);
            }
            if !is_there(repository, segment, expected).await? {
                still.push(segment);
            }
        }
        missing = still;
        if missing.is_empty() || Instant::now() >= deadline {
            return Ok(missing);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancellation.cancelled() => return Err(CreateError::Interrupted),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether a segment is there; an error where it is something else.
async fn is_there(
    repository: &PhysicalRepository,
    segment: SegmentName,
    expected: Expected,
) -> Result<bool, CreateError> {
    let name = repository.wal_name(WalFileName::Segment(segment));
    let Some(entry) = repository.repository().head(&name).await? else {
        return Ok(false);
    };
    let unusable = |why: String| CreateError::WalUnusable {
        segment: segment.to_string(),
        why,
    };
    let bytes = repository
        .repository()
        .read_range(&name, 0..HEAD.min(entry.size))
        .await?;
    let opener = FramedOpener::from_header(&repository.cipher(), kind::WAL, &name, &bytes)
        .map_err(|error| unusable(error.to_string()))?;
    let mut line = Vec::new();
    opener
        .frames(&bytes)
        .next_into(&mut line)
        .map_err(|error| unusable(error.to_string()))?;
    let header = WalObjectHeader::decode(&line).map_err(|error| unusable(error.to_string()))?;
    if header.name != WalFileName::Segment(segment) {
        return Err(unusable(format!("it says that it is {}", header.name)));
    }
    if header.system_identifier != expected.system_identifier {
        return Err(unusable(format!(
            "it is of the cluster with system identifier {}, not of this one ({})",
            header.system_identifier, expected.system_identifier
        )));
    }
    if header.size != expected.segment_size.bytes() {
        return Err(unusable(format!(
            "it holds {} bytes instead of {}",
            header.size,
            expected.segment_size.bytes()
        )));
    }
    Ok(true)
}

impl ArchiverFacts {
    /// One sentence about how archiving goes.
    pub(crate) fn describe(&self) -> String {
        let mut parts = Vec::new();
        if let Some(command) = &self.command {
            parts.push(format!("archive_command is \"{command}\""));
        }
        if let Some((name, time)) = &self.last_failed {
            parts.push(format!("the last failure was {name} at {time}"));
        }
        match &self.last_archived {
            Some((name, time)) => parts.push(format!("the last success was {name} at {time}")),
            None => parts.push("nothing was archived since the statistics were reset".to_owned()),
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pgmahout_store::repository::PutMode;
    use pgmahout_types::repository::{Digest, wal_object};

    use super::*;
    use crate::physical::stanza::support::{init, segment};

    /// A segment of which the archive says that it is that.
    async fn store(repository: &PhysicalRepository, number: u64, change: impl FnOnce(&mut WalObjectHeader)) {
        let name = WalFileName::Segment(segment(number));
        let mut header = WalObjectHeader {
            format: wal_object::FORMAT,
            name,
            size: SegmentSize::DEFAULT.bytes(),
            system_identifier: SystemIdentifier::new(1),
            page_magic: None,
            blake3: Digest::of(b""),
            archived_at: jiff::Timestamp::UNIX_EPOCH,
            host: String::new(),
        };
        change(&mut header);
        let object = repository.wal_name(name);
        let (cipher, codec) = (repository.cipher(), pgmahout_store::framed::FrameCodec::None);
        let bytes = pgmahout_store::framed::seal_bytes(&cipher, kind::WAL, &object, codec, &header.encode())
            .expect("sealed");
        put(repository, &object, bytes).await;
    }

    async fn put(repository: &PhysicalRepository, object: &str, bytes: Bytes) {
        let storage = repository.repository();
        storage
            .put_bytes(object, bytes, PutMode::Overwrite)
            .await
            .expect("stored");
    }

    async fn look(repository: &PhysicalRepository, number: u64) -> Result<Vec<SegmentName>, CreateError> {
        let expected = Expected {
            system_identifier: SystemIdentifier::new(1),
            segment_size: SegmentSize::DEFAULT,
        };
        let (patience, cancellation) = (Duration::ZERO, CancellationToken::new());
        wait(repository, &[segment(number)], expected, patience, &cancellation).await
    }

    #[tokio::test]
    async fn a_segment_counts_only_when_it_is_there_and_is_what_it_should_be() {
        let directory = tempfile::tempdir().expect("a directory");
        let repository = init(directory.path(), "main").await.expect("set up").repository;
        store(&repository, 1, |_| {}).await;
        assert_eq!(look(&repository, 1).await.expect("it is looked at"), []);
        assert_eq!(look(&repository, 2).await.expect("it is looked at"), [segment(2)]);
        store(&repository, 3, |header| {
            header.system_identifier = SystemIdentifier::new(2);
        })
        .await;
        store(&repository, 4, |header| header.size -= 1).await;
        store(&repository, 5, |header| {
            header.name = WalFileName::Segment(segment(6));
        })
        .await;
        put(
            &repository,
            &repository.wal_name(segment(6).into()),
            Bytes::from_static(b"damage"),
        )
        .await;
        // One segment under the name of another.
        let object = |number| repository.wal_name(segment(number).into());
        let bytes = repository.repository().get_bytes(&object(1), 1 << 20).await;
        put(&repository, &object(7), bytes.expect("it is there")).await;
        for number in 3..=7 {
            let error = look(&repository, number).await.expect_err("it is something else");
            assert!(
                matches!(error, CreateError::WalUnusable { .. }),
                "{number}: {error}"
            );
        }
    }

    #[test]
    fn the_archiver_is_described_by_command_failure_and_success() {
        let facts = ArchiverFacts {
            command: Some("pgmahout wal push %p".to_owned()),
            last_archived: None,
            last_failed: Some(("000000010000000000000003".to_owned(), "10:00".to_owned())),
        };
        assert_eq!(
            facts.describe(),
            "archive_command is \"pgmahout wal push %p\"; the last failure was 000000010000000000000003 at 10:00; \
             nothing was archived since the statistics were reset"
        );
    }
}
