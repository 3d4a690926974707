package projections

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/pixtools/pixtools/events"
)

// noted is what the column of this version's migration has of a job.
func noted(job *events.Job) string { return job.GetNote() + "/" + job.GetNoted() }

func writeNoted(ctx context.Context, tx pgx.Tx, changed map[string]row) error {
	var ids, texts []string
	for id, r := range changed {
		ids, texts = append(ids, id), append(texts, noted(r.job))
	}
	_, err := tx.Exec(ctx, `UPDATE jobs SET noted = n.noted FROM unnest($1::uuid[], $2::text[]) AS n(job_id, noted) WHERE jobs.job_id = n.job_id`, ids, texts)
	return err
}
