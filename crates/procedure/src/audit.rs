//! The audit log: one record for each procedure that ran, in `audit.jsonl` of the state directory.
//!
//! A procedure that failed has a record for the attempt; when it is resumed and succeeds, or is given up,
//! there is one more for that, and only one, wherever the process was killed meanwhile.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use pgmahout_durable::{append_line, complete_lines};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::context::Memory;
use crate::error::ProcedureError;
use crate::journal::{Failure, Journal};
use crate::lock::Target;
use crate::who::Who;

/// How an attempt at a procedure ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditResult {
    /// It is done.
    Succeeded,
    /// It failed, and can be resumed.
    Failed,
    /// A signal stopped it, and it can be resumed.
    Interrupted,
    /// It was given up.
    Aborted,
}

/// Who did what, when, on what, and how it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The version of the record's form.
    pub schema_version: u32,
    /// The procedure.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// What it does.
    pub title: String,
    /// On what.
    pub target: Target,
    /// How.
    pub parameters: Value,
    /// Who made this attempt.
    pub who: Who,
    /// When the procedure was first started.
    pub started_at: Timestamp,
    /// When this attempt ended.
    pub ended_at: Timestamp,
    /// From the first start to this end, in seconds.
    pub duration_seconds: f64,
    /// How often it was started and resumed so far.
    pub attempts: usize,
    /// How it went.
    pub result: AuditResult,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// How long clients could not work, in seconds, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_seconds: Option<f64>,
    /// What was lost, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_loss: Option<String>,
}

impl AuditRecord {
    pub(crate) fn new(
        journal: &Journal,
        memory: &Memory,
        result: AuditResult,
        failure: Option<Failure>,
    ) -> Self {
        let (started_at, ended_at) = (journal.started_at(), Timestamp::now());
        let header = &journal.header;
        Self {
            schema_version: 1,
            id: header.id.clone(),
            kind: header.kind.clone(),
            title: header.title.clone(),
            target: header.target.clone(),
            parameters: header.parameters.clone(),
            who: Who::current(),
            started_at,
            ended_at,
            duration_seconds: ended_at.duration_since(started_at).as_secs_f64().max(0.0),
            attempts: journal.attempts(),
            result,
            failure,
            downtime_seconds: memory.downtime().as_ref().map(Duration::as_secs_f64),
            data_loss: memory.data_loss(),
        }
    }
}

/// Appends a record, unless the log has the final record of this procedure already.
pub(crate) fn append(log: &Path, record: &AuditRecord) -> Result<(), ProcedureError> {
    let is_final = |result| matches!(result, AuditResult::Succeeded | AuditResult::Aborted);
    if is_final(record.result)
        && read(log)?
            .iter()
            .any(|known| known.id == record.id && is_final(known.result))
    {
        return Ok(());
    }
    let line = serde_json::to_vec(record).map_err(|error| ProcedureError::Damaged {
        path: log.display().to_string(),
        reason: error.to_string(),
    })?;
    append_line(log, &line, 0o600)?;
    Ok(())
}

/// All records, oldest first. Lines that are none are passed over.
///
/// # Errors
///
/// When the file cannot be read.
pub fn read(log: &Path) -> Result<Vec<AuditRecord>, ProcedureError> {
    let lines = complete_lines(log)?.unwrap_or_default();
    Ok(lines
        .iter()
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}
