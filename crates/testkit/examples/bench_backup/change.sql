-- One row on each of some pages, chosen at random: a hundredth of all pages of the database, indexes included.
SELECT 0.01 * (SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    / (pg_relation_size('customers') + pg_relation_size('orders') + pg_relation_size('events')) AS part \gset
UPDATE customers SET since = since + 1 WHERE ctid = ANY (ARRAY(
    SELECT format('(%s,%s)', page, 1 + :round)::tid
    FROM generate_series(0, pg_relation_size('customers') / 8192 - 1) AS page WHERE random() < :part));
UPDATE orders SET placed = placed + interval '1 s' WHERE ctid = ANY (ARRAY(
    SELECT format('(%s,%s)', page, 1 + :round)::tid
    FROM generate_series(0, pg_relation_size('orders') / 8192 - 1) AS page WHERE random() < :part));
UPDATE events SET value = value + 1 WHERE ctid = ANY (ARRAY(
    SELECT format('(%s,%s)', page, 1 + :round)::tid
    FROM generate_series(0, pg_relation_size('events') / 8192 - 1) AS page WHERE random() < :part));
CHECKPOINT;
