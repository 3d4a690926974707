package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
	"github.com/pixtools/pixtools/projections"
)

func main() {
	count := flag.Int("events", 1_000_000, "")
	prof := flag.String("prof", "", "")
	flag.Parse()
	ctx := context.Background()
	debug.SetGCPercent(400)
	c, err := testenv.StartKafka("", 1)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Stop()
	pg, err := testenv.StartPostgres()
	if err != nil {
		log.Fatal(err)
	}
	defer pg.Stop()
	opts := []kgo.Opt{kgo.SeedBrokers(c.Brokers()...)}
	client, err := kgo.NewClient(append(opts, kgo.ProducerLinger(50*time.Millisecond), kgo.ProducerBatchCompression(kgo.ZstdCompression()), kgo.MaxBufferedRecords(50000))...)
	if err != nil {
		log.Fatal(err)
	}
	if err := kafka.EnsureTopic(ctx, client, kafka.Topic{Name: events.Topic, Partitions: 12, Replication: 1}); err != nil {
		log.Fatal(err)
	}
	id, err := kafka.TopicID(ctx, client, events.Topic)
	if err != nil {
		log.Fatal(err)
	}
	began := time.Now()
	size, err := generate(ctx, client, *count, 2, func(int64) {})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("generated", time.Since(began), float64(*count)/time.Since(began).Seconds(), size/int64(*count))
	var cfg projections.Config
	var rcfg projections.ReplayConfig
	e := env.Options{Environment: env.ToMap(append(os.Environ(), "DATABASE_URL="+pg.URL))}
	_ = env.ParseWithOptions(&cfg, e)
	_ = env.ParseWithOptions(&rcfg, e)
	r, err := projections.NewReplayer(rcfg, cfg, id, slog.Default(), opts...)
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		runtime.GC()
		if *prof != "" {
			f, _ := os.Create(*prof)
			_ = pprof.StartCPUProfile(f)
		}
		began = time.Now()
		b, err := r.Build(ctx, projections.Until{}, func(projections.Progress) {})
		if err != nil {
			log.Fatal(err)
		}
		pprof.StopCPUProfile()
		fmt.Printf("%+v %.0f/s\n", b, float64(b.Records)/b.Took.Seconds())
		s, _ := os.ReadFile("/proc/self/status")
		_ = s
	}
	all, _ := r.Schemas(ctx)
	fmt.Printf("%+v\n", all)
}
