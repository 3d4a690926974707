package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/audit"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/embedded"
)

// command runs pixtools with the program's configuration, to its end.
func (p *program) command(args ...string) (out, complaints string, status int) {
	p.t.Helper()
	cmd := exec.CommandContext(within(p.t), p.path(), args...)
	cmd.Env = append(slices.Clone(p.env), "LOG_LEVEL=warn")
	var told bytes.Buffer
	cmd.Stderr = &told
	raw, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(p.t, err)
	}
	return string(raw), told.String(), cmd.ProcessState.ExitCode()
}

// verified is what `pixtools verify --json` said.
type verified struct {
	findings []audit.Finding
	open     []audit.Open
	summary  summary
}

func (v verified) of(kind audit.Kind, job string) []audit.Finding {
	return slices.DeleteFunc(slices.Clone(v.findings), func(f audit.Finding) bool { return f.Kind != kind || f.JobID != job })
}

func (p *program) verify(want int, args ...string) verified {
	p.t.Helper()
	out, complaints, status := p.command(append([]string{"verify", "--json"}, args...)...)
	require.Equal(p.t, want, status, "%s\n%s", out, complaints)
	var v verified
	for line := range strings.Lines(out) {
		var l struct {
			Finding *audit.Finding
			Open    *audit.Open
			Summary *summary
		}
		require.NoError(p.t, json.Unmarshal([]byte(line), &l), line)
		switch {
		case l.Finding != nil:
			v.findings = append(v.findings, *l.Finding)
		case l.Open != nil:
			v.open = append(v.open, *l.Open)
		default:
			v.summary = *l.Summary
		}
	}
	require.EqualValues(p.t, len(v.findings), v.summary.Findings)
	return v
}

// reach gives the addresses of the parts of a program that runs embedded.
func (p *program) reach() config {
	p.t.Helper()
	for _, variable := range p.env {
		if name, value, _ := strings.Cut(variable, "="); name == "PIXTOOLS_DATA_DIR" {
			p.t.Setenv(name, value)
		}
	}
	var there parts
	_, err := there.reach(p.t.Context(), embedded.Needs{Kafka: true, Postgres: true, S3: true})
	require.NoError(p.t, err)
	require.Nil(p.t, there.own, "the program does not run")
	return there.cfg
}

// retry asks for a job's failed operations again.
func (p *program) retry(id string) {
	p.t.Helper()
	response, err := http.Post(p.base+"/api/jobs/"+id+"/retry", "application/json", strings.NewReader("{}"))
	require.NoError(p.t, err)
	defer response.Body.Close()
	require.Equal(p.t, http.StatusAccepted, response.StatusCode)
}

// append puts records into the log as they are.
func appendRecords(t *testing.T, cfg config, all ...events.Event) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Kafka.Brokers...), kgo.DefaultProduceTopic(events.Topic))
	require.NoError(t, err)
	defer client.Close()
	for _, e := range all {
		r, err := e.Record()
		require.NoError(t, err)
		require.NoError(t, client.ProduceSync(within(t), r).FirstErr())
	}
}

// TestVerify: nothing is found in a system as it is; what is broken by hand is found, each
// by its name, and nothing else is.
func TestVerify(t *testing.T) {
	p := run(t, embeddedEnv(t))
	whole := pngOf(t, picture(40, 40))
	two := field("operations", `["webp","jpg"]`)
	intact := p.submit(file("a.png", "image/png", whole), two)
	tampered := p.submit(file("b.png", "image/png", pngOf(t, picture(41, 41))), two)
	robbed := p.submit(file("c.png", "image/png", pngOf(t, picture(42, 42))), two)
	changed := p.submit(file("d.png", "image/png", pngOf(t, picture(43, 43))), two)
	broken := p.submit(file("e.png", "image/png", whole[:len(whole)/2]), two)
	for _, id := range []string{intact, tampered, robbed, changed} {
		require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	}
	require.Equal(t, "FAILED", *p.ended(broken).Outcome)
	p.retry(broken)
	eventually(t, "the end of the retry", func() error {
		job, err := p.job(broken)
		if err == nil && (job.Revision != 2 || job.Outcome == nil) {
			err = fmt.Errorf("revision %d", job.Revision)
		}
		return err
	})

	clean := p.verify(0)
	require.Empty(t, clean.open)
	require.Equal(t, map[string]int64{"SUCCEEDED": 4, "FAILED": 2}, clean.summary.Finals)
	require.EqualValues(t, 5, clean.summary.Jobs)
	require.EqualValues(t, 5+4*2, clean.summary.Objects.Intact)
	require.EqualValues(t, 5, clean.summary.ReadModel.Same)
	require.EqualValues(t, 3, p.verify(0, "--artifacts=sample:3").summary.Objects.Intact)
	require.Zero(t, p.verify(0, "--artifacts=none", "--read-model=false").summary.Objects.Intact)
	out, _, status := p.command("verify")
	require.Zero(t, status)
	require.Contains(t, out, "finals: 2 FAILED, 4 SUCCEEDED")
	require.Contains(t, out, "findings: none")
	// A memory of one ended job: others are looked at again, and come to the same.
	env := p.env
	p.env = append(slices.Clone(env), "VERIFY_HELD_JOBS=1")
	small := p.verify(0)
	require.Equal(t, clean.summary.Finals, small.summary.Finals)
	require.Equal(t, []int64{clean.summary.Events, clean.summary.Jobs}, []int64{small.summary.Events, small.summary.Jobs})
	require.Equal(t, clean.summary.Objects, small.summary.Objects)
	p.env = env

	// From here on nobody works at jobs or ends them.
	p.kill()
	require.Equal(t, clean.summary.Finals, p.verify(0, "--read-model=false").summary.Finals, "with no PixTools running")
	p.args = []string{"serve", "--roles=api,projector"}
	p.start()
	p.healthy()
	cfg := p.reach()
	store, err := blob.New(t.Context(), cfg.Blob)
	require.NoError(t, err)
	keyOf := func(id, operation string) (key string) {
		require.NoError(t, store.List(t.Context(), blob.ProcessedPrefix+id+"/"+operation+"/", func(o blob.Object) error {
			key = o.Key
			return nil
		}))
		return key
	}
	other := []byte("not a picture")
	require.NoError(t, store.Put(t.Context(), keyOf(tampered, "webp"), bytes.NewReader(other), int64(len(other)), sha256.Sum256(other), "image/webp"))
	require.NoError(t, store.Delete(t.Context(), keyOf(robbed, "jpg")))
	db, err := pgx.Connect(t.Context(), cfg.Read.URL)
	require.NoError(t, err)
	defer db.Close(within(t))
	tag, err := db.Exec(t.Context(), "UPDATE pixtools_read.jobs SET outcome = 3 WHERE job_id = $1", changed)
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())
	tag, err = db.Exec(t.Context(), "UPDATE pixtools_read.usage SET output_bytes = output_bytes + 1 WHERE operation = 'jpg'")
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())

	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	source := func(id string) *events.Source {
		sum := sha256.Sum256(whole)
		key := fmt.Sprintf("raw/%s/%x", id, sum)
		require.NoError(t, store.Put(t.Context(), key, bytes.NewReader(whole), int64(len(whole)), sum, "image/png"))
		return &events.Source{Key: key, Sha256: fmt.Sprintf("%x", sum), Bytes: int64(len(whole)), Width: 40, Height: 40, Format: "png"}
	}
	request := func(id string, age time.Duration) events.Event {
		return events.New(id, ago(age), "pixtools/test", "", &events.JobRequested{Tenant: "default", Source: source(id), Operations: []*events.Operation{{Name: "webp"}}})
	}
	stuck, young, nobody, early, strange := uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()
	asked := request(early, time.Hour)
	lost := events.Because(asked, ago(time.Hour), "pixtools/test", &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1})
	drawn := request(strange, time.Hour)
	drawn.ID = uuid.NewString()
	appendRecords(t, cfg, request(stuck, 48*time.Hour), request(young, time.Hour),
		events.New(nobody, ago(time.Hour), "pixtools/test", "", &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_FAILED}),
		asked, events.Because(asked, ago(time.Hour), "pixtools/test", &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED}),
		events.Because(lost, ago(time.Hour), "pixtools/test", &events.OperationFailed{Revision: 2, Operation: "webp", Attempt: 1}),
		events.Because(asked, ago(time.Hour), "pixtools/test", &events.OperationFailed{Revision: 1, Operation: "avif", Attempt: 1}),
		drawn)
	eventually(t, "the projection of what was appended", func() error {
		_, err := p.now(strange)
		return err
	})

	found := p.verify(1)
	for _, want := range []struct {
		kind    audit.Kind
		job     string
		message string
	}{
		{audit.ObjectDamaged, tampered, "the result of webp"},
		{audit.ObjectMissing, robbed, "the result of jpg"},
		{audit.ReadModel, changed, "outcome is 3, should be 1"},
		{audit.ReadModel, "", "jpg of default is not what the log makes of it: output_bytes is"},
		{audit.NoEnd, stuck, "it waits for webp"},
		{audit.Orphan, nobody, "JobFinalized"},
		{audit.Illegal, early, "ends while operations have no outcome"},
		{audit.UnknownCause, early, "OperationFailed answers the event " + lost.ID},
		{audit.Revision, early, "of revision 2, and the job is at 1"},
		{audit.WrongID, strange, "derived is"},
	} {
		of := found.of(want.kind, want.job)
		require.NotEmpty(t, of, "%s of %s: %v", want.kind, want.job, found.findings)
		require.Contains(t, of[0].Message, want.message)
		require.NotEmpty(t, of[0].Next)
		require.True(t, of[0].Kind == audit.ReadModel || of[0].Place != nil, "%v", of[0])
	}
	require.Len(t, found.of(audit.Illegal, early), 2, "its end, and an operation that it does not have")
	require.Len(t, found.findings, 11, "%v", found.findings)
	var open []string
	for _, o := range found.open {
		open = append(open, o.JobID)
	}
	require.ElementsMatch(t, []string{young, early, strange}, open)
	// At the time before all that, only what the store and the read model lack is to be seen.
	past := p.verify(1, "--until", clean.summary.Until.Format(time.RFC3339Nano))
	require.Equal(t, map[audit.Kind]int64{audit.ObjectDamaged: 1, audit.ObjectMissing: 1}, past.summary.Kinds)
	require.Equal(t, clean.summary.Events, past.summary.Events)
	// What was removed by right, as the log says after that time, is not missing.
	appendRecords(t, cfg, events.New(robbed, ago(time.Minute), "pixtools/test", "", &events.ArtifactsExpired{Operations: []string{"jpg"}}))
	past = p.verify(1, "--until", clean.summary.Until.Format(time.RFC3339Nano))
	require.Equal(t, map[audit.Kind]int64{audit.ObjectDamaged: 1}, past.summary.Kinds)
	require.EqualValues(t, 1, past.summary.Objects.Expired)
	position := found.of(audit.NoEnd, stuck)[0].Position
	require.Len(t, p.verify(1, "--artifacts=none", "--until", position, "--grace", "1s").of(audit.NoEnd, stuck), 1)

	// Records that are no events: nobody is there to tell of them, and one is still young.
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Kafka.Brokers...), kgo.DefaultProduceTopic(events.Topic))
	require.NoError(t, err)
	defer client.Close()
	old := &kgo.Record{Key: []byte(stuck), Value: []byte("no event"), Timestamp: ago(time.Hour)}
	require.NoError(t, client.ProduceSync(t.Context(), old, &kgo.Record{Key: []byte(young), Value: []byte("no event")}).FirstErr())
	unreadable := p.verify(1, "--artifacts=none", "--read-model=false")
	require.EqualValues(t, 2, unreadable.summary.Broken)
	require.EqualValues(t, 1, unreadable.summary.Kinds[audit.Unreadable])
	require.Equal(t, old.Offset, unreadable.of(audit.Unreadable, stuck)[0].Offset)

	p.kill()
	for _, away := range []string{"AWS_ENDPOINT_URL=http://127.0.0.1:1", "KAFKA_BROKERS=127.0.0.1:1", "VERIFY_HELD_JOBS=0"} {
		p.env = append(slices.Clone(env), away)
		_, complaints, status := p.command("verify")
		require.Equal(t, 2, status, "%s: %s", away, complaints)
	}
	_, complaints, status := p.command("verify", "--artifacts=some")
	require.Equal(t, 2, status)
	require.Contains(t, complaints, `--artifacts is "some": use all, none, or sample:N`)
}
