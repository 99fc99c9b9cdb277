//! What a backup must know of a cluster before it has seen its pg_control.

use pgmahout_types::{ControlFile, SegmentSize, SystemIdentifier};

/// What stays the same as long as the cluster lives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cluster {
    /// Whose it is.
    pub(super) system_identifier: SystemIdentifier,
    /// The version of its catalogs.
    pub(super) catalog_version: u32,
    /// Bytes in a page.
    pub(super) block_size: u32,
    /// Pages in a file of a large relation.
    pub(super) relation_segment_blocks: u32,
    /// Size of its WAL segments.
    pub(super) wal_segment_size: SegmentSize,
    /// Whether its pages carry checksums.
    pub(super) data_checksums: bool,
}

impl From<&ControlFile> for Cluster {
    fn from(control: &ControlFile) -> Self {
        Self {
            system_identifier: control.system_identifier,
            catalog_version: control.catalog_version,
            block_size: control.block_size,
            relation_segment_blocks: control.relation_segment_blocks,
            wal_segment_size: control.wal_segment_size,
            data_checksums: control.data_checksums.is_on(),
        }
    }
}
