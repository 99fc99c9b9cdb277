use proptest::prelude::*;

use super::*;

/// The definition, word by word.
fn reference(page: &[u8; BLOCK_SIZE], number: u32) -> u16 {
    let mut page = *page;
    page[8..10].fill(0);
    let mut sums = BASE_OFFSETS;
    for (at, word) in page.chunks_exact(4).enumerate() {
        let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
        sums[at % 32] = mix(sums[at % 32], word);
    }
    let folded = sums
        .into_iter()
        .fold(number, |all, sum| all ^ mix(mix(sum, 0), 0));
    u16::try_from(folded % 65_535 + 1).expect("at most 65,535")
}

fn page(seed: u64) -> Box<[u8; BLOCK_SIZE]> {
    let mut page = Box::new([0; BLOCK_SIZE]);
    let mut state = seed | 1;
    for byte in page.iter_mut() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 24) as u8;
    }
    page[UPPER_AT] = 1;
    page
}

fn seal(page: &mut [u8; BLOCK_SIZE], number: u32) {
    let sum = page_checksum(page, number);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
}

proptest! {
    #[test]
    fn the_vectors_give_what_the_definition_gives(seed: u64, number: u32) {
        let page = page(seed);
        let sum = page_checksum(&page, number);
        prop_assert_eq!(sum, reference(&page, number));
        prop_assert_ne!(sum, 0);
    }

    #[test]
    fn one_changed_bit_is_found(seed: u64, number: u32, bit in 0..BLOCK_SIZE * 8) {
        let mut page = page(seed);
        seal(&mut page, number);
        page[bit / 8] ^= 1 << (bit % 8);
        let mut found = Vec::new();
        verify(&page[..], number, &mut found);
        // Nothing is left to compare where the bit makes the page a new one.
        prop_assert!(found.len() == 1 || is_new(&page[..]));
    }
}

#[test]
fn a_page_in_another_place_or_another_segment_does_not_pass() {
    let mut page = page(7);
    seal(&mut page, block_number(2, 131_072, 5));
    let mut found = Vec::new();
    verify(&page[..], 2 * 131_072 + 5, &mut found);
    assert!(found.is_empty());
    for wrong in [5, 131_072 + 5, 2 * 131_072 + 6] {
        found.clear();
        verify(&page[..], wrong, &mut found);
        assert_eq!(found.len(), 1, "block {wrong}");
        assert_eq!(found[0].found, stored(&page[..]));
        assert_eq!(found[0].expected, page_checksum(&page, wrong));
    }
}

#[test]
fn many_pages_are_verified_at_once_and_new_ones_pass() {
    let mut blocks = vec![0; 5 * BLOCK_SIZE + 100];
    for index in [0, 1, 3, 4] {
        let mut page = page(index as u64);
        seal(&mut page, 100 + index as u32);
        blocks[index * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(&page[..]);
    }
    let mut found = Vec::new();
    verify(&blocks, 100, &mut found);
    assert!(found.is_empty(), "{found:?}");

    // pd_upper = 0 is what makes a page new, whatever else stands in it.
    blocks[2 * BLOCK_SIZE + 4000] = 1;
    verify(&blocks, 100, &mut found);
    assert!(found.is_empty(), "{found:?}");

    blocks[BLOCK_SIZE + 4000] ^= 1;
    blocks[4 * BLOCK_SIZE + 4000] ^= 1;
    blocks[5 * BLOCK_SIZE + 14] ^= 1;
    verify(&blocks, 100, &mut found);
    assert_eq!(found.iter().map(|bad| bad.index).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn block_numbers_wrap_as_those_of_postgresql_do() {
    assert_eq!(block_number(0, 131_072, 7), 7);
    assert_eq!(block_number(3, 131_072, 7), 393_223);
    assert_eq!(block_number(u32::MAX, 131_072, 0), 0_u32.wrapping_sub(131_072));
    // The last number wraps without a panic.
    let blocks = vec![0; 2 * BLOCK_SIZE];
    verify(&blocks, u32::MAX, &mut Vec::new());
}

/// `cargo test --release -p pgmahout-backup how_fast_pages -- --ignored --nocapture`
#[test]
#[ignore = "measures; prints GB/s"]
fn how_fast_pages_are_verified_and_hashed() {
    use std::time::Instant;

    use crate::physical::page::hash;

    const PAGES: usize = 8192;
    let mut blocks = Vec::with_capacity(PAGES * BLOCK_SIZE);
    for number in 0..PAGES {
        let mut page = page(number as u64);
        seal(&mut page, number as u32);
        blocks.extend_from_slice(&page[..]);
    }
    let zeroes = vec![0; blocks.len()];
    let mut found = Vec::new();
    let mut hashes = Vec::new();
    let measure = |what: &str, work: &mut dyn FnMut()| {
        let best = (0..10)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed()
            })
            .min()
            .expect("ten rounds");
        println!(
            "{what}: {:.1} GB/s",
            blocks.len() as f64 / best.as_secs_f64() / 1e9
        );
    };
    measure("checksums of pages", &mut || verify(&blocks, 0, &mut found));
    // What stays in the processor's cache, as a buffer that was just read does.
    measure("checksums of pages, 128 KiB at a time, cached", &mut || {
        for _ in 0..PAGES / 16 {
            verify(&blocks[..16 * BLOCK_SIZE], 0, &mut found);
        }
    });
    measure("keyed hashes of blocks", &mut || {
        hashes.clear();
        hash::hash_blocks(&[7; 32], &blocks, &mut hashes);
    });
    measure("looking for zeroes in zeroes", &mut || {
        assert!(hash::is_zero(&zeroes));
    });
    assert!(found.is_empty());
}
