WITH phrases AS MATERIALIZED (
    SELECT array_agg(substr(md5(n::text), 1, 2 + n % 5) || ' ' || substr(md5((n * 31)::text), 1, 3 + n % 7)) AS list
    FROM generate_series(1, 500) AS n)
INSERT INTO customers
SELECT n, initcap(list[1 + n % 499]) || ' ' || initcap(list[1 + n % 487]), md5(n::text) || '@example.org',
    date '2016-01-01' + (n % 3600)::int, list[1 + floor(500 * random())::int] || ' ' || n % 190 || ', ' || 10000 + n % 89999,
    (SELECT string_agg(list[1 + floor(500 * random() ^ 2)::int + 0 * word], ' ') FROM generate_series(1, 20 + n % 40) AS word)
FROM generate_series(1, (:scale * 290000)::bigint) AS n, phrases;

WITH phrases AS MATERIALIZED (
    SELECT array_agg(substr(md5(n::text), 1, 2 + n % 5) || '-' || substr(md5((n * 31)::text), 1, 3 + n % 7)) AS list
    FROM generate_series(1, 500) AS n)
INSERT INTO orders
SELECT n, floor(290000 * :scale * random()), timestamptz '2024-01-01' + n * interval '3.7 s',
    jsonb_build_object('state', (ARRAY['new', 'paid', 'packed', 'shipped', 'returned'])[1 + floor(5 * random() ^ 2)::int],
        'session', md5(random()::text), 'total', round((900 * random() ^ 3)::numeric, 2), 'gift', random() < 0.1,
        'items', jsonb_build_array(
            jsonb_build_object('article', list[1 + floor(500 * random() ^ 3)::int], 'count', 1 + n % 4,
                'price', round((300 * random())::numeric, 2)),
            jsonb_build_object('article', list[1 + floor(500 * random() ^ 3)::int], 'count', 1 + n % 3,
                'price', round((300 * random())::numeric, 2))))
FROM generate_series(1, (:scale * 1000000)::bigint) AS n, phrases;
CREATE INDEX ON orders (customer);
VACUUM (FREEZE, ANALYZE) customers;
VACUUM (FREEZE, ANALYZE) orders;
