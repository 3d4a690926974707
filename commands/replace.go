package commands

import (
	"fmt"
	"time"

	"github.com/pixtools/pixtools/events"
)

// Replace puts another artifact into a result's place: one that reprocessing made, or, to
// take that back, the one that was there before.
type Replace struct {
	Operation string
	// Replaced is the SHA-256 of the artifact that must be there now.
	Replaced string
	// Artifact is what is to be there; Engine and ModelSHA256 made it.
	Artifact            *events.Artifact
	Engine, ModelSHA256 string
	// Campaign names the run, and whether it is promoted or rolled back. Of one campaign, a
	// second replacement of the same artifact by the same other is a repeat of the first.
	Campaign string
	At       time.Time
}

// Decide gives ArtifactReplaced, nothing where the artifact is there already, and *Conflict
// where the job has gone on since the artifact was made for it.
func (c Replace) Decide(state *events.Job) ([]events.Event, error) {
	switch state.GetPhase() {
	case events.Phase_PHASE_ENDED:
	case events.Phase_PHASE_OPEN:
		return nil, &Conflict{Field: "job_id", Message: "the job is open"}
	default:
		return nil, &Conflict{Field: "job_id", Message: "the job was deleted"}
	}
	for _, op := range state.GetOperations() {
		if op.GetName() != c.Operation {
			continue
		}
		switch now := op.GetArtifact().GetSha256(); {
		case op.GetPhase() != events.OperationPhase_OPERATION_PHASE_COMPLETED:
			return nil, &Conflict{Field: "operation", Message: c.Operation + " has no result"}
		case now == c.Artifact.GetSha256():
			return nil, nil
		case op.GetArtifactExpired():
			return nil, &Conflict{Field: "operation", Message: "the result has expired"}
		case now != c.Replaced:
			return nil, &Conflict{Field: "operation", Message: fmt.Sprintf("%s has another result than the one to replace", c.Operation)}
		}
		return []events.Event{events.New(state.GetId(), c.At, "pixtools/reprocess", state.GetCorrelationId(), &events.ArtifactReplaced{
			Revision: state.GetRevision(), Operation: c.Operation, Artifact: c.Artifact, ReplacedSha256: c.Replaced,
			Campaign: c.Campaign, ModelSha256: c.ModelSHA256, Engine: c.Engine,
		})}, nil
	}
	return nil, &Conflict{Field: "operation", Message: "the job does not ask for " + clip(c.Operation)}
}
