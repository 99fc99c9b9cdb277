//! What is in a dump in plain SQL, without a server: [`Scan`] takes the stream piece by piece and reports
//! its origin, its rows by table, whether it is complete, what it needs, and whatever would make psql do
//! something else than run SQL in the target. [`Rewriter`] passes a stream on without what must not reach
//! psql.
//!
//! Why that is needed: `psql` obeys backslash commands in its input, and a restore that runs into
//! `\connect production` goes on in production. A dump that holds any meta-command but those that pg_dump
//! writes is not restored; those that it writes (`\restrict`, `\unrestrict`) are taken out, and psql is
//! given a restriction of our own with a key that the dump cannot know (where psql is new enough to know
//! it), so that a command which this scanner would miss is refused by psql itself.
//!
//! Memory is bounded by what is reported: the names of tables, schemas, roles and extensions.

pub mod lexer;
pub mod names;
mod report;
mod rewrite;
#[cfg(test)]
mod tests;

pub use lexer::{Oddity, Position, Unfinished};
pub use names::TableName;
pub use report::{Meta, Origin, ScanReport, Section};
pub use rewrite::{Rewriter, Selection};

use lexer::Lexer;
use report::Builder;

/// A scan in progress.
#[derive(Debug)]
pub struct Scan {
    lexer: Lexer,
    builder: Builder,
}

impl Default for Scan {
    fn default() -> Self {
        Self::new()
    }
}

impl Scan {
    /// Begins.
    pub fn new() -> Self {
        Self {
            lexer: Lexer::new(),
            builder: Builder::new(),
        }
    }

    /// Takes the next piece of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.lexer.feed(bytes, &mut self.builder);
    }

    /// The stream has ended.
    pub fn finish(mut self) -> ScanReport {
        let unfinished = self.lexer.finish(&mut self.builder);
        self.builder.finish(self.lexer.position(), unfinished)
    }
}

/// Scans a stream that is in memory.
pub fn scan(bytes: &[u8]) -> ScanReport {
    let mut scan = Scan::new();
    scan.feed(bytes);
    scan.finish()
}
