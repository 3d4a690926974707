package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/eventlog"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
)

// eventsTool is `pixtools events` in an environment.
func eventsTool(t *testing.T, env map[string]string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(within(t), self, append([]string{"events"}, args...)...)
	cmd.Env = []string{mainVariable + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

// ran is what the tool printed; its complaints are in the error.
func ran(t *testing.T, env map[string]string, args ...string) (string, error) {
	t.Helper()
	cmd := eventsTool(t, env, args...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, complaints.String())
	}
	return string(out), err
}

// lines are what the tool prints.
func lines(t *testing.T, env map[string]string, args ...string) []eventlog.Line {
	t.Helper()
	out, err := ran(t, env, args...)
	require.NoError(t, err)
	var all []eventlog.Line
	for text := range strings.Lines(out) {
		var l eventlog.Line
		require.NoError(t, json.Unmarshal([]byte(text), &l), "%s", text)
		all = append(all, l)
	}
	return all
}

func typesOf(all []eventlog.Line) (types []string) {
	for _, l := range all {
		types = append(types, l.Type)
	}
	return types
}

// ownKafka is realEnv with a cluster of its own: its topics hold this test's jobs only.
func ownKafka(t *testing.T) map[string]string {
	cluster, err := testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	variables := realEnv(t)
	variables["KAFKA_BROKERS"] = strings.Join(cluster.Brokers(), ",")
	return variables
}

// TestEventsRead: what `events cat` and `events tail` print, from a cluster, from a
// PixTools that runs embedded, and from one that does not run.
func TestEventsRead(t *testing.T) {
	for name, env := range map[string]func(*testing.T) map[string]string{"real": ownKafka, "embedded": embeddedEnv} {
		t.Run(name, func(t *testing.T) {
			variables := env(t)
			p := run(t, variables)
			picture := file("a.png", "image/png", pngOf(t, picture(8, 8)))
			first := p.submit(picture, field("operations", `["webp","jpg"]`))
			p.ended(first)
			second := p.submit(picture, field("operations", `["webp"]`))
			p.ended(second)

			own := lines(t, variables, "cat", "--job", second)
			require.Equal(t, []string{"JobRequested", "OperationStarted", "OperationCompleted", "JobFinalized"}, typesOf(own))
			for i, l := range own {
				require.Equal(t, []string{second, "1.0", "pixtools.events.v1." + l.Type, "application/protobuf"}, []string{l.Subject, l.SpecVersion, l.FullType, l.DataContentType})
				position, err := events.ParsePosition(l.Position)
				require.NoError(t, err)
				require.Equal(t, l.Partition, position.Partition)
				require.Equal(t, l.Offset, position.Offset)
				require.NotEmpty(t, l.ID)
				if i > 0 {
					require.Greater(t, l.Offset, own[i-1].Offset)
				}
			}
			var data struct {
				Operations []struct{ Name string }
				Source     struct{ Format string }
			}
			require.NoError(t, json.Unmarshal(own[0].Data, &data))
			require.Equal(t, "webp", data.Operations[0].Name)
			require.Equal(t, "png", data.Source.Format)

			require.Len(t, lines(t, variables, "cat"), 10)
			require.Len(t, lines(t, variables, "cat", "--type", "JobRequested,JobFinalized"), 4)
			require.Len(t, lines(t, variables, "cat", "--type", "JobRequested", "--type", "pixtools.events.v2.Unknown"), 2)
			require.Len(t, lines(t, variables, "cat", "--operation", "jpg"), 3)
			require.Len(t, lines(t, variables, "cat", "--operation", "jpg", "--job", second), 0)
			require.Len(t, lines(t, variables, "cat", "--limit", "3"), 3)
			all := lines(t, variables, "cat")
			require.True(t, slices.IsSortedFunc(all, func(a, b eventlog.Line) int { return a.Written.Compare(b.Written) }), "merged by time")
			began := own[0].Written.Format(time.RFC3339Nano)
			require.Equal(t, "JobRequested", lines(t, variables, "cat", "--since", began)[0].Type)
			require.Len(t, lines(t, variables, "cat", "--since", began), 4)
			require.Len(t, lines(t, variables, "cat", "--from", began), 4)
			require.Len(t, lines(t, variables, "cat", "--until", began), 6)
			require.Len(t, lines(t, variables, "cat", "--since", "1h"), 10)
			require.Empty(t, lines(t, variables, "cat", "--until", "1h"))
			require.Empty(t, lines(t, variables, "cat", "--from", "end"))
			require.Equal(t, own[2:], lines(t, variables, "cat", "--job", second, "--from", own[2].Position))
			require.Equal(t, own[2], lines(t, variables, "cat", "--from", fmt.Sprintf("%d:%d", own[2].Partition, own[2].Offset))[0])

			for flag, says := range map[string]string{
				"--job=x": "--job", "--type=Nothing": "JobRequested", "--since=yesterday": "--since", "--from=soon": "--from", "--limit=-1": "--limit",
				"--from=99:0": "partition 99", "--from=0:99999": "offset 99999", "--from=start,0:0": "--from",
				"--from=" + events.Position{Log: uuid.New()}.Token(): "another log",
			} {
				_, err := ran(t, variables, "cat", flag)
				require.ErrorContains(t, err, says, flag)
			}
			closedPipe(t, variables)
			broken(t, p, variables)
			startTail(t, variables).sees(t, p, first)

			require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
			require.NoError(t, p.cmd.Wait())
			if name == "embedded" {
				before := lines(t, variables, "cat")
				require.Greater(t, len(before), 12)
				require.Equal(t, before, lines(t, variables, "cat"), "reading changes nothing")
				_, err := ran(t, variables, "tail")
				require.ErrorContains(t, err, "no PixTools runs in")
				_, err = ran(t, embeddedEnv(t), "cat")
				require.ErrorContains(t, err, "KAFKA_BROKERS is not set, and ")
			}
		})
	}
}

// following is a `tail` that runs.
type following struct {
	cmd   *exec.Cmd
	lines chan eventlog.Line
}

func startTail(t *testing.T, env map[string]string) following {
	f := following{eventsTool(t, env, "tail"), make(chan eventlog.Line, 1000)}
	out, err := f.cmd.StdoutPipe()
	require.NoError(t, err)
	f.cmd.Stderr = os.Stderr
	require.NoError(t, f.cmd.Start())
	go func() {
		defer close(f.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			var l eventlog.Line
			if json.Unmarshal(scanner.Bytes(), &l) == nil {
				f.lines <- l
			}
		}
	}()
	return f
}

// sees wants a tail to show what comes, and nothing of a job that was there before it.
func (f following) sees(t *testing.T, p *program, old string) {
	submit := func() string {
		id := p.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`))
		p.ended(id)
		return id
	}
	for len(f.lines) == 0 { // until it has begun
		submit()
	}
	job, deadline := submit(), within(t)
	var types []string
	for len(types) < 4 {
		select {
		case l, ok := <-f.lines:
			require.True(t, ok, "tail ended")
			require.NotEqual(t, old, l.Subject, "only what is new")
			if l.Subject == job {
				types = append(types, l.Type)
			}
		case <-deadline.Done():
			require.FailNow(t, "tail does not show what comes", "%v", types)
		}
	}
	require.Equal(t, []string{"JobRequested", "OperationStarted", "OperationCompleted", "JobFinalized"}, types)
	require.NoError(t, f.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, f.cmd.Wait(), "an interrupt is how a tail ends")
}

// closedPipe: head goes away, and that is no failure.
func closedPipe(t *testing.T, env map[string]string) {
	cmd := eventsTool(t, env, "cat")
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, reader.Close())
	var complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = writer, &complaints
	require.NoError(t, cmd.Start())
	require.NoError(t, writer.Close())
	require.NoError(t, cmd.Wait())
	require.Empty(t, complaints.String())
}

// broken: records that are no events are shown as they are.
func broken(t *testing.T, p *program, env map[string]string) {
	brokers := env["KAFKA_BROKERS"]
	if brokers == "" {
		raw, err := os.ReadFile(filepath.Join(env["PIXTOOLS_DATA_DIR"], "embedded.json"))
		require.NoError(t, err)
		var state struct {
			Port int `json:"kafka_port"`
		}
		require.NoError(t, json.Unmarshal(raw, &state))
		brokers = fmt.Sprintf("127.0.0.1:%d", state.Port)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
	require.NoError(t, err)
	defer client.Close()
	id := uuid.NewString()
	e, err := events.New(id, time.Now(), "test", "r", &events.JobFinalized{}).Record()
	require.NoError(t, err)
	for i, h := range e.Headers {
		if h.Key == events.HeaderType {
			e.Headers[i].Value = []byte("pixtools.events.v1.FromTheFuture")
		}
	}
	e.Value = []byte{1, 2, 3}
	require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: events.Topic, Key: []byte(id), Value: []byte{0xff}}, e).FirstErr())
	shown := lines(t, env, "cat", "--job", id)
	require.Len(t, shown, 2)
	require.Equal(t, []string{"ff", id, ""}, []string{shown[0].ValueHex, shown[0].Key, shown[0].FullType})
	require.Contains(t, shown[0].Fault, "ce_specversion")
	require.Equal(t, []string{"010203", "FromTheFuture", id}, []string{shown[1].ValueHex, shown[1].Type, shown[1].Subject})
	require.Contains(t, shown[1].Fault, "not known")
}

// TestExportImport: from embedded mode into a real cluster, which then has the same jobs,
// links and history.
func TestExportImport(t *testing.T) {
	source := embeddedEnv(t)
	from := run(t, source, "--roles=api,convert,saga,projector")
	content := pngOf(t, picture(90, 60))
	whole := jpegOf(t, picture(300, 200))
	ids := []string{
		from.submit(file("naïve holiday.png", "image/png", content), field("operations", `["webp","jpg"]`)),
		from.submit(file("b.png", "image/png", content), field("operations", `["avif"]`), field("idempotency_key", "k"), field("webhook_url", "https://example.org/x")),
		from.submit(file("broken.jpg", "image/jpeg", whole[:len(whole)/2]), field("operations", `["webp","png"]`)),
	}
	for _, id := range ids {
		from.ended(id)
	}
	waiting := from.submit(file("c.png", "image/png", content), field("operations", `["denoise"]`)) // nobody does it here
	var page api.DeadLetterPage
	poisoned := poison(t, from, source, waiting, &page)
	from.kill() // with whatever that leaves in the log
	from.start()
	from.healthy()
	before := map[string]api.Job{}
	for _, id := range ids {
		job, err := from.now(id)
		require.NoError(t, err)
		before[id] = job
	}
	dir := filepath.Join(t.TempDir(), "export")
	out, complaints, status := from.command("backup", dir, "--secrets-in-clear")
	require.Zero(t, status, complaints)
	require.Contains(t, out, "0 missing, 0 damaged")
	require.Contains(t, out, "secrets, tenant_keys: 1 rows")
	info, err := os.Stat(filepath.Join(dir, "secrets.json"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	history := lines(t, source, "cat")
	_, err = ran(t, source, "import", "--in", dir)
	require.ErrorContains(t, err, "has members")

	target := ownKafka(t)
	target["KAFKA_PARTITIONS"], target["INSTANCE_ID"] = "5", "target"
	to := prepare(t, target)
	damagedObject(t, to, target, dir)
	out, complaints, status = to.command("restore", dir)
	require.Zero(t, status, complaints)
	require.Contains(t, out, fmt.Sprintf("imported %d records into 5 partitions", len(history)+1)) // and a dead letter
	to.start()
	to.healthy()

	for id, want := range before {
		got, err := to.now(id)
		require.NoError(t, err)
		sameJob(t, want, got)
	}
	require.Equal(t, "SUCCEEDED", *to.endedIn(waiting, 1).Outcome, "what was open goes on")
	// The saga has been over all of it, since it ended that job of the partition's; of each
	// other one, too, once it has ended one more.
	fresh := map[int32]bool{}
	for len(fresh) < 5 {
		id := to.submit(file("d.png", "image/png", content), field("operations", `["jpg"]`))
		to.ended(id)
		fresh[kafka.PartitionOf([]byte(id), 5)] = true
	}
	sameHistory(t, history, lines(t, target, "cat"), waiting)
	again := to.submit(file("b.png", "image/png", content), field("operations", `["avif"]`), field("idempotency_key", "k"), field("webhook_url", "https://example.org/x"))
	require.Equal(t, ids[1], again, "the key is still known")

	var moved api.DeadLetterPage
	require.Equal(t, http.StatusOK, to.ask(http.MethodGet, "/api/dead-letters", nil, &moved))
	require.Len(t, moved.DeadLetters, 1, "none is told anew")
	require.Equal(t, page.DeadLetters[0].ID, moved.DeadLetters[0].ID)
	var detail api.DeadLetterDetail
	require.Equal(t, http.StatusOK, to.ask(http.MethodGet, "/api/dead-letters/"+moved.DeadLetters[0].ID, nil, &detail))
	require.Equal(t, poisoned, detail.Record.Key, "it speaks of the same record")
	require.Equal(t, "ff00ff", detail.Record.ValueHex)

	require.NoError(t, to.cmd.Process.Signal(os.Interrupt))
	require.NoError(t, to.cmd.Wait())
	_, err = ran(t, target, "import", "--in", dir)
	require.ErrorContains(t, err, "has records that are not of this export")
	withoutSecrets(t, source, before[ids[0]])
}

// poison puts a record that cannot be read into the log, of nobody's job, and waits for its
// dead letter.
func poison(t *testing.T, p *program, env map[string]string, _ string, page *api.DeadLetterPage) string {
	raw, err := os.ReadFile(filepath.Join(env["PIXTOOLS_DATA_DIR"], "embedded.json"))
	require.NoError(t, err)
	var state struct {
		Port int `json:"kafka_port"`
	}
	require.NoError(t, json.Unmarshal(raw, &state))
	client, err := kgo.NewClient(kgo.SeedBrokers(fmt.Sprintf("127.0.0.1:%d", state.Port)))
	require.NoError(t, err)
	defer client.Close()
	key := uuid.NewString()
	require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: events.Topic, Key: []byte(key), Value: []byte{0xff, 0, 0xff}}).FirstErr())
	eventually(t, "a dead letter", func() error {
		p.ask(http.MethodGet, "/api/dead-letters", nil, page)
		if len(page.DeadLetters) != 1 {
			return errors.New("none")
		}
		return nil
	})
	return key
}

// sameJob wants one answer, but for the links, which must lead to the same bytes under the
// same name.
func sameJob(t *testing.T, want, got api.Job) {
	t.Helper()
	require.Len(t, got.ResultURLs, len(want.ResultURLs))
	for op, link := range want.ResultURLs {
		bytesThere, nameThere := fetch(t, link)
		bytesHere, nameHere := fetch(t, got.ResultURLs[op])
		require.Equal(t, bytesThere, bytesHere)
		require.Equal(t, nameThere, nameHere)
	}
	for _, job := range []*api.Job{&want, &got} {
		job.ResultURLs = nil
		job.Source.URL, job.Source.LinkExpiresAt = "", nil
		for _, result := range job.OperationResults {
			if result.Artifact != nil {
				result.Artifact.LinkExpiresAt = nil
			}
		}
	}
	require.Equal(t, want, got)
}

// sameHistory wants each job's events as they were, but for their places; only the job that
// was open has more.
func sameHistory(t *testing.T, want, got []eventlog.Line, open string) {
	t.Helper()
	byJob := func(all []eventlog.Line) map[string][]eventlog.Line {
		jobs := map[string][]eventlog.Line{}
		for _, l := range all {
			if strings.HasPrefix(l.Type, "Webhook") {
				continue // who took the log over goes on posting
			}
			l.Position, l.Partition, l.Offset = "", 0, 0
			jobs[l.Subject+l.Key] = append(jobs[l.Subject+l.Key], l)
		}
		return jobs
	}
	now := byJob(got)
	for job, events := range byJob(want) {
		if job == open {
			require.Equal(t, events, now[job][:len(events)])
			continue
		}
		require.Equal(t, events, now[job])
	}
}

// damagedObject: an object is checked as every file is, before anything is written.
func damagedObject(t *testing.T, to *program, target map[string]string, dir string) {
	objects, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*"))
	require.NoError(t, err)
	require.NotEmpty(t, objects)
	for _, path := range []string{objects[0], filepath.Join(dir, "objects.jsonl.zst"), filepath.Join(dir, "secrets.json")} {
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		damaged := bytes.Clone(whole)
		damaged[len(damaged)/2] ^= 1
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		_, complaints, status := to.command("restore", dir)
		require.NotZero(t, status)
		require.Contains(t, complaints, path)
		require.NoError(t, os.WriteFile(path, whole, 0o600))
	}
	_, err = ran(t, target, "cat")
	require.ErrorContains(t, err, "there is no such topic", "nothing was written")
}

// withoutSecrets: a copy without keys has the jobs, and not the files' names.
func withoutSecrets(t *testing.T, source map[string]string, known api.Job) {
	dir := filepath.Join(t.TempDir(), "export")
	_, err := ran(t, source, "export", "--out", dir)
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(dir, "secrets.json"))
	require.NoFileExists(t, filepath.Join(dir, "secrets.json.age"))
	target := embeddedEnv(t)
	_, complaints, status := prepare(t, target).command("restore", dir)
	require.NotZero(t, status)
	require.Contains(t, complaints, "without --with-blobs")
	_, err = ran(t, target, "import", "--in", dir, "--with-blobs", "--dry-run")
	require.ErrorContains(t, err, "without --with-blobs")
	_, err = ran(t, target, "import", "--in", dir, "--dry-run")
	require.NoError(t, err)
	require.NoDirExists(t, target["PIXTOOLS_DATA_DIR"], "a dry run makes nothing")
	_, err = ran(t, target, "import", "--in", dir)
	require.NoError(t, err)
	p := run(t, target, "--roles=api,saga,projector")
	job, err := p.now(known.JobID)
	require.NoError(t, err)
	require.Equal(t, known.Outcome, job.Outcome)
	require.Contains(t, job.ResultURLs["webp"], "pixtools_webp_image.webp")
}
