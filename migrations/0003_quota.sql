-- Events per second that a project may send over all gateways; null: no limit.
ALTER TABLE projects ADD COLUMN quota_per_second integer CHECK (quota_per_second > 0);
