//! The identity of blocks by their content.
//!
//! Blocks are compared by a hash under the repository's secret key, so that nobody who can write rows can
//! prepare two pages that would be taken for one. Eight bytes are enough: a block is only ever compared with
//! the block of the same number in the same file of an older backup, never looked up among all blocks.
//! BLAKE3 takes the eight chunks of a block side by side in one vector.

use pgmahout_types::repository::PageHash;

use super::BLOCK_SIZE;

/// Bytes that are looked at in one step of [`is_zero`].
const STRIDE: usize = 512;

/// Appends the hash of every block of `bytes` to `hashes`, in order. The last block may be short.
pub fn hash_blocks(key: &[u8; 32], bytes: &[u8], hashes: &mut Vec<PageHash>) {
    hashes.reserve(bytes.len().div_ceil(BLOCK_SIZE));
    hashes.extend(bytes.chunks(BLOCK_SIZE).map(|block| PageHash::of(key, block)));
}

/// Whether all bytes are zero. Data is mostly found to be none by its first bytes.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    // Without branches inside of a stride, so that it is done in vectors.
    strides
        .iter()
        .all(|stride| stride.iter().fold(0, |any, byte| any | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_block_has_its_own_hash_also_a_short_last_one() {
        let key = [3; 32];
        let mut bytes = vec![0; 3 * BLOCK_SIZE + 100];
        bytes[BLOCK_SIZE] = 1;
        let mut hashes = Vec::new();
        hash_blocks(&key, &bytes, &mut hashes);
        assert_eq!(hashes.len(), 4);
        assert_eq!(hashes[0], PageHash::of(&key, &[0; BLOCK_SIZE]));
        assert_eq!(hashes[0], hashes[2]);
        assert_ne!(hashes[0], hashes[1]);
        assert_eq!(hashes[3], PageHash::of(&key, &[0; 100]));
        assert_ne!(hashes[0], hashes[3]);
        hash_blocks(&key, &[], &mut hashes);
        assert_eq!(hashes.len(), 4);
    }

    #[test]
    fn another_key_gives_other_hashes() {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        hash_blocks(&[1; 32], &[9; BLOCK_SIZE], &mut one);
        hash_blocks(&[2; 32], &[9; BLOCK_SIZE], &mut other);
        assert_ne!(one, other);
    }

    proptest! {
        #[test]
        fn one_byte_makes_a_block_not_zero(length in 1_usize..3 * STRIDE, at: prop::sample::Index, byte in 1_u8..) {
            let mut bytes = vec![0; length];
            prop_assert!(is_zero(&bytes));
            bytes[at.index(length)] = byte;
            prop_assert!(!is_zero(&bytes));
        }
    }
}
