package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/pixtools/pixtools/events"
)

// read goes through the log as a rebuild does, with a worker on each core, and has each
// worker do something with its records.
func (b *bench) read(ctx context.Context, worker func() func(*kgo.Record) error) (time.Duration, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.ConsumeTopics(events.Topic), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxBytes(1<<20), kgo.FetchMaxPartitionBytes(256<<10))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	workers := make([]chan []*kgo.Record, runtime.NumCPU())
	for i := range workers {
		workers[i] = make(chan []*kgo.Record, 2)
		do := worker()
		group.Go(func() error {
			for records := range workers[i] {
				for _, r := range records {
					if err := do(r); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer func() {
			for _, w := range workers {
				close(w)
			}
		}()
		for left := b.events; left > 0; {
			fetches := client.PollFetches(ctx)
			if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
				return err
			}
			left -= fetches.NumRecords()
			fetches.EachPartition(func(p kgo.FetchTopicPartition) {
				select {
				case workers[int(p.Partition)%len(workers)] <- p.Records:
				case <-ctx.Done():
				}
			})
		}
		return nil
	})
	err = group.Wait()
	return time.Since(began), err
}

func decodeOnly() func(*kgo.Record) error {
	return func(r *kgo.Record) error {
		_, err := events.Decode(r)
		return err
	}
}

// decodeAndFold forgets a job when it ends: what comes of it later is folded from nothing.
func decodeAndFold() func(*kgo.Record) error {
	jobs := map[string]*events.Job{}
	return func(r *kgo.Record) error {
		e, err := events.Decode(r)
		if err != nil {
			return err
		}
		job := events.Fold(jobs[e.JobID], e)
		if job.GetPhase() == events.Phase_PHASE_OPEN {
			jobs[e.JobID] = job
		} else {
			delete(jobs, e.JobID)
		}
		return nil
	}
}

type peak struct {
	percent float64
	bytes   uint64
}

type rebuilt struct {
	rate  float64
	took  time.Duration
	cpu   time.Duration
	name  string
	peaks []peak
}

var (
	progressed = regexp.MustCompile(`^reading the log: +([0-9.]+)%`)
	built      = regexp.MustCompile(`^built (\S+): \d+ jobs of (\d+) records in (\S+),`)
)

// rebuild runs the command and notes its peak memory as it goes on.
func (b *bench) rebuild(ctx context.Context) (r rebuilt, err error) {
	cmd := exec.CommandContext(ctx, b.binary, "replay")
	cmd.Env = append(os.Environ(), "KAFKA_BROKERS="+strings.Join(b.brokers, ","), "DATABASE_URL="+b.database, "PIXTOOLS_DATA_DIR="+filepath.Join(b.dir, "none"))
	var out bytes.Buffer
	cmd.Stdout = &out
	told, err := cmd.StderrPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, err
	}
	// What the system says of a process that has ended counts its parent's memory, too, so it
	// is looked at while it runs.
	var last atomic.Uint64
	watching, done := context.WithCancel(ctx)
	defer done()
	go func() {
		for tick := time.NewTicker(20 * time.Millisecond); watching.Err() == nil; <-tick.C {
			last.Store(max(last.Load(), peakOf(cmd.Process.Pid)))
		}
	}()
	lines, marks := bufio.NewScanner(io.TeeReader(told, os.Stderr)), []float64{10, 50}
	for lines.Scan() {
		if m := progressed.FindStringSubmatch(lines.Text()); m != nil {
			percent, _ := strconv.ParseFloat(m[1], 64)
			for len(marks) > 0 && percent >= marks[0] {
				marks = marks[1:]
				r.peaks = append(r.peaks, peak{percent, last.Load()})
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		return r, err
	}
	r.peaks = append(r.peaks, peak{100, last.Load()})
	r.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	m := built.FindStringSubmatch(out.String())
	if m == nil {
		return r, fmt.Errorf("the command says %q", out.String())
	}
	r.name = m[1]
	if r.took, err = time.ParseDuration(m[3]); err != nil {
		return r, err
	}
	r.rate = b.rate(r.took)
	return r, nil
}

// peakOf is the most memory that a process has had so far (Linux); 0 where nobody knows.
func peakOf(pid int) uint64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

type copied struct {
	rows int64
	took time.Duration
}

// copyRaw takes the rebuilt rows out, and measures copying them into a table without
// indexes, on as many connections as there are cores.
func (b *bench) copyRaw(ctx context.Context, schema string) (c copied, err error) {
	conn, err := pgx.Connect(ctx, b.database)
	if err != nil {
		return c, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, statement := range []string{"CREATE SCHEMA bench", "CREATE TABLE bench.jobs (LIKE " + schema + ".jobs)", "CHECKPOINT"} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return c, err
		}
	}
	n := runtime.NumCPU()
	var files []string
	for i := range n {
		name := filepath.Join(b.dir, fmt.Sprint("rows-", i))
		rows, err := takeOut(ctx, conn, name, fmt.Sprintf("SELECT * FROM %s.jobs WHERE abs(uuid_hash(job_id)::bigint) %% %d = %d", schema, n, i))
		if err != nil {
			return c, err
		}
		c.rows += rows
		files = append(files, name)
	}
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range files {
		group.Go(func() error { return b.copyFile(ctx, name) })
	}
	err = group.Wait()
	c.took = time.Since(began)
	return c, err
}

func takeOut(ctx context.Context, conn *pgx.Conn, name, query string) (rows int64, err error) {
	file, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	tag, err := conn.PgConn().CopyTo(ctx, file, "COPY ("+query+") TO STDOUT (FORMAT binary)")
	return tag.RowsAffected(), errors.Join(err, file.Close())
}

func (b *bench) copyFile(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, b.database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "SET synchronous_commit = off"); err != nil { // as the rebuild
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = conn.PgConn().CopyFrom(ctx, file, "COPY bench.jobs FROM STDIN (FORMAT binary)")
	return err
}

func cpuName() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name\t: "); ok {
			return strings.TrimSpace(name)
		}
	}
	return runtime.GOARCH
}

// load is the machine's load, which tells how far figures can be trusted.
func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(raw))[:3], " ")
}
