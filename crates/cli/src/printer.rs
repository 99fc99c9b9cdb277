//! The one printer. stdout is data; messages, progress and errors go to stderr.
//!
//! A closed pipe is not an error: once the reader has gone, printing becomes a no-op and the command
//! ends with status 0.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Palette {
    colored: bool,
}

impl Palette {
    /// No colours at all.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { colored: false }
    }

    fn new(choice: ColorChoice, terminal: bool) -> Self {
        let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colored = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !asked_not_to,
        };
        Self { colored }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colored {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Something is well.
    pub(crate) fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Something needs a look.
    pub(crate) fn caution(&self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Something is broken.
    pub(crate) fn bad(&self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Something is not known.
    pub(crate) fn unknown(&self, text: &str) -> String {
        self.paint("35", text)
    }

    /// A heading.
    pub(crate) fn strong(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Something of less weight.
    pub(crate) fn faint(&self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// How cells of a column stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Writes to the two streams.
#[derive(Debug)]
pub(crate) struct Printer {
    quiet: bool,
    json: bool,
    out: Palette,
    err: Palette,
    out_is_terminal: bool,
    reader_gone: AtomicBool,
    lost: OnceLock<io::Error>,
}

impl Printer {
    /// A printer for this process's streams.
    pub(crate) fn new(color: ColorChoice, quiet: bool, json: bool) -> Self {
        let out_is_terminal = io::stdout().is_terminal();
        Self {
            quiet,
            json,
            out: Palette::new(color, out_is_terminal),
            err: Palette::new(color, io::stderr().is_terminal()),
            out_is_terminal,
            reader_gone: AtomicBool::new(false),
            lost: OnceLock::new(),
        }
    }

    /// Whether JSON was asked for.
    pub(crate) fn wants_json(&self) -> bool {
        self.json
    }

    /// Whether stdout is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.out_is_terminal
    }

    /// Whether the reader of stdout has gone.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Relaxed)
    }

    /// The colours of stdout.
    pub(crate) fn palette(&self) -> &Palette {
        &self.out
    }

    /// Data, as it is.
    pub(crate) fn data(&self, text: &str) {
        if self.reader_gone.load(Ordering::Relaxed) {
            return;
        }
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // A reader that has seen enough is no failure; a full disk behind a redirection is.
            if error.kind() != io::ErrorKind::BrokenPipe {
                let _ = self.lost.set(error);
            }
            self.reader_gone.store(true, Ordering::Relaxed);
        }
    }

    /// Why output was lost, where it was.
    pub(crate) fn lost(&self) -> Option<Failure> {
        let error = self.lost.get()?;
        Some(
            Failure::caused_by("cannot write the result to standard output", error.to_string())
                .hint("see whether there is space where it is redirected to, and run the command again"),
        )
    }

    /// A line of data.
    pub(crate) fn line(&self, text: &str) {
        self.data(&format!("{text}\n"));
    }

    /// One JSON object, on several lines for a terminal and on one otherwise.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = if self.out_is_terminal {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        self.line(&text.map_err(|error| Failure::caused_by("cannot write the result as JSON", error))?);
        Ok(())
    }

    /// A table of the given columns, fitted to the terminal.
    pub(crate) fn table(&self, columns: &[(&str, Align)], rows: Vec<Vec<String>>) {
        self.data(&self.render_table(columns, rows));
    }

    /// The table as text, each line ended.
    pub(crate) fn render_table(&self, columns: &[(&str, Align)], rows: Vec<Vec<String>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.out_is_terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        table.set_header(
            columns
                .iter()
                .map(|(title, _)| Cell::new(self.out.strong(&title.to_uppercase()))),
        );
        for row in rows {
            table.add_row(row.into_iter().zip(columns).map(|(text, (_, align))| {
                Cell::new(text).set_alignment(match align {
                    Align::Left => CellAlignment::Left,
                    Align::Right => CellAlignment::Right,
                })
            }));
        }
        let mut text: String = table
            .lines()
            // The first column's padding on its left is no use without a border.
            .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end()))
            .collect::<Vec<_>>()
            .concat();
        if text.is_empty() {
            text.push('\n');
        }
        text
    }

    /// A message for the person at the terminal, on stderr; silent with `--quiet`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            Self::to_stderr(&format!("{text}\n"));
        }
    }

    /// What a question is about, on stderr; said even with `--quiet`.
    #[allow(clippy::unused_self, reason = "the printer is the one who prints")]
    pub(crate) fn say(&self, text: &str) {
        Self::to_stderr(&format!("{text}\n"));
    }

    /// A warning, on stderr; said even with `--quiet`.
    pub(crate) fn warn(&self, text: &str) {
        Self::to_stderr(&format!("{} {text}\n", self.err.caution("warning:")));
    }

    /// The failure of the command, on stderr.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            Self::to_stderr(&format!("{}\n", failure.to_json()));
        } else {
            Self::to_stderr(&failure.render(&self.err));
        }
    }

    fn to_stderr(text: &str) {
        // Nobody reads stderr any more: there is nowhere left to say so.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}
