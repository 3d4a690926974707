-- +goose Up
-- What waits: the operations of an open job that no attempt has begun on, those in work,
-- and since when the job's revision is open. The log is applied anew from its beginning.
TRUNCATE jobs, positions;
ALTER TABLE jobs
    ADD COLUMN pending   text[] NOT NULL DEFAULT '{}',
    ADD COLUMN running   text[] NOT NULL DEFAULT '{}',
    ADD COLUMN opened_at timestamptz NOT NULL;
CREATE INDEX jobs_open ON jobs (opened_at) WHERE phase = 1;

-- +goose Down
DROP INDEX jobs_open;
ALTER TABLE jobs DROP COLUMN pending, DROP COLUMN running, DROP COLUMN opened_at;
