//! Making one archive: pg_dump's output into a stored file that is not published yet, read back and found
//! right.

use std::fs::File;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use pgmahout_procedure::report::{Progress, Reporter, Task, Unit};
use pgmahout_types::Bytes;
use tokio_util::sync::CancellationToken;

use super::super::archive;
use super::super::error::DumpError;
use pgmahout_durable::Overwrite;

use super::super::location::{Pending, Place, Written};
use super::super::manifest::{Contents, Format, Options};
use super::super::scan::{Scan, ScanReport};
use super::arguments;
use super::child::{Program, Running};
use super::outlet::{Outlet, Passed, PumpError, Treatment, pump};
use super::programs::Programs;
use super::readback::{Fault, Look, read_back};
use super::session::Session;
use super::tables::table_data_in_list;

/// What a making needs to know.
pub(super) struct Making<'a> {
    pub(super) place: &'a Place,
    /// The file's name.
    pub(super) name: &'a str,
    pub(super) treatment: &'a Treatment,
    pub(super) programs: &'a Programs,
    pub(super) session: &'a Session,
    pub(super) reporter: &'a Arc<dyn Reporter>,
    pub(super) cancellation: &'a CancellationToken,
    /// Whether a file of that name may be replaced.
    pub(super) overwrite: Overwrite,
    /// The bytes of an earlier dump like this one, for the progress.
    pub(super) expected_bytes: Option<u64>,
}

/// A stored file without its name yet.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) written: Written,
    pub(super) passed: Passed,
}

/// What is known of an archive's inside.
#[derive(Debug)]
pub(super) enum Inside {
    /// Plain SQL: what the scanner saw.
    Plain(Box<ScanReport>),
    /// What `pg_restore --list` printed.
    Listed(String),
}

impl Inside {
    /// How many tables are defined or filled in it.
    pub(super) fn tables(&self, contents: Contents) -> usize {
        match (self, contents) {
            (Self::Plain(report), Contents::Data) => {
                report.sections.iter().map(|section| section.tables.len()).sum()
            }
            (Self::Plain(report), _) => report
                .sections
                .iter()
                .map(|section| section.tables_created as usize)
                .sum(),
            (Self::Listed(list), Contents::Data) => table_data_in_list(list).len(),
            (Self::Listed(list), _) => list
                .lines()
                .filter(|line| !line.starts_with(';'))
                .filter_map(|line| line.split_once("; ")?.1.splitn(3, ' ').nth(2))
                .filter(|entry| {
                    entry.starts_with("TABLE ")
                        && !entry.starts_with("TABLE DATA ")
                        && !entry.starts_with("TABLE ATTACH ")
                })
                .count(),
        }
    }
}

impl Making<'_> {
    /// Dumps the database in the form that the options say.
    pub(super) async fn dump(&self, options: &Options) -> Result<(Stored, Inside), DumpError> {
        let outcome = match options.format {
            Format::Directory => self.directory(options).await,
            Format::Plain | Format::Unknown => self.plain(options).await,
            Format::Custom => self.custom(options).await,
        };
        if outcome.is_err() {
            self.session.end_leftovers().await;
        }
        outcome
    }

    /// Roles and tablespaces.
    pub(super) async fn globals(&self) -> Result<Stored, DumpError> {
        let facts = &self.session.facts;
        let program = Program {
            name: "pg_dumpall",
            path: self.programs.pg_dumpall.clone(),
            arguments: arguments::globals(&facts.database.name, facts.may_read_passwords),
            environment: self.session.parameters().client_environment(),
        };
        let (passed, pending, report) = self
            .stream("dumping roles and tablespaces", program, true)
            .await?;
        let complete = report.is_some_and(|report| report.cluster_complete);
        if !complete {
            return Err(self.incomplete("pg_dumpall's end marker is missing"));
        }
        self.settle(passed, pending, Look::Plain).await
    }

    /// Statements of our own.
    pub(super) async fn text(&self, text: String) -> Result<Stored, DumpError> {
        let pending = self.create().await?;
        let treatment = self.treatment.clone();
        let token = self.cancellation.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut outlet = Outlet::new(&treatment, pending).map_err(PumpError::Write)?;
            pump(text.as_bytes(), &mut outlet, &token, |_| {})?;
            outlet.finish().map_err(PumpError::Write)
        });
        let (passed, pending) =
            joined(work.await).and_then(|done| done.map_err(|error| self.pump_error(error)))?;
        self.settle(passed, pending, Look::Plain).await
    }

    async fn plain(&self, options: &Options) -> Result<(Stored, Inside), DumpError> {
        let task = format!("dumping {}", self.session.facts.database.name);
        let (passed, pending, report) = self.stream(&task, self.pg_dump(options, None), true).await?;
        let report = report.expect("asked for");
        let whole = report.unfinished.is_none()
            && report.sections.len() == 1
            && report
                .sections
                .iter()
                .all(|section| section.complete && section.after_end.is_none());
        if !whole {
            return Err(self.incomplete("pg_dump's end marker is missing"));
        }
        let stored = self.settle(passed, pending, Look::Plain).await?;
        Ok((stored, Inside::Plain(Box::new(report))))
    }

    async fn custom(&self, options: &Options) -> Result<(Stored, Inside), DumpError> {
        let task = format!("dumping {}", self.session.facts.database.name);
        let (passed, pending, _) = self.stream(&task, self.pg_dump(options, None), false).await?;
        let (stored, list) = self.settle_custom(passed, pending).await?;
        Ok((stored, Inside::Listed(list)))
    }

    async fn directory(&self, options: &Options) -> Result<(Stored, Inside), DumpError> {
        let near = self
            .place
            .directory()
            .map_or_else(std::env::temp_dir, std::path::Path::to_path_buf);
        let io = |doing, path: &std::path::Path| {
            let path = path.to_path_buf();
            move |source| DumpError::from_io(doing, path, source)
        };
        let temporary = tempfile::Builder::new()
            .prefix(".pgmahout-dump-")
            .tempdir_in(&near)
            .map_err(io("make a temporary directory in", &near))?;
        let directory = temporary.path().join("dump");
        let mut running = Running::start(
            &self.pg_dump(options, Some(&directory)),
            Stdio::null(),
            Stdio::null(),
            self.reporter,
        )?;
        let progress = self.start(
            format!("dumping {}", self.session.facts.database.name),
            self.expected_bytes,
        );
        let status = loop {
            tokio::select! {
                status = running.wait() => break status.map_err(io("wait for", &self.programs.pg_dump))?,
                () = self.cancellation.cancelled() => {
                    running.terminate().await;
                    return Err(DumpError::Interrupted);
                }
                () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {
                    progress.set_position(bytes_in(&directory));
                }
            }
        };
        running.check(status).await?;
        progress.finish("");
        let listing = Program {
            name: "pg_restore",
            path: self.programs.pg_restore.clone(),
            arguments: vec![
                "--format=directory".into(),
                "--list".into(),
                directory.clone().into(),
            ],
            environment: Vec::new(),
        };
        let list = self.output_of(&listing).await?;
        let files = archive::files(&directory).map_err(io("read", &directory))?;
        let count = files.len();
        let pending = self.create().await?;
        let treatment = self.treatment.clone();
        let token = self.cancellation.clone();
        let total = bytes_in(&directory);
        let progress = self.start(format!("packing {}", self.name), Some(total));
        let work = tokio::task::spawn_blocking(move || {
            let mut outlet = Outlet::new(&treatment, pending).map_err(PumpError::Write)?;
            archive::pack(&files, &mut outlet, |length| {
                progress.advance(length);
                if token.is_cancelled() {
                    Err(io::Error::other("cancelled"))
                } else {
                    Ok(())
                }
            })
            .map_err(|error| {
                if token.is_cancelled() {
                    PumpError::Cancelled
                } else {
                    PumpError::Write(error)
                }
            })?;
            let done = outlet.finish().map_err(PumpError::Write)?;
            progress.finish("");
            Ok(done)
        });
        let (passed, pending) =
            joined(work.await).and_then(|done| done.map_err(|error| self.pump_error(error)))?;
        drop(temporary);
        let stored = self.settle(passed, pending, Look::Directory(count)).await?;
        Ok((stored, Inside::Listed(list)))
    }

    fn pg_dump(&self, options: &Options, directory: Option<&std::path::Path>) -> Program {
        Program {
            name: "pg_dump",
            path: self.programs.pg_dump.clone(),
            arguments: arguments::pg_dump(options, &self.session.snapshot.id, directory),
            environment: self.session.parameters().client_environment(),
        }
    }

    /// Runs a program and stores what it writes. Its status is known to be good on success.
    async fn stream(
        &self,
        task: &str,
        program: Program,
        scanned: bool,
    ) -> Result<(Passed, Pending, Option<ScanReport>), DumpError> {
        let pending = self.create().await?;
        let mut running = Running::start(&program, Stdio::null(), Stdio::piped(), self.reporter)?;
        let mut output = running.output()?;
        let progress = self.start(task.to_owned(), self.expected_bytes);
        let started = Instant::now();
        let treatment = self.treatment.clone();
        let token = self.cancellation.clone();
        let mut work = tokio::task::spawn_blocking(move || {
            let mut scan = scanned.then(Scan::new);
            let outcome = (|| {
                let mut outlet = Outlet::new(&treatment, pending).map_err(PumpError::Write)?;
                pump(&mut output, &mut outlet, &token, |bytes| {
                    if let Some(scan) = &mut scan {
                        scan.feed(bytes);
                    }
                    progress.advance(bytes.len() as u64);
                })?;
                outlet.finish().map_err(PumpError::Write)
            })();
            // The pipe goes back, so that it is closed only after the program was told to end: it would
            // complain about the broken pipe otherwise.
            (outcome, scan.map(Scan::finish), output, progress)
        });
        let done = tokio::select! {
            done = &mut work => done,
            () = self.cancellation.cancelled() => {
                running.terminate().await;
                work.await
            }
        };
        let (outcome, report, output, progress) = joined(done)?;
        if self.cancellation.is_cancelled() {
            running.terminate().await;
            return Err(DumpError::Interrupted);
        }
        if let Err(error @ (PumpError::Write(_) | PumpError::Cancelled)) = outcome {
            running.terminate().await;
            return Err(self.pump_error(error));
        }
        drop(output);
        let status = tokio::select! {
            status = running.wait() => status,
            () = self.cancellation.cancelled() => {
                running.terminate().await;
                return Err(DumpError::Interrupted);
            }
        };
        let status = status.map_err(|source| DumpError::from_io("wait for", program.path.clone(), source))?;
        running.check(status).await?;
        let (passed, pending) = outcome.map_err(|error| self.pump_error(error))?;
        progress.finish(&format!(
            "{}, {} stored, {:.1} s",
            Bytes::new(passed.content.bytes),
            Bytes::new(passed.stored.bytes),
            started.elapsed().as_secs_f64()
        ));
        Ok((passed, pending, report))
    }

    /// Makes the file durable where it is stored, reads it back from there and compares. What is not right is
    /// removed.
    async fn settle(&self, passed: Passed, pending: Pending, look: Look) -> Result<Stored, DumpError> {
        let written = joined(tokio::task::spawn_blocking(move || pending.complete()).await)??;
        match self.read_back(&passed, &written, look).await {
            Ok(()) => Ok(Stored { written, passed }),
            Err(error) => {
                written.discard(self.place).await;
                Err(error)
            }
        }
    }

    async fn read_back(&self, passed: &Passed, written: &Written, look: Look) -> Result<(), DumpError> {
        let reader = written.read_back(self.place, self.cancellation).await?;
        let progress = self.start(format!("reading back {}", self.name), Some(passed.content.bytes));
        let treatment = self.treatment.clone();
        let passed = *passed;
        let token = self.cancellation.clone();
        let work = tokio::task::spawn_blocking(move || {
            let outcome = read_back(reader, &treatment, &passed, look, &token, |count| {
                progress.advance(count);
            });
            if outcome.is_ok() {
                progress.finish("as written");
            }
            outcome
        });
        joined(work.await)?.map_err(|fault| match fault {
            Fault::Cancelled => DumpError::Interrupted,
            Fault::Wrong(what) => self.incomplete(&what),
        })
    }

    /// The same for a custom archive, which is read through pg_restore: its table of contents, and every
    /// block to its end.
    async fn settle_custom(&self, passed: Passed, pending: Pending) -> Result<(Stored, String), DumpError> {
        let program = |arguments: &[&str]| Program {
            name: "pg_restore",
            path: self.programs.pg_restore.clone(),
            arguments: arguments.iter().map(Into::into).collect(),
            environment: Vec::new(),
        };
        let list = program(&["--format=custom", "--list"]);
        let whole = program(&["--format=custom", "--file=/dev/null"]);
        let mut list = Running::start(&list, Stdio::piped(), Stdio::piped(), self.reporter)?;
        let mut whole = Running::start(&whole, Stdio::piped(), Stdio::null(), self.reporter)?;
        let inputs = vec![list.input()?, whole.input()?];
        let listed = read_text(list.output()?);
        let stored = match self.settle(passed, pending, Look::Custom(inputs)).await {
            Ok(stored) => stored,
            Err(error) => {
                list.terminate().await;
                whole.terminate().await;
                return Err(error);
            }
        };
        let verdict = async {
            for mut running in [list, whole] {
                let status = running
                    .wait()
                    .await
                    .map_err(|source| DumpError::from_io("wait for", &self.programs.pg_restore, source))?;
                running.check(status).await?;
            }
            joined(listed.await)?
                .map_err(|source| DumpError::from_io("read from", &self.programs.pg_restore, source))
        };
        match verdict.await {
            Ok(list) => Ok((stored, list)),
            Err(error) => {
                stored.written.discard(self.place).await;
                Err(error)
            }
        }
    }

    /// Runs a program that prints little.
    async fn output_of(&self, program: &Program) -> Result<String, DumpError> {
        let mut running = Running::start(program, Stdio::null(), Stdio::piped(), self.reporter)?;
        let text = read_text(running.output()?);
        let status = running
            .wait()
            .await
            .map_err(|source| DumpError::from_io("wait for", program.path.clone(), source))?;
        running.check(status).await?;
        joined(text.await)?.map_err(|source| DumpError::from_io("read from", program.path.clone(), source))
    }

    fn start(&self, name: String, total: Option<u64>) -> Box<dyn Progress> {
        self.reporter.start(Task::new(name, Unit::Bytes, total))
    }

    fn pump_error(&self, error: PumpError) -> DumpError {
        match error {
            PumpError::Cancelled => DumpError::Interrupted,
            PumpError::Write(source) => DumpError::writing(&self.place.describe_file(self.name), source),
            PumpError::Read(source) => DumpError::from_io("read the output of", "pg_dump", source),
        }
    }

    fn incomplete(&self, what: &str) -> DumpError {
        DumpError::ReadBack {
            file: self.place.describe_file(self.name),
            what: what.to_owned(),
        }
    }

    async fn create(&self) -> Result<Pending, DumpError> {
        self.place
            .create(self.name, self.overwrite, self.cancellation)
            .await
    }
}

/// The outcome of a blocking task; a panic in it goes on here.
fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, DumpError> {
    match outcome {
        Ok(value) => Ok(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => Err(DumpError::Interrupted),
        },
    }
}

fn read_text(mut output: File) -> tokio::task::JoinHandle<io::Result<String>> {
    tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        io::Read::read_to_end(&mut output, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    })
}

/// The bytes of the files in a directory; nothing when it is not there yet.
fn bytes_in(directory: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}
