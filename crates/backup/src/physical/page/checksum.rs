//! PostgreSQL's checksum of a data page (`src/include/storage/checksum_impl.h`).
//!
//! A page is a table of 32 columns of 32-bit words. Every column is folded by a variant of FNV-1a into a
//! sum of its own; the sums are mixed twice more, folded together, and the number of the block goes in, so
//! that a page which lies in the wrong place does not pass. The columns are independent of each other, which
//! lets the compiler use the widest vectors of the processor: the code is plain, and is compiled several
//! times for the instruction sets that are chosen among when it runs.

#![expect(
    clippy::inline_always,
    reason = "only what is inlined into the dispatched closure is compiled for its instruction set"
)]

use super::BLOCK_SIZE;

/// Independent sums, which are also the columns of a page (`N_SUMS`).
const SUMS: usize = 32;
/// Bytes of one row of the table.
const ROW_BYTES: usize = SUMS * 4;
/// The prime of FNV-1a of 32 bits (`FNV_PRIME`).
const PRIME: u32 = 16_777_619;

/// What every sum begins with (`checksumBaseOffsets`). Part of the format of a page.
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Where the header keeps the checksum (`pd_checksum` in `src/include/storage/bufpage.h`), in the machine's
/// byte order. All machines that are supported are little-endian.
const CHECKSUM_AT: usize = 8;
/// Where the header keeps the end of the free space (`pd_upper`), zero on a page that was never filled.
const UPPER_AT: usize = 14;

/// A page whose checksum is not the one that its bytes give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mismatch {
    /// Which block of the bytes that were given, counted from zero.
    pub index: usize,
    /// What the bytes give: what should stand in the header.
    pub expected: u16,
    /// What stands in the header.
    pub found: u16,
}

/// The number of a block within its relation's fork, which goes into the checksum: files of a relation hold
/// `segment_blocks` blocks each.
///
/// Wraps as PostgreSQL's own number of 32 bits does; a relation has fewer blocks than that.
pub fn block_number(segment: u32, segment_blocks: u32, block: u32) -> u32 {
    segment.wrapping_mul(segment_blocks).wrapping_add(block)
}

/// Whether a page was never filled (`PageIsNew`): it has no checksum yet.
///
/// # Panics
/// When `page` is shorter than a page header.
pub fn is_new(page: &[u8]) -> bool {
    page[UPPER_AT] == 0 && page[UPPER_AT + 1] == 0
}

/// The checksum in the header of a page.
///
/// # Panics
/// When `page` is shorter than a page header.
pub fn stored(page: &[u8]) -> u16 {
    u16::from_le_bytes([page[CHECKSUM_AT], page[CHECKSUM_AT + 1]])
}

/// The checksum of one page as block `number` of its relation's fork (`pg_checksum_page`); never zero.
///
/// The field of the checksum itself counts as zero. New pages have none: ask [`is_new`] first.
pub fn page_checksum(page: &[u8; BLOCK_SIZE], number: u32) -> u16 {
    let mut result = 0;
    pulp::Arch::new().dispatch(|| result = one(page, number));
    result
}

/// Verifies the checksums of all whole pages in `blocks`, of which the first is block `first` of its
/// relation's fork (see [`block_number`]). New pages pass. Bytes behind the last whole page are not looked at.
///
/// Mismatches are appended to `found`, in order. Nothing is allocated where all pages are good.
pub fn verify(blocks: &[u8], first: u32, found: &mut Vec<Mismatch>) {
    pulp::Arch::new().dispatch(|| {
        let (pages, _) = blocks.as_chunks::<BLOCK_SIZE>();
        let mut number = first;
        for (index, page) in pages.iter().enumerate() {
            if !is_new(page) {
                let (expected, stored) = (one(page, number), stored(page));
                if expected != stored {
                    found.push(Mismatch {
                        index,
                        expected,
                        found: stored,
                    });
                }
            }
            number = number.wrapping_add(1);
        }
    });
}

/// One round of one column.
#[inline(always)]
fn mix(sum: u32, word: u32) -> u32 {
    let both = sum ^ word;
    both.wrapping_mul(PRIME) ^ (both >> 17)
}

/// Folds one row of the page into the sums.
#[inline(always)]
fn fold(sums: &mut [u32; SUMS], row: &[u8; ROW_BYTES]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = mix(*sum, u32::from_le_bytes(*word));
    }
}

/// The checksum of one page.
#[inline(always)]
fn one(page: &[u8; BLOCK_SIZE], number: u32) -> u16 {
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    let mut sums = BASE_OFFSETS;
    // The first row holds the checksum, which counts as zero.
    let mut header = rows[0];
    header[CHECKSUM_AT] = 0;
    header[CHECKSUM_AT + 1] = 0;
    fold(&mut sums, &header);
    for row in &rows[1..] {
        fold(&mut sums, row);
    }
    let mut folded = number;
    for sum in sums {
        folded ^= mix(mix(sum, 0), 0);
    }
    // One to 65,535: zero stays free for pages without a checksum.
    (folded % 65_535) as u16 + 1
}

#[cfg(test)]
mod tests;
