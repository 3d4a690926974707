-- +goose Up
-- What of an ended job is stored, and since when it counts: see keeping.go. NULL: nothing. The log
-- is applied anew from its beginning.
TRUNCATE jobs, positions, usage;
ALTER TABLE jobs
    ADD COLUMN source_since  timestamptz,
    ADD COLUMN results_since timestamptz;
-- What is due is a range at the beginning of these.
CREATE INDEX jobs_with_source ON jobs (source_since, job_id) WHERE source_since IS NOT NULL;
CREATE INDEX jobs_with_results ON jobs (results_since, job_id) WHERE results_since IS NOT NULL;

-- +goose Down
DROP INDEX jobs_with_results;
DROP INDEX jobs_with_source;
ALTER TABLE jobs DROP COLUMN source_since, DROP COLUMN results_since;
