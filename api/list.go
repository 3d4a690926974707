package api

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-fuego/fuego"
	"github.com/google/uuid"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

const (
	// defaultListed is how many jobs a page has where the client does not say.
	defaultListed = 50
	// mostListed is how many LIST_MAX_JOBS may allow: a page is answered as one.
	mostListed = 10_000
)

// JobPage is one page of a list, the newest job first.
type JobPage struct {
	Jobs []JobSummary `json:"jobs"`
	Next *string      `json:"next" description:"Pass it as cursor= to get those that follow; null where none do"`
}

// JobSummary is a job as a list shows it.
type JobSummary struct {
	JobID       string    `json:"job_id" format:"uuid"`
	Status      string    `json:"status" description:"PENDING, PROCESSING, COMPLETED, FAILED or COMPLETED_WEBHOOK_FAILED"`
	Outcome     *string   `json:"outcome" description:"null while open, then SUCCEEDED, PARTIAL, FAILED or CANCELLED"`
	Revision    int32     `json:"revision"`
	Operations  []string  `json:"operations"`
	CreatedAt   time.Time `json:"created_at"`
	StatusSince time.Time `json:"status_since" description:"When it came to this status and outcome"`
}

// JobTotals counts jobs.
type JobTotals struct {
	Jobs       int64            `json:"jobs"`
	Status     map[string]int64 `json:"status" description:"Jobs by status; one without jobs is left out"`
	Outcome    map[string]int64 `json:"outcome" description:"Jobs that have ended, by outcome"`
	Operations map[string]Share `json:"operations" description:"Of each operation, the jobs that asked for it"`
}

// Share is the jobs of one operation.
type Share struct {
	Jobs   int64            `json:"jobs"`
	Status map[string]int64 `json:"status" description:"By the status of the whole job"`
}

// words are the status and the outcome of a job that stands so. Existing clients know no
// end but COMPLETED, FAILED and COMPLETED_WEBHOOK_FAILED, and wait for one of them.
var words = map[projections.Standing]struct{ status, outcome string }{
	projections.Pending:                {"PENDING", ""},
	projections.Processing:             {"PROCESSING", ""},
	projections.Succeeded:              {"COMPLETED", "SUCCEEDED"},
	projections.Partial:                {"COMPLETED", "PARTIAL"},
	projections.Failed:                 {"FAILED", "FAILED"},
	projections.Cancelled:              {"FAILED", "CANCELLED"},
	projections.SucceededWebhookFailed: {"COMPLETED_WEBHOOK_FAILED", "SUCCEEDED"},
	projections.PartialWebhookFailed:   {"COMPLETED_WEBHOOK_FAILED", "PARTIAL"},
	projections.Deleted:                {"FAILED", ""}, // is shown to nobody
}

// picks are the parameters that say which jobs are meant.
var picks = []string{"status", "outcome", "operation", "since", "until", "q", "after", "at"}

// jobs answers GET /api/jobs.
func (s *Server) jobs(c fuego.ContextNoBody) (JobPage, error) {
	given := c.Request().URL.Query()
	f, err := jobFilter(tenantOf(c.Context()), given, append([]string{"limit", "cursor"}, picks...))
	if err != nil {
		return JobPage{}, err
	}
	limit := min(defaultListed, s.cfg.MaxListed)
	if text := given.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > s.cfg.MaxListed {
			return JobPage{}, invalid("limit", fmt.Sprintf("limit must be a number of jobs from 1 to %d (LIST_MAX_JOBS)", s.cfg.MaxListed))
		}
	}
	behind, err := readCursor(given.Get("cursor"), f)
	if err != nil {
		return JobPage{}, err
	}
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	if err := s.ready(ctx, given, f); err != nil {
		return JobPage{}, err
	}
	listed, more, err := s.Reader.Jobs(ctx, f, behind, limit)
	if err != nil {
		return JobPage{}, unlisted(err)
	}
	page := JobPage{Jobs: []JobSummary{}}
	for _, job := range listed {
		page.Jobs = append(page.Jobs, summaryOf(job))
	}
	if more {
		last := listed[len(listed)-1]
		cursor := writeCursor(projections.JobPlace{CreatedAt: last.CreatedAt, ID: last.ID}, f)
		page.Next = &cursor
	}
	return page, nil
}

// jobTotals answers GET /api/jobs/totals.
func (s *Server) jobTotals(c fuego.ContextNoBody) (JobTotals, error) {
	given := c.Request().URL.Query()
	f, err := jobFilter(tenantOf(c.Context()), given, picks)
	if err != nil {
		return JobTotals{}, err
	}
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	if err := s.ready(ctx, given, f); err != nil {
		return JobTotals{}, err
	}
	counted, err := s.Reader.Totals(ctx, f)
	if err != nil {
		return JobTotals{}, unlisted(err)
	}
	totals := JobTotals{Status: map[string]int64{}, Outcome: map[string]int64{}, Operations: map[string]Share{}}
	for standing, n := range counted.Jobs {
		w := words[standing]
		totals.Jobs += n
		totals.Status[w.status] += n
		if w.outcome != "" {
			totals.Outcome[w.outcome] += n
		}
	}
	for operation, by := range counted.ByOperation {
		share := Share{Status: map[string]int64{}}
		for standing, n := range by {
			share.Jobs += n
			share.Status[words[standing].status] += n
		}
		totals.Operations[operation] = share
	}
	return totals, nil
}

func summaryOf(job projections.ListedJob) JobSummary {
	w := words[job.Standing]
	summary := JobSummary{JobID: job.ID.String(), Status: w.status, Revision: job.Revision, Operations: job.Operations, CreatedAt: job.CreatedAt, StatusSince: job.Since}
	if w.outcome != "" {
		summary.Outcome = &w.outcome
	}
	return summary
}

// ready waits for what the answer has to have in it: what was up to now, of a past state.
func (s *Server) ready(ctx context.Context, given url.Values, f projections.JobFilter) error {
	if !f.At.IsZero() {
		return s.catchUp(ctx)
	}
	if after := given.Get("after"); after != "" {
		return s.waitFor(ctx, after)
	}
	return nil
}

// catchUp waits until the projection has passed the end that the log has now.
func (s *Server) catchUp(ctx context.Context) error {
	ends, err := s.ends(ctx)
	if err != nil {
		return unavailable("Kafka does not tell how long the log is.", err)
	}
	for partition, end := range ends[events.Topic] {
		if end.Err != nil {
			return unavailable("Kafka does not tell how long the log is.", end.Err)
		}
		if end.Offset == 0 {
			continue
		}
		if err := s.Reader.Wait(ctx, partition, end.Offset-1); err != nil {
			return unavailable("The read model has not caught up with the log yet.", err)
		}
	}
	return nil
}

// pastTime reads at: a time, since a position is one of a single partition, and a list is of all.
func pastTime(given url.Values, now time.Time) (time.Time, error) {
	text := given.Get("at")
	if text == "" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	_, notPosition := events.ParsePosition(text)
	switch {
	case err != nil && notPosition == nil:
		return at, invalid("at", "at is a position: that is a place in one partition of the log, and a list is of all of them. Use a time such as 2026-11-24T12:00:00Z; positions are for single jobs")
	case err != nil:
		return at, invalid("at", "at must be a time such as 2026-11-24T12:00:00Z")
	case at.After(now):
		return at, invalid("at", "at is in the future; leave it out for the jobs as they are now")
	case given.Get("after") != "":
		return at, invalid("at", "at cannot be asked for together with after: what was does not change")
	}
	return at, nil
}

func unlisted(err error) error {
	switch {
	case errors.Is(err, projections.ErrSlow):
		return unavailable("The database has not answered within DATABASE_QUERY_TIMEOUT: ask for less, with since and until, or again when there is less to do.", err)
	case errors.Is(err, projections.ErrUnavailable):
		return unavailable("The database is unreachable.", err)
	}
	return err
}

// jobFilter reads which jobs are meant.
func jobFilter(tenant string, given url.Values, known []string) (f projections.JobFilter, err error) {
	for name, values := range given {
		if !slices.Contains(known, name) {
			return f, invalid(clipped(name), fmt.Sprintf("%s is none of %s", clipped(name), strings.Join(known, ", ")))
		}
		if len(values) > 1 {
			return f, invalid(name, name+" is given more than once; several statuses or outcomes go into one, with commas")
		}
	}
	f.Tenant, f.Operation = tenant, given.Get("operation")
	if _, known := operations.Find(f.Operation); f.Operation != "" && !known {
		return f, invalid("operation", fmt.Sprintf("operation must be one of %s", strings.Join(operations.Names(), ", ")))
	}
	if f.Standings, err = standings(given.Get("status"), given.Get("outcome")); err != nil {
		return f, err
	}
	if f.Since, err = moment("since", given.Get("since")); err != nil {
		return f, err
	}
	if f.Until, err = moment("until", given.Get("until")); err != nil {
		return f, err
	}
	if f.At, err = pastTime(given, time.Now()); err != nil {
		return f, err
	}
	if prefix := given.Get("q"); prefix != "" {
		if f.From, f.To, err = idRange(prefix); err != nil {
			return f, err
		}
	}
	return f, nil
}

// standings are those that have one of the statuses and one of the outcomes; none: all.
func standings(status, outcome string) ([]projections.Standing, error) {
	if status == "" && outcome == "" {
		return nil, nil
	}
	all := func(of func(projections.Standing) string) (values []string) {
		for standing := range words {
			if of(standing) != "" {
				values = append(values, of(standing))
			}
		}
		slices.Sort(values)
		return slices.Compact(values)
	}
	pick := func(field, given string, of func(projections.Standing) string) (map[projections.Standing]bool, error) {
		picked := map[projections.Standing]bool{}
		for _, wanted := range strings.Split(given, ",") {
			found := false
			for standing := range words {
				if standing != projections.Deleted && (given == "" || wanted != "" && of(standing) == wanted) {
					picked[standing], found = true, true
				}
			}
			if !found {
				return nil, invalid(field, fmt.Sprintf("%s is %q: it must be one or more, with commas, of %s", field, clipped(wanted), strings.Join(all(of), ", ")))
			}
		}
		return picked, nil
	}
	byStatus, err := pick("status", status, func(s projections.Standing) string { return words[s].status })
	if err != nil {
		return nil, err
	}
	byOutcome, err := pick("outcome", outcome, func(s projections.Standing) string { return words[s].outcome })
	if err != nil {
		return nil, err
	}
	var both []projections.Standing
	for standing := range byStatus {
		if byOutcome[standing] {
			both = append(both, standing)
		}
	}
	if len(both) == 0 {
		return nil, invalid("outcome", fmt.Sprintf("no job has the status %s and the outcome %s", clipped(status), clipped(outcome)))
	}
	slices.Sort(both)
	return both, nil
}

// idRange is the first and the last id that begin so.
func idRange(prefix string) (first, last uuid.UUID, err error) {
	const lowest, highest = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"
	fault := invalid("q", "q must be the beginning of a job's id, such as 0192f0c1-00: up to 36 of 0-9, a-f and the dashes between them. File names cannot be searched for: they are kept encrypted")
	if len(prefix) > len(lowest) {
		return first, last, fault
	}
	if first, err = uuid.Parse(prefix + lowest[len(prefix):]); err != nil {
		return first, last, fault
	}
	if last, err = uuid.Parse(prefix + highest[len(prefix):]); err != nil {
		return first, last, fault
	}
	return first, last, nil
}

const cursorVersion = 1

// writeCursor is a place in a list as opaque text. It holds what was picked, too: in
// another list the place would mean something else.
func writeCursor(p projections.JobPlace, f projections.JobFilter) string {
	b := append([]byte{cursorVersion}, fingerprint(f)...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.CreatedAt.UnixMicro()))
	return base64.RawURLEncoding.EncodeToString(append(b, p.ID[:]...))
}

func readCursor(cursor string, f projections.JobFilter) (*projections.JobPlace, error) {
	if cursor == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	mark := fingerprint(f)
	if err != nil || len(b) != 1+len(mark)+8+len(uuid.UUID{}) || b[0] != cursorVersion {
		return nil, invalid("cursor", "cursor must be passed back, unchanged, as next of the page before had it")
	}
	if b = b[1:]; !slices.Equal(b[:len(mark)], mark) {
		return nil, invalid("cursor", "cursor is of a list of other jobs: repeat status, outcome, operation, since, until, q and at as they were, or begin without a cursor")
	}
	b = b[len(mark):]
	return &projections.JobPlace{CreatedAt: time.UnixMicro(int64(binary.BigEndian.Uint64(b))), ID: uuid.UUID(b[8:])}, nil
}

func fingerprint(f projections.JobFilter) []byte {
	h := fnv.New64a()
	fmt.Fprint(h, f.Tenant, "/", f.Standings, f.Operation, f.Since.UnixMicro(), f.Until.UnixMicro(), f.From, f.To, f.At.UnixMicro())
	return h.Sum(nil)
}
