package projections

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pixtools/pixtools/events"
)

// Used is what operations took, in sums. Each effective outcome counts once, on the UTC day
// of its event: what Fold ignores, as a repeat or as too late, counts nothing. What was
// cancelled has no outcome.
type Used struct {
	// Operations that ended, and those of them that failed.
	Operations, Failures int64
	// InputBytes are the sizes of their sources, OutputBytes those of the artifacts.
	InputBytes, OutputBytes int64
	// CPU is the processor time of those that completed: of others nobody tells it.
	CPU time.Duration
}

// Add is the sum of both.
func (u Used) Add(o Used) Used {
	return Used{u.Operations + o.Operations, u.Failures + o.Failures, u.InputBytes + o.InputBytes, u.OutputBytes + o.OutputBytes, u.CPU + o.CPU}
}

// One event counts for no more than this, whatever it says: a log that somebody else wrote
// into must not bring the sums to their end.
const (
	mostBytes = 1 << 40
	mostCPU   = 30 * 24 * time.Hour
)

// usedBy is what an event tells of; ok is false where it told nothing new.
func usedBy(before, after *events.Job, m any) (operation string, u Used, ok bool) {
	if before == after {
		return "", u, false
	}
	bytes := func(n int64) int64 { return min(max(n, 0), mostBytes) }
	u.Operations, u.InputBytes = 1, bytes(after.GetSource().GetBytes())
	switch m := m.(type) {
	case *events.OperationCompleted:
		u.OutputBytes, u.CPU = bytes(m.GetArtifact().GetBytes()), min(max(m.GetCpuTime().AsDuration(), 0), mostCPU)
		return m.GetOperation(), u, true
	case *events.OperationFailed:
		u.Failures = 1
		return m.GetOperation(), u, true
	}
	return "", Used{}, false
}

// account is a row of the table usage.
type account struct {
	tenant, operation string
	// day counts days since 1970.
	day int64
}

// ledger collects what is to be added to the rows of the table.
type ledger map[account]Used

const secondsPerDay = 24 * 60 * 60

func (l ledger) add(before, after *events.Job, e events.Event) {
	operation, used, ok := usedBy(before, after, e.Message)
	if !ok {
		return
	}
	seconds := e.Time.Unix()
	day := seconds / secondsPerDay
	if seconds%secondsPerDay < 0 {
		day--
	}
	a := account{after.GetTenant(), operation, day}
	l[a] = l[a].Add(used)
}

// write adds to the rows, in one statement. It holds their locks until the transaction's
// end: so it comes last in it; and all take them in one order, so that nobody waits for
// somebody who waits for him.
func (l ledger) write(ctx context.Context, in execer) error {
	if len(l) == 0 {
		return nil
	}
	accounts := slices.SortedFunc(maps.Keys(l), func(a, b account) int {
		return cmp.Or(strings.Compare(a.tenant, b.tenant), cmp.Compare(a.day, b.day), strings.Compare(a.operation, b.operation))
	})
	var tenants, names []string
	var days []time.Time
	var operations, failures, input, output, cpu []int64
	for _, a := range accounts {
		u := l[a]
		tenants, names, days = append(tenants, a.tenant), append(names, a.operation), append(days, time.Unix(a.day*secondsPerDay, 0).UTC())
		operations, failures = append(operations, u.Operations), append(failures, u.Failures)
		input, output, cpu = append(input, u.InputBytes), append(output, u.OutputBytes), append(cpu, int64(u.CPU))
	}
	_, err := in.Exec(ctx, `INSERT INTO usage AS had (tenant, day, operation, operations, failures, input_bytes, output_bytes, cpu_nanos)
		SELECT * FROM unnest($1::text[], $2::date[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
		ON CONFLICT (tenant, day, operation) DO UPDATE SET operations = had.operations + excluded.operations, failures = had.failures + excluded.failures,
			input_bytes = had.input_bytes + excluded.input_bytes, output_bytes = had.output_bytes + excluded.output_bytes,
			cpu_nanos = had.cpu_nanos + excluded.cpu_nanos`,
		tenants, days, names, operations, failures, input, output, cpu)
	if err != nil {
		return fmt.Errorf("add to the usage of %d days and operations: %w", len(accounts), err)
	}
	return nil
}

// UsageFilter says of what the usage is asked for.
type UsageFilter struct {
	Tenant string
	// First and Last are UTC days, both included.
	First, Last time.Time
	// Operation: of this one alone; empty: of all.
	Operation string
	// ByDay and ByOperation say what has a row of its own.
	ByDay, ByOperation bool
}

// UsageRow is a sum; Day and Operation are zero where it is over all of them.
type UsageRow struct {
	Day       time.Time
	Operation string
	Used
}

// Usage sums what a tenant used, by day and operation. Days without any have no row.
func (r *Reader) Usage(ctx context.Context, f UsageFilter) ([]UsageRow, error) {
	day, operation := "NULL::date", "''"
	if f.ByDay {
		day = "day"
	}
	if f.ByOperation {
		operation = "operation"
	}
	query := fmt.Sprintf(`SELECT %s, %s, sum(operations)::bigint, sum(failures)::bigint, sum(input_bytes)::bigint, sum(output_bytes)::bigint, sum(cpu_nanos)::bigint
		FROM usage WHERE tenant = $1 AND day BETWEEN $2 AND $3 AND ($4 = '' OR operation = $4) GROUP BY 1, 2 ORDER BY 1, 2`, day, operation)
	var all []UsageRow
	var row UsageRow
	var on *time.Time
	var cpu int64
	into := []any{&on, &row.Operation, &row.Operations, &row.Failures, &row.InputBytes, &row.OutputBytes, &cpu}
	err := r.each(ctx, query, []any{f.Tenant, f.First, f.Last, f.Operation}, into, func() error {
		next := row
		if next.CPU = time.Duration(cpu); on != nil {
			next.Day = *on
		}
		all = append(all, next)
		return nil
	})
	return all, err
}

var usageColumns = []string{"operations", "failures", "input_bytes", "output_bytes", "cpu_nanos"}

// compareUsage tells of each row of usage that is not the same in two read models.
func (r *Replayer) compareUsage(ctx context.Context, tx pgx.Tx, name string, d *Difference, show func(Change) error) error {
	rows, err := tx.Query(ctx, fmt.Sprintf(`SELECT tenant, day::text, operation, l.day IS NOT NULL, o.day IS NOT NULL, ARRAY[%[3]s], ARRAY[%[4]s]
		FROM %[1]s.usage l FULL JOIN %[2]s.usage o USING (tenant, day, operation)
		WHERE (%[3]s) IS DISTINCT FROM (%[4]s) ORDER BY day, tenant COLLATE "C", operation COLLATE "C"`,
		Schema, quoted(name), columnsOf("l", "", usageColumns), columnsOf("o", "", usageColumns)))
	if err != nil {
		return fmt.Errorf("compare the usage: %w", err)
	}
	var tenant, day, operation string
	var isLive, isOther bool
	var live, other []*int64
	_, err = pgx.ForEachRow(rows, []any{&tenant, &day, &operation, &isLive, &isOther, &live, &other}, func() error {
		change := Change{Usage: day + " " + operation + " of " + tenant, Kind: Changed}
		switch {
		case !isLive:
			change.Kind = Added
		case !isOther:
			change.Kind = Missing
		}
		number := func(n *int64) string {
			if n == nil {
				return "-"
			}
			return fmt.Sprint(*n)
		}
		for i, column := range usageColumns {
			if l, o := number(live[i]), number(other[i]); l != o {
				change.Fields = append(change.Fields, FieldChange{column, l, o})
			}
		}
		d.Usage++
		return show(change)
	})
	if err != nil {
		return fmt.Errorf("compare the usage: %w", err)
	}
	return nil
}
