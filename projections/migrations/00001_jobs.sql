-- +goose Up
-- One row per job: what is asked for often in columns, the whole folded state
-- (pixtools.state.v1.Job) beside it.
CREATE TABLE jobs (
    job_id      uuid PRIMARY KEY,
    tenant      text NOT NULL,
    phase       smallint NOT NULL,
    outcome     smallint NOT NULL,
    revision    integer NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    state       bytea NOT NULL
);
CREATE INDEX jobs_by_tenant ON jobs (tenant, created_at DESC, job_id);

-- How far the log is applied, per partition: changed in the same transaction as
-- the rows. log_id is the topic's id; another log does not fit this read model.
CREATE TABLE positions (
    log_id      bytea NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (log_id, partition)
);

-- +goose Down
DROP TABLE positions;
DROP TABLE jobs;
