// Command replay measures rebuilding the read model: it writes a synthetic log, and then, in
// one run, reads and decodes it, folds it as well, rebuilds the read model from it with
// `pixtools replay`, and copies the same rows raw. It prints the rates beside each other and
// how much memory the rebuild had used at a tenth, at half and at the end of the log.
//
//	go run ./bench/replay -events=10000000
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
)

type options struct {
	binary, broker                 string
	events, partitions, batchBytes int
}

func main() {
	embedded.ChildMain()    // PostgreSQL's keeper is this same binary
	debug.SetGCPercent(400) // as pixtools has it
	var o options
	flag.StringVar(&o.binary, "binary", "build/bin/pixtools", "what to measure")
	flag.StringVar(&o.broker, "broker", "kafka", "kafka: Apache Kafka; embedded: the embedded broker")
	flag.IntVar(&o.events, "events", 1_000_000, "how long the log is")
	flag.IntVar(&o.partitions, "partitions", 12, "of the log")
	flag.IntVar(&o.batchBytes, "batch-bytes", 1_000_000, "the most that a batch holds: a log that was written slowly has small ones")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		log.Fatal("bench: ", err)
	}
}

// bench is one run.
type bench struct {
	options
	brokers  []string
	database string
	dir      string
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("/var/tmp", "pixtools-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // embedded Postgres runs as another user where we are root
		return err
	}
	b := &bench{options: o, dir: dir}
	needs := embedded.Needs{Postgres: true, Kafka: o.broker == "embedded"}
	parts, err := embedded.Start(ctx, embedded.Config{DataDir: filepath.Join(dir, "data"), DiskReserve: 64 << 20, Bucket: "bench", Region: "us-east-1"}, needs, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { _ = parts.Stop(context.WithoutCancel(ctx)) }()
	b.brokers, b.database = parts.Brokers, parts.DatabaseURL
	if o.broker == "kafka" {
		cluster, err := testenv.StartKafka("", 1)
		if err != nil {
			return err
		}
		defer cluster.Stop()
		b.brokers = cluster.Brokers()
	}
	fmt.Printf("machine              %s, %d cores, %s, load %s\n", cpuName(), runtime.NumCPU(), runtime.Version(), load())
	if err := b.write(ctx); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return b.measure(ctx)
}

func (b *bench) write(ctx context.Context) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.ProducerLinger(50*time.Millisecond), kgo.ProducerBatchCompression(kgo.ZstdCompression()),
		kgo.ProducerBatchMaxBytes(int32(b.batchBytes)), kgo.MaxBufferedRecords(50_000))
	if err != nil {
		return err
	}
	defer client.Close()
	topic := kafka.Topic{Name: events.Topic, Partitions: int32(b.partitions), Replication: 1}
	if err := kafka.EnsureTopic(ctx, client, topic); err != nil {
		return err
	}
	began := time.Now()
	size, err := generate(ctx, client, b.events, runtime.NumCPU(), func(done int64) {
		fmt.Fprintf(os.Stderr, "writing the log: %d of %d events\n", done, b.events)
	})
	if err != nil {
		return err
	}
	fmt.Printf("log                  %d events of %d bytes, %d partitions, %s broker, batches up to %d bytes; written at %.0f/s\n",
		b.events, size/int64(b.events), b.partitions, b.broker, b.batchBytes, b.rate(time.Since(began)))
	return nil
}

func (b *bench) rate(took time.Duration) float64 { return float64(b.events) / took.Seconds() }

func (b *bench) measure(ctx context.Context) error {
	decode, err := b.read(ctx, decodeOnly)
	if err != nil {
		return err
	}
	fold, err := b.read(ctx, decodeAndFold)
	if err != nil {
		return err
	}
	rebuilt, err := b.rebuild(ctx)
	if err != nil {
		return err
	}
	raw, err := b.copyRaw(ctx, rebuilt.name)
	if err != nil {
		return err
	}
	show := func(what string, rate float64) {
		fmt.Printf("%-20s %8.0f events/s, rebuild / this: %.2f\n", what, rate, rebuilt.rate/rate)
	}
	show("read, decode", b.rate(decode))
	show("read, decode, fold", b.rate(fold))
	show("raw COPY of the rows", b.rate(raw.took))
	fmt.Printf("%-20s %8.0f events/s, in all %s; %d jobs, %.0f rows/s; raw COPY %.0f rows/s\n", "rebuild", rebuilt.rate, rebuilt.took.Round(time.Millisecond),
		raw.rows, float64(raw.rows)/rebuilt.took.Seconds(), float64(raw.rows)/raw.took.Seconds())
	fmt.Printf("CPU of the command   %.1f µs per event, without the broker's and PostgreSQL's\n", float64(rebuilt.cpu.Microseconds())/float64(b.events))
	for _, p := range rebuilt.peaks {
		fmt.Printf("peak memory at %3.0f%%  %d MiB\n", p.percent, p.bytes>>20)
	}
	fmt.Printf("load at the end      %s\n", load())
	return nil
}
