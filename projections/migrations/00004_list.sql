-- +goose Up
-- What a list of jobs shows and picks by, now and at any time before: see standings.go. The
-- log is applied anew from its beginning.
TRUNCATE jobs, positions;
ALTER TABLE jobs
    ADD COLUMN operations text[] NOT NULL,
    ADD COLUMN standing   smallint NOT NULL,
    ADD COLUMN changes    bigint[] NOT NULL;
-- In the order of a list, which pages by (created_at, job_id).
DROP INDEX jobs_by_tenant;
CREATE INDEX jobs_listed ON jobs (tenant, created_at DESC, job_id DESC);
-- The few that did not simply succeed (3): whoever picks those need not pass over all others.
CREATE INDEX jobs_listed_unusual ON jobs (tenant, created_at DESC, job_id DESC, standing) WHERE standing <> 3;

-- +goose Down
DROP INDEX jobs_listed_unusual;
DROP INDEX jobs_listed;
CREATE INDEX jobs_by_tenant ON jobs (tenant, created_at DESC, job_id);
ALTER TABLE jobs DROP COLUMN operations, DROP COLUMN standing, DROP COLUMN changes;
