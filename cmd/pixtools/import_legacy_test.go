package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/testenv"
)

// pythonTable is what SQLAlchemy makes of the Python service's model.
const pythonTable = `CREATE TYPE jobstatus AS ENUM ('PENDING', 'PROCESSING', 'COMPLETED', 'FAILED', 'COMPLETED_WEBHOOK_FAILED');
CREATE TABLE jobs (
	id UUID NOT NULL, status jobstatus NOT NULL, operations JSON NOT NULL, result_urls JSON, result_keys JSON, webhook_url VARCHAR(2048),
	s3_raw_key VARCHAR(1024), original_filename VARCHAR(512), error_message TEXT, retry_count INTEGER NOT NULL,
	created_at TIMESTAMP WITHOUT TIME ZONE DEFAULT now() NOT NULL, updated_at TIMESTAMP WITHOUT TIME ZONE DEFAULT now() NOT NULL,
	PRIMARY KEY (id))`

// python is what a Python service has left behind.
type python struct {
	t       *testing.T
	db      *pgx.Conn
	url     string
	store   *blob.Store
	redis   *redis.Client
	address string
	// prefix keeps its keys apart from other tests' in the same Redis.
	prefix string
}

func pythonService(t *testing.T, env map[string]string, store *blob.Store) *python {
	s := &python{t: t, store: store, url: testenv.Postgres(t), prefix: "legacy-" + uuid.NewString() + ":idempotency:"}
	var err error
	s.db, err = pgx.Connect(t.Context(), s.url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.db.Close(context.WithoutCancel(t.Context())) })
	_, err = s.db.Exec(t.Context(), pythonTable)
	require.NoError(t, err)
	s.address = env["REDIS_URL"]
	options, err := redis.ParseURL(s.address)
	require.NoError(t, err)
	s.redis = redis.NewClient(options)
	t.Cleanup(func() { _ = s.redis.Close() })
	return s
}

// row is a job of the Python service; keys that are empty are NULL.
type row struct {
	status, operations, keys, webhook, name, problem string
	source                                           []byte
	results                                          map[string][]byte
	age                                              time.Duration
	key                                              string
}

// add writes a row, its objects and its key.
func (s *python) add(r row) string {
	s.t.Helper()
	id := uuid.NewString()
	source := "raw/" + id + "/" + r.name
	if r.source != nil {
		s.put(source, r.source)
	}
	for key, content := range r.results {
		s.put("processed/"+id+"/"+key, content)
	}
	made := time.Now().UTC().Add(-r.age).Truncate(time.Second)
	_, err := s.db.Exec(s.t.Context(), `INSERT INTO jobs (id, status, operations, result_keys, webhook_url, s3_raw_key, original_filename, error_message, retry_count, created_at, updated_at)
		VALUES ($1, $2, $3, nullif($4, '')::json, nullif($5, ''), $6, $7, nullif($8, ''), 1, $9, $10)`,
		id, r.status, r.operations, strings.ReplaceAll(r.keys, "ID", id), r.webhook, source, r.name, r.problem, made, made.Add(min(r.age, 3*time.Second)))
	require.NoError(s.t, err)
	if r.key != "" {
		require.NoError(s.t, s.redis.Set(s.t.Context(), s.prefix+r.key, id, 24*time.Hour).Err())
	}
	return id
}

func (s *python) put(key string, content []byte) {
	s.t.Helper()
	require.NoError(s.t, s.store.Put(s.t.Context(), key, bytes.NewReader(content), int64(len(content)), sha256.Sum256(content), "image/png"))
}

// bring runs the import to its end.
func (s *python) bring(p *program, args ...string) string {
	s.t.Helper()
	out, complaints, status := p.command(append([]string{"import-legacy", "--database", strings.Replace(s.url, "postgres://", "postgresql+asyncpg://", 1),
		"--redis", s.address, "--key-pattern", s.prefix + "{key}"}, args...)...)
	require.Zero(s.t, status, "%s\n%s", out, complaints)
	return out
}

// keyed submits under an idempotency key.
func (p *program) keyed(key string, parts ...part) (status int, id string) {
	p.t.Helper()
	response, body, err := p.post(nil, append(parts, field("idempotency_key", key))...)
	require.NoError(p.t, err)
	var accepted api.Accepted
	if response.StatusCode == http.StatusAccepted {
		require.NoError(p.t, json.Unmarshal(body, &accepted))
	}
	return response.StatusCode, accepted.JobID
}

func (p *program) eventTypes(id string) (types []string) {
	p.t.Helper()
	response, err := http.Get(p.base + "/api/jobs/" + id + "/events")
	require.NoError(p.t, err)
	defer response.Body.Close()
	var history struct {
		Events []struct {
			Type string `json:"type"`
		} `json:"events"`
	}
	raw, err := io.ReadAll(response.Body)
	require.NoError(p.t, err)
	require.NoError(p.t, json.Unmarshal(raw, &history), "%s", raw)
	for _, e := range history.Events {
		types = append(types, e.Type[strings.LastIndexByte(e.Type, '.')+1:])
	}
	return types
}

// TestImportLegacy: the jobs of a Python service under a PixTools that runs: every status,
// links, history, keys; and what it did is neither done nor ended again.
func TestImportLegacy(t *testing.T) {
	env := ownKafka(t)
	p := run(t, env, "--roles=api,convert,saga,projector,webhooks")
	for _, variable := range p.env { // p.reach is for embedded parts
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, value)
		}
	}
	cfg, err := loadConfig()
	require.NoError(t, err)
	store, err := blob.New(t.Context(), cfg.Blob)
	require.NoError(t, err)
	old := pythonService(t, env, store)
	source, webp, noiseless := pngOf(t, picture(30, 20)), []byte("a result that is no picture"), pngOf(t, picture(29, 20))
	both := `{"webp": "processed/ID/webp.webp", "denoise": "processed/ID/denoise.png"}`
	results := map[string][]byte{"webp.webp": webp, "denoise.png": noiseless}
	done := old.add(row{status: "COMPLETED", operations: `["webp", "denoise"]`, keys: both, name: "holiday.png", source: source, results: results, age: 48 * time.Hour,
		key: "order-1", webhook: "https://example.org/hook"})
	untold := old.add(row{status: "COMPLETED_WEBHOOK_FAILED", operations: `["webp", "denoise"]`, keys: both, name: "b.png", source: source, results: results, age: 47 * time.Hour,
		webhook: "https://example.org/hook"})
	failed := old.add(row{status: "FAILED", operations: `["webp"]`, name: "secret.png", source: source, age: 46 * time.Hour, problem: "cannot identify secret.png at s3://x/y?token=z"})
	partial := old.add(row{status: "PENDING", operations: `["webp", "avif"]`, name: "c.png", source: source, results: map[string][]byte{"webp.webp": webp}, age: 45 * time.Hour})
	nothing := old.add(row{status: "PROCESSING", operations: `["webp", "webp"]`, name: "d.png", source: source, age: 44 * time.Hour})
	expired := old.add(row{status: "COMPLETED", operations: `["webp", "denoise"]`, keys: both, name: "e.png", age: 43 * time.Hour, key: "order-2"})
	strange := old.add(row{status: "COMPLETED", operations: `["sharpen"]`, name: "f.png", source: source, age: 42 * time.Hour})
	young := old.add(row{status: "PENDING", operations: `["jpg"]`, name: "g.png", source: source})
	require.NoError(t, old.redis.Set(t.Context(), old.prefix+"order-3", `{"job_id": "`+uuid.NewString()+`"}`, time.Hour).Err())

	out := old.bring(p, "--dry-run")
	require.Contains(t, out, "the Python service has 8 jobs: 3 COMPLETED, 1 COMPLETED_WEBHOOK_FAILED, 1 FAILED, 2 PENDING, 1 PROCESSING")
	require.Contains(t, out, "rejected  job "+strange+"  Invalid operations: unknown operation \"sharpen\"")
	require.Contains(t, out, "at work  job "+young)
	require.Contains(t, out, "would be brought in: 6; there already: 0; to be asked for again: 0; left for a later run: 1; cannot be brought in: 1")
	require.Contains(t, out, "idempotency keys: 3; of them without a job in the table: 1")
	require.Contains(t, out, "objects: 10 there, 3 gone")
	require.Zero(t, p.verify(0).summary.Events, "a dry run writes nothing")

	out = old.bring(p)
	require.Contains(t, out, "brought in: 6 jobs (2 FAILED, 1 PARTIAL, 3 SUCCEEDED); asked for again: 0; refused: 0")
	statuses := map[string][]string{done: {"COMPLETED", "SUCCEEDED"}, untold: {"COMPLETED_WEBHOOK_FAILED", "SUCCEEDED"}, failed: {"FAILED", "FAILED"},
		partial: {"COMPLETED", "PARTIAL"}, nothing: {"FAILED", "FAILED"}, expired: {"COMPLETED", "SUCCEEDED"}}
	jobs := map[string]api.Job{}
	for id, want := range statuses {
		jobs[id] = p.ended(id)
		require.Equal(t, want, []string{jobs[id].Status, *jobs[id].Outcome}, id)
		require.EqualValues(t, 1, jobs[id].Revision)
	}
	require.WithinDuration(t, time.Now().Add(-48*time.Hour), jobs[done].CreatedAt, time.Minute)
	require.Equal(t, []string{"webp", "denoise"}, jobs[done].Operations)
	content, name := fetch(t, jobs[done].ResultURLs["denoise"])
	require.Equal(t, noiseless, content)
	require.Contains(t, name, "pixtools_denoise_holiday.png")
	require.Contains(t, jobs[done].ResultURLs["denoise"], "processed/"+done+"/denoise.png", "where it was")
	require.EqualValues(t, 29, jobs[done].OperationResults["denoise"].Artifact.Width)
	content, _ = fetch(t, jobs[done].Source.URL)
	require.Equal(t, source, content)
	require.Equal(t, "holiday.png", jobs[done].Source.Name)
	require.Equal(t, "webp: cannot identify (file) at (address)", *jobs[failed].ErrorMessage)
	content, _ = fetch(t, jobs[partial].ResultURLs["webp"])
	require.Equal(t, webp, content)
	require.Equal(t, "legacy_unfinished", jobs[partial].OperationResults["avif"].Error.Code)
	require.Empty(t, jobs[expired].ResultURLs)
	require.Empty(t, jobs[expired].Source.URL)
	require.Equal(t, []string{"JobRequested", "OperationCompleted", "OperationCompleted", "JobFinalized"}, p.eventTypes(done))
	require.Equal(t, "WebhookFailed", p.eventTypes(untold)[4])
	told, err := ran(t, env, "cat")
	require.NoError(t, err)
	for _, personal := range []string{"holiday", "secret.png", "example.org"} {
		require.NotContains(t, told, personal, "in clear")
	}

	picture, operations, webhook := file("holiday.png", "image/png", source), field("operations", `["webp","denoise"]`), field("webhook_url", "https://example.org/hook")
	for range 2 {
		status, id := p.keyed("order-1", picture, operations, webhook)
		require.Equal(t, []any{http.StatusAccepted, done}, []any{status, id})
		status, _ = p.keyed("order-1", picture, operations)
		require.Equal(t, http.StatusUnprocessableEntity, status, "another webhook")
		status, id = p.keyed("order-2", picture, operations) // nobody knows what was sent
		require.Equal(t, []any{http.StatusAccepted, expired}, []any{status, id})
	}
	for key, id := range map[string]string{"order-1": done, "order-2": expired} {
		claim, err := old.redis.Get(t.Context(), "pixtools:idempotency:"+events.JobID("default", key)).Result()
		require.NoError(t, err, "for when PostgreSQL is away")
		require.Contains(t, claim, ":written"+id)
	}
	clean := p.verify(0)
	require.EqualValues(t, 6, clean.summary.Jobs)
	require.Equal(t, map[string]int64{"SUCCEEDED": 3, "PARTIAL": 1, "FAILED": 2}, clean.summary.Finals)
	require.Zero(t, clean.summary.Repeats)
	require.EqualValues(t, 3, clean.summary.Objects.Expired)
	require.Empty(t, clean.open)

	require.Contains(t, old.bring(p), "brought in: 0 jobs")
	require.Equal(t, clean.summary.Events, p.verify(0).summary.Events, "a second time changes nothing")

	// What was never done is done here, also of jobs that are there; the rest is left as it is.
	out = old.bring(p, "--unfinished=resubmit", "--idle=0s")
	require.Contains(t, out, "brought in: 1 jobs (1 FAILED); asked for again: 3; refused: 0")
	for _, id := range []string{partial, nothing, young} {
		eventually(t, "the end of "+id, func() error {
			job, err := p.job(id)
			if err == nil && (job.Revision != 2 || job.Outcome == nil) {
				err = fmt.Errorf("revision %d", job.Revision)
			}
			jobs[id] = job
			return err
		})
		require.Equal(t, []string{"COMPLETED", "SUCCEEDED"}, []string{jobs[id].Status, *jobs[id].Outcome})
	}
	content, _ = fetch(t, jobs[partial].ResultURLs["webp"])
	require.Equal(t, webp, content, "what the Python service made")
	require.NotEmpty(t, jobs[partial].ResultURLs["avif"])
	require.NotContains(t, p.eventTypes(done), "OperationStarted")
	require.Contains(t, old.bring(p, "--unfinished=resubmit", "--idle=0s"), "brought in: 0 jobs (none); asked for again: 0")
	last := p.verify(0)
	require.EqualValues(t, 7+3, last.summary.Finals["SUCCEEDED"]+last.summary.Finals["PARTIAL"]+last.summary.Finals["FAILED"])
	require.Zero(t, last.summary.Repeats)

	t.Run("goes on", func(t *testing.T) { old.goesOn(t, p, last.summary.Jobs) })
	t.Run("from another bucket", func(t *testing.T) { old.elsewhere(t, p, store) })
	for want, args := range map[string][]string{
		`--unfinished is "drop"`:       {"--unfinished=drop"},
		"must have {key} once":         {"--key-pattern=idem"},
		"need --copy-objects":          {"--from-bucket=x"},
		"has no table nowhere":         {"--table=nowhere"},
		"IMPORT_LEGACY_RATE is 200000": {"--rate=200000"},
	} {
		_, complaints, status := p.command(append([]string{"import-legacy", "--database", old.url}, args...)...)
		require.Equal(t, 1, status)
		require.Contains(t, complaints, want)
	}
}

// goesOn: an import that is killed in the middle has brought in whole jobs, and the next one
// brings in the others.
func (s *python) goesOn(t *testing.T, p *program, before int64) {
	const many = 2*jobsAtOnce + 50
	_, err := s.db.Exec(t.Context(), fmt.Sprintf(`CREATE TABLE bulk AS SELECT gen_random_uuid()::text AS id, 'completed'::varchar AS status, ARRAY['webp', 'avif'] AS operations,
		now() - interval '2 days' AS created_at FROM generate_series(1, %d)`, many))
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(within(t), self, "import-legacy", "--database", s.url, "--table", "public.bulk", "--rate", "1")
	cmd.Env = slices.Clone(p.env)
	require.NoError(t, cmd.Start())
	count := func() (n int64) {
		response, err := http.Get(p.base + "/api/jobs/totals")
		require.NoError(t, err)
		defer response.Body.Close()
		var totals struct {
			Jobs int64 `json:"jobs"`
		}
		raw, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(raw, &totals), "%s", raw)
		return totals.Jobs
	}
	eventually(t, "the first transaction", func() error {
		if count() == before {
			return errors.New("nothing is brought in")
		}
		return nil
	})
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	cut := p.verify(0)
	require.Greater(t, cut.summary.Jobs, before)
	require.Less(t, cut.summary.Jobs, before+many)
	require.Empty(t, cut.open)
	s.cutOff(t, p)
	require.Contains(t, s.bring(p, "--table", "bulk"), fmt.Sprintf("brought in: %d jobs", before+many-cut.summary.Jobs))
	whole := p.with("IMPORT_LEGACY_HELD_JOBS=100").verify(0)
	require.Equal(t, before+many, whole.summary.Jobs)
	require.Zero(t, whole.summary.Repeats)
	require.Contains(t, s.bring(p.with("IMPORT_LEGACY_HELD_JOBS=100"), "--table", "bulk"), "brought in: 0 jobs")
}

// cutOff leaves what an import leaves that was killed in a transaction: a job's beginning,
// which no reader of committed records may ever see.
func (s *python) cutOff(t *testing.T, p *program) {
	var brokers string
	for _, variable := range p.env {
		if name, value, _ := strings.Cut(variable, "="); name == "KAFKA_BROKERS" {
			brokers = value
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...), kgo.TransactionalID("pixtools.import-legacy"), kgo.TransactionTimeout(10*time.Minute))
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.BeginTransaction())
	var id string
	require.NoError(t, s.db.QueryRow(t.Context(), "SELECT max(id) FROM bulk").Scan(&id))
	r, err := events.New(id, time.Now(), events.ImportSource, "", &events.JobRequested{Tenant: "default", Operations: []*events.Operation{{Name: "webp"}}}).Record()
	require.NoError(t, err)
	require.NoError(t, client.ProduceSync(within(t), r).FirstErr())
}

// TestImportLegacyEmbedded: into embedded parts, of a PixTools that runs and of one that does
// not.
func TestImportLegacyEmbedded(t *testing.T) {
	p := run(t, embeddedEnv(t), "--roles=api,convert,saga,projector")
	cfg := p.reach()
	store, err := blob.New(t.Context(), cfg.Blob)
	require.NoError(t, err)
	old := pythonService(t, map[string]string{"REDIS_URL": "redis://" + testenv.Redis(t) + "/0"}, store)
	add := func(key string) string {
		return old.add(row{status: "PENDING", operations: `["webp"]`, name: "a.png", source: pngOf(t, picture(20, 20)), age: time.Hour, key: key})
	}
	first := add("k1")
	require.Contains(t, old.bring(p, "--unfinished=resubmit"), "brought in: 1 jobs (1 FAILED); asked for again: 1")
	again := func(id string) {
		eventually(t, "the end of "+id, func() error {
			job, err := p.job(id)
			if err == nil && (job.Revision != 2 || job.Outcome == nil || *job.Outcome != "SUCCEEDED") {
				err = fmt.Errorf("revision %d", job.Revision)
			}
			return err
		})
	}
	again(first)
	second := add("k2")
	p.kill()
	require.Contains(t, old.bring(p, "--unfinished=resubmit"), "brought in: 1 jobs (1 FAILED); asked for again: 1")
	p.start()
	p.healthy()
	again(second)
	for key, id := range map[string]string{"k1": first, "k2": second} {
		status, got := p.keyed(key, file("a.png", "image/png", pngOf(t, picture(20, 20))), field("operations", `["webp"]`))
		require.Equal(t, []any{http.StatusAccepted, id}, []any{status, got})
	}
	require.EqualValues(t, 2, p.verify(0).summary.Jobs)
}

// elsewhere: what is needed of another bucket is copied, to where the bytes name it.
func (s *python) elsewhere(t *testing.T, p *program, ours *blob.Store) {
	cfg, err := loadConfig()
	require.NoError(t, err)
	cfg.Blob.Bucket += "-old"
	theirs, err := blob.New(t.Context(), cfg.Blob)
	require.NoError(t, err)
	require.NoError(t, theirs.EnsureBucket(t.Context()))
	s.store = theirs
	webp := []byte("the only copy")
	id := s.add(row{status: "COMPLETED", operations: `["webp"]`, keys: `{"webp": "processed/ID/webp.webp"}`, name: "x.png", source: pngOf(t, picture(5, 5)),
		results: map[string][]byte{"webp.webp": webp}, age: time.Hour})
	s.bring(p, "--copy-objects", "--from-bucket", cfg.Blob.Bucket, "--since", "2h")
	content, _ := fetch(t, p.ended(id).ResultURLs["webp"])
	require.Equal(t, webp, content)
	head, err := ours.Head(t.Context(), fmt.Sprintf("processed/%s/webp/%x.webp", id, sha256.Sum256(webp)))
	require.NoError(t, err)
	require.EqualValues(t, len(webp), head.Size)
	p.verify(0)
}
