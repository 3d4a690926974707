package legacy

import (
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/testenv"
)

// TestTables: whatever types the columns have, a row is the same job.
func TestTables(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	db, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer db.Close(t.Context())
	const id = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
	for name, statement := range map[string]string{
		"enum, json, no zone": `CREATE TYPE st AS ENUM ('PENDING', 'COMPLETED'); SET timezone TO 'America/New_York';
			CREATE TABLE one (id uuid PRIMARY KEY, status st, operations json, result_urls json, result_keys json, webhook_url text, s3_raw_key text,
				original_filename text, error_message text, retry_count int, created_at timestamp, updated_at timestamp);
			INSERT INTO one VALUES ('` + id + `', 'COMPLETED', '["webp", "jpeg", "webp"]', NULL, '{"webp": "processed/x/a.webp", "jpeg": "/processed/x/a.jpg"}', 'https://e.org/h',
				'/raw/x/a.png', 'a.png', NULL, 2, '2026-03-04 05:06:07.5', '2026-03-04 05:06:09')`,
		"text, jsonb, zone": `CREATE TABLE one (id varchar, status varchar, operations jsonb, result_keys jsonb, webhook_url text, s3_raw_key text, original_filename text,
				retry_count bigint, created_at timestamptz, updated_at timestamptz, more text);
			INSERT INTO one VALUES (upper('` + id + `'), 'JobStatus.completed', '["OperationType.WEBP", "jpg"]', '{"WEBP": "processed/x/a.webp", "jpg": "processed/x/a.jpg"}', 'https://e.org/h',
				'raw/x/a.png', 'a.png', 2, '2026-03-04 07:06:07.5+02', '2026-03-04 05:06:09Z')`,
		"arrays and JSON in text": `CREATE TABLE one (id text, status text, operations text[], result_urls text, result_keys text, webhook_url text, s3_raw_key text, original_filename text,
				retry_count int, created_at timestamptz, updated_at timestamptz);
			INSERT INTO one VALUES ('` + id + `', 'completed', '{webp,jpg}', '{"webp": "https://s3/bucket/processed/` + id + `/other?X-Amz-Signature=1"}', '{"webp": "processed/x/a.webp", "jpg": "processed/x/a.jpg"}',
				'https://e.org/h', 'raw/x/a.png', 'a.png', 2, '2026-03-04 05:06:07.5Z', '2026-03-04 05:06:09Z')`,
	} {
		_, err := db.Exec(t.Context(), statement)
		require.NoError(t, err, name)
		rows, err := OpenDatabase(t.Context(), url, "public.one", time.Minute)
		require.NoError(t, err, name)
		var got []Row
		keep := func(r Row) error {
			got = append(got, r)
			return nil
		}
		require.NoError(t, rows.Rows(t.Context(), "", 10, time.Time{}, keep))
		require.Len(t, got, 1, name)
		require.NoError(t, got[0].Fault, name)
		require.Equal(t, Job{ID: id, Status: Completed, Operations: []string{"webp", "jpg"}, ResultKeys: map[string]string{"webp": "processed/x/a.webp", "jpg": "processed/x/a.jpg"},
			WebhookURL: "https://e.org/h", SourceKey: "raw/x/a.png", FileName: "a.png", Retries: 2,
			CreatedAt: time.Date(2026, 3, 4, 5, 6, 7, 5e8, time.UTC), UpdatedAt: time.Date(2026, 3, 4, 5, 6, 9, 0, time.UTC)}, got[0].Job, name)
		counts, err := rows.Count(t.Context(), time.Time{})
		require.NoError(t, err)
		require.Len(t, counts, 1)
		require.NoError(t, rows.Rows(t.Context(), "", 10, time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC), keep))
		require.NoError(t, rows.Rows(t.Context(), got[0].ID, 10, time.Time{}, keep))
		require.Len(t, got, 1, "none is made since, and none follows")
		rows.Close()
		_, err = db.Exec(t.Context(), "DROP TABLE one")
		require.NoError(t, err)
	}
	_, err = OpenDatabase(t.Context(), url, "one", time.Minute)
	require.ErrorContains(t, err, "has no table one")
	_, err = db.Exec(t.Context(), "CREATE TABLE two (id int, status text, created_at timestamp)")
	require.NoError(t, err)
	_, err = OpenDatabase(t.Context(), url, "two", time.Minute)
	require.ErrorContains(t, err, "has no column operations, and has created_at, id, status")
}

// TestRowsInPages: every row comes once, over pages and parts.
func TestRowsInPages(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	db, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer db.Close(t.Context())
	const many = 2*page + 1
	_, err = db.Exec(t.Context(), `CREATE TABLE jobs AS SELECT gen_random_uuid() AS id, 'FAILED' AS status, '["webp"]'::json AS operations, now() AS created_at FROM generate_series(1, $1)`, many)
	require.NoError(t, err)
	rows, err := OpenDatabase(t.Context(), url, "jobs", time.Minute)
	require.NoError(t, err)
	defer rows.Close()
	seen := map[string]bool{}
	for after, n := "", 1; n > 0; {
		n = 0
		require.NoError(t, rows.Rows(t.Context(), after, page+7, time.Time{}, func(r Row) error {
			n++
			require.LessOrEqual(t, n, page+7)
			require.False(t, seen[r.ID])
			seen[r.ID], after = true, r.ID
			return r.Fault
		}))
	}
	require.Len(t, seen, many)
}

func TestFaultsOfRows(t *testing.T) {
	t.Parallel()
	const id = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
	for want, raw := range map[string]string{
		`status "PAUSED" is none that is known`: `{"status": "paused", "operations": ["webp"], "created_at": "2026-03-04T05:06:07"}`,
		"operations is empty":                   `{"status": "PENDING", "operations": [], "created_at": "2026-03-04T05:06:07"}`,
		"operations is no list of names":        `{"status": "PENDING", "operations": 5, "created_at": "2026-03-04T05:06:07"}`,
		"result_keys is no object":              `{"status": "PENDING", "operations": ["webp"], "result_keys": [1], "created_at": "2026-03-04T05:06:07"}`,
		`"soon" is no time`:                     `{"status": "PENDING", "operations": ["webp"], "created_at": "soon"}`,
		"created_at is empty":                   `{"status": "PENDING", "operations": ["webp"], "created_at": null}`,
		"retry_count is no number":              `{"status": "PENDING", "operations": ["webp"], "retry_count": "x", "created_at": "2026-03-04T05:06:07"}`,
	} {
		_, err := read(id, []byte(raw))
		require.ErrorContains(t, err, want)
	}
	_, err := read("7", nil)
	require.ErrorContains(t, err, "id is no UUID")
	// What was accepted as {"webp": 1}, and a result of which only the link is known.
	j, err := read(id, []byte(`{"status": "PENDING", "operations": {"webp": 1}, "result_urls": {"webp": "https://s3/b/processed/`+id+`/a%20b.webp?X=1"}, "created_at": "2026-03-04T05:06:07"}`))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"webp": "processed/" + id + "/a b.webp"}, j.ResultKeys)
	require.Equal(t, j.CreatedAt, j.UpdatedAt)
}

// TestReason: the log gets nothing personal.
func TestReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ file, text, want string }{
		{"holiday.png", "cannot read holiday.png", "cannot read (file)"},
		{"holiday.png", "cannot read /tmp/Holiday_1.png", ""},
		{"", "no answer of https://user:pw@e.org/x?y=1 in time", "no answer of (address) in time"},
		{"", "", ""},
	} {
		require.Equal(t, c.want, Job{FileName: c.file, Error: c.text}.Reason())
	}
	long := make([]byte, longestReason+1)
	for i := range long {
		long[i] = 'x'
	}
	require.Len(t, Job{Error: string(long)}.Reason(), longestReason)
	require.Len(t, Job{Error: string(long[1:])}.Reason(), longestReason)
	require.True(t, Tells("raw/x/Holiday.PNG", "holiday.png"))
	require.False(t, Tells("webp.webp", "holiday.png"))
	require.False(t, Tells("webp.webp", ""))
}

func TestKeys(t *testing.T) {
	t.Parallel()
	address := "redis://" + testenv.Redis(t) + "/0"
	options, err := redis.ParseURL(address)
	require.NoError(t, err)
	client := redis.NewClient(options)
	defer client.Close()
	own, id := "a*["+uuid.NewString()+":", uuid.NewString()
	for name, value := range map[string]string{"plain": id, "a b": `{"job_id": "` + id + `", "status": "PENDING"}`, "text": `"` + id + `"`, "none": "true", "": id} {
		require.NoError(t, client.Set(t.Context(), own+name+":v1", value, time.Minute).Err())
	}
	require.NoError(t, client.Set(t.Context(), "aX["+own[3:]+"other:v1", id, time.Minute).Err(), "* stands for itself")
	require.NoError(t, client.LPush(t.Context(), own+"list:v1", id).Err())
	client.Expire(t.Context(), own+"list:v1", time.Minute)
	found := map[string]string{}
	require.NoError(t, Keys(t.Context(), address, own+KeyPlace+":v1", time.Minute, func(key, id string) error {
		found[key] = id
		return nil
	}))
	require.Equal(t, map[string]string{"plain": id, "a b": id, "text": id, "none": "", "": id}, found)
	require.ErrorContains(t, CheckPattern("idempotency:*"), "it must have {key} once")
	require.NoError(t, CheckPattern("idempotency:{key}"))
}

// TestConfig: each limit just below, at, and just above its ends.
func TestConfig(t *testing.T) {
	t.Parallel()
	fine, err := env.ParseAsWithOptions[Config](env.Options{Environment: map[string]string{}})
	require.NoError(t, err)
	require.NoError(t, fine.Validate())
	for _, c := range []struct {
		name  string
		set   func(*Config, int64)
		edges [2]int64
	}{
		{"IMPORT_LEGACY_READS", func(c *Config, n int64) { c.Reads = int(n) }, [2]int64{1, 256}},
		{"IMPORT_LEGACY_HELD_JOBS", func(c *Config, n int64) { c.HeldJobs = int(n) }, [2]int64{1, 100_000_000}},
		{"IMPORT_LEGACY_MAX_KEYS", func(c *Config, n int64) { c.MaxKeys = int(n) }, [2]int64{1, 100_000_000}},
		{"IMPORT_LEGACY_MAX_OBJECT_BYTES", func(c *Config, n int64) { c.MaxObjectBytes = n }, [2]int64{1, 1 << 40}},
		{"IMPORT_LEGACY_TIMEOUT", func(c *Config, n int64) { c.Timeout = time.Duration(n) }, [2]int64{int64(time.Second), int64(time.Hour)}},
		{"IMPORT_LEGACY_RATE", func(c *Config, n int64) { c.Rate = float64(n) / 100 }, [2]int64{1, 10_000_000}},
	} {
		for _, n := range c.edges {
			config := fine
			c.set(&config, n)
			require.NoError(t, config.Validate(), c.name)
		}
		for _, n := range []int64{c.edges[0] - 1, c.edges[1] + 1} {
			config := fine
			c.set(&config, n)
			require.ErrorContains(t, config.Validate(), c.name)
		}
	}
	bad := fine
	bad.DatabaseURL, bad.RedisURL, bad.AccessKeyID = "postgres://%", "http://x", "x"
	for _, name := range []string{"IMPORT_LEGACY_DATABASE_URL", "IMPORT_LEGACY_REDIS_URL", "IMPORT_LEGACY_AWS_SECRET_ACCESS_KEY"} {
		require.ErrorContains(t, bad.Validate(), name)
	}
}
