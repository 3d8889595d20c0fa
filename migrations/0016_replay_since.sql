-- A replay that begins at a time before what Kafka holds takes from the archive what was appended then or later; null: all.
ALTER TABLE replays ADD COLUMN archive_since timestamptz;
