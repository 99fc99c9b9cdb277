//! Cuts a stream of SQL into comments, statements, COPY data and meta-commands, as psql's own lexer would.
//!
//! The rules are those of `src/fe_utils/psqlscan.l` and of `handleCopyIn` in `src/bin/psql/copy.c`: what
//! matters is not what is good SQL, but what psql would take for a backslash command, for the end of a
//! statement and for the end of COPY data. Backslashes count as commands anywhere outside quotes, dollar
//! quotes, comments and COPY data, also in the middle of a line.
//!
//! Bytes are pushed in pieces of any size; the result does not depend on how they are cut. Memory is
//! bounded: of each statement the first [`HEAD_LENGTH`] bytes are kept (and the last [`TAIL_LENGTH`] of a
//! COPY statement longer than that), of a comment or meta-command the first [`LINE_LENGTH`].

use memchr::{memchr, memchr_iter, memchr2};

/// How much of a statement is kept for those who look at it.
pub const HEAD_LENGTH: usize = 16 * 1024;
/// How much of the end of a longer COPY statement is kept.
pub const TAIL_LENGTH: usize = 256;
/// How much of a comment or meta-command is kept.
pub const LINE_LENGTH: usize = 4096;
/// How much of an INSERT statement is kept: enough for the table's name.
const INSERT_HEAD_LENGTH: usize = 1024;
/// The longest word that is told from others.
const WORD_LENGTH: usize = 16;

/// A place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Bytes before it.
    pub offset: u64,
    /// The line, counted from one.
    pub line: u64,
}

/// What a piece of the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Whitespace and comments between statements.
    Between,
    /// A statement, its semicolon included, and comments in it.
    Statement,
    /// COPY data, from the line after the statement through the line `\.`.
    Data,
    /// A meta-command, without the line's end; or a byte order mark.
    Meta,
}

/// A statement that has ended.
#[derive(Debug)]
pub struct Statement<'a> {
    /// Where it begins.
    pub at: Position,
    /// Its first word in lower case; empty if it begins with something else or a longer word.
    pub keyword: &'a str,
    /// Its first bytes without comments; all of it unless `truncated`.
    pub head: &'a [u8],
    /// Whether there was more than `head`.
    pub truncated: bool,
    /// Of an INSERT statement: the parenthesised groups after VALUES (one for DEFAULT VALUES).
    pub rows: u64,
    /// Whether psql will read COPY data from the lines that follow.
    pub copies_from_stdin: bool,
}

/// What psql would not take, or what no dump holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// A NUL byte.
    Nul,
    /// Text on the same line after `COPY ... FROM stdin;`.
    TextAfterCopy,
    /// `COPY ... FROM stdin` with options that change how its data ends.
    CopyOptions,
}

/// In what the stream ended, where it should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    /// A statement without its semicolon.
    Statement,
    /// A quoted string, a quoted name or a dollar-quoted string.
    Quote,
    /// A `/* ... */` comment.
    Comment,
    /// COPY data without `\.`.
    Data,
}

/// Who is told what the lexer sees. Calls come in the order of the stream; every byte of the stream is
/// passed to [`Visit::bytes`] exactly once, and before a call that says that something began or ended, all
/// bytes before that point were passed.
pub trait Visit {
    /// A piece of the stream.
    fn bytes(&mut self, _class: Class, _bytes: &[u8]) {}
    /// A `--` comment outside statements, without the dashes and the line's end.
    fn comment(&mut self, _text: &[u8], _at: Position) {}
    /// The first word of a statement is complete.
    fn statement_started(&mut self, _keyword: &str, _at: Position) {}
    /// A statement ended with its semicolon.
    fn statement_ended(&mut self, _statement: &Statement<'_>) {}
    /// COPY data ended: so many lines before `\.`.
    fn data_ended(&mut self, _rows: u64) {}
    /// A meta-command, from its backslash to the end of the line. `line_start`: nothing precedes it on its
    /// line and no statement is open.
    fn meta(&mut self, _text: &[u8], _at: Position, _line_start: bool) {}
    /// Something odd.
    fn oddity(&mut self, _oddity: Oddity, _at: Position) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the very beginning, after so many bytes of a byte order mark.
    Start(usize),
    /// Outside quotes and comments.
    Code,
    /// In an unquoted word.
    Word,
    /// After one dash.
    Dash,
    /// After one slash.
    Slash,
    LineComment,
    /// In a comment; whether the last byte was a star, or a slash.
    BlockComment {
        depth: u32,
        star: bool,
        slash: bool,
    },
    /// In '...' without backslash escapes.
    Quote,
    /// In a string with backslash escapes; whether the last byte was an open backslash.
    EscapeQuote {
        backslash: bool,
    },
    /// After the closing quote of a string with backslash escapes.
    EscapeQuoteEnd {
        space: bool,
        carriage_return: bool,
    },
    /// In "...".
    Name,
    /// After a dollar sign, collecting the tag.
    DollarTag,
    /// In a dollar-quoted string; how many bytes of its end were matched.
    Dollar {
        matched: usize,
    },
    /// On the line after `COPY ... FROM stdin;`.
    CopyRest,
    /// In COPY data, at a line's start after so many bytes of `\.` and a carriage return.
    DataStart(u8),
    /// In COPY data, in a line.
    DataLine,
    /// In a meta-command.
    Meta,
}

/// The lexer.
#[derive(Debug)]
pub struct Lexer {
    state: State,
    position: Position,
    /// Whether nothing but whitespace was seen on this line (outside COPY data).
    line_start: bool,
    standard_strings: bool,
    statement: Option<Open>,
    word: Word,
    tag: Vec<u8>,
    line: Vec<u8>,
    line_at: Position,
    meta_line_start: bool,
    rows: u64,
}

/// The statement that is being read.
#[derive(Debug, Default)]
struct Open {
    at: Position,
    keyword: Option<Word>,
    head: Vec<u8>,
    tail: Vec<u8>,
    truncated: bool,
    depth: u32,
    begin_depth: u32,
    words: u32,
    /// The first letters of the first four words, where they are words of CREATE OR REPLACE FUNCTION or
    /// PROCEDURE; as psql keeps them.
    pattern: [u8; 4],
    values: bool,
    /// Whether the last word was DEFAULT.
    after_default: bool,
    rows: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Word {
    bytes: [u8; WORD_LENGTH],
    length: usize,
}

impl Word {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.length < WORD_LENGTH {
                self.bytes[self.length] = byte.to_ascii_lowercase();
            }
            self.length = self.length.saturating_add(1);
            if self.length > WORD_LENGTH {
                return;
            }
        }
    }

    fn as_str(&self) -> &str {
        self.bytes
            .get(..self.length)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

const fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

const fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// Bytes that mean nothing by themselves outside quotes, once a statement is open.
static DULL: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation)]
        let it = byte as u8;
        if starts_word(it) || matches!(it, b'\'' | b'"' | b'$' | b'-' | b'/' | b'\\' | b'(' | b')' | b';') {
            table[byte] = false;
        }
        byte += 1;
    }
    table
};

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c | 0x0b)
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl Default for Lexer {
    fn default() -> Self {
        Self::new()
    }
}

impl Lexer {
    /// A lexer at the beginning of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Start(0),
            position: Position { offset: 0, line: 1 },
            line_start: true,
            standard_strings: true,
            statement: None,
            word: Word::default(),
            tag: Vec::new(),
            line: Vec::new(),
            line_at: Position::default(),
            meta_line_start: false,
            rows: 0,
        }
    }

    /// Where the lexer is: behind all bytes that were passed on.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Takes the next piece of the stream.
    pub fn feed(&mut self, bytes: &[u8], visitor: &mut impl Visit) {
        Pass {
            lexer: self,
            bytes,
            from: 0,
            index: 0,
            visitor,
        }
        .run();
    }

    /// The stream has ended. `Some` when it ended in the middle of something.
    pub fn finish(&mut self, visitor: &mut impl Visit) -> Option<Unfinished> {
        let unfinished = match self.state {
            State::Meta => {
                visitor.meta(&self.line, self.line_at, self.meta_line_start);
                None
            }
            State::LineComment => {
                if self.statement.is_none() {
                    visitor.comment(&self.line, self.line_at);
                }
                None
            }
            State::Quote | State::EscapeQuote { .. } | State::Name | State::Dollar { .. } => {
                Some(Unfinished::Quote)
            }
            State::BlockComment { .. } => Some(Unfinished::Comment),
            State::CopyRest | State::DataStart(_) | State::DataLine => Some(Unfinished::Data),
            _ => None,
        };
        self.state = State::Code;
        unfinished.or(self.statement.take().map(|_| Unfinished::Statement))
    }
}

/// One call of [`Lexer::feed`].
struct Pass<'a, V> {
    lexer: &'a mut Lexer,
    bytes: &'a [u8],
    /// The first byte that was not passed on yet.
    from: usize,
    /// The byte to look at.
    index: usize,
    visitor: &'a mut V,
}

impl<V: Visit> Pass<'_, V> {
    fn run(mut self) {
        while let Some(&byte) = self.bytes.get(self.index) {
            match self.lexer.state {
                State::Start(matched) => self.start(matched, byte),
                State::Code => self.code(byte),
                State::Word => self.word(),
                State::Dash => self.dash(byte),
                State::Slash => self.slash(byte),
                State::LineComment => self.line_comment(),
                State::BlockComment { depth, star, slash } => self.block_comment(depth, star, slash, byte),
                State::Quote => self.quote(),
                State::EscapeQuote { backslash } => self.escape_quote(backslash),
                State::EscapeQuoteEnd {
                    space,
                    carriage_return,
                } => {
                    self.escape_quote_end(space, carriage_return, byte);
                }
                State::Name => self.name(),
                State::DollarTag => self.dollar_tag(byte),
                State::Dollar { matched } => self.dollar(matched, byte),
                State::CopyRest => self.copy_rest(byte),
                State::DataStart(matched) => self.data_start(matched, byte),
                State::DataLine => self.data_line(),
                State::Meta => self.meta(),
            }
        }
        self.flush();
    }

    /// Passes on what was looked at.
    fn flush(&mut self) {
        let piece = &self.bytes[self.from..self.index];
        if piece.is_empty() {
            return;
        }
        self.from = self.index;
        let class = match self.lexer.state {
            State::Start(_) | State::Meta => Class::Meta,
            State::DataStart(_) | State::DataLine => Class::Data,
            _ if self.lexer.statement.is_some() => Class::Statement,
            _ => Class::Between,
        };
        if let Some(index) = memchr(0, piece) {
            let at = self.position_of(piece, index);
            self.visitor.oddity(Oddity::Nul, at);
        }
        if class == Class::Statement && !self.in_comment() {
            keep(self.lexer.statement.as_mut().expect("the class says so"), piece);
        }
        let lines = memchr_iter(b'\n', piece).count() as u64;
        self.lexer.position.offset += piece.len() as u64;
        self.lexer.position.line += lines;
        self.visitor.bytes(class, piece);
    }

    fn position_of(&self, piece: &[u8], index: usize) -> Position {
        Position {
            offset: self.lexer.position.offset + index as u64,
            line: self.lexer.position.line + memchr_iter(b'\n', &piece[..index]).count() as u64,
        }
    }

    fn in_comment(&self) -> bool {
        matches!(self.lexer.state, State::LineComment | State::BlockComment { .. })
    }

    fn start(&mut self, matched: usize, byte: u8) {
        if BYTE_ORDER_MARK.get(matched) == Some(&byte) {
            self.index += 1;
            self.lexer.state = State::Start(matched + 1);
        } else {
            self.flush();
            self.lexer.state = State::Code;
        }
    }

    /// Outside quotes and comments.
    fn code(&mut self, byte: u8) {
        if self.lexer.statement.is_none() {
            if is_space(byte) {
                self.lexer.line_start = byte == b'\n';
                self.index += 1;
                return;
            }
            if !matches!(byte, b'-' | b'/' | b'\\') {
                self.open_statement();
            }
        }
        match byte {
            b'\\' => {
                self.flush();
                self.lexer.line.clear();
                self.lexer.line_at = self.lexer.position;
                self.lexer.meta_line_start = self.lexer.line_start && self.lexer.statement.is_none();
                self.lexer.state = State::Meta;
                return;
            }
            b'-' => self.lexer.state = State::Dash,
            b'/' => self.lexer.state = State::Slash,
            b'\'' => {
                self.note_no_keyword();
                self.lexer.state = if self.lexer.standard_strings {
                    State::Quote
                } else {
                    State::EscapeQuote { backslash: false }
                };
            }
            b'"' => {
                self.note_no_keyword();
                self.lexer.state = State::Name;
            }
            b'$' => {
                self.note_no_keyword();
                self.lexer.tag.clear();
                self.lexer.state = State::DollarTag;
            }
            b'(' => {
                self.note_no_keyword();
                let open = self.open();
                if open.values && open.depth == 0 {
                    open.rows += 1;
                }
                open.depth += 1;
            }
            b')' => {
                let open = self.open();
                open.depth = open.depth.saturating_sub(1);
            }
            b';' => {
                self.index += 1;
                let open = self.open();
                if open.depth == 0 && open.begin_depth == 0 {
                    self.end_statement();
                }
                return;
            }
            _ if starts_word(byte) => {
                self.lexer.word = Word::default();
                self.lexer.state = State::Word;
                return;
            }
            _ => {
                self.note_no_keyword();
                let rest = &self.bytes[self.index + 1..];
                let dull = rest
                    .iter()
                    .position(|byte| !DULL[usize::from(*byte)])
                    .unwrap_or(rest.len());
                self.index += dull;
            }
        }
        self.lexer.line_start = false;
        self.index += 1;
    }

    fn open(&mut self) -> &mut Open {
        if self.lexer.statement.is_none() {
            self.open_statement();
        }
        self.lexer.statement.as_mut().expect("it was just opened")
    }

    fn open_statement(&mut self) {
        self.flush();
        self.lexer.line_start = false;
        self.lexer.statement = Some(Open {
            at: self.lexer.position,
            ..Open::default()
        });
    }

    /// A statement that does not begin with a word.
    fn note_no_keyword(&mut self) {
        let open = self.open();
        if open.keyword.is_none() {
            open.keyword = Some(Word::default());
            let at = open.at;
            self.visitor_started(Word::default(), at);
        }
    }

    fn word(&mut self) {
        let rest = &self.bytes[self.index..];
        let length = rest
            .iter()
            .position(|byte| !continues_word(*byte))
            .unwrap_or(rest.len());
        self.lexer.word.push(&rest[..length]);
        self.index += length;
        let Some(&next) = self.bytes.get(self.index) else {
            return;
        };
        self.lexer.state = State::Code;
        let word = self.lexer.word;
        if next == b'\'' && word.as_str() == "e" {
            self.note_no_keyword();
            self.index += 1;
            self.lexer.state = State::EscapeQuote { backslash: false };
            return;
        }
        self.end_word(word);
    }

    /// As the rule `{identifier}` of psqlscan.l does, which keeps the semicolons of a function's
    /// `BEGIN ATOMIC ... END` inside the statement.
    fn end_word(&mut self, word: Word) {
        let open = self.open();
        let text = word.as_str();
        if open.words < 4 && matches!(text, "create" | "or" | "replace" | "function" | "procedure") {
            open.pattern[open.words as usize] = text.as_bytes()[0];
        }
        open.words = open.words.saturating_add(1);
        if open.depth == 0 {
            let is_routine = match open.pattern {
                [b'c', b'f' | b'p', ..] => true,
                [b'c', b'o', b'r', last] => matches!(last, b'f' | b'p'),
                _ => false,
            };
            match text {
                "begin" if is_routine => open.begin_depth += 1,
                "case" if is_routine && open.begin_depth > 0 => open.begin_depth += 1,
                "end" if is_routine => open.begin_depth = open.begin_depth.saturating_sub(1),
                "values" if !open.values => {
                    open.values = true;
                    open.rows = u64::from(open.after_default);
                }
                _ => {}
            }
            open.after_default = text == "default";
        }
        if open.keyword.is_none() {
            open.keyword = Some(word);
            let at = open.at;
            self.visitor_started(word, at);
        }
    }

    fn visitor_started(&mut self, word: Word, at: Position) {
        self.flush();
        self.visitor.statement_started(word.as_str(), at);
    }

    fn end_statement(&mut self) {
        self.flush();
        let mut open = self
            .lexer
            .statement
            .take()
            .expect("only called with an open statement");
        self.lexer.state = State::Code;
        if open.keyword.is_none() {
            open.keyword = Some(Word::default());
            self.visitor.statement_started("", open.at);
        }
        let keyword = open.keyword.unwrap_or_default();
        let from_stdin = match keyword.as_str() {
            "copy" => copy_from_stdin(if open.truncated { &open.tail } else { &open.head }),
            "set" => {
                if let Some(on) = super::names::standard_strings_setting(&open.head) {
                    self.lexer.standard_strings = on;
                }
                FromStdin::No
            }
            _ => FromStdin::No,
        };
        if from_stdin == FromStdin::Options {
            self.visitor.oddity(Oddity::CopyOptions, open.at);
        }
        let copies_from_stdin = from_stdin != FromStdin::No;
        self.visitor.statement_ended(&Statement {
            at: open.at,
            keyword: keyword.as_str(),
            head: &open.head,
            truncated: open.truncated,
            rows: open.rows,
            copies_from_stdin,
        });
        if copies_from_stdin {
            self.lexer.state = State::CopyRest;
        }
    }

    fn dash(&mut self, byte: u8) {
        if byte == b'-' {
            self.index += 1;
            self.flush_comment_start();
            self.lexer.state = State::LineComment;
            self.lexer.line.clear();
            self.lexer.line_at = self.lexer.position;
        } else {
            self.note_no_keyword();
            self.lexer.state = State::Code;
        }
    }

    /// Passes on the two bytes that begin a comment, which are no part of a statement's text.
    fn flush_comment_start(&mut self) {
        self.flush();
        if let Some(open) = &mut self.lexer.statement {
            let kept = if open.truncated {
                &mut open.tail
            } else {
                &mut open.head
            };
            kept.truncate(kept.len().saturating_sub(2));
        }
    }

    fn slash(&mut self, byte: u8) {
        if byte == b'*' {
            self.index += 1;
            self.flush_comment_start();
            self.lexer.state = State::BlockComment {
                depth: 1,
                star: false,
                slash: false,
            };
        } else {
            self.note_no_keyword();
            self.lexer.state = State::Code;
        }
    }

    /// Ends at a line feed or at a carriage return.
    fn line_comment(&mut self) {
        let rest = &self.bytes[self.index..];
        let end = memchr2(b'\n', b'\r', rest);
        let text = &rest[..end.unwrap_or(rest.len())];
        if self.lexer.statement.is_none() {
            keep_line(&mut self.lexer.line, text);
        }
        self.index += text.len();
        if end.is_some() {
            self.flush();
            self.lexer.state = State::Code;
            if self.lexer.statement.is_none() {
                let line = std::mem::take(&mut self.lexer.line);
                self.visitor.comment(&line, self.lexer.line_at);
                self.lexer.line = line;
            } else if let Some(open) = &mut self.lexer.statement {
                keep(open, b" ");
            }
        }
    }

    fn block_comment(&mut self, depth: u32, star: bool, slash: bool, byte: u8) {
        self.index += 1;
        let (depth, star, slash) = match byte {
            b'/' if star => (depth - 1, false, false),
            b'*' if slash => (depth + 1, false, false),
            b'*' => (depth, true, false),
            b'/' => (depth, false, true),
            _ => {
                let rest = &self.bytes[self.index..];
                self.index += memchr2(b'*', b'/', rest).unwrap_or(rest.len());
                (depth, false, false)
            }
        };
        self.lexer.state = State::BlockComment { depth, star, slash };
        if depth == 0 {
            self.flush();
            self.lexer.state = State::Code;
            if let Some(open) = &mut self.lexer.statement {
                keep(open, b" ");
            }
        }
    }

    fn quote(&mut self) {
        let rest = &self.bytes[self.index..];
        if let Some(end) = memchr(b'\'', rest) {
            self.index += end + 1;
            self.lexer.state = State::Code;
        } else {
            self.index = self.bytes.len();
        }
    }

    fn escape_quote(&mut self, backslash: bool) {
        if backslash {
            self.index += 1;
            self.lexer.state = State::EscapeQuote { backslash: false };
            return;
        }
        let rest = &self.bytes[self.index..];
        let Some(end) = memchr2(b'\'', b'\\', rest) else {
            self.index = self.bytes.len();
            return;
        };
        self.lexer.state = if rest[end] == b'\\' {
            State::EscapeQuote { backslash: true }
        } else {
            State::EscapeQuoteEnd {
                space: false,
                carriage_return: false,
            }
        };
        self.index += end + 1;
    }

    /// `''` stands for a quote; and a string goes on after whitespace with a line's end in it, which psql,
    /// working line by line, only sees where that end is a carriage return.
    fn escape_quote_end(&mut self, space: bool, carriage_return: bool, byte: u8) {
        match byte {
            b'\'' if !space || carriage_return => {
                self.index += 1;
                self.lexer.state = State::EscapeQuote { backslash: false };
            }
            b' ' | b'\t' | 0x0c => {
                self.index += 1;
                self.lexer.state = State::EscapeQuoteEnd {
                    space: true,
                    carriage_return,
                };
            }
            b'\r' => {
                self.index += 1;
                self.lexer.state = State::EscapeQuoteEnd {
                    space: true,
                    carriage_return: true,
                };
            }
            _ => self.lexer.state = State::Code,
        }
    }

    fn name(&mut self) {
        let rest = &self.bytes[self.index..];
        if let Some(end) = memchr(b'"', rest) {
            self.index += end + 1;
            self.lexer.state = State::Code;
        } else {
            self.index = self.bytes.len();
        }
    }

    fn dollar_tag(&mut self, byte: u8) {
        let first = self.lexer.tag.is_empty();
        if byte == b'$' {
            self.index += 1;
            self.lexer.tag.push(b'$');
            self.lexer.state = State::Dollar { matched: 0 };
        } else if starts_word(byte) || (!first && byte.is_ascii_digit()) {
            self.index += 1;
            self.lexer.tag.push(byte);
        } else if first {
            self.lexer.state = State::Code;
        } else {
            // No tag after all: what was collected is a word.
            let mut word = Word::default();
            word.push(&self.lexer.tag);
            self.lexer.word = word;
            self.lexer.state = State::Word;
        }
    }

    /// `tag` holds the tag and its closing dollar sign.
    fn dollar(&mut self, matched: usize, byte: u8) {
        if matched == 0 {
            let rest = &self.bytes[self.index..];
            let Some(start) = memchr(b'$', rest) else {
                self.index = self.bytes.len();
                return;
            };
            self.index += start + 1;
            self.lexer.state = State::Dollar { matched: 1 };
            return;
        }
        if self.lexer.tag[matched - 1] == byte {
            self.index += 1;
            self.lexer.state = if matched == self.lexer.tag.len() {
                State::Code
            } else {
                State::Dollar { matched: matched + 1 }
            };
        } else {
            // A dollar sign here may begin the real end; anything else is content.
            self.lexer.state = State::Dollar { matched: 0 };
        }
    }

    fn copy_rest(&mut self, byte: u8) {
        self.index += 1;
        if byte == b'\n' {
            self.flush();
            self.lexer.line_start = true;
            self.lexer.rows = 0;
            self.lexer.state = State::DataStart(0);
        } else if !is_space(byte) {
            self.flush();
            let at = self.lexer.position;
            self.visitor.oddity(Oddity::TextAfterCopy, at);
            let rest = &self.bytes[self.index..];
            self.index += memchr(b'\n', rest).unwrap_or(rest.len());
        }
    }

    /// The line that ends COPY data is `\.`, with a line feed or with carriage return and line feed
    /// (`handleCopyIn`).
    fn data_start(&mut self, matched: u8, byte: u8) {
        match (matched, byte) {
            (0, b'\\') | (1, b'.') | (2, b'\r') => {
                self.index += 1;
                self.lexer.state = State::DataStart(matched + 1);
            }
            (2 | 3, b'\n') => {
                self.index += 1;
                self.flush();
                self.lexer.state = State::Code;
                self.lexer.line_start = true;
                self.visitor.data_ended(self.lexer.rows);
            }
            _ => self.lexer.state = State::DataLine,
        }
    }

    fn data_line(&mut self) {
        let rest = &self.bytes[self.index..];
        let mut index = 0;
        // Whole lines in one go, as long as none begins with a backslash.
        while let Some(end) = memchr(b'\n', &rest[index..]) {
            index += end + 1;
            self.lexer.rows += 1;
            match rest.get(index) {
                Some(b'\\') | None => {
                    self.index += index;
                    self.lexer.state = State::DataStart(0);
                    return;
                }
                Some(_) => {}
            }
        }
        self.index = self.bytes.len();
    }

    fn meta(&mut self) {
        let rest = &self.bytes[self.index..];
        let end = memchr(b'\n', rest);
        let text = &rest[..end.unwrap_or(rest.len())];
        keep_line(&mut self.lexer.line, text);
        self.index += text.len();
        if end.is_some() {
            self.flush();
            self.lexer.state = State::Code;
            let line = std::mem::take(&mut self.lexer.line);
            self.visitor
                .meta(&line, self.lexer.line_at, self.lexer.meta_line_start);
            self.lexer.line = line;
        }
    }
}

/// Adds to what is kept of a statement.
fn keep(open: &mut Open, piece: &[u8]) {
    let is = |word: &str| open.keyword.is_some_and(|keyword| keyword.as_str() == word);
    let limit = if is("insert") {
        INSERT_HEAD_LENGTH
    } else {
        HEAD_LENGTH
    };
    let room = limit.saturating_sub(open.head.len());
    if piece.len() <= room && !open.truncated {
        open.head.extend_from_slice(piece);
        return;
    }
    let taken = if open.truncated { 0 } else { room };
    open.head.extend_from_slice(&piece[..taken]);
    if is("copy") {
        if !open.truncated {
            let from = open.head.len().saturating_sub(TAIL_LENGTH);
            open.tail = open.head[from..].to_vec();
        }
        let rest = &piece[taken..];
        open.tail
            .extend_from_slice(&rest[rest.len().saturating_sub(TAIL_LENGTH)..]);
        let excess = open.tail.len().saturating_sub(TAIL_LENGTH);
        open.tail.drain(..excess);
    }
    open.truncated = true;
}

fn keep_line(line: &mut Vec<u8>, text: &[u8]) {
    let room = LINE_LENGTH.saturating_sub(line.len());
    line.extend_from_slice(&text[..text.len().min(room)]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FromStdin {
    No,
    Plain,
    Options,
}

/// Whether a COPY statement reads the lines that follow it: `FROM stdin`, perhaps with options. What is
/// given is the whole statement without comments, or its end.
fn copy_from_stdin(statement: &[u8]) -> FromStdin {
    let words = super::names::tokens(statement);
    for (index, pair) in words.windows(2).enumerate() {
        let is = |word: &[u8], wanted: &str| word.eq_ignore_ascii_case(wanted.as_bytes());
        if is(pair[0], "from") && is(pair[1], "stdin") {
            return match words.get(index + 2) {
                None => FromStdin::Plain,
                Some(word) if *word == b";" => FromStdin::Plain,
                Some(_) => FromStdin::Options,
            };
        }
    }
    FromStdin::No
}
