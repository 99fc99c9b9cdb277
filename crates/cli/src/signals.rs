//! SIGINT and SIGTERM: the first asks, the second insists.

use pgmahout_types::diagnostic::Outcome;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

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
            if token.is_cancelled() {
                std::process::exit(i32::from(Outcome::Interrupted.exit_code()));
            }
            token.cancel();
        }
    });
    Ok(())
}
