-- The truth of every count. Every table that is derived from the log carries `generation`, so that a
-- rebuild can stand beside the live state; `projects.generation` names the live one.

CREATE TABLE projects (
    id                text PRIMARY KEY CHECK (id ~ '^[a-z0-9-]{1,48}$' AND id NOT IN ('processed', 'dlq')),
    -- What an event's home partition is computed from; never what a client's metadata says.
    partitions        integer NOT NULL CHECK (partitions > 0),
    dlq_partitions    integer NOT NULL CHECK (dlq_partitions > 0),
    -- Copies of an eventId at most this far apart (by append time) count once. Fixed at creation.
    dedupe_window_ms  bigint NOT NULL DEFAULT 86400000 CHECK (dedupe_window_ms > 0),
    generation        integer NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now(),
    -- Ids are never used again, so a deleted project stays as a row.
    deleted_at        timestamptz
);

CREATE TABLE api_keys (
    hash         bytea PRIMARY KEY,               -- SHA-256 of the whole key; the key itself is kept nowhere
    prefix       text NOT NULL UNIQUE,            -- its first characters, for people and for lookup
    project      text NOT NULL REFERENCES projects,
    scopes       text[] NOT NULL CHECK (scopes <@ ARRAY['write', 'read', 'admin'] AND cardinality(scopes) > 0),
    rate_limit   integer CHECK (rate_limit > 0),  -- events per second; null: no limit
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz
);

-- How far each view has got, changed in the same transaction as the view's data.
CREATE TABLE ledger (
    view               text NOT NULL,
    generation         integer NOT NULL,
    topic              text NOT NULL,
    topic_incarnation  text NOT NULL,             -- Kafka's topic id, base64
    partition          integer NOT NULL,
    next_offset        bigint NOT NULL,           -- the first offset this view has not seen
    projected_offset   bigint NOT NULL,           -- everything below it is in Redis
    as_of              timestamptz NOT NULL,      -- everything appended before it is counted
    PRIMARY KEY (view, generation, topic, topic_incarnation, partition)
);

CREATE TABLE users (
    generation      integer NOT NULL,
    project         text NOT NULL,
    user_id         text NOT NULL,
    first_event_at  timestamptz NOT NULL,
    last_event_at   timestamptz NOT NULL,
    PRIMARY KEY (generation, project, user_id)
);

-- One row per project and session id: the lock under which its sessions change, and their version.
CREATE TABLE session_keys (
    generation  integer NOT NULL,
    project     text NOT NULL,
    session_id  text NOT NULL,
    version     bigint NOT NULL,
    PRIMARY KEY (generation, project, session_id)
);

-- A session id can have several sessions: more than 30 minutes without an event ends one.
-- `*_at` beside a value is the time of the event it comes from, so that merging needs no order of arrival.
CREATE TABLE sessions (
    generation      integer NOT NULL,
    project         text NOT NULL,
    session_id      text NOT NULL,
    first_event_at  timestamptz NOT NULL,
    last_event_at   timestamptz NOT NULL,
    total_events    bigint NOT NULL,
    page_views      bigint NOT NULL,
    conversions     bigint NOT NULL,
    user_id         text,
    user_at         timestamptz,                  -- earliest event that names a user
    current_page    text,
    page_at         timestamptz,                  -- latest event that names a page
    PRIMARY KEY (generation, project, session_id, first_event_at)
);
CREATE INDEX sessions_by_user ON sessions (generation, project, user_id, first_event_at) WHERE user_id IS NOT NULL;
CREATE INDEX sessions_by_time ON sessions (generation, project, last_event_at);

-- Counts and sketches per window. A window's answer is the sum (the merge) over its shards.
CREATE TABLE metric_rollups (
    generation       integer NOT NULL,
    project          text NOT NULL,
    metric_name      text NOT NULL,
    dimension_key    text NOT NULL DEFAULT '',
    dimension_value  text NOT NULL DEFAULT '',
    granularity      text NOT NULL CHECK (granularity IN ('1m', '1h', '1d')),
    window_start     timestamptz NOT NULL,
    shard            smallint NOT NULL,
    version          bigint NOT NULL,
    count            bigint NOT NULL,
    sum              numeric,
    min              numeric,
    max              numeric,
    users            bytea,                       -- HLL of user ids (Apache DataSketches format)
    PRIMARY KEY (generation, project, metric_name, dimension_key, dimension_value, granularity, window_start, shard)
);

CREATE VIEW daily_metrics AS
SELECT r.project, (r.window_start AT TIME ZONE 'UTC')::date AS date, r.metric_name,
       r.dimension_key, r.dimension_value, sum(r.count) AS value
FROM metric_rollups r JOIN projects p ON p.id = r.project AND p.generation = r.generation
WHERE r.granularity = '1d'
GROUP BY 1, 2, 3, 4, 5;

CREATE TABLE dead_letters (
    project            text NOT NULL,
    topic              text NOT NULL,
    topic_incarnation  text NOT NULL,
    partition          integer NOT NULL,
    "offset"           bigint NOT NULL,
    append_time        timestamptz NOT NULL,
    stage              text NOT NULL,             -- decode or validate
    reason             text NOT NULL,             -- a stable word
    detail             text NOT NULL,             -- a sentence for people
    created_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, topic_incarnation, partition, "offset")
);
CREATE INDEX dead_letters_by_project ON dead_letters (project, created_at);
