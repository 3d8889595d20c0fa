-- The times in which a project's topics had fewer partitions. What a record is follows from the era that it lies in.
CREATE TABLE eras (
    project            text NOT NULL,
    topic_incarnation  text NOT NULL,             -- of events.{project}
    partitions         integer NOT NULL CHECK (partitions > 0),
    -- By partition, those that were new then too: the first offset that belongs to the next era.
    cutoffs            bigint[] NOT NULL,
    ended_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, topic_incarnation, partitions)
);

-- The partition counts of projects, asked after whoever changes them. In one round trip, and two statements all the same:
-- the one that waits for the locks would see what was there before.
CREATE FUNCTION tidemill_partitions(lock integer, ids text[])
RETURNS TABLE (id text, partitions integer) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(lock, hashtext(w.id)) FROM unnest(ids) AS w(id);
    RETURN QUERY SELECT p.id, p.partitions FROM projects p WHERE p.id = ANY (ids);
END $$;
