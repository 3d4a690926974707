package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
)

// spanSink is an OTLP receiver.
type spanSink struct {
	*httptest.Server
	mu    sync.Mutex
	spans []receivedSpan
}

type receivedSpan struct {
	*tracepb.Span
	service string
}

func (s receivedSpan) trace() string  { return hex.EncodeToString(s.GetTraceId()) }
func (s receivedSpan) id() string     { return hex.EncodeToString(s.GetSpanId()) }
func (s receivedSpan) parent() string { return hex.EncodeToString(s.GetParentSpanId()) }

func newSpanSink(t *testing.T) *spanSink {
	sink := &spanSink{}
	sink.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var sent collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &sent)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		sink.mu.Lock()
		defer sink.mu.Unlock()
		for _, from := range sent.GetResourceSpans() {
			service := ""
			for _, attribute := range from.GetResource().GetAttributes() {
				if attribute.GetKey() == "service.name" {
					service = attribute.GetValue().GetStringValue()
				}
			}
			for _, scope := range from.GetScopeSpans() {
				for _, span := range scope.GetSpans() {
					sink.spans = append(sink.spans, receivedSpan{span, service})
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(sink.Close)
	return sink
}

// of are the spans of a trace that came so far.
func (s *spanSink) of(trace string) (found []receivedSpan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, span := range s.spans {
		if span.trace() == trace {
			found = append(found, span)
		}
	}
	return found
}

// private asks a process' private port.
func (p *program) private(path string) (status int, body string, err error) {
	const variable = "PRIVATE_ADDR="
	at := slices.IndexFunc(p.env, func(v string) bool { return strings.HasPrefix(v, variable) })
	if at < 0 {
		return 0, "", errors.New("it has no private port")
	}
	response, err := http.Get("http://" + strings.TrimPrefix(p.env[at], variable) + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	return response.StatusCode, string(raw), err
}

// ready waits until a process takes work.
func (p *program) ready() {
	p.t.Helper()
	eventually(p.t, "ready", func() error {
		status, body, err := p.private("/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d: %s", status, body)
		}
		return err
	})
}

// stopped ends a process as an orchestrator does, and wants it to end in order.
func (p *program) stopped() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(p.t, p.over(), "%v", p.args)
}

// over waits for the program's end, and kills it where that does not come.
func (p *program) over() error {
	killed := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer killed.Stop()
	return p.cmd.Wait()
}

// TestTelemetry runs every role as a process of its own and looks at all that they tell of
// jobs: one that succeeds, one that fails, one that becomes a dead letter.
func TestTelemetry(t *testing.T) {
	t.Parallel()
	sink := newSpanSink(t)
	shared := realEnv(t)
	shared["KAFKA_CONSUMER_SESSION_TIMEOUT"] = "20m" // who waits for it waits beyond this test
	shared["OTEL_EXPORTER_OTLP_ENDPOINT"], shared["OTEL_BSP_SCHEDULE_DELAY"] = sink.URL, "100"
	roles := map[string]*program{}
	begin := func(name, instance string, args ...string) *program {
		variables := maps.Clone(shared)
		variables["PRIVATE_ADDR"], variables["INSTANCE_ID"] = "127.0.0.1:"+freePort(t), instance
		p := prepare(t, variables, args...)
		p.start()
		roles[name] = p
		return p
	}
	for _, role := range []string{"api", "saga", "projector"} {
		begin(role, role, "--roles="+role)
	}
	api := roles["api"]
	api.healthy()

	const secretName, secretHook = "passport-of-mallory", "https://hooks.invalid/token-5ee7"
	const trace, caller, requestID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "request-of-the-test"
	header := http.Header{"Traceparent": {"00-" + trace + "-" + caller + "-01"}, "X-Request-Id": {requestID}}
	submit := func(header http.Header, name string, content []byte, operations string) string {
		response, body, err := api.post(header, file(name, "image/png", content), field("operations", operations), field("webhook_url", secretHook))
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, response.StatusCode, "%s", body)
		var accepted struct {
			JobID string `json:"job_id"`
		}
		require.NoError(t, json.Unmarshal(body, &accepted))
		return accepted.JobID
	}
	content := pngOf(t, picture(40, 30))
	// Before any worker runs: what they know of the trace comes from the record.
	good := submit(header, secretName+".png", content, `["webp","denoise"]`)
	broken := submit(nil, secretName+".png", content[:len(content)-30], `["webp"]`)
	lost := submit(nil, secretName+".png", pngOf(t, picture(41, 31)), `["jpg"]`)
	var storage blob.Config
	require.NoError(t, env.ParseWithOptions(&storage, env.Options{Environment: shared}))
	store, err := blob.New(t.Context(), storage)
	require.NoError(t, err)
	require.NoError(t, store.Delete(t.Context(), fmt.Sprintf("%s%s/%x", blob.RawPrefix, lost, sha256.Sum256(pngOf(t, picture(41, 31))))))
	for _, role := range []string{"convert", "ml"} {
		begin(role, role, "--roles="+role)
	}
	require.Equal(t, "SUCCEEDED", *api.ended(good).Outcome)
	require.Equal(t, "FAILED", *api.ended(broken).Outcome)
	require.Equal(t, "FAILED", *api.ended(lost).Outcome)
	for _, p := range roles {
		p.ready()
	}

	t.Run("one trace", func(t *testing.T) { oneTrace(t, sink, trace, caller) })
	t.Run("ids in every line", func(t *testing.T) {
		response, err := http.Get(api.base + "/api/jobs/" + good + "?note=question-5ee7")
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		idsInEveryLine(t, roles, good, trace, requestID, []string{secretName, "token-5ee7", "question-5ee7", storage.SecretAccessKey, "X-Amz-Signature"})
	})
	t.Run("metrics", func(t *testing.T) { everyMetricIsThere(t, roles) })
	t.Run("private port", func(t *testing.T) {
		for name, p := range roles {
			status, _, err := p.private("/livez")
			require.NoError(t, err, name)
			require.Equal(t, http.StatusOK, status, name)
			status, body, err := p.private("/debug/pprof/cmdline")
			require.NoError(t, err, name)
			require.Equal(t, http.StatusOK, status, name)
			require.Contains(t, body, "serve", name)
		}
	})
	t.Run("who stops leaves its groups", func(t *testing.T) {
		others := begin("others", "others", "--roles=convert,ml,saga,projector")
		others.ready()
		for _, role := range []string{"convert", "ml", "saga", "projector"} {
			roles[role].stopped()
		}
		onlyMember(t, strings.Split(shared["KAFKA_BROKERS"], ","))
		again := submit(nil, "a.png", content, `["webp"]`)
		require.Equal(t, "SUCCEEDED", *api.ended(again).Outcome)
		api.stopped()
		require.Contains(t, roles["others"].log.String(), again)
		others.stopped()
	})
}

// oneTrace: what a submission leads to, in five processes, hangs below the caller's span.
func oneTrace(t *testing.T, sink *spanSink, trace, caller string) {
	var spans []receivedSpan
	count := func(service, name string) (n int) {
		for _, s := range spans {
			if s.service == service && s.Name == name {
				n++
			}
		}
		return n
	}
	// The request, begin and outcome of two operations, the end.
	const told = 6
	eventually(t, "all spans of the trace", func() error {
		spans = sink.of(trace)
		if count("pixtools-projector", "project") < told || count("pixtools-saga", "finalize") < 1 || count("pixtools-ml", "process denoise") < 1 ||
			count("pixtools-convert", "process webp") < 1 || count("pixtools-api", "POST /api/process") < 1 {
			return fmt.Errorf("%d spans", len(spans))
		}
		return nil
	})
	byID := map[string]receivedSpan{}
	for _, s := range spans {
		byID[s.id()] = s
	}
	parentOf := func(service, name string) (parent receivedSpan) {
		t.Helper()
		for _, s := range spans {
			if s.service == service && s.Name == name {
				return byID[s.parent()]
			}
		}
		require.Failf(t, "no span", "%s of %s", name, service)
		return parent
	}
	for _, s := range spans {
		if s.service == "pixtools-api" && s.Name == "POST /api/process" {
			require.Equal(t, caller, s.parent())
			continue
		}
		require.Contains(t, byID, s.parent(), "%s of %s hangs in the air", s.Name, s.service)
	}
	const send = "send " + events.Topic
	for _, worker := range []struct{ service, operation string }{{"pixtools-convert", "webp"}, {"pixtools-ml", "denoise"}} {
		processed := parentOf(worker.service, "process "+worker.operation)
		require.Equal(t, send, processed.Name)
		require.Equal(t, "pixtools-api", processed.service)
		require.Equal(t, processed.id(), parentOf(worker.service, "queue "+worker.operation).id())
		for _, name := range []string{"convert " + worker.operation, "S3 GetObject", "S3 PutObject", send} {
			require.Equal(t, "process "+worker.operation, parentOf(worker.service, name).Name, name)
		}
	}
	require.Equal(t, "POST /api/process", parentOf("pixtools-api", send).Name)
	require.Equal(t, "POST /api/process", parentOf("pixtools-api", "S3 PutObject").Name)
	end := parentOf("pixtools-saga", "finalize")
	require.Equal(t, send, end.Name)
	require.Contains(t, []string{"pixtools-convert", "pixtools-ml"}, end.service, "what settled the job is the end's cause")
	var ends int
	for _, s := range spans {
		if s.Name == "project" && byID[s.parent()].Name == "finalize" {
			ends++
		}
	}
	require.Equal(t, 1, ends, "the projection of the end hangs below the end")
	require.Equal(t, told, count("pixtools-projector", "project"))
}

// idsInEveryLine: what tells of a job in any process names it, its request and its trace.
func idsInEveryLine(t *testing.T, roles map[string]*program, job, trace, requestID string, secrets []string) {
	about := map[string]int{} // by process
	for name, p := range roles {
		lines := bufio.NewScanner(strings.NewReader(p.log.String()))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			text := lines.Text()
			for _, secret := range secrets {
				require.NotContains(t, text, secret)
			}
			if strings.HasPrefix(text, "PixTools is at ") {
				continue // for people
			}
			var line map[string]any
			require.NoError(t, json.Unmarshal([]byte(text), &line), text)
			if line["msg"] == "request" {
				require.NotEmpty(t, line["request_id"], text)
				require.NotEmpty(t, line["trace_id"], text)
				require.NotEmpty(t, line["route"], text)
			}
			if !strings.Contains(text, job) {
				continue
			}
			require.Equal(t, job, line["job_id"], text)
			require.NotEmpty(t, line["request_id"], text)
			if name == "api" && line["trace_id"] != trace {
				require.NotEmpty(t, line["trace_id"], text)
				continue // another request, about the same job
			}
			about[name]++
			require.Equal(t, requestID, line["request_id"], text)
			require.Equal(t, trace, line["trace_id"], text)
			require.NotEmpty(t, line["span_id"], text)
			if name == "convert" || name == "ml" {
				require.NotEmpty(t, line["operation"], text)
			}
		}
	}
	for _, name := range []string{"api", "convert", "ml", "saga"} {
		require.Positive(t, about[name], "%s says nothing of the job", name)
	}
	require.Equal(t, 2, about["api"], "that it was requested, and the request")
}

// onlyMember waits until each group has one member and that all partitions: long before the
// session of those that left would have run out.
func onlyMember(t *testing.T, brokers []string) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	require.NoError(t, err)
	defer client.Close()
	groups := []string{events.SagaGroup, events.ProjectorGroup, events.OperationGroup + "webp", events.OperationGroup + "denoise"}
	eventually(t, "groups of one member", func() error {
		described, err := kadm.NewClient(client).DescribeGroups(context.Background(), groups...)
		if err != nil {
			return err
		}
		for _, name := range groups {
			group := described[name]
			partitions := 0
			for _, member := range group.Members {
				if assigned, ok := member.Assigned.AsConsumer(); ok {
					for _, topic := range assigned.Topics {
						partitions += len(topic.Partitions)
					}
				}
			}
			if len(group.Members) != 1 || partitions != 6 {
				return fmt.Errorf("group %s is %s and has %d members with %d partitions", name, group.State, len(group.Members), partitions)
			}
		}
		return nil
	})
}
