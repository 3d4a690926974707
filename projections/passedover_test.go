package projections_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

// passedOver are the notes in a schema, as "offset what", by partition and offset.
func (w *world) passedOver(schema string) []string {
	rows, err := w.pool.Query(w.ctx(), "SELECT record_offset || ' ' || what FROM "+schema+".passed_over ORDER BY partition, record_offset, what")
	require.NoError(w.t, err)
	defer rows.Close()
	all := []string{}
	for rows.Next() {
		var text string
		require.NoError(w.t, rows.Scan(&text))
		all = append(all, text)
	}
	require.NoError(w.t, rows.Err())
	return all
}

// mended waits until nothing is noted any more.
func (w *world) mended() {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return len(w.passedOver(projections.Schema)) == 0 }, patience, 20*time.Millisecond)
	w.caughtUp()
}

// TestWhatAnOlderVersionPassedOver leaves the read model as a version would that did not know a
// type, and then one that did not know a field: ours makes of it what it would have made.
func TestWhatAnOlderVersionPassedOver(t *testing.T) {
	w := newWorld(t)
	const jobs = 130 // more than are folded anew at once
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	id := func(i int) string { return events.JobID("test", fmt.Sprint(i)) }
	each := func(m func(i int) proto.Message) {
		for i := range jobs {
			at = at.Add(time.Second)
			w.produce(events.New(id(i), at, "test", "req", m(i)))
		}
	}
	noted := func(i int, offset int64, what string) {
		w.exec("INSERT INTO passed_over VALUES ($1, $2, $3, $4, $5)", w.logID[:], w.partitionOf(id(i)), offset, id(i), what)
	}
	stop := w.projector()
	each(func(int) proto.Message {
		return &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}, Source: &events.Source{Sha256: "aa", Bytes: 10}}
	})
	w.caughtUp()
	stop()
	each(func(i int) proto.Message {
		return &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &events.Artifact{Bytes: int64(i)}}
	})
	// Its type is all that the older version looked at.
	malformed, err := events.New(id(0), at, "test", "req", &events.OperationCompleted{}).Record()
	require.NoError(t, err)
	malformed.Value = []byte{0xff}
	require.NoError(t, w.client.ProduceSync(w.ctx(), malformed).FirstErr())
	w.last[malformed.Partition] = malformed.Offset
	noted(0, malformed.Offset, "pixtools.events.v1.OperationCompleted")
	for partition, last := range w.last {
		w.exec("UPDATE positions SET next_offset = $2 WHERE partition = $1", partition, last+1)
	}
	for i := range jobs {
		noted(i, w.places[id(i)][1], "pixtools.events.v1.OperationCompleted")
	}
	each(func(int) proto.Message {
		return &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED}
	})
	stop = w.projector()
	w.mended()
	stop()

	field := (&events.Artifact{}).ProtoReflect().Descriptor().Fields().ByName("bytes").Number()
	w.exec("UPDATE usage SET output_bytes = 0")
	for i := range jobs {
		noted(i, w.places[id(i)][1], fmt.Sprintf("pixtools.events.v1.Artifact#%d", field))
	}
	stop = w.projector()
	w.mended()
	stop()
}

// TestWhatANewerVersionTells: what this version does not know is noted, by the projector and by a
// rebuild, and stays noted; the rest goes on, and a comparison does not judge it.
func TestWhatANewerVersionTells(t *testing.T) {
	w := newWorld(t)
	stop := w.projector()
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	later := protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), "later")
	var want []string
	for i := range 3 {
		id := events.JobID("test", fmt.Sprint(i))
		requested := &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}}
		if i == 1 {
			requested.ProtoReflect().SetUnknown(later)
		}
		w.produce(events.New(id, at, "test", "req", requested))
		if i == 1 {
			want = append(want, fmt.Sprintf("%d %s", w.places[id][0], "pixtools.events.v1.JobRequested#1000"))
		}
		if i == 2 {
			r, err := events.New(id, at, "test", "req", &events.JobDeleted{}).Record()
			require.NoError(t, err)
			typed := func(name string) *kgo.Record {
				headers := slices.Clone(r.Headers)
				for i, h := range headers {
					if h.Key == events.HeaderType {
						headers[i].Value = []byte(name)
					}
				}
				return &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: headers}
			}
			// No version will know this one, and PostgreSQL has no text with it.
			require.NoError(t, w.client.ProduceSync(w.ctx(), typed("pixtools.events.v1.Job\x00")).FirstErr())
			r = typed("pixtools.events.v1.JobPraised")
			require.NoError(t, w.client.ProduceSync(w.ctx(), r).FirstErr())
			w.last[r.Partition] = r.Offset
			want = append(want, fmt.Sprintf("%d %s", r.Offset, "pixtools.events.v1.JobPraised"))
			require.NoError(t, w.reader.Wait(w.ctx(), r.Partition, r.Offset))
			offsets, err := w.reader.Events(w.ctx(), id)
			require.NoError(t, err)
			require.Equal(t, []int64{w.places[id][0], r.Offset}, offsets, "who must not miss any sees it, too")
		}
		w.produce(events.New(id, at, "test", "req", &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1}))
	}
	w.caughtUp()
	require.ElementsMatch(t, want, w.passedOver(projections.Schema))

	r := w.replayer()
	w.begin(r)
	built, err := r.Build(w.ctx(), projections.Until{}, silent)
	require.NoError(t, err)
	require.Equal(t, w.passedOver(projections.Schema), w.passedOver(built.Name))
	// As a newer version's projector may have left them.
	w.exec("UPDATE jobs SET updated_at = updated_at + interval '1 second', state = state || $1 WHERE job_id IN (SELECT job_id FROM passed_over)", later)
	// And what it keeps of a job whose events are known.
	w.exec("UPDATE jobs SET state = state || $1 WHERE job_id = $2", later, events.JobID("test", "0"))
	d, err := r.Diff(w.ctx(), built.Name, silent, func(c projections.Change) error { return fmt.Errorf("differs: %v", c) })
	require.NoError(t, err)
	require.Equal(t, projections.Difference{Same: 1, Unknown: 2}, d)

	stop()
	w.projector()
	w.produce(events.New(events.JobID("test", "0"), at, "test", "req", &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 2}))
	partition := w.partitionOf(events.JobID("test", "0"))
	require.NoError(t, w.reader.Wait(w.ctx(), partition, w.last[partition]))
	require.ElementsMatch(t, want, w.passedOver(projections.Schema))
	job, err := w.reader.Job(w.ctx(), "test", events.JobID("test", "0"))
	require.NoError(t, err)
	require.EqualValues(t, 2, job.GetOperations()[0].GetAttempt())
	require.True(t, slices.Equal(later, job.ProtoReflect().GetUnknown()), "it is written back as it was")
}

// TestTablesOfANewerVersion: an older process works on tables to which something was added, and
// refuses those that it could not work on.
func TestTablesOfANewerVersion(t *testing.T) {
	w := newWorld(t)
	var newest int64
	require.NoError(t, w.pool.QueryRow(w.ctx(), "SELECT max(version_id) FROM goose_db_version").Scan(&newest))
	w.exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, true)", newest+1)
	w.exec("ALTER TABLE jobs ADD COLUMN praise text")
	require.NoError(t, projections.Migrate(w.ctx(), w.pool, projections.Schema))
	w.exec("UPDATE fits SET since = $1", newest)
	require.NoError(t, projections.Migrate(w.ctx(), w.pool, projections.Schema))
	w.exec("UPDATE fits SET since = $1", newest+1)
	err := projections.Migrate(w.ctx(), w.pool, projections.Schema)
	require.ErrorIs(t, err, projections.ErrNewer)
	require.ErrorContains(t, err, fmt.Sprintf("they ask for migration %d, and this version knows up to %d", newest+1, newest))
}
