package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/handlers"
	"github.com/pixtools/pixtools/internal/audit"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/egress"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/legacy"
	"github.com/pixtools/pixtools/internal/registry"
	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/telemetry"
	"github.com/pixtools/pixtools/processors"
	"github.com/pixtools/pixtools/processors/denoiser"
	"github.com/pixtools/pixtools/processors/engine"
	"github.com/pixtools/pixtools/projections"
)

// config is everything that the environment sets, by the package it is for.
type config struct {
	// Host is the address to listen on.
	Host string `env:"HOST" derived:"127.0.0.1 while a part is embedded, else every interface" example:"0.0.0.0"`
	// Port is where HTTP is served.
	// Beyond it: a port that is taken ends the program.
	Port int `env:"PORT" envDefault:"8000" range:"1 to 65535" example:"8000"`
	// RedisURL is where Redis is: `redis://` or, with TLS, `rediss://`, with user and password where
	// it asks for them. Unset: it runs embedded.
	// Beyond it: the program ends where Redis refuses the password or TLS; where it does not answer,
	// all goes on without it.
	RedisURL string `env:"REDIS_URL" secret:"url" example:"redis://redis:6379/0"`
	// RedisCAFile has the authorities, in PEM, that Redis' certificate must be from. Empty: those of the
	// system.
	// Beyond it: a Redis with another certificate ends the program at its start.
	RedisCAFile string `env:"REDIS_CA_FILE"`
	// RedisCertFile has the certificate, in PEM, by which Redis knows this program, if it asks for one.
	// Together with RedisKeyFile; both are read anew for each connection.
	RedisCertFile string `env:"REDIS_CLIENT_CERT_FILE"`
	// RedisKeyFile has the key of RedisCertFile, in PEM.
	RedisKeyFile string `env:"REDIS_CLIENT_KEY_FILE"`
	// InstanceID names this process among those of its role, for ever: it is part of the saga's
	// transactional id.
	// Beyond it: two sagas that share it end one another's transactions.
	InstanceID string `env:"INSTANCE_ID" derived:"the host's name"`
	// RedisTimeout bounds one call: Redis only saves work, so it is not waited for.
	// Beyond it: Redis counts as away.
	RedisTimeout time.Duration `env:"REDIS_TIMEOUT" envDefault:"300ms" range:"1ms to 10s"`
	// Partitions is how many the log has, fixed for ever once it exists.
	// Beyond it: another number than the topic has ends the program.
	Partitions int32 `env:"KAFKA_PARTITIONS" derived:"48; 12 embedded" range:"1 to 10000" unit:"partitions"`
	// ChangelogPartitions is how many the saga's changelog has. Embedded it is 1, where each partition
	// that a transaction touches costs four syncs of one disk.
	// Beyond it: another number than the topic has ends the program.
	ChangelogPartitions int32 `env:"KAFKA_CHANGELOG_PARTITIONS" derived:"as KAFKA_PARTITIONS; 1 embedded" range:"1 to 10000" unit:"partitions"`
	// Replication is how many replicas topics are made with; 0 leaves it to the brokers' default. In
	// production use 3.
	// Beyond it: more than there are brokers: topics cannot be made; the program waits.
	Replication int16 `env:"KAFKA_REPLICATION_FACTOR" envDefault:"0" range:"0 to 100" unit:"replicas"`
	// MinISR is how many of the replicas a write must be in before it is acknowledged: the
	// `min.insync.replicas` that topics are made with; 0 leaves it to the brokers' default. In production
	// use 2 of 3. Of topics that are there it changes nothing; `pixtools prepare` says which have another.
	// Beyond it: no write is acknowledged while fewer replicas are in sync.
	MinISR int16 `env:"KAFKA_MIN_INSYNC_REPLICAS" envDefault:"0" range:"0 to KAFKA_REPLICATION_FACTOR" unit:"replicas"`
	// PrepareTimeout is for how long `pixtools prepare` waits for parts that are away.
	// Beyond it: it ends and says which did not come.
	PrepareTimeout time.Duration `env:"PREPARE_TIMEOUT" envDefault:"2m" range:"1s to 1h"`
	// Workers is how many conversions of one operation run at once; 0: one a core, of
	// those that the container may use.
	// Beyond it: further conversions wait.
	Workers int `env:"CONVERT_CONCURRENCY" envDefault:"0" range:"0 to 1024" unit:"conversions"`
	// DrainDelay is for how long a process with the role `api`, asked to stop, still answers while
	// /api/readyz says no: longer than it takes whoever shares requests out to notice. Nobody
	// shares them out where a part runs embedded: there it is 0.
	// Beyond it: no connection is taken any more, and STOP_TIMEOUT begins.
	DrainDelay time.Duration `env:"DRAIN_DELAY" envDefault:"5s" range:"0s to 5m"`
	// StopTimeout bounds a graceful stop: that of requests and handlers, and again that of embedded
	// parts. It is more than KAFKA_CONSUMER_CLOSE_TIMEOUT.
	// Beyond it: they are cut off.
	StopTimeout time.Duration `env:"STOP_TIMEOUT" envDefault:"25s" range:"1s or more"`
	// LogLevel is the least that is logged, as JSON on standard error.
	// Beyond it: the program ends.
	LogLevel string `env:"LOG_LEVEL" envDefault:"warn" range:"debug, info, warn, error" example:"info"`
	level    slog.Level

	// Kafka clients
	Kafka kafka.Config
	// The database and the read model
	Read projections.Config
	// S3
	Blob blob.Config
	// HTTP and pictures
	API api.Config
	// Embedded parts
	Embedded embedded.Config
	// Processors
	Processor processors.WorkerConfig
	// Processors' consumer groups
	Consumer kafka.SubscriberConfig
	// Lag of consumer groups
	Lag kafka.LagConfig
	// The picture engine
	Engine engine.Config
	// The denoiser
	Denoise denoiser.Config
	// The saga
	Saga handlers.SagaConfig
	// Webhooks
	Webhooks handlers.WebhooksConfig
	// What webhooks are sent with
	Outside egress.Config
	// Dead letters
	DeadLetters projections.DeadLetterConfig
	// The schema registry
	Registry registry.Config
	// Replays
	Replay projections.ReplayConfig
	// Verifying
	Verify audit.Config
	// Doing again
	Again processors.AgainConfig
	// Reprocessing
	Reprocess processors.ReprocessConfig
	// Telemetry
	Telemetry telemetry.Config
	// The janitor
	Janitor handlers.JanitorConfig
	// Tenants' keys
	Secrets secrets.Config
	// Importing from the Python service
	Legacy legacy.Config
}

// loadConfig reads the environment and reports every fault in it at once.
func loadConfig() (config, error) {
	l := load(env.ToMap(os.Environ()))
	return l.config, l.fault()
}

// loaded is a configuration, where it comes from, and what is wrong with it.
type loaded struct {
	config
	// sources of the variables; each is one of those below.
	sources map[string]string
	// unknown tells of variables that look like misspelt ones.
	unknown []string
	faults  []error
}

// fault is everything that is wrong.
func (l loaded) fault() error {
	if len(l.faults) == 0 {
		return nil
	}
	return fmt.Errorf("configuration:\n%w", errors.Join(l.faults...))
}

// Where the value of a variable comes from.
const (
	fromDefault     = "default"
	fromEnvironment = "environment"
	fromFile        = "file"     // that NAME_FILE names
	fromOthers      = "derived"  // from other variables, or from the machine
	fromEmbedded    = "embedded" // the address of a part that runs embedded
)

func load(environment map[string]string) loaded {
	if environment == nil {
		environment = map[string]string{} // nil would mean that of the process
	}
	l := loaded{sources: map[string]string{}}
	c := &l.config
	environment, l.faults = l.filed(environment)
	readable, faults := readableEnvironment(environment)
	l.faults = append(l.faults, faults...)
	if err := env.ParseWithOptions(c, env.Options{Environment: readable}); err != nil {
		l.faults = append(l.faults, err)
		return l
	}
	l.unknown = misspelt(environment)
	before := map[string]string{}
	eachVariable(reflect.ValueOf(*c), func(field reflect.StructField, value reflect.Value) {
		name := field.Tag.Get("env")
		before[name] = plainText(value)
		if l.sources[name] == "" && environment[name] != "" {
			l.sources[name] = fromEnvironment
		}
	})
	l.faults = append(l.faults, c.check()...)
	c.derive()
	eachVariable(reflect.ValueOf(*c), func(field reflect.StructField, value reflect.Value) {
		name := field.Tag.Get("env")
		switch {
		case plainText(value) != before[name]:
			l.sources[name] = fromOthers
		case l.sources[name] == "":
			l.sources[name] = fromDefault
		}
	})
	for name, embedded := range map[string]bool{"KAFKA_BROKERS": c.needs().Kafka, "DATABASE_URL": c.needs().Postgres,
		"REDIS_URL": c.needs().Redis, "AWS_ENDPOINT_URL": c.needs().S3} {
		if embedded {
			l.sources[name] = fromEmbedded
		}
	}
	return l
}

// check reports every fault, before anything is derived.
func (c config) check() []error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Port < 1 || c.Port > 65535 {
		fault("PORT is %d: it must be from 1 to 65535", c.Port)
	}
	if c.Partitions < 0 || c.Partitions > 10_000 {
		fault("KAFKA_PARTITIONS is %d: it must be from 1 to 10000, or unset", c.Partitions)
	}
	if c.ChangelogPartitions < 0 || c.ChangelogPartitions > 10_000 {
		fault("KAFKA_CHANGELOG_PARTITIONS is %d: it must be from 1 to 10000, or unset", c.ChangelogPartitions)
	}
	if c.Workers < 0 || c.Workers > 1024 {
		fault("CONVERT_CONCURRENCY is %d: it must be from 0 to 1024", c.Workers)
	}
	if c.Replication < 0 || c.Replication > 100 {
		fault("KAFKA_REPLICATION_FACTOR is %d: it must be from 1 to 100 replicas, or 0 for the brokers' default", c.Replication)
	}
	if c.MinISR < 0 || c.MinISR > c.Replication {
		fault("KAFKA_MIN_INSYNC_REPLICAS is %d: it must be from 0 to KAFKA_REPLICATION_FACTOR, %d", c.MinISR, c.Replication)
	}
	if c.PrepareTimeout < time.Second || c.PrepareTimeout > time.Hour {
		fault("PREPARE_TIMEOUT is %s: it must be from 1s to 1h", c.PrepareTimeout)
	}
	if c.RedisTimeout < time.Millisecond || c.RedisTimeout > 10*time.Second {
		fault("REDIS_TIMEOUT is %s: it must be from 1ms to 10s", c.RedisTimeout)
	}
	if c.Consumer.CloseTimeout >= c.StopTimeout {
		fault("KAFKA_CONSUMER_CLOSE_TIMEOUT is %s: it must be less than STOP_TIMEOUT, %s", c.Consumer.CloseTimeout, c.StopTimeout)
	}
	if c.DrainDelay < 0 || c.DrainDelay > 5*time.Minute {
		fault("DRAIN_DELAY is %s: it must be from 0s to 5m", c.DrainDelay)
	}
	if c.StopTimeout < time.Second {
		fault("STOP_TIMEOUT is %s: it must be 1s or more", c.StopTimeout)
	}
	if c.RedisURL != "" {
		if _, err := c.redis(); err != nil {
			faults = append(faults, err)
		}
	}
	if err := c.level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		fault("LOG_LEVEL is %q: it must be debug, info, warn or error", c.LogLevel)
	}
	// What may still be named by an event must not look like an orphan.
	if longest := 10 * (c.API.UploadTimeout + c.Blob.TransferTimeout + c.Kafka.SubmitTimeout); c.Janitor.OrphanGrace < longest {
		fault("JANITOR_ORPHAN_GRACE is %s: it must be %s or more, ten times what a submission may take (UPLOAD_TIMEOUT, S3_TRANSFER_TIMEOUT, KAFKA_SUBMIT_TIMEOUT)", c.Janitor.OrphanGrace, longest)
	}
	// Embedded parts are on loopback, and speak neither TLS nor SASL.
	for name, set := range map[string]bool{
		"KAFKA_TLS":            c.needs().Kafka && c.Kafka.TLS,
		"KAFKA_SASL_MECHANISM": c.needs().Kafka && c.Kafka.SASLMechanism != "",
	} {
		if set {
			fault("%s is set, and KAFKA_BROKERS is not: the embedded broker knows no such thing; set KAFKA_BROKERS, or unset %[1]s", name)
		}
	}
	for name, file := range map[string]string{"REDIS_CA_FILE": c.RedisCAFile, "REDIS_CLIENT_CERT_FILE": c.RedisCertFile, "REDIS_CLIENT_KEY_FILE": c.RedisKeyFile} {
		if file != "" && c.needs().Redis {
			fault("%s is set, and REDIS_URL is not: set that, or unset %[1]s", name)
		}
	}
	// What is not known before the embedded parts run, or is set in code, is as good as set.
	if c.needs().Kafka {
		c.Kafka.Brokers = []string{"embedded:1"}
	}
	c.Consumer.Group = "any"
	parts := reflect.ValueOf(c)
	for i := range parts.NumField() {
		if !parts.Type().Field(i).IsExported() {
			continue
		}
		if part, ok := parts.Field(i).Interface().(interface{ Validate() error }); ok {
			if err := part.Validate(); err != nil {
				faults = append(faults, err)
			}
		}
	}
	return faults
}

// derive fills in what depends on other variables, or on the machine.
func (c *config) derive() {
	_ = c.level.UnmarshalText([]byte(c.LogLevel)) // checked
	onDisk := c.needs().Kafka
	if c.Partitions == 0 {
		c.Partitions = 48
		if onDisk {
			c.Partitions = 12
		}
	}
	if c.ChangelogPartitions == 0 {
		c.ChangelogPartitions = c.Partitions
		if onDisk {
			c.ChangelogPartitions = 1
		}
	}
	if c.InstanceID == "" {
		c.InstanceID, _ = os.Hostname()
	}
	if c.API.SpoolDir == "" {
		c.API.SpoolDir = filepath.Join(os.TempDir(), fmt.Sprintf("pixtools-%d", os.Getuid()))
	}
	if c.needs() != (embedded.Needs{}) {
		c.DrainDelay = 0
	}
	if c.Host == "" && c.needs() != (embedded.Needs{}) {
		c.Host = "127.0.0.1" // a laptop's PixTools has no keys yet: not for the network
	}
}

// fileSuffix makes the name of a variable that names a file with a secret's value.
const fileSuffix = "_FILE"

// maxSecretBytes bounds such a file: who names another file by mistake should hear of it.
const maxSecretBytes = 64 << 10

// filed is the environment with the values of secrets that files hold, and every fault of
// those files.
func (l loaded) filed(environment map[string]string) (map[string]string, []error) {
	environment = maps.Clone(environment)
	var faults []error
	eachVariable(reflect.ValueOf(l.config), func(field reflect.StructField, _ reflect.Value) {
		name := field.Tag.Get("env")
		path := environment[name+fileSuffix]
		if field.Tag.Get("secret") == "" || path == "" {
			return
		}
		if environment[name] != "" {
			faults = append(faults, fmt.Errorf("%s and %s%s are both set: unset one of them", name, name, fileSuffix))
			return
		}
		content, err := readSecret(path)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s%s is %q: %w", name, fileSuffix, path, err))
			return
		}
		environment[name], l.sources[name] = content, fromFile
	})
	return environment, faults
}

func readSecret(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("name a file that can be read: %w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxSecretBytes+1))
	if err != nil {
		return "", fmt.Errorf("name a file that can be read: %w", err)
	}
	// Editors and secret stores end a file by a line break, which is in no password.
	text := strings.TrimRight(string(content), "\r\n")
	switch {
	case len(content) > maxSecretBytes:
		return "", fmt.Errorf("it is larger than %d bytes: name a file that holds the value, and nothing else", maxSecretBytes)
	case text == "":
		return "", errors.New("it is empty: name a file that holds the value")
	}
	return text, nil
}

// readableEnvironment is the environment less the variables whose value is of another
// kind than wanted, and a fault for each of those. With their defaults in place the rest
// can be checked all the same.
func readableEnvironment(environment map[string]string) (map[string]string, []error) {
	environment = maps.Clone(environment)
	params, err := env.GetFieldParams(&config{})
	if err != nil {
		return environment, []error{err}
	}
	var faults []error
	for _, p := range params {
		value, set := environment[p.Key]
		if !set || p.Key == "" {
			continue
		}
		err := env.ParseWithOptions(&config{}, env.Options{Environment: map[string]string{p.Key: value}})
		if err == nil {
			continue
		}
		wanted := "a value of another kind"
		var parse env.ParseError
		if errors.As(err, &parse) {
			switch {
			case parse.Type == reflect.TypeFor[time.Duration]():
				wanted = "a duration, such as 10s"
			case parse.Type.Kind() == reflect.Bool:
				wanted = "true or false"
			case parse.Type.Kind() == reflect.Float64:
				wanted = "a number"
			default:
				wanted = "a whole number"
			}
		}
		faults = append(faults, fmt.Errorf("%s is %q: it must be %s", p.Key, value, wanted))
		delete(environment, p.Key)
	}
	return environment, faults
}

// retention is how long pictures are kept.
func (c config) retention() commands.Retention {
	sources, results := c.Blob.Retention()
	return commands.Retention{Sources: sources, Results: results}
}

// eachVariable goes through the fields that variables set, each variable once.
func eachVariable(of reflect.Value, do func(reflect.StructField, reflect.Value)) {
	seen := map[string]bool{}
	var walk func(reflect.Value)
	walk = func(of reflect.Value) {
		for i := range of.NumField() {
			field, value := of.Type().Field(i), of.Field(i)
			name := field.Tag.Get("env")
			switch {
			case name == "" && value.Kind() == reflect.Struct:
				walk(value)
			case name != "" && !seen[name]:
				seen[name] = true
				do(field, value)
			}
		}
	}
	walk(of)
}

// plainText is a value as the environment would have it.
func plainText(value reflect.Value) string {
	if list, ok := value.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(value.Interface())
}

// needs says which parts are not configured, and so run embedded.
func (c config) needs() embedded.Needs {
	return embedded.Needs{
		Kafka: len(c.Kafka.Brokers) == 0, Postgres: c.Read.URL == "", Redis: c.RedisURL == "", S3: c.Blob.Endpoint == "",
	}
}

// use fills in the addresses of embedded parts.
func (c *config) use(p *embedded.Parts) {
	if len(p.Brokers) > 0 {
		c.Kafka.Brokers = p.Brokers
	}
	if p.DatabaseURL != "" {
		c.Read.URL = p.DatabaseURL
	}
	if p.RedisURL != "" {
		c.RedisURL = p.RedisURL
	}
	if p.S3Endpoint != "" {
		c.Blob.Endpoint, c.Blob.Bucket, c.Blob.Region = p.S3Endpoint, p.S3Bucket, p.S3Region
		c.Blob.AccessKeyID, c.Blob.SecretAccessKey = p.S3AccessKey, p.S3SecretKey
	}
}
