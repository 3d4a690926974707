-- +goose Up
-- What each tenant used, by the UTC day of the outcome and by operation: see usage.go. Its rows are
-- sums, so whatever empties positions must empty it, too. The log is applied anew from its
-- beginning.
TRUNCATE jobs, positions;
CREATE TABLE usage (
    tenant       text NOT NULL,
    day          date NOT NULL,
    operation    text NOT NULL,
    operations   bigint NOT NULL,
    failures     bigint NOT NULL,
    input_bytes  bigint NOT NULL,
    output_bytes bigint NOT NULL,
    cpu_nanos    bigint NOT NULL,
    PRIMARY KEY (tenant, day, operation)
);
-- Names with commas: an array takes several times as much, and is not what anybody asks for.
ALTER TABLE jobs ALTER COLUMN operations TYPE text USING array_to_string(operations, ',');

-- +goose Down
ALTER TABLE jobs ALTER COLUMN operations TYPE text[] USING string_to_array(operations, ',');
DROP TABLE usage;
