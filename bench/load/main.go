// Command load measures the main job: a small PNG to webp, some clients at once.
// It starts the given binary in embedded mode in a directory of its own, warms it
// up, and prints jobs/s, CPU-seconds per job over all of its processes, and the
// times from a submission's start to its answer, and to the job's end; beside them how
// long the disk takes to sync, which every job waits for several times over. Then it
// measures single jobs alone and while denoise jobs wait, by turns.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"log"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// clockTick is the unit of CPU time in /proc: USER_HZ, 100 on every Linux.
const clockTick = 10 * time.Millisecond

func main() {
	binary := flag.String("binary", "build/bin/pixtools", "what to measure")
	jobs := flag.Int("jobs", 3000, "jobs to measure")
	warm := flag.Int("warm", 300, "jobs before measuring")
	clients := flag.Int("clients", 16, "clients at once")
	waiting := flag.Int("denoise", 50, "denoise jobs that wait while single jobs are measured; 0 leaves that out")
	flag.Parse()
	if err := run(*binary, *jobs, *warm, *clients, *waiting); err != nil {
		log.Fatal("bench: ", err)
	}
}

func run(binary string, jobs, warm, clients, waiting int) error {
	dir, err := os.MkdirTemp("/var/tmp", "pixtools-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // embedded Postgres runs as another user where we are root
		return err
	}
	binary, err = filepath.Abs(binary)
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, "serve")
	cmd.Env = append(os.Environ(), "PORT="+port, "PIXTOOLS_DATA_DIR="+filepath.Join(dir, "data"), "LOG_LEVEL=error")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	b := &bench{base: "http://127.0.0.1:" + port, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * clients}}}
	if err := b.healthy(); err != nil {
		return err
	}
	if _, err := b.load(warm, clients); err != nil {
		return err
	}
	syncs, err := syncTimes(dir)
	if err != nil {
		return err
	}
	before, start := cpuOf(cmd.Process.Pid), time.Now()
	times, err := b.load(jobs, clients)
	if err != nil {
		return err
	}
	wall := time.Since(start)
	cpu := cpuOf(cmd.Process.Pid) - before
	fmt.Printf("machine             %s, %d cores, %s\n", cpuName(), runtime.NumCPU(), runtime.Version())
	fmt.Printf("job                 64x64 PNG to webp, %d clients, %d jobs, embedded mode\n", clients, jobs)
	fmt.Printf("jobs per second     %.0f\n", float64(jobs)/wall.Seconds())
	fmt.Printf("CPU-seconds per job %.4f\n", cpu.Seconds()/float64(jobs))
	fmt.Printf("cores busy          %.2f\n", cpu.Seconds()/wall.Seconds())
	fmt.Printf("submit, ms          %s\n", percentiles(times.submit))
	fmt.Printf("end to end, ms      %s\n", percentiles(times.end))
	fmt.Printf("one disk sync, ms   %s\n", percentiles(syncs))
	if waiting == 0 {
		return nil
	}
	return b.besideDenoise(waiting)
}

const (
	// rounds and singles are how many jobs are measured one at a time.
	rounds, singles = 5, 40
	// noisySide makes a picture that takes some seconds to denoise.
	noisySide = 1024
)

// besideDenoise measures single jobs alone and while denoise jobs wait for their turn, by
// turns: what the machine does meanwhile must not be taken for theirs.
func (b *bench) besideDenoise(waiting int) error {
	var alone, beside timings
	for range rounds {
		some, err := b.load(singles, 1)
		if err != nil {
			return err
		}
		alone.end = append(alone.end, some.end...)
		if some, err = b.besideOnce(waiting); err != nil {
			return err
		}
		beside.end = append(beside.end, some.end...)
	}
	fmt.Printf("alone, ms           %s\n", percentiles(alone.end))
	fmt.Printf("%d denoise wait, ms %s\n", waiting, percentiles(beside.end))
	fmt.Printf("ratio of the p50    %.2f\n", float64(beside.end[len(beside.end)/2])/float64(alone.end[len(alone.end)/2]))
	return nil
}

// besideOnce submits denoise jobs, measures while they wait, and cancels them.
func (b *bench) besideOnce(waiting int) (timings, error) {
	var ids []string
	for i := range waiting {
		body, contentType := form(noise(i), "denoise")
		id, err := b.submit(body, contentType)
		if err != nil {
			return timings{}, err
		}
		ids = append(ids, id)
	}
	beside, err := b.load(singles, 1)
	if err != nil {
		return timings{}, err
	}
	if status, err := b.status(ids[waiting-1], "0"); err != nil || status != "PENDING" {
		return timings{}, fmt.Errorf("the last denoise job is %s: they did not wait long enough to measure beside them: %w", status, err)
	}
	for _, id := range ids {
		if err := b.cancel(id); err != nil {
			return timings{}, err
		}
	}
	for _, id := range ids { // cancelled or done: nobody is at work when this returns
		if _, err := b.status(id, "10"); err != nil {
			return timings{}, err
		}
	}
	return beside, nil
}

// syncTimes are those of small appends, each with its sync, as a log makes them.
func syncTimes(dir string) ([]time.Duration, error) {
	file, err := os.Create(filepath.Join(dir, "syncs"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var all []time.Duration
	for range 200 {
		start := time.Now()
		if _, err := file.Write(make([]byte, 500)); err != nil {
			return nil, err
		}
		if err := file.Sync(); err != nil {
			return nil, err
		}
		all = append(all, time.Since(start))
	}
	return all, nil
}

type bench struct {
	base   string
	client *http.Client
}

type timings struct{ submit, end []time.Duration }

// load runs n jobs and returns their times.
func (b *bench) load(n, clients int) (timings, error) {
	var next atomic.Int64
	var mu sync.Mutex
	var all timings
	var faults []error
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(n) {
					return
				}
				submit, end, err := b.job(int(i))
				mu.Lock()
				if err != nil {
					faults = append(faults, err)
				}
				all.submit, all.end = append(all.submit, submit), append(all.end, end)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return all, errors.Join(faults...)
}

func (b *bench) job(i int) (submit, end time.Duration, err error) {
	body, contentType := form(gradient(i), "webp")
	start := time.Now()
	id, err := b.submit(body, contentType)
	if err != nil {
		return 0, 0, err
	}
	submit = time.Since(start)
	for deadline := start.Add(time.Minute); time.Now().Before(deadline); {
		status, err := b.status(id, "10")
		if err != nil {
			return 0, 0, err
		}
		switch status {
		case "COMPLETED":
			return submit, time.Since(start), nil
		case "FAILED":
			return 0, 0, fmt.Errorf("job %s failed", id)
		}
	}
	return 0, 0, fmt.Errorf("job %s did not end in a minute", id)
}

func (b *bench) submit(body io.Reader, contentType string) (id string, err error) {
	response, err := b.client.Post(b.base+"/api/process", contentType, body)
	if err != nil {
		return "", err
	}
	var accepted struct {
		JobID string `json:"job_id"`
	}
	err = decode(response, http.StatusAccepted, &accepted)
	return accepted.JobID, err
}

// cancel ends a job that may have ended by then.
func (b *bench) cancel(id string) error {
	response, err := b.client.Post(b.base+"/api/jobs/"+id+"/cancel", "", nil)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusAccepted && response.StatusCode != http.StatusConflict {
		return fmt.Errorf("cancel %s: %s", id, response.Status)
	}
	return nil
}

// status is the job's when it ends, or after so many seconds.
func (b *bench) status(id, wait string) (string, error) {
	response, err := b.client.Get(b.base + "/api/jobs/" + id + "?wait=" + wait)
	if err != nil {
		return "", err
	}
	var job struct {
		Status string `json:"status"`
	}
	err = decode(response, http.StatusOK, &job)
	return job.Status, err
}

func decode(response *http.Response, want int, into any) error {
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != want {
		return fmt.Errorf("answered %s: %s", response.Status, raw)
	}
	return json.Unmarshal(raw, into)
}

// gradient differs from job to job, so that nothing can be reused.
func gradient(i int) image.Image {
	picture := image.NewNRGBA(image.Rect(0, 0, 64, 64))
	for y := range 64 {
		for x := range 64 {
			picture.SetNRGBA(x, y, color.NRGBA{uint8(x * 4), uint8(y*4 + i), uint8(i >> 4), 255})
		}
	}
	return picture
}

// noise is grey, so that its file is small.
func noise(i int) image.Image {
	random := rand.New(rand.NewPCG(uint64(i), 1))
	picture := image.NewGray(image.Rect(0, 0, noisySide, noisySide))
	for at := range picture.Pix {
		picture.Pix[at] = uint8(96 + random.IntN(64))
	}
	return picture
}

// form is a submission.
func form(picture image.Image, operation string) (io.Reader, string) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	h := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="bench.png"`}, "Content-Type": {"image/png"}}
	part, err := w.CreatePart(h)
	if err == nil {
		err = png.Encode(part, picture)
	}
	if err == nil {
		err = errors.Join(w.WriteField("operations", fmt.Sprintf("[%q]", operation)), w.Close())
	}
	if err != nil {
		panic(err) // writing to memory
	}
	return &body, w.FormDataContentType()
}

func (b *bench) healthy() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+"/api/health", nil)
		if err != nil {
			return err
		}
		response, err := b.client.Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.New("not healthy within a minute")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// cpuOf is the CPU time of a process, of all below it, and of those of them that
// have ended.
func cpuOf(root int) time.Duration {
	type process struct {
		parent int
		ticks  int64
	}
	all := map[int]process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		// The name in parentheses may hold anything; the numbers come after it.
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parent, _ := strconv.Atoi(fields[1])
		var ticks int64
		for _, field := range fields[11:15] { // utime, stime, cutime, cstime
			n, _ := strconv.ParseInt(field, 10, 64)
			ticks += n
		}
		all[pid] = process{parent, ticks}
	}
	var total int64
	for pid, p := range all {
		for up, hops := pid, 0; up > 1 && hops < 64; up, hops = all[up].parent, hops+1 {
			if up == root {
				total += p.ticks
				break
			}
		}
	}
	return time.Duration(total) * clockTick
}

func percentiles(all []time.Duration) string {
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))]) / float64(time.Millisecond) }
	return fmt.Sprintf("p50 %.1f  p95 %.1f  p99 %.1f", at(.50), at(.95), at(.99))
}

func cpuName() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
