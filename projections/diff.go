package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/pixtools/pixtools/events"
)

// Kinds of changes, seen from the live read model.
const (
	// Added: only the other read model has the job.
	Added = "added"
	// Missing: only the live one has it.
	Missing = "missing"
	// Changed: both have it, and not the same.
	Changed = "changed"
)

// Change is a job, or a row of usage, that is not the same in two read models.
type Change struct {
	// JobID is the job's, or empty.
	JobID string
	// Usage is the row's day, operation and tenant, or empty.
	Usage string
	Kind  string
	// Fields are those that differ, by their place in the state.
	Fields []FieldChange
}

// FieldChange is one field; an absent value is "-".
type FieldChange struct{ Field, Live, Other string }

// Difference counts what a comparison found.
type Difference struct {
	// Same, Added, Missing and Changed count jobs.
	Same, Added, Missing, Changed int64
	// Usage counts rows of usage that are not the same.
	Usage int64
	// Behind is how many records the live read model lacked that the other had: it did not
	// get there while it was waited for. What differs may be due to that.
	Behind int64
	// Unknown counts jobs that were not compared: the log tells of them what this version does not
	// know, and a newer one's projector may have applied it.
	Unknown int64
	// WithoutPlaces says that the live read model is of another log, so that the places of
	// events were not compared.
	WithoutPlaces bool
}

// liveWait is how long a comparison waits for the live read model to come as far as the
// other one is.
const liveWait = 10 * time.Second

// Diff compares a read model with the live one, both at the same positions, and tells of
// each change, in the order of the ids, and then of usage. A past state is compared as it
// is.
func (r *Replayer) Diff(ctx context.Context, name string, tell func(Progress), show func(Change) error) (Difference, error) {
	return r.diff(ctx, name, tell, func(tx pgx.Tx, d *Difference, tell func(Progress)) error {
		if err := r.compare(ctx, tx, name, d, tell, show); err != nil {
			return err
		}
		return r.compareUsage(ctx, tx, name, d, show)
	})
}

// Audit makes the usage anew of the log, in a schema that it removes again, and compares it
// with the live one.
func (r *Replayer) Audit(ctx context.Context, tell func(Progress), show func(Change) error) (built Rebuilt, d Difference, err error) {
	err = r.Aside(ctx, tell, func(made Rebuilt) (err error) {
		built = made
		d, err = r.diff(ctx, made.Name, tell, func(tx pgx.Tx, d *Difference, _ func(Progress)) error {
			return r.compareUsage(ctx, tx, made.Name, d, show)
		})
		return err
	})
	return built, d, err
}

// diff has two read models compared in one snapshot, in which both are at the same positions.
func (r *Replayer) diff(ctx context.Context, name string, tell func(Progress), compare func(pgx.Tx, *Difference, func(Progress)) error) (Difference, error) {
	var d Difference
	all, err := r.Schemas(ctx)
	if err != nil {
		return d, err
	}
	info, err := find(all, name)
	if err != nil {
		return d, err
	}
	if _, err := find(all, Schema); err != nil {
		return d, err
	}
	tell = r.noted(ctx, info, tell)
	// In this snapshot both are read. It is begun, and taken with its first statement.
	reading, err := r.admin.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return d, err
	}
	defer func() { _ = reading.Rollback(context.WithoutCancel(ctx)) }()
	if info.State != StatePast {
		if err := r.hurrying(ctx, func() error { return r.align(ctx, name, reading, &d, tell) }); err != nil {
			return d, err
		}
	}
	err = compare(reading, &d, tell)
	return d, err
}

// align has a snapshot taken when both read models are at the same positions.
func (r *Replayer) align(ctx context.Context, name string, reading pgx.Tx, d *Difference, tell func(Progress)) error {
	f, err := r.follow(ctx, name)
	if err != nil {
		return err
	}
	defer f.close()
	if err := r.awaitLive(ctx, f, tell); err != nil {
		return err
	}
	return r.standing(ctx, func(ctx context.Context, tx pgx.Tx) error {
		// Writers wait for this, readers do not.
		if _, err := tx.Exec(ctx, "LOCK TABLE "+Schema+".positions IN EXCLUSIVE MODE"); err != nil {
			return fmt.Errorf("hold the live projection up: %w", err)
		}
		targets, err := livePositions(ctx, tx, r.logID)
		if err != nil {
			return err
		}
		if err := f.to(ctx, r, targets, func(Progress) {}); err != nil {
			return err
		}
		d.Behind, d.WithoutPlaces = lag(targets, f.next), len(targets) == 0
		_, err = reading.Exec(ctx, "SELECT 1 FROM "+Schema+".positions LIMIT 1")
		return err
	})
}

// awaitLive waits until the live read model is as far as ours, for a while, and then brings
// ours as far as that is.
func (r *Replayer) awaitLive(ctx context.Context, f *follower, tell func(Progress)) error {
	const pause = 50 * time.Millisecond
	tell(Progress{Phase: "waiting for the live read model"})
	deadline := time.Now().Add(liveWait)
	for {
		live, err := livePositions(ctx, r.admin, r.logID)
		if err != nil {
			return err
		}
		if lag(live, f.next) == 0 || time.Now().After(deadline) {
			return f.to(ctx, r, live, tell)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// lag is how many records there are between two read models.
func lag(live, other map[int32]int64) (n int64) {
	for partition, next := range other {
		n += max(next-live[partition], 0)
	}
	return n
}

// compared is a job's row in one read model: its columns as text, apart from those that
// hold the state and the places of its events.
type compared struct {
	columns       []*string
	state, places []byte
}

// textColumns are those that are compared as text.
var textColumns = slices.DeleteFunc(slices.Clone(jobColumns), func(name string) bool { return slices.Contains([]string{"job_id", "state", "events"}, name) })

// columnsOf names columns of one of the two tables.
func columnsOf(table, suffix string, names []string) string {
	var all []string
	for _, name := range names {
		all = append(all, table+"."+name+suffix)
	}
	return strings.Join(all, ", ")
}

// compare goes through the rows that are not the same to Postgres. Those may yet say the
// same: another version of the program may have written a state in another order.
func (r *Replayer) compare(ctx context.Context, tx pgx.Tx, name string, d *Difference, tell func(Progress), show func(Change) error) error {
	tell(Progress{Phase: "comparing"})
	var both int64
	if err := tx.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FROM %s.jobs JOIN %s.jobs USING (job_id)", Schema, quoted(name))).Scan(&both); err != nil {
		return fmt.Errorf("compare with the live read model: %w", err)
	}
	// The other one was made by this version.
	unknown := fmt.Sprintf("(SELECT job_id FROM %s.passed_over)", quoted(name))
	if err := tx.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FROM %s.jobs WHERE job_id IN %s", Schema, unknown)).Scan(&d.Unknown); err != nil {
		return fmt.Errorf("compare with the live read model: %w", err)
	}
	rows, err := tx.Query(ctx, fmt.Sprintf(`SELECT coalesce(l.job_id, o.job_id)::text,
			l.state, l.events, ARRAY[%[3]s], o.state, o.events, ARRAY[%[4]s]
		FROM %[1]s.jobs l FULL JOIN %[2]s.jobs o USING (job_id) WHERE (%[5]s) IS DISTINCT FROM (%[6]s)
			AND coalesce(l.job_id, o.job_id) NOT IN %[7]s ORDER BY 1`, Schema, quoted(name),
		columnsOf("l", "::text", textColumns), columnsOf("o", "::text", textColumns), columnsOf("l", "", jobColumns), columnsOf("o", "", jobColumns), unknown))
	if err != nil {
		return fmt.Errorf("compare with the live read model: %w", err)
	}
	var id string
	var live, other compared
	_, err = pgx.ForEachRow(rows, []any{&id, &live.state, &live.places, &live.columns, &other.state, &other.places, &other.columns}, func() error {
		change := Change{JobID: id, Kind: Changed}
		switch {
		case live.state == nil:
			change.Kind = Added
			d.Added++
		case other.state == nil:
			change.Kind = Missing
			d.Missing++
		default:
			if change.Fields = fieldsOf(live, other, d.WithoutPlaces); len(change.Fields) == 0 {
				return nil
			}
			d.Changed++
		}
		return show(change)
	})
	d.Same = both - d.Changed - d.Unknown
	if err != nil {
		return fmt.Errorf("compare with the live read model: %w", err)
	}
	return nil
}

// fieldsOf lists what is not the same in two rows of a job.
func fieldsOf(live, other compared, withoutPlaces bool) []FieldChange {
	var fields []FieldChange
	note := func(field, l, o string) {
		if l != o {
			fields = append(fields, FieldChange{field, l, o})
		}
	}
	for i, name := range textColumns {
		note(name, textOf(live.columns[i]), textOf(other.columns[i]))
	}
	// What a newer version keeps in a state beside what this one knows is its own business.
	var l, o events.Job
	known := proto.UnmarshalOptions{DiscardUnknown: true}
	if err := errors.Join(known.Unmarshal(live.state, &l), known.Unmarshal(other.state, &o)); err != nil {
		note("state", "one of them cannot be decoded", err.Error())
	} else {
		fields = append(fields, messageFields("state", l.ProtoReflect(), o.ProtoReflect())...)
	}
	if !withoutPlaces {
		note("events", placesOf(live.places), placesOf(other.places))
	}
	return fields
}

func textOf(column *string) string {
	if column == nil {
		return "-"
	}
	return *column
}

func placesOf(raw []byte) string {
	offsets, err := readHistory(raw)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(offsets)
}

// messageFields compares two messages of one kind, field by field, and lists by their
// elements.
func messageFields(at string, live, other protoreflect.Message) (fields []FieldChange) {
	if proto.Equal(live.Interface(), other.Interface()) {
		return nil
	}
	all := live.Descriptor().Fields()
	for i := range all.Len() {
		field := all.Get(i)
		name := at + "." + field.TextName()
		l, o := live.Get(field), other.Get(field)
		switch {
		case l.Equal(o) && live.Has(field) == other.Has(field):
		case field.IsList() && field.Message() != nil && l.List().Len() == o.List().Len():
			for j := range l.List().Len() {
				fields = append(fields, messageFields(fmt.Sprintf("%s[%d]", name, j), l.List().Get(j).Message(), o.List().Get(j).Message())...)
			}
		case field.Message() != nil && !field.IsList() && !field.IsMap() && live.Has(field) && other.Has(field) && !isScalarLike(field.Message()):
			fields = append(fields, messageFields(name, l.Message(), o.Message())...)
		default:
			fields = append(fields, FieldChange{name, valueOf(live, field), valueOf(other, field)})
		}
	}
	if len(fields) == 0 { // what neither of us knows the fields of
		fields = append(fields, FieldChange{at, "unknown fields", "others"})
	}
	return fields
}

// isScalarLike says that a message is read as one value: a time, a duration.
func isScalarLike(m protoreflect.MessageDescriptor) bool {
	return slices.Contains([]protoreflect.FullName{"google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.Struct"}, m.FullName())
}

func valueOf(m protoreflect.Message, field protoreflect.FieldDescriptor) string {
	if !m.Has(field) {
		return "-"
	}
	v := m.Get(field)
	switch {
	case field.IsList() || field.IsMap():
		return v.String()
	case field.Message() != nil:
		raw, err := protojson.Marshal(v.Message().Interface())
		if err != nil {
			return err.Error()
		}
		return string(raw)
	case field.Enum() != nil:
		if known := field.Enum().Values().ByNumber(v.Enum()); known != nil {
			return string(known.Name())
		}
	case field.Kind() == protoreflect.BytesKind:
		return fmt.Sprintf("%x", v.Bytes())
	}
	return v.String()
}
