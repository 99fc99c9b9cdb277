//! What checks read from beside the server's SQL: backups, the cluster's state, history, routing.
//!
//! Each is a trait that a later part of the program, or the command line, implements. A check whose source
//! is missing says so: not applicable where nothing asked for it, UNKNOWN with the reason where something
//! did.

use std::sync::Arc;

use async_trait::async_trait;

/// A backup as the checks see it.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupSummary {
    /// Its id.
    pub id: String,
    /// `logical` or `physical`.
    pub kind: String,
    /// Where it lies, for people.
    pub location: String,
    /// When it was finished, in seconds since the epoch.
    pub finished: f64,
    /// Whether it is complete and what is stored is what was written, as far as its record says.
    pub good: bool,
    /// What kind of storage holds it, for example `directory` or `s3`.
    pub storage: String,
    /// Whether that storage is somewhere else than the server.
    pub off_site: bool,
    /// When it was last restored and verified, in seconds since the epoch.
    pub restored: Option<f64>,
}

/// When backups are taken by themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupSchedule {
    /// The schedule, for people.
    pub text: String,
    /// The newest run that should have left its backup by now, in seconds since the epoch: half of the time to the
    /// next run has gone by since.
    pub overdue: Option<f64>,
    /// Whether this machine has a timer for it.
    pub has_timer: bool,
}

/// The backup repositories that the configuration names.
#[async_trait]
pub trait Backups: Send + Sync {
    /// All backups of the target's cluster or databases.
    ///
    /// # Errors
    ///
    /// Why they could not be read, in one line.
    async fn list(&self, target: &str) -> Result<Vec<BackupSummary>, String>;

    /// The current time in seconds since the epoch.
    fn now(&self) -> f64;

    /// When physical backups are to be taken by themselves. None where nothing says so.
    fn schedule(&self) -> Option<BackupSchedule> {
        None
    }

    /// Whether the WAL archive has every segment from the newest physical backup to now; the gap's first
    /// segment where not. None where there is no WAL archive.
    ///
    /// # Errors
    ///
    /// Why it could not be read, in one line.
    async fn first_missing_segment(&self, _target: &str) -> Result<Option<Option<String>>, String> {
        Ok(None)
    }
}

/// One member of a cluster as its manager sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterMember {
    /// Its name.
    pub name: String,
    /// The host that it runs on.
    pub host: String,
    /// Whether it leads.
    pub leader: bool,
    /// Whether it is running, or streaming.
    pub running: bool,
    /// Whether it is a synchronous standby.
    pub synchronous: bool,
    /// Its timeline.
    pub timeline: Option<i64>,
}

/// The state of a cluster with an HA daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterState {
    /// All members.
    pub members: Vec<ClusterMember>,
    /// Members of the DCS that answer, and all of them.
    pub quorum: Option<(u32, u32)>,
    /// Whether a synchronous standby is asked for.
    pub wants_synchronous: bool,
    /// Leader changes in the last hour.
    pub leader_changes: u32,
    /// Seconds since a failover was last practised.
    pub drill_age: Option<f64>,
}

/// Where a cluster's state can be asked.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// The state now.
    ///
    /// # Errors
    ///
    /// Why it could not be read, in one line.
    async fn state(&self) -> Result<ClusterState, String>;
}

/// The state of the routes to a cluster: HAProxy and virtual addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteState {
    /// Each write backend that is up, and whether it is the primary.
    pub write_backends: Vec<(String, bool)>,
    /// Each read backend and whether it is up.
    pub read_backends: Vec<(String, bool)>,
    /// The virtual address and whether the primary holds it.
    pub address: Option<(String, bool)>,
}

/// Where routes can be asked.
#[async_trait]
pub trait Routes: Send + Sync {
    /// The state now.
    ///
    /// # Errors
    ///
    /// Why it could not be read, in one line.
    async fn state(&self) -> Result<RouteState, String>;
}

/// The store of past samples.
#[async_trait]
pub trait History: Send + Sync {
    /// The usual value of a figure at this hour of the week; none until there is enough history.
    ///
    /// # Errors
    ///
    /// Why it could not be read, in one line.
    async fn baseline(&self, target: &str, figure: &str) -> Result<Option<f64>, String>;
}

/// The sources that this run has.
#[derive(Clone, Default)]
pub struct Sources {
    /// Backup repositories, where one is configured.
    pub backups: Option<Arc<dyn Backups>>,
    /// The HA daemon's view.
    pub cluster: Option<Arc<dyn Cluster>>,
    /// Routes.
    pub routes: Option<Arc<dyn Routes>>,
    /// Past samples.
    pub history: Option<Arc<dyn History>>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Sources")
            .field("backups", &self.backups.is_some())
            .field("cluster", &self.cluster.is_some())
            .field("routes", &self.routes.is_some())
            .field("history", &self.history.is_some())
            .finish()
    }
}
