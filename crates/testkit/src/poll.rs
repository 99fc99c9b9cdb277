//! Waiting for a state by looking at it: never by sleeping and hoping.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` returns true; panics with `what` when `timeout` has passed.
pub async fn until(timeout: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    value(timeout, what, async || condition().await.then_some(())).await;
}

/// Waits until `look` returns a value, and returns it; panics with `what` when `timeout` has passed.
pub async fn value<T>(timeout: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {timeout:?} in vain for: {what}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// [`until`] without a runtime: blocks the thread.
pub fn blocking_until(timeout: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {timeout:?} in vain for: {what}"
        );
        std::thread::sleep(PAUSE);
    }
}
