-- A suspended project takes no events over HTTP. What it has is kept and can be read.
ALTER TABLE projects ADD COLUMN suspended_at timestamptz;
