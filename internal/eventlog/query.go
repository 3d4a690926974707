package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
)

// Query says which records to show. The zero value is all of them.
type Query struct {
	From From
	// Job is a job's id; only its partition is read.
	Job string
	// Types are full names of messages.
	Types []string
	// Operation is one that the event is about, alone or among others.
	Operation string
	// Since and Until bound the records' own times; Until is the first that is not shown.
	Since, Until time.Time
	// Limit is how many are shown; 0: all.
	Limit int
}

// From is where to begin: at the start, or at the end, or at a time, or at places.
type From struct {
	End    bool
	Time   time.Time
	Places []Place
}

// Place is a record's. Log is zero where only partition and offset were named.
type Place struct {
	Log       [16]byte
	Partition int32
	Offset    int64
}

// ParseMoment reads a time, or how long before now one was.
func ParseMoment(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago).UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("%q is no time such as 2026-11-24T12:00:00Z, and not how long ago, such as 2h", text)
	}
	return at.UTC(), nil
}

// ParseFrom reads where to begin, in the words of --from; several places may be named.
func ParseFrom(words []string, now time.Time) (From, error) {
	var f From
	for _, word := range words {
		place, ok := parsePlace(word)
		switch {
		case ok:
			f.Places = append(f.Places, place)
		case len(words) > 1:
			return f, fmt.Errorf("--from names %q beside others: only places (PARTITION:OFFSET, or a position) can be named together", word)
		case word == "start":
		case word == "end":
			f.End = true
		default:
			at, err := ParseMoment(word, now)
			if err != nil {
				return f, fmt.Errorf("--from is %q: use start, end, a time (2026-11-24T12:00:00Z), how long ago (2h), a position, or PARTITION:OFFSET", word)
			}
			f.Time = at
		}
	}
	return f, nil
}

func parsePlace(word string) (Place, bool) {
	if p, err := events.ParsePosition(word); err == nil {
		return Place{p.Log, p.Partition, p.Offset}, true
	}
	left, right, ok := strings.Cut(word, ":")
	partition, err := strconv.ParseInt(left, 10, 32)
	offset, err2 := strconv.ParseInt(right, 10, 64)
	return Place{Partition: int32(partition), Offset: offset}, ok && err == nil && err2 == nil && partition >= 0 && offset >= 0
}

// ParseType gives an event type its full name, and refuses a short one that there is not.
func ParseType(name string) (string, error) {
	if strings.Contains(name, ".") {
		return name, nil // also one that only a newer version knows
	}
	var known []string
	for _, m := range events.Catalogue() {
		full := m.ProtoReflect().Descriptor().FullName()
		if string(full.Name()) == name {
			return string(full), nil
		}
		known = append(known, string(full.Name()))
	}
	return "", fmt.Errorf("--type is %q: there are %s", name, strings.Join(known, ", "))
}

// errEnough ends a read whose limit is reached.
var errEnough = errors.New("enough")

// Show writes what a query asks for, a JSON object a line, to out. With follow it goes on
// with what comes, until ctx is done; flush is called when there is nothing more for now.
func (b *Brokers) Show(ctx context.Context, topic string, q Query, follow bool, out io.Writer, flush func() error, progress func(done, total int64)) error {
	t, err := b.Topic(ctx, topic)
	if err != nil {
		return err
	}
	ranges, err := b.resolve(ctx, t, q)
	if err != nil {
		return err
	}
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	shown := 0
	show := func(r *kgo.Record) error {
		e, fault := events.Decode(r)
		if !q.wants(r, e, fault) {
			return nil
		}
		if err := lines.Encode(lineOf(t.ID, r, e, fault)); err != nil {
			return err
		}
		if shown++; shown == q.Limit {
			return errEnough
		}
		return nil
	}
	if follow {
		from := map[int32]int64{}
		for partition, r := range ranges {
			from[partition] = r.From
		}
		err = b.Follow(ctx, topic, from, show, flush)
	} else {
		count := Counter(ranges, progress)
		err = b.Read(ctx, topic, ranges, func(r *kgo.Record) error {
			count(r)
			return show(r)
		})
	}
	if errors.Is(err, errEnough) {
		err = nil
	}
	return errors.Join(err, flush())
}

// Counter tells how far a read is, in offsets: a compacted partition has fewer records.
func Counter(ranges map[int32]Range, progress func(done, total int64)) func(*kgo.Record) {
	done, total := int64(0), int64(0)
	last := map[int32]int64{}
	for partition, r := range ranges {
		total += max(r.To-r.From, 0)
		last[partition] = r.From - 1
	}
	return func(r *kgo.Record) {
		done += r.Offset - last[r.Partition]
		last[r.Partition] = r.Offset
		progress(done, total)
	}
}

// resolve says what to read of each partition.
func (b *Brokers) resolve(ctx context.Context, t *Topic, q Query) (map[int32]Range, error) {
	ranges := map[int32]Range{}
	for partition, r := range t.Ranges {
		if q.Job != "" && partition != kafka.PartitionOf([]byte(q.Job), len(t.Ranges)) {
			continue
		}
		if q.From.End {
			r.From = r.To
		}
		ranges[partition] = r
	}
	if len(q.From.Places) > 0 {
		var err error
		if ranges, err = t.at(q.From.Places, ranges); err != nil {
			return nil, err
		}
	}
	since := q.Since
	if q.From.Time.After(since) {
		since = q.From.Time
	}
	if !since.IsZero() {
		found, err := b.writtenSince(ctx, t, since)
		if err != nil {
			return nil, err
		}
		for partition, r := range ranges {
			ranges[partition] = Range{max(r.From, found[partition]), r.To}
		}
	}
	if !q.Until.IsZero() {
		found, err := b.writtenSince(ctx, t, q.Until)
		if err != nil {
			return nil, err
		}
		for partition, r := range ranges {
			ranges[partition] = Range{r.From, min(r.To, found[partition])}
		}
	}
	return ranges, nil
}

// Until gives what the topic held at a moment: at a time, so long before now, or when the
// record at a position was the newest. at is that moment.
func (b *Brokers) Until(ctx context.Context, t *Topic, text string, now time.Time) (ranges map[int32]Range, at time.Time, err error) {
	position, err := events.ParsePosition(text)
	if err != nil {
		if at, err = ParseMoment(text, now); err != nil {
			return nil, at, fmt.Errorf("--until is %q: use a time such as 2026-11-24T12:00:00Z, how long ago, such as 2h, or a position, such as a job's history shows", text)
		}
		ranges, err = b.resolve(ctx, t, Query{Until: at})
		return ranges, at, err
	}
	r, there := t.Ranges[position.Partition]
	if position.Log != t.ID || !there || position.Offset < r.From || position.Offset >= r.To {
		return nil, at, fmt.Errorf("--until is %q: this log has no such position", text)
	}
	records, err := kafka.ReadOffsets(ctx, b.cfg, b.log, t.Name, position.Partition, []int64{position.Offset})
	if err != nil {
		return nil, at, fmt.Errorf("--until is %q: %w", text, err)
	}
	at = records[0].Timestamp.UTC()
	if ranges, err = b.resolve(ctx, t, Query{Until: at.Add(time.Millisecond)}); err != nil {
		return nil, at, err
	}
	ranges[position.Partition] = Range{r.From, position.Offset + 1}
	return ranges, at, nil
}

// at keeps the partitions that places name, from there on.
func (t *Topic) at(places []Place, ranges map[int32]Range) (map[int32]Range, error) {
	kept := map[int32]Range{}
	for _, place := range places {
		whole, exists := t.Ranges[place.Partition]
		r, wanted := ranges[place.Partition]
		_, twice := kept[place.Partition]
		switch {
		case place.Log != [16]byte{} && place.Log != t.ID:
			return nil, fmt.Errorf("--from is a position in another log than this one (%s with topic id %x)", t.Name, t.ID)
		case !exists:
			return nil, fmt.Errorf("--from names partition %d: %s has the partitions 0 to %d", place.Partition, t.Name, len(t.Ranges)-1)
		case place.Offset > whole.To:
			return nil, fmt.Errorf("--from names offset %d of partition %d, which ends at %d", place.Offset, place.Partition, whole.To)
		case !wanted:
			return nil, fmt.Errorf("--from names partition %d, and the job that --job names is in another one", place.Partition)
		case twice:
			return nil, fmt.Errorf("--from names partition %d more than once", place.Partition)
		}
		kept[place.Partition] = Range{max(whole.From, place.Offset), r.To}
	}
	return kept, nil
}

func (q Query) wants(r *kgo.Record, e events.Event, fault error) bool {
	switch {
	case q.Job != "" && string(r.Key) != q.Job,
		len(q.Types) > 0 && !slices.Contains(q.Types, events.TypeOf(r)),
		q.Operation != "" && (fault != nil || !concerns(e.Message, q.Operation)),
		!q.Since.IsZero() && r.Timestamp.Before(q.Since),
		!q.Until.IsZero() && !r.Timestamp.Before(q.Until):
		return false
	}
	return true
}

// concerns says whether an event names the operation, whichever event it is.
func concerns(m proto.Message, operation string) bool {
	message := m.ProtoReflect()
	fields := message.Descriptor().Fields()
	if one := fields.ByName("operation"); one != nil && message.Get(one).String() == operation {
		return true
	}
	several := fields.ByName("operations")
	if several == nil || !several.IsList() {
		return false
	}
	list := message.Get(several).List()
	for i := range list.Len() {
		name := list.Get(i)
		if several.Kind() == protoreflect.MessageKind {
			part := name.Message()
			name = part.Get(part.Descriptor().Fields().ByName("name"))
		}
		if name.String() == operation {
			return true
		}
	}
	return false
}
