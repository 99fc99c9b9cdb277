-- A shop's data: customers with text, orders as JSON, a machine's measurements as numbers. About one GiB for
-- each unit of scale. Pages leave room for one more row, so that an update stays on its page.

CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL, mail text NOT NULL, since date NOT NULL,
    address text NOT NULL, about text NOT NULL) WITH (fillfactor = 85);
CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint NOT NULL, placed timestamptz NOT NULL,
    document jsonb NOT NULL) WITH (fillfactor = 90);
CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL, sensor integer NOT NULL, value float8 NOT NULL,
    level numeric(10, 3) NOT NULL) WITH (fillfactor = 95);
