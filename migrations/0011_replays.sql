-- Rebuilds of what is derived from a project's log. Each has a generation of its own, whose number is never used again,
-- so these rows stay. How far it has got is in the ledger, under that generation.
CREATE TABLE replays (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project            text NOT NULL REFERENCES projects,
    generation         integer NOT NULL,              -- what is built
    replaces           integer NOT NULL,              -- what was live when it was planned
    topic_incarnation  text NOT NULL,
    begins             text NOT NULL,                 -- what was asked for, for people
    starts             jsonb NOT NULL,                -- from which offset each partition is read
    archive_snapshot   bigint,                        -- which has what is before these offsets; null: nothing, or left out
    archive_files      bigint,
    rate               integer CHECK (rate > 0),      -- records per second, over all workers; null: no limit
    state              text NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'running', 'switched', 'aborted')),
    who                text NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    started_at         timestamptz,
    ended_at           timestamptz,
    comparison         jsonb,                         -- how it differed from the live one, at equal offsets
    compared_at        timestamptz,
    UNIQUE (project, generation)
);
-- One at a time.
CREATE UNIQUE INDEX replays_open ON replays (project) WHERE state IN ('planned', 'running');

-- What was live before the last switch, until somebody says that it is not needed any more.
ALTER TABLE projects ADD COLUMN kept_generation integer;
