-- Sessions with all that is said of them, users, and carts.

-- `*_at` beside a value is the time of the event it comes from, as before.
ALTER TABLE sessions
    ADD COLUMN revenue        numeric,               -- null: none
    ADD COLUMN is_new         boolean NOT NULL DEFAULT false, -- at `user_at` the user was first seen
    ADD COLUMN entry_page     text,
    ADD COLUMN entry_at       timestamptz,           -- earliest event that names a page
    ADD COLUMN traffic_source text,                  -- null: direct
    ADD COLUMN source_at      timestamptz,           -- earliest event that names a source
    ADD COLUMN device_type    text,
    ADD COLUMN device_at      timestamptz,           -- earliest event with a user agent
    ADD COLUMN country        text,
    ADD COLUMN country_at     timestamptz,           -- earliest event whose country is known
    -- The half hour of the last event, since 1970. It changes seldom, so that a session that goes on is mostly written
    -- beside its older self in its page, with no index to change; and what is live is in two of them.
    ADD COLUMN last_slot      integer NOT NULL DEFAULT 0;
UPDATE sessions SET last_slot = floor(extract(epoch FROM last_event_at) / 1800);

DROP INDEX sessions_by_time;
-- The slot first, so that nobody takes this index to look up a session id.
CREATE INDEX sessions_by_slot ON sessions (last_slot, generation, project, session_id);

-- Rows that change with every batch: room in a page for another version of each of them, since those of a page were
-- made together and mostly change together. Old versions are cleared away soon.
ALTER TABLE sessions SET (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE session_keys SET (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05);

-- A user is written when new or when seen earlier than known; most batches only read.
ALTER TABLE users
    DROP COLUMN last_event_at,
    ADD COLUMN moved_from timestamptz;               -- what `first_event_at` was before it last became earlier

-- What carts are made of: per session id the events that its cart still depends on, so those later than the last
-- purchase and at most a day older than the latest of all. Both bounds only ever move on, so what is behind them can be
-- forgotten whatever comes late.
CREATE TABLE cart_events (
    generation  integer NOT NULL,
    project     text NOT NULL,
    session_id  text NOT NULL,
    at          timestamptz NOT NULL,
    event_id    text NOT NULL,
    item        text,                                -- null: a purchase, which empties the cart
    quantity    bigint NOT NULL,                     -- negative: taken out
    price       numeric,                             -- of one
    PRIMARY KEY (generation, project, session_id, at, event_id)
);
CREATE INDEX cart_events_by_time ON cart_events USING brin (at);
