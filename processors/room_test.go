package processors

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSourcesTakeNoMoreThanTheirRoom: to the byte; one that is larger than all of it is taken alone.
func TestSourcesTakeNoMoreThanTheirRoom(t *testing.T) {
	t.Parallel()
	const all = 1 << 20
	w, err := NewWorker(WorkerConfig{KnownJobs: 1000, SpoolBytes: all}, Conversions()[0], nil, nil, nil, nil, "", "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	over, cancel := context.WithCancel(t.Context())
	cancel() // who would have to wait is told so
	first, err := w.takeRoom(t.Context(), all-1)
	require.NoError(t, err)
	second, err := w.takeRoom(t.Context(), 1)
	require.NoError(t, err)
	_, err = w.takeRoom(over, 1)
	require.ErrorIs(t, err, context.Canceled)
	second()
	_, err = w.takeRoom(over, 10*all)
	require.ErrorIs(t, err, context.Canceled)

	came := make(chan func())
	go func() {
		leave, err := w.takeRoom(t.Context(), 10*all)
		if err == nil {
			came <- leave
		}
	}()
	first()
	leave := <-came
	_, err = w.takeRoom(over, 1)
	require.ErrorIs(t, err, context.Canceled)
	leave()
	leave, err = w.takeRoom(t.Context(), all)
	require.NoError(t, err)
	leave()
}

// TestLimitOfTheRoom goes just below, at and above it.
func TestLimitOfTheRoom(t *testing.T) {
	t.Parallel()
	for value, good := range map[string]bool{"1048575": false, "1048576": true, "1048577": true, "1125899906842624": true, "1125899906842625": false} {
		err := fromEnvironment[WorkerConfig](t, map[string]string{"PROCESS_SPOOL_BYTES": value}).Validate()
		if good {
			require.NoError(t, err, value)
		} else {
			require.ErrorContains(t, err, "PROCESS_SPOOL_BYTES is "+value)
		}
	}
}
