-- +goose Up
-- What a version of the program did not know of the events that it applied: see passedover.go. Whatever
-- empties positions must empty it, too.
CREATE TABLE passed_over (
    log_id        bytea NOT NULL,
    partition     integer NOT NULL,
    record_offset bigint NOT NULL,
    job_id        uuid NOT NULL,
    what          text NOT NULL,
    PRIMARY KEY (log_id, partition, record_offset, what)
);
CREATE INDEX passed_over_by_job ON passed_over (job_id);

-- The oldest version of these tables whose programs may work on them. A migration that they cannot
-- work with sets it to its own version; one that only adds what they need not know leaves it.
CREATE TABLE fits (since bigint NOT NULL);
INSERT INTO fits VALUES (8);

-- +goose Down
DROP TABLE fits;
DROP TABLE passed_over;
