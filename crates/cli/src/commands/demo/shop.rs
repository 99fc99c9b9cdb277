//! The shop: a small realistic database, made on the server by SQL alone, the same at every run.

use std::collections::BTreeMap;

use pgmahout_postgres::connection::Connection;

use crate::failure::Failure;

/// Its tables, a partitioned one counted once.
pub(super) const TABLES: [&str; 6] = [
    "customers",
    "products",
    "orders",
    "order_items",
    "payments",
    "events",
];

/// Rows and content of a table: the count, and a sum of hashes that does not depend on their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest {
    rows: i64,
    sum: String,
}

const SCHEMA: &str = "
CREATE TABLE customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text NOT NULL,
    name text NOT NULL,
    country char(2) NOT NULL,
    joined_at timestamptz NOT NULL
);
CREATE TABLE products (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku text NOT NULL UNIQUE,
    title text NOT NULL,
    price numeric(10,2) NOT NULL CHECK (price > 0)
);
CREATE TYPE order_state AS ENUM ('new', 'paid', 'shipped', 'returned');
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL,
    state order_state NOT NULL,
    placed_at timestamptz NOT NULL,
    note text
);
CREATE TABLE order_items (
    order_id bigint NOT NULL,
    line smallint NOT NULL,
    product_id integer NOT NULL,
    quantity integer NOT NULL,
    PRIMARY KEY (order_id, line)
);
CREATE TABLE payments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id bigint NOT NULL,
    detail jsonb NOT NULL
);
CREATE TABLE events (
    id bigint GENERATED ALWAYS AS IDENTITY,
    happened_at timestamptz NOT NULL,
    customer_id bigint NOT NULL,
    kind text NOT NULL,
    payload jsonb NOT NULL,
    PRIMARY KEY (id, happened_at)
) PARTITION BY RANGE (happened_at);
CREATE TABLE events_2026_01 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE events_2026_02 PARTITION OF events FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE TABLE events_2026_03 PARTITION OF events FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
CREATE TABLE events_rest PARTITION OF events DEFAULT;
";

const INDEXES: &str = "
CREATE UNIQUE INDEX customers_email ON customers (lower(email));
CREATE INDEX orders_customer ON orders (customer_id, placed_at);
CREATE INDEX payments_order ON payments (order_id);
CREATE INDEX events_customer ON events (customer_id, happened_at);
ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers;
ALTER TABLE order_items ADD FOREIGN KEY (order_id) REFERENCES orders;
ALTER TABLE order_items ADD FOREIGN KEY (product_id) REFERENCES products;
CREATE VIEW revenue AS
    SELECT date_trunc('day', placed_at) AS day, sum(i.quantity * p.price) AS total
    FROM orders o JOIN order_items i ON i.order_id = o.id JOIN products p ON p.id = i.product_id GROUP BY 1;
ANALYZE;
";

/// Makes the shop; gives the number of rows.
pub(super) async fn load(shop: &Connection, scale: f64) -> Result<i64, Failure> {
    let count = |base: f64| (base * scale).ceil().max(10.0) as i64;
    let customers = count(20_000.0);
    let products = count(1_000.0).min(50_000);
    let orders = count(100_000.0);
    let events = count(200_000.0);
    let steps = [
        "SET synchronous_commit = off".to_owned(),
        SCHEMA.to_owned(),
        format!(
            "INSERT INTO customers (email, name, country, joined_at)
             SELECT 'customer' || n || '@example.org',
                    (ARRAY['Ana','Bo','Chidi','Dalia','Emre','Fumiko','Gauri','Hugo'])[1 + n % 8] || ' ' || initcap(substr(md5(n::text), 1, 8)),
                    (ARRAY['DE','FR','IN','JP','NG','US','BR','SE'])[1 + (n / 3) % 8],
                    timestamptz '2024-01-01 00:00+00' + n * interval '37 seconds'
             FROM generate_series(1, {customers}) n"
        ),
        format!(
            "INSERT INTO products (sku, title, price)
             SELECT 'SKU-' || lpad(n::text, 6, '0'), 'Product ' || md5((n * 31)::text), 1 + (n * 7919 % 50000) / 100.0
             FROM generate_series(1, {products}) n"
        ),
        format!(
            "INSERT INTO orders (customer_id, state, placed_at, note)
             SELECT 1 + (n * 2654435761) % {customers}, (ARRAY['new','paid','shipped','returned'])[1 + n % 4]::order_state,
                    timestamptz '2026-01-01 00:00+00' + n * interval '77 seconds',
                    CASE WHEN n % 9 = 0 THEN E'Leave at the\\tback door\\n\\\\o/ ' || n END
             FROM generate_series(1::bigint, {orders}) n"
        ),
        format!(
            "INSERT INTO order_items
             SELECT n, l, 1 + (n * 48271 + l * 31) % {products}, 1 + (n + l) % 5
             FROM generate_series(1::bigint, {orders}) n, generate_series(1, 1 + (n % 2)::int) l"
        ),
        format!(
            "INSERT INTO payments (order_id, detail)
             SELECT n, jsonb_build_object('method', (ARRAY['card','transfer','voucher'])[1 + n % 3], 'amount', (n * 7919 % 90000) / 100.0,
                    'reference', md5(n::text), 'attempts', jsonb_build_array(n % 3, 'ok'))
             FROM generate_series(1::bigint, {orders}) n"
        ),
        format!(
            "INSERT INTO events (happened_at, customer_id, kind, payload)
             SELECT timestamptz '2026-01-01 00:00+00' + n * interval '40 seconds' * (100.0 * 2000 / {events}), 1 + n % {customers},
                    (ARRAY['view','search','basket','login'])[1 + n % 4], jsonb_build_object('path', '/p/' || n % 997, 'ms', n % 450)
             FROM generate_series(1::bigint, {events}) n"
        ),
        INDEXES.to_owned(),
    ];
    for statement in &steps {
        super::sql(shop, statement).await?;
    }
    Ok(digests(shop).await?.values().map(|digest| digest.rows).sum())
}

/// The digest of every table that is there.
pub(super) async fn digests(shop: &Connection) -> Result<BTreeMap<String, Digest>, Failure> {
    let failed = |error| Failure::caused_by("cannot read the shop's tables", error);
    let mut digests = BTreeMap::new();
    for table in TABLES {
        let exists: bool = shop
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table])
            .await
            .map_err(failed)?
            .get(0);
        if exists {
            let row = shop
                .query_one(
                    &format!(
                        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM {table} t"
                    ),
                    &[],
                )
                .await
                .map_err(failed)?;
            digests.insert(
                table.to_owned(),
                Digest {
                    rows: row.get(0),
                    sum: row.get(1),
                },
            );
        }
    }
    Ok(digests)
}

/// The tables of `before` that are missing or different in `now`.
pub(super) fn differing(before: &BTreeMap<String, Digest>, now: &BTreeMap<String, Digest>) -> Vec<String> {
    before
        .iter()
        .filter(|(table, digest)| now.get(*table) != Some(*digest))
        .map(|(table, _)| table.clone())
        .collect()
}

/// The rows of the closing table.
pub(super) fn proof(
    before: &BTreeMap<String, Digest>,
    damaged: &BTreeMap<String, Digest>,
    after: &BTreeMap<String, Digest>,
) -> Vec<[String; 4]> {
    before
        .iter()
        .map(|(table, digest)| {
            let verdict = match after.get(table) {
                Some(restored) if restored == digest => "equal, row by row".to_owned(),
                Some(restored) => format!("DIFFERENT ({} rows)", thousands(restored.rows)),
                None => "MISSING".to_owned(),
            };
            let damage = damaged
                .get(table)
                .map_or_else(|| "dropped".to_owned(), |digest| thousands(digest.rows));
            [table.clone(), thousands(digest.rows), damage, verdict]
        })
        .collect()
}

/// A number with a comma between groups of three digits.
pub(super) fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!(
            [0, 12, 999, 1_000, 1_234_567, -45_000].map(thousands),
            ["0", "12", "999", "1,000", "1,234,567", "-45,000"]
        );
    }
}
