//! `BASE_BACKUP`: the files of the whole cluster as tar archives (PostgreSQL documentation, "Streaming Replication
//! Protocol"; `src/backend/backup/basebackup_copy.c`). Of 15 and later: 14 sends each archive in a COPY of its own.

use bytes::{Buf, Bytes};
use pgmahout_types::{Lsn, TimelineId};

use super::{ReplicationConnection, ReplicationError, field, row, server_error};

/// The SQLSTATE of pages that fail their checksums: the backup is whole all the same.
const DATA_CORRUPTED: &str = "XX001";
/// The limits of `MAX_RATE`, in KiB a second (`src/include/backup/basebackup.h`).
const RATES: std::ops::RangeInclusive<u64> = 32..=1_048_576;

/// What is asked of a base backup. WAL and a backup manifest are never sent, checksums always verified, and the
/// server does not wait for its archive.
#[derive(Debug, Clone, Copy)]
pub struct BackupOptions<'a> {
    /// What `backup_label` says.
    pub label: &'a str,
    /// Whether the first checkpoint is made at once instead of spread out.
    pub fast_checkpoint: bool,
    /// The most that the server sends, in bytes a second.
    pub rate_limit: Option<u64>,
    /// Whether `tablespace_map` is sent, instead of the links in `pg_tblspc`.
    pub tablespace_map: bool,
}

/// What a server says before the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStart {
    /// Where replay will begin.
    pub start: Lsn,
    /// The timeline there.
    pub timeline: TimelineId,
    /// The tablespaces that have an archive of their own.
    pub tablespaces: Vec<BackupTablespace>,
    /// About how many bytes all archives have together.
    pub bytes: Option<u64>,
}

/// A tablespace with an archive of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupTablespace {
    /// Its OID; the archive is `<OID>.tar`.
    pub oid: u32,
    /// Where it is on the server: relative to the data directory for one that lies in `pg_tblspc` itself.
    pub location: Bytes,
}

/// One message of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupMessage {
    /// A tar archive begins: `base.tar`, or that of a tablespace.
    Archive {
        /// Its name.
        name: String,
    },
    /// Bytes of the archive.
    Data(Bytes),
    /// The server warns of something.
    Warning(String),
    /// All was sent; the session takes the next command.
    End(BackupEnd),
}

/// What a server says after the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupEnd {
    /// WAL is needed up to here.
    pub stop: Lsn,
    /// The timeline there.
    pub timeline: TimelineId,
    /// Whether the server found pages whose checksums are wrong.
    pub damaged: bool,
}

/// Where the answer to the command is.
#[derive(Debug, Default)]
pub(super) enum Stage {
    /// Archives.
    #[default]
    Files,
    /// The copy has ended; the position follows.
    Ending(Option<(Lsn, TimelineId)>),
    /// The server ended the command with an error; whether all was sent before, when it was about checksums.
    Failed(ReplicationError),
    Damaged(Lsn, TimelineId),
}

impl ReplicationConnection {
    /// Begins a base backup; waits for the checkpoint. The server leaves backup mode when the session ends,
    /// however it ends.
    ///
    /// Dropping the future leaves the session in an unknown state: close it.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection breaks.
    pub async fn base_backup(
        &mut self,
        options: &BackupOptions<'_>,
    ) -> Result<BackupStart, ReplicationError> {
        self.backup = Stage::default();
        self.send_query(&command(options)).await?;
        // Two results of their own: the position, and the archives.
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let (tag, body) = self.read().await?;
            match tag {
                b'D' => rows.push(row(body)?),
                b'E' => error = Some(server_error(&body)),
                b'Z' => {
                    return Err(error.unwrap_or_else(|| {
                        ReplicationError::Unexpected("BASE_BACKUP ended without files".to_owned())
                    }));
                }
                b'H' => break,
                _ => {}
            }
        }
        let mut rows = rows.into_iter();
        let position = rows.next().unwrap_or_default();
        let mut start = BackupStart {
            start: field(&position, 0)?,
            timeline: field(&position, 1)?,
            tablespaces: Vec::new(),
            bytes: Some(0),
        };
        for row in rows {
            let kibibytes: Option<u64> = field(&row, 2).ok();
            start.bytes = start
                .bytes
                .zip(kibibytes)
                .map(|(bytes, more)| bytes.saturating_add(more.saturating_mul(1024)));
            if row.first().is_some_and(Option::is_some) {
                start.tablespaces.push(BackupTablespace {
                    oid: field(&row, 0)?,
                    location: row.get(1).cloned().flatten().unwrap_or_default(),
                });
            }
        }
        Ok(start)
    }

    /// The next message of the backup. Safe to drop while it waits.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or the server gives up: because a standby was promoted, for example.
    pub async fn next_of_backup(&mut self) -> Result<BackupMessage, ReplicationError> {
        loop {
            let (tag, body) = self.read().await?;
            match (tag, &mut self.backup) {
                (b'd', Stage::Files) => {
                    if let Some(message) = files(body)? {
                        return Ok(message);
                    }
                }
                (b'c', stage @ Stage::Files) => *stage = Stage::Ending(None),
                (b'D', Stage::Ending(end)) => {
                    let row = row(body)?;
                    *end = Some((field(&row, 0)?, field(&row, 1)?));
                }
                (b'E', stage) => {
                    let error = server_error(&body);
                    *stage = match (&error, &stage) {
                        // The position was sent before (`perform_base_backup` in basebackup.c).
                        (ReplicationError::Server { code, .. }, Stage::Ending(Some((stop, timeline))))
                            if code == DATA_CORRUPTED =>
                        {
                            Stage::Damaged(*stop, *timeline)
                        }
                        _ => Stage::Failed(error),
                    };
                    // A session that ends says nothing more.
                    if is_fatal(&body)
                        && let Stage::Failed(error) = std::mem::take(&mut self.backup)
                    {
                        return Err(error);
                    }
                }
                (b'Z', stage) => {
                    let (stop, timeline, damaged) = match std::mem::take(stage) {
                        Stage::Ending(Some((stop, timeline))) => (stop, timeline, false),
                        Stage::Damaged(stop, timeline) => (stop, timeline, true),
                        Stage::Failed(error) => return Err(error),
                        Stage::Files | Stage::Ending(None) => {
                            return Err(ReplicationError::Unexpected(
                                "the backup ended without its position".to_owned(),
                            ));
                        }
                    };
                    return Ok(BackupMessage::End(BackupEnd {
                        stop,
                        timeline,
                        damaged,
                    }));
                }
                (b'N', _) => {
                    if let Some(text) = warning(&body) {
                        return Ok(BackupMessage::Warning(text));
                    }
                }
                (b'S' | b'T' | b'C' | b'A', _) => {}
                (other, _) => {
                    return Err(ReplicationError::Unexpected(format!(
                        "message {:?} in a base backup",
                        char::from(other)
                    )));
                }
            }
        }
    }
}

fn command(options: &BackupOptions<'_>) -> String {
    let rate = options
        .rate_limit
        .map(|bytes| (bytes / 1024).max(*RATES.start()))
        .filter(|rate| RATES.contains(rate))
        .map(|rate| format!(", MAX_RATE {rate}"))
        .unwrap_or_default();
    format!(
        "BASE_BACKUP (LABEL {}, PROGRESS true, CHECKPOINT '{}', WAL false, WAIT false, MANIFEST 'no', \
         VERIFY_CHECKSUMS true, TABLESPACE_MAP {}{rate})",
        crate::sql::quote_literal(options.label),
        if options.fast_checkpoint { "fast" } else { "spread" },
        options.tablespace_map,
    )
}

/// What stands in a message of the copy.
fn files(mut body: Bytes) -> Result<Option<BackupMessage>, ReplicationError> {
    let unexpected = |what: &str| ReplicationError::Unexpected(what.to_owned());
    if body.is_empty() {
        return Err(unexpected("an empty message in a base backup"));
    }
    match body.get_u8() {
        b'd' => Ok(Some(BackupMessage::Data(body))),
        b'n' => {
            let name = body.split(|&byte| byte == 0).next().unwrap_or_default();
            let name = std::str::from_utf8(name).map_err(|_| unexpected("the name of an archive"))?;
            Ok(Some(BackupMessage::Archive {
                name: name.to_owned(),
            }))
        }
        b'p' => Ok(None),
        other => Err(ReplicationError::Unexpected(format!(
            "message {:?} in the copy of a base backup",
            char::from(other)
        ))),
    }
}

/// The severity, in English (field `V`), of an error or a notice.
fn severity(body: &[u8]) -> Option<&[u8]> {
    body.split(|&byte| byte == 0)
        .find_map(|field| field.strip_prefix(b"V"))
}

fn is_fatal(body: &[u8]) -> bool {
    matches!(severity(body), Some(b"FATAL" | b"PANIC"))
}

fn warning(body: &[u8]) -> Option<String> {
    if severity(body) != Some(b"WARNING") {
        return None;
    }
    match server_error(body) {
        ReplicationError::Server { message, .. } => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_asks_for_everything_by_name() {
        let options = BackupOptions {
            label: "it's",
            fast_checkpoint: true,
            rate_limit: Some(1_000_000),
            tablespace_map: true,
        };
        assert_eq!(
            command(&options),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS true, CHECKPOINT 'fast', WAL false, WAIT false, MANIFEST 'no', \
             VERIFY_CHECKSUMS true, TABLESPACE_MAP true, MAX_RATE 976)"
        );
        let unlimited = BackupOptions {
            rate_limit: Some(u64::MAX),
            ..options
        };
        assert!(!command(&unlimited).contains("MAX_RATE"));
        let slow = BackupOptions {
            rate_limit: Some(1),
            ..options
        };
        assert!(command(&slow).contains("MAX_RATE 32)"));
    }

    #[test]
    fn messages_of_the_copy_are_told_apart() {
        let archive = files(Bytes::from_static(b"n16384.tar\0/srv/space\0")).expect("a message");
        let name = "16384.tar".to_owned();
        assert_eq!(archive, Some(BackupMessage::Archive { name }));
        let data = files(Bytes::from_static(b"dabc")).expect("a message");
        assert_eq!(data, Some(BackupMessage::Data(Bytes::from_static(b"abc"))));
        let progress = files(Bytes::from_static(b"p\0\0\0\0\0\0\0\x01")).expect("a message");
        assert_eq!(progress, None);
        assert!(files(Bytes::new()).is_err());
        assert!(files(Bytes::from_static(b"x")).is_err());
    }

    #[test]
    fn warnings_are_known_in_any_language() {
        let body = b"SWARNUNG\0VWARNING\0C01000\0Muebersprungen\0\0";
        assert_eq!(warning(body).as_deref(), Some("uebersprungen"));
        assert_eq!(warning(b"SHINWEIS\0VNOTICE\0C00000\0Mx\0\0"), None);
        assert!(is_fatal(b"SFATAL\0VFATAL\0C57P01\0Mx\0\0"));
    }
}
