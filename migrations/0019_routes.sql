-- Topics of their own for events of some types. Nothing about a route changes once it is there.
CREATE TABLE routes (
    project      text NOT NULL REFERENCES projects (id),
    number       integer NOT NULL CHECK (number > 0),   -- in the order in which they began, from 1 on
    name         text NOT NULL,
    event_types  text[] NOT NULL,
    times        integer NOT NULL DEFAULT 1 CHECK (times > 0),  -- as many partitions as the project's own topic has
    key          jsonb NOT NULL DEFAULT '"event_id"',           -- what homes are computed from
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, number),
    UNIQUE (project, name)
);

-- Those of a project, in their order.
CREATE FUNCTION tidemill_routes(id text) RETURNS json LANGUAGE sql STABLE AS $$
    SELECT coalesce(json_agg(json_build_object('name', r.name, 'event_types', r.event_types, 'times', r.times, 'key', r.key)
                             ORDER BY r.number), '[]')
    FROM routes r WHERE r.project = id
$$;

-- An era ends for all topics of a project at once: its own, whose number is 0, and its routes'.
ALTER TABLE eras ADD COLUMN version integer, ADD COLUMN topic integer NOT NULL DEFAULT 0,
                 ADD COLUMN routes integer NOT NULL DEFAULT 0;
UPDATE eras e SET version = r.version
FROM (SELECT project, partitions, dense_rank() OVER (PARTITION BY project ORDER BY partitions) - 1 AS version FROM eras) r
WHERE r.project = e.project AND r.partitions = e.partitions;
DELETE FROM eras e USING eras newer
WHERE newer.project = e.project AND newer.version = e.version AND newer.ended_at > e.ended_at;
ALTER TABLE eras DROP CONSTRAINT eras_pkey, ALTER COLUMN version SET NOT NULL,
                 ADD PRIMARY KEY (project, version, topic);

-- How many eras of a project are over.
ALTER TABLE projects ADD COLUMN layout integer NOT NULL DEFAULT 0;
UPDATE projects p SET layout = (SELECT count(DISTINCT version) FROM eras e WHERE e.project = p.id);

-- The layouts of projects, asked after whoever changes them. In one round trip, and two statements all the same: the one
-- that waits for the locks would see what was there before.
DROP FUNCTION tidemill_partitions;
CREATE FUNCTION tidemill_layouts(lock integer, ids text[])
RETURNS TABLE (id text, layout integer) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(lock, hashtext(w.id)) FROM unnest(ids) AS w(id);
    RETURN QUERY SELECT p.id, p.layout FROM projects p WHERE p.id = ANY (ids);
END $$;

-- A replay reads the topics that its project has when it is planned, each with Kafka's id of it.
ALTER TABLE replays ADD COLUMN topics jsonb;
UPDATE replays SET topics = jsonb_build_object('events.' || project, topic_incarnation);
ALTER TABLE replays ALTER COLUMN topics SET NOT NULL, DROP COLUMN topic_incarnation;
