-- Declared metrics, what they keep per window, and what is seen of it in SQL.

CREATE TABLE metric_definitions (
    project     text NOT NULL REFERENCES projects,
    name        text NOT NULL,
    definition  jsonb NOT NULL,
    -- What was counted before is as the definition was then.
    changed_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, name)
);

DROP VIEW daily_metrics;

ALTER TABLE metric_rollups
    -- What the metric computes, so that a row can be read without its definition.
    ADD COLUMN aggregation text NOT NULL DEFAULT 'count',
    -- Log-bucket histogram: per bucket its number (2 bytes) and count (6 bytes), big end first, in order.
    ADD COLUMN quantiles bytea,
    -- Sketches are compressed badly and read as a whole. Outside of the row, one that stays as it is costs nothing
    -- when the row is written again.
    ALTER COLUMN users SET STORAGE EXTERNAL,
    ALTER COLUMN quantiles SET STORAGE EXTERNAL;

-- A hot window is written with every batch: room beside it in its page keeps it out of the indexes, and old versions
-- are cleared away soon.
ALTER TABLE metric_rollups SET
    (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.05);

-- The windows of a metric by time, over all values of a dimension.
CREATE INDEX metric_rollups_by_window ON metric_rollups
    (generation, project, metric_name, dimension_key, granularity, window_start);

-- The composite estimate in SQL, a little rougher than in the services, but within 2 % too: of the union of sketches in
-- the format of Apache DataSketches (HLL_8 with 2^14 registers; small sets as lists of 4-byte coupons, of which the
-- upper 6 bits are the register's value and the lower 14 its place).
CREATE FUNCTION tidemill_unique(sketches bytea[]) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    WITH images AS (
        SELECT image, get_byte(image, 7) & 3 AS mode, CASE get_byte(image, 7) & 3 WHEN 0 THEN 8 WHEN 1 THEN 12 ELSE 40 END AS start
        FROM unnest(sketches) AS image WHERE image IS NOT NULL
    ), coupons AS (
        SELECT DISTINCT (get_byte(image, at + 3)::bigint << 24) + (get_byte(image, at + 2) << 16)
                        + (get_byte(image, at + 1) << 8) + get_byte(image, at) AS coupon
        FROM images, generate_series(start, length(image) - 4, 4) AS at
        WHERE mode < 2
    ), registers AS (
        SELECT at - start AS place, get_byte(image, at) AS value
        FROM images, generate_series(start, length(image) - 1) AS at
        WHERE mode = 2 AND get_byte(image, at) > 0
        UNION ALL
        SELECT (coupon & 16383)::int, (coupon >> 26)::int FROM coupons
    ), highest AS (
        SELECT max(value) AS value FROM registers GROUP BY place
    ), state AS (
        SELECT 16384 - count(*) AS zeros, 16384 - count(*) + coalesce(sum(2.0::float8 ^ -value), 0) AS harmonic FROM highest
    ), raw AS (
        SELECT zeros, 0.7213 / (1 + 1.079 / 16384) * 16384.0 * 16384.0 / harmonic AS estimate FROM state
    )
    SELECT CASE
        WHEN NOT EXISTS (SELECT FROM images WHERE mode = 2) THEN (SELECT count(*) FROM coupons)
        -- Linear counting where it is the better of the two.
        WHEN zeros > 0 AND 16384 * ln(16384.0 / zeros) < 2.7 * 16384 THEN round(16384 * ln(16384.0 / zeros))
        ELSE round(estimate::numeric)
    END FROM raw
$$;

-- A percentile of merged histograms, within 1 %.
CREATE FUNCTION tidemill_quantile(histograms bytea[], share float8) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    WITH entries AS (
        SELECT ((get_byte(image, at) << 8) + get_byte(image, at + 1)) AS number,
               (get_byte(image, at + 2)::numeric * 1099511627776 + get_byte(image, at + 3)::numeric * 4294967296
                + get_byte(image, at + 4)::numeric * 16777216 + (get_byte(image, at + 5) << 16)
                + (get_byte(image, at + 6) << 8) + get_byte(image, at + 7)) AS count
        FROM unnest(histograms) AS image, generate_series(0, length(image) - 8, 8) AS at
    ), buckets AS (
        SELECT CASE WHEN number > 32767 THEN number - 65536 ELSE number END AS bucket, sum(count) AS count
        FROM entries GROUP BY 1
    ), ranked AS (
        SELECT bucket, sum(count) OVER (ORDER BY bucket) AS below, sum(count) OVER () AS total FROM buckets
    )
    SELECT (sign(bucket) * CASE bucket WHEN 0 THEN 0 ELSE 2 * (1.01 / 0.99) ^ (abs(bucket) - 1100) / (1.01 / 0.99 + 1) END)::numeric
    FROM ranked WHERE below >= greatest(ceil(total * share::numeric), 1) ORDER BY bucket LIMIT 1
$$;

-- A value per day, metric and value of a dimension, of the live generation.
CREATE VIEW daily_metrics AS
WITH days AS (
    SELECT r.project, (r.window_start AT TIME ZONE 'UTC')::date AS date, r.metric_name, r.dimension_key, r.dimension_value,
           max(r.aggregation) AS aggregation, sum(r.count) AS count, sum(r.sum) AS sum, min(r.min) AS min, max(r.max) AS max,
           array_agg(r.users) AS users, array_agg(r.quantiles) AS quantiles
    FROM metric_rollups r JOIN projects p ON p.id = r.project AND p.generation = r.generation
    WHERE r.granularity = '1d'
    GROUP BY 1, 2, 3, 4, 5
)
SELECT project, date, metric_name, dimension_key, dimension_value,
       CASE aggregation
           WHEN 'count' THEN count
           WHEN 'sum' THEN coalesce(sum, 0)
           WHEN 'min' THEN min
           WHEN 'max' THEN max
           WHEN 'avg' THEN round(sum / nullif(count, 0), 9)
           WHEN 'unique' THEN tidemill_unique(users)
           WHEN 'p50' THEN least(greatest(tidemill_quantile(quantiles, 0.50), min), max)
           WHEN 'p95' THEN least(greatest(tidemill_quantile(quantiles, 0.95), min), max)
           WHEN 'p99' THEN least(greatest(tidemill_quantile(quantiles, 0.99), min), max)
       END AS value
FROM days
UNION ALL
SELECT project, date, 'daily_active_users', dimension_key, dimension_value, tidemill_unique(users)
FROM days WHERE metric_name = 'events' AND dimension_key = ''
UNION ALL
SELECT b.project, b.date, 'bounce_rate', '', '', round(b.count / nullif(s.count, 0), 9)
FROM days b JOIN days s ON s.project = b.project AND s.date = b.date AND s.metric_name = 'sessions' AND s.dimension_key = ''
WHERE b.metric_name = 'bounces' AND b.dimension_key = '';

-- Every event once more, for SQL here; written where a setting asks for it. Days of receipt are partitions, which the
-- workers make and drop; with TimescaleDB they are chunks of a hypertable, compressed after two days. Its Apache
-- edition cannot compress, so with that one they stay partitions.
DO $$
DECLARE
    timescale boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
                         AND current_setting('timescaledb.license', true) = 'timescale';
BEGIN
    EXECUTE 'CREATE TABLE raw_events (
        generation       integer NOT NULL,
        project          text NOT NULL,
        append_time      timestamptz NOT NULL,        -- when the log received it
        kafka_partition  integer NOT NULL,
        kafka_offset     bigint NOT NULL,
        event_id         text NOT NULL,
        event_type       text NOT NULL,
        event_action     text,
        user_id          text,
        session_id       text,
        occurred_at      timestamptz NOT NULL,
        received_at      timestamptz,                 -- when the gateway received it
        properties       jsonb                        -- text where jsonb cannot hold them
    )' || CASE WHEN timescale THEN '' ELSE ' PARTITION BY RANGE (append_time)' END;
    IF timescale THEN
        EXECUTE 'SELECT create_hypertable(''raw_events'', ''append_time'', chunk_time_interval => interval ''1 day'',
                                          create_default_indexes => false)';
        -- Segments that go as a whole, as those of a generation do, need not be taken apart for it.
        EXECUTE 'ALTER TABLE raw_events SET (timescaledb.compress, timescaledb.compress_segmentby = ''project, generation'',
                                             timescaledb.compress_orderby = ''append_time'')';
        EXECUTE 'SELECT add_compression_policy(''raw_events'', interval ''2 days'')';
    END IF;
END $$;
CREATE INDEX raw_events_by_session ON raw_events (project, session_id) WHERE session_id IS NOT NULL;
CREATE INDEX raw_events_by_user ON raw_events (project, user_id) WHERE user_id IS NOT NULL;
CREATE INDEX raw_events_by_type ON raw_events (project, event_type, occurred_at);
CREATE INDEX raw_events_by_property ON raw_events USING gin (properties jsonb_path_ops);

CREATE FUNCTION tidemill_is_hypertable() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT relkind <> 'p' FROM pg_class WHERE oid = 'raw_events'::regclass
$$;

-- Makes the partition of a day. Attaching a table does not wait for those who write other days, as creating it in
-- its place would.
CREATE FUNCTION tidemill_prepare_raw_events(day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text := 'raw_events_' || to_char(day, 'YYYYMMDD');
BEGIN
    IF tidemill_is_hypertable() THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('raw_events'));
    IF to_regclass(name) IS NULL THEN
        EXECUTE format('CREATE TABLE %I (LIKE raw_events INCLUDING DEFAULTS)', name);
        EXECUTE format('ALTER TABLE raw_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name,
                       day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
    END IF;
END $$;

-- Drops the days before a day, and says how many. It waits a moment only for those who write, and is tried again later.
CREATE FUNCTION tidemill_drop_raw_events(before date) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    partition text;
    dropped bigint := 0;
BEGIN
    PERFORM set_config('lock_timeout', '2s', true);
    IF tidemill_is_hypertable() THEN
        EXECUTE 'SELECT count(*) FROM drop_chunks(''raw_events'', older_than => $1)' INTO dropped
            USING before::timestamp AT TIME ZONE 'UTC';
        RETURN dropped;
    END IF;
    FOR partition IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'raw_events'::regclass AND c.relname < 'raw_events_' || to_char(before, 'YYYYMMDD')
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE %I', partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
