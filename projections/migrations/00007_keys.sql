-- +goose Up
-- The id of jobs under a job's idempotency key, where that is not its own: jobs that came from
-- another service. No job had one before.
ALTER TABLE jobs ADD COLUMN key_id uuid;
CREATE INDEX jobs_by_key ON jobs (key_id) WHERE key_id IS NOT NULL;

-- +goose Down
DROP INDEX jobs_by_key;
ALTER TABLE jobs DROP COLUMN key_id;
