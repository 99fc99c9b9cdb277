//! Logical dumps.
//!
//! # How a dump lies on disk or in a repository
//!
//! ```text
//! backup_shop_2026_11_21_031500.sql.gz                    the archive: what pg_dump wrote, through our pipeline
//! backup_shop_2026_11_21_031500.sql.gz.manifest.json      its manifest ([`manifest::DumpManifest`])
//! backup_shop_2026_11_21_031500.sql.gz.globals.sql.gz     companion: roles and tablespaces (`--globals`)
//! backup_shop_2026_11_21_031500.sql.gz.citus.sql.gz       companion: the Citus metadata, where there is any
//! backup_all_2026_11_21_031500.bundle.json                a bundle ([`manifest::BundleManifest`]) lists its members,
//!                                                         each of which is a dump with a manifest of its own
//! ```
//!
//! In a repository the same names lie under the prefix `dumps/`.
//!
//! The bytes of an archive are `format -> compression -> encryption`, outermost last:
//!
//! | format | inner bytes | name ends in |
//! | --- | --- | --- |
//! | plain | SQL of `pg_dump -Fp` | `.sql` |
//! | custom | archive of `pg_dump -Fc -Z0` | `.dump` |
//! | directory | a tar stream of the files of `pg_dump -Fd -Z0`, `toc.dat` first, at the top of the tar | `.dir.tar` |
//!
//! followed by `.gz`, `.zst` or `.lz4` of the compression, and `.enc` where it is encrypted. Readers
//! detect all of that by content; names are for people. PostgreSQL's own compression inside the archive
//! is off because ours uses every core.
//!
//! # Order of publication
//!
//! The archive and its companions are written under temporary names, read back whole, and then renamed;
//! the manifest is published last. So a manifest always speaks of complete files, and an archive without
//! a manifest is one whose writer died between two renames, or a foreign one.

pub mod archive;
pub mod catalog;
pub mod citus;
pub mod copy;
pub mod create;
pub mod detect;
pub mod error;
pub mod expire;
pub mod list;
pub mod location;
pub mod manifest;
pub mod read;
pub mod restore;
pub mod scan;
pub mod verify;
