//! The metadata of a Citus cluster beside a dump.
//!
//! pg_dump sees a distributed table on the coordinator as an ordinary one. Restored as such it comes back
//! as a local table, with all rows on the coordinator. So the metadata is saved as statements that a
//! restore runs between the definitions and the rows: nodes, then the distribution of every table, then
//! the rows stream to where they belong.
//!
//! The companion file is SQL that people can read and run. Its first line is a comment with the same facts
//! as JSON ([`CitusMetadata::parse`] reads it), from which a restore makes the statements for other nodes.
//! Shards and placements are recorded for the record only: a restore makes new shards.
//!
//! Sources: Citus documentation, "Citus Tables and Views" (`pg_dist_node`, `citus_tables`,
//! `pg_dist_partition`, `pg_dist_shard`, `pg_dist_placement`, `pg_dist_colocation`) and "Citus Utility
//! Functions".

use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, Error};

/// What the JSON line begins with.
const MARK: &str = "-- pgmahout-citus: ";

/// The metadata of a cluster, as far as it makes the cluster again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CitusMetadata {
    /// The extension's version.
    #[serde(default)]
    pub version: String,
    /// The nodes.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// Schemas that are distributed as a whole (Citus 12).
    #[serde(default)]
    pub schemas: Vec<String>,
    /// The tables, references first, each after the one it is colocated with.
    #[serde(default)]
    pub tables: Vec<Table>,
}

/// A row of `pg_dist_node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Host name.
    pub host: String,
    /// Port.
    pub port: i32,
    /// The group: 0 is the coordinator.
    pub group: i32,
    /// `primary` or `secondary`.
    pub role: String,
    /// `nodecluster`.
    pub cluster: String,
    /// Whether it may hold shards.
    pub holds_shards: bool,
}

/// A table that Citus manages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Quoted, with its schema.
    pub name: String,
    /// How it is distributed.
    pub kind: TableKind,
    /// The distribution column, quoted by nobody: as `column_to_column_name` gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The colocation group.
    #[serde(default)]
    pub colocation: i32,
    /// How many shards.
    #[serde(default)]
    pub shards: i64,
    /// Shard ids with the nodes of their placements, as `102008 worker1:5432`; for the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placements: Vec<String>,
}

/// How a table is distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    /// By the hash of a column.
    Hash,
    /// The whole table on every node.
    Reference,
    /// On the coordinator, known to Citus.
    Local,
    /// One shard, without a distribution column (Citus 12).
    Single,
    /// A table of a distributed schema: made by [`CitusMetadata::schemas`].
    OfSchema,
    /// By range or append, which cannot be made again by one statement.
    #[serde(other)]
    Other,
}

/// Reads the metadata from the coordinator, in the session's snapshot.
///
/// # Errors
/// Those of the server.
pub(crate) async fn read(client: &Client) -> Result<CitusMetadata, Error> {
    let version = client
        .query_one(
            "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'citus'",
            &[],
        )
        .await?;
    let nodes = client
        .query(
            "SELECT nodename, nodeport, groupid, noderole::text, nodecluster::text, shouldhaveshards \
             FROM pg_catalog.pg_dist_node ORDER BY groupid, noderole, nodename, nodeport",
            &[],
        )
        .await?;
    let has_schemas: bool = client
        .query_one(
            "SELECT pg_catalog.to_regclass('pg_catalog.pg_dist_schema') IS NOT NULL",
            &[],
        )
        .await?
        .get(0);
    let schemas = if has_schemas {
        client
            .query(
                "SELECT schemaid::regnamespace::text FROM pg_catalog.pg_dist_schema ORDER BY 1",
                &[],
            )
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect()
    } else {
        Vec::new()
    };
    let of_schema = if has_schemas {
        "EXISTS (SELECT FROM pg_catalog.pg_dist_schema s WHERE s.schemaid = c.relnamespace)"
    } else {
        "false"
    };
    let tables = client
        .query(
            &format!(
                "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), \
                        p.partmethod::text, p.repmodel::text, \
                        CASE WHEN p.partkey IS NOT NULL \
                             THEN pg_catalog.column_to_column_name(p.logicalrelid, p.partkey) END, \
                        p.colocationid, \
                        (SELECT count(*) FROM pg_catalog.pg_dist_shard s WHERE s.logicalrelid = p.logicalrelid), \
                        {of_schema}, \
                        ARRAY(SELECT s.shardid || ' ' || d.nodename || ':' || d.nodeport \
                              FROM pg_catalog.pg_dist_shard s \
                              JOIN pg_catalog.pg_dist_placement l ON l.shardid = s.shardid \
                              JOIN pg_catalog.pg_dist_node d ON d.groupid = l.groupid AND d.noderole = 'primary' \
                              WHERE s.logicalrelid = p.logicalrelid ORDER BY s.shardid, d.nodename, d.nodeport) \
                 FROM pg_catalog.pg_dist_partition p \
                 JOIN pg_catalog.pg_class c ON c.oid = p.logicalrelid \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE NOT c.relispartition \
                 ORDER BY (p.partmethod <> 'n'), p.colocationid, c.oid"
            ),
            &[],
        )
        .await?;
    Ok(CitusMetadata {
        version: version.get(0),
        nodes: nodes
            .iter()
            .map(|row| Node {
                host: row.get(0),
                port: row.get(1),
                group: row.get(2),
                role: row.get(3),
                cluster: row.get(4),
                holds_shards: row.get(5),
            })
            .collect(),
        schemas,
        tables: tables
            .iter()
            .map(|row| Table {
                name: row.get(0),
                kind: kind(row.get(1), row.get(2), row.get::<_, i32>(4), row.get(6)),
                column: row.get(3),
                colocation: row.get(4),
                shards: row.get(5),
                placements: row.get(7),
            })
            .collect(),
    })
}

/// `partmethod` and `repmodel` of `pg_dist_partition`: reference tables are `n`, `t`; tables known to Citus
/// but local are `n`, `s` in no colocation group, single-shard tables are `n`, `s` in one.
fn kind(method: &str, replication: &str, colocation: i32, of_schema: bool) -> TableKind {
    match (method, replication) {
        _ if of_schema => TableKind::OfSchema,
        ("h", _) => TableKind::Hash,
        ("n", "t") => TableKind::Reference,
        ("n", _) if colocation == 0 => TableKind::Local,
        ("n", _) => TableKind::Single,
        _ => TableKind::Other,
    }
}

impl CitusMetadata {
    /// The companion file.
    ///
    /// # Panics
    /// Never: the JSON in it has strings, numbers and lists only.
    pub fn to_sql(&self) -> String {
        let json = serde_json::to_string(self).expect("only strings and numbers");
        let mut text = format!(
            "{MARK}{json}\n--\n-- Citus {}: run on the new coordinator between the definitions and the rows.\n--\n",
            self.version
        );
        for statement in self.node_statements(|node| (node.host.clone(), node.port)) {
            text.push_str(&statement);
            text.push('\n');
        }
        for statement in self.table_statements() {
            text.push_str(&statement);
            text.push('\n');
        }
        for table in self.tables.iter().filter(|table| table.kind == TableKind::Other) {
            text.push_str("-- ");
            text.push_str(&table.name);
            text.push_str(" is distributed by range or append; distribute it by hand\n");
        }
        text.push_str("-- end of the Citus metadata\n");
        text
    }

    /// Reads a companion file. `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text.lines().next()?.strip_prefix(MARK)?).ok()
    }

    /// The statements that make the nodes known, at the addresses that `place` gives for them.
    pub fn node_statements(&self, place: impl Fn(&Node) -> (String, i32)) -> Vec<String> {
        self.nodes
            .iter()
            .filter(|node| node.role == "primary")
            .map(|node| {
                let (host, port) = place(node);
                if node.group == 0 {
                    format!("SELECT pg_catalog.citus_set_coordinator_host({}, {port});", literal(&host))
                } else {
                    let add = format!("SELECT pg_catalog.citus_add_node({}, {port});", literal(&host));
                    if node.holds_shards {
                        return add;
                    }
                    format!(
                        "{add} SELECT pg_catalog.citus_set_node_property({}, {port}, 'shouldhaveshards', false);",
                        literal(&host)
                    )
                }
            })
            .collect()
    }

    /// The statements that distribute the tables, which must exist and be empty.
    pub fn table_statements(&self) -> Vec<String> {
        let mut statements: Vec<String> = self
            .schemas
            .iter()
            .map(|schema| format!("SELECT pg_catalog.citus_schema_distribute({});", literal(schema)))
            .collect();
        let mut first_of_group: Vec<(i32, &str)> = Vec::new();
        for table in &self.tables {
            let name = literal(&table.name);
            match table.kind {
                TableKind::Reference => {
                    statements.push(format!("SELECT pg_catalog.create_reference_table({name});"));
                }
                TableKind::Local => {
                    statements.push(format!(
                        "SELECT pg_catalog.citus_add_local_table_to_metadata({name});"
                    ));
                }
                TableKind::Hash | TableKind::Single => {
                    let first = first_of_group
                        .iter()
                        .find(|(group, _)| *group == table.colocation);
                    let together = first.map_or("none", |(_, first)| first);
                    let column = table.column.as_deref().map_or("NULL".to_owned(), literal);
                    let shards = if first.is_none() && table.kind == TableKind::Hash {
                        format!(", shard_count => {}", table.shards)
                    } else {
                        String::new()
                    };
                    statements.push(format!(
                        "SELECT pg_catalog.create_distributed_table({name}, {column}, colocate_with => {}{shards});",
                        literal(together)
                    ));
                    if first.is_none() && table.colocation != 0 {
                        first_of_group.push((table.colocation, &table.name));
                    }
                }
                TableKind::OfSchema | TableKind::Other => {}
            }
        }
        statements
    }
}

/// A string literal, safe with either setting of `standard_conforming_strings`.
fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> CitusMetadata {
        let node = |host: &str, group, holds_shards| Node {
            host: host.to_owned(),
            port: 5432,
            group,
            role: "primary".to_owned(),
            cluster: "default".to_owned(),
            holds_shards,
        };
        let table = |name: &str, kind, column: Option<&str>, colocation, shards| Table {
            name: name.to_owned(),
            kind,
            column: column.map(str::to_owned),
            colocation,
            shards,
            placements: vec!["102008 worker1:5432".to_owned()],
        };
        CitusMetadata {
            version: "12.1-1".to_owned(),
            nodes: vec![
                node("coordinator", 0, false),
                node("worker1", 1, true),
                Node {
                    role: "secondary".to_owned(),
                    ..node("worker1b", 1, true)
                },
                node("router", 2, false),
            ],
            schemas: vec!["tenant".to_owned()],
            tables: vec![
                table("public.countries", TableKind::Reference, None, 1, 1),
                table("public.settings", TableKind::Local, None, 0, 1),
                table("public.orders", TableKind::Hash, Some("customer"), 2, 32),
                table(
                    "public.\"order's lines\"",
                    TableKind::Hash,
                    Some("customer"),
                    2,
                    32,
                ),
                table("public.queue", TableKind::Single, None, 3, 1),
                table("tenant.t", TableKind::OfSchema, None, 4, 1),
                table("public.log", TableKind::Other, Some("at"), 0, 4),
            ],
        }
    }

    #[test]
    fn tables_come_back_distributed_and_together() {
        assert_eq!(
            metadata().table_statements(),
            [
                "SELECT pg_catalog.citus_schema_distribute('tenant');",
                "SELECT pg_catalog.create_reference_table('public.countries');",
                "SELECT pg_catalog.citus_add_local_table_to_metadata('public.settings');",
                "SELECT pg_catalog.create_distributed_table('public.orders', 'customer', colocate_with => 'none', shard_count => 32);",
                "SELECT pg_catalog.create_distributed_table('public.\"order''s lines\"', 'customer', colocate_with => 'public.orders');",
                "SELECT pg_catalog.create_distributed_table('public.queue', NULL, colocate_with => 'none');",
            ]
        );
    }

    #[test]
    fn nodes_come_back_at_new_addresses() {
        let statements = metadata().node_statements(|node| (format!("new-{}", node.host), 6000));
        assert_eq!(
            statements,
            [
                "SELECT pg_catalog.citus_set_coordinator_host('new-coordinator', 6000);",
                "SELECT pg_catalog.citus_add_node('new-worker1', 6000);",
                "SELECT pg_catalog.citus_add_node('new-router', 6000); \
                 SELECT pg_catalog.citus_set_node_property('new-router', 6000, 'shouldhaveshards', false);",
            ]
        );
    }

    #[test]
    fn the_companion_file_says_everything_twice() {
        let text = metadata().to_sql();
        assert_eq!(CitusMetadata::parse(&text), Some(metadata()));
        assert!(text.contains("\nSELECT pg_catalog.create_reference_table('public.countries');\n"));
        assert!(text.contains("-- public.log is distributed by range or append"));
        assert!(text.ends_with("-- end of the Citus metadata\n"));
        assert_eq!(CitusMetadata::parse("SELECT 1;\n"), None);
    }

    #[test]
    fn kinds_are_told_as_citus_records_them() {
        assert_eq!(kind("h", "s", 2, false), TableKind::Hash);
        assert_eq!(kind("n", "t", 1, false), TableKind::Reference);
        assert_eq!(kind("n", "s", 0, false), TableKind::Local);
        assert_eq!(kind("n", "s", 3, false), TableKind::Single);
        assert_eq!(kind("n", "s", 3, true), TableKind::OfSchema);
        assert_eq!(kind("a", "c", 0, false), TableKind::Other);
    }
}
