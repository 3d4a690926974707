package projections

import (
	"slices"
	"time"

	"github.com/pixtools/pixtools/events"
)

// Standing is how a job stands: what a list shows of its phase, outcome and webhook. The
// numbers are stored.
type Standing int16

// Standings of a job.
const (
	// Pending: it is open, and nothing of it has begun. Processing: it is open.
	Pending Standing = iota + 1
	Processing
	// Succeeded, Partial, Failed and Cancelled: it has ended with that outcome.
	Succeeded
	Partial
	Failed
	Cancelled
	// The same, where its webhook has failed for good.
	SucceededWebhookFailed
	PartialWebhookFailed
	// Deleted: nobody is shown it any more.
	Deleted
)

// StandingOf is how a job stands in a state.
func StandingOf(job *events.Job) Standing {
	switch job.GetPhase() {
	case events.Phase_PHASE_DELETED:
		return Deleted
	case events.Phase_PHASE_OPEN:
		for _, op := range job.GetOperations() {
			if op.GetPhase() != events.OperationPhase_OPERATION_PHASE_PENDING {
				return Processing
			}
		}
		return Pending
	}
	told := job.GetWebhook().GetFailed() && job.GetWebhook().GetRevision() == job.GetRevision()
	switch outcome := job.GetOutcome(); {
	case outcome == events.Outcome_OUTCOME_SUCCEEDED && told:
		return SucceededWebhookFailed
	case outcome == events.Outcome_OUTCOME_PARTIAL && told:
		return PartialWebhookFailed
	case outcome == events.Outcome_OUTCOME_SUCCEEDED:
		return Succeeded
	case outcome == events.Outcome_OUTCOME_PARTIAL:
		return Partial
	case outcome == events.Outcome_OUTCOME_CANCELLED:
		return Cancelled
	}
	return Failed
}

// open says that the job's revision has not ended.
func (s Standing) open() bool { return s == Pending || s == Processing }

// A job's row keeps when it came to stand how, each change as one number: the time, in
// microseconds since 1970, and the standing in the lowest bits. The time is the state's
// UpdatedAt, which never goes back; so how the job stood at a time is in the last number
// that is less than the first of the next microsecond. Times between two microseconds are
// rounded up: what happened after a time is not taken for earlier.
const standingBits = 4

const roundUp = time.Microsecond - 1

// before is the number that all changes up to a time are less than.
func before(at time.Time) int64 { return (at.UnixMicro() + 1) << standingBits }

// standingAt says, in SQL, how a job stood; $1 is before(at). NULL: it was not there.
const standingAt = `CASE WHEN changes[cardinality(changes)] < $1 THEN standing
	ELSE (changes[(SELECT count(*) FROM unnest(changes) c WHERE c < $1)] & 15)::smallint END`

// addChange notes how a job stands now; what changes has is never altered. Beyond
// longestHistory the last one stands for all that were since.
func addChange(changes []int64, job *events.Job) []int64 {
	standing := StandingOf(job)
	n := len(changes)
	if n > 0 && standingOf(changes[n-1]) == standing {
		return changes
	}
	change := job.GetUpdatedAt().AsTime().Add(roundUp).UnixMicro()<<standingBits | int64(standing)
	if n == longestHistory {
		changes = slices.Clone(changes[:n-1])
	}
	return append(changes, change)
}

func standingOf(change int64) Standing { return Standing(change & (1<<standingBits - 1)) }

func timeOf(change int64) time.Time { return time.UnixMicro(change >> standingBits).UTC() }

// stood reads, of a job's changes up to a time, how it stood, since when, and in which
// revision: each begins with a change from an end to an open standing.
func stood(changes []int64) (standing Standing, since time.Time, revision int32) {
	revision = 1
	for i, c := range changes {
		if i > 0 && standingOf(c).open() && !standing.open() {
			revision++
		}
		standing, since = standingOf(c), timeOf(c)
	}
	return standing, since, revision
}
