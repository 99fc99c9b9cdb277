//! One psql that restores: we send `BEGIN`, the dump, a question for the row counts, and `COMMIT` only when
//! the dump has ended well and the counts are right.
//!
//! psql's own `--single-transaction` is not used: it commits when its input ends, and an input that was cut
//! ends too. Here a cut leads to no `COMMIT`: psql sees the end of its input, disconnects, and the server
//! rolls back. The same happens when we are killed at any moment, since the pipe ends with us.
//!
//! psql runs under `\restrict` with a key of ours, so that no meta-command can take effect that the scanner
//! would have missed.
//!
//! Everything here blocks; run it on a thread for that.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use pgmahout_postgres::params::ConnectionParameters;
use tokio_util::sync::CancellationToken;

use super::super::read::{SqlStream, last_lines};
use super::super::scan::{Rewriter, ScanReport, Selection, TableName};
use super::counts::{self, CountRow};
use super::error::RestoreError;
use super::hints;
use super::tools::Tools;

const CHUNK: usize = 256 * 1024;

/// What is to be loaded, and how.
pub(crate) struct Load {
    /// psql's installation.
    pub(crate) tools: Tools,
    /// The database to load into.
    pub(crate) target: ConnectionParameters,
    /// The dump's description, for errors.
    pub(crate) what: String,
    /// What of it.
    pub(crate) selection: Selection,
    /// What the first pass saw: the second must see the same. `None` for a stream that is read once.
    pub(crate) before: Option<ScanReport>,
    /// The rows that must have arrived; `None`: those that the stream itself held.
    pub(crate) expected: Option<BTreeMap<TableName, u64>>,
    /// Whether the rows that were there before are to be added.
    pub(crate) add_present: bool,
    /// One transaction; otherwise every statement takes effect by itself.
    pub(crate) one_transaction: bool,
    /// Stops it.
    pub(crate) cancellation: CancellationToken,
}

/// What was loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Row counts as found before the commit; empty without a transaction.
    pub(crate) counts: Vec<CountRow>,
}

/// Something that gives SQL, and at its end says whether it was whole.
pub(crate) trait SqlSource: Send {
    /// Reads; 0 is the verified end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl SqlSource for SqlStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(self, buffer)
    }
}

/// Loads a stream of SQL.
pub(crate) fn load(load: &Load, source: &mut dyn SqlSource) -> Result<Loaded, RestoreError> {
    let mut session = Session::start(load)?;
    match session.run(load, source) {
        Ok(loaded) => Ok(loaded),
        Err(error) => Err(session.fail(load, error)),
    }
}

/// Why a session ended early.
enum Stop {
    /// psql is gone or refuses input: its stderr says why.
    Program,
    /// Something of ours.
    Ours(RestoreError),
}

impl From<RestoreError> for Stop {
    fn from(error: RestoreError) -> Self {
        Self::Ours(error)
    }
}

struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
    stderr: Option<JoinHandle<Vec<String>>>,
    nonce: String,
    committing: bool,
}

/// A word that no dump can know.
pub(crate) fn nonce() -> Result<String, RestoreError> {
    let mut bytes = [0; 24];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| RestoreError::Io {
            doing: "read",
            what: "/dev/urandom".to_owned(),
            source,
        })?;
    let mut word = String::with_capacity(48);
    for byte in bytes {
        let _ = write!(word, "{byte:02x}");
    }
    Ok(word)
}

impl Session {
    fn start(load: &Load) -> Result<Self, RestoreError> {
        let nonce = nonce()?;
        let target = load
            .target
            .with_application_name("pgmahout dump restore")
            .with_options_appended("-c standard_conforming_strings=on -c client_min_messages=warning -c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c lock_timeout=0");
        let mut command = Command::new(load.tools.program("psql"));
        command
            .args(["-X", "--quiet", "--no-align", "--tuples-only", "--no-password"])
            .args(["-v", "ON_ERROR_STOP=1", "-f", "-"])
            .env("LC_ALL", "C")
            .env_remove("PSQLRC")
            // A Ctrl-C at the terminal is ours to handle.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in target.client_environment() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // The encoding is the dump's to set.
        command.env_remove("PGCLIENTENCODING");
        let mut child = command.spawn().map_err(|source| RestoreError::Io {
            doing: "run",
            what: "psql".to_owned(),
            source,
        })?;
        let stdin = child.stdin.take().expect("it was piped");
        let stdout = child.stdout.take().expect("it was piped");
        let stderr = child.stderr.take().expect("it was piped");
        let (sender, answers) = sync_channel(1024);
        let prefix = format!("{nonce} ");
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            // What the dump's own statements return is of no interest, however long it is.
            while let Ok(count) = (&mut reader).take(64 * 1024).read_until(b'\n', &mut line) {
                if count == 0 {
                    return;
                }
                if let Some(answer) = line.strip_prefix(prefix.as_bytes()) {
                    let answer = String::from_utf8_lossy(answer).trim_end().to_owned();
                    if sender.send(answer).is_err() {
                        return;
                    }
                }
                line.clear();
            }
        });
        let stderr = std::thread::spawn(move || last_lines(stderr));
        Ok(Self {
            child,
            stdin: Some(stdin),
            answers,
            stderr: Some(stderr),
            nonce,
            committing: false,
        })
    }

    fn run(&mut self, load: &Load, source: &mut dyn SqlSource) -> Result<Loaded, Stop> {
        if load.tools.knows_restrict() {
            let line = format!("\\restrict {}\n", self.nonce);
            self.send(line.as_bytes())?;
        }
        let mut expected = load.expected.clone();
        if load.one_transaction {
            self.send(b"BEGIN;\n")?;
        }
        let present = match (&expected, load.add_present && load.one_transaction) {
            (Some(expected), true) => self.counts(&expected.keys().cloned().collect::<Vec<_>>())?,
            _ => BTreeMap::new(),
        };
        let report = self.pass_on(load, source)?;
        if let Some(before) = &load.before
            && *before != report
        {
            return Err(Stop::Ours(RestoreError::Damaged {
                what: load.what.clone(),
                why: "the file was changed while it was being restored".to_owned(),
            }));
        }
        if load.before.is_none()
            && let Some(error) = super::fitness::problems(&load.what, &report, 0)
                .into_iter()
                .next()
        {
            return Err(Stop::Ours(error));
        }
        if !load.one_transaction {
            self.end()?;
            return Ok(Loaded { counts: Vec::new() });
        }
        self.send(b"\nRESET SESSION AUTHORIZATION;\nSET LOCAL row_security = off;\n")?;
        let expected = expected.get_or_insert_with(|| {
            let section = report.sections.first();
            section
                .map(|section| counts::expected(section, &load.selection))
                .unwrap_or_default()
        });
        let found = self.counts(&expected.keys().cloned().collect::<Vec<_>>())?;
        let counts: Vec<CountRow> = expected
            .iter()
            .map(|(table, rows)| CountRow {
                table: table.clone(),
                expected: rows + present.get(table).copied().flatten().unwrap_or(0),
                found: found.get(table).copied().flatten(),
            })
            .collect();
        if !counts.iter().all(CountRow::matches) {
            return Err(Stop::Ours(RestoreError::Mismatch {
                rows: counts,
                aftermath: "everything was rolled back and the target is as it was",
            }));
        }
        check_cancelled(load)?;
        self.committing = true;
        let commit = format!("COMMIT;\nSELECT '{} committed';\n", self.nonce);
        self.send(commit.as_bytes())?;
        if self.answer()? != "committed" {
            return Err(Stop::Program);
        }
        self.committing = false;
        self.end()?;
        Ok(Loaded { counts })
    }

    /// Passes the dump on, rewritten.
    fn pass_on(&mut self, load: &Load, source: &mut dyn SqlSource) -> Result<ScanReport, Stop> {
        let mut rewriter = Rewriter::new(load.selection.clone());
        let mut buffer = vec![0; CHUNK];
        loop {
            check_cancelled(load)?;
            let count = source
                .read(&mut buffer)
                .map_err(|error| RestoreError::reading(&load.what, error))?;
            if count == 0 {
                break;
            }
            let out = rewriter.feed(&buffer[..count]);
            let stdin = self.stdin.as_mut().expect("open until the end");
            stdin.write_all(out).map_err(|_| Stop::Program)?;
            if load.before.is_none() {
                super::fitness::check_stream(&load.what, rewriter.report())?;
            }
        }
        if rewriter.late_rows() && !load.selection.after_rows.is_empty() {
            return Err(Stop::Ours(RestoreError::Refused {
                what: load.what.clone(),
                why: "rows come after the masks, which would not have seen them".to_owned(),
                hint: "everything was rolled back; please report this with the version of pg_dump".to_owned(),
            }));
        }
        let (out, report) = rewriter.finish();
        self.send(&out)?;
        Ok(report)
    }

    fn send(&mut self, text: &[u8]) -> Result<(), Stop> {
        let stdin = self.stdin.as_mut().expect("open until the end");
        stdin
            .write_all(text)
            .and_then(|()| stdin.flush())
            .map_err(|_| Stop::Program)
    }

    fn answer(&self) -> Result<String, Stop> {
        self.answers.recv().map_err(|_| Stop::Program)
    }

    /// The rows of tables, `None` for one that is not there.
    fn counts(&mut self, tables: &[TableName]) -> Result<BTreeMap<TableName, Option<u64>>, Stop> {
        let mut found = BTreeMap::new();
        // Whatever encoding the dump has chosen: our names are in this one.
        self.send(b"\nSET client_encoding = 'UTF8';\n")?;
        for chunk in tables.chunks(200) {
            let query = format!(
                "SELECT '{nonce} ' || q.n || ' ' || q.k FROM ({query}) AS q (n, k);\nSELECT '{nonce} end';\n",
                nonce = self.nonce,
                query = counts::kinds_query(chunk),
            );
            self.send(query.as_bytes())?;
            let kinds = self.numbered()?;
            let mut statements = String::new();
            for (index, table) in chunk.iter().enumerate() {
                found.insert(table.clone(), None);
                if let Some(kind) = kinds.get(&index).and_then(|kind| kind.chars().next()) {
                    let count = counts::count_from(table, kind);
                    let query = format!("SELECT '{} {index} ' || {count};", self.nonce);
                    if kinds.get(&index).is_some_and(|kind| kind.ends_with('!')) {
                        let _ = writeln!(
                            statements,
                            "SAVEPOINT pgmahout;\n{};\n{query}\nROLLBACK TO SAVEPOINT pgmahout;\nRELEASE SAVEPOINT pgmahout;",
                            counts::unforce(table)
                        );
                    } else {
                        let _ = writeln!(statements, "{query}");
                    }
                }
            }
            let _ = writeln!(statements, "SELECT '{} end';", self.nonce);
            self.send(statements.as_bytes())?;
            for (index, rows) in self.numbered()? {
                if let (Some(table), Ok(rows)) = (chunk.get(index), rows.parse()) {
                    found.insert(table.clone(), Some(rows));
                }
            }
        }
        Ok(found)
    }

    fn numbered(&self) -> Result<BTreeMap<usize, String>, Stop> {
        let mut rows = BTreeMap::new();
        loop {
            let answer = self.answer()?;
            if answer == "end" {
                return Ok(rows);
            }
            if let Some((number, value)) = answer.split_once(' ')
                && let Ok(number) = number.parse()
            {
                rows.insert(number, value.to_owned());
            }
        }
    }

    /// Ends the input and waits for a good end.
    fn end(&mut self) -> Result<(), Stop> {
        drop(self.stdin.take());
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(Stop::Program),
        }
    }

    /// Ends psql without a COMMIT, and says why.
    fn fail(mut self, load: &Load, stop: Stop) -> RestoreError {
        let pid = rustix::process::Pid::from_child(&self.child);
        if let Stop::Ours(_) = stop {
            // Cancels what the server is running for it; it then ends, as it stops at the first error.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        drop(self.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) {
            if std::time::Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let stderr = self
            .stderr
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        if load.cancellation.is_cancelled() && !self.committing {
            return RestoreError::Interrupted {
                aftermath: aftermath(load),
            };
        }
        match stop {
            Stop::Ours(error) => error,
            Stop::Program if self.committing && !stderr.iter().any(|line| line.contains("ERROR:")) => {
                RestoreError::CommitUnknown {
                    target: load.target.database.clone(),
                }
            }
            Stop::Program => {
                let hint = hints::for_lines(&stderr, Some(&load.target.database));
                RestoreError::ProgramFailed {
                    program: "psql",
                    target: Some(load.target.database.clone()),
                    stderr,
                    hint: hint.or_else(|| Some(format!("{}; read psql's message above", aftermath(load)))),
                }
            }
        }
    }
}

fn check_cancelled(load: &Load) -> Result<(), Stop> {
    if load.cancellation.is_cancelled() {
        return Err(Stop::Ours(RestoreError::Interrupted {
            aftermath: aftermath(load),
        }));
    }
    Ok(())
}

fn aftermath(load: &Load) -> &'static str {
    if load.one_transaction {
        "everything was rolled back and the target is as it was"
    } else {
        "without a transaction, what was restored so far stays in the target"
    }
}
