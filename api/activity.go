package api

import (
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/projections"
)

// Activity is what happened in the last hour, as the log tells it.
type Activity struct {
	Since       time.Time      `json:"since" description:"Since when this process counts; before, nothing is known"`
	Now         time.Time      `json:"now"`
	StepSeconds float64        `json:"step_seconds"`
	Steps       []ActivityStep `json:"steps" description:"The oldest first; those in which nothing happened are left out"`
}

// ActivityStep is what happened in one step.
type ActivityStep struct {
	At        time.Time        `json:"at" description:"When it begins"`
	Accepted  int64            `json:"accepted" description:"Jobs"`
	Completed map[string]int64 `json:"completed" description:"Results, by operation"`
	Failed    map[string]int64 `json:"failed" description:"Operations that failed, by kind: INPUT, WORLD or INTERNAL"`
}

// activity answers GET /api/activity.
func (s *Server) activity(fuego.ContextNoBody) (Activity, error) {
	now := time.Now()
	since, steps := s.Follower.Activity.Steps(now)
	answer := Activity{Since: since, Now: now, StepSeconds: projections.ActivityStep.Seconds(), Steps: []ActivityStep{}}
	for _, step := range steps {
		one := ActivityStep{At: step.At, Accepted: step.Accepted, Completed: step.Completed, Failed: map[string]int64{}}
		for kind, n := range step.Failed {
			one.Failed[word(kind.String(), "FAILURE_KIND_")] += n
		}
		answer.Steps = append(answer.Steps, one)
	}
	return answer, nil
}
