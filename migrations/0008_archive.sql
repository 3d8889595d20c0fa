-- For how many days, of the events' own time, a project's events stay in the archive; null: for ever.
ALTER TABLE projects ADD COLUMN archive_days integer CHECK (archive_days > 0);
