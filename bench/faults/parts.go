package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pixtools/pixtools/internal/testenv"
)

// bucket is the one that the roles use.
const bucket = "pixtools-faults"

// parts are the real servers of a run.
type parts struct {
	kafka    *testenv.KafkaCluster
	brokers  int
	postgres *testenv.PostgresServer
	redis    *testenv.RedisServer
	s3       *testenv.S3Server
}

func startParts(brokers int) (p *parts, err error) {
	p = &parts{brokers: brokers}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	if p.kafka, err = testenv.StartKafka("", brokers); err != nil {
		return p, err
	}
	if p.postgres, err = testenv.StartPostgres(); err != nil {
		return p, err
	}
	if p.redis, err = testenv.StartRedis(); err != nil {
		return p, err
	}
	p.s3, err = testenv.StartS3()
	return p, err
}

func (p *parts) stop() {
	if p.kafka != nil {
		p.kafka.Stop()
	}
	if p.postgres != nil {
		p.postgres.Stop()
	}
	if p.redis != nil {
		p.redis.Stop()
	}
	if p.s3 != nil {
		p.s3.Stop()
	}
}

// partitions of the log: few, so that each has much to do.
const partitions = 6

// environment is that of every role. The times are shorter than their defaults where the
// default would make a run wait: for the dead to be noticed, and for the next try.
func (p *parts) environment(logLevel string) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "HOST=127.0.0.1", "LOG_LEVEL=" + logLevel,
		"API_AUTH=off", "KAFKA_BROKERS=" + strings.Join(p.kafka.Brokers(), ","), fmt.Sprintf("KAFKA_PARTITIONS=%d", partitions),
		"DATABASE_URL=" + p.postgres.URL, "REDIS_URL=redis://" + p.redis.Addr + "/0",
		"AWS_ENDPOINT_URL=" + p.s3.Endpoint, "AWS_ACCESS_KEY_ID=" + p.s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + p.s3.SecretKey,
		"AWS_S3_BUCKET=" + bucket, "DRAIN_DELAY=0s",
		"KAFKA_CONSUMER_SESSION_TIMEOUT=3s", "KAFKA_CONSUMER_HEARTBEAT_INTERVAL=500ms", "KAFKA_CONSUMER_REDELIVERY_MAX=5s",
		fmt.Sprintf("PROCESS_MAX_STARTS=%d", maxStarts),
		"IDEMPOTENCY_SETTLE=30s",
		"CONVERT_CONCURRENCY=2", "DENOISE_TILE=256", "DENOISE_THREADS=1",
	}
}

// maxStarts bounds the attempts that kills may take from one operation.
const maxStarts = 100

// client reads the log; it does not write.
func (p *parts) client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(p.kafka.Brokers()...), kgo.DisableClientMetrics(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(250 * time.Millisecond),
		kgo.MetadataMinAge(250 * time.Millisecond), kgo.MetadataMaxAge(5 * time.Second)}, opts...)...)
}

// inSync waits until every partition has all of its replicas: then one more broker may go.
func (p *parts) inSync(ctx context.Context) error {
	client, err := p.client()
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		// A request of our own: kadm would answer from the client's memory.
		request := kmsg.NewPtrMetadataRequest()
		request.Topics = nil // all
		metadata, err := request.RequestWith(ctx, client)
		behind := 0
		if err == nil {
			for _, topic := range metadata.Topics {
				for _, partition := range topic.Partitions {
					if len(partition.ISR) < len(partition.Replicas) {
						behind++
					}
				}
			}
		}
		if err == nil && behind == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d partitions are short of replicas", behind), err)
		case <-time.After(500 * time.Millisecond): // before the next look
		}
	}
}
