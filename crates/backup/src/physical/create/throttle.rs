//! The limit on how fast files are read, shared by all readers.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets so many bytes a second pass, without saving up what was not used.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_second: Option<u64>,
    next: Mutex<Instant>,
}

impl Throttle {
    /// `None` lets everything pass.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the turn of so many bytes.
    pub(super) fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let wait = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let turn = (*next).max(now);
            *next = turn + Duration::from_secs_f64(bytes as f64 / rate as f64);
            turn - now
        };
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_stays_under_the_limit() {
        let throttle = Throttle::new(Some(10_000_000));
        let begun = Instant::now();
        for _ in 0..11 {
            throttle.take(100_000);
        }
        assert!(begun.elapsed() >= Duration::from_millis(100));
        Throttle::new(None).take(usize::MAX);
    }
}
