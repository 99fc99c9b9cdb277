//! Memory that is used again: what the system gives anew it clears first, and for every page there is a fault.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// So many buffers are kept at most.
const MOST: usize = 12;

/// Buffers of files and objects that are done with. Cheap to clone; the clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers {
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// An empty buffer with room for so many bytes, used before where there is one.
    pub(super) fn take(&self, capacity: usize) -> Vec<u8> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = kept
            .iter()
            .enumerate()
            .filter(|(_, buffer)| buffer.capacity() >= capacity);
        let smallest = fitting
            .min_by_key(|(_, buffer)| buffer.capacity())
            .map(|(at, _)| at);
        match smallest {
            Some(at) => kept.swap_remove(at),
            None => Vec::with_capacity(capacity),
        }
    }

    /// Takes back the memory of bytes that nobody else holds.
    pub(super) fn give(&self, bytes: Bytes) {
        let Ok(mut bytes) = bytes.try_into_mut() else {
            return;
        };
        // So that nothing is copied.
        bytes.clear();
        let buffer = Vec::from(bytes);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST && buffer.capacity() > 0 {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_when_nobody_holds_it() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1000);
        first.extend_from_slice(&[7; 900]);
        let address = first.as_ptr();
        let bytes = Bytes::from(first);
        let held = bytes.clone();
        buffers.give(bytes);
        let other = buffers.take(10);
        assert_ne!(other.as_ptr(), address, "somebody still reads it");
        assert_eq!(held[..], [7; 900]);
        buffers.give(held);
        let large = buffers.take(5000);
        assert_ne!(large.as_ptr(), address, "it is too small");
        let again = buffers.take(1000);
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
    }
}
