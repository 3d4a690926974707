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
	// Brokers are the addresses, host:port with commas between, to find the cluster by; one that
	// answers is enough. Unset: Kafka runs embedded.
	Brokers []string `env:"KAFKA_BROKERS" example:"kafka-1:9092,kafka-2:9092"`
	// ClientID is how the brokers' logs, metrics and quotas name this program.
	ClientID string `env:"KAFKA_CLIENT_ID" envDefault:"pixtools"`

	// TLS is whether connections to the brokers are encrypted, and their certificates checked.
	TLS bool `env:"KAFKA_TLS" envDefault:"false" range:"true or false" example:"true"`
	// CAFile has the authorities, in PEM, that the brokers' certificates must be from. Empty: those of
	// the system.
	// Beyond it: a broker with another certificate ends the program at its start.
	CAFile string `env:"KAFKA_CA_FILE" example:"/etc/ssl/private-ca.pem"`
	// CertFile has the certificate, in PEM, by which brokers know this program, if they ask for one.
	// Together with KeyFile; both are read anew for each connection.
	CertFile string `env:"KAFKA_CLIENT_CERT_FILE"`
	// KeyFile has the key of CertFile, in PEM.
	KeyFile string `env:"KAFKA_CLIENT_KEY_FILE"`
	// SASLMechanism is how to log in. Empty: not at all. PLAIN sends the password itself: use it with TLS.
	SASLMechanism string `env:"KAFKA_SASL_MECHANISM" range:"SCRAM-SHA-512, SCRAM-SHA-256, PLAIN" example:"SCRAM-SHA-512"`
	// SASLUsername is who logs in.
	// Beyond it: brokers that refuse it end the program at its start.
	SASLUsername string `env:"KAFKA_SASL_USERNAME" example:"pixtools"`
	// SASLPassword belongs to SASLUsername.
	SASLPassword string `env:"KAFKA_SASL_PASSWORD" secret:"value" example:"change-me"`

	// DialTimeout bounds opening one connection.
	// Beyond it: another broker is tried.
	DialTimeout time.Duration `env:"KAFKA_DIAL_TIMEOUT" envDefault:"3s" range:"100ms to 1m"`
	// DeliveryTimeout bounds how long a processor's publish waits for its acknowledgement.
	// Beyond it: the record comes again.
	DeliveryTimeout time.Duration `env:"KAFKA_DELIVERY_TIMEOUT" envDefault:"5s" range:"100ms to 10m"`
	// SubmitTimeout is that bound where a client of the API waits: it is to hear within 2 s that Kafka
	// is away.
	// Beyond it: 503 with Retry-After; the event may be in the log or not.
	SubmitTimeout time.Duration `env:"KAFKA_SUBMIT_TIMEOUT" envDefault:"1500ms" range:"100ms to 10m"`
	// MaxBufferedRecords is how many records a producer holds that are not acknowledged yet.
	// Beyond it: publishes wait, within DeliveryTimeout.
	MaxBufferedRecords int `env:"KAFKA_MAX_BUFFERED_RECORDS" envDefault:"10000" range:"1 to 1000000" unit:"records"`
	// MaxBufferedBytes is the same in bytes.
	// Beyond it: as with MaxBufferedRecords.
	MaxBufferedBytes int64 `env:"KAFKA_MAX_BUFFERED_BYTES" envDefault:"67108864" range:"1 MiB to 4 GiB" unit:"bytes"`
	// MaxBatchBytes bounds a batch of a producer. It must not exceed the topic's max.message.bytes.
	// Beyond it: a larger record is refused.
	MaxBatchBytes int32 `env:"KAFKA_MAX_BATCH_BYTES" envDefault:"1000000" range:"1 KiB to 64 MiB" unit:"bytes"`
}

// SubscriberConfig is how one consumer group reads. The functions and the options
// at the end are set in code only.
type SubscriberConfig struct {
	Group string

	// SessionTimeout is how long the group waits for a sign of a member. Heartbeats are sent beside
	// the handlers, so a slow handler never reaches it.
	// Beyond it: the partitions go to others.
	SessionTimeout time.Duration `env:"KAFKA_CONSUMER_SESSION_TIMEOUT" envDefault:"10s" range:"500ms to 30m"`
	// HeartbeatInterval is how often a member gives that sign, and by when it hears that another one
	// has come or gone: for so long the partitions of that one may stand still.
	HeartbeatInterval time.Duration `env:"KAFKA_CONSUMER_HEARTBEAT_INTERVAL" envDefault:"500ms" range:"50ms to half of KAFKA_CONSUMER_SESSION_TIMEOUT"`
	// RebalanceTimeout is how long the group waits for a member to hand its partitions over. The role
	// `ml` has DENOISE_REBALANCE_TIMEOUT in its place.
	// Beyond it: the member is thrown out.
	RebalanceTimeout time.Duration `env:"KAFKA_CONSUMER_REBALANCE_TIMEOUT" envDefault:"30s" range:"KAFKA_CONSUMER_DRAIN_TIMEOUT and 7s to 1h"`
	// DrainTimeout is how long handlers may still finish when a partition is revoked; the new owner
	// waits for them. The role `ml` has 10 s less than DENOISE_REBALANCE_TIMEOUT in its place.
	// Beyond it: they are cancelled; 2 s later their acks no longer count.
	DrainTimeout time.Duration `env:"KAFKA_CONSUMER_DRAIN_TIMEOUT" envDefault:"10s" range:"10ms to 10m"`
	// CloseTimeout is how long handlers may still finish when the program stops. It is less than
	// STOP_TIMEOUT.
	// Beyond it: as with DrainTimeout.
	CloseTimeout time.Duration `env:"KAFKA_CONSUMER_CLOSE_TIMEOUT" envDefault:"10s" range:"10ms to 10m"`
	// CommitInterval is how often what is done is committed.
	CommitInterval time.Duration `env:"KAFKA_CONSUMER_COMMIT_INTERVAL" envDefault:"5s" range:"100ms to 1m"`

	// WorkersPerPartition is how many messages of one partition handlers hold at once.
	// Beyond it: further keys wait.
	WorkersPerPartition int `env:"KAFKA_CONSUMER_WORKERS_PER_PARTITION" envDefault:"8" range:"1 to 10000" unit:"messages"`
	// MaxInFlight is how many messages of one operation handlers hold at once. The role `ml` has
	// DENOISE_CONCURRENCY and one more in its place.
	// Beyond it: further keys wait.
	MaxInFlight int `env:"KAFKA_CONSUMER_MAX_IN_FLIGHT" envDefault:"32" range:"1 to 100000" unit:"messages"`

	// MaxPendingRecords bounds what of a partition is read and not done. A key that keeps failing
	// holds its records here. Half of them should be work for longer than fetchMaxWait, 250 ms.
	// Beyond it: fetching of the partition pauses, until it is at half of all three bounds; one poll
	// may overshoot them.
	MaxPendingRecords int `env:"KAFKA_CONSUMER_MAX_PENDING_RECORDS" envDefault:"1024" range:"KAFKA_CONSUMER_WORKERS_PER_PARTITION to 1000000" unit:"records"`
	// MaxPendingBytes is the same in bytes.
	// Beyond it: as with MaxPendingRecords.
	MaxPendingBytes int `env:"KAFKA_CONSUMER_MAX_PENDING_BYTES" envDefault:"4194304" range:"1 KiB to 1 GiB" unit:"bytes"`
	// MaxUncommittedRecords bounds what reaches from the oldest that is not done to the newest that was read: what a
	// restart reads again.
	// Beyond it: as with MaxPendingRecords.
	MaxUncommittedRecords int `env:"KAFKA_CONSUMER_MAX_UNCOMMITTED_RECORDS" envDefault:"10000" range:"KAFKA_CONSUMER_MAX_PENDING_RECORDS to 10000000" unit:"records"`

	// RedeliveryMin is the shortest pause before a record that failed comes again. The pause is
	// random, below a ceiling that doubles with each failure.
	RedeliveryMin time.Duration `env:"KAFKA_CONSUMER_REDELIVERY_MIN" envDefault:"200ms" range:"1ms to KAFKA_CONSUMER_REDELIVERY_MAX"`
	// RedeliveryMax is where that ceiling ends.
	RedeliveryMax time.Duration `env:"KAFKA_CONSUMER_REDELIVERY_MAX" envDefault:"30s" range:"1ms to 1h"`
	// MaxDeliveries is how often a record is delivered before it is given up (GiveUp); 0: no limit. No
	// group of this program gives one up, so it must be 0.
	// Beyond it: the program ends.
	MaxDeliveries int `env:"KAFKA_CONSUMER_MAX_DELIVERIES" envDefault:"0" range:"0 to 0" unit:"deliveries"`

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
	_, err := c.security()
	return errors.Join(append(faults, err,
		within("KAFKA_DIAL_TIMEOUT", c.DialTimeout, 100*time.Millisecond, time.Minute),
		within("KAFKA_DELIVERY_TIMEOUT", c.DeliveryTimeout, 100*time.Millisecond, 10*time.Minute),
		within("KAFKA_SUBMIT_TIMEOUT", c.SubmitTimeout, 100*time.Millisecond, 10*time.Minute),
		within("KAFKA_MAX_BUFFERED_RECORDS", c.MaxBufferedRecords, 1, 1_000_000),
		within[int64]("KAFKA_MAX_BUFFERED_BYTES", c.MaxBufferedBytes, 1<<20, 4<<30),
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

func within[T int | int32 | int64 | time.Duration](variable string, value, low, high T) error {
	if value < low || value > high {
		return fmt.Errorf("%s is %v: set it between %v and %v", variable, value, low, high)
	}
	return nil
}
