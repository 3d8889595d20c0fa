-- When the newest record before `next_offset` was appended, in milliseconds since 1970; 0 where it is not known. The log is
-- known by it to have lost its end. Unlike `as_of`, which is the last batch's, it never goes back, though clocks may.
ALTER TABLE ledger ADD COLUMN newest_ms bigint NOT NULL DEFAULT 0;
