-- What operators changed: a row per command that changes something, written before its first change.
CREATE TABLE audit (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    who       text NOT NULL,                            -- TIDEMILL_OPERATOR, else the name of the login
    client    inet DEFAULT inet_client_addr(),
    command   text NOT NULL,                            -- e.g. "dlq discard"
    project   text,                                     -- null: all, or none
    plan      jsonb NOT NULL,                           -- what was going to change
    outcome   text NOT NULL DEFAULT 'started',          -- then "done", or "failed: …"
    ended_at  timestamptz
);
CREATE INDEX audit_by_time ON audit (at);
