package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/internal/testenv"
)

// mainVariable has the test binary run as pixtools: what is tested is the program, as
// its own process, and no second build is needed.
const mainVariable = "PIXTOOLS_TEST_RUN_MAIN"

// aheadVariable puts the janitor's clock forward in such a process: nobody waits for days.
const aheadVariable = "PIXTOOLS_TEST_AHEAD"

func TestMain(m *testing.M) {
	if os.Getenv(mainVariable) != "" || os.Getenv("PIXTOOLS_ENGINE_CHILD") != "" || os.Getenv("PIXTOOLS_EMBEDDED_CHILD") != "" {
		if ahead, err := time.ParseDuration(os.Getenv(aheadVariable)); err == nil {
			now = func() time.Time { return time.Now().Add(ahead) }
		}
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience bounds every wait of these tests; machines that run tests are busy.
const patience = 2 * time.Minute

// program is a running pixtools.
type program struct {
	t *testing.T
	// binary is the program's path; empty: this test binary.
	binary string

	base string
	env  []string
	args []string
	cmd  *exec.Cmd
	log  *testenv.Buffer
}

// run starts `pixtools serve` with nothing in its environment but what is given, and
// waits until it is healthy.
func run(t *testing.T, env map[string]string, args ...string) *program {
	t.Helper()
	p := prepare(t, env, args...)
	p.start()
	p.healthy()
	return p
}

// patientLimits: a machine that is busy for seconds is no server that is away. Tests of
// those that are away name the limits that they mean; an empty one is the default.
var patientLimits = []string{"READ_WAIT_TIMEOUT=30s", "KAFKA_SUBMIT_TIMEOUT=30s", "DATABASE_QUERY_TIMEOUT=30s", "KAFKA_LAG_TIMEOUT=30s", "S3_PROBE_TIMEOUT=30s"}

func prepare(t *testing.T, env map[string]string, args ...string) *program {
	t.Helper()
	port := freePort(t)
	p := &program{t: t, base: "http://127.0.0.1:" + port, args: append([]string{"serve"}, args...), log: &testenv.Buffer{}}
	p.env = []string{mainVariable + "=1", "PORT=" + port, "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LOG_LEVEL=info",
		"SPOOL_DIR=" + t.TempDir(), "API_AUTH=off"} // tests of keys ask for them; others have none to show
	p.env = append(p.env, patientLimits...)
	for name, value := range env {
		p.env = append(p.env, name+"="+value)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			tail := p.log.String()
			t.Logf("the program's log ends:\n%s", tail[max(0, len(tail)-6000):])
		}
	})
	return p
}

func (p *program) start() {
	p.t.Helper()
	p.log = &testenv.Buffer{}
	p.cmd = exec.Command(p.path(), p.args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, p.log, p.log
	p.cmd.WaitDelay = 10 * time.Second // children that outlive it hold the pipe
	require.NoError(p.t, p.cmd.Start())
}

func (p *program) path() string {
	p.t.Helper()
	if p.binary != "" {
		return p.binary
	}
	self, err := os.Executable()
	require.NoError(p.t, err)
	return self
}

// kill is kill -9 of the one process.
func (p *program) kill() {
	if p.cmd != nil && p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

func (p *program) healthy() {
	p.t.Helper()
	eventually(p.t, "healthy", func() error {
		response, err := http.Get(p.base + "/api/health")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", response.Status, body)
		}
		return nil
	})
}

// eventually asks until there is no error, or fails at the deadline.
func eventually(t *testing.T, what string, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(t, err, "waiting for: %s", what)
		}
		time.Sleep(20 * time.Millisecond) //nolint:forbidigo // the pause between two looks at a condition with a deadline
	}
}

// dataDir is a directory that embedded Postgres, another user where we are root, can
// reach.
func dataDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/var/tmp", "pixtools-test-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "data")
}

func embeddedEnv(t *testing.T) map[string]string {
	return map[string]string{"PIXTOOLS_DATA_DIR": dataDir(t)}
}

// realEnv names real servers: Apache Kafka, PostgreSQL, redis-server and MinIO.
func realEnv(t *testing.T) map[string]string { return realEnvOn(t, testenv.Kafka(t)) }

// realEnvOn does so with brokers of the test's own.
func realEnvOn(t *testing.T, brokers []string) map[string]string {
	store := testenv.S3(t)
	return map[string]string{
		"KAFKA_BROKERS": strings.Join(brokers, ","), "KAFKA_PARTITIONS": "6",
		"DATABASE_URL":     strings.Replace(testenv.Postgres(t), "postgres://", "postgresql+asyncpg://", 1),
		"REDIS_URL":        "redis://" + testenv.Redis(t) + "/0",
		"AWS_ENDPOINT_URL": store.Endpoint, "AWS_ACCESS_KEY_ID": store.AccessKey, "AWS_SECRET_ACCESS_KEY": store.SecretKey,
		"AWS_S3_BUCKET": "pixtools-" + freePort(t), "DRAIN_DELAY": "0s", // nobody shares requests out
	}
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}

// picture is a gradient whose corners differ.
func picture(width, height int) image.Image {
	m := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			m.SetNRGBA(x, y, color.NRGBA{uint8(x * 255 / width), uint8(y * 255 / height), 100, 255})
		}
	}
	return m
}

func pngOf(t *testing.T, m image.Image) []byte {
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, m))
	return b.Bytes()
}

func jpegOf(t *testing.T, m image.Image) []byte {
	var b bytes.Buffer
	require.NoError(t, jpeg.Encode(&b, m, &jpeg.Options{Quality: 90}))
	return b.Bytes()
}

// part is one part of a form.
type part struct{ name, file, contentType, value string }

func file(name, contentType string, content []byte) part {
	return part{"file", name, contentType, string(content)}
}

func field(name, value string) part { return part{name: name, value: value} }

// form is a submission.
func (p *program) form(parts ...part) (*http.Request, error) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for _, f := range parts {
		h := textproto.MIMEHeader{}
		disposition := fmt.Sprintf("form-data; name=%q", f.name)
		if f.name == "file" {
			disposition = multipart.FileContentDisposition("file", f.file)
		}
		h.Set("Content-Disposition", disposition)
		if f.contentType != "" {
			h.Set("Content-Type", f.contentType)
		}
		to, err := w.CreatePart(h)
		if err != nil {
			return nil, err
		}
		if _, err := io.WriteString(to, f.value); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	request, err := http.NewRequest(http.MethodPost, p.base+"/api/process", &body)
	if err == nil {
		request.Header.Set("Content-Type", w.FormDataContentType())
	}
	return request, err
}

// post sends a form and returns the answer with its body read.
func (p *program) post(header http.Header, parts ...part) (*http.Response, []byte, error) {
	request, err := p.form(parts...)
	if err != nil {
		return nil, nil, err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return response, answer, err
}

// submit posts and wants 202; it returns the job's id.
func (p *program) submit(parts ...part) string {
	p.t.Helper()
	response, body, err := p.post(nil, parts...)
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusAccepted, response.StatusCode, "%s", body)
	var accepted api.Accepted
	require.NoError(p.t, json.Unmarshal(body, &accepted))
	require.Equal(p.t, "PENDING", accepted.Status)
	return accepted.JobID
}

// insist posts until it is answered 202, or ctx ends, and returns the job's id. Answers
// that say to try again, and none at all, are no errors.
func (p *program) insist(ctx context.Context, parts ...part) (string, error) {
	for {
		response, body, err := p.post(nil, parts...)
		switch {
		case err == nil && response.StatusCode == http.StatusAccepted:
			var accepted api.Accepted
			err = json.Unmarshal(body, &accepted)
			return accepted.JobID, err
		case err == nil && response.Header.Get("Retry-After") == "":
			return "", fmt.Errorf("%s: %s", response.Status, body)
		case err == nil:
			err = errors.New(response.Status)
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(20 * time.Millisecond): // between two looks at a condition with a deadline
		}
	}
}

func (p *program) job(id string) (api.Job, error) {
	var job api.Job
	response, err := http.Get(p.base + "/api/jobs/" + id + "?wait=1")
	if err != nil {
		return job, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(response.Body)
		return job, fmt.Errorf("job %s: %s: %s", id, response.Status, body)
	}
	err = json.NewDecoder(response.Body).Decode(&job)
	return job, err
}

// ended waits for a job's end.
func (p *program) ended(id string) api.Job {
	p.t.Helper()
	var job api.Job
	eventually(p.t, "end of job "+id, func() error {
		var err error
		if job, err = p.job(id); err == nil && job.Outcome == nil {
			err = errors.New("still " + job.Status)
		}
		return err
	})
	return job
}

// fetch gets a link as a browser does, and says under which name it is kept.
func fetch(t *testing.T, link string) (content []byte, disposition string) {
	t.Helper()
	response, err := http.Get(link)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err = io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s", content)
	return content, response.Header.Get("Content-Disposition")
}

// descendants are the processes that a process and its children started.
func descendants(root int) []int {
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var pid, parent int
		var state string
		if _, err := fmt.Sscan(string(raw[bytes.LastIndexByte(raw, ')')+1:]), &state, &parent); err != nil {
			continue
		}
		if _, err := fmt.Sscan(filepath.Base(filepath.Dir(path)), &pid); err == nil {
			parents[pid] = parent
		}
	}
	var found []int
	for pid := range parents {
		for up := parents[pid]; up > 1; up = parents[up] {
			if up == root {
				found = append(found, pid)
				break
			}
		}
	}
	return found
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
