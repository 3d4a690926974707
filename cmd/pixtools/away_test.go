package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/testenv"
)

const (
	// answersWithin is the contract's: whatever is away, an answer comes within it.
	answersWithin = 2 * time.Second
	// machineMargin is for what is not the program's: a machine with two cores on which other tests run lets
	// a process wait for its turn. What the contract is against, clients that wait for a part, takes far longer.
	machineMargin = 1500 * time.Millisecond
)

// outage takes a part away and brings it back.
type outage struct{ begin, end func() error }

// part is one that can be away, in two ways.
type awayPart struct {
	name                string // as health calls it
	stopped, unanswered outage
	// want is the status of each request while it is away.
	want map[string]int
}

type awayWorld struct {
	*program
	kafka    *testenv.KafkaCluster
	redis    *testenv.RedisServer
	postgres *testenv.PostgresServer
	s3       *testenv.S3Server
}

// ownServers starts real servers that a test may stop, and names them.
func ownServers(t *testing.T) (*awayWorld, map[string]string) {
	w := &awayWorld{}
	var err error
	w.kafka, err = testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(w.kafka.Stop)
	w.redis, err = testenv.StartRedis()
	require.NoError(t, err)
	t.Cleanup(w.redis.Stop)
	w.postgres, err = testenv.StartPostgres()
	require.NoError(t, err)
	t.Cleanup(w.postgres.Stop)
	w.s3, err = testenv.StartS3()
	require.NoError(t, err)
	t.Cleanup(w.s3.Stop)
	return w, map[string]string{
		"KAFKA_BROKERS": strings.Join(w.kafka.Brokers(), ","), "KAFKA_PARTITIONS": "6",
		"IDEMPOTENCY_SETTLE": "100ms", "IDEMPOTENCY_TTL": "1s", "REDIS_URL": "redis://" + w.redis.Addr, "DATABASE_URL": w.postgres.URL,
		"AWS_ENDPOINT_URL": w.s3.Endpoint, "AWS_ACCESS_KEY_ID": w.s3.AccessKey, "AWS_SECRET_ACCESS_KEY": w.s3.SecretKey,
		"AWS_S3_BUCKET":     "pixtools",
		"READ_WAIT_TIMEOUT": "", "KAFKA_SUBMIT_TIMEOUT": "", "DATABASE_QUERY_TIMEOUT": "", "KAFKA_LAG_TIMEOUT": "", "S3_PROBE_TIMEOUT": "", // as shipped
	}
}

func (w *awayWorld) parts() []awayPart {
	service := func(s *testenv.Service) (stopped, unanswered outage) {
		return outage{s.Kill, s.Restart}, outage{s.Freeze, s.Thaw}
	}
	first := func(do func(int) error) func() error { return func() error { return do(0) } }
	statuses := func(submit, keyed, known, unknown, cancel int) map[string]int {
		past := known
		if unknown != 404 { // both have to know where the log ends now
			past = unknown
		}
		return map[string]int{"submit": submit, "submit with a key": keyed, "known job": known, "known job, after=": known,
			"known job, wait=": known, "list": known, "totals": known, "usage": known, "read models": known, "list at=": past, "unknown job": unknown, "cancel": cancel, "livez": 200, "readyz": 200}
	}
	redis := awayPart{name: "redis", want: statuses(202, 202, 200, 404, 202)}
	redis.stopped, redis.unanswered = service(w.redis.Service)
	postgres := awayPart{name: "database", want: statuses(202, 202, 503, 503, 503)}
	postgres.want["lag"] = 200 // but for that of the projector
	postgres.stopped, postgres.unanswered = service(w.postgres.Service)
	s3 := awayPart{name: "s3", want: statuses(503, 503, 200, 404, 202)}
	s3.stopped, s3.unanswered = service(w.s3.Service)
	kafka := awayPart{name: "kafka", want: statuses(503, 503, 200, 503, 503),
		stopped: outage{first(w.kafka.Kill), first(w.kafka.Restart)}, unanswered: outage{first(w.kafka.Freeze), first(w.kafka.Thaw)}}
	return []awayPart{redis, postgres, s3, kafka}
}

// answer is what a request was told.
type answer struct {
	status   int
	header   http.Header
	body     []byte
	accepted string // the job of a 202
}

// ask sends a request and wants an answer in time.
func (w *awayWorld) ask(t *testing.T, request *http.Request) answer {
	t.Helper()
	client := &http.Client{Timeout: answersWithin + machineMargin}
	asked := time.Now()
	response, err := client.Do(request)
	require.NoError(t, err, "%s %s", request.Method, request.URL)
	t.Logf("%s %s: %d after %s", request.Method, request.URL.RequestURI(), response.StatusCode, time.Since(asked).Round(time.Millisecond))
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	a := answer{status: response.StatusCode, header: response.Header, body: body}
	if a.status == http.StatusAccepted {
		var accepted api.Accepted
		require.NoError(t, json.Unmarshal(body, &accepted))
		a.accepted = accepted.JobID
	}
	return a
}

// jobs are those that a test asks about.
type awayJobs struct{ ended, position, open, key string }

func (w *awayWorld) prepareJobs(t *testing.T) awayJobs {
	t.Helper()
	request, err := w.form(awayPicture(t)...)
	require.NoError(t, err)
	done := w.ask(t, request)
	require.Equal(t, "COMPLETED", w.ended(done.accepted).Status)
	// Nobody in this process denoises: it stays open.
	open := w.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["denoise"]`))
	eventually(t, "the open job in the read model", func() error {
		_, err := w.now(open)
		return err
	})
	return awayJobs{done.accepted, done.header.Get(api.PositionHeader), open, uuid.NewString()}
}

func awayPicture(t *testing.T) []part {
	return []part{file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`)}
}

// redisRemembers waits until Redis has been up for as long as it remembers keys: only then is
// it relied on without the database.
func (w *awayWorld) redisRemembers(t *testing.T, address, ttl string) {
	t.Helper()
	options, err := redis.ParseURL(address)
	require.NoError(t, err)
	client := redis.NewClient(options)
	defer client.Close()
	remembers, err := time.ParseDuration(ttl)
	require.NoError(t, err)
	eventually(t, "a Redis that remembers", func() error {
		response, _, err := w.post(nil, append(awayPicture(t), field("idempotency_key", uuid.NewString()))...)
		if err != nil || response.StatusCode != http.StatusAccepted {
			return fmt.Errorf("%v, %w", response, err)
		}
		since, err := client.Get(t.Context(), "pixtools:idempotency-since").Int64()
		if err == nil && time.Since(time.UnixMilli(since)) < remembers {
			err = errors.New("it came up just now")
		}
		return err
	})
}

// askAll sends every request there is, once.
func (w *awayWorld) askAll(t *testing.T, jobs awayJobs) map[string]answer {
	t.Helper()
	all := map[string]answer{}
	form := func(parts ...part) answer {
		request, err := w.form(parts...)
		require.NoError(t, err)
		return w.ask(t, request)
	}
	get := func(path string) answer {
		request, err := http.NewRequest(http.MethodGet, w.base+path, nil)
		require.NoError(t, err)
		return w.ask(t, request)
	}
	all["submit"] = form(awayPicture(t)...)
	all["submit with a key"] = form(append(awayPicture(t), field("idempotency_key", jobs.key))...)
	all["known job"] = get("/api/jobs/" + jobs.ended)
	all["known job, after="] = get("/api/jobs/" + jobs.ended + "?after=" + jobs.position)
	all["known job, wait="] = get("/api/jobs/" + jobs.ended + "?wait=30")
	all["unknown job"] = get("/api/jobs/" + uuid.NewString())
	all["list"], all["totals"] = get("/api/jobs?limit=1"), get("/api/jobs/totals")
	all["usage"] = get("/api/usage?from=2026-01-01&to=2026-01-02")
	all["list at="] = get("/api/jobs?at=2026-01-01T00:00:00Z")
	all["read models"], all["lag"] = get("/api/read-models"), get("/api/lag")
	all["livez"] = get("/api/livez")
	all["readyz"] = get("/api/readyz")
	cancel, err := http.NewRequest(http.MethodPost, w.base+"/api/jobs/"+jobs.open+"/cancel", nil)
	require.NoError(t, err)
	all["cancel"] = w.ask(t, cancel)
	return all
}

func requireAnswers(t *testing.T, want map[string]int, have map[string]answer) {
	t.Helper()
	for name, status := range want {
		a := have[name]
		require.Equal(t, status, a.status, "%s: %s", name, a.body)
		if status == http.StatusServiceUnavailable {
			require.NotEmpty(t, a.header.Get("Retry-After"), name)
			var problem api.Problem
			require.NoError(t, json.Unmarshal(a.body, &problem), name)
			require.NotEmpty(t, problem.Detail, name)
		}
	}
}

// unhealthyPart wants health to say in time that this one part is away.
func (w *awayWorld) unhealthyPart(t *testing.T, name string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, w.base+"/api/health", nil)
	require.NoError(t, err)
	a := w.ask(t, request)
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	var health api.Health
	require.NoError(t, json.Unmarshal(a.body, &health))
	for dependency, state := range health.Dependencies {
		want := "ok"
		if dependency == name {
			want = "unreachable"
		}
		require.Equal(t, want, state, dependency)
	}
	require.Equal(t, "unhealthy", health.Status)
	require.Equal(t, api.HealthDetail{Status: health.Status, Dependencies: health.Dependencies}, *health.Detail)
}

// recovered wants that all which was accepted ends, and all which was not is accepted now.
func (w *awayWorld) recovered(t *testing.T, jobs awayJobs, told map[string]answer) {
	t.Helper()
	w.healthy()
	w.projecting(t)
	id, err := w.insist(within(t), append(awayPicture(t), field("idempotency_key", jobs.key))...)
	require.NoError(t, err, "the same key works afterwards")
	require.Equal(t, "COMPLETED", w.ended(id).Status)
	if before := told["submit with a key"].accepted; before != "" {
		require.Equal(t, before, id)
	}
	if before := told["submit"].accepted; before != "" {
		require.Equal(t, "COMPLETED", w.ended(before).Status)
	}
	if told["cancel"].status != http.StatusAccepted {
		status := w.cancel(jobs.open).StatusCode
		// One that nobody acknowledged may have come through after all.
		require.Contains(t, []int{http.StatusAccepted, http.StatusConflict}, status)
	}
	require.Equal(t, "CANCELLED", *w.ended(jobs.open).Outcome)
	all := w.askAll(t, w.prepareJobs(t))
	requireAnswers(t, map[string]int{"submit": 202, "submit with a key": 202, "known job": 200, "known job, after=": 200,
		"known job, wait=": 200, "list": 200, "totals": 200, "usage": 200, "read models": 200, "list at=": 200, "unknown job": 404, "cancel": 202, "livez": 200, "readyz": 200}, all)
}

// TestPartsAway: what goes on and what answers 503 while a real server is down, while it takes connections and
// says nothing, and where it is so from before the program's start; each answer comes in time. Then the part
// comes back, and nobody does anything else.
func TestPartsAway(t *testing.T) {
	w, variables := ownServers(t)
	const roles = "--roles=api,convert,saga,projector"
	w.program = run(t, variables, roles)
	for _, part := range w.parts() {
		for way, outage := range map[string]outage{"stopped": part.stopped, "unanswered": part.unanswered} {
			t.Run(part.name+"/"+way, func(t *testing.T) {
				jobs := w.prepareJobs(t)
				w.redisRemembers(t, variables["REDIS_URL"], variables["IDEMPOTENCY_TTL"])
				require.NoError(t, outage.begin())
				told := w.askAll(t, jobs)
				requireAnswers(t, part.want, told)
				w.unhealthyPart(t, part.name)
				if part.name == "database" { // work goes on meanwhile
					requireFinalized(t, w.kafka.Brokers(), told["submit"].accepted, told["submit with a key"].accepted)
				}
				require.NoError(t, outage.end())
				w.recovered(t, jobs, told)
			})
			t.Run(part.name+"/"+way+" from before the start", func(t *testing.T) {
				jobs := w.prepareJobs(t)
				// Not by a kill: until Kafka misses the dead, nothing would be projected.
				require.NoError(t, w.cmd.Process.Signal(os.Interrupt))
				require.NoError(t, w.cmd.Wait())
				require.NoError(t, outage.begin())
				w.start()
				w.answering()
				want := map[string]int{"submit": 503, "submit with a key": 503, "known job": 503, "known job, after=": 503,
					"known job, wait=": 503, "list": 503, "totals": 503, "usage": 503, "read models": 503, "lag": 503, "list at=": 503, "unknown job": 503, "cancel": 503, "livez": 200, "readyz": 503}
				if part.name == "redis" { // which nobody waits for
					w.projecting(t)
					want = part.want
				}
				told := w.askAll(t, jobs)
				requireAnswers(t, want, told)
				eventually(t, "health that names the part", func() error { // the others come one after another
					request, err := http.NewRequest(http.MethodGet, w.base+"/api/health", nil)
					require.NoError(t, err)
					var health api.Health
					if err := json.Unmarshal(w.ask(t, request).body, &health); err != nil {
						return err
					}
					for name, state := range health.Dependencies {
						if (state == "ok") == (name == part.name) {
							return fmt.Errorf("%v", health.Dependencies)
						}
					}
					return nil
				})
				require.NoError(t, outage.end())
				w.recovered(t, jobs, told)
			})
			if t.Failed() {
				return // the next would meet what this one left behind
			}
		}
	}
	t.Run("database and redis", func(t *testing.T) {
		jobs := w.prepareJobs(t)
		require.NoError(t, w.postgres.Kill())
		require.NoError(t, w.redis.Kill())
		told := w.askAll(t, jobs)
		// Nobody can tell whether a key was used before.
		requireAnswers(t, map[string]int{"submit": 202, "submit with a key": 503, "known job": 503, "livez": 200, "readyz": 200}, told)
		require.NoError(t, w.postgres.Restart())
		require.NoError(t, w.redis.Restart())
		w.recovered(t, jobs, told)
	})
	t.Run("redis, and a key used for something else", func(t *testing.T) {
		require.NoError(t, w.redis.Kill())
		key := field("idempotency_key", uuid.NewString())
		first := w.submit(append(awayPicture(t), key)...)
		require.Equal(t, first, w.submit(append(awayPicture(t), key)...))
		response, body, err := w.post(nil, awayPicture(t)[0], field("operations", `["avif"]`), key)
		require.NoError(t, err)
		require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode, "%s", body)
		require.NoError(t, w.redis.Restart())
		w.healthy()
	})
}

// answering waits for the program's first answer, of whatever kind.
func (p *program) answering() {
	p.t.Helper()
	eventually(p.t, "an answer", func() error {
		response, err := http.Get(p.base + "/api/livez")
		if err == nil {
			response.Body.Close()
		}
		return err
	})
}

// projecting waits until the read model keeps up with every partition of the log, for which
// the list of a time in the past waits.
func (w *awayWorld) projecting(t *testing.T) {
	t.Helper()
	eventually(t, "a read model that keeps up", func() error {
		response, err := http.Get(w.base + "/api/jobs?at=2026-01-01T00:00:00Z")
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

// requireFinalized waits until the log says that jobs have ended.
func requireFinalized(t *testing.T, brokers []string, ids ...string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(events.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer client.Close()
	left := map[string]bool{}
	for _, id := range ids {
		left[id] = true
	}
	ctx := within(t)
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err0())
		for r := range fetches.RecordsAll() {
			e, err := events.Decode(r)
			require.NoError(t, err)
			if _, ok := e.Message.(*events.JobFinalized); ok {
				delete(left, e.JobID)
			}
		}
	}
}

// TestStorageAwayDuringWork: storage goes while pictures are in work, and comes back. What was made is stored then
// and not made again; what was not fetched yet is fetched then. Waiting costs no attempt.
func TestStorageAwayDuringWork(t *testing.T) {
	w := storageWorld(t, nil)
	for way, outage := range map[string]outage{
		"stopped": {w.s3.Kill, w.s3.Restart}, "unanswered": {w.s3.Freeze, w.s3.Thaw},
	} {
		t.Run(way, func(t *testing.T) {
			made, waiting := w.oneInWork(t)
			require.NoError(t, outage.begin())
			w.says("cannot store the artifact, trying again", made)
			require.NoError(t, outage.end())
			for _, id := range []string{made, waiting} {
				job := w.ended(id)
				require.Equal(t, "SUCCEEDED", *job.Outcome)
				require.EqualValues(t, 1, job.OperationResults["avif"].Attempt)
			}
			cancelled, next := w.oneInWork(t)
			require.NoError(t, outage.begin())
			w.cancel(cancelled) // the next one's turn comes
			w.says("fetch the source of job " + next)
			require.NoError(t, outage.end())
			job := w.ended(next)
			require.Equal(t, "SUCCEEDED", *job.Outcome)
			require.EqualValues(t, 1, job.OperationResults["avif"].Attempt)
			require.Equal(t, "CANCELLED", *w.ended(cancelled).Outcome)
		})
	}
	// Cancelled attempts leave nothing behind that a stop would wait for.
	require.NoError(t, w.cmd.Process.Signal(os.Interrupt))
	overdue := time.AfterFunc(patience, func() { _ = w.cmd.Process.Kill() })
	defer overdue.Stop()
	require.NoError(t, w.cmd.Wait())
}

// TestStorageAwayForGood: jobs end even so, and say why.
func TestStorageAwayForGood(t *testing.T) {
	w := storageWorld(t, map[string]string{"PROCESS_GIVE_UP_AFTER": "2s"})
	made, waiting := w.oneInWork(t)
	require.NoError(t, w.s3.Kill())
	for id, code := range map[string]string{made: "artifact_not_stored", waiting: "source_unavailable"} {
		job := w.ended(id)
		require.Equal(t, "FAILED", *job.Outcome)
		require.Equal(t, "WORLD", job.OperationResults["avif"].Error.Kind)
		require.Equal(t, code, job.OperationResults["avif"].Error.Code)
	}
}

// storageWorld is a program with storage of its own that works on one picture at a time.
func storageWorld(t *testing.T, more map[string]string) *awayWorld {
	variables := realEnv(t)
	w := &awayWorld{}
	var err error
	w.s3, err = testenv.StartS3()
	require.NoError(t, err)
	t.Cleanup(w.s3.Stop)
	variables["AWS_ENDPOINT_URL"], variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"] = w.s3.Endpoint, w.s3.AccessKey, w.s3.SecretKey
	variables["CONVERT_CONCURRENCY"], variables["KAFKA_CONSUMER_MAX_IN_FLIGHT"], variables["S3_PROBE_TIMEOUT"] = "1", "1", ""
	for name, value := range more {
		variables[name] = value
	}
	w.program = run(t, variables, "--roles=api,convert,saga,projector")
	return w
}

// oneInWork gives a job that is being worked on for some seconds, and one that waits for it, its source not
// fetched.
func (w *awayWorld) oneInWork(t *testing.T) (working, waiting string) {
	t.Helper()
	avif := field("operations", `["avif"]`)
	working = w.submit(file("a.png", "image/png", pngOf(t, picture(1500, 1000))), avif, field("operation_params", `{"avif":{"effort":6}}`))
	eventually(t, "work on it", func() error {
		job, err := w.now(working)
		if err == nil && job.OperationResults["avif"].State != "RUNNING" {
			err = fmt.Errorf("%+v", job.OperationResults)
		}
		return err
	})
	return working, w.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), avif)
}

// says waits for a line of the log that holds all of the words.
func (p *program) says(words ...string) {
	p.t.Helper()
	eventually(p.t, "the log's "+strings.Join(words, ", "), func() error {
	lines:
		for line := range strings.Lines(p.log.String()) {
			for _, word := range words {
				if !strings.Contains(line, word) {
					continue lines
				}
			}
			return nil
		}
		return errors.New("not said")
	})
}
