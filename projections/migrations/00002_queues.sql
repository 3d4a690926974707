-- +goose Up
-- What waits: the operations of an open job that no attempt has begun on, those in work,
-- and since when the job's revision is open. The next migration, in Go, fills in the rows
-- that are there, since only it can read the states. A projector of the version before
-- leaves these columns alone: its rows are not counted.
ALTER TABLE jobs
    ADD COLUMN pending   text[] NOT NULL DEFAULT '{}',
    ADD COLUMN running   text[] NOT NULL DEFAULT '{}',
    ADD COLUMN opened_at timestamptz;
CREATE INDEX jobs_open ON jobs (opened_at) WHERE phase = 1;

-- +goose Down
DROP INDEX jobs_open;
ALTER TABLE jobs DROP COLUMN pending, DROP COLUMN running, DROP COLUMN opened_at;
