INSERT INTO events
SELECT n, timestamptz '2025-01-01' + n * interval '1.3 s' + random() * interval '1 s', floor(2000 * random() ^ 2),
    20 + 5 * sin(n / 5000.0) + random(), round((1000 * random() ^ 2)::numeric, 3)
FROM generate_series(1, (:scale * 4000000)::bigint) AS n;
CREATE INDEX ON events (sensor, at);
VACUUM (FREEZE, ANALYZE) events;
