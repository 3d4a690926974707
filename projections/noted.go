package projections

import (
	"context"
	"time"
)

// noteEvery is how often at most what a replay tells of a phase is written down.
const noteEvery = 2 * time.Second

// Noted is how far a replay is with a read model, as it has written it down beside it.
type Noted struct {
	Phase string `json:"phase"`
	// Done and Total count the log's records: those of this phase. Total is 0 where nothing is counted.
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	// Began is when this phase did, At when this was written.
	Began time.Time `json:"began"`
	At    time.Time `json:"at"`
}

// Rate is how many records a second it has done; 0 where that cannot be told yet.
func (n Noted) Rate() float64 {
	took := n.At.Sub(n.Began).Seconds()
	if took <= 0 || n.Total == 0 {
		return 0
	}
	return float64(n.Done) / took
}

// Ends is when the phase will be over, if it goes on as it went; zero where that cannot be told.
func (n Noted) Ends() time.Time {
	rate := n.Rate()
	if rate == 0 {
		return time.Time{}
	}
	return n.At.Add(time.Duration(float64(n.Total-n.Done) / rate * float64(time.Second)))
}

// noted has what is told written down beside the read model, too, for who looks from elsewhere: each new
// phase at once, since some of them tell no more, and else at most every noteEvery.
//
// It is written by the one who tells, before the work goes on: so nothing is written late, over the
// state that the read model has come to meanwhile. That it cannot be written stops no work.
func (r *Replayer) noted(ctx context.Context, s SchemaInfo, tell func(Progress)) func(Progress) {
	var n Noted
	return func(p Progress) {
		tell(p)
		now := time.Now().UTC()
		if p.Phase != n.Phase {
			n = Noted{Phase: p.Phase, Began: now}
		} else if now.Sub(n.At) < noteEvery {
			return
		}
		n.Done, n.Total, n.At = p.Done, p.Total, now
		s.Backend, s.Progress = r.backend, &n
		ctx, cancel := context.WithTimeout(ctx, r.read.QueryTimeout)
		defer cancel()
		if err := comment(ctx, r.admin, s); err != nil && ctx.Err() == nil {
			r.log.Warn("how far the replay is could not be written down", "schema", s.Name, "error", err)
		}
	}
}
