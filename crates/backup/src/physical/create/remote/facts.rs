//! What must be known of a server before it sends its files.

use pgmahout_types::{SegmentSize, SystemIdentifier};

use super::super::cluster::Cluster;
use super::super::error::CreateError;
use super::super::server::{Server, sql, unexpected};

/// Up to this version `BASE_BACKUP` with a `tablespace_map` sends no tablespaces that lie in `pg_tblspc` itself
/// (`do_pg_backup_start` in `src/backend/access/transam/xlog.c`).
const OMITS_IN_PLACE: u32 = 15;

/// What must be known of a server before it sends its files.
#[derive(Debug, Clone)]
pub(in super::super) struct RemoteFacts {
    /// The cluster.
    pub(in super::super) cluster: Cluster,
    /// Whether the role may replicate.
    pub(in super::super) may_replicate: bool,
    /// `max_wal_senders`.
    pub(in super::super) max_wal_senders: i32,
    /// `data_directory_mode`: the directory itself is not sent.
    pub(super) directory_mode: u16,
    /// Whether tablespaces in `pg_tblspc` itself are left out where a `tablespace_map` is sent.
    pub(super) omits_in_place: bool,
    /// Those that there are, where they would be left out.
    in_place: Vec<u32>,
}

impl RemoteFacts {
    /// Whether `tablespace_map` can be asked for. It is else made of what the server says of its tablespaces.
    pub(super) fn sends_map(&self) -> bool {
        self.in_place.is_empty()
    }
}

impl Server {
    /// Asks.
    pub(in super::super) async fn remote_facts(&self) -> Result<RemoteFacts, CreateError> {
        let row = self
            .connection
            .query_one(
                "SELECT system.system_identifier, system.catalog_version_no, init.database_block_size, \
                        init.blocks_per_segment, init.bytes_per_wal_segment, init.data_page_checksum_version, \
                        COALESCE((SELECT rolsuper OR rolreplication FROM pg_catalog.pg_roles \
                                  WHERE rolname = session_user), false), \
                        pg_catalog.current_setting('max_wal_senders')::int, \
                        pg_catalog.current_setting('data_directory_mode') \
                 FROM pg_catalog.pg_control_system() AS system, pg_catalog.pg_control_init() AS init",
                &[],
            )
            .await
            .map_err(sql("ask the server what it is"))?;
        let number = |at: usize| row.get::<_, i32>(at).cast_unsigned();
        let segment = u64::from(number(4));
        let mode: String = row.get(8);
        let omits_in_place = self.facts.version.major() <= OMITS_IN_PLACE;
        Ok(RemoteFacts {
            cluster: Cluster {
                system_identifier: SystemIdentifier::from_bigint(row.get(0)),
                catalog_version: number(1),
                block_size: number(2),
                relation_segment_blocks: number(3),
                wal_segment_size: SegmentSize::new(segment)
                    .map_err(|_| unexpected("pg_control_init", &segment.to_string()))?,
                data_checksums: number(5) != 0,
            },
            may_replicate: row.get(6),
            max_wal_senders: row.get(7),
            directory_mode: u16::from_str_radix(&mode, 8).unwrap_or(0o700),
            omits_in_place,
            in_place: if omits_in_place {
                self.in_place_tablespaces().await?
            } else {
                Vec::new()
            },
        })
    }

    /// The tablespaces that lie in `pg_tblspc` itself.
    pub(super) async fn in_place_tablespaces(&self) -> Result<Vec<u32>, CreateError> {
        let rows = self
            .connection
            .query(
                "SELECT oid FROM pg_catalog.pg_tablespace \
                 WHERE pg_catalog.pg_tablespace_location(oid) LIKE 'pg\\_tblspc/%'",
                &[],
            )
            .await
            .map_err(sql("ask for the places of the tablespaces"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
