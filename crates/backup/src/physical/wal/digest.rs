//! The digest of a file that need not be in memory.
//!
//! It is hashed piece by piece, each while it is in the processor's cache, and a large file by two threads: BLAKE3 is
//! a tree, and the halves of a file whose length is a power of two are its two highest branches.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_root};
use pgmahout_types::repository::Digest;

/// What is read at once.
pub(super) const PIECE: usize = 256 << 10;
/// Below this a second thread takes longer to start than it saves.
const SMALLEST: u64 = 4 << 20;

/// The digest of a file of this length; `None` when it has another one.
pub(super) fn of_file(file: &File, length: u64, threads: usize) -> io::Result<Option<Digest>> {
    if file.metadata()?.len() != length {
        return Ok(None);
    }
    let digest = if threads > 1 && length >= SMALLEST && length.is_power_of_two() {
        let middle = length / 2;
        let (first, second) = std::thread::scope(|scope| {
            let second = scope.spawn(|| branch(file, middle..length));
            let first = branch(file, 0..middle);
            let second = second.join();
            (
                first,
                second.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            )
        });
        Digest::from(merge_subtrees_root(&first?, &second?, Mode::Hash))
    } else {
        let mut hasher = Hasher::new();
        update(&mut hasher, file, 0..length)?;
        Digest::from(hasher.finalize())
    };
    Ok(Some(digest))
}

/// One of the two highest branches of a file's tree.
fn branch(file: &File, range: Range<u64>) -> io::Result<ChainingValue> {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(range.start);
    update(&mut hasher, file, range)?;
    Ok(hasher.finalize_non_root())
}

fn update(hasher: &mut Hasher, file: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(PIECE).min(PIECE);
        // A file that has become shorter meanwhile is an error.
        file.read_exact_at(&mut buffer[..length], at)?;
        hasher.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn it_is_the_digest_of_the_content_however_many_threads_compute_it() {
        let content: Vec<u8> = (0..(16_u64 << 20)).map(|at| ((at * at) >> 7) as u8).collect();
        for length in [
            0,
            1,
            1000,
            PIECE,
            1 << 20,
            4 << 20,
            (4 << 20) + 1,
            5 << 20,
            8 << 20,
            16 << 20,
        ] {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&content[..length]).expect("written");
            for threads in [1, 2, 8] {
                let digest = of_file(&file, length as u64, threads).expect("it is read");
                assert_eq!(digest, Some(Digest::of(&content[..length])), "{length} {threads}");
                for other in [
                    length as u64 + 1,
                    length as u64 * 2 + 1,
                    (length as u64).saturating_sub(1),
                ] {
                    let digest = of_file(&file, other, threads).expect("it is read");
                    assert_eq!(
                        digest.is_none(),
                        other != length as u64,
                        "{length} {threads} {other}"
                    );
                }
            }
        }
    }
}
