//! Whether anybody has written to a file, as its file system tells.
//!
//! Writing sets the times of a file to the kernel's clock: of the content (`mtime`), which programs may set back, and
//! of the file itself (`ctime`), which they may not. Both, with the size and the identity of the file, are hashed into
//! a stamp. Two stamps that are the same are of a file that was not written to between, unless
//!
//! - the second writing came so soon after the first that the clock had not ticked: so a change within the last two
//!   seconds before the files were listed gives no stamp, which is longer than any file system's tick;
//! - the clock went back, and a change fell on the very nanosecond of the one before;
//! - the times are those of another machine: so nothing on network file systems has a stamp.

use std::os::fd::AsFd;
use std::path::Path;

use jiff::Timestamp;
use pgmahout_types::repository::FileStamp;
use rustix::fs::Stat;

/// What a change must be older than, when files are listed: FAT counts in two seconds, everything else finer.
const TICK: i128 = 2_000_000_000;

/// The stamp of a file that was seen at or after `begun`.
pub(crate) fn of(stat: &Stat, begun: Timestamp) -> Option<FileStamp> {
    #[allow(clippy::unnecessary_cast, reason = "the types differ between machines")]
    let times = [
        (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
    ];
    let last = times
        .iter()
        .map(|(seconds, nanoseconds)| i128::from(*seconds) * 1_000_000_000 + i128::from(*nanoseconds))
        .max()?;
    (last + TICK <= begun.as_nanosecond()).then(|| hash(stat, times))
}

#[allow(clippy::unnecessary_cast, reason = "the types differ between machines")]
fn hash(stat: &Stat, times: [(i64, i64); 2]) -> FileStamp {
    let mut bytes = Vec::with_capacity(56);
    for number in [stat.st_dev as u64, stat.st_ino as u64, stat.st_size as u64] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for (seconds, nanoseconds) in times {
        bytes.extend_from_slice(&seconds.to_le_bytes());
        bytes.extend_from_slice(&nanoseconds.to_le_bytes());
    }
    FileStamp::of(&bytes)
}

/// The stamp of an open file now; `None` too where it cannot be asked.
pub(crate) fn now(file: impl AsFd) -> Option<FileStamp> {
    of(&rustix::fs::fstat(file).ok()?, Timestamp::now())
}

/// What this machine is, for the comparison with an older backup's: the stamps of another are worth nothing. `None`
/// where it does not say.
pub(crate) fn machine() -> Option<FileStamp> {
    let id = std::fs::read("/etc/machine-id").unwrap_or_default();
    let name = rustix::system::uname();
    let name = name.nodename().to_bytes();
    if id.trim_ascii().is_empty() && name.is_empty() {
        return None;
    }
    Some(FileStamp::of(&[id.trim_ascii(), b"\0", name].concat()))
}

/// Whether what lies there is on a file system of another machine, or of a program, whose times follow their own
/// rules.
pub(crate) fn is_remote(path: &Path) -> bool {
    // NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, CIFS, SMB2, FUSE, CEPH, AFS, 9P, LUSTRE, GFS2, OCFS2: `linux/magic.h` and statfs(2).
    const REMOTE: [i64; 11] = [
        0x6969,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x6573_5546,
        0x00c3_6400,
        0x5346_414f,
        0x0102_1997,
        0x0bd0_0bd0,
        0x0116_1970,
        0x7461_636f,
    ];
    #[allow(clippy::unnecessary_cast, reason = "the type differs between machines")]
    rustix::fs::statfs(path).map_or(true, |system| {
        REMOTE.contains(&(system.f_type as i64 & 0xffff_ffff))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn later(seconds: i64) -> Timestamp {
        Timestamp::now() + jiff::SignedDuration::from_secs(seconds)
    }

    fn seen(path: &Path, begun: Timestamp) -> Option<FileStamp> {
        of(&rustix::fs::stat(path).expect("it is there"), begun)
    }

    #[test]
    fn a_file_that_was_just_written_has_no_stamp_nor_one_of_the_future() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("16384");
        fs::write(&path, "content").expect("written");
        assert_eq!(seen(&path, Timestamp::now()), None);
        assert!(seen(&path, later(10)).is_some());
        let file = fs::File::options().write(true).open(&path).expect("it is there");
        file.set_modified(SystemTime::now() + Duration::from_hours(1))
            .expect("set");
        assert_eq!(seen(&path, later(10)), None);
    }

    #[test]
    fn whoever_writes_and_sets_the_time_back_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("16384");
        fs::write(&path, [1; 8192]).expect("written");
        let before = fs::metadata(&path)
            .expect("it is there")
            .modified()
            .expect("a time");
        let stamp = seen(&path, later(10));
        assert_eq!(seen(&path, later(20)), stamp, "nobody has touched it");
        let file = fs::File::options().write(true).open(&path).expect("it is there");
        // The clock of the file system must have ticked.
        pgmahout_testkit::poll::blocking_until(Duration::from_secs(10), "a tick of the clock", || {
            file.write_all_at(&[2], 4000).expect("written");
            file.set_modified(before).expect("set");
            seen(&path, later(20)) != stamp
        });
        assert_eq!(
            fs::metadata(&path)
                .expect("it is there")
                .modified()
                .expect("a time"),
            before
        );
    }

    #[test]
    fn a_file_of_another_size_or_in_another_place_is_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("16384");
        fs::write(&path, "content").expect("written");
        let stamp = seen(&path, later(10));
        let copy = directory.path().join("copy");
        fs::copy(&path, &copy).expect("copied");
        fs::rename(&copy, &path).expect("renamed");
        assert_ne!(seen(&path, later(10)), stamp);
        let grown = seen(&path, later(10));
        let mut file = fs::File::options().append(true).open(&path).expect("it is there");
        file.write_all(b"more").expect("written");
        assert_ne!(seen(&path, later(10)), grown);
    }
}
