//! The page cache before a run: full of the files, or empty.

use std::path::Path;

use crate::table::Cache;

/// How the cache is emptied here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dropping {
    /// `/proc/sys/vm/drop_caches`: all that the kernel holds.
    All,
    /// `posix_fadvise` for each file that takes part.
    Files,
}

impl Dropping {
    pub(crate) fn here() -> Self {
        if std::fs::write("/proc/sys/vm/drop_caches", "1").is_ok() {
            Self::All
        } else {
            Self::Files
        }
    }

    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::All => "cold: echo 1 > /proc/sys/vm/drop_caches before each run",
            Self::Files => "cold: posix_fadvise(POSIX_FADV_DONTNEED) on each file before each run; not root",
        }
    }

    /// Makes what lies below the directories warm or cold. Whatever runs before left to be written is written
    /// first, so that none pays for another.
    pub(crate) fn prepare(self, cache: Cache, directories: &[&Path]) {
        rustix::fs::sync();
        match (cache, self) {
            (Cache::Warm, _) => directories
                .iter()
                .for_each(|directory| each_file(directory, &read)),
            (Cache::Cold, Self::All) => {
                std::fs::write("/proc/sys/vm/drop_caches", "1").expect("it could be written before");
            }
            (Cache::Cold, Self::Files) => directories
                .iter()
                .for_each(|directory| each_file(directory, &forget)),
        }
    }
}

fn read(file: &mut std::fs::File) {
    let _ = std::io::copy(file, &mut std::io::sink());
}

fn forget(file: &mut std::fs::File) {
    let _ = rustix::fs::fadvise(&*file, 0, None, rustix::fs::Advice::DontNeed);
}

fn each_file(path: &Path, action: &impl Fn(&mut std::fs::File)) {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return;
    };
    if metadata.is_dir() {
        let Ok(entries) = std::fs::read_dir(path) else {
            return;
        };
        for entry in entries.flatten() {
            each_file(&entry.path(), action);
        }
    } else if metadata.is_file()
        && let Ok(mut file) = std::fs::File::open(path)
    {
        action(&mut file);
    }
}
