//! `wal enable` and `wal disable`: the server's archiving as a procedure.
//!
//! Enabling ends only when a segment that was written after it has been archived, read back and compared: a setting
//! proves nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::control::{ServerControl, StopMode};
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_postgres::sql::quote_literal;
use pgmahout_procedure::confirm::Question;
use pgmahout_procedure::{
    Check, Plan, PlanDetails, Problem, Procedure, Step, StepContext, StepError, Target,
};
use pgmahout_types::{SegmentName, SystemIdentifier};
use serde_json::json;

use super::archive::WalArchive;
use super::error::WalError;
use super::place::Destination;
use crate::physical::stanza::{RepositoryMemory, StanzaName};

/// How long stopping and starting may each take.
const RESTART: Duration = Duration::from_mins(5);
/// How long the first segment may take into the archive.
const PROOF: Duration = Duration::from_mins(2);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// What is to be changed, and where.
#[derive(Debug)]
pub struct Archiving {
    /// The server.
    pub server: ConnectionParameters,
    /// How it is restarted; without that a restart is left to a person.
    pub control: Option<Box<dyn ServerControl>>,
    /// The setting `archive_command`; `None` turns archiving off.
    pub command: Option<String>,
    /// The repositories in which the first segment must be.
    pub destinations: Vec<Destination>,
    /// The stanza.
    pub stanza: StanzaName,
    /// What this host remembers of repositories.
    pub memory: RepositoryMemory,
}

/// The procedure.
#[derive(Debug, Clone)]
pub struct ArchivingProcedure {
    inner: Arc<Archiving>,
    facts: Arc<Facts>,
}

/// What the server said before anything was changed.
#[derive(Debug, Clone)]
struct Facts {
    system: SystemIdentifier,
    major: u32,
    data_directory: String,
    is_standby: bool,
    is_superuser: bool,
    archive_mode: String,
    wal_level: String,
    archive_command: String,
    archive_library: String,
}

impl ArchivingProcedure {
    /// Looks at the server.
    ///
    /// # Errors
    ///
    /// When it cannot be reached or does not answer.
    pub async fn new(archiving: Archiving) -> Result<Self, StepError> {
        let connection = Connection::open_secured(&archiving.server).await?;
        let facts = facts(&connection).await?;
        connection.close().await;
        Ok(Self {
            inner: Arc::new(archiving),
            facts: Arc::new(facts),
        })
    }

    /// The settings as they will be.
    fn settings(&self) -> Vec<(&'static str, String)> {
        match &self.inner.command {
            Some(command) => {
                let mut settings = vec![("archive_command", command.clone())];
                if self.facts.archive_mode == "off" {
                    settings.push(("archive_mode", "on".to_owned()));
                }
                if self.facts.wal_level == "minimal" {
                    settings.push(("wal_level", "replica".to_owned()));
                }
                settings
            }
            None => vec![("archive_mode", "off".to_owned())],
        }
    }

    fn needs_restart(&self) -> bool {
        self.settings().iter().any(|(name, value)| match *name {
            "archive_mode" => self.facts.archive_mode != *value,
            "wal_level" => self.facts.wal_level != *value,
            _ => false,
        })
    }
}

async fn facts(connection: &Connection) -> Result<Facts, StepError> {
    let row = connection
        .query_one(
            "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
             pg_catalog.current_setting('data_directory', true), pg_catalog.pg_is_in_recovery(), \
             (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), \
             pg_catalog.current_setting('archive_mode'), pg_catalog.current_setting('wal_level'), \
             COALESCE(pg_catalog.current_setting('archive_command'), ''), \
             COALESCE(pg_catalog.current_setting('archive_library', true), '')",
            &[],
        )
        .await
        .map_err(|error| StepError::caused_by("cannot ask the server about its archiving", error))?;
    let command: String = row.get(6);
    Ok(Facts {
        system: SystemIdentifier::from_bigint(row.get(0)),
        major: connection.server_version().major(),
        data_directory: row.get::<_, Option<String>>(1).unwrap_or_default(),
        is_standby: row.get(2),
        is_superuser: row.get(3),
        archive_mode: row.get(4),
        wal_level: row.get(5),
        // What the server shows while archive_mode is off.
        archive_command: if command == "(disabled)" {
            String::new()
        } else {
            command
        },
        archive_library: row.get(7),
    })
}

#[async_trait]
impl Procedure for ArchivingProcedure {
    fn kind(&self) -> &'static str {
        match self.inner.command {
            Some(_) => "wal-enable",
            None => "wal-disable",
        }
    }

    fn parameters(&self) -> serde_json::Value {
        json!({
            "archive_command": self.inner.command,
            "stanza": self.inner.stanza.as_str(),
            "repositories": self.inner.destinations.iter().map(Destination::name).collect::<Vec<_>>(),
        })
    }

    fn title(&self) -> String {
        match self.inner.command {
            Some(_) => format!("archive the server's WAL into stanza {}", self.inner.stanza),
            None => "stop archiving the server's WAL".to_owned(),
        }
    }

    fn target(&self) -> Target {
        let target = Target::new(format!("server of cluster {}", self.facts.system))
            .system_identifier(self.facts.system);
        if self.facts.data_directory.is_empty() {
            target
        } else {
            target.data_directory(&self.facts.data_directory)
        }
    }

    async fn preflight(&self, _: &StepContext<'_>) -> Result<Vec<Problem>, StepError> {
        let mut problems = Vec::new();
        let facts = &*self.facts;
        if !facts.is_superuser {
            problems.push(
                Problem::new("only a superuser can change the server's archiving")
                    .hint("connect as a superuser: -U postgres"),
            );
        }
        if facts.is_standby {
            problems.push(
                Problem::new("the server is a standby")
                    .hint("run it on the primary; a standby takes the settings over when it is rebuilt"),
            );
        }
        if self.inner.command.is_some() && !facts.archive_library.is_empty() {
            problems.push(
                Problem::new(format!(
                    "the server archives through the library {}, which excludes archive_command",
                    facts.archive_library
                ))
                .hint("ALTER SYSTEM RESET archive_library"),
            );
        }
        if self.needs_restart() && self.inner.control.is_none() {
            problems.push(
                Problem::new("the server must be restarted, and it is not known how").hint(
                    "say with --data-dir and --bin-dir how it is restarted, or `postgresql: {unit: NAME}` in the \
                     configuration",
                ),
            );
        }
        if self.inner.command.is_some() {
            for destination in &self.inner.destinations {
                match destination.open(&self.inner.stanza, &self.inner.memory).await {
                    Ok(place) => {
                        let repository = place.archive.repository();
                        if let Err(error) = repository.check_identity(facts.system, facts.major) {
                            problems.push(Problem::from(&error));
                        }
                    }
                    Err(error) => problems.push(Problem::from(&error)),
                }
            }
        }
        Ok(problems)
    }

    async fn plan(&self, _: &StepContext<'_>) -> Result<PlanDetails, StepError> {
        let facts = &*self.facts;
        let mut details = PlanDetails::new();
        for (name, value) in self.settings() {
            let now = match name {
                "archive_mode" => &facts.archive_mode,
                "wal_level" => &facts.wal_level,
                _ => &facts.archive_command,
            };
            let shown = if now.is_empty() { "nothing" } else { now };
            details = details.fact(name, format!("{value} (now {shown})"));
        }
        let other = facts.archive_command.as_str();
        if let Some(command) = &self.inner.command
            && !other.is_empty()
            && other != command
        {
            details = details.warning(format!(
                "the archive_command that there is will be replaced: {other}"
            ));
        }
        if self.needs_restart() {
            details = details.warning("the server is restarted: every session ends");
        }
        if self.inner.command.is_none() {
            details = details.loss(
                "from now on no point in time can be reached: backups restore to WAL that is archived already, and \
                 a new backup cannot be taken without archiving",
            );
        }
        Ok(details)
    }

    fn question(&self, _: &Plan) -> Option<Question> {
        Some(match (&self.inner.command, self.needs_restart()) {
            (None, _) => Question::type_yes("Stop archiving, and restart the server?"),
            (Some(_), true) => Question::yes_no("Change these settings and restart the server?"),
            (Some(_), false) => Question::yes_no("Change these settings?"),
        })
    }

    fn steps(&self) -> Vec<Box<dyn Step>> {
        let step = |kind| {
            Box::new(ArchivingStep {
                kind,
                procedure: self.clone(),
            }) as Box<dyn Step>
        };
        let mut steps = vec![step(Kind::Set)];
        if self.needs_restart() {
            steps.push(step(Kind::Restart));
        }
        if self.inner.command.is_some() {
            steps.push(step(Kind::Prove));
        }
        steps
    }

    async fn verify(&self, _: &StepContext<'_>) -> Result<Vec<String>, StepError> {
        let connection = Connection::open_secured(&self.inner.server).await?;
        let now = facts(&connection).await?;
        connection.close().await;
        match &self.inner.command {
            Some(command) if now.archive_mode == "off" || now.archive_command != *command => {
                Err(StepError::failed("the server does not archive as it was told to")
                    .hint("see which file sets archive_command: SELECT * FROM pg_file_settings"))
            }
            Some(_) => Ok(vec![
                "the server archives with the new archive_command".to_owned(),
            ]),
            None if now.archive_mode != "off" => Err(StepError::failed("the server still archives")),
            None => Ok(vec!["the server does not archive any more".to_owned()]),
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `ALTER SYSTEM`, and a reload.
    Set,
    /// Stop and start.
    Restart,
    /// A segment through the archive.
    Prove,
}

#[derive(Debug)]
struct ArchivingStep {
    kind: Kind,
    procedure: ArchivingProcedure,
}

#[async_trait]
impl Step for ArchivingStep {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Set => "set",
            Kind::Restart => "restart",
            Kind::Prove => "prove",
        }
    }

    fn description(&self) -> String {
        match self.kind {
            Kind::Set => {
                let names: Vec<&str> = self.procedure.settings().iter().map(|(name, _)| *name).collect();
                format!("set {} with ALTER SYSTEM", names.join(", "))
            }
            Kind::Restart => "restart the server".to_owned(),
            Kind::Prove => "see a new segment archived in every repository, and read it back".to_owned(),
        }
    }

    async fn check(&self, _: &StepContext<'_>) -> Result<Check, StepError> {
        let done = match self.kind {
            Kind::Set => self.is_set().await?,
            Kind::Restart => self.is_restarted().await?,
            Kind::Prove => return Ok(Check::Unknown),
        };
        Ok(if done { Check::Done } else { Check::NotDone })
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        match self.kind {
            Kind::Set => self.set().await,
            Kind::Restart => self.restart().await,
            Kind::Prove => self.prove(context).await,
        }
    }
}

impl ArchivingStep {
    async fn connect(&self) -> Result<Connection, StepError> {
        Ok(Connection::open_secured(&self.procedure.inner.server).await?)
    }

    /// Whether the files say what they should; the last one that sets a name counts.
    async fn is_set(&self) -> Result<bool, StepError> {
        let connection = self.connect().await?;
        let mut is_set = true;
        for (name, value) in self.procedure.settings() {
            let row = connection
                .query_opt(
                    "SELECT setting FROM pg_catalog.pg_file_settings WHERE name = $1 ORDER BY seqno DESC LIMIT 1",
                    &[&name],
                )
                .await
                .map_err(|error| StepError::caused_by("cannot read pg_file_settings", error))?;
            is_set &= row.is_some_and(|row| row.get::<_, Option<String>>(0).as_deref() == Some(&*value));
        }
        connection.close().await;
        Ok(is_set)
    }

    async fn set(&self) -> Result<(), StepError> {
        let connection = self.connect().await?;
        for (name, value) in self.procedure.settings() {
            let statement = format!("ALTER SYSTEM SET {name} = {}", quote_literal(&value));
            connection
                .batch_execute(&statement)
                .await
                .map_err(|error| StepError::caused_by(format!("cannot set {name}"), error))?;
        }
        connection
            .batch_execute("SELECT pg_catalog.pg_reload_conf()")
            .await
            .map_err(|error| StepError::caused_by("cannot have the server read its configuration", error))?;
        connection.close().await;
        Ok(())
    }

    async fn is_restarted(&self) -> Result<bool, StepError> {
        let Ok(connection) = Connection::open_secured(&self.procedure.inner.server).await else {
            return Ok(false);
        };
        let now = facts(&connection).await?;
        connection.close().await;
        Ok(self.procedure.settings().iter().all(|(name, value)| match *name {
            "archive_mode" => now.archive_mode == *value,
            "wal_level" => now.wal_level == *value,
            _ => true,
        }))
    }

    async fn restart(&self) -> Result<(), StepError> {
        let control = self.procedure.inner.control.as_ref();
        let control =
            control.ok_or_else(|| StepError::refused("it is not known how the server is restarted"))?;
        control.restart(StopMode::Fast, RESTART).await?;
        Ok(())
    }

    /// Writes a record, ends its segment, and waits for that segment in every repository.
    async fn prove(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let inner = &self.procedure.inner;
        let connection = self.connect().await?;
        let row = connection
            .query_one(
                "SELECT pg_catalog.pg_walfile_name(written - 1::numeric), \
                 (SELECT pg_catalog.pg_switch_wal() IS NOT NULL WHERE written IS NOT NULL) \
                 FROM pg_catalog.pg_logical_emit_message(false, 'pgmahout', 'archiving begins') AS written",
                &[],
            )
            .await
            .map_err(|error| StepError::caused_by("cannot end a WAL segment", error))?;
        let name: String = row.get(0);
        let segment: SegmentName = name.parse()?;
        let mut archives = Vec::new();
        for destination in &inner.destinations {
            archives.push(destination.open(&inner.stanza, &inner.memory).await?.archive);
        }
        let deadline = Instant::now() + PROOF;
        for archive in &archives {
            while !archive.has_segment(segment).await? {
                context.check_cancelled()?;
                if Instant::now() > deadline {
                    return Err(not_archived(&connection, segment, archive).await);
                }
                tokio::time::sleep(PAUSE).await;
            }
            archive.get_segment(segment).await?;
        }
        connection.close().await;
        context.memory.set("first_segment", name)
    }
}

/// Why a segment is not in the archive, as far as the server says.
async fn not_archived(connection: &Connection, segment: SegmentName, archive: &WalArchive) -> StepError {
    let absent = WalError::Absent {
        name: segment.into(),
        places: archive.repository().description(),
    };
    let failed = connection
        .query_opt(
            "SELECT last_failed_wal FROM pg_catalog.pg_stat_archiver \
             WHERE last_failed_time > COALESCE(last_archived_time, '-infinity')",
            &[],
        )
        .await;
    let text = match failed {
        Ok(Some(row)) => format!(
            "archive_command fails, last for {}",
            row.get::<_, Option<String>>(0).unwrap_or_default()
        ),
        _ => format!("nothing was archived within {} s", PROOF.as_secs()),
    };
    StepError::caused_by(text, absent).hint(
        "the server's log has the command's own words; the server's user must be able to read the configuration and \
         to write to the repositories. WAL is kept until it works",
    )
}

/// One word of a command line for the shell, with `%` doubled as the server's settings want it.
pub fn shell_word(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-=:@+,".contains(character);
    let word = word.replace('%', "%%");
    if !word.is_empty() && word.chars().all(is_plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        for (word, quoted) in [
            ("/usr/bin/pgmahout", "/usr/bin/pgmahout"),
            ("/srv/my repo", "'/srv/my repo'"),
            ("it's", r"'it'\''s'"),
            ("100%", "'100%%'"),
            ("$(reboot)", "'$(reboot)'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(word), quoted);
        }
    }
}
