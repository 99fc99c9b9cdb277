//! Reading on a thread, ahead of the consumer.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

const CHUNK: usize = 256 * 1024;
const CHUNKS_AHEAD: usize = 2;

enum Message {
    Bytes(Vec<u8>),
    End,
    Failed(io::Error),
}

/// Reads from another reader on a thread of its own, at most four chunks of 256 KiB ahead.
///
/// The first error ends the stream: it is returned once, and every read after it fails too. A panic of the
/// reader is an error. Dropping it closes the channel; the thread ends when its current read returns.
pub struct ReadAhead {
    chunks: Receiver<Message>,
    spent: std::sync::mpsc::Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    state: State,
}

enum State {
    Reading,
    Ended,
    Failed(io::ErrorKind),
}

impl ReadAhead {
    /// Starts reading `inner`.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn new<R: Read + Send + 'static>(inner: R) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(CHUNKS_AHEAD);
        let (spent, buffers) = std::sync::mpsc::channel();
        thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| pump(inner, &sender, &buffers)));
                let last = match result {
                    Ok(Ok(())) => Message::End,
                    Ok(Err(error)) => Message::Failed(error),
                    Err(_) => Message::Failed(io::Error::other("a reading thread panicked")),
                };
                // The consumer may be gone.
                let _ = sender.send(last);
            })?;
        Ok(Self {
            chunks,
            spent,
            current: Vec::new(),
            position: 0,
            state: State::Reading,
        })
    }
}

fn pump(mut inner: impl Read, sender: &SyncSender<Message>, buffers: &Receiver<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut chunk = buffers.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let mut filled = 0;
        let mut failure = None;
        while filled < CHUNK {
            match inner.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let ended = filled < CHUNK;
        chunk.truncate(filled);
        if filled > 0 && sender.send(Message::Bytes(chunk)).is_err() {
            return Ok(());
        }
        if let Some(error) = failure {
            return Err(error);
        }
        if ended {
            return Ok(());
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.position == self.current.len() {
            match self.state {
                State::Reading => {}
                State::Ended => return Ok(0),
                State::Failed(kind) => return Err(io::Error::new(kind, "an earlier read has failed")),
            }
            let message = self
                .chunks
                .recv()
                .unwrap_or_else(|_| Message::Failed(io::Error::other("a reading thread ended unexpectedly")));
            match message {
                Message::Bytes(bytes) => {
                    // The thread may have ended; then its buffers are not needed.
                    let _ = self.spent.send(std::mem::replace(&mut self.current, bytes));
                    self.position = 0;
                }
                Message::End => self.state = State::Ended,
                Message::Failed(error) => {
                    self.state = State::Failed(error.kind());
                    return Err(error);
                }
            }
        }
        let count = buffer.len().min(self.current.len() - self.position);
        buffer[..count].copy_from_slice(&self.current[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}
