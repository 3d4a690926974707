package kafka

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Config is what every Kafka client of the program shares.
type Config struct {
	// Brokers are host:port addresses to find the cluster by; one that answers is enough.
	Brokers  []string `env:"KAFKA_BROKERS"`
	ClientID string   `env:"KAFKA_CLIENT_ID" envDefault:"pixtools"`

	DialTimeout time.Duration `env:"KAFKA_DIAL_TIMEOUT" envDefault:"3s"`
	// DeliveryTimeout bounds how long a publish waits for its acknowledgement.
	DeliveryTimeout time.Duration `env:"KAFKA_DELIVERY_TIMEOUT" envDefault:"5s"`
	// SubmitTimeout is that bound where a client of the API waits: it is to hear within 2 s that Kafka is away.
	SubmitTimeout time.Duration `env:"KAFKA_SUBMIT_TIMEOUT" envDefault:"1500ms"`
	// What a producer holds that is not acknowledged yet; a publish beyond it waits, within DeliveryTimeout.
	MaxBufferedRecords int `env:"KAFKA_MAX_BUFFERED_RECORDS" envDefault:"10000"`
	MaxBufferedBytes   int `env:"KAFKA_MAX_BUFFERED_BYTES" envDefault:"67108864"`
	// MaxBatchBytes must not exceed the topic's max.message.bytes; a record larger than it is refused.
	MaxBatchBytes int32 `env:"KAFKA_MAX_BATCH_BYTES" envDefault:"1000000"`
}

// SubscriberConfig is how one consumer group reads. The functions and the options
// at the end are set in code only.
type SubscriberConfig struct {
	Group string

	// SessionTimeout: the group gives a member's partitions away when it heard nothing for so long.
	// Heartbeats are sent beside the handlers, so a slow handler never reaches it.
	SessionTimeout    time.Duration `env:"KAFKA_CONSUMER_SESSION_TIMEOUT" envDefault:"10s"`
	HeartbeatInterval time.Duration `env:"KAFKA_CONSUMER_HEARTBEAT_INTERVAL" envDefault:"2s"`
	// RebalanceTimeout: how long the group waits for a member to hand its partitions over.
	RebalanceTimeout time.Duration `env:"KAFKA_CONSUMER_REBALANCE_TIMEOUT" envDefault:"30s"`
	// How long handlers may still finish, before they are cancelled: DrainTimeout when a partition is
	// revoked, and then the new owner waits for them; CloseTimeout when the subscriber closes.
	DrainTimeout   time.Duration `env:"KAFKA_CONSUMER_DRAIN_TIMEOUT" envDefault:"10s"`
	CloseTimeout   time.Duration `env:"KAFKA_CONSUMER_CLOSE_TIMEOUT" envDefault:"10s"`
	CommitInterval time.Duration `env:"KAFKA_CONSUMER_COMMIT_INTERVAL" envDefault:"5s"`

	// Messages that handlers hold at once: of one partition, and of the whole subscription.
	WorkersPerPartition int `env:"KAFKA_CONSUMER_WORKERS_PER_PARTITION" envDefault:"8"`
	MaxInFlight         int `env:"KAFKA_CONSUMER_MAX_IN_FLIGHT" envDefault:"32"`

	// Fetching of a partition pauses at any of these and resumes at half of all. One poll may
	// overshoot them, by pollRecords records at most.
	//
	// Pending records are read and not done. A key that keeps failing holds its records here. Half of
	// them should be work for longer than fetchMaxWait.
	MaxPendingRecords int `env:"KAFKA_CONSUMER_MAX_PENDING_RECORDS" envDefault:"1024"`
	MaxPendingBytes   int `env:"KAFKA_CONSUMER_MAX_PENDING_BYTES" envDefault:"4194304"`
	// Uncommitted records reach from the oldest that is not done to the newest that was read: what a
	// restart reads again.
	MaxUncommittedRecords int `env:"KAFKA_CONSUMER_MAX_UNCOMMITTED_RECORDS" envDefault:"10000"`

	// After a Nack the same record comes again after a random time between RedeliveryMin and a ceiling
	// that doubles with each Nack up to RedeliveryMax.
	RedeliveryMin time.Duration `env:"KAFKA_CONSUMER_REDELIVERY_MIN" envDefault:"200ms"`
	RedeliveryMax time.Duration `env:"KAFKA_CONSUMER_REDELIVERY_MAX" envDefault:"30s"`
	// MaxDeliveries of one record, then GiveUp is called. 0: no limit.
	MaxDeliveries int `env:"KAFKA_CONSUMER_MAX_DELIVERIES" envDefault:"0"`

	// Isolation of the group's reads; the zero value reads uncommitted.
	Isolation kgo.IsolationLevel

	// Filter says which records concern the group; the others are done without a delivery. It sees
	// every record when it is read, in offset order and before its key's turn, so it may also notice
	// early what makes queued work pointless. It runs in the poll loop: it must be quick and not block.
	Filter func(*kgo.Record) bool

	// CatchUp, once per assignment and before the first delivery, gets every record (also those that
	// Filter drops) from the group's position to the end the partition has then. An error, its own or
	// one that records yields, makes it run again from the start, after a backoff. It is called when
	// the first record arrives, so that an idle partition costs nothing.
	CatchUp func(ctx context.Context, topic string, partition int32, records iter.Seq2[*kgo.Record, error]) error

	// Released tells that a partition is gone and its handlers have ended, or overran DrainTimeout.
	Released func(topic string, partition int32)

	// GiveUp takes a record that was nacked MaxDeliveries times, as into a dead letter topic. After nil
	// the record is done; after an error it is tried again, with backoff.
	GiveUp func(ctx context.Context, record *kgo.Record, deliveries int) error

	// ClientOpts come last when the group's client is made.
	ClientOpts []kgo.Opt
}

// DefaultConfig is the configuration of an empty environment.
func DefaultConfig(brokers ...string) Config {
	c := defaults[Config]()
	c.Brokers = brokers
	return c
}

// DefaultSubscriberConfig is the configuration of an empty environment.
func DefaultSubscriberConfig(group string) SubscriberConfig {
	c := defaults[SubscriberConfig]()
	c.Group = group
	return c
}

func defaults[T any]() T {
	// An empty environment has no fault but one of the tags themselves.
	return env.Must(env.ParseAsWithOptions[T](env.Options{Environment: map[string]string{}}))
}

// Validate reports every fault at once, by the name of the variable.
func (c Config) Validate() error {
	var faults []error
	if len(c.Brokers) == 0 {
		faults = append(faults, errors.New("KAFKA_BROKERS is empty: name at least one host:port"))
	}
	for _, broker := range c.Brokers {
		host, port, err := net.SplitHostPort(broker)
		number, numberErr := strconv.ParseUint(port, 10, 16)
		if err != nil || numberErr != nil || number == 0 || host == "" || strings.ContainsAny(host, "/ ") {
			faults = append(faults, fmt.Errorf("KAFKA_BROKERS names %q: use host:port, several with commas between", broker))
		}
	}
	return errors.Join(append(faults,
		within("KAFKA_DIAL_TIMEOUT", c.DialTimeout, 100*time.Millisecond, time.Minute),
		within("KAFKA_DELIVERY_TIMEOUT", c.DeliveryTimeout, 100*time.Millisecond, 10*time.Minute),
		within("KAFKA_SUBMIT_TIMEOUT", c.SubmitTimeout, 100*time.Millisecond, 10*time.Minute),
		within("KAFKA_MAX_BUFFERED_RECORDS", c.MaxBufferedRecords, 1, 1_000_000),
		within("KAFKA_MAX_BUFFERED_BYTES", c.MaxBufferedBytes, 1<<20, 4<<30),
		within("KAFKA_MAX_BATCH_BYTES", c.MaxBatchBytes, 1<<10, 64<<20),
	)...)
}

// commitTimeout bounds the last commit of partitions that are handed over.
const commitTimeout = 5 * time.Second

// Validate reports every fault at once, by the name of the variable.
func (c SubscriberConfig) Validate() error {
	faults := []error{
		within("KAFKA_CONSUMER_SESSION_TIMEOUT", c.SessionTimeout, 500*time.Millisecond, 30*time.Minute),
		within("KAFKA_CONSUMER_HEARTBEAT_INTERVAL", c.HeartbeatInterval, 50*time.Millisecond, c.SessionTimeout/2),
		within("KAFKA_CONSUMER_DRAIN_TIMEOUT", c.DrainTimeout, 10*time.Millisecond, 10*time.Minute),
		within("KAFKA_CONSUMER_CLOSE_TIMEOUT", c.CloseTimeout, 10*time.Millisecond, 10*time.Minute),
		// A member that hands over later than the group waits is thrown out, and its commit refused.
		within("KAFKA_CONSUMER_REBALANCE_TIMEOUT", c.RebalanceTimeout, c.DrainTimeout+cancelGrace+commitTimeout, time.Hour),
		within("KAFKA_CONSUMER_COMMIT_INTERVAL", c.CommitInterval, 100*time.Millisecond, time.Minute),
		within("KAFKA_CONSUMER_WORKERS_PER_PARTITION", c.WorkersPerPartition, 1, 10_000),
		within("KAFKA_CONSUMER_MAX_IN_FLIGHT", c.MaxInFlight, 1, 100_000),
		within("KAFKA_CONSUMER_MAX_PENDING_RECORDS", c.MaxPendingRecords, c.WorkersPerPartition, 1_000_000),
		within("KAFKA_CONSUMER_MAX_PENDING_BYTES", c.MaxPendingBytes, 1<<10, 1<<30),
		within("KAFKA_CONSUMER_MAX_UNCOMMITTED_RECORDS", c.MaxUncommittedRecords, c.MaxPendingRecords, 10_000_000),
		within("KAFKA_CONSUMER_REDELIVERY_MIN", c.RedeliveryMin, time.Millisecond, c.RedeliveryMax),
		within("KAFKA_CONSUMER_REDELIVERY_MAX", c.RedeliveryMax, time.Millisecond, time.Hour),
		within("KAFKA_CONSUMER_MAX_DELIVERIES", c.MaxDeliveries, 0, 1_000_000),
	}
	if c.Group == "" {
		faults = append(faults, errors.New("the consumer group has no name: set Group"))
	}
	if c.MaxDeliveries > 0 && c.GiveUp == nil {
		faults = append(faults, errors.New("KAFKA_CONSUMER_MAX_DELIVERIES is set, but this group has nowhere to put such records (GiveUp): set it to 0"))
	}
	return errors.Join(faults...)
}

func within[T int | int32 | time.Duration](variable string, value, low, high T) error {
	if value < low || value > high {
		return fmt.Errorf("%s is %v: set it between %v and %v", variable, value, low, high)
	}
	return nil
}
