//! Section `backup`: physical backups.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::quantity::{serialize_duration, serialize_size};
use crate::schedule::Schedule;
use crate::section::{Problems, Section};

use super::dump::{Assertion, read_assertions};

/// How hard a physical backup asks the server to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpoint {
    /// At once.
    #[default]
    Fast,
    /// Spread over checkpoint_completion_target.
    Spread,
}

/// What lets a physical backup skip reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadFilter {
    /// The best that is safe.
    #[default]
    Auto,
    /// Modification times.
    Mtime,
    /// WAL summaries.
    Summaries,
    /// Nothing: everything is read.
    None,
}

/// Section `backup`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// How many cores to use; all by default.
    pub jobs: Option<u32>,
    /// How to begin.
    pub checkpoint: Checkpoint,
    /// When, as five fields of cron.
    pub schedule: Option<Schedule>,
    /// Whether to read a standby's files.
    pub from_standby: bool,
    /// Whether to take the files through the replication protocol.
    pub remote: bool,
    /// Configuration outside the data directory that goes along.
    pub include: Vec<PathBuf>,
    /// What lets it skip reading.
    pub read_filter: ReadFilter,
    /// How many percent of the pages that the filter would skip are read nevertheless, and compared.
    #[serde(serialize_with = "serialize_percent")]
    pub verify_skipped: Option<u32>,
    /// The most that is read, in bytes a second.
    #[serde(serialize_with = "serialize_size")]
    pub rate_limit: Option<u64>,
    /// The niceness that the work is done with, 0 to 19.
    pub nice: Option<u32>,
    /// How long to wait until every WAL segment of the backup is in the repositories.
    #[serde(serialize_with = "serialize_duration")]
    pub archive_timeout: Option<Duration>,
    /// Whether a backup with pages whose checksum is wrong counts as done.
    pub allow_checksum_failures: bool,
    /// What must be true of a server that a drill has restored.
    pub assertions: Vec<Assertion>,
}

#[expect(clippy::ref_option, reason = "serde's serialize_with asks for it")]
fn serialize_percent<S: Serializer>(percent: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    match percent {
        Some(percent) => serializer.collect_str(&format_args!("{percent}%")),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn read(root: &Section<'_>, problems: &Problems) -> Backup {
    let section = root.section("backup");
    let backup = Backup {
        jobs: section.integer("jobs", 1..=1024),
        checkpoint: section
            .one_of(
                "checkpoint",
                &[("fast", Checkpoint::Fast), ("spread", Checkpoint::Spread)],
            )
            .unwrap_or_default(),
        schedule: section.read("schedule", "five fields of cron, such as \"0 2 * * *\"", |text| {
            text.parse().ok()
        }),
        from_standby: section.boolean("from_standby").unwrap_or(false),
        remote: section.boolean("remote").unwrap_or(false),
        include: section.paths("include"),
        read_filter: section
            .one_of(
                "read_filter",
                &[
                    ("auto", ReadFilter::Auto),
                    ("mtime", ReadFilter::Mtime),
                    ("summaries", ReadFilter::Summaries),
                    ("none", ReadFilter::None),
                ],
            )
            .unwrap_or_default(),
        verify_skipped: section.read("verify_skipped", "a percentage from 0% to 100%", |text| {
            let percent: u32 = text.strip_suffix('%')?.trim().parse().ok()?;
            (percent <= 100).then_some(percent)
        }),
        rate_limit: section.size("rate_limit"),
        nice: section.integer("nice", 0..=19),
        archive_timeout: section.duration("archive_timeout"),
        allow_checksum_failures: section.boolean("allow_checksum_failures").unwrap_or(false),
        assertions: read_assertions(&section, problems),
    };
    if backup.remote && backup.from_standby {
        section.problem(
            "'backup' has both remote and from_standby; a remote backup reads the server it is given",
        );
    }
    section.finish();
    backup
}
