package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/events"
)

// What the synthetic log is made of. Shares are of all jobs, or of all attempts.
const (
	// jobsAtOnce are open at any time, for each teller.
	jobsAtOnce = 2000
	// comeBackShare of the jobs are retried long after their end, keyedShare have ids
	// derived from a key, cancelShare are cancelled.
	comeBackShare, keyedShare, cancelShare = 0.01, 0.1, 0.02
	// crashShare of the attempts have no outcome, failShare of the operations fail,
	// repeatShare of the events are told twice.
	crashShare, failShare, repeatShare = 0.03, 0.03, 0.01
	// remembered ended jobs are those that may come back.
	remembered = 5000
)

// life is a job and what is still to be told of it.
type life struct {
	id       string
	request  events.Event
	revision int32
	ops      []string
	failed   []string
	next     []events.Event
}

// teller tells lives, interleaved. Equal seeds tell the same.
type teller struct {
	random *rand.Rand
	clock  time.Time
	open   []*life
	ended  []*life
	told   int
}

func newTeller(seed uint64) *teller {
	t := &teller{random: rand.New(rand.NewPCG(seed, 1)), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	for range jobsAtOnce {
		t.open = append(t.open, t.begin())
	}
	return t
}

// event is the next one: of any of the open jobs.
func (t *teller) event() events.Event {
	at := t.random.IntN(len(t.open))
	l := t.open[at]
	e := l.next[0]
	if t.random.Float64() >= repeatShare {
		l.next = l.next[1:]
	}
	t.clock = t.clock.Add(time.Duration(t.random.IntN(int(4 * time.Millisecond))))
	e.Time = t.clock
	if len(l.next) == 0 {
		t.end(l)
		t.open[at] = t.begin()
	}
	t.told++
	return e
}

// end remembers a job that may come back.
func (t *teller) end(l *life) {
	switch {
	case len(l.failed) == 0:
	case len(t.ended) < remembered:
		t.ended = append(t.ended, l)
	default:
		t.ended[t.random.IntN(remembered)] = l
	}
}

// begin is a new job, or an old one that is retried.
func (t *teller) begin() *life {
	if len(t.ended) > 0 && t.random.Float64() < comeBackShare {
		at := t.random.IntN(len(t.ended))
		l := t.ended[at]
		t.ended[at] = t.ended[len(t.ended)-1]
		t.ended = t.ended[:len(t.ended)-1]
		return t.retried(l)
	}
	l := &life{id: t.id(), revision: 1}
	all := []string{"webp", "avif", "jpg", "denoise"}
	t.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	l.ops = all[:1+t.random.IntN(3)]
	sha := t.sha()
	m := &events.JobRequested{Tenant: "default", Source: &events.Source{Key: "raw/" + l.id + "/" + sha, Sha256: sha, Bytes: t.random.Int64N(5_000_000), Width: 4032, Height: 3024, Format: "png"},
		FileName: &events.Sealed{KeyId: "0192f0c1-0000-7000-8000-000000000001", Ciphertext: t.bytes(44)}, IdempotencyFingerprint: t.bytes(32)}
	for _, op := range l.ops {
		o := &events.Operation{Name: op}
		if op == "webp" {
			o.Parameters, _ = structpb.NewStruct(map[string]any{"quality": 80})
		}
		m.Operations = append(m.Operations, o)
	}
	l.request = events.New(l.id, t.clock, "pixtools/api", t.id(), m)
	l.next = append([]events.Event{l.request}, t.revision(l, l.request, l.ops)...)
	return l
}

func (t *teller) retried(l *life) *life {
	l.revision++
	m := &events.OperationRetryRequested{Revision: l.revision, Operations: l.failed, Request: l.request.Message.(*events.JobRequested), RequestedAt: timestamppb.New(l.request.Time)}
	cause := events.New(l.id, t.clock, "pixtools/api", t.id(), m)
	again := l.failed
	l.failed = nil
	l.next = append([]events.Event{cause}, t.revision(l, cause, again)...)
	return l
}

// revision is what becomes of a revision's operations, one after the other.
func (t *teller) revision(l *life, cause events.Event, ops []string) (told []events.Event) {
	tell := func(source string, m proto.Message) {
		told = append(told, events.Because(cause, t.clock, source, m))
	}
	cancelled, completed := t.random.Float64() < cancelShare, int32(0)
	for i, op := range ops {
		if cancelled && i == len(ops)-1 {
			tell("pixtools/api", &events.JobCancelRequested{Revision: l.revision, Reason: "asked for by the client"})
			break
		}
		attempt := int32(1)
		source := "pixtools/op." + op
		for ; t.random.Float64() < crashShare && attempt < 3; attempt++ {
			tell(source, &events.OperationStarted{Revision: l.revision, Operation: op, Attempt: attempt, Worker: "worker-1/4711"})
		}
		tell(source, &events.OperationStarted{Revision: l.revision, Operation: op, Attempt: attempt, Worker: "worker-1/4711"})
		if t.random.Float64() < failShare {
			l.failed = append(l.failed, op)
			tell(source, &events.OperationFailed{Revision: l.revision, Operation: op, Attempt: attempt, Kind: events.FailureKind_FAILURE_KIND_WORLD,
				Code: "source_unavailable", Message: "the source could not be fetched for too long"})
			continue
		}
		completed++
		sha := t.sha()
		tell(source, &events.OperationCompleted{Revision: l.revision, Operation: op, Attempt: attempt, Artifact: &events.Artifact{
			Key: "processed/" + l.id + "/" + op + "/" + sha + "." + op, Sha256: sha, Bytes: t.random.Int64N(2_000_000), Width: 4032, Height: 3024, Format: op},
			Duration: durationpb.New(time.Duration(t.random.Int64N(int64(time.Second)))), CpuTime: durationpb.New(time.Duration(t.random.Int64N(int64(time.Second)))),
			Engine: "libvips 8.18.7, libheif 1.23.5"})
	}
	outcome := events.Outcome_OUTCOME_SUCCEEDED
	switch {
	case completed == 0 && cancelled:
		outcome = events.Outcome_OUTCOME_CANCELLED
	case completed == 0:
		outcome = events.Outcome_OUTCOME_FAILED
	case int(completed) < len(ops):
		outcome = events.Outcome_OUTCOME_PARTIAL
	}
	tell("pixtools/saga", &events.JobFinalized{Revision: l.revision, Outcome: outcome, Totals: &events.Totals{Completed: completed, Failed: int32(len(ops)) - completed, CpuTime: durationpb.New(time.Second)}})
	return told
}

// id is a UUID of version 7 at the teller's time, or one derived from a key.
func (t *teller) id() string {
	if t.random.Float64() < keyedShare {
		return events.JobID("default", fmt.Sprint(t.random.Uint64()))
	}
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:], uint64(t.clock.UnixMilli())<<16|7<<12|t.random.Uint64N(1<<12))
	binary.BigEndian.PutUint64(id[8:], 2<<62|t.random.Uint64()>>2)
	return id.String()
}

func (t *teller) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(t.random.Uint32())
	}
	return b
}

func (t *teller) sha() string {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, t.random.Uint64()))
	return hex.EncodeToString(sum[:])
}

// generate writes the log and says how many bytes its records have.
func generate(ctx context.Context, client *kgo.Client, count, tellers int, told func(done int64)) (bytes int64, err error) {
	var done, size atomic.Int64
	var fault atomic.Pointer[error]
	var all sync.WaitGroup
	for i := range tellers {
		share := count / tellers
		if i == 0 {
			share += count % tellers
		}
		all.Go(func() {
			t := newTeller(uint64(i + 1))
			for range share {
				r, err := t.event().Record()
				if err != nil {
					fault.Store(&err)
				}
				if fault.Load() != nil || ctx.Err() != nil {
					return
				}
				n := len(r.Key) + len(r.Value)
				for _, h := range r.Headers {
					n += len(h.Key) + len(h.Value)
				}
				size.Add(int64(n))
				client.Produce(ctx, r, func(_ *kgo.Record, err error) {
					if err != nil {
						fault.Store(&err)
					}
					if n := done.Add(1); n%100_000 == 0 {
						told(n)
					}
				})
			}
		})
	}
	all.Wait()
	if err := client.Flush(ctx); err != nil {
		return 0, err
	}
	if f := fault.Load(); f != nil {
		return 0, *f
	}
	return size.Load(), ctx.Err()
}
