//! Tablespaces that the WAL makes, before recovery does.
//!
//! The WAL says where a tablespace lies, as an absolute path, and replay makes the link and writes into it
//! (`create_tablespace_directories` in `src/backend/commands/tablespace.c`). `--tablespace` moves those that were
//! there when the backup was taken; one that was created later lies where it lay. On the machine of the server that
//! still runs, recovery of a copy would then write into that server's files. So while a server on this machine uses
//! the directory, an archive recovery does not get such a record: it gets the WAL before it, where a target may lie.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use pgmahout_types::wal::WalPageHeader;

/// Bytes of the header of every page of a segment but the first (`SizeOfXLogShortPHD`).
const PAGE_HEADER: usize = 24;
/// Bytes of the header of a record (`SizeOfXLogRecord`).
const RECORD_HEADER: usize = 24;
/// Records begin at such borders (`MAXALIGN`).
const ALIGNMENT: usize = 8;
/// `RM_TBLSPC_ID`: its place in `src/include/access/rmgrlist.h`, which has not changed since it was made.
const TABLESPACES: u8 = 5;
/// `XLOG_TBLSPC_CREATE` of `src/include/commands/tablespace.h`, without the bits that are not the manager's own.
const CREATE: u8 = 0;
/// `XLP_FIRST_IS_CONTRECORD` of `src/include/access/xlog_internal.h`.
const CONTINUED: u16 = 1;
/// The longest that such a record can be: its path has less than `MAXPGPATH` bytes.
const LONGEST: usize = 2048;

/// A tablespace that a segment makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MadeTablespace {
    /// Its number.
    pub(super) oid: u32,
    /// Where it lies.
    pub(super) location: PathBuf,
    /// Where in the segment its record begins.
    pub(super) at: usize,
}

/// The tablespaces outside the data directory that are made by records which lie in this segment. A record that goes
/// on in the next segment is not seen. What is no WAL ends the search: recovery ends there too.
pub(super) fn made_by(segment: &[u8]) -> Vec<MadeTablespace> {
    let Ok(header) = WalPageHeader::parse(segment) else {
        return Vec::new();
    };
    let mut reader = Reader {
        segment,
        page: header.block_size as usize,
        magic: header.magic,
        first: header.address.as_u64(),
        at: WalPageHeader::LENGTH,
    };
    let continued = u16::from_le_bytes([segment[2], segment[3]]) & CONTINUED != 0;
    let mut made = Vec::new();
    if continued && reader.skip(header.remaining as usize).is_none() {
        return made;
    }
    while reader.record(&mut made).is_some() {}
    made
}

/// Walks over the records of a segment.
struct Reader<'a> {
    segment: &'a [u8],
    page: usize,
    magic: u16,
    /// The position of the segment.
    first: u64,
    at: usize,
}

impl Reader<'_> {
    /// Steps over the header of a page, where one begins; how much is left of the page.
    fn enter(&mut self) -> Option<usize> {
        let inside = self.at % self.page;
        if inside != 0 {
            return Some(self.page - inside);
        }
        let header = self.segment.get(self.at..self.at + PAGE_HEADER)?;
        let address = u64::from_le_bytes(header[8..16].try_into().ok()?);
        let is_ours = u16::from_le_bytes([header[0], header[1]]) == self.magic
            && address == self.first + self.at as u64;
        self.at += PAGE_HEADER;
        is_ours.then_some(self.page - PAGE_HEADER)
    }

    /// Steps over bytes of a record.
    fn skip(&mut self, mut count: usize) -> Option<()> {
        while count > 0 {
            let step = self.enter()?.min(count);
            self.at += step;
            count -= step;
        }
        Some(())
    }

    /// Reads bytes of a record.
    fn read(&mut self, mut count: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(count);
        while count > 0 {
            let step = self.enter()?.min(count);
            bytes.extend_from_slice(self.segment.get(self.at..self.at + step)?);
            self.at += step;
            count -= step;
        }
        Some(bytes)
    }

    /// Reads the header of a record, which mostly lies in one page.
    fn header(&mut self) -> Option<[u8; RECORD_HEADER]> {
        if self.enter()? < RECORD_HEADER {
            return self.read(RECORD_HEADER)?.try_into().ok();
        }
        let header = self.segment.get(self.at..)?.first_chunk()?;
        self.at += RECORD_HEADER;
        Some(*header)
    }

    /// The next record, and the tablespace that it makes, if it makes one. `None` at the end.
    fn record(&mut self, made: &mut Vec<MadeTablespace>) -> Option<()> {
        self.at = self.at.next_multiple_of(ALIGNMENT);
        let at = self.at;
        let header = self.header()?;
        let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
        let body = length.checked_sub(RECORD_HEADER)?;
        let (info, manager) = (header[16], header[17]);
        if manager != TABLESPACES || info & 0xf0 != CREATE || body > LONGEST {
            return self.skip(body);
        }
        made.extend(tablespace(at, &self.read(body)?));
        Some(())
    }
}

/// What a record without blocks says: `xl_tblspc_create_rec` behind the headers of
/// `src/include/access/xlogrecord.h`.
fn tablespace(at: usize, mut body: &[u8]) -> Option<MadeTablespace> {
    let data = loop {
        let (id, rest) = body.split_first()?;
        body = match id {
            // The length of the data, in one byte or in four.
            255 => break rest.get(1..)?,
            254 => break rest.get(4..)?,
            // A replication origin and a transaction: `XLR_BLOCK_ID_ORIGIN`, `XLR_BLOCK_ID_TOPLEVEL_XID`.
            253 => rest.get(2..)?,
            252 => rest.get(4..)?,
            _ => return None,
        };
    };
    let (oid, path) = data.split_first_chunk::<4>()?;
    let path = path.split(|byte| *byte == 0).next()?;
    // In place: within the data directory.
    (!path.is_empty()).then(|| MadeTablespace {
        oid: u32::from_le_bytes(*oid),
        location: PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())),
        at,
    })
}

/// The data directory of the running server on this machine, other than the one at `own`, that has a tablespace in
/// this directory. Servers of other accounts are not seen.
pub(super) fn user_of(location: &Path, own: &Path) -> Option<PathBuf> {
    let location = location.canonicalize().ok()?;
    let own = own.canonicalize().ok();
    let processes = fs::read_dir("/proc").ok()?;
    let mut servers: Vec<PathBuf> = processes
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
        // The server's processes work in its data directory.
        .filter_map(|entry| fs::read_link(entry.path().join("cwd")).ok())
        .filter(|directory| directory.join("postmaster.pid").is_file() && own.as_ref() != Some(directory))
        .collect();
    servers.sort();
    servers.dedup();
    servers.into_iter().find(|server| {
        fs::read_dir(server.join("pg_tblspc"))
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .any(|link| link.path().canonicalize().is_ok_and(|place| place == location))
    })
}

/// Whether recovery has a target: then the server takes an end of the WAL before it for an error (`PerformWalRecovery`
/// in `src/backend/access/transam/xlogrecovery.c`). `settings` is the content of `postgresql.auto.conf`, which
/// overrules `postgresql.conf`; a target that stands elsewhere is not seen.
pub(super) fn has_target(settings: &str) -> bool {
    const TARGETS: [&str; 5] = [
        "recovery_target",
        "recovery_target_lsn",
        "recovery_target_name",
        "recovery_target_time",
        "recovery_target_xid",
    ];
    TARGETS.iter().any(|name| {
        let mut values = settings.lines().filter_map(|line| {
            let (found, value) = line.trim().split_once(['=', ' ', '\t'])?;
            (found == *name).then(|| value.trim_matches([' ', '\t', '=', '\'']))
        });
        // The last one counts.
        values.next_back().is_some_and(|value| !value.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 8192;
    const START: u64 = 0x300_0000;

    /// A segment of 1 MiB that is written like the server writes it, record by record.
    struct Writer {
        bytes: Vec<u8>,
    }

    impl Writer {
        fn new(remaining: u32) -> Self {
            let mut writer = Self { bytes: Vec::new() };
            writer.header(remaining);
            writer
        }

        fn header(&mut self, remaining: u32) {
            let first = self.bytes.is_empty();
            let flags = u16::from(remaining > 0) | if first { 2 } else { 0 };
            let address = START + self.bytes.len() as u64;
            self.bytes.extend(0xD110_u16.to_le_bytes());
            self.bytes.extend(flags.to_le_bytes());
            self.bytes.extend(1_u32.to_le_bytes());
            self.bytes.extend(address.to_le_bytes());
            self.bytes.extend(remaining.to_le_bytes());
            self.bytes.extend([0; 4]);
            if first {
                self.bytes.extend(7_u64.to_le_bytes());
                self.bytes.extend((1_u32 << 20).to_le_bytes());
                self.bytes.extend((PAGE as u32).to_le_bytes());
            }
        }

        fn put(&mut self, bytes: &[u8]) {
            for (index, byte) in bytes.iter().enumerate() {
                if self.bytes.len().is_multiple_of(PAGE) {
                    self.header((bytes.len() - index) as u32);
                }
                self.bytes.push(*byte);
            }
        }

        fn align(&mut self) {
            while !self.bytes.len().is_multiple_of(ALIGNMENT) {
                self.bytes.push(0);
            }
            if self.bytes.len().is_multiple_of(PAGE) {
                self.header(0);
            }
        }

        fn record(&mut self, manager: u8, info: u8, body: &[u8]) {
            self.align();
            let mut record = ((RECORD_HEADER + body.len()) as u32).to_le_bytes().to_vec();
            record.resize(RECORD_HEADER, 0);
            record[16] = info;
            record[17] = manager;
            record.extend_from_slice(body);
            self.put(&record);
        }

        fn create(&mut self, oid: u32, path: &str) {
            let mut data = oid.to_le_bytes().to_vec();
            data.extend(path.as_bytes());
            data.push(0);
            let mut body = vec![253, 1, 0, 255, data.len() as u8];
            body.extend(data);
            self.record(TABLESPACES, CREATE, &body);
        }

        fn finish(mut self) -> Vec<u8> {
            self.bytes.resize(1 << 20, 0);
            self.bytes
        }
    }

    fn found(segment: &[u8]) -> Vec<(u32, PathBuf)> {
        made_by(segment)
            .into_iter()
            .map(|made| (made.oid, made.location))
            .collect()
    }

    #[test]
    fn tablespaces_are_found_wherever_their_records_lie() {
        // So that every byte of a record is once the first of a page.
        for shift in (0..240).step_by(8) {
            let mut writer = Writer::new(100);
            writer.put(&[0x5a; 100]);
            writer.record(10, 0, &vec![3; 30_000]);
            let left = PAGE - writer.bytes.len() % PAGE;
            writer.record(10, 0, &vec![3; left.saturating_sub(shift + 2 * RECORD_HEADER)]);
            writer.align();
            let at = writer.bytes.len();
            writer.create(16_400, "/srv/fast one");
            writer.record(TABLESPACES, 0x10, &[255, 4, 1, 0, 0, 0]);
            writer.create(16_401, "");
            writer.create(16_402, "/srv/other");
            let mut segment = writer.finish();
            let expected = [(16_400, "/srv/fast one".into()), (16_402, "/srv/other".into())];
            assert_eq!(found(&segment), expected, "{shift}");
            // Without it and what follows, the WAL ends before it.
            let begins = made_by(&segment)[0].at;
            assert!(
                begins <= at && at - begins <= WalPageHeader::LENGTH,
                "{begins} {at}"
            );
            segment[begins..].fill(0);
            assert_eq!(found(&segment), [], "{shift}");
        }
    }

    #[test]
    fn any_bytes_are_read_to_an_end() {
        let mut writer = Writer::new(0);
        writer.create(16_400, "/srv/fast");
        writer.record(10, 0, &vec![1; 20_000]);
        let whole = writer.finish();
        for length in (0..30_000).step_by(97) {
            made_by(&whole[..length]);
        }
        for at in 40..2000 {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            made_by(&broken[..40_000]);
        }
    }

    #[test]
    fn a_target_is_what_the_last_line_says() {
        for with in [
            "recovery_target_time = '2026-11-21 10:00:00+00'\n",
            "recovery_target = 'immediate'",
            "a = 1\nrecovery_target_name='before'\nrecovery_target_timeline = '1'",
            "recovery_target_xid = ''\nrecovery_target_xid = '77'",
        ] {
            assert!(has_target(with), "{with}");
        }
        for without in [
            "",
            "recovery_target_timeline = 'latest'\nrecovery_target_action = 'promote'\n",
            "recovery_target_inclusive = 'off'",
            "# recovery_target_time = '2026-11-21 10:00:00+00'",
            "recovery_target_lsn = '0/1'\nrecovery_target_lsn = ''",
        ] {
            assert!(!has_target(without), "{without}");
        }
    }

    #[test]
    fn a_directory_that_no_server_uses_is_free() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(user_of(directory.path(), Path::new("/nowhere")), None);
        assert_eq!(user_of(Path::new("/nowhere"), Path::new("/nowhere")), None);
    }
}
