//! The private server that a drill starts.

use std::path::Path;
use std::time::{Duration, Instant};

use pgmahout_postgres::throwaway::{ThrowawayHouse, ThrowawayServer};
use pgmahout_types::control::ClusterState;
use pgmahout_types::{ControlFile, HumanDuration};
use tokio_util::sync::CancellationToken;

use super::{DrillError, DrillRequest};

/// The name of its data directory.
pub(super) const NAME: &str = "restored";
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Starts it. It recovers, and then is a primary of its own.
pub(super) fn start(
    house: &ThrowawayHouse,
    data: &Path,
    request: &DrillRequest,
) -> Result<ThrowawayServer, DrillError> {
    let control = control(data)?;
    let hba = house.write_file("pg_hba.conf", "local all all trust\n")?;
    let ident = house.write_file("pg_ident.conf", "")?;
    let mut settings = vec![
        ("hba_file", hba.display().to_string()),
        ("ident_file", ident.display().to_string()),
        ("external_pid_file", String::new()),
        ("ssl", "off".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("lc_messages", "C".to_owned()),
        ("cluster_name", "pgmahout drill".to_owned()),
        // Nothing leaves it, and nothing from outside is waited for.
        ("archive_mode", "off".to_owned()),
        ("max_logical_replication_workers", "0".to_owned()),
        ("synchronous_standby_names", String::new()),
        // It is thrown away, and it is not alone on the machine.
        ("fsync", "off".to_owned()),
        ("shared_buffers", "128MB".to_owned()),
        ("huge_pages", "off".to_owned()),
        // Nobody asks before recovery has ended, so that it need not be set up like its primary.
        ("hot_standby", "off".to_owned()),
        ("max_connections", control.max_connections.to_string()),
        (
            "max_prepared_transactions",
            control.max_prepared_transactions.to_string(),
        ),
    ];
    if !request.preload {
        settings.push(("shared_preload_libraries", String::new()));
    }
    if !data.join("postgresql.conf").exists() {
        let file = house.write_file("postgresql.conf", "")?;
        settings.push(("config_file", file.display().to_string()));
    }
    Ok(house.launch(NAME, &settings)?)
}

/// Waits until recovery has ended.
pub(super) async fn wait(
    server: &mut ThrowawayServer,
    timeout: Duration,
    cancellation: &CancellationToken,
) -> Result<(), DrillError> {
    let deadline = Instant::now() + timeout;
    loop {
        if !server.is_running() {
            return Err(DrillError::Server {
                what: "ended during recovery".to_owned(),
                log: server.log_tail(),
            });
        }
        // Torn for a moment while the server writes it: then the next look sees it.
        if let Ok(control) = control(server.data_directory())
            && control.state == ClusterState::InProduction
            && is_ready(server)
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(DrillError::Server {
                what: format!("still recovered after {}", HumanDuration(timeout)),
                log: server.log_tail(),
            });
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = cancellation.cancelled() => {
                server.stop().await;
                return Err(DrillError::Cancelled);
            }
        }
    }
}

/// Whether the postmaster takes connections: it says so in its own file.
fn is_ready(server: &ThrowawayServer) -> bool {
    let file = server.data_directory().join("postmaster.pid");
    std::fs::read_to_string(file)
        .is_ok_and(|text| text.lines().nth(7).is_some_and(|status| status.trim() == "ready"))
}

fn control(data: &Path) -> Result<ControlFile, DrillError> {
    let path = data.join(ControlFile::PATH);
    let bytes = std::fs::read(&path).map_err(DrillError::file("read", &path))?;
    ControlFile::parse(&bytes).map_err(|error| DrillError::File {
        action: "understand",
        path,
        source: std::io::Error::other(error),
    })
}

/// What the server's log says about its recovery.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) redo_done: Option<String>,
    pub(super) last_commit: Option<String>,
}

impl Progress {
    pub(super) fn of(server: &ThrowawayServer) -> Self {
        Self::read(&std::fs::read_to_string(server.log_file()).unwrap_or_default())
    }

    /// The messages are those of `PerformWalRecovery` and `FinishWalRecovery` in
    /// `src/backend/access/transam/xlogrecovery.c`.
    fn read(log: &str) -> Self {
        let after = |what: &str| {
            log.lines()
                .rev()
                .find_map(|line| line.split_once(what).map(|(_, rest)| rest.to_owned()))
        };
        Self {
            redo_done: after("redo done at ")
                .and_then(|rest| rest.split_whitespace().next().map(str::to_owned)),
            last_commit: after("last completed transaction was at log time "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_how_far_recovery_came() {
        let log = "2026-11-21 10:00:00 UTC [1] LOG:  redo starts at 0/2000028\n\
                   2026-11-21 10:00:01 UTC [1] LOG:  redo done at 0/5000110 system usage: CPU: user: 0.01 s\n\
                   2026-11-21 10:00:01 UTC [1] LOG:  last completed transaction was at log time 2026-11-21 09:59:58.1+00\n";
        let progress = Progress::read(log);
        assert_eq!(progress.redo_done.as_deref(), Some("0/5000110"));
        assert_eq!(progress.last_commit.as_deref(), Some("2026-11-21 09:59:58.1+00"));
        assert_eq!(Progress::read(""), Progress::default());
    }
}
