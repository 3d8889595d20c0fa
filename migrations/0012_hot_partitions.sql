-- Partitions that lag far behind the others of their topic: a row each time one does, kept up to date by its worker.
CREATE TABLE hot_partitions (
    view         text NOT NULL,
    topic        text NOT NULL,
    partition    integer NOT NULL,
    since        timestamptz NOT NULL,                  -- its lag has been far above the average from then on
    updated_at   timestamptz NOT NULL DEFAULT now(),
    ended_at     timestamptz,                           -- null: it still is
    lag          bigint NOT NULL,                       -- records
    average      double precision NOT NULL,             -- of all partitions of the topic
    explanation  jsonb NOT NULL,                        -- what it consists of, and the remedies
    PRIMARY KEY (view, topic, partition, since)
);
CREATE UNIQUE INDEX hot_partitions_now ON hot_partitions (view, topic, partition) WHERE ended_at IS NULL;

-- Limits of event types and users that operators set while gateways run.
CREATE TABLE event_limits (
    project     text NOT NULL REFERENCES projects (id),
    kind        text NOT NULL CHECK (kind IN ('type', 'user')),
    name        text NOT NULL,
    per_second  integer NOT NULL CHECK (per_second >= 0),  -- over all gateways; 0: none may pass
    set_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, kind, name)
);
