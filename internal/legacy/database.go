package legacy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Job is a row of the Python service's table.
type Job struct {
	// ID is a UUID in the form that keys of the log have.
	ID     string
	Status string
	// Operations as they were asked for, each once.
	Operations []string
	// ResultKeys are the results' keys in the bucket, by operation.
	ResultKeys                      map[string]string
	WebhookURL, SourceKey, FileName string
	Error                           string
	Retries                         int
	CreatedAt, UpdatedAt            time.Time
}

// Statuses of jobs.
const (
	Pending       = "PENDING"
	Processing    = "PROCESSING"
	Completed     = "COMPLETED"
	Failed        = "FAILED"
	WebhookFailed = "COMPLETED_WEBHOOK_FAILED"
)

// Unfinished says that the Python service has not ended the job.
func (j Job) Unfinished() bool { return j.Status == Pending || j.Status == Processing }

// Database is the Python service's. One question at a time.
type Database struct {
	conn    *pgx.Conn
	table   string // quoted
	idType  string
	timeout time.Duration
}

// driverless is a URL of SQLAlchemy as others know it: it named its driver in the scheme.
func driverless(address string) string {
	for _, scheme := range []string{"postgresql+asyncpg://", "postgresql+psycopg2://", "postgresql+psycopg://"} {
		address = strings.Replace(address, scheme, "postgresql://", 1)
	}
	return address
}

// needed are the columns without which a row says nothing. The others may be missing.
var needed = []string{"id", "status", "operations", "created_at"}

// OpenDatabase connects and finds the table, which may be named with its schema. Nothing is
// ever written there: the session is read-only.
func OpenDatabase(ctx context.Context, where, table string, timeout time.Duration) (*Database, error) {
	cfg, err := pgx.ParseConfig(driverless(where))
	if err != nil {
		return nil, fmt.Errorf("--database: %w", err)
	}
	cfg.ConnectTimeout = timeout
	cfg.RuntimeParams["default_transaction_read_only"] = "on"
	cfg.RuntimeParams["timezone"] = "UTC" // times without a zone are UTC
	cfg.RuntimeParams["application_name"] = "pixtools import-legacy"
	d := &Database{table: pgx.Identifier(strings.Split(table, ".")).Sanitize(), timeout: timeout}
	if d.conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		return nil, fmt.Errorf("--database: %w", err)
	}
	if err := d.look(ctx, table); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Close ends the connection.
func (d *Database) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), d.timeout)
	defer cancel()
	_ = d.conn.Close(ctx)
}

func (d *Database) look(ctx context.Context, table string) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	rows, err := d.conn.Query(ctx, `SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
		WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`, d.table)
	if err != nil {
		return fmt.Errorf("look at the table %s: %w", table, err)
	}
	types := map[string]string{}
	var name, kind string
	if _, err := pgx.ForEachRow(rows, []any{&name, &kind}, func() error {
		types[name] = kind
		return nil
	}); err != nil {
		return fmt.Errorf("look at the table %s: %w", table, err)
	}
	if len(types) == 0 {
		return fmt.Errorf("the database has no table %s: name the Python service's table of jobs with --table, with its schema if it is not in the search path", table)
	}
	for _, column := range needed {
		if types[column] == "" {
			return fmt.Errorf("the table %s has no column %s, and has %s: name the Python service's table of jobs with --table", table, column,
				strings.Join(slices.Sorted(maps.Keys(types)), ", "))
		}
	}
	d.idType = types["id"]
	return nil
}

// Count counts the jobs that were made since a time, by status as it is written there.
func (d *Database) Count(ctx context.Context, since time.Time) (map[string]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	rows, err := d.conn.Query(ctx, "SELECT coalesce(status::text, ''), count(*) FROM "+d.table+" WHERE created_at IS NULL OR created_at >= $1::timestamptz GROUP BY 1", since)
	if err != nil {
		return nil, fmt.Errorf("count the jobs: %w", err)
	}
	counts := map[string]int64{}
	var status string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&status, &n}, func() error {
		counts[status] += n
		return nil
	})
	return counts, err
}

// Row is a row, and what is wrong with it. ID is what the table has, also where that is no id.
type Row struct {
	ID    string
	Job   Job
	Fault error
}

// page is how many rows one question brings.
const page = 500

// Rows gives the rows since a time that follow the id after, in the order of the ids as the
// table has them, at most so many. Nobody holds a cursor or a transaction meanwhile.
func (d *Database) Rows(ctx context.Context, after string, most int, since time.Time, each func(Row) error) error {
	for most > 0 {
		rows, err := d.page(ctx, after, min(most, page), since)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if err := each(row); err != nil {
				return err
			}
		}
		if len(rows) < min(most, page) {
			return nil
		}
		after, most = rows[len(rows)-1].ID, most-len(rows)
	}
	return nil
}

func (d *Database) page(ctx context.Context, after string, most int, since time.Time) ([]Row, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	// In the type of the column, so that its index is of use. to_jsonb makes one thing of
	// enums, arrays, json, jsonb and text.
	rows, err := d.conn.Query(ctx, fmt.Sprintf(`SELECT id::text, to_jsonb(t)::text FROM %s t
		WHERE ($1 = '' OR id > nullif($1, '')::%s) AND (created_at IS NULL OR created_at >= $2::timestamptz) ORDER BY id LIMIT $3`, d.table, d.idType),
		after, since, most)
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	var all []Row
	var id, raw string
	_, err = pgx.ForEachRow(rows, []any{&id, &raw}, func() error {
		job, fault := read(id, []byte(raw))
		all = append(all, Row{id, job, fault})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	return all, nil
}

// read makes a job of a row.
func read(id string, raw []byte) (j Job, err error) {
	parsed, err := uuid.Parse(id)
	if err != nil {
		return j, fmt.Errorf("id is no UUID")
	}
	j.ID = parsed.String()
	var columns map[string]json.RawMessage
	if err := json.Unmarshal(raw, &columns); err != nil {
		return j, err
	}
	texts := map[string]*string{"status": &j.Status, "webhook_url": &j.WebhookURL, "s3_raw_key": &j.SourceKey, "original_filename": &j.FileName, "error_message": &j.Error}
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		if err := into(columns[name], texts[name]); err != nil {
			return j, fmt.Errorf("%s is no text", name)
		}
	}
	// An enum of SQLAlchemy may be stored by name, by value, or as "JobStatus.PENDING".
	j.Status = strings.ToUpper(j.Status[strings.LastIndexByte(j.Status, '.')+1:])
	if !slices.Contains([]string{Pending, Processing, Completed, Failed, WebhookFailed}, j.Status) {
		return j, fmt.Errorf("status %q is none that is known: %s, %s, %s, %s or %s", j.Status, Pending, Processing, Completed, Failed, WebhookFailed)
	}
	if j.Operations, err = operations(columns["operations"]); err != nil {
		return j, err
	}
	if j.ResultKeys, err = results(j.ID, columns["result_keys"], columns["result_urls"]); err != nil {
		return j, err
	}
	if err := into(columns["retry_count"], &j.Retries); err != nil {
		return j, errors.New("retry_count is no number")
	}
	for _, c := range []struct {
		name string
		to   *time.Time
	}{{"created_at", &j.CreatedAt}, {"updated_at", &j.UpdatedAt}} {
		if *c.to, err = at(columns[c.name]); err != nil {
			return j, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if j.CreatedAt.IsZero() {
		return j, errors.New("created_at is empty")
	}
	if j.UpdatedAt.Before(j.CreatedAt) {
		j.UpdatedAt = j.CreatedAt // also where it is empty
	}
	j.SourceKey = strings.TrimPrefix(j.SourceKey, "/")
	return j, nil
}

// into reads a value that may be absent, and may be JSON within a text.
func into(raw json.RawMessage, to any) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	err := json.Unmarshal(raw, to)
	var text string
	if err != nil && json.Unmarshal(raw, &text) == nil {
		if text == "" {
			return nil
		}
		return json.Unmarshal([]byte(text), to)
	}
	return err
}

// operations are a JSON array, or an object whose names they are; each counts once.
func operations(raw json.RawMessage) (names []string, err error) {
	var all []string
	if err := into(raw, &all); err != nil {
		var object map[string]any
		if into(raw, &object) != nil {
			return nil, errors.New("operations is no list of names")
		}
		all = slices.Sorted(maps.Keys(object))
	}
	for _, name := range all {
		name = canonical(name[strings.LastIndexByte(name, '.')+1:])
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("operations is empty")
	}
	return names, nil
}

// results are the keys of results; where only a link is known, that in the link.
func results(id string, keys, urls json.RawMessage) (map[string]string, error) {
	found, links := map[string]string{}, map[string]string{}
	if into(keys, &found) != nil {
		return nil, errors.New("result_keys is no object of operations and keys")
	}
	if into(urls, &links) != nil {
		return nil, errors.New("result_urls is no object of operations and links")
	}
	for operation, link := range links {
		parsed, err := url.Parse(link)
		if err != nil || found[operation] != "" {
			continue
		}
		if _, key, ok := strings.Cut(parsed.Path, "/processed/"+id+"/"); ok {
			found[operation] = "processed/" + id + "/" + key
		}
	}
	byName := map[string]string{}
	for operation, key := range found {
		name := canonical(operation)
		if key != "" {
			byName[name] = strings.TrimPrefix(key, "/")
		}
	}
	return byName, nil
}

// at reads a time; one without a zone is UTC.
func at(raw json.RawMessage) (time.Time, error) {
	var text string
	if err := into(raw, &text); err != nil || text == "" {
		return time.Time{}, err
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999"} {
		if t, err := time.Parse(form, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time", text)
}

// longestReason is how much is kept of an error, in bytes.
const longestReason = 500

var address = regexp.MustCompile(`[a-z][a-z0-9+.-]*://\S+`)

// Reason is why the job failed, without what nobody is to read in the log: the file's name,
// and addresses, which may hold secrets.
func (j Job) Reason() string {
	text := strings.ToValidUTF8(j.Error, "?")
	if j.FileName != "" {
		text = strings.ReplaceAll(text, j.FileName, "(file)")
	}
	if Tells(text, j.FileName) {
		return "" // a part of it stands there in another form
	}
	text = strings.TrimSpace(address.ReplaceAllString(text, "(address)"))
	for len(text) > longestReason {
		_, last := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-last]
	}
	return text
}
