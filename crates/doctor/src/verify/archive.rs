//! A WAL segment on its way into the archive, and back.

use std::path::Path;
use std::time::{Duration, Instant};

use pgmahout_postgres::connection::Connection;

use super::{Part, failed};
use crate::health::{Finding, Measure};

/// Ends the current segment, waits until it is archived, reads it back where that is possible.
pub(super) async fn switch_and_wait(connection: &Connection, patience: Duration) -> Part {
    let settings = match connection
        .query_one(
            "SELECT current_setting('archive_mode') <> 'off',
                    current_setting('restore_command', true),
                    (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_segment_size'),
                    (SELECT system_identifier FROM pg_catalog.pg_control_system())",
            &[],
        )
        .await
    {
        Ok(row) => row,
        Err(error) => return failed("read the archive's settings", &error),
    };
    if !settings.get::<_, bool>(0) {
        return Part::Skipped("archive_mode is off".to_owned());
    }
    let begun = Instant::now();
    let segment: String = match connection
        .query_one(
            "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())",
            &[],
        )
        .await
    {
        Ok(row) => row.get(0),
        Err(error) => return failed("name the current WAL segment", &error),
    };
    if let Err(error) = connection
        .query_one("SELECT pg_catalog.pg_switch_wal()", &[])
        .await
    {
        return if error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) {
            Part::Found(Finding::unknown(
                "this role may not switch to a new WAL segment",
                Some(format!(
                    "GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO {}",
                    connection.parameters().user
                )),
            ))
        } else {
            failed("switch to a new WAL segment", &error)
        };
    }
    loop {
        let state = connection
            .query_one(
                "SELECT coalesce(last_archived_wal >= $1, false),
                        CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') THEN last_failed_wal END
                 FROM pg_catalog.pg_stat_archiver",
                &[&segment],
            )
            .await;
        match state {
            Ok(row) if row.get::<_, bool>(0) => break,
            Ok(row) if begun.elapsed() > patience => {
                let failing = row.get::<_, Option<String>>(1).map_or_else(
                    || "nothing was tried".to_owned(),
                    |segment| format!("archiving {segment} fails"),
                );
                return Part::Found(
                    Finding::crit(format!("segment {segment} is not archived after {} s: {failing}", patience.as_secs()))
                        .hint("see the server's log for the archive_command's messages; pgmahout health --only wal.archiving"),
                );
            }
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => return failed("look at the archiver", &error),
        }
    }
    let took = Measure::seconds(begun.elapsed().as_secs_f64());
    let restore_command = settings.get::<_, Option<String>>(1).unwrap_or_default();
    if restore_command.is_empty() {
        return Part::Found(
            Finding::ok(format!(
                "segment {segment} was archived; not read back, since restore_command is not set"
            ))
            .measured(took),
        );
    }
    if !connection.parameters().is_local() {
        return Part::Found(
            Finding::ok(format!(
                "segment {segment} was archived; not read back, since the server is another host"
            ))
            .measured(took),
        );
    }
    match read_back(&restore_command, &segment, settings.get(2), settings.get(3)).await {
        Ok(()) => Part::Found(
            Finding::ok(format!("segment {segment} was archived and read back whole")).measured(took),
        ),
        Err(reason) => Part::Found(
            Finding::crit(format!(
                "segment {segment} was archived but cannot be read back: {reason}"
            ))
            .hint("a backup cannot be restored without its WAL: mend restore_command or the archive now"),
        ),
    }
}

/// Runs `restore_command` as the server would (PostgreSQL documentation, "Archive Recovery": `%f`, `%p`,
/// `%r`, `%%`), into a temporary file, and checks what came.
async fn read_back(command: &str, segment: &str, size: i64, system: i64) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let path = directory.path().join(segment);
    let output = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(expand(command, segment, &path))
        .current_dir(directory.path())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("restore_command cannot be run: {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("restore_command ended with {}: {message}", output.status));
    }
    let bytes = std::fs::read(&path).map_err(|error| format!("restore_command left no file: {error}"))?;
    if i64::try_from(bytes.len()).ok() != Some(size) {
        return Err(format!("it has {} bytes instead of {size}", bytes.len()));
    }
    // XLogLongPageHeaderData (src/include/access/xlog_internal.h): the system identifier stands at byte 24.
    let identifier = bytes
        .get(24..32)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i64::from_le_bytes);
    if identifier == Some(system) {
        Ok(())
    } else {
        Err("it belongs to another cluster".to_owned())
    }
}

fn expand(command: &str, segment: &str, path: &Path) -> String {
    let mut text = String::new();
    let mut characters = command.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('%', Some('f' | 'r')) => text.push_str(segment),
            ('%', Some('p')) => text.push_str(&path.display().to_string()),
            ('%', Some('%')) => text.push('%'),
            _ => {
                text.push(character);
                continue;
            }
        }
        characters.next();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restore_command_is_expanded_as_the_server_does() {
        let text = expand("cp /a/%f \"%p\" %% %x", "0001", Path::new("/tmp/x"));
        assert_eq!(text, "cp /a/0001 \"/tmp/x\" % %x");
    }
}
