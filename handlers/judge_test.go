package handlers

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bits-and-blooms/bloom/v3"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
)

// TestNothingIsRemovedOnHalfKnowledge: what the log names, and what it may name for all that this
// version can read of it, stays.
func TestNothingIsRemovedOnHalfKnowledge(t *testing.T) {
	const results = 30 * 24 * time.Hour
	now := time.Now()
	id := events.JobID("t", "k")
	sum := strings.Repeat("a", 64)
	raw, result := "raw/"+id+"/"+sum, "processed/"+id+"/webp/"+sum+".webp"
	requested := events.Event{JobID: id, Message: &events.JobRequested{Source: &events.Source{Key: raw}}}
	completed := events.Event{JobID: id, Message: &events.OperationCompleted{Operation: "webp", Artifact: &events.Artifact{Key: result}}}
	newer := fmt.Errorf("%w: pixtools.events.v1.JobPraised", events.ErrUnknownType)
	ended := &events.Job{Id: id, Phase: events.Phase_PHASE_ENDED, Source: &events.Source{Key: raw}}
	for name, c := range map[string]struct {
		job     *events.Job
		told    []events.Event
		unknown error
		key     string
		age     time.Duration
		spared  bool
		want    Why
	}{
		"nobody's":               {key: raw, want: WhyOrphan},
		"nobody's, and not ours": {key: "raw/" + id + "/notes.txt", want: WhyForeign},
		"of a job that only unknown events tell of":    {unknown: newer, key: raw},
		"old, of such a job":                           {unknown: newer, key: raw, age: 2 * results},
		"named, of a job that is not shown":            {told: []events.Event{requested}, key: raw},
		"named and old, of a job that is not shown":    {told: []events.Event{requested}, key: raw, age: 2 * results},
		"not named, of a job that is not shown":        {told: []events.Event{requested}, key: result, want: WhyOrphan},
		"not named, of a job that is":                  {job: ended, told: []events.Event{requested}, key: result, want: WhyOrphan},
		"not named by what this version knows":         {job: ended, told: []events.Event{requested}, unknown: newer, key: result},
		"replaced a while ago":                         {job: ended, told: []events.Event{requested, completed}, key: result},
		"replaced long ago":                            {job: ended, told: []events.Event{requested, completed}, key: result, age: 2 * results, want: WhyReplaced},
		"replaced long ago, and reprocessing needs it": {job: ended, told: []events.Event{requested, completed}, key: result, age: 2 * results, spared: true},
		"nobody's, and reprocessing needs it":          {key: result, spared: true},
		"of an open job":                               {job: &events.Job{Id: id, Phase: events.Phase_PHASE_OPEN}, key: result},
	} {
		t.Run(name, func(t *testing.T) {
			j := Janitor{
				Jobs: func(context.Context, []string) (map[string]*events.Job, error) {
					if c.job == nil {
						return nil, nil
					}
					return map[string]*events.Job{id: c.job}, nil
				},
				Told: func(context.Context, string) ([]events.Event, error) {
					if c.unknown != nil {
						return nil, c.unknown
					}
					return c.told, nil
				},
			}
			j.Retention = commands.Retention{Results: results, Sources: results}
			made := bloom.NewWithEstimates(10, 0.001)
			if c.spared {
				made.AddString(c.key)
			}
			tally := Tally{}
			require.NoError(t, j.judge(t.Context(), []blob.Object{{Key: c.key, ModifiedAt: now.Add(-c.age)}}, made, now, true, tally))
			want := Tally{}
			if c.want != "" {
				want.add(c.want, 0)
			}
			require.Equal(t, want, tally)
		})
	}
}
