//! The limit of bytes per second that all transfers of a repository share.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much of an unused past may be made up for.
const BURST: Duration = Duration::from_millis(100);
/// Bytes that pass at once where a transfer can be cut into pieces.
const PIECE: usize = 256 * 1024;

/// No limit, or one that clones share. A transfer waits before it begins or between its pieces; what cannot be
/// cut (an object put in one request) goes at full speed, and the next waits the longer.
#[derive(Debug, Clone, Default)]
pub(super) struct Throttle(Option<Arc<Limit>>);

#[derive(Debug)]
struct Limit {
    bytes_per_second: NonZeroU64,
    /// When everything that was let through will have passed at the limited speed.
    busy_until: Mutex<Instant>,
}

impl Limit {
    /// Lets bytes through; gives how long they have to wait.
    fn reserve(&self, now: Instant, bytes: u64) -> Duration {
        let duration = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*busy_until).max(now.checked_sub(BURST).unwrap_or(now));
        *busy_until = begin + duration;
        begin.saturating_duration_since(now)
    }
}

impl Throttle {
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self(bytes_per_second.map(|bytes_per_second| {
            Arc::new(Limit {
                bytes_per_second,
                busy_until: Mutex::new(Instant::now()),
            })
        }))
    }

    /// Waits until so many bytes may pass.
    pub(super) async fn take(&self, bytes: usize) {
        if let Some(limit) = &self.0 {
            let wait = limit.reserve(Instant::now(), bytes as u64);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// The same for a blocking thread.
    pub(super) fn take_blocking(&self, bytes: usize) {
        if let Some(limit) = &self.0 {
            let wait = limit.reserve(Instant::now(), bytes as u64);
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
        }
    }

    /// How much of `length` to transfer in one go.
    pub(super) fn piece(&self, length: usize) -> usize {
        if self.0.is_some() {
            length.min(PIECE)
        } else {
            length
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_until_those_before_them_have_passed() {
        let start = Instant::now();
        let limit = Limit {
            bytes_per_second: NonZeroU64::new(1000).unwrap(),
            busy_until: Mutex::new(start),
        };
        assert_eq!(limit.reserve(start, 2000), Duration::ZERO);
        assert_eq!(limit.reserve(start, 500), Duration::from_secs(2));
        let later = start + Duration::from_secs(1);
        assert_eq!(limit.reserve(later, 1), Duration::from_millis(1500));
        // A long rest is not saved up.
        let much_later = start + Duration::from_secs(1000);
        assert_eq!(limit.reserve(much_later, 100), Duration::ZERO);
        assert_eq!(limit.reserve(much_later, 1000), Duration::ZERO);
        assert_eq!(limit.reserve(much_later, 1000), Duration::from_secs(1));
    }

    #[test]
    fn without_a_limit_nothing_waits_and_nothing_is_cut() {
        let throttle = Throttle::default();
        throttle.take_blocking(usize::MAX);
        assert_eq!(throttle.piece(1 << 30), 1 << 30);
    }
}
