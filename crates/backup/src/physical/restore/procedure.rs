//! A restore as a procedure: what stands in the way, the plan, the question, the steps, the proof.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pgmahout_procedure::confirm::Question;
use pgmahout_procedure::report::{Level, Task, Unit};
use pgmahout_procedure::{
    Check, Plan, PlanDetails, Problem, Procedure, Step, StepContext, StepError, Target,
};
use pgmahout_types::repository::Label;
use pgmahout_types::{Bytes, ControlFile, HumanDuration};
use tokio_util::sync::CancellationToken;

use super::error::RestoreError;
use super::guard::{self, Existing};
use super::moment;
use super::plan::RestorePlan;
use super::prepare::Shared;
use super::request::{RestoreOutcome, RestoreRequest};
use super::settings::Archiving;
use super::target::{Target as RecoveryTarget, TargetTimeline};
use super::{aside, place, start};
use crate::physical::stanza::PhysicalRepository;

/// What the journal calls a restore.
pub const KIND: &str = "restore";

/// Names that a list shows.
const SHOWN: usize = 10;

/// In the memory: whether what was there is used.
const REUSE: &str = "reuse";
/// In the memory: pg_control is in place.
const PUBLISHED: &str = "published";
/// In the memory: what was moved aside.
const MOVED: &str = "moved";

/// A restore.
pub struct Restore {
    shared: Arc<Shared>,
}

impl Restore {
    /// Reads the repository and finds the way to the target. From now on nobody collects the backup, until this
    /// is dropped.
    ///
    /// # Errors
    /// [`RestoreError`]: a target that cannot be reached, with the nearest one; a repository that cannot be read.
    pub async fn prepare(
        repository: PhysicalRepository,
        request: RestoreRequest,
        cancellation: &CancellationToken,
    ) -> Result<Self, RestoreError> {
        Ok(Self {
            shared: Arc::new(Shared::prepare(repository, request, cancellation).await?),
        })
    }

    /// The backup that is restored.
    pub fn label(&self) -> Label {
        self.shared.entry.label
    }

    /// The numbers of the tablespaces outside the data directory.
    pub fn tablespaces(&self) -> Vec<u32> {
        self.shared
            .layout
            .tablespaces()
            .map(|target| target.oid)
            .collect()
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        self.shared.layout.data()
    }

    /// The plan as a value.
    ///
    /// # Errors
    /// When the file systems of the target cannot be looked at.
    pub async fn plan_value(&self) -> Result<RestorePlan, RestoreError> {
        let reuse = self.shared.reuses(false)?;
        blocking(&self.shared, move |shared| shared.plan(reuse)).await
    }

    /// What stands in the way, where something does: for callers that want the exit status of the first. The
    /// preflight lists all.
    pub async fn obstacle(&self) -> Option<RestoreError> {
        let found = blocking(&self.shared, |shared| Ok(shared.obstacles(false))).await;
        match found {
            Ok(found) if found.len() == 1 => found.into_iter().next(),
            Ok(_) => None,
            Err(error) => Some(error),
        }
    }

    /// Lets the backup be collected again. Dropping does the same in the background, if there is time for that.
    pub async fn release(&self) {
        self.shared.release().await;
    }

    /// What came of it.
    pub fn outcome(&self) -> RestoreOutcome {
        self.shared.outcome()
    }
}

/// Works on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || work(&shared))
        .await
        .map_err(|_| RestoreError::Thread)?
}

#[async_trait]
impl Procedure for Restore {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn parameters(&self) -> serde_json::Value {
        let mut parameters = self.shared.request.parameters.clone();
        if let Some(object) = parameters.as_object_mut() {
            // Whoever resumes it restores the same backup, not what is the best one then.
            object.insert("backup".to_owned(), self.shared.entry.label.to_string().into());
        }
        parameters
    }

    fn title(&self) -> String {
        format!(
            "restore backup {} into {}",
            self.shared.entry.label,
            self.shared.layout.data().display()
        )
    }

    fn target(&self) -> Target {
        let data = self.shared.layout.data();
        Target::new(format!("data directory {}", data.display()))
            .system_identifier(self.shared.manifest.header.system_identifier)
            .data_directory(data)
    }

    async fn preflight(&self, context: &StepContext<'_>) -> Result<Vec<Problem>, StepError> {
        if context.memory.get::<bool>(PUBLISHED) == Some(true) {
            // Only the start is left.
            return Ok(Vec::new());
        }
        let resuming = context.resuming;
        let found = blocking(&self.shared, move |shared| Ok(shared.obstacles(resuming))).await?;
        let mut problems: Vec<Problem> = found.iter().map(Problem::from).collect();
        if let Some(wanted) = &self.shared.request.start
            && let Err(error) = start::program(wanted, &self.shared.manifest)
        {
            problems.push(Problem::from(&error));
        }
        Ok(problems)
    }

    async fn plan(&self, context: &StepContext<'_>) -> Result<PlanDetails, StepError> {
        let reuse = self.shared.reuses(context.resuming)?;
        let plan = blocking(&self.shared, move |shared| shared.plan(reuse)).await?;
        Ok(details(&self.shared, &plan, reuse))
    }

    fn question(&self, plan: &Plan) -> Option<Question> {
        let data = self.shared.layout.data().display();
        if self.shared.request.keep_old
            && guard::look(self.shared.layout.data()).is_ok_and(|found| !found.is_free())
        {
            return Some(Question::yes_no(format!(
                "Move {data} aside and restore in its place?"
            )));
        }
        if plan.details.losses.is_empty() {
            return None;
        }
        Some(Question::type_yes(format!("Overwrite {data} with the backup?")))
    }

    fn steps(&self) -> Vec<Box<dyn Step>> {
        let shared = || Arc::clone(&self.shared);
        let mut steps: Vec<Box<dyn Step>> = vec![
            Box::new(PrepareStep(shared())),
            Box::new(FilesStep(shared())),
            Box::new(SettingsStep(shared())),
            Box::new(PublishStep(shared())),
        ];
        if self.shared.request.start.is_some() {
            steps.push(Box::new(start::StartStep(shared())));
        }
        steps
    }

    async fn verify(&self, _context: &StepContext<'_>) -> Result<Vec<String>, StepError> {
        let shared = &self.shared;
        let data = shared.layout.data().to_owned();
        let mut proved = vec![format!(
            "{} files with {}: every block has the hash it was backed up with",
            shared.manifest.end.files,
            Bytes::new(shared.manifest.end.bytes)
        )];
        let bytes = fs::read(data.join(ControlFile::PATH))
            .map_err(|error| RestoreError::io("read", data.join(ControlFile::PATH), error))?;
        let control = ControlFile::parse(&bytes)?;
        if control.system_identifier != shared.manifest.header.system_identifier {
            return Err(StepError::failed("pg_control is that of another cluster"));
        }
        if let Some(end) = shared.outcome().recovery {
            proved.push(start::describe(&end));
        } else {
            proved.push(
                "there is a backup_label: the server recovers from the archive before it accepts anybody"
                    .to_owned(),
            );
        }
        Ok(proved)
    }
}

/// What a person reads before saying yes.
fn details(shared: &Shared, plan: &RestorePlan, reuse: bool) -> PlanDetails {
    let choice = &plan.choice;
    let backup = &choice.backup;
    let request = &shared.request;
    let path: Vec<String> = choice
        .path
        .iter()
        .map(|stretch| match stretch.to {
            Some(to) => format!("{} up to {to}", stretch.timeline),
            None => stretch.timeline.to_string(),
        })
        .collect();
    let mut details = PlanDetails::new()
        .fact(
            "backup",
            format!("{}, ended {}", backup.label, moment::utc(backup.stopped)),
        )
        .fact("repository", shared.repository.description())
        .fact("target", recovery_target(shared))
        .fact("timeline", path.join(", then "))
        .fact(
            "WAL",
            format!(
                "{} to {}: {} segments, all there, up to {}",
                choice.wal.first, choice.wal.last, choice.wal.segments, choice.wal.end
            ),
        )
        .fact("data directory", plan.data_dir.display().to_string())
        .fact(
            "files",
            format!(
                "{}, {}; at most {} to read",
                plan.files,
                Bytes::new(plan.bytes),
                Bytes::new(plan.read)
            ),
        );
    if let (Some(first), Some(last)) = (shared.received.first(), shared.received.last()) {
        let what = if last.is_whole { "whole" } else { "not to its end" };
        details = details.fact(
            "received WAL",
            format!(
                "{} to {} ({what}, up to {}), which the archive has not got, from {}",
                first.name,
                last.name,
                last.end,
                first.path.parent().unwrap_or(Path::new("")).display()
            ),
        );
    }
    for tablespace in shared.layout.tablespaces() {
        details = details.fact(
            format!("tablespace {}", tablespace.title()),
            if tablespace.from == tablespace.to {
                tablespace.to.display().to_string()
            } else {
                format!("{}, was {}", tablespace.to.display(), tablespace.from.display())
            },
        );
    }
    if let Some(wal) = shared.layout.wal() {
        details = details.fact("WAL directory", wal.display().to_string());
    }
    for need in &plan.space {
        details = details.fact(
            format!("space at {}", need.path.display()),
            format!(
                "{} needed, {} free",
                Bytes::new(need.needed()),
                Bytes::new(need.free)
            ),
        );
    }
    details = details.fact(
        "estimated time",
        format!("about {}", HumanDuration(plan.estimate)),
    );
    if request.archiving == Archiving::Off {
        details = details.fact(
            "archiving",
            "off: archive_mode = off; to keep it say --archive keep",
        );
    }
    for warning in &choice.warnings {
        details = details.warning(warning);
    }
    if let RecoveryTarget::Time(moment) = &request.aim.target
        && moment.is_zone_assumed()
    {
        details = details.warning(format!(
            "the time has no zone; this host's was taken: {moment}. Say another with --timezone"
        ));
    }
    if shared.entry.findings > 0 {
        details = details.warning(format!(
            "{} damaged pages were found when the backup was taken, and are restored as they were: \
             pgmahout backup show {}",
            shared.entry.findings, backup.label
        ));
    }
    if !shared.to_drop.is_empty() {
        details = details.warning(format!(
            "nothing is restored of {}: nobody can connect there; drop them afterwards",
            shown(shared.to_drop.iter().map(String::as_str))
        ));
    }
    losses(shared, plan, reuse, details)
}

fn losses(shared: &Shared, plan: &RestorePlan, reuse: bool, mut details: PlanDetails) -> PlanDetails {
    let data = shared.layout.data();
    if !reuse {
        return details;
    }
    if matches!(guard::look(data), Ok(Existing::Cluster(_))) {
        details = details.loss(format!(
            "whatever {} has that the backup does not have",
            data.display()
        ));
    }
    if !plan.removed.is_empty() {
        let names: Vec<String> = plan
            .removed
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        details = details.loss(format!(
            "{} that do not belong to the backup: {}",
            if names.len() == 1 {
                "1 file or directory".to_owned()
            } else {
                format!("{} files or directories", names.len())
            },
            shown(names.iter().map(String::as_str))
        ));
    }
    let unarchived = guard::unarchived(data);
    if !unarchived.is_empty() {
        details = details.loss(format!(
            "WAL that is only in pg_wal, and not archived: {}; to keep it, archive it first: pgmahout wal push, or say \
             --keep-old",
            shown(unarchived.iter().map(String::as_str))
        ));
    }
    details
}

fn recovery_target(shared: &Shared) -> String {
    let aim = &shared.request.aim;
    if shared.request.standby.is_some() {
        return "a standby".to_owned();
    }
    let mut text = aim.target.to_string();
    if aim.exclusive {
        text += ", exclusive";
    }
    if aim.timeline != TargetTimeline::Latest || shared.choice.path.len() > 1 {
        text = format!("{text}, on timeline {}", shared.choice.timeline);
    }
    if aim.target.is_point() {
        text = format!("{text}; then {}", aim.action.as_str());
    }
    text
}

/// The first few names, and how many more.
fn shown<'name>(names: impl ExactSizeIterator<Item = &'name str>) -> String {
    let count = names.len();
    let first: Vec<&str> = names.take(SHOWN).collect();
    let first = first.join(", ");
    if count > SHOWN {
        format!("{first} and {} more", count - SHOWN)
    } else {
        first
    }
}

/// Makes room: the old directory aside or what does not belong there away, pg_control away, directories and
/// links.
struct PrepareStep(Arc<Shared>);

#[async_trait]
impl Step for PrepareStep {
    fn name(&self) -> &'static str {
        "prepare"
    }

    fn description(&self) -> String {
        let data = self.0.layout.data().display();
        if self.0.request.keep_old {
            format!("move {data} aside, and make the directories and links")
        } else if self.0.request.delta {
            format!(
                "take pg_control away from {data}, remove what does not belong there, make directories and links"
            )
        } else {
            "make the directories and links".to_owned()
        }
    }

    fn is_destructive(&self) -> bool {
        self.0.request.delta
    }

    /// The marker that it leaves is taken away in the end.
    fn is_transient(&self) -> bool {
        true
    }

    async fn check(&self, _context: &StepContext<'_>) -> Result<Check, StepError> {
        Ok(Check::Unknown)
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let shared = &self.0;
        guard::check_no_server(shared.layout.data())?;
        if shared.request.keep_old && !context.resuming {
            let moved = blocking(shared, aside::move_aside).await?;
            for path in &moved {
                context.reporter.message(
                    Level::Info,
                    &format!("what was there is now in {}", path.display()),
                );
            }
            context.memory.set(MOVED, &moved)?;
            shared.set(|outcome| outcome.moved = moved);
        }
        let reuse = shared.reuses(context.resuming)?;
        context.memory.set(REUSE, reuse)?;
        let removed = blocking(shared, move |shared| place::make_room(shared, reuse)).await?;
        shared.set(|outcome| outcome.removed = removed);
        Ok(())
    }
}

/// All files but pg_control.
struct FilesStep(Arc<Shared>);

#[async_trait]
impl Step for FilesStep {
    fn name(&self) -> &'static str {
        "files"
    }

    fn description(&self) -> String {
        format!(
            "{} {} files",
            if self.0.request.delta {
                "compare and restore"
            } else {
                "restore"
            },
            self.0.manifest.end.files
        )
    }

    async fn check(&self, _context: &StepContext<'_>) -> Result<Check, StepError> {
        Ok(Check::Unknown)
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let shared = &self.0;
        shared.enter()?;
        let delta = context.resuming || context.memory.get::<bool>(REUSE).unwrap_or(false);
        let progress = context.reporter.start(Task::new(
            "restoring files",
            Unit::Bytes,
            Some(shared.manifest.end.bytes),
        ));
        let cancellation = context.cancellation.clone();
        blocking(shared, move |shared| {
            place::files(shared, delta, progress.as_ref(), &cancellation)?;
            let outcome = shared.outcome();
            progress.finish(&format!(
                "{} written, {} right already",
                Bytes::new(outcome.written),
                Bytes::new(outcome.kept)
            ));
            Ok(())
        })
        .await?;
        Ok(())
    }
}

/// `backup_label`, `tablespace_map`, `postgresql.auto.conf`, the signal file.
struct SettingsStep(Arc<Shared>);

#[async_trait]
impl Step for SettingsStep {
    fn name(&self) -> &'static str {
        "settings"
    }

    fn description(&self) -> String {
        "write backup_label, tablespace_map and the settings of recovery".to_owned()
    }

    async fn check(&self, _context: &StepContext<'_>) -> Result<Check, StepError> {
        Ok(Check::Unknown)
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let shared = &self.0;
        shared.enter()?;
        let warnings = blocking(shared, place::settings).await?;
        for warning in warnings {
            context.reporter.message(Level::Warning, &warning);
        }
        Ok(())
    }
}

/// Everything on the disk, then pg_control.
struct PublishStep(Arc<Shared>);

#[async_trait]
impl Step for PublishStep {
    fn name(&self) -> &'static str {
        "publish"
    }

    fn description(&self) -> String {
        "sync everything, then put pg_control in place".to_owned()
    }

    async fn check(&self, context: &StepContext<'_>) -> Result<Check, StepError> {
        let done = context.memory.get::<bool>(PUBLISHED) == Some(true) || self.0.is_published();
        Ok(if done { Check::Done } else { Check::NotDone })
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let shared = &self.0;
        shared.enter()?;
        let cancellation = context.cancellation.clone();
        blocking(shared, move |shared| place::publish(shared, &cancellation)).await?;
        context.memory.set(PUBLISHED, true)?;
        shared.give_up_hold();
        Ok(())
    }
}
