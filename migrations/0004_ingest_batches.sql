-- Who sent how much: one row per API key and flush (about a second) of a gateway. It is written beside the
-- requests and may be lost with a gateway; the log is the truth of what was accepted.
CREATE TABLE ingest_batches (
    flush        uuid NOT NULL,                   -- so that a flush whose outcome is unknown can be tried again
    project      text NOT NULL,
    key_prefix   text NOT NULL,
    received_at  timestamptz NOT NULL,            -- of the first request
    requests     bigint NOT NULL,
    events       bigint NOT NULL,
    accepted     bigint NOT NULL,
    duplicates   bigint NOT NULL,
    invalid      bigint NOT NULL,
    limited      bigint NOT NULL,
    retry        bigint NOT NULL,
    bytes        bigint NOT NULL,                 -- of the requests' bodies
    types        jsonb NOT NULL,                  -- valid events by type
    PRIMARY KEY (flush, key_prefix)
);
CREATE INDEX ingest_batches_by_project ON ingest_batches (project, received_at);
CREATE INDEX ingest_batches_by_time ON ingest_batches (received_at);
