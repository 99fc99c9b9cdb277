//! The stream of archives as something to read from.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// What comes from the session.
#[derive(Debug)]
pub(super) enum Event {
    /// An archive begins.
    Archive(String),
    /// Bytes of it.
    Data(Bytes),
    /// Everything was sent.
    End,
}

/// Reads one archive after the other.
#[derive(Debug)]
pub(super) struct Tape {
    events: mpsc::Receiver<Event>,
    rest: Bytes,
    /// What ended the archive.
    next: Option<Event>,
    /// Whether the stream was cut before its end.
    cut: bool,
}

impl Tape {
    /// Nothing has been read yet.
    pub(super) fn new(events: mpsc::Receiver<Event>) -> Self {
        Self {
            events,
            rest: Bytes::new(),
            next: None,
            cut: false,
        }
    }

    /// Whether the stream was cut before its end: whoever fed it says why.
    pub(super) fn was_cut(&self) -> bool {
        self.cut
    }

    /// Goes to the next archive, past what is left of the last one; gives its name, or `None` at the end of all.
    ///
    /// # Errors
    ///
    /// Where the stream was cut.
    pub(super) fn next_archive(&mut self) -> io::Result<Option<String>> {
        loop {
            self.rest.clear();
            match self.next.take() {
                Some(Event::Archive(name)) => return Ok(Some(name)),
                Some(Event::End) => return Ok(None),
                Some(Event::Data(_)) | None => self.advance()?,
            }
        }
    }

    /// Takes the next event.
    fn advance(&mut self) -> io::Result<()> {
        match self.events.blocking_recv() {
            Some(Event::Data(bytes)) => self.rest = bytes,
            Some(event) => self.next = Some(event),
            None => {
                self.cut = true;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }
}

impl Read for Tape {
    /// Ends where the archive ends.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            if self.next.is_some() {
                return Ok(0);
            }
            self.advance()?;
        }
        let count = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tape(events: Vec<Event>) -> Tape {
        let (sender, receiver) = mpsc::channel(16);
        for event in events {
            sender.try_send(event).expect("there is room");
        }
        Tape::new(receiver)
    }

    fn data(bytes: &'static [u8]) -> Event {
        Event::Data(Bytes::from_static(bytes))
    }

    #[test]
    fn archives_are_read_one_after_the_other() {
        let mut tape = tape(vec![
            Event::Archive("1.tar".to_owned()),
            data(b"ab"),
            data(b""),
            data(b"cde"),
            Event::Archive("2.tar".to_owned()),
            Event::Archive("base.tar".to_owned()),
            data(b"skipped"),
            Event::End,
        ]);
        let mut content = Vec::new();
        assert_eq!(tape.next_archive().expect("one").as_deref(), Some("1.tar"));
        tape.read_to_end(&mut content).expect("an end");
        assert_eq!(content, b"abcde");
        assert_eq!(tape.next_archive().expect("one").as_deref(), Some("2.tar"));
        assert_eq!(tape.read(&mut [0; 8]).expect("an end"), 0);
        assert_eq!(tape.next_archive().expect("one").as_deref(), Some("base.tar"));
        assert_eq!(tape.next_archive().expect("an end"), None);
        assert!(!tape.was_cut());
    }

    #[test]
    fn a_stream_that_was_cut_is_no_end() {
        let mut tape = tape(vec![Event::Archive("base.tar".to_owned()), data(b"ab")]);
        tape.next_archive().expect("one");
        let mut content = Vec::new();
        tape.read_to_end(&mut content).expect_err("it was cut");
        assert!(tape.was_cut());
        tape.next_archive().expect_err("it was cut");
    }
}
