-- What becomes of dead letters. A row stays the verdict on its record for ever: what is sent through again is another
-- record, which counts if the letter is still open.
ALTER TABLE dead_letters
    ADD COLUMN state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'counted', 'duplicate', 'discarded')),
    ADD COLUMN attempts integer NOT NULL DEFAULT 1,         -- how often it was refused; reason and detail are the last ones
    ADD COLUMN refused_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN digest bytea NOT NULL DEFAULT '',            -- SHA-256 of key and value: whoever has other bytes is no redrive
    ADD COLUMN closed_at timestamptz,
    ADD COLUMN why text,                                    -- it was discarded
    -- As what it was last sent through again, and after how many attempts.
    ADD COLUMN sent_incarnation text,
    ADD COLUMN sent_offset bigint,
    ADD COLUMN sent_attempts integer,
    ADD COLUMN sent_at timestamptz;
CREATE INDEX dead_letters_open ON dead_letters (project, reason, created_at) WHERE state = 'open';

-- What the stream made of records that were sent through again. Like a dead letter's row, it is the verdict for
-- everybody: the archive and rebuilds follow it.
CREATE TABLE redrives (
    topic               text NOT NULL,
    topic_incarnation   text NOT NULL,
    partition           integer NOT NULL,
    "offset"            bigint NOT NULL,
    letter_incarnation  text NOT NULL,
    letter_partition    integer NOT NULL,
    letter_offset       bigint NOT NULL,
    outcome             text NOT NULL CHECK (outcome IN ('counted', 'duplicate', 'refused', 'closed')),
    created_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, topic_incarnation, partition, "offset")
);
CREATE INDEX redrives_of_letter ON redrives (topic, letter_incarnation, letter_partition, letter_offset);
