//! SIGINT and SIGTERM: the first asks, the second insists.
//!
//! While a question stands on the terminal the first insists: nothing has been changed yet, and nobody
//! would notice a cancelled token while waiting for a line.

use std::sync::atomic::{AtomicBool, Ordering};

use pgmahout_types::diagnostic::Outcome;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Whether a question stands on the terminal.
static ASKING: AtomicBool = AtomicBool::new(false);

/// A question stands on the terminal until this is dropped.
pub(crate) struct Asking;

impl Asking {
    /// The question is about to be asked.
    pub(crate) fn begin() -> Self {
        ASKING.store(true, Ordering::SeqCst);
        Self
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        ASKING.store(false, Ordering::SeqCst);
    }
}

/// Cancels the token at the first signal; at the second the process ends at once with status 130.
///
/// Must be called within the runtime.
pub(crate) fn cancel_on_signal(token: CancellationToken) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::caused_by("cannot listen for signals", error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if ASKING.load(Ordering::SeqCst) {
                let text = "\nerror: interrupted at the question\nhint: nothing was changed\n";
                let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            }
            if token.is_cancelled() || ASKING.load(Ordering::SeqCst) {
                std::process::exit(i32::from(Outcome::Interrupted.exit_code()));
            }
            token.cancel();
        }
    });
    Ok(())
}
