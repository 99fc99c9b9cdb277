//! What a page that fails its checksum means in a backup of a running server.
//!
//! The server writes pages while they are read, so that a page may be seen half old and half new. That does
//! no harm: whatever was written since the backup's start is in the WAL of the backup, as a whole page image
//! first. Such a page shows by one of these:
//!
//! - it passes when it is read again, or the file meanwhile ended before it;
//! - it has changed between two readings: somebody is writing it;
//! - its LSN lies within the backup: at or after the start, and not after the end.
//!
//! The last needs care. A damaged header may hold any LSN, and most numbers of 64 bits lie after the start.
//! No page on disk is newer than the WAL that the server has written, so an LSN after the end of the backup
//! is damage too. The end is known when the backup ends; until then the page is a [`Suspect`].
//!
//! What fits none of these is damaged on disk and is reported as a [`BadPage`].

use std::io;
use std::time::Duration;

use pgmahout_types::Lsn;

use super::BLOCK_SIZE;
use super::checksum;

/// How often a page is read again before its content is believed.
const READINGS: u32 = 4;
/// How long to wait before the second and each further new reading: a write of one page takes far less.
const PAUSE: Duration = Duration::from_millis(5);

/// A page that is damaged on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BadPage {
    /// Which block of its file.
    pub block: u32,
    /// The checksum that the page's bytes give.
    pub expected: u16,
    /// The checksum in its header.
    pub found: u16,
}

/// A page that fails its checksum and claims to have been written during the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Suspect {
    /// The page.
    pub page: BadPage,
    /// The LSN in its header.
    pub lsn: Lsn,
}

/// What became of a page that failed its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finding {
    /// It passes now: it had been read while it was written.
    Good,
    /// The file now ends before it: it was truncated, which the WAL will repeat.
    Gone,
    /// Another reading gave other bytes: it is being written.
    Changed,
    /// It says that it was written after the start; [`Suspect::settle`] it when the backup has ended.
    Suspect(Suspect),
    /// It is damaged.
    Bad(BadPage),
}

/// Reads pages of one file again.
pub trait PageSource {
    /// Reads block `block` of the file; returns how many bytes the file has there, less than a whole page
    /// only at its end.
    ///
    /// # Errors
    /// Where the file cannot be read.
    fn read_page(&mut self, block: u32, page: &mut [u8; BLOCK_SIZE]) -> io::Result<usize>;

    /// Waits for a write to end. Tests need not.
    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl PageSource for &std::fs::File {
    fn read_page(&mut self, block: u32, page: &mut [u8; BLOCK_SIZE]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < BLOCK_SIZE {
            let at = u64::from(block) * BLOCK_SIZE as u64 + filled as u64;
            match std::os::unix::fs::FileExt::read_at(*self, &mut page[filled..], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// Decides about a page that failed its checksum when it was first read.
///
/// `page` holds the bytes of that first reading as block `block` of its file and block `number` of its
/// relation's fork ([`checksum::block_number`]); `start` is where the backup's WAL begins. Afterwards `page`
/// holds what is to be stored: the newest bytes that were read. It is unchanged where the file has become
/// shorter ([`Finding::Gone`]).
///
/// # Errors
/// Where the page cannot be read again.
pub fn judge(
    source: &mut impl PageSource,
    page: &mut [u8; BLOCK_SIZE],
    block: u32,
    number: u32,
    start: Lsn,
) -> io::Result<Finding> {
    let mut again = [0; BLOCK_SIZE];
    let mut changed = false;
    for reading in 0..READINGS {
        if reading > 0 {
            source.pause(PAUSE);
        }
        if source.read_page(block, &mut again)? < BLOCK_SIZE {
            return Ok(Finding::Gone);
        }
        changed |= again != *page;
        page.copy_from_slice(&again);
        if checksum::is_new(page) || checksum::page_checksum(page, number) == checksum::stored(page) {
            return Ok(Finding::Good);
        }
    }
    if changed {
        return Ok(Finding::Changed);
    }
    Ok(judge_once(page, block, number, start))
}

/// Decides about a page that failed its checksum and cannot be read again: by its LSN alone.
pub fn judge_once(page: &[u8; BLOCK_SIZE], block: u32, number: u32, start: Lsn) -> Finding {
    let bad = BadPage {
        block,
        expected: checksum::page_checksum(page, number),
        found: checksum::stored(page),
    };
    let lsn = page_lsn(page);
    if lsn >= start {
        Finding::Suspect(Suspect { page: bad, lsn })
    } else {
        Finding::Bad(bad)
    }
}

impl Suspect {
    /// Decides when the backup has ended: the page is damaged after all where its LSN lies after `end`, the
    /// end of the WAL when the last page had been read. The LSN of `pg_backup_stop` is one such.
    pub fn settle(self, end: Lsn) -> Option<BadPage> {
        (self.lsn > end).then_some(self.page)
    }
}

/// The LSN in the header of a page (`pd_lsn`, `PageXLogRecPtr` in `src/include/storage/bufpage.h`): the upper
/// half first, each in the machine's byte order.
pub fn page_lsn(page: &[u8; BLOCK_SIZE]) -> Lsn {
    let half = |at: usize| {
        u64::from(u32::from_le_bytes([
            page[at],
            page[at + 1],
            page[at + 2],
            page[at + 3],
        ]))
    };
    Lsn::new(half(0) << 32 | half(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Lsn = Lsn::new(0x300_0028);
    const END: Lsn = Lsn::new(0x500_0000);

    /// Gives these readings in turn, the last one for ever.
    struct Readings(Vec<Option<[u8; BLOCK_SIZE]>>, u32);

    impl PageSource for Readings {
        fn read_page(&mut self, _: u32, page: &mut [u8; BLOCK_SIZE]) -> io::Result<usize> {
            let at = usize::try_from(self.1)
                .expect("few readings")
                .min(self.0.len() - 1);
            self.1 += 1;
            Ok(self.0[at].map_or(100, |bytes| {
                *page = bytes;
                BLOCK_SIZE
            }))
        }

        fn pause(&mut self, _: Duration) {}
    }

    fn good(lsn: u64) -> [u8; BLOCK_SIZE] {
        let mut page = [7; BLOCK_SIZE];
        page[0..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        let sum = checksum::page_checksum(&page, 5);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn bad(lsn: u64) -> [u8; BLOCK_SIZE] {
        let mut page = good(lsn);
        page[6000] ^= 1;
        page
    }

    fn judged(
        first: &[u8; BLOCK_SIZE],
        readings: Vec<Option<[u8; BLOCK_SIZE]>>,
    ) -> (Finding, [u8; BLOCK_SIZE]) {
        let mut page = *first;
        let finding = judge(&mut Readings(readings, 0), &mut page, 5, 5, START).expect("readings work");
        (finding, page)
    }

    #[test]
    fn a_page_that_passes_when_read_again_is_good_and_its_new_bytes_count() {
        let (finding, page) = judged(&bad(1), vec![Some(good(2))]);
        assert_eq!(finding, Finding::Good);
        assert_eq!(page, good(2));
        // Also when only the last reading passes.
        let torn = vec![Some(bad(1)), Some(bad(1)), Some(bad(1)), Some(good(2))];
        assert_eq!(judged(&bad(1), torn).0, Finding::Good);
    }

    #[test]
    fn a_page_behind_the_new_end_of_the_file_is_gone() {
        let (finding, page) = judged(&bad(1), vec![None]);
        assert_eq!(finding, Finding::Gone);
        assert_eq!(page, bad(1));
    }

    #[test]
    fn a_page_that_changes_between_readings_is_being_written() {
        let mut other = bad(1);
        other[7000] ^= 1;
        assert_eq!(judged(&bad(1), vec![Some(other)]).0, Finding::Changed);
    }

    #[test]
    fn a_page_older_than_the_backup_that_stays_wrong_is_bad() {
        let page = bad(START.as_u64() - 1);
        let Finding::Bad(found) = judged(&page, vec![Some(page)]).0 else {
            panic!("not bad")
        };
        assert_eq!(found.block, 5);
        assert_eq!(found.found, checksum::stored(&page));
        assert_eq!(found.expected, checksum::page_checksum(&page, 5));
    }

    #[test]
    fn an_lsn_within_the_backup_is_tolerated_and_one_from_the_future_is_damage() {
        for (lsn, damaged) in [
            (START.as_u64(), false),
            (END.as_u64(), false),
            (END.as_u64() + 1, true),
            (0x0707_0707_0707_0707, true),
            (u64::MAX, true),
        ] {
            let page = bad(lsn);
            let Finding::Suspect(suspect) = judged(&page, vec![Some(page)]).0 else {
                panic!("no suspect")
            };
            assert_eq!(suspect.lsn, Lsn::new(lsn));
            assert_eq!(suspect.settle(END).is_some(), damaged, "{lsn:X}");
        }
    }

    #[test]
    fn a_real_file_is_read_again_where_the_page_lies() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("16384");
        let mut bytes = vec![0; 5 * BLOCK_SIZE];
        bytes.extend_from_slice(&good(1));
        std::fs::write(&path, &bytes).expect("written");
        let file = std::fs::File::open(&path).expect("opened");
        let mut page = bad(1);
        assert_eq!(
            judge(&mut &file, &mut page, 5, 5, START).expect("read"),
            Finding::Good
        );
        assert_eq!(page, good(1));
        assert_eq!(
            judge(&mut &file, &mut bad(1), 6, 6, START).expect("read"),
            Finding::Gone
        );
    }
}
