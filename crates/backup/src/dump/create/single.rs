//! One dump: archive, row counts, companions and manifest, all made before any of them gets its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use pgmahout_durable::Overwrite;
use pgmahout_postgres::sql::quote_qualified;
use pgmahout_procedure::report::{Level, Reporter};
use pgmahout_types::diagnostic::Outcome;
use tokio_util::sync::CancellationToken;

use super::super::catalog;
use super::super::citus;
use super::super::error::{DumpError, Problem};
use super::super::location::{Place, Written};
use super::super::manifest::{
    Companion, CompanionRole, CountMode, DumpManifest, Extent, Options, Precision, SCHEMA_VERSION, TableRows,
    Tool, Verification,
};
use super::archive::{Inside, Making, Stored};
use super::outlet::{Passed, Treatment};
use super::programs::Programs;
use super::properties;
use super::request::{CreateRequest, Scope};
use super::session::Session;
use super::tables::{self, Table};
use super::warnings;
use pgmahout_store::digest::Digest;

/// What a dump is made with.
pub(super) struct Workshop<'a> {
    pub(super) request: &'a CreateRequest,
    pub(super) programs: &'a Programs,
    pub(super) treatment: &'a Treatment,
    pub(super) reporter: &'a Arc<dyn Reporter>,
    pub(super) cancellation: &'a CancellationToken,
}

/// Files that are complete and checked, but have no name yet.
#[derive(Debug)]
pub(super) struct Unpublished {
    pub(super) manifest: DumpManifest,
    archive: Written,
    companions: Vec<(String, Written)>,
}

impl Unpublished {
    /// Gives every file its name, the manifest last. Should one fail, those that have theirs lose it again.
    pub(super) async fn publish(self, place: &Place, force: bool) -> Result<DumpManifest, DumpError> {
        let file = self.manifest.file.clone();
        let manifest_name = DumpManifest::name_for(&file);
        if force {
            // The manifest of what is overwritten must not speak of the new file, not even for a moment.
            place.remove(&manifest_name).await?;
        }
        let mut published = Vec::new();
        let outcome = async {
            for (name, written) in self.companions {
                written.publish()?;
                published.push(name);
            }
            self.archive.publish()?;
            published.push(file.clone());
            place.write(&manifest_name, self.manifest.to_vec()).await
        }
        .await;
        match outcome {
            Ok(()) => Ok(self.manifest),
            Err(error) => {
                for name in published {
                    let _ = place.remove(&name).await;
                }
                Err(error)
            }
        }
    }

    /// Removes everything.
    pub(super) async fn discard(self, place: &Place) {
        for (_, written) in self.companions {
            written.discard(place).await;
        }
        self.archive.discard(place).await;
    }
}

impl Workshop<'_> {
    /// Makes one dump under a name.
    pub(super) async fn make(
        &self,
        session: &Session,
        name: &str,
        options: &Options,
        with_globals: bool,
    ) -> Result<Unpublished, DumpError> {
        let started_at = Timestamp::now();
        let mut manifest = self.begin(session, name, options, started_at);
        let series = catalog::series(&manifest);
        let previous = catalog::newest_of_series(&self.request.place, &series)
            .await
            .unwrap_or_else(|error| {
                tracing::debug!(%error, "earlier dumps were not compared");
                None
            });
        let making = self.making(
            session,
            name,
            previous.as_ref().map(|previous| previous.content.bytes),
        );
        self.check_exclusions(session, options).await?;
        let expanded = tables::with_partitions(session.connection(), options)
            .await
            .map_err(|source| DumpError::Sql {
                doing: "list the partitions",
                source,
            })?;
        let selected = if options.contents.has_rows() {
            tables::select(session.connection(), &expanded)
                .await
                .map_err(|source| DumpError::Sql {
                    doing: "list the tables",
                    source,
                })?
        } else {
            Vec::new()
        };
        let stop_counting = self.cancellation.child_token();
        let dump = async {
            let outcome = making.dump(&expanded).await;
            if outcome.is_err() {
                stop_counting.cancel();
            }
            outcome
        };
        let (dumped, counted) = tokio::join!(dump, self.count(session, options, &selected, &stop_counting));
        let (stored, inside) = dumped?;
        manifest.tables = rows(&inside, &selected, counted, self.request.counts);
        fill(&mut manifest, &stored.passed);
        let mut companions = Vec::new();
        let finished = self
            .companions(session, &mut manifest, &mut companions, with_globals)
            .await;
        if let Err(error) = finished {
            let unpublished = Unpublished {
                manifest,
                archive: stored.written,
                companions,
            };
            unpublished.discard(&self.request.place).await;
            return Err(error);
        }
        let maintenance = self.request.scope == Scope::AllDatabases && manifest.database.name == "postgres";
        let tables = inside.tables(options.contents);
        manifest
            .warnings
            .extend(warnings::about(&manifest, tables, previous.as_ref(), maintenance));
        let expected = selected.iter().filter_map(|table| table.estimate).sum();
        manifest
            .warnings
            .extend(warnings::of_selection(&manifest, expected));
        if manifest.server.in_recovery {
            let unlogged: Vec<String> = selected
                .iter()
                .filter(|table| table.unlogged)
                .map(|table| quote_qualified(&table.schema, &table.name))
                .collect();
            manifest.warnings.extend(warnings::of_standby(&unlogged));
        }
        for warning in &manifest.warnings {
            self.reporter.message(Level::Warning, warning);
        }
        manifest.finished_at = Timestamp::now();
        manifest.verification.read_back_at = Some(manifest.finished_at);
        Ok(Unpublished {
            manifest,
            archive: stored.written,
            companions,
        })
    }

    /// A pattern of what is left out that matches nothing is a mistake: rows would be in the dump that nobody
    /// wants there. Of all databases one may well lack what another has.
    async fn check_exclusions(&self, session: &Session, options: &Options) -> Result<(), DumpError> {
        if self.request.scope == Scope::AllDatabases {
            return Ok(());
        }
        let unmatched = tables::without_a_match(session.connection(), options)
            .await
            .map_err(|source| DumpError::Sql {
                doing: "look for what is left out",
                source,
            })?;
        if unmatched.is_empty() {
            return Ok(());
        }
        let database = &session.facts.database.name;
        let problems = unmatched
            .into_iter()
            .map(|(option, pattern)| Problem {
                what: format!("nothing in database \"{database}\" matches {option} '{pattern}'"),
                hint: "check the spelling; names outside the search path need their schema, and upper case needs \
                       double quotes"
                    .to_owned(),
                outcome: Outcome::Failed,
            })
            .collect();
        Err(DumpError::Preflight { problems })
    }

    /// Globals as a file of their own, for a bundle.
    pub(super) async fn globals(&self, session: &Session, name: &str) -> Result<Stored, DumpError> {
        self.warn_of_passwords(session);
        self.making(session, name, None).globals().await
    }

    /// Says that the roles come without their passwords, where that is so.
    fn warn_of_passwords(&self, session: &Session) -> Option<String> {
        if session.facts.may_read_passwords {
            return None;
        }
        let text = format!(
            "role {} may not read pg_authid: the globals hold roles without their passwords; a superuser's \
             dump would have them",
            session.parameters().user
        );
        self.reporter.message(Level::Warning, &text);
        Some(text)
    }

    fn making<'a>(&'a self, session: &'a Session, name: &'a str, expected_bytes: Option<u64>) -> Making<'a> {
        Making {
            place: &self.request.place,
            name,
            treatment: self.treatment,
            programs: self.programs,
            session,
            reporter: self.reporter,
            cancellation: self.cancellation,
            overwrite: if self.request.force {
                Overwrite::Replace
            } else {
                Overwrite::Refuse
            },
            expected_bytes,
        }
    }

    /// Counts by SQL, where the stream itself is not counted. A count that fails does not fail the dump.
    async fn count(
        &self,
        session: &Session,
        options: &Options,
        selected: &[Table],
        cancellation: &CancellationToken,
    ) -> Option<Vec<(u32, TableRows)>> {
        use super::super::manifest::Format;
        let by_stream = options.format == Format::Plain;
        if self.request.counts != CountMode::Exact || by_stream || selected.is_empty() {
            return None;
        }
        let work = async {
            let connection = session.companion().await?;
            let outcome = {
                let counting = tables::count(&connection, selected, self.request.count_budget, cancellation);
                tokio::select! {
                    outcome = counting => Some(outcome),
                    () = cancellation.cancelled() => None,
                }
            };
            let counted = if let Some(outcome) = outcome {
                let counted = outcome.map_err(|source| DumpError::Sql {
                    doing: "count the rows",
                    source,
                })?;
                Some(counted)
            } else {
                // Dropping the question does not stop the server.
                let _ = connection.cancel_handle().cancel().await;
                None
            };
            connection.close().await;
            Ok(counted)
        };
        match work.await {
            Ok(counted) => counted,
            Err(error) => {
                let error: DumpError = error;
                let why = super::super::error::Problem::of(&error).what;
                self.reporter.message(
                    Level::Warning,
                    &format!("the rows were not counted ({why}); the manifest has the planner's estimates"),
                );
                None
            }
        }
    }

    async fn companions(
        &self,
        session: &Session,
        manifest: &mut DumpManifest,
        made: &mut Vec<(String, Written)>,
        with_globals: bool,
    ) -> Result<(), DumpError> {
        let ending = companion_ending(self.request);
        if with_globals {
            let name = format!("{}.globals{ending}", manifest.file);
            manifest.warnings.extend(self.warn_of_passwords(session));
            let stored = self.making(session, &name, None).globals().await?;
            manifest
                .companions
                .push(self.companion(CompanionRole::Globals, &name, &stored.passed));
            made.push((name, stored.written));
        }
        if with_globals || self.request.scope == Scope::AllDatabases {
            let text = properties::statements(session.connection(), &manifest.options)
                .await
                .map_err(|source| DumpError::Sql {
                    doing: "read the database's properties",
                    source,
                })?;
            if let Some(text) = text {
                let name = format!("{}.properties{ending}", manifest.file);
                let stored = self.making(session, &name, None).text(text).await?;
                manifest
                    .companions
                    .push(self.companion(CompanionRole::Properties, &name, &stored.passed));
                made.push((name, stored.written));
            }
        }
        if session.facts.has_citus {
            let metadata = citus::read(session.connection())
                .await
                .map_err(|source| DumpError::Sql {
                    doing: "read the Citus metadata",
                    source,
                })?;
            let name = format!("{}.citus{ending}", manifest.file);
            let stored = self.making(session, &name, None).text(metadata.to_sql()).await?;
            manifest
                .companions
                .push(self.companion(CompanionRole::Citus, &name, &stored.passed));
            made.push((name, stored.written));
        }
        Ok(())
    }

    fn companion(&self, role: CompanionRole, file: &str, passed: &Passed) -> Companion {
        Companion {
            role,
            file: file.to_owned(),
            compression: self.request.codec.to_string(),
            encryption: self
                .request
                .sealing
                .as_ref()
                .map(|sealing| sealing.description.clone()),
            content: extent(passed.content),
            stored: extent(passed.stored),
        }
    }

    fn begin(&self, session: &Session, name: &str, options: &Options, started_at: Timestamp) -> DumpManifest {
        DumpManifest {
            schema_version: SCHEMA_VERSION,
            kind: DumpManifest::KIND.to_owned(),
            tool: Tool::current(),
            file: name.to_owned(),
            server: session.facts.server.clone(),
            client_version: self.programs.version.to_string(),
            database: session.facts.database.clone(),
            snapshot: Some(session.snapshot.clone()),
            started_at,
            finished_at: started_at,
            options: options.clone(),
            compression: self.request.codec.to_string(),
            encryption: self
                .request
                .sealing
                .as_ref()
                .map(|sealing| sealing.description.clone()),
            content: Extent::default(),
            stored: Extent::default(),
            counts: self.request.counts,
            tables: Vec::new(),
            companions: Vec::new(),
            warnings: Vec::new(),
            verification: Verification::default(),
        }
    }
}

/// What the names of companions end in: they are plain SQL whatever the archive is.
pub(super) fn companion_ending(request: &CreateRequest) -> String {
    super::super::location::ending(
        super::super::manifest::Format::Plain,
        request.codec,
        request.sealing.is_some(),
    )
}

/// A digest as manifests have it.
pub(super) fn extent(digest: Digest) -> Extent {
    Extent {
        bytes: digest.bytes,
        sha256: digest.sha256.to_string(),
    }
}

fn fill(manifest: &mut DumpManifest, passed: &Passed) {
    manifest.content = extent(passed.content);
    manifest.stored = extent(passed.stored);
}

/// The tables whose rows are in the archive, with what is known of their number.
fn rows(
    inside: &Inside,
    selected: &[Table],
    counted: Option<Vec<(u32, TableRows)>>,
    mode: CountMode,
) -> Vec<TableRows> {
    match inside {
        Inside::Plain(report) => {
            let in_stream = report.sections.iter().flat_map(|section| &section.tables);
            let selected: BTreeMap<(&str, &str), &Table> = selected
                .iter()
                .map(|table| ((table.schema.as_str(), table.name.as_str()), table))
                .collect();
            let mut tables = Vec::new();
            for (name, rows) in in_stream {
                let known = selected.get(&(name.schema.as_str(), name.name.as_str())).copied();
                if known.is_some_and(|table| table.of_extension) {
                    continue;
                }
                tables.push(match (mode, known) {
                    (CountMode::Exact, _) => TableRows {
                        schema: name.schema.clone(),
                        name: name.name.clone(),
                        rows: Some(*rows),
                        precision: Precision::Exact,
                    },
                    (mode, Some(table)) => tables::estimated(table, mode),
                    (_, None) => TableRows {
                        schema: name.schema.clone(),
                        name: name.name.clone(),
                        rows: None,
                        precision: Precision::None,
                    },
                });
            }
            tables
        }
        Inside::Listed(list) => {
            let listed: BTreeSet<u32> = tables::table_data_in_list(list);
            let mut tables: Vec<TableRows> = match counted {
                Some(counted) => counted
                    .into_iter()
                    .filter(|(oid, _)| listed.contains(oid))
                    .map(|(_, rows)| rows)
                    .collect(),
                None => selected
                    .iter()
                    .filter(|table| !table.of_extension && listed.contains(&table.oid))
                    .map(|table| tables::estimated(table, mode))
                    .collect(),
            };
            tables.sort_by(|one, other| (&one.schema, &one.name).cmp(&(&other.schema, &other.name)));
            tables
        }
    }
}
