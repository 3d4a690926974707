-- +goose Up
-- Only what an older version need not know: a column that may be empty, and an index.
ALTER TABLE jobs ADD COLUMN noted text NOT NULL DEFAULT '/';
CREATE INDEX jobs_noted ON jobs (noted) WHERE noted <> '/';

-- +goose Down
DROP INDEX jobs_noted;
ALTER TABLE jobs DROP COLUMN noted;
