-- How often a user has been forgotten: what workers remember of users is of the count at which they learnt it.
ALTER TABLE timeline ADD COLUMN forgotten bigint NOT NULL DEFAULT 0;
