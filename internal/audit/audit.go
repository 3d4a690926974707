// Package audit goes through the log and says what is not as it must be: jobs without an
// end, broken chains of events, objects that are gone or changed.
//
// A partition is read in order, and mostly once. In memory are the stories (story.go) of
// the jobs that are open, and of the VERIFY_HELD_JOBS that ended last: of each the folded
// state and, by id, a few bytes for every event. What comes for a job that was let go, and is more
// than its expiry, needs the job's whole story: its id and place are kept, 40 bytes, and
// the log is read once more for VERIFY_HELD_JOBS of them at a time. So the memory is
// bounded by what is open, and by what is strange. Objects that are missing are held, too,
// until the log was read once more for what it says of them.
//
// Where to read: audit.go (the passes), story.go (one job, pure), objects.go (what is
// stored), sample.go. An error is that something could not be checked; a Finding is what
// was found. Offsets are those of Kafka, sizes bytes, hashes SHA-256 in hexadecimal.
package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bits-and-blooms/bloom/v3"
	"github.com/google/uuid"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/kafka"
)

// Config bounds an audit.
type Config struct {
	// HeldJobs is how many ended jobs are kept in memory, and how many one further pass
	// over the log looks at.
	// Beyond it: let go; what comes later for one takes a further pass.
	HeldJobs int `env:"VERIFY_HELD_JOBS" envDefault:"20000" range:"1 to 10000000" unit:"jobs"`
	// FilterBytes is the memory in which it remembers, roughly, which jobs it let go.
	// Beyond it: with many more jobs than bytes, jobs take a further pass in vain: slower.
	FilterBytes int `env:"VERIFY_FILTER_BYTES" envDefault:"33554432" range:"1 KiB to 1 GiB" unit:"bytes"`
	// Downloads is how many objects are read side by side.
	// Beyond it: reading of the log waits.
	Downloads int `env:"VERIFY_DOWNLOADS" envDefault:"8" range:"1 to 256" unit:"objects"`
}

// Validate names every value out of range.
func (c Config) Validate() error {
	var faults []error
	for _, n := range []struct {
		name            string
		value, from, to int
		unit            string
	}{
		{"VERIFY_HELD_JOBS", c.HeldJobs, 1, 10_000_000, "jobs"},
		{"VERIFY_FILTER_BYTES", c.FilterBytes, 1 << 10, 1 << 30, "bytes"},
		{"VERIFY_DOWNLOADS", c.Downloads, 1, 256, "objects"},
	} {
		if n.value < n.from || n.value > n.to {
			faults = append(faults, fmt.Errorf("%s is %d: it must be from %d to %d %s", n.name, n.value, n.from, n.to, n.unit))
		}
	}
	return errors.Join(faults...)
}

// Kind says in a stable word what was found.
type Kind string

// The kinds of findings.
const (
	NoEnd         Kind = "no-end"
	Orphan        Kind = "orphan"
	UnknownCause  Kind = "unknown-cause"
	Revision      Kind = "revision"
	Illegal       Kind = "illegal"
	RepeatDiffers Kind = "repeat-differs"
	WrongID       Kind = "wrong-id"
	WrongPlace    Kind = "wrong-partition"
	FinalDiffers  Kind = "final-differs"
	Unreadable    Kind = "unreadable"
	ObjectMissing Kind = "object-missing"
	ObjectDamaged Kind = "object-damaged"
	ReadModel     Kind = "read-model"
	Reexecuted    Kind = "reexecuted-differs"
)

// Next says what to do about a finding of this kind; JOB stands for the job's id.
var next = map[Kind]string{
	NoEnd:         "see that a process with the role saga runs, which ends it at JOB_DEADLINE; or end it now: pixtools job cancel JOB",
	Orphan:        "see who wrote it: pixtools events cat --job JOB; the read model passes over it",
	UnknownCause:  "see whether records are missing or came from elsewhere: pixtools events cat --job JOB",
	Revision:      "see whether records are missing: pixtools events cat --job JOB",
	Illegal:       "see who wrote it: pixtools events cat --job JOB; the read model passes over it",
	RepeatDiffers: "the first record counts; where the artifacts differ, compare the versions of the two workers: pixtools events cat --job JOB",
	WrongID:       "see who wrote it, and with which version: pixtools events cat --job JOB; consumers do not know its repeats",
	WrongPlace:    "its writer chose the partition otherwise than by murmur2 of the key: order within the job is lost; see who it is: pixtools events cat --job JOB",
	FinalDiffers:  "trust the operations rather than the end, and see which version of the saga wrote it: pixtools events cat --job JOB",
	Unreadable:    "no dead letter tells of it: see that a process with the role saga runs, then pixtools dlq list",
	ObjectMissing: "restore it from a back-up of the bucket or of pixtools events export --with-blobs; a result can be made again from its source: submit the picture again",
	ObjectDamaged: "do not use it: restore it from a back-up of the bucket or of pixtools events export --with-blobs",
	ReadModel:     "make the read model anew: pixtools replay --promote",
	Reexecuted:    "look at both pictures; then make the results anew: pixtools reprocess",
}

// Finding is something that is not as it must be.
type Finding struct {
	Kind      Kind   `json:"kind"`
	JobID     string `json:"job_id,omitempty"`
	Operation string `json:"operation,omitempty"`
	// Place is absent where the finding is about no record.
	*Place
	Message string `json:"message"`
	Next    string `json:"next"`
}

// Place is a record's.
type Place struct {
	Position  string `json:"position"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// Find makes a finding.
func Find(kind Kind, jobID, operation string, at *Place, format string, args ...any) Finding {
	return Finding{Kind: kind, JobID: jobID, Operation: operation, Place: at, Message: fmt.Sprintf(format, args...),
		Next: strings.ReplaceAll(next[kind], "JOB", jobID)}
}

// Open is a job without an end, and not old enough to be a finding.
type Open struct {
	JobID    string    `json:"job_id"`
	Revision int32     `json:"revision"`
	Since    time.Time `json:"since"`
	Waits    []string  `json:"waits"`
	Place
}

// Tally counts what the log holds. Events, Repeats, Unknown, Broken and Finals are those
// that the example consumers in docs/consumers count.
type Tally struct {
	Events  int64            `json:"events"`
	Repeats int64            `json:"repeats"`
	Unknown int64            `json:"unknown"`
	Broken  int64            `json:"broken"`
	Finals  map[string]int64 `json:"finals"`
	Jobs    int64            `json:"jobs"`
	Open    int64            `json:"open"`
	// Again counts jobs that were looked at once more.
	Again   int64   `json:"looked_at_again"`
	Objects Objects `json:"objects"`
}

// Objects counts stored objects.
type Objects struct {
	Intact  int64 `json:"intact"`
	Bytes   int64 `json:"bytes"`
	Expired int64 `json:"expired"`
	Missing int64 `json:"missing"`
	Damaged int64 `json:"damaged"`
	// Left were not looked at.
	Left int64 `json:"left_out"`
}

// Completion is an operation that completed, and all that is needed to do it again.
type Completion struct {
	Job   *events.Job // as it was when the completion came; only to be read
	Event events.Event
	Done  *events.OperationCompleted
	Place
}

// Audit is what to check, and whom to tell.
type Audit struct {
	Config
	// LogID is the topic's id, Partitions how many it has.
	LogID      [16]byte
	Partitions int
	// Until is the time that the log is looked at, Grace the age from which a job that is
	// open then is a finding. Now is the time that objects are looked at.
	Until, Now time.Time
	Grace      time.Duration
	// Store is where objects are; nil: they are not looked at. Retention is how long it
	// keeps them. SampleObjects, unless 0, is how many are looked at, Seed which.
	Store     *blob.Store
	Retention time.Duration
	// SourceRetention is that of sources.
	SourceRetention time.Duration
	SampleObjects   int
	Seed            string
	// Excused says of an unreadable record that it was told of elsewhere.
	Excused func(*kgo.Record) bool
	// Found hears of findings, Still of open jobs; Completed, unless nil, of completions.
	Found     func(Finding) error
	Still     func(Open) error
	Completed func(Completion)
	// Progress hears how many objects of a sample are read.
	Progress func(done, total int64)
}

// Read gives the log's records, of one partition in order: those to check, or the whole
// log, as long as it is by now. It is called once or more; what says what for.
type Read func(what string, whole bool, each func(*kgo.Record) error) error

// Log goes through the log.
func (a Audit) Log(ctx context.Context, read Read) (Tally, error) {
	l := &ledger{Audit: a, open: map[uuid.UUID]*story{}, again: map[uuid.UUID]where{}, Tally: Tally{Finals: map[string]int64{}},
		filter: bloom.New(uint(a.FilterBytes)*8, filterHashes)}
	var err error
	if l.ended, err = lru.NewWithEvict(a.HeldJobs, func(id uuid.UUID, _ *story) { l.filter.Add(id[:]) }); err != nil {
		return l.Tally, err
	}
	l.objects = newChecker(ctx, a)
	if err := l.run(read); err != nil {
		return l.Tally, errors.Join(err, l.objects.wait())
	}
	l.Tally.Objects = l.objects.Objects
	return l.Tally, nil
}

// filterHashes suits a filter of some ten bits for each job.
const filterHashes = 7

// where is a record's place in memory.
type where struct {
	partition int32
	offset    int64
}

// ledger is one audit under way.
type ledger struct {
	Audit
	Tally
	open   map[uuid.UUID]*story
	ended  *lru.Cache[uuid.UUID, *story]
	filter *bloom.BloomFilter
	// again are jobs whose whole story is needed, each from which record on it is not told
	// yet.
	again   map[uuid.UUID]where
	objects *checker
}

func (l *ledger) run(read Read) error {
	if err := read("reading", false, l.first); err != nil {
		return err
	}
	for _, s := range l.open {
		if err := l.unended(s); err != nil {
			return err
		}
	}
	l.open = nil
	l.ended.Purge()
	for len(l.again) > 0 {
		if err := l.further(read); err != nil {
			return err
		}
	}
	l.objects.checkSample()
	if err := errors.Join(l.objects.wait(), l.damaged()); err != nil {
		return err
	}
	for len(l.objects.lost) > 0 {
		if err := l.excuse(read); err != nil {
			return err
		}
	}
	return nil
}

// first is the first pass.
func (l *ledger) first(r *kgo.Record) error {
	e, err := events.Decode(r)
	switch {
	case errors.Is(err, events.ErrUnknownType):
		l.Unknown++
		return nil
	case err != nil:
		l.Broken++
		if l.Excused(r) {
			return nil
		}
		return l.Found(Find(Unreadable, string(r.Key), "", l.place(r), "it is no event: %s", err))
	}
	id := uuid.MustParse(e.JobID) // Decode has checked it
	if _, later := l.again[id]; later {
		return nil
	}
	s := l.open[id]
	if s == nil {
		s, _ = l.ended.Get(id)
	}
	gone := s == nil && l.filter.Test(id[:])
	switch e.Message.(type) {
	case *events.JobRequested:
		if s == nil && !gone {
			l.Jobs++
			s = newStory(e.JobID)
		}
	case *events.ArtifactsExpired, *events.JobDeleted:
		// Every job comes to this in the end, long after it was let go: its id must do.
		if gone {
			l.Events++
			return nil
		}
	}
	if s == nil {
		l.again[id] = where{r.Partition, r.Offset}
		return nil
	}
	if err := l.tell(s, r, e); err != nil {
		return err
	}
	if s.state.GetPhase() == events.Phase_PHASE_OPEN {
		l.open[id] = s
		l.ended.Remove(id) // which puts it into the filter: at worst it is looked at again
	} else {
		delete(l.open, id)
		l.ended.Add(id, s)
	}
	return nil
}

// further reads the log once more for some of the jobs whose whole story is needed.
func (l *ledger) further(read Read) error {
	stories := map[uuid.UUID]*story{}
	for id := range l.again {
		if len(stories) == l.HeldJobs {
			break
		}
		stories[id] = newStory(id.String())
	}
	l.Again += int64(len(stories))
	err := read("reading again, for some jobs", false, func(r *kgo.Record) error {
		id, s, e := l.about(r, stories)
		switch {
		case s == nil:
			return nil
		case r.Offset < l.again[id].offset:
			s.tell(e, where{r.Partition, r.Offset}) // was counted
			return nil
		}
		return l.tell(s, r, e)
	})
	if err != nil {
		return err
	}
	for id, s := range stories {
		if s.first == l.again[id] { // nobody has counted it
			l.Jobs++
		}
		if err := l.unended(s); err != nil {
			return err
		}
		delete(l.again, id)
	}
	return nil
}

// about finds which of some stories a record belongs to; nil: to none.
func (l *ledger) about(r *kgo.Record, stories map[uuid.UUID]*story) (uuid.UUID, *story, events.Event) {
	id, err := uuid.ParseBytes(r.Key)
	s := stories[id]
	if err != nil || s == nil {
		return id, nil, events.Event{}
	}
	e, err := events.Decode(r)
	if err != nil {
		return id, nil, e // told of in the first pass
	}
	return id, s, e
}

// excuse reads the whole log once more for some of the jobs whose objects were looked for
// in vain: they may have been removed by right, as a later event says.
func (l *ledger) excuse(read Read) error {
	stories := map[uuid.UUID]*story{}
	for id := range l.objects.lost {
		if len(stories) == l.HeldJobs {
			break
		}
		stories[id] = newStory(id.String())
	}
	if err := read("reading again, for what is missing", true, func(r *kgo.Record) error {
		if _, s, e := l.about(r, stories); s != nil {
			s.tell(e, where{r.Partition, r.Offset})
		}
		return nil
	}); err != nil {
		return err
	}
	for id, s := range stories {
		for _, o := range l.objects.lost[id] {
			if o.removed(s.state) {
				l.objects.Expired++
				continue
			}
			l.objects.Missing++
			if err := l.Found(Find(ObjectMissing, o.JobID, o.Operation, &o.Place, "%s is not there, and nothing says that it was removed: %s", o.what(), o.Key)); err != nil {
				return err
			}
		}
		delete(l.objects.lost, id)
	}
	return nil
}

// damaged tells of objects that are not what the log says.
func (l *ledger) damaged() error {
	for _, o := range l.objects.spoilt() {
		if err := l.Found(Find(ObjectDamaged, o.JobID, o.Operation, &o.Place, "%s is not what was stored: %s: %s", o.what(), o.Key, o.why)); err != nil {
			return err
		}
	}
	return nil
}

// tell counts a record and reports what is wrong with it.
func (l *ledger) tell(s *story, r *kgo.Record, e events.Event) error {
	v := s.tell(e, where{r.Partition, r.Offset})
	l.Events++
	if v.repeat {
		l.Events--
		l.Repeats++
	} else if m, is := e.Message.(*events.JobFinalized); is {
		l.Finals[strings.TrimPrefix(m.GetOutcome().String(), "OUTCOME_")]++
	}
	if s.home < 0 {
		s.home = kafka.PartitionOf(r.Key, l.Partitions)
	}
	if r.Partition != s.home {
		v.fault(WrongPlace, "", "%s belongs into partition %d", e.Name(), s.home)
	}
	for _, f := range v.faults {
		if err := l.Found(Find(f.kind, e.JobID, f.operation, l.place(r), "%s", f.message)); err != nil {
			return err
		}
	}
	if v.repeat {
		return nil
	}
	if _, retold := e.Message.(*events.OperationRetryRequested); !retold {
		for _, o := range e.Objects() {
			if err := l.objects.check(object{Object: o, JobID: e.JobID, Told: e.Time, Imported: e.Imported(), Place: *l.place(r)}); err != nil {
				return err
			}
		}
	}
	if done, is := e.Message.(*events.OperationCompleted); is && v.counts && l.Completed != nil {
		l.Completed(Completion{Job: s.state, Event: e, Done: done, Place: *l.place(r)})
	}
	return l.damaged()
}

// unended tells of a job that has no end.
func (l *ledger) unended(s *story) error {
	if s.state.GetPhase() != events.Phase_PHASE_OPEN {
		return nil
	}
	at, since := l.placeOf(s.last), s.state.Opened()
	var waits []string
	for _, op := range s.state.GetOperations() {
		if !op.Ended() {
			waits = append(waits, op.GetName())
		}
	}
	slices.Sort(waits)
	if age := l.Until.Sub(since); age <= l.Grace {
		l.Open++
		return l.Still(Open{JobID: s.id, Revision: s.state.GetRevision(), Since: since, Waits: waits, Place: *at})
	} else if len(waits) == 0 {
		return l.Found(Find(NoEnd, s.id, "", at, "revision %d, opened %s ago, has all its outcomes and no end", s.state.GetRevision(), age.Round(time.Second)))
	}
	return l.Found(Find(NoEnd, s.id, "", at, "revision %d, opened %s ago, has no end: it waits for %s", s.state.GetRevision(),
		l.Until.Sub(since).Round(time.Second), strings.Join(waits, ", ")))
}

func (l *ledger) place(r *kgo.Record) *Place { return l.placeOf(where{r.Partition, r.Offset}) }

func (l *ledger) placeOf(w where) *Place {
	return &Place{Position: events.Position{Log: l.LogID, Partition: w.partition, Offset: w.offset}.Token(), Partition: w.partition, Offset: w.offset}
}
