package processors

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/events"
)

// TestOnlyTheFirstRequestUnderAKeyCounts: two requests raced under one key, and the second
// asks for something that the first does not. No work is done for it.
func TestOnlyTheFirstRequestUnderAKeyCounts(t *testing.T) {
	for _, c := range []struct {
		id            string
		first, second string
		waits         bool
		whatItWouldBe string
	}{
		{events.JobID("default", "key"), "avif", "webp", false, "refused"},
		{events.JobID("default", "key"), "webp", "avif", true, "the one that counts"},
		{"018f0000-0000-7000-8000-000000000001", "webp", "webp", true, "a repeat"},
	} {
		w, err := NewWorker(WorkerConfig{KnownJobs: 1000}, webp, nil, nil, nil, nil, "", "", slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		var state *events.Job
		for _, operation := range []string{c.first, c.second} {
			e := events.New(c.id, time.Unix(0, 0), "test", "", &events.JobRequested{Operations: []*events.Operation{{Name: operation}}})
			record, err := e.Record()
			require.NoError(t, err)
			require.Equal(t, operation == "webp", w.Notice(record))
			state = w.fold(e) // as Handle does
		}
		require.Equal(t, c.waits, waits(state, "webp"), c.whatItWouldBe)
	}
}
