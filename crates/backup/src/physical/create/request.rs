//! What is asked of a backup.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_store::framed::FrameCodec;

/// What is asked of a backup.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// The server whose files are read.
    pub connection: ConnectionParameters,
    /// Its data directory, where that is not what the server says.
    pub data_dir: Option<PathBuf>,
    /// Whether the files come through the replication protocol, since the server's disk is out of reach. The data
    /// directory is then not looked at, and the server may be a standby or not.
    pub remote: bool,
    /// Whether the server is expected to be a standby. A server that is something else is refused.
    pub from_standby: bool,
    /// The primary of a standby, to make it switch WAL.
    pub primary: Option<ConnectionParameters>,
    /// Whether the first checkpoint is made at once instead of spread out.
    pub fast_checkpoint: bool,
    /// Worker threads; at least one.
    pub jobs: usize,
    /// By how much the workers' priority is lowered, 0 to 19.
    pub nice: i32,
    /// The most that is read, in bytes a second.
    pub rate_limit: Option<u64>,
    /// Whether files are left unread that nobody has written to.
    pub read_filter: ReadFilter,
    /// How many percent of what is left unread are read nevertheless and compared, 0 to 100.
    pub verify_skipped: u32,
    /// How blocks are compressed; `None` is what each repository says.
    pub codec: Option<FrameCodec>,
    /// Words for people, kept with the backup.
    pub annotations: BTreeMap<String, String>,
    /// Whether the server's archive settings are not looked at, since WAL reaches the repository in another
    /// way.
    pub skip_archive_check: bool,
    /// How long to wait for the last WAL segment.
    pub wal_timeout: Duration,
    /// Files and directories outside the data directory that go along.
    pub include: Vec<PathBuf>,
    /// Whether packs of an interrupted backup are looked for.
    pub resume: bool,
}

/// Which files need not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadFilter {
    /// Those that nobody has written to since the older backup, as their file systems tell. See `files::stamp`.
    #[default]
    Times,
    /// None.
    None,
}

impl CreateRequest {
    /// A backup of the server at `connection`, everything else as usual.
    pub fn new(connection: ConnectionParameters) -> Self {
        Self {
            connection,
            data_dir: None,
            remote: false,
            from_standby: false,
            primary: None,
            fast_checkpoint: true,
            jobs: default_jobs(),
            nice: 0,
            rate_limit: None,
            read_filter: ReadFilter::default(),
            verify_skipped: 1,
            codec: None,
            annotations: BTreeMap::new(),
            skip_archive_check: false,
            wal_timeout: Duration::from_mins(10),
            include: Vec::new(),
            resume: true,
        }
    }
}

/// One worker for each processor.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
