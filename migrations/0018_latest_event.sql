-- When the latest event of a session id happened. Whoever adds that event knows the session that Redis is to show, and
-- nobody has to read it again.
ALTER TABLE session_keys ADD COLUMN latest_event_at timestamptz;
UPDATE session_keys k SET latest_event_at = (
    SELECT max(s.last_event_at) FROM sessions s
    WHERE s.generation = k.generation AND s.project = k.project AND s.session_id = k.session_id);
