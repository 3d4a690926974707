package commands

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/events"
)

func TestExpire(t *testing.T) {
	kept := Retention{Sources: 48 * time.Hour, Results: 24 * time.Hour}
	job := ended(t) // all of it happened at noon
	at := func(d time.Duration) Expire { return Expire{Retention: kept, At: noon.Add(d)} }
	require.Empty(t, at(24*time.Hour-1).Decide(job))
	results := at(24 * time.Hour).Decide(job)
	require.Len(t, results, 1)
	m := results[0].Message.(*events.ArtifactsExpired)
	require.Equal(t, []string{"webp"}, m.GetOperations(), "what failed has nothing to let go")
	require.Equal(t, []string{"aa"}, m.GetSha256())
	require.False(t, m.GetSource())
	require.EqualValues(t, 1, m.GetRevision())
	require.Equal(t, results[0].ID, at(30 * time.Hour).Decide(job)[0].ID, "said again, it is the same event")

	without := events.Fold(job, results[0])
	require.Empty(t, at(48*time.Hour-1).Decide(without))
	source := at(48 * time.Hour).Decide(without)
	require.Empty(t, source[0].Message.(*events.ArtifactsExpired).GetOperations())
	require.True(t, source[0].Message.(*events.ArtifactsExpired).GetSource())
	require.Empty(t, at(1000*time.Hour).Decide(events.Fold(without, source[0])), "nothing is left")
	both := at(48 * time.Hour).Decide(job)[0]
	require.Equal(t, events.Fold(without, source[0]).GetSourceExpired(), events.Fold(job, both).GetSourceExpired())

	// What took another's place counts from then on.
	replaced := job
	apply(t, &replaced, Replace{Operation: "webp", Replaced: "aa", Artifact: &events.Artifact{Key: "k2", Sha256: "bb"}, Campaign: "c", At: noon.Add(20 * time.Hour)})
	require.Empty(t, at(44*time.Hour-1).Decide(replaced))
	require.Equal(t, []string{"bb"}, at(44 * time.Hour).Decide(replaced)[0].Message.(*events.ArtifactsExpired).GetSha256())
	require.Same(t, replaced, events.Fold(replaced, results[0]), "decided before the replacement, and after it in the log")

	// Nothing of an open job expires, and what was decided before a retry means nothing after it.
	retried := job
	apply(t, &retried, Retry{MaxRevisions: 2, At: noon})
	require.Empty(t, at(1000*time.Hour).Decide(retried))
	require.Same(t, retried, events.Fold(retried, both))
	require.Empty(t, at(1000*time.Hour).Decide(nil))
	require.Empty(t, at(1000*time.Hour).Decide(&events.Job{Phase: events.Phase_PHASE_DELETED, RequestedAt: timestamppb.New(noon)}))
}

func TestDelete(t *testing.T) {
	_, waits := open(t, "webp")
	_, err := Delete{At: noon}.Decide(waits)
	var conflict *Conflict
	require.ErrorAs(t, err, &conflict)
	require.Contains(t, conflict.Message, "cancel it")
	job := ended(t)
	decided, err := Delete{Reason: "r", Source: "s", At: noon}.Decide(job)
	require.NoError(t, err)
	require.Len(t, decided, 1)
	gone := events.Fold(job, decided[0])
	require.Equal(t, events.Phase_PHASE_DELETED, gone.GetPhase())
	for _, state := range []*events.Job{nil, gone} {
		decided, err = Delete{At: noon}.Decide(state)
		require.NoError(t, err)
		require.Empty(t, decided)
	}
	// Its key is used up, for the same request and for another.
	request := submit("webp", "avif", "denoise", "jpg")
	for _, fingerprint := range [][]byte{request.Fingerprint, []byte("other")} {
		request.Fingerprint = fingerprint
		_, err = request.Decide(gone)
		require.ErrorAs(t, err, &conflict)
		require.Equal(t, "idempotency_key", conflict.Field)
		require.Contains(t, conflict.Message, "was deleted")
	}
}
