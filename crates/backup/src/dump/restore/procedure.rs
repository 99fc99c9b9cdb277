//! A restore as a procedure: preflight, plan, confirmation, steps, verification.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_procedure::confirm::Question;
use pgmahout_procedure::report::{Level, Reporter, Task, Unit};
use pgmahout_procedure::{
    Check, Measurement, Plan, PlanDetails, Problem, Procedure, Step, StepContext, StepError, Target,
};
use pgmahout_types::diagnostic::Diagnose as _;
use pgmahout_types::version::ServerVersion;

use super::super::detect::Payload;
use super::super::read::Dump;
use super::super::scan::{ScanReport, Section, Selection};
use super::counts::{self, CountRow, TargetFacts};
use super::error::{RestoreError, count};
use super::fresh::{self, Properties};
use super::tools::Tools;
use super::{baseline, engine, fitness};

/// What the journal calls a restore.
pub const KIND: &str = "dump-restore";

/// Which database is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One that exists; its contents stay.
    Existing,
    /// One that does not exist yet.
    New,
    /// One that exists, replaced as a whole.
    Replace,
}

impl Mode {
    /// Whether a fresh database is filled, so that the target is untouched until everything is right.
    pub fn is_fresh(self) -> bool {
        self != Self::Existing
    }
}

/// What to dump of the target before anything happens. Filled in by whoever can make dumps.
#[async_trait]
pub trait BackupFirst: Send + Sync {
    /// Makes a dump of the target and says where it is.
    ///
    /// # Errors
    /// When it cannot be made; then nothing is restored.
    async fn make(&self, context: &StepContext<'_>) -> Result<String, StepError>;
}

/// What was asked of `dump restore`.
#[derive(Clone)]
pub struct RestoreRequest {
    /// The server, and the database to fill.
    pub target: ConnectionParameters,
    /// How.
    pub mode: Mode,
    /// What of the dump.
    pub selection: Selection,
    /// Which database of a pg_dumpall stream.
    pub database: Option<String>,
    /// Parallel workers of pg_restore.
    pub jobs: u32,
    /// Every statement takes effect by itself.
    pub no_transaction: bool,
    /// Where PostgreSQL's programs are.
    pub bin_dir: Option<PathBuf>,
    /// Makes a dump of the target before.
    pub backup_first: Option<Arc<dyn BackupFirst>>,
    /// What the journal keeps, for whoever builds the request again; no secrets.
    pub parameters: serde_json::Value,
}

/// What a restore has to say in the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RestoreOutcome {
    /// Rows of every table, expected and found.
    pub counts: Vec<CountRow>,
    /// The dump that `--backup-first` made.
    pub backup: Option<String>,
}

/// A restore.
pub struct Restore {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) request: RestoreRequest,
    pub(crate) dump: Arc<Dump>,
    pub(crate) report: ScanReport,
    /// The section to restore, when there is a choice to be made and it was made.
    pub(crate) section: Result<usize, Problem>,
    outcome: Mutex<RestoreOutcome>,
}

impl Shared {
    pub(crate) fn section(&self) -> &Section {
        let index = self.section.as_ref().copied().unwrap_or(0);
        &self.report.sections[index]
    }

    pub(crate) fn selection(&self) -> Selection {
        let index = self.section.as_ref().copied().unwrap_or(0);
        Selection {
            section: (self.report.sections.len() > 1).then_some(index),
            owned_sequences: self.section().owned_sequences.clone(),
            one_transaction: self.one_transaction(),
            ..self.request.selection.clone()
        }
    }

    pub(crate) fn one_transaction(&self) -> bool {
        !self.request.no_transaction && self.request.jobs <= 1
    }

    fn name(&self) -> &str {
        &self.request.target.database
    }

    fn set(&self, change: impl FnOnce(&mut RestoreOutcome)) {
        change(&mut self.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Restore {
    /// A restore of a dump that was read whole before: `report` is what [`Dump::inspect`] gave.
    pub fn new(request: RestoreRequest, dump: Arc<Dump>, report: ScanReport) -> Self {
        let section = fitness::choose(dump.describe(), &report, request.database.as_deref())
            .map_err(|error| Problem::from(&error));
        let mut request = request;
        if let Some(manifest) = dump.manifest()
            && dump.payload() != Payload::Sql
        {
            // Archives hold owners and rights always; what the dump was asked for counts.
            request.selection.no_owner |= !manifest.options.owner && request.selection.owner_map.is_empty();
            request.selection.no_acl |= !manifest.options.acl;
        }
        Self {
            shared: Arc::new(Shared {
                request,
                dump,
                report,
                section,
                outcome: Mutex::default(),
            }),
        }
    }

    /// What came out, once it is done.
    pub fn outcome(&self) -> RestoreOutcome {
        self.shared
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The dump, for people.
    pub fn file(&self) -> &str {
        self.shared.dump.describe()
    }

    /// The database that is filled.
    pub fn database(&self) -> &str {
        self.shared.name()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The same for another target.
    pub(crate) fn into_target(self, target: ConnectionParameters) -> Self {
        let shared = &self.shared;
        let request = RestoreRequest {
            target,
            ..shared.request.clone()
        };
        Self::new(request, Arc::clone(&shared.dump), shared.report.clone())
    }

    /// The version of the dumped server, as far as it is known.
    pub(crate) fn source_version(&self) -> Option<ServerVersion> {
        source_version(&self.shared)
    }

    /// Creates the new database under this name.
    pub(crate) async fn create_fresh(
        &self,
        administration: &Connection,
        name: &str,
        note: &str,
        reporter: &dyn Reporter,
    ) -> Result<(), RestoreError> {
        create(&self.shared, administration, name, note, reporter).await
    }

    /// Why the dump itself cannot be restored, as the error that says it, if that is so: for callers that
    /// want its exit status. The preflight lists the same among all problems.
    pub fn unfit(&self) -> Option<RestoreError> {
        let shared = &self.shared;
        match fitness::choose(
            shared.dump.describe(),
            &shared.report,
            shared.request.database.as_deref(),
        ) {
            Err(error) => Some(error),
            Ok(section) => {
                let selection = &shared.request.selection;
                if shared.request.jobs > 1 && !selection.tables.is_empty() {
                    // pg_restore takes every table of these names in any of the schemas, and leaves out
                    // their keys and indexes.
                    return Some(RestoreError::Usage {
                        what: "--jobs does not go with --table: pg_restore would take tables of the same name in other schemas, and leave out keys and indexes".to_owned(),
                        hint: "leave --jobs out, or restore everything and leave --table out".to_owned(),
                    });
                }
                fitness::problems(shared.dump.describe(), &shared.report, section)
                    .into_iter()
                    .next()
            }
        }
    }
}

/// Everything about the server that matters before.
struct Surroundings {
    administration: Connection,
    target: Option<TargetFacts>,
}

async fn surroundings(shared: &Shared) -> Result<Surroundings, RestoreError> {
    let administration = fresh::administration(&shared.request.target, shared.name()).await?;
    let target = if fresh::exists(&administration, shared.name()).await? {
        let connection = Connection::open_secured(&shared.request.target).await?;
        let facts = counts::look(&connection).await?;
        connection.close().await;
        Some(facts)
    } else {
        None
    };
    Ok(Surroundings {
        administration,
        target,
    })
}

#[async_trait]
impl Procedure for Restore {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn parameters(&self) -> serde_json::Value {
        self.shared.request.parameters.clone()
    }

    fn title(&self) -> String {
        let verb = match self.shared.request.mode {
            Mode::Existing => "into database",
            Mode::New => "into new database",
            Mode::Replace => "in place of database",
        };
        format!(
            "restore {} {verb} {}",
            self.shared.dump.describe(),
            self.shared.name()
        )
    }

    fn target(&self) -> Target {
        Target::new(self.shared.request.target.describe()).database(self.shared.name())
    }

    async fn preflight(&self, context: &StepContext<'_>) -> Result<Vec<Problem>, StepError> {
        let shared = &self.shared;
        let mut problems = file_problems(shared);
        if let Err(error) = Tools::find("psql", 0, shared.request.bin_dir.as_deref()) {
            problems.push(Problem::from(&error));
        }
        match surroundings(shared).await {
            Err(error) => problems.push(Problem::from(&error)),
            Ok(found) => {
                let now = fresh::oid(&found.administration, shared.name()).await?;
                let is_published = now.is_some() && now == context.memory.get::<u32>(PUBLISHED);
                problems.extend(server_problems(shared, &found, is_published).await?);
            }
        }
        Ok(problems)
    }

    async fn plan(&self, _context: &StepContext<'_>) -> Result<PlanDetails, StepError> {
        let shared = &self.shared;
        let found = surroundings(shared).await?;
        Ok(plan(shared, &found).await?)
    }

    fn question(&self, plan: &Plan) -> Option<Question> {
        let name = self.shared.name();
        match self.shared.request.mode {
            Mode::New => None,
            Mode::Existing => plan
                .details
                .warnings
                .iter()
                .any(|warning| warning.starts_with("the target is not empty"))
                .then(|| Question::yes_no(format!("Restore into database {name}, beside what is in it?"))),
            Mode::Replace => {
                let text = format!("Replace database {name} with the dump?");
                let loses_more = plan
                    .details
                    .losses
                    .iter()
                    .any(|loss| loss.contains("more rows than"));
                Some(if loses_more {
                    Question::type_yes(text)
                } else {
                    Question::yes_no(text)
                })
            }
        }
    }

    fn steps(&self) -> Vec<Box<dyn Step>> {
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        if self.shared.request.backup_first.is_some() {
            steps.push(Box::new(BackupStep(Arc::clone(&self.shared))));
        }
        steps.push(Box::new(LoadStep(Arc::clone(&self.shared))));
        if self.shared.request.mode.is_fresh() {
            steps.push(Box::new(PublishStep(Arc::clone(&self.shared))));
        } else {
            steps.push(Box::new(AnalyzeStep(Arc::clone(&self.shared))));
        }
        steps
    }

    async fn verify(&self, context: &StepContext<'_>) -> Result<Vec<String>, StepError> {
        // They were compared where they were loaded: before the commit, or before the new database got its
        // name. Since then clients may have changed them.
        let compared: Option<(usize, u64)> = context.memory.get(COMPARED);
        Ok(vec![match compared {
            Some((tables, rows)) if !self.shared.request.selection.schema_only => {
                format!(
                    "{} with {rows} rows: as many as in the dump",
                    count(tables, "table")
                )
            }
            _ => "definitions only: no rows to compare".to_owned(),
        }])
    }

    async fn abort(&self, context: &StepContext<'_>) -> Result<Vec<String>, StepError> {
        let Some(temporary) = context.memory.get::<String>(TEMPORARY) else {
            return Ok(Vec::new());
        };
        let administration = fresh::administration(&self.shared.request.target, self.shared.name()).await?;
        let mut findings = Vec::new();
        if fresh::exists(&administration, &temporary).await? {
            fresh::drop_database(&administration, &temporary).await?;
            findings.push(format!("dropped the unfinished database {temporary}"));
        }
        if let Some(old) = context.memory.get::<String>(REPLACED)
            && fresh::exists(&administration, &old).await?
        {
            findings.push(format!(
                "the new database is in place, and the one that it replaced is still there as {old}; drop it when it is not needed: dropdb {old}"
            ));
        }
        Ok(findings)
    }
}

/// What the file itself says against it.
fn file_problems(shared: &Shared) -> Vec<Problem> {
    let what = shared.dump.describe();
    let index = match &shared.section {
        Ok(index) => *index,
        Err(problem) => return vec![problem.clone()],
    };
    let mut problems: Vec<Problem> = fitness::problems(what, &shared.report, index)
        .iter()
        .map(Problem::from)
        .collect();
    let section = shared.section();
    if let Some(manifest) = shared.dump.manifest() {
        let contradictions = counts::contradictions(manifest, &shared.report, section);
        if let Some(first) = contradictions.first() {
            let more = match contradictions.len() - 1 {
                0 => String::new(),
                more => format!(
                    ", and {}",
                    count(more, "further mismatch").replace("mismatchs", "mismatches")
                ),
            };
            problems.push(
                Problem::new(format!("{what} and its manifest do not belong together: {first}{more}"))
                    .hint("restore a dump whose manifest is its own, or move the manifest away if you trust the file alone"),
            );
        }
    }
    if shared.one_transaction()
        && let Some((statement, at)) = section.transaction_breakers.first()
    {
        problems.push(
            Problem::new(format!(
                "{what} holds a statement that cannot run in one transaction: {statement} (line {})",
                at.line
            ))
            .hint("restore it with --no-transaction; what was restored before a failure then stays"),
        );
    }
    if shared.request.jobs > 1 && shared.dump.payload() == Payload::Sql {
        problems
            .push(Problem::new("plain SQL cannot be restored by several workers").hint("leave --jobs out"));
    }
    if shared.request.jobs > 1 && !shared.request.selection.owner_map.is_empty() {
        problems.push(Problem::new("--owner-map does not go with --jobs").hint("leave --jobs out"));
    }
    for table in &shared.request.selection.tables {
        let known = section
            .tables
            .keys()
            .any(|name| name.name == table.name && (table.schema.is_empty() || table.schema == name.schema));
        if !known && !shared.request.selection.schema_only && section.rows() > 0 {
            problems.push(
                Problem::new(format!("there are no rows of a table {table} in {what}"))
                    .hint("names are as they are in the dump, without quotes: schema.table or table"),
            );
        }
    }
    problems
}

async fn names(connection: &Connection, query: &str) -> Result<Vec<String>, RestoreError> {
    let rows = connection
        .query(query, &[])
        .await
        .map_err(|error| RestoreError::sql("look at the server", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What the server says against it. `is_published`: the target is what an earlier attempt has put there.
async fn server_problems(
    shared: &Shared,
    found: &Surroundings,
    is_published: bool,
) -> Result<Vec<Problem>, RestoreError> {
    let request = &shared.request;
    let name = shared.name();
    let section = shared.section();
    let mut problems = Vec::new();
    match (request.mode, &found.target) {
        (Mode::Existing, None) => problems.push(
            Problem::new(format!("database \"{name}\" does not exist")).hint(format!(
                "create it in the same go with --create, or before: createdb {name}"
            )),
        ),
        (Mode::Replace, None) => problems.push(
            Problem::new(format!(
                "database \"{name}\" does not exist, so there is nothing to replace"
            ))
            .hint("use --create instead of --clean"),
        ),
        (Mode::New, Some(_)) if !is_published => problems.push(
            Problem::new(format!("database \"{name}\" exists already"))
                .hint("choose another name with --into, or replace it with --clean"),
        ),
        _ => {}
    }
    if request.mode == Mode::Replace && name.starts_with("template") {
        problems.push(
            Problem::new(format!(
                "\"{name}\" is a template of new databases and is not replaced"
            ))
            .hint("restore into another database: --into NEW"),
        );
    }
    if request.mode == Mode::Replace
        && !is_published
        && let Some(target) = &found.target
    {
        if let Some(bound) = target.bound.first() {
            problems.push(
                Problem::new(format!(
                    "\"{name}\" cannot be replaced while {bound} belongs to it"
                ))
                .hint(if bound.starts_with("subscription") {
                    "drop it first (in this database: DROP SUBSCRIPTION), and make it again afterwards"
                } else {
                    "drop it first, and make it again afterwards: its consumer starts anew"
                }),
            );
        }
        if target.prepared_transactions > 0 {
            problems.push(
                Problem::new(format!(
                    "\"{name}\" has {}",
                    count(
                        usize::try_from(target.prepared_transactions).unwrap_or(usize::MAX),
                        "prepared transaction"
                    )
                ))
                .hint("commit or roll them back first: SELECT gid FROM pg_prepared_xacts"),
            );
        }
    }
    let server = found.administration.server_version();
    let source = source_version(shared);
    if let Some(source) = source
        && source.major() > server.major()
    {
        problems.push(
            Problem::new(format!(
                "the dump comes from PostgreSQL {source}, and the server is {server}"
            ))
            .hint(format!(
                "restore into a server of version {} or newer",
                source.major()
            )),
        );
    }
    if !server.is_supported() {
        problems.push(
            Problem::new(format!(
                "the server has version {server}, which this pgmahout does not write to"
            ))
            .hint(format!(
                "use PostgreSQL {} to {}, or a newer pgmahout",
                ServerVersion::OLDEST_MAJOR,
                ServerVersion::NEWEST_MAJOR
            )),
        );
    }
    if found.administration.reported_parameter("in_hot_standby") == Some("on") {
        problems.push(Problem::new("the server is a standby").hint("restore into its primary"));
    }
    if let Err(error) = Tools::find("psql", server.major(), request.bin_dir.as_deref()) {
        problems.push(Problem::from(&error));
    }
    let available = names(
        &found.administration,
        "SELECT name::text FROM pg_catalog.pg_available_extensions",
    )
    .await?;
    for extension in section
        .extensions
        .iter()
        .filter(|extension| !available.contains(extension))
    {
        problems.push(
            Problem::new(format!(
                "the dump needs extension \"{extension}\", which the server does not have"
            ))
            .hint(format!(
                "install it on the server (a package such as postgresql-{}-{extension})",
                server.major()
            )),
        );
    }
    problems.extend(role_problems(shared, &found.administration).await?);
    let tablespaces = names(
        &found.administration,
        "SELECT spcname::text FROM pg_catalog.pg_tablespace",
    )
    .await?;
    for tablespace in section
        .tablespaces
        .iter()
        .filter(|tablespace| !tablespaces.contains(tablespace))
    {
        problems.push(
            Problem::new(format!(
                "the dump needs tablespace \"{tablespace}\", which the server does not have"
            ))
            .hint(format!(
                "create it first: CREATE TABLESPACE \"{tablespace}\" LOCATION '/path'"
            )),
        );
    }
    problems.extend(space_problem(shared, &found.administration).await);
    Ok(problems)
}

async fn role_problems(shared: &Shared, administration: &Connection) -> Result<Vec<Problem>, RestoreError> {
    let section = shared.section();
    let selection = &shared.request.selection;
    let roles = names(administration, "SELECT rolname::text FROM pg_catalog.pg_roles").await?;
    let mut missing = Vec::new();
    let owners = section.owners.iter().filter(|_| !selection.no_owner);
    let grantees = section.grantees.iter().filter(|_| !selection.no_acl);
    let named = owners
        .chain(grantees)
        .map(|role| selection.owner_map.get(role).unwrap_or(role));
    // User mappings are restored as they are, with or without owners.
    for role in named.chain(&section.mapped) {
        if !roles.contains(role) && !section.roles_created.contains(role) && !missing.contains(role) {
            missing.push(role.clone());
        }
    }
    let Some(first) = missing.first() else {
        return Ok(Vec::new());
    };
    let quoted: Vec<String> = missing.iter().map(|role| format!("\"{role}\"")).collect();
    let text = match quoted.as_slice() {
        [only] => format!("the dump needs role {only}, which does not exist on the server"),
        many => format!(
            "the dump needs roles that do not exist on the server: {}",
            many.join(", ")
        ),
    };
    Ok(vec![Problem::new(text).hint(format!(
        "create it first (createuser {first}), give what it owns to another one (--owner-map {first}=NAME), or leave ownership and rights out (--no-owner --no-acl)"
    ))])
}

/// Only known for a server of this machine whose data directory we may look at.
async fn space_problem(shared: &Shared, administration: &Connection) -> Option<Problem> {
    if !shared.request.target.is_local() {
        return None;
    }
    let directory: String = administration
        .query_one("SELECT pg_catalog.current_setting('data_directory')", &[])
        .await
        .ok()?
        .get(0);
    let free = rustix::fs::statvfs(directory.as_str())
        .ok()
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))?;
    let needed = match shared.dump.manifest() {
        Some(manifest) if manifest.database.size_bytes > 0 && shared.request.selection.is_whole() => {
            manifest.database.size_bytes
        }
        _ if shared.request.selection.schema_only => 0,
        _ => shared.report.bytes,
    };
    (free < needed).then(|| {
        Problem::new(format!(
            "the restore needs about {}, and the server's disk has {} free ({directory})",
            bytes(needed),
            bytes(free)
        ))
        .hint("free space, or restore into another server")
    })
}

fn source_version(shared: &Shared) -> Option<ServerVersion> {
    if let Some(manifest) = shared.dump.manifest() {
        return Some(ServerVersion::from_number(manifest.server.version_number));
    }
    shared
        .section()
        .server_version
        .as_deref()
        .and_then(ServerVersion::parse)
}

pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{number} {}", UNITS[0])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

async fn plan(shared: &Shared, found: &Surroundings) -> Result<PlanDetails, RestoreError> {
    let section = shared.section();
    let dump = &shared.dump;
    let mut details = PlanDetails::new();
    let of = dump
        .manifest()
        .map(|manifest| manifest.database.name.clone())
        .or_else(|| section.database.clone())
        .map(|name| format!(" of database {name}"))
        .unwrap_or_default();
    details = details.fact(
        "dump",
        format!("{}{of} ({})", dump.describe(), dump.describe_kind()),
    );
    if let Some(manifest) = dump.manifest() {
        details = details.fact(
            "made",
            format!(
                "{} from PostgreSQL {}",
                manifest.started_at.strftime("%Y-%m-%d %H:%M:%S UTC"),
                manifest.server.version
            ),
        );
    } else if let Some(version) = &section.server_version {
        details = details.fact("made", format!("from PostgreSQL {version}; it has no manifest"));
    }
    let mut contents = format!(
        "{} with {} rows",
        count(section.tables.len(), "table"),
        section.rows()
    );
    if section.large_objects > 0 {
        let objects = usize::try_from(section.large_objects).unwrap_or(usize::MAX);
        contents.push_str(", ");
        contents.push_str(&count(objects, "large object"));
    }
    details = details.fact("in the dump", contents);
    if !shared.request.selection.is_whole() {
        let expected = counts::expected(section, &shared.request.selection);
        let rows: u64 = expected.values().sum();
        details = details.fact(
            "selected",
            if shared.request.selection.schema_only {
                "definitions only".to_owned()
            } else {
                format!("{} with {rows} rows", count(expected.len(), "table"))
            },
        );
    }
    let transaction = if shared.one_transaction() {
        "one; it is committed only when the whole dump was read and the rows are right"
    } else {
        "none: what was restored before a failure stays"
    };
    details = details.fact("transaction", transaction);
    match &found.target {
        None => details = details.fact("in the target", "it does not exist yet"),
        Some(target) => {
            details = details.fact(
                "in the target",
                format!(
                    "{} with about {} rows, {}; {} on it",
                    count(usize::try_from(target.tables).unwrap_or(usize::MAX), "table"),
                    target.rows,
                    bytes(target.bytes),
                    count(
                        usize::try_from(target.sessions).unwrap_or(usize::MAX),
                        "other session"
                    )
                ),
            );
            if shared.request.mode == Mode::Replace {
                details = replacement(details, shared, target);
            } else if target.tables > 0 {
                details = details.warning(format!(
                    "the target is not empty: objects that the dump also holds make the restore fail{}",
                    if shared.one_transaction() {
                        ", and everything is rolled back"
                    } else {
                        ""
                    }
                ));
            }
            if let Some(encoding) = &section.encoding
                && !matches!(target.encoding.as_str(), "UTF8" | "SQL_ASCII")
                && *encoding != target.encoding
            {
                details = details.warning(format!(
                    "the dump is in {encoding} and the target in {}: characters that it lacks make the restore fail",
                    target.encoding
                ));
            }
        }
    }
    if let Ok(index) = shared.section
        && let Some(at) = fitness::own_properties(&shared.report, index)
    {
        details = details.warning(format!(
            "the dump sets properties of the database itself (ALTER DATABASE, from line {}), which are not restored: give them to {} yourself",
            at.line,
            shared.name()
        ));
    }
    let unread = counts::unread(section);
    if unread > 0 {
        details = details.warning(format!(
            "{} of the dump are named in {}, which is not understood here: their rows are restored and not compared",
            count(unread, "table"),
            section.encoding.as_deref().unwrap_or("an unknown encoding")
        ));
    }
    if let Some(manifest) = dump.manifest() {
        details = collation_warning(details, manifest);
        if manifest
            .companions
            .iter()
            .any(|companion| companion.role == super::super::manifest::CompanionRole::Citus)
        {
            details = details.warning(
                "the dump is of a Citus coordinator: its tables come back as local ones; distribute them again with the companion file *.citus.sql",
            );
        }
    }
    if shared.request.mode.is_fresh() {
        for leftover in fresh::leftovers(&found.administration).await? {
            details = details.warning(format!(
                "database {leftover} is left over from an interrupted restore; drop it when no restore is running: dropdb {leftover}"
            ));
        }
        for old in fresh::replaced(&found.administration).await? {
            details = details.warning(format!(
                "database {old} holds what a restore or copy has replaced, and could not be dropped then; look whether you want anything in it, and drop it: dropdb {old}"
            ));
        }
    }
    Ok(details)
}

fn replacement(mut details: PlanDetails, shared: &Shared, target: &TargetFacts) -> PlanDetails {
    details = details.loss(format!(
        "everything in database {} as it is now: about {} rows, and whatever is written until the exchange",
        shared.name(),
        target.rows
    ));
    let rows = shared.section().rows();
    if target.rows > rows {
        details = details.loss(format!(
            "the target holds more rows than the dump: about {} against {rows}",
            target.rows
        ));
    }
    details
}

fn collation_warning(details: PlanDetails, manifest: &super::super::manifest::DumpManifest) -> PlanDetails {
    match (&manifest.database.collation_version, &manifest.database.collation_actual_version) {
        (Some(recorded), Some(actual)) if recorded != actual => details.warning(format!(
            "the dumped database was made with collation version {recorded} and ran with {actual}: its indexes may have been wrong; those of the restored one are not"
        )),
        _ => details,
    }
}

const COMPARED: &str = "compared";
const TEMPORARY: &str = "temporary_database";
const LOADED: &str = "loaded";
const PUBLISHED: &str = "published_oid";
const REPLACED: &str = "replaced_database";
const BACKUP: &str = "backup";

struct BackupStep(Arc<Shared>);

#[async_trait]
impl Step for BackupStep {
    fn name(&self) -> &'static str {
        "backup-first"
    }

    fn description(&self) -> String {
        format!("dump database {} as it is now", self.0.name())
    }

    async fn check(&self, context: &StepContext<'_>) -> Result<Check, StepError> {
        Ok(if context.memory.get::<String>(BACKUP).is_some() {
            Check::Done
        } else {
            Check::NotDone
        })
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let Some(backup) = &self.0.request.backup_first else {
            return Ok(());
        };
        let made = backup.make(context).await?;
        context
            .reporter
            .message(Level::Info, &format!("the target as it was is in {made}"));
        self.0.set(|outcome| outcome.backup = Some(made.clone()));
        context.memory.set(BACKUP, made)
    }
}

struct LoadStep(Arc<Shared>);

#[async_trait]
impl Step for LoadStep {
    fn name(&self) -> &'static str {
        "load"
    }

    fn description(&self) -> String {
        match self.0.request.mode {
            Mode::Existing => format!("load the dump into database {}", self.0.name()),
            _ => "load the dump into a new database under a temporary name, and analyze it".to_owned(),
        }
    }

    async fn check(&self, context: &StepContext<'_>) -> Result<Check, StepError> {
        Ok(if context.memory.get::<bool>(LOADED) == Some(true) {
            Check::Done
        } else {
            Check::NotDone
        })
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let shared = &self.0;
        let progress = context.reporter.start(Task::new(
            format!("restoring {}", shared.dump.describe()),
            Unit::Bytes,
            shared.dump.stored_bytes(),
        ));
        if !shared.request.mode.is_fresh() {
            let counts = match baseline::attempt(shared, context).await? {
                Some(counts) => {
                    context.reporter.message(
                        Level::Info,
                        "an earlier attempt has committed everything; nothing is loaded again",
                    );
                    counts
                }
                None => {
                    engine::load(
                        shared,
                        &shared.request.target,
                        progress.as_ref(),
                        context.cancellation,
                    )
                    .await?
                }
            };
            progress.finish("");
            return loaded(shared, context, counts);
        }
        let administration = fresh::administration(&shared.request.target, shared.name()).await?;
        if let Some(left) = context.memory.get::<String>(TEMPORARY) {
            fresh::drop_database(&administration, &left).await?;
        }
        let temporary = fresh::temporary_name()?;
        context.memory.set(TEMPORARY, &temporary)?;
        let filled = fill(shared, &administration, &temporary, progress.as_ref(), context).await;
        match filled {
            Ok(counts) => {
                progress.finish("");
                loaded(shared, context, counts)
            }
            Err(error) => {
                if let Err(left) = fresh::drop_database(&administration, &temporary).await {
                    context.reporter.message(
                        Level::Warning,
                        &format!("the unfinished database {temporary} is left behind ({left}); drop it: dropdb {temporary}"),
                    );
                }
                Err(error.into())
            }
        }
    }
}

fn loaded(shared: &Shared, context: &StepContext<'_>, counts: Vec<CountRow>) -> Result<(), StepError> {
    let rows: u64 = counts.iter().filter_map(|row| row.found).sum();
    context.memory.set(COMPARED, (counts.len(), rows))?;
    shared.set(|outcome| outcome.counts = counts);
    context.memory.set(LOADED, true)
}

async fn fill(
    shared: &Shared,
    administration: &Connection,
    temporary: &str,
    progress: &dyn pgmahout_procedure::report::Progress,
    context: &StepContext<'_>,
) -> Result<Vec<CountRow>, RestoreError> {
    let note = format!(
        "pgmahout: an unfinished restore of {} for database {}; drop it when no restore is running",
        shared.dump.describe(),
        shared.name()
    );
    create(shared, administration, temporary, &note, context.reporter).await?;
    let database = shared.request.target.with_database(temporary);
    let counts = engine::load(shared, &database, progress, context.cancellation).await?;
    engine::analyze(&database).await?;
    Ok(counts)
}

/// Creates the new database: as the one that it replaces, else as the dumped one was, else by the server's
/// defaults.
async fn create(
    shared: &Shared,
    administration: &Connection,
    temporary: &str,
    note: &str,
    reporter: &dyn Reporter,
) -> Result<(), RestoreError> {
    if shared.request.mode == Mode::Replace {
        let properties = Properties::of(administration, shared.name()).await?;
        return fresh::create(administration, temporary, &properties, note).await;
    }
    let encoding = shared.section().encoding.clone();
    let mut tries = Vec::new();
    if let Some(manifest) = shared.dump.manifest() {
        tries.push(Properties::of_manifest(&manifest.database));
    }
    tries.push(Properties::with_encoding(encoding.as_deref()));
    if let Some(encoding) = &encoding {
        tries.push(Properties::in_c(encoding));
    }
    let mut failed = None;
    for properties in tries {
        match fresh::create(administration, temporary, &properties, note).await {
            Ok(()) => {
                if let Some(error) = failed {
                    let error: RestoreError = error;
                    let why = std::error::Error::source(&error)
                        .map(ToString::to_string)
                        .unwrap_or_default();
                    reporter.message(
                        Level::Warning,
                        &format!("the locale of the dumped database is not to be had here ({why}); the new one has {}", properties.locale),
                    );
                }
                return Ok(());
            }
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    Err(failed.expect("there was at least one try"))
}

struct PublishStep(Arc<Shared>);

#[async_trait]
impl Step for PublishStep {
    fn name(&self) -> &'static str {
        "publish"
    }

    fn description(&self) -> String {
        match self.0.request.mode {
            Mode::Replace => format!(
                "end the sessions on database {name}, put the new database in its place, drop the old one",
                name = self.0.name()
            ),
            _ => format!("give the new database its name, {}", self.0.name()),
        }
    }

    fn is_destructive(&self) -> bool {
        self.0.request.mode == Mode::Replace
    }

    async fn check(&self, context: &StepContext<'_>) -> Result<Check, StepError> {
        let Some(oid) = context.memory.get::<u32>(PUBLISHED) else {
            return Ok(Check::NotDone);
        };
        let administration = fresh::administration(&self.0.request.target, self.0.name()).await?;
        let now = fresh::oid(&administration, self.0.name()).await?;
        let old_is_gone = match context.memory.get::<String>(REPLACED) {
            Some(old) => !fresh::exists(&administration, &old).await?,
            None => true,
        };
        Ok(if now == Some(oid) && old_is_gone {
            Check::Done
        } else {
            Check::NotDone
        })
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let shared = &self.0;
        let temporary: String = context
            .memory
            .get(TEMPORARY)
            .ok_or_else(|| StepError::failed("the name of the new database is not known"))?;
        let administration = fresh::administration(&shared.request.target, shared.name()).await?;
        let now = fresh::oid(&administration, shared.name()).await?;
        if now.is_some() && now == context.memory.get::<u32>(PUBLISHED) {
            // The exchange was made, and only the old database is still to be dropped.
            if let Some(old) = context.memory.get::<String>(REPLACED) {
                fresh::drop_replaced(&administration, &old).await?;
            }
            return Ok(());
        }
        let properties = if shared.request.mode == Mode::Replace {
            Properties::of(&administration, shared.name()).await?
        } else {
            Properties::with_encoding(None)
        };
        if let Some(oid) = fresh::oid(&administration, &temporary).await? {
            context.memory.set(PUBLISHED, oid)?;
        }
        // Before the exchange, so that whoever resumes knows what is to be dropped.
        let old = fresh::replaced_name()?;
        context.memory.set(REPLACED, &old)?;
        match fresh::publish(
            &shared.request.target,
            &temporary,
            shared.name(),
            &old,
            &properties,
        )
        .await
        {
            Ok(time) => {
                if shared.request.mode == Mode::Replace {
                    context.memory.measured(Measurement::Downtime(time))?;
                }
                Ok(())
            }
            Err(error) => {
                // The target is as it was; the new database is of no use any more.
                if fresh::oid(&administration, &temporary).await?.is_some() {
                    fresh::drop_database(&administration, &temporary).await?;
                    context.memory.set(LOADED, false)?;
                }
                Err(error.into())
            }
        }
    }
}

struct AnalyzeStep(Arc<Shared>);

#[async_trait]
impl Step for AnalyzeStep {
    fn name(&self) -> &'static str {
        "analyze"
    }

    fn description(&self) -> String {
        "analyze the restored tables, so that queries are planned well".to_owned()
    }

    async fn check(&self, _context: &StepContext<'_>) -> Result<Check, StepError> {
        Ok(Check::Unknown)
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        // The rows are there and committed; statistics come by autovacuum in any case.
        if let Err(error) = engine::analyze(&self.0.request.target).await {
            let hint = error.hint().unwrap_or_default();
            context
                .reporter
                .message(Level::Warning, &format!("{error}; {hint}"));
        }
        Ok(())
    }
}

/// What `--owner-map OLD=NEW` says, given several times.
///
/// # Errors
/// When one of them is no such pair.
pub fn owner_map(pairs: &[String]) -> Result<BTreeMap<String, String>, RestoreError> {
    pairs
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
            _ => Err(RestoreError::Usage {
                what: format!("\"{pair}\" does not say which role becomes which"),
                hint: "write OLD=NEW, for example --owner-map alice=bob".to_owned(),
            }),
        })
        .collect()
}
