//! Which files a backup does not read: those that nobody has written to since the older one.
//!
//! Reading is what costs when little has changed. A file system tells whether somebody has written, see
//! [`crate::physical::files::stamp`]; that is believed only of the same machine, clock and cluster, and a sample of
//! what is left unread is read nevertheless.

use std::path::Path;

use jiff::Timestamp;
use pgmahout_types::repository::{FileId, Label};

use super::cluster::Cluster;
use super::control;
use super::error::CreateError;
use super::parent::Parent;
use super::request::{CreateRequest, ReadFilter};
use crate::physical::files::stamp;
use crate::physical::files::walk::FileList;

/// What is left unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filter {
    /// Nothing.
    Off {
        /// Why, where it was not asked for.
        because: Option<String>,
    },
    /// Files with the stamps that they had, but for a sample.
    Stamps {
        /// Percent of the pieces that are read.
        sample: u32,
        /// What chooses them, other ones in every backup.
        seed: u64,
    },
}

impl Filter {
    /// What may be left unread in this backup. To be asked after the checkpoint of the start, which notes a new
    /// timeline in pg_control.
    pub(super) fn choose(
        request: &CreateRequest,
        cluster: &Cluster,
        parent: Option<&Parent>,
        data_dir: &Path,
        list: &FileList,
        run: Label,
    ) -> Result<Self, CreateError> {
        let (Some(parent), ReadFilter::Times) = (parent, request.read_filter) else {
            return Ok(Self::Off { because: None });
        };
        let off = |reason: &str| {
            Ok(Self::Off {
                because: Some(format!("{reason} since the backup {}", parent.label)),
            })
        };
        let origin = parent.origin;
        if origin.machine.is_none() || origin.machine != stamp::machine() {
            return Ok(Self::Off {
                because: Some(format!(
                    "the backup {} was taken on another machine",
                    parent.label
                )),
            });
        }
        let (_, control) = control::read(data_dir)?;
        if control.checkpoint.timeline != origin.timeline {
            return off("the timeline has changed");
        }
        if cluster.data_checksums != origin.checksums {
            return off("checksums were enabled or disabled");
        }
        if Timestamp::now() < origin.stop_time {
            return off("the clock has gone back");
        }
        let tablespaces = list.tablespaces().iter().filter_map(|it| it.location.as_deref());
        if let Some(remote) = std::iter::once(data_dir)
            .chain(tablespaces)
            .find(|path| stamp::is_remote(path))
        {
            return Ok(Self::Off {
                because: Some(format!(
                    "{} is on a network file system, whose times are those of another clock",
                    remote.display()
                )),
            });
        }
        let seed = blake3::hash(run.to_string().as_bytes());
        Ok(Self::Stamps {
            sample: request.verify_skipped,
            seed: u64::from_le_bytes(*seed.as_bytes().first_chunk().unwrap_or(&[0; 8])),
        })
    }

    /// Whether anything is left unread.
    pub(super) fn is_on(&self) -> bool {
        matches!(self, Self::Stamps { .. })
    }

    /// Whether the piece of a file that begins with this block is read nevertheless.
    pub(super) fn samples(&self, file: FileId, block: u32) -> bool {
        let Self::Stamps { sample, seed } = self else {
            return true;
        };
        // The finalizer of SplitMix64: every bit of the input moves every bit of the result.
        let mut mixed = seed ^ file.rotate_left(17) ^ u64::from(block);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        mixed % 100 < u64::from(*sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_about_as_large_as_asked_for_and_another_in_every_backup() {
        let chosen = |sample, seed| -> Vec<u32> {
            let filter = Filter::Stamps { sample, seed };
            (0..100_000)
                .step_by(128)
                .filter(|block| filter.samples(7, *block))
                .collect()
        };
        assert!(chosen(0, 1).is_empty());
        assert_eq!(chosen(100, 1).len(), 782);
        let tenth = chosen(10, 1);
        assert!((40..160).contains(&tenth.len()), "{} of 782", tenth.len());
        assert_ne!(tenth, chosen(10, 2));
    }
}
