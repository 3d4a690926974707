// Command ui measures what the page promises: how long after its event a result is on screen, in
// a real Chromium that follows each job over its event stream, and how much memory open event
// streams cost the process that has them. It starts the given binary in embedded mode in a
// directory of its own. It fails where a promise is not kept.
package main

import (
	"bufio"
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
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/pixtools/pixtools/internal/testenv"
)

const (
	// mostDelay is the median time from a result's event until it is on screen, and mostMemory what
	// the streams may cost, in bytes.
	mostDelay  = 150 * time.Millisecond
	mostMemory = 150 << 20
	// patience bounds all of it.
	patience = 10 * time.Minute
)

func main() {
	binary := flag.String("binary", "build/bin/pixtools", "what to measure")
	jobs := flag.Int("jobs", 50, "jobs that are looked at, one after another")
	streams := flag.Int("streams", 500, "event streams that are open at once, each of a job of its own")
	flag.Parse()
	if err := run(*binary, *jobs, *streams); err != nil {
		log.Fatal("bench/ui: ", err)
	}
}

func run(binary string, jobs, streams int) error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	dir, err := os.MkdirTemp("/var/tmp", "pixtools-bench-ui-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // embedded Postgres runs as another user where we are root
		return err
	}
	if binary, err = filepath.Abs(binary); err != nil {
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
	b := &bench{ctx: ctx, base: "http://127.0.0.1:" + port, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}}
	if err := b.healthy(); err != nil {
		return err
	}
	delays, err := b.delays(jobs)
	if err != nil {
		return err
	}
	sort.Slice(delays, func(i, k int) bool { return delays[i] < delays[k] })
	at := func(q float64) time.Duration { return delays[int(q*float64(len(delays)-1))] }
	fmt.Printf("event to screen, ms  p50 %.1f  p95 %.1f  max %.1f, %d jobs, Chromium\n", ms(at(.50)), ms(at(.95)), ms(at(1)), jobs)
	cost, err := b.streams(cmd.Process.Pid, streams)
	if err != nil {
		return err
	}
	fmt.Printf("%d streams, MB      %.1f more resident memory in the API's process\n", streams, float64(cost)/(1<<20))
	if at(.50) > mostDelay || cost > mostMemory {
		return fmt.Errorf("the median must be at most %s, and the streams at most %d MB", mostDelay, mostMemory>>20)
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

type bench struct {
	ctx    context.Context
	base   string
	client *http.Client
}

// watch notes when a job's result was on screen: when the frame that has it was drawn.
const watch = `(id => {
	const seen = () => {
		const card = document.querySelector("[data-operation=webp][data-state=COMPLETED] .size");
		if (!card || document.querySelector("#job-id").textContent !== id || window.shownAt) return;
		observer.disconnect();
		requestAnimationFrame(() => setTimeout(() => { window.shownAt = performance.timeOrigin + performance.now(); }));
	};
	window.shownAt = 0;
	const observer = new MutationObserver(seen);
	observer.observe(document, { subtree: true, childList: true, attributes: true });
	location.hash = "#/jobs/" + id;
	return true;
})(%q)`

// delays are the times from OperationCompleted, as its event has it, until the page shows the
// result. The page is there, and its stream is open, before the result is.
func (b *bench) delays(jobs int) ([]time.Duration, error) {
	tab, stop, err := testenv.Browser(b.ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := chromedp.Do(tab, chromedp.Navigate(b.base)); err != nil {
		return nil, err
	}
	var all []time.Duration
	for i := range jobs + 2 {
		// Pixels enough that the stream is open before the result is there.
		id, err := b.submit(gradient(1200, i))
		if err != nil {
			return nil, err
		}
		if _, err := chromedp.Run(tab, chromedp.Evaluate[bool](fmt.Sprintf(watch, id))); err != nil {
			return nil, err
		}
		if _, err := chromedp.Run(tab, chromedp.Poll[bool]("window.shownAt > 0", chromedp.WithPollingTimeout(time.Minute))); err != nil {
			return nil, fmt.Errorf("waiting for the result of %s: %w", id, err)
		}
		shown, err := chromedp.Run(tab, chromedp.Evaluate[float64]("window.shownAt"))
		if err != nil {
			return nil, err
		}
		completed, err := b.completedAt(id)
		if err != nil {
			return nil, err
		}
		if i >= 2 { // the first load what the page is made of
			all = append(all, time.UnixMicro(int64(shown*1000)).Sub(completed))
		}
	}
	return all, nil
}

func (b *bench) completedAt(id string) (time.Time, error) {
	if err := b.ended(id); err != nil { // the stream is ahead of what the events are found by
		return time.Time{}, err
	}
	var history struct {
		Events []struct {
			Type string
			Time time.Time
		}
	}
	if err := b.get("/api/jobs/"+id+"/events", &history); err != nil {
		return time.Time{}, err
	}
	for _, e := range history.Events {
		if e.Type == "OperationCompleted" {
			return e.Time, nil
		}
	}
	return time.Time{}, fmt.Errorf("job %s has no result", id)
}

// streams opens so many, each of a job of its own, and returns by how much the process has grown.
func (b *bench) streams(pid, n int) (int64, error) {
	var ids []string
	for i := range n {
		id, err := b.submit(gradient(16, i))
		if err != nil {
			return 0, err
		}
		ids = append(ids, id)
	}
	for _, id := range ids { // nothing else goes on meanwhile
		if err := b.ended(id); err != nil {
			return 0, err
		}
	}
	before, err := resident(pid)
	if err != nil {
		return 0, err
	}
	for i, id := range ids {
		request, err := http.NewRequestWithContext(b.ctx, http.MethodGet, b.base+"/api/jobs/"+id+"/stream", nil)
		if err != nil {
			return 0, err
		}
		response, err := b.client.Do(request)
		if err != nil {
			return 0, err
		}
		defer response.Body.Close() //nolint:gocritic // all are open until the memory is measured
		if line, err := bufio.NewReader(response.Body).ReadString('\n'); err != nil || line != "event: job\n" {
			return 0, fmt.Errorf("stream %d: %s: %q: %w", i+1, response.Status, line, err)
		}
	}
	after, err := resident(pid)
	return after - before, err
}

func (b *bench) ended(id string) error {
	var job struct{ Outcome *string }
	err := b.get("/api/jobs/"+id+"?wait=60", &job)
	if err == nil && job.Outcome == nil {
		err = fmt.Errorf("job %s does not end", id)
	}
	return err
}

// resident is a process's resident memory, in bytes.
func resident(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kilobytes, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, errors.New("the system does not tell of VmRSS")
}

func gradient(side, i int) image.Image {
	picture := image.NewNRGBA(image.Rect(0, 0, side, side))
	for y := range side {
		for x := range side {
			picture.SetNRGBA(x, y, color.NRGBA{uint8(x), uint8(y + i), uint8(i >> 4), 255})
		}
	}
	return picture
}

func (b *bench) submit(picture image.Image) (id string, err error) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="bench.png"`}, "Content-Type": {"image/png"}})
	if err == nil {
		err = png.Encode(part, picture)
	}
	if err := errors.Join(err, w.WriteField("operations", `["webp"]`), w.Close()); err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(b.ctx, http.MethodPost, b.base+"/api/process", &body)
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", w.FormDataContentType())
	var accepted struct {
		JobID string `json:"job_id"`
	}
	err = b.ask(request, http.StatusAccepted, &accepted)
	return accepted.JobID, err
}

func (b *bench) get(path string, into any) error {
	request, err := http.NewRequestWithContext(b.ctx, http.MethodGet, b.base+path, nil)
	if err != nil {
		return err
	}
	return b.ask(request, http.StatusOK, into)
}

func (b *bench) ask(request *http.Request, want int, into any) error {
	response, err := b.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != want {
		return fmt.Errorf("%s: %s: %s", request.URL.Path, response.Status, raw)
	}
	return json.Unmarshal(raw, into)
}

func (b *bench) healthy() error {
	for deadline := time.Now().Add(time.Minute); ; {
		err := b.get("/api/health", &struct{}{})
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-b.ctx.Done():
			return b.ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
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
