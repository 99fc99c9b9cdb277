//! Comparing what databases contain, table by table.

use std::collections::BTreeMap;

use crate::postgres::Postgres;

/// A digest and row count per table and the state of each sequence of a database, keyed by
/// `schema.name`: two databases with equal contents have equal maps, in whatever order the rows lie.
pub async fn digests(server: &Postgres, database: &str) -> BTreeMap<String, String> {
    const RELATIONS: &str = "
        SELECT c.oid::regclass::text, c.relkind::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'S', 'm') AND c.relpersistence <> 't'
          AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
        ORDER BY 1";
    let client = server.client(database).await;
    client
        .batch_execute("SET search_path = ''; SET extra_float_digits = 3")
        .await
        .expect("settings exist");
    let relations = rows(&client, RELATIONS).await;
    let mut digests = BTreeMap::new();
    for relation in relations {
        let [name, kind] = relation.as_slice() else {
            unreachable!("the query has two columns")
        };
        let question = if kind == "S" {
            format!("SELECT last_value, is_called FROM {name}")
        } else {
            format!(
                "SELECT count(*), md5(coalesce(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) \
                 FROM ONLY {name} t"
            )
        };
        let row = rows(&client, &question).await.remove(0);
        digests.insert(name.clone(), row.join(" "));
    }
    digests
}

async fn rows(client: &tokio_postgres::Client, query: &str) -> Vec<Vec<String>> {
    let messages = client
        .simple_query(query)
        .await
        .unwrap_or_else(|error| panic!("{error:?}\nin: {query}"));
    let rows = messages.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|index| row.get(index).unwrap_or("").to_owned())
                .collect(),
        ),
        _ => None,
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Major;

    #[tokio::test]
    async fn a_changed_row_changes_the_digest_of_its_table_alone() {
        let server = Postgres::start(Major::V15).await;
        server
            .sql(
                "postgres",
                "CREATE TABLE a (id serial, word text); INSERT INTO a (word) VALUES ('x'), (NULL);
                 CREATE TABLE \"B c\" AS SELECT 1.5::float8 AS number;",
            )
            .await;
        let before = digests(&server, "postgres").await;
        assert_eq!(
            before.keys().collect::<Vec<_>>(),
            ["public.\"B c\"", "public.a", "public.a_id_seq"]
        );
        server
            .sql(
                "postgres",
                "UPDATE a SET word = 'y' WHERE id = 1; UPDATE a SET word = 'x' WHERE id = 1",
            )
            .await;
        assert_eq!(digests(&server, "postgres").await, before);
        server
            .sql("postgres", "UPDATE a SET word = '' WHERE word IS NULL")
            .await;
        let after = digests(&server, "postgres").await;
        assert_ne!(after["public.a"], before["public.a"]);
        assert_eq!(after["public.a_id_seq"], before["public.a_id_seq"]);
    }
}
