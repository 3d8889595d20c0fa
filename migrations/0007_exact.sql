-- Which history this database tells. It is raised when Postgres has come back older than what it had shown (restored
-- from a backup, or crashed with `synchronous_commit = off`): what the lost future has left in Redis has higher
-- versions than the same rows have now, but a lower epoch.
CREATE TABLE timeline (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one), -- it has one row
    epoch      bigint NOT NULL,
    raised_at  timestamptz NOT NULL DEFAULT now(),
    reason     text NOT NULL
);
INSERT INTO timeline (epoch, reason) VALUES (0, 'new');

-- Records that a view has gone past without counting them, since the log does not have them any more. Each one was
-- somebody's decision, or came with a topic that was deleted and made again.
CREATE TABLE gaps (
    view               text NOT NULL,
    generation         integer NOT NULL,
    topic              text NOT NULL,
    topic_incarnation  text NOT NULL,
    partition          integer NOT NULL,
    from_offset        bigint NOT NULL,
    to_offset          bigint,                    -- the first one behind; null: nobody knows
    reason             text NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (view, generation, topic, topic_incarnation, partition, from_offset)
);

-- What is hot is found by its time, however much there is that is not.
CREATE INDEX metric_rollups_by_time ON metric_rollups (generation, project, granularity, window_start);
