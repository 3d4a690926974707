-- +goose Up
-- Where each job's events lie in its partition, for its history: see history.go. What
-- was applied before has no places, so the log is applied anew from its beginning.
TRUNCATE jobs, positions;
ALTER TABLE jobs ADD COLUMN events bytea NOT NULL;

-- +goose Down
ALTER TABLE jobs DROP COLUMN events;
