// Package embedded runs the parts of PixTools that nobody configured: a Kafka broker, Postgres, Redis
// and an S3 server, on loopback, under one data directory, each speaking its real protocol. The code
// above is given addresses and cannot tell; pointing a variable at the real thing moves one part away.
//
// Where each part runs, and why:
//
//   - Kafka (kfake) and Redis (miniredis) are libraries made for it and live in this process.
//   - Postgres is a program. It refuses to run as root, so this program starts itself once more as an
//     unprivileged child that looks after it.
//   - S3 (versitygw) is a library, but it changes the working directory of its process and allows one
//     instance a process, so it gets a child too.
//
// A child lives as long as its standard input is open. The kernel closes that when the parent ends,
// however it ends, so nothing stays behind a kill -9.
//
// What survives a kill -9 at any moment: every acknowledged Kafka record and group offset, every
// committed row, every stored object. Redis starts empty; nothing in it may be the only copy.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Names that are the same in every embedded installation.
const (
	databaseName = "pixtools"
	databaseUser = "pixtools"
	loopback     = "127.0.0.1"
)

// Config says where the parts keep their data and which ports they use.
type Config struct {
	// DataDir holds everything of the parts that run embedded; removing it is a fresh start.
	// Beyond it: a second process over it is refused.
	DataDir string `env:"PIXTOOLS_DATA_DIR" envDefault:"./data" example:"./data"`

	// KafkaPort is that of the embedded broker; 0 means the one noted in DataDir, drawn from 20000 to 29999 at
	// the first start. So addresses stay the same from run to run: a Kafka client can be pointed at
	// them, and signed links outlive a restart.
	// Beyond it: a port that is taken ends the program.
	KafkaPort int `env:"PIXTOOLS_EMBEDDED_KAFKA_PORT" range:"0 to 65535"`
	// PostgresPort is that of the embedded PostgreSQL, likewise.
	// Beyond it: as with KafkaPort.
	PostgresPort int `env:"PIXTOOLS_EMBEDDED_POSTGRES_PORT" range:"0 to 65535"`
	// RedisPort is that of the embedded Redis, likewise.
	// Beyond it: as with KafkaPort.
	RedisPort int `env:"PIXTOOLS_EMBEDDED_REDIS_PORT" range:"0 to 65535"`
	// S3Port is that of the embedded S3 server, likewise.
	// Beyond it: as with KafkaPort.
	S3Port int `env:"PIXTOOLS_EMBEDDED_S3_PORT" range:"0 to 65535"`

	// DiskReserve is what must be free on the disk of DataDir, in bytes, so that what was accepted comes to
	// its end: a quarter of it is never written to.
	// Beyond it: submissions are 507, and the process says that it is not ready, until there is room.
	DiskReserve int64 `env:"PIXTOOLS_DISK_RESERVE_BYTES" envDefault:"268435456" range:"67108864 to 1099511627776"`

	// PostgresCacheDir keeps the downloaded PostgreSQL programs between data directories.
	PostgresCacheDir string `env:"PIXTOOLS_POSTGRES_CACHE_DIR" derived:"pixtools/postgres in the user's cache directory, for root in /var/cache"`
	// PostgresBinariesDir is a PostgreSQL 15 already on this machine (it has `bin/pg_ctl`); nothing is
	// downloaded then.
	PostgresBinariesDir string `env:"PIXTOOLS_POSTGRES_BINARIES_DIR"`
	// PostgresRepository is a Maven mirror to download the programs from, for machines without the internet.
	PostgresRepository string `env:"PIXTOOLS_POSTGRES_REPOSITORY" secret:"url"`

	// Bucket of the embedded S3 server is named as a real one would be.
	Bucket string `env:"AWS_S3_BUCKET" envDefault:"pixtools"`
	// Region of the embedded S3 server, likewise.
	Region string `env:"AWS_REGION" envDefault:"us-east-1"`
}

// Validate reports every fault at once, by the name of the variable.
func (c Config) Validate() error {
	var faults []error
	if c.DataDir == "" {
		faults = append(faults, errors.New("PIXTOOLS_DATA_DIR is empty: name a directory"))
	}
	if c.Bucket == "" {
		faults = append(faults, errors.New("AWS_S3_BUCKET is empty: name a bucket"))
	}
	if c.DiskReserve < leastReserve || c.DiskReserve > mostReserve {
		faults = append(faults, fmt.Errorf("PIXTOOLS_DISK_RESERVE_BYTES is %d: it must be from %d to %d", c.DiskReserve, leastReserve, mostReserve))
	}
	taken := map[int]string{}
	for _, p := range c.ports() {
		if p.port < 0 || p.port > maxPort {
			faults = append(faults, fmt.Errorf("%s is %d: use 1 to %d, or 0 for the remembered port", p.variable, p.port, maxPort))
		}
		if other, ok := taken[p.port]; ok && p.port != 0 {
			faults = append(faults, fmt.Errorf("%s and %s are both %d: give each a port of its own", other, p.variable, p.port))
		}
		taken[p.port] = p.variable
	}
	return errors.Join(faults...)
}

type portVariable struct {
	variable string
	port     int
}

func (c Config) ports() []portVariable {
	return []portVariable{
		{"PIXTOOLS_EMBEDDED_KAFKA_PORT", c.KafkaPort},
		{"PIXTOOLS_EMBEDDED_POSTGRES_PORT", c.PostgresPort},
		{"PIXTOOLS_EMBEDDED_REDIS_PORT", c.RedisPort},
		{"PIXTOOLS_EMBEDDED_S3_PORT", c.S3Port},
	}
}

const (
	// leastReserve is enough for a quarter of it to hold a segment of PostgreSQL's write-ahead log, 16 MiB.
	leastReserve = 64 << 20
	mostReserve  = 1 << 40
)

// Needs names the parts to run: those without a configured address.
type Needs struct{ Kafka, Postgres, Redis, S3 bool }

// Parts are the running parts. A field is empty when its part was not asked for.
type Parts struct {
	Brokers     []string // as KAFKA_BROKERS would say it
	DatabaseURL string   // as DATABASE_URL
	RedisURL    string   // as REDIS_URL

	S3Endpoint  string // as AWS_ENDPOINT_URL
	S3AccessKey string
	S3SecretKey string
	S3Bucket    string // exists already
	S3Region    string

	log    *slog.Logger
	failed chan error
	// logLost: the broker failed to write something.
	logLost atomic.Bool

	mu    sync.Mutex // guards stops: the parts start at the same time
	stops []stop
	lock  *dirLock
}

// A stop ends one part. Kafka's writes a snapshot, so ctx may run out; what is lost then is start-up time.
type stop struct {
	part string
	fn   func(context.Context) error
}

// Start starts what is needed, all at the same time, and returns when every part answers.
// On an error nothing is left running.
func Start(ctx context.Context, cfg Config, needs Needs, log *slog.Logger) (*Parts, error) {
	p := &Parts{log: log, failed: make(chan error, 4)}
	if needs == (Needs{}) {
		return p, nil
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	// Children run elsewhere: the S3 server changes its working directory.
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("PIXTOOLS_DATA_DIR %q: %w", cfg.DataDir, err)
	}
	cfg.DataDir = dir
	if err := os.MkdirAll(dir, dataDirMode()); err != nil {
		return nil, fmt.Errorf("create the data directory: %w; set PIXTOOLS_DATA_DIR to one that can be written", err)
	}
	if err := cfg.checkRoom(); err != nil {
		return nil, err
	}
	if p.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if err := p.start(ctx, cfg, needs); err != nil {
		// The start may have been cut short by ctx, the clean-up must not be.
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return nil, errors.Join(err, p.Stop(stopCtx))
	}
	return p, nil
}

const (
	// stopTimeout bounds the clean-up after a failed start.
	stopTimeout = 15 * time.Second
	maxPort     = 65535
)

func (p *Parts) start(ctx context.Context, cfg Config, needs Needs) error {
	st, err := loadState(cfg)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	run := func(needed bool, name string, fn func(context.Context, Config, state) error) {
		if !needed {
			return
		}
		g.Go(func() error {
			began := time.Now()
			if err := fn(ctx, cfg, st); err != nil {
				return fmt.Errorf("embedded %s: %w", name, err)
			}
			p.log.Info("embedded part runs", "part", name, "took", time.Since(began).Round(time.Millisecond))
			return nil
		})
	}
	run(needs.Kafka, "kafka", p.startKafka)
	run(needs.Postgres, "postgres", p.startPostgres)
	run(needs.Redis, "redis", p.startRedis)
	run(needs.S3, "s3", p.startS3)
	return g.Wait()
}

// Stop ends every part, at the same time, and gives the data directory free. Stop the clients first:
// a consumer that leaves its group, or a transaction that ends, needs the broker.
func (p *Parts) Stop(ctx context.Context) error {
	p.mu.Lock()
	stops := p.stops
	p.stops = nil
	p.mu.Unlock()

	errs := make([]error, len(stops))
	var wg sync.WaitGroup
	for i, s := range stops {
		wg.Go(func() {
			if err := s.fn(ctx); err != nil {
				errs[i] = fmt.Errorf("stop embedded %s: %w", s.part, err)
			}
		})
	}
	wg.Wait()
	if p.lock != nil {
		p.lock.release()
		p.lock = nil
	}
	return errors.Join(errs...)
}

// Failed tells of a part that ended by itself, as when somebody killed Postgres. The program can then
// only stop: a part that is restarted under its clients would look like a fault of theirs.
func (p *Parts) Failed() <-chan error { return p.failed }

// fail never blocks: the first failure is the one that matters.
func (p *Parts) fail(err error) {
	select {
	case p.failed <- err:
	default:
	}
}

func (p *Parts) onStop(part string, fn func(context.Context) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stops = append(p.stops, stop{part, fn})
}

func address(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

func databaseURL(port int, password string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(databaseUser, password),
		Host:     address(port),
		Path:     databaseName,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}
