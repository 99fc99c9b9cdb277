//! The directory form as one stream: a tar of the files that `pg_dump -Fd` wrote.
//!
//! `toc.dat` comes first, so that a reader knows early what it has; the data files follow by name. All
//! entries are ordinary files at the top of the tar, so that `tar -x` in an empty directory makes what
//! `pg_restore -Fd` wants.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The table of contents of the directory form (`InitArchiveFmt_Directory` in
/// src/bin/pg_dump/pg_backup_directory.c).
pub const TOC: &str = "toc.dat";

/// The files of a dump directory, `toc.dat` first.
///
/// # Errors
/// When the directory cannot be read, has no `toc.dat`, or holds what pg_dump does not write.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut toc = None;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            return Err(io::Error::other(format!(
                "{} is no ordinary file",
                entry.path().display()
            )));
        }
        if entry.file_name() == TOC {
            toc = Some(entry.path());
        } else {
            files.push(entry.path());
        }
    }
    let toc = toc.ok_or_else(|| io::Error::other("pg_dump left no toc.dat"))?;
    files.sort();
    files.insert(0, toc);
    Ok(files)
}

/// Writes the files as a tar stream and removes each one once it is in it, so that the disk never holds
/// everything twice. `begin` is called before each file with its length.
///
/// # Errors
/// When a file cannot be read or the output cannot be written.
pub(crate) fn pack<W: Write>(
    files: &[PathBuf],
    output: &mut W,
    mut begin: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut builder = tar::Builder::new(output);
    for path in files {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        begin(length)?;
        let name = path.file_name().expect("listed by its name");
        let mut header = tar::Header::new_gnu();
        header.set_size(length);
        header.set_mode(0o600);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, name, &mut file)?;
        fs::remove_file(path)?;
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_begins_with_the_table_of_contents_and_the_files_are_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, content) in [("3317.dat", "one"), ("blobs.toc", ""), (TOC, "PGDMP")] {
            fs::write(directory.path().join(name), content).expect("written");
        }
        let mut stream = Vec::new();
        let mut total = 0;
        let list = files(directory.path()).expect("listed");
        pack(&list, &mut stream, |length| {
            total += length;
            Ok(())
        })
        .expect("packed");
        assert_eq!(total, 8);
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 0);
        let mut archive = tar::Archive::new(stream.as_slice());
        let names: Vec<String> = archive
            .entries()
            .expect("a tar")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .path()
                    .expect("a path")
                    .display()
                    .to_string()
            })
            .collect();
        assert_eq!(names, ["toc.dat", "3317.dat", "blobs.toc"]);
    }

    #[test]
    fn a_directory_without_table_of_contents_is_no_dump() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("3317.dat"), "one").expect("written");
        assert!(
            files(directory.path())
                .expect_err("refused")
                .to_string()
                .contains("toc.dat")
        );
    }
}
