//! The names of a cluster's databases, read from the files of a backup.
//!
//! `pg_database` is a table like any other, in `global`. Which file it is says `global/pg_filenode.map`
//! (`src/backend/utils/cache/relmapper.c`). Of each row version only what is needed is looked at: the object
//! identifier and the name, which are the first two columns in every version
//! (`src/include/catalog/pg_database.h`).

use pgmahout_types::repository::BLOCK_SIZE;

/// The object identifier of `pg_database`.
const PG_DATABASE: u32 = 1262;
/// `RELMAPPER_FILEMAGIC`.
const MAP_MAGIC: u32 = 0x0059_2717;
/// Where the line pointers of a page begin (`SizeOfPageHeaderData`).
const PAGE_HEADER: usize = 24;
/// `NAMEDATALEN`.
const NAME_LENGTH: usize = 64;
/// `HEAP_XMAX_INVALID`: nobody has deleted the row version.
const XMAX_INVALID: u16 = 0x0800;
/// `HEAP_XMIN_INVALID`: whoever made it was rolled back.
const XMIN_INVALID: u16 = 0x0200;
/// `HEAP_XMIN_FROZEN`, which has that bit too.
const XMIN_FROZEN: u16 = 0x0300;

/// The file of `pg_database`, from the content of `global/pg_filenode.map`.
pub(crate) fn file_of_databases(map: &[u8]) -> Option<u32> {
    if number(map, 0)? != MAP_MAGIC {
        return None;
    }
    let count = number(map, 4)?.min(64) as usize;
    (0..count).find_map(|index| {
        let at = 8 + index * 8;
        (number(map, at)? == PG_DATABASE).then(|| number(map, at + 4))?
    })
}

/// The databases in the content of that file: number and name. One that is being renamed or dropped while the
/// backup runs may be there twice.
pub(crate) fn databases(content: &[u8]) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for page in content.chunks_exact(BLOCK_SIZE as usize) {
        let lower = usize::from(short(page, 12).unwrap_or_default()).min(page.len());
        for at in (PAGE_HEADER..lower).step_by(4) {
            let Some(pointer) = number(page, at) else { break };
            // lp_off 15 bits, lp_flags 2, lp_len 15; LP_NORMAL is 1.
            let (offset, flags) = ((pointer & 0x7fff) as usize, pointer >> 15 & 3);
            if flags != 1 {
                continue;
            }
            if let Some(database) = page.get(offset..).and_then(row)
                && !found.contains(&database)
            {
                found.push(database);
            }
        }
    }
    found.sort();
    found
}

fn row(tuple: &[u8]) -> Option<(u32, String)> {
    let infomask = short(tuple, 20)?;
    let rolled_back = infomask & XMIN_FROZEN == XMIN_INVALID;
    let deleted = number(tuple, 4)? != 0 && infomask & XMAX_INVALID == 0;
    if rolled_back || deleted {
        return None;
    }
    let data = tuple.get(usize::from(*tuple.get(22)?)..)?;
    let oid = number(data, 0).filter(|oid| *oid != 0)?;
    let name = data.get(4..4 + NAME_LENGTH)?;
    let length = name.iter().position(|byte| *byte == 0)?;
    Some((oid, String::from_utf8_lossy(&name[..length]).into_owned()))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(oid: u32, name: &str, xmax: u32, infomask: u16) -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes[4..8].copy_from_slice(&xmax.to_le_bytes());
        bytes[20..22].copy_from_slice(&infomask.to_le_bytes());
        bytes[22] = 24;
        bytes.extend(oid.to_le_bytes());
        let mut text = name.as_bytes().to_vec();
        text.resize(NAME_LENGTH, 0);
        bytes.extend(text);
        bytes
    }

    fn page(tuples: &[Vec<u8>]) -> Vec<u8> {
        let mut page = vec![0; BLOCK_SIZE as usize];
        let mut upper = page.len();
        for (index, tuple) in tuples.iter().enumerate() {
            upper -= tuple.len().next_multiple_of(8);
            page[upper..upper + tuple.len()].copy_from_slice(tuple);
            let pointer = upper as u32 | 1 << 15 | (tuple.len() as u32) << 17;
            let at = PAGE_HEADER + index * 4;
            page[at..at + 4].copy_from_slice(&pointer.to_le_bytes());
        }
        let lower = (PAGE_HEADER + tuples.len() * 4) as u16;
        page[12..14].copy_from_slice(&lower.to_le_bytes());
        page
    }

    #[test]
    fn living_rows_of_pg_database_are_read() {
        let content = page(&[
            tuple(1, "template1", 0, 0x0900),
            tuple(16_385, "old name", 777, 0x0100),
            tuple(16_385, "shop", 0, 0x0100),
            tuple(16_400, "never", 0, 0x0200),
            tuple(5, "postgres", 0, 0x0300 | 0x0800),
        ]);
        let expected = [(1, "template1"), (5, "postgres"), (16_385, "shop")];
        let expected: Vec<(u32, String)> = expected
            .iter()
            .map(|(oid, name)| (*oid, (*name).to_owned()))
            .collect();
        assert_eq!(databases(&content), expected);
    }

    #[test]
    fn the_map_says_which_file_it_is() {
        let mut map = MAP_MAGIC.to_le_bytes().to_vec();
        for number in [2_u32, 1213, 1213, 1262, 24_576] {
            map.extend(number.to_le_bytes());
        }
        assert_eq!(file_of_databases(&map), Some(24_576));
        assert_eq!(file_of_databases(&map[..20]), None);
        assert_eq!(file_of_databases(b"garbage"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..9000)) {
            let _ = databases(&bytes);
            let _ = file_of_databases(&bytes);
        }
    }
}
