//! `dump create`.
//!
//! ```text
//! preflight -> session with an exported snapshot -> for each dump:
//!     pg_dump --snapshot ─ stdout ─> scan, digest, compress, encrypt, digest ─> temporary
//!     second session in the same snapshot: row counts (custom and directory; plain counts in the stream)
//!     exit status, then fsync, then read back: decrypt, decompress, both digests, the format's end
//! -> companions (globals, Citus) -> names -> manifest
//! ```
//!
//! A failure anywhere leaves no file and no session behind. Memory: see [`outlet`](self), under 256 MiB
//! whatever the database's size.

mod archive;
mod arguments;
mod child;
mod facts;
mod outlet;
mod pattern;
mod preflight;
mod programs;
mod properties;
mod readback;
mod request;
mod session;
mod single;
mod tables;
mod warnings;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgmahout_postgres::connection::Connection;
use pgmahout_procedure::report::{Level, Reporter};
use tokio_util::sync::CancellationToken;

use super::catalog;
use super::error::{DumpError, Problem};
use super::location::{Place, default_file_name, ending, file_name_part};
use super::manifest::{
    BUNDLE_SUFFIX, BundleManifest, BundlePurpose, CompanionRole, DumpManifest, Member, MemberRole, Options,
    SCHEMA_VERSION, SkippedDatabase, Tool,
};
use outlet::Treatment;
pub use outlet::seal_context;
use preflight::{Databases, Ready};
pub use request::{CreateRequest, Scope, Sealing, SetPart};
use session::Session;
use single::{Unpublished, Workshop};

/// What was made.
#[derive(Debug)]
pub struct Created {
    /// Where.
    pub place: Place,
    /// The dumps.
    pub dumps: Vec<DumpManifest>,
    /// The bundle that holds them, and its manifest's name.
    pub bundle: Option<(String, BundleManifest)>,
    /// How long everything took.
    pub elapsed: Duration,
}

/// Makes one dump or one bundle.
///
/// After cancellation nothing of the dump that was being made is left, in the place or on the server;
/// complete dumps of other databases (`--all-databases`) are kept, and the error names them.
///
/// # Errors
/// Problems found before anything was written ([`DumpError::Preflight`] lists all of them), and whatever
/// failed afterwards.
pub async fn create(
    request: &CreateRequest,
    reporter: &Arc<dyn Reporter>,
    cancellation: &CancellationToken,
) -> Result<Created, DumpError> {
    let started = Instant::now();
    preflight::validate(request)?;
    let names = Names::of(request);
    let known = names.known(request);
    let ready = tokio::select! {
        ready = preflight::check(request, &known) => ready?,
        () = cancellation.cancelled() => return Err(DumpError::Interrupted),
    };
    let treatment = Treatment {
        codec: request.codec,
        threads: request.threads,
        keyring: request.sealing.as_ref().map(|sealing| sealing.keyring.clone()),
    };
    let Ready { connection, programs } = ready;
    let workshop = Workshop {
        request,
        programs: &programs,
        treatment: &treatment,
        reporter,
        cancellation,
    };
    let (dumps, bundle) = match &request.scope {
        Scope::Database => (vec![Box::pin(one(&workshop, connection, &names)).await?], None),
        Scope::Set(parts) => Box::pin(set(&workshop, connection, &names, parts)).await?,
        Scope::AllDatabases => Box::pin(all(&workshop, connection, &names)).await?,
    };
    preflight::sweep(&request.place);
    Ok(Created {
        place: request.place.clone(),
        dumps,
        bundle,
        elapsed: started.elapsed(),
    })
}

/// What the files of one run are called.
struct Names {
    /// The name, for bundles without an ending.
    base: String,
    /// What archives end in.
    ending: String,
    /// What globals end in.
    companion_ending: String,
}

impl Names {
    fn of(request: &CreateRequest) -> Self {
        let ending = ending(request.options.format, request.codec, request.sealing.is_some());
        let subject = match request.scope {
            Scope::AllDatabases => "all",
            _ => &request.connection.database,
        };
        let base = match (&request.file, &request.scope) {
            (Some(file), Scope::Database) => file.clone(),
            (Some(file), _) => file.strip_suffix(BUNDLE_SUFFIX).unwrap_or(file).to_owned(),
            (None, Scope::Database) => default_file_name(subject, &request.now, &ending),
            (None, _) => default_file_name(subject, &request.now, ""),
        };
        Self {
            base,
            ending,
            companion_ending: single::companion_ending(request),
        }
    }

    /// The names that are known before the server was asked.
    fn known(&self, request: &CreateRequest) -> Vec<String> {
        match &request.scope {
            Scope::Database => {
                let mut names = vec![self.base.clone()];
                if request.globals {
                    names.push(format!("{}.globals{}", self.base, self.companion_ending));
                }
                names
            }
            Scope::Set(parts) => {
                let mut names: Vec<String> = parts
                    .iter()
                    .map(|part| self.member(part.contents.as_str()))
                    .collect();
                names.push(self.bundle());
                names
            }
            Scope::AllDatabases => vec![self.bundle(), self.globals()],
        }
    }

    fn member(&self, what: &str) -> String {
        format!("{}_{what}{}", self.base, self.ending)
    }

    fn globals(&self) -> String {
        format!("{}.globals{}", self.base, self.companion_ending)
    }

    fn bundle(&self) -> String {
        format!("{}{BUNDLE_SUFFIX}", self.base)
    }
}

/// Takes the snapshot, and checks what only it can tell.
async fn begin(
    workshop: &Workshop<'_>,
    connection: Connection,
    options: &Options,
) -> Result<Session, DumpError> {
    let request = workshop.request;
    let session = tokio::select! {
        session = Session::begin(connection) => session?,
        () = workshop.cancellation.cancelled() => return Err(DumpError::Interrupted),
    };
    let facts = &session.facts;
    // Only a directory has a size that can be asked for.
    let previous = if request.place.directory().is_some() {
        let system = facts.server.system_identifier.as_deref();
        let series = catalog::series_of(&facts.database.name, options, system);
        catalog::newest_of_series(&request.place, &series)
            .await
            .unwrap_or(None)
    } else {
        None
    };
    if let Some(problem) = preflight::space(request, facts.database.size_bytes, previous.as_ref()) {
        session.end().await;
        return Err(DumpError::Preflight {
            problems: vec![problem],
        });
    }
    if let Some(warning) = preflight::clock_warning(Timestamp::now(), session.snapshot.taken_at) {
        workshop.reporter.message(Level::Warning, &warning);
    }
    if !facts.version.is_supported() {
        workshop.reporter.message(
            Level::Warning,
            &format!(
                "PostgreSQL {} is not a version that this program was tested with; pg_dump {} makes the dump \
                 all the same",
                facts.version, workshop.programs.version
            ),
        );
    }
    Ok(session)
}

/// A single database.
async fn one(
    workshop: &Workshop<'_>,
    connection: Connection,
    names: &Names,
) -> Result<DumpManifest, DumpError> {
    let request = workshop.request;
    let session = begin(workshop, connection, &request.options).await?;
    let made = workshop
        .make(&session, &names.base, &request.options, request.globals)
        .await;
    session.end().await;
    made?.publish(&request.place, request.force).await
}

type Bundled = (Vec<DumpManifest>, Option<(String, BundleManifest)>);

/// Several views of one database. All of them, or none.
async fn set(
    workshop: &Workshop<'_>,
    connection: Connection,
    names: &Names,
    parts: &[SetPart],
) -> Result<Bundled, DumpError> {
    let request = workshop.request;
    let started_at = Timestamp::now();
    let session = begin(workshop, connection, &request.options).await?;
    let mut made: Vec<Unpublished> = Vec::new();
    let mut failure = None;
    for part in parts {
        let mut options = request.options.clone();
        options.contents = part.contents;
        options.tables.clone_from(&part.tables);
        if !options.contents.has_rows() {
            options.exclude_table_data.clear();
        }
        match workshop
            .make(&session, &names.member(part.contents.as_str()), &options, false)
            .await
        {
            Ok(unpublished) => made.push(unpublished),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    session.end().await;
    if let Some(error) = failure {
        for unpublished in made {
            unpublished.discard(&request.place).await;
        }
        return Err(error);
    }
    let mut dumps = Vec::new();
    let mut waiting = made.into_iter();
    let outcome = async {
        for unpublished in waiting.by_ref() {
            dumps.push(unpublished.publish(&request.place, request.force).await?);
        }
        let members = parts
            .iter()
            .zip(&dumps)
            .map(|(part, dump)| member(part.role(), dump))
            .collect();
        publish_bundle(
            request,
            names,
            BundlePurpose::Set,
            started_at,
            members,
            Vec::new(),
        )
        .await
    }
    .await;
    match outcome {
        Ok(bundle) => Ok((dumps, Some(bundle))),
        Err(error) => {
            for unpublished in waiting {
                unpublished.discard(&request.place).await;
            }
            for dump in &dumps {
                remove(&request.place, dump).await;
            }
            Err(error)
        }
    }
}

/// Every database of the server. Those that could be dumped are kept whatever happens to the others.
async fn all(workshop: &Workshop<'_>, connection: Connection, names: &Names) -> Result<Bundled, DumpError> {
    let request = workshop.request;
    let started_at = Timestamp::now();
    let Databases {
        dumped: databases,
        skipped,
    } = preflight::databases(&connection).await?;
    for database in &skipped {
        workshop.reporter.message(Level::Warning, &database.warning());
    }
    let mut problems = Vec::new();
    for database in &databases {
        let name = names.member(&file_name_part(database));
        problems.extend(preflight::taken(&request.place, &name, request.force).await);
    }
    if !problems.is_empty() {
        return Err(DumpError::Preflight { problems });
    }
    let parameters = connection.parameters().clone();
    let globals_session = begin(workshop, connection, &request.options).await?;
    let globals = workshop.globals(&globals_session, &names.globals()).await;
    globals_session.end().await;
    let globals = globals?;
    let mut dumps: Vec<DumpManifest> = Vec::new();
    let mut errors: Vec<(String, String)> = Vec::new();
    for database in &databases {
        let outcome = async {
            let connection = Connection::open_secured(&parameters.with_database(database)).await?;
            let session = begin(workshop, connection, &request.options).await?;
            let name = names.member(&file_name_part(database));
            let made = workshop.make(&session, &name, &request.options, false).await;
            session.end().await;
            made?.publish(&request.place, request.force).await
        };
        match Box::pin(outcome).await {
            Ok(dump) => dumps.push(dump),
            Err(DumpError::Interrupted) => {
                globals.written.discard(&request.place).await;
                if dumps.is_empty() {
                    return Err(DumpError::Interrupted);
                }
                return Err(DumpError::InterruptedAfter {
                    kept: dumps.into_iter().map(|dump| dump.file).collect(),
                });
            }
            Err(error) => errors.push((database.clone(), Problem::of(&error).what)),
        }
    }
    if !errors.is_empty() {
        globals.written.discard(&request.place).await;
        return Err(DumpError::Members {
            failed: errors.len(),
            total: databases.len(),
            errors,
        });
    }
    let mut members = vec![Member {
        role: MemberRole::Globals,
        file: names.globals(),
        database: None,
        stored: single::extent(globals.passed.stored),
        compression: Some(request.codec.to_string()),
        encryption: request
            .sealing
            .as_ref()
            .map(|sealing| sealing.description.clone()),
    }];
    let role = SetPart {
        contents: request.options.contents,
        tables: Vec::new(),
    }
    .role();
    members.extend(dumps.iter().map(|dump| member(role, dump)));
    globals.written.publish()?;
    let bundle = publish_bundle(
        request,
        names,
        BundlePurpose::AllDatabases,
        started_at,
        members,
        skipped,
    )
    .await?;
    Ok((dumps, Some(bundle)))
}

fn member(role: MemberRole, dump: &DumpManifest) -> Member {
    Member {
        role,
        file: dump.file.clone(),
        database: Some(dump.database.name.clone()),
        stored: dump.stored.clone(),
        compression: None,
        encryption: None,
    }
}

async fn publish_bundle(
    request: &CreateRequest,
    names: &Names,
    purpose: BundlePurpose,
    started_at: Timestamp,
    members: Vec<Member>,
    skipped: Vec<SkippedDatabase>,
) -> Result<(String, BundleManifest), DumpError> {
    let manifest = BundleManifest {
        schema_version: SCHEMA_VERSION,
        kind: BundleManifest::KIND.to_owned(),
        tool: Tool::current(),
        purpose,
        started_at,
        finished_at: Timestamp::now(),
        members,
        skipped,
    };
    let name = names.bundle();
    request.place.write(&name, manifest.to_vec()).await?;
    Ok((name, manifest))
}

/// Takes back a dump that was published moments ago. Best effort: an error is being told already.
async fn remove(place: &Place, dump: &DumpManifest) {
    let _ = place.remove(&DumpManifest::name_for(&dump.file)).await;
    let _ = place.remove(&dump.file).await;
    for companion in &dump.companions {
        if companion.role != CompanionRole::Unknown {
            let _ = place.remove(&companion.file).await;
        }
    }
}
