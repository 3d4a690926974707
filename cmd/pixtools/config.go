package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/redis/go-redis/v9"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/handlers"
	"github.com/pixtools/pixtools/internal/audit"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/legacy"
	"github.com/pixtools/pixtools/internal/registry"
	"github.com/pixtools/pixtools/processors"
	"github.com/pixtools/pixtools/processors/denoiser"
	"github.com/pixtools/pixtools/processors/engine"
	"github.com/pixtools/pixtools/projections"
)

// config is everything that the environment sets, by the package it is for.
type config struct {
	Host     string `env:"HOST"`
	Port     int    `env:"PORT" envDefault:"8000"`
	RedisURL string `env:"REDIS_URL"`
	// InstanceID names this process among those of its role, for ever: it is part of the
	// saga's transactional id, and two that share it end one another's transactions.
	// Empty: the host's name.
	InstanceID string `env:"INSTANCE_ID"`
	// RedisTimeout bounds one call: Redis only saves work, so it is not waited for.
	RedisTimeout time.Duration `env:"REDIS_TIMEOUT" envDefault:"300ms"`
	// Partitions of the log are fixed for ever once it exists: 48, 12 embedded.
	Partitions int32 `env:"KAFKA_PARTITIONS"`
	// ChangelogPartitions are those of the saga's changelog: as many, 1 embedded, where
	// each partition that a transaction touches costs four syncs of one disk.
	ChangelogPartitions int32 `env:"KAFKA_CHANGELOG_PARTITIONS"`
	// Replication of the topics; 0 leaves it to the brokers' default.
	Replication int16 `env:"KAFKA_REPLICATION_FACTOR" envDefault:"0"`
	// Workers is how many conversions of one operation run at once; 0: one a core.
	Workers int `env:"CONVERT_CONCURRENCY" envDefault:"0"`
	// StopTimeout bounds a graceful stop.
	StopTimeout time.Duration `env:"STOP_TIMEOUT" envDefault:"25s"`
	// PprofAddr is where profiles are served, for instance 127.0.0.1:6060; empty: nowhere.
	PprofAddr string `env:"PPROF_ADDR"`
	LogLevel  string `env:"LOG_LEVEL" envDefault:"warn"`
	level     slog.Level

	API         api.Config
	Blob        blob.Config
	Embedded    embedded.Config
	Engine      engine.Config
	Denoise     denoiser.Config
	Kafka       kafka.Config
	Lag         kafka.LagConfig
	Read        projections.Config
	Registry    registry.Config
	Replay      projections.ReplayConfig
	DeadLetters projections.DeadLetterConfig
	Saga        handlers.SagaConfig
	Processor   processors.WorkerConfig
	Consumer    kafka.SubscriberConfig
	Verify      audit.Config
	Again       processors.AgainConfig
	Reprocess   processors.ReprocessConfig
	Legacy      legacy.Config
}

// loadConfig reads the environment and reports every fault in it at once.
func loadConfig() (config, error) {
	var c config
	readable, faults := readableEnvironment()
	if err := env.ParseWithOptions(&c, env.Options{Environment: readable}); err != nil {
		return c, fmt.Errorf("configuration:\n%w", err)
	}
	if c.Port < 1 || c.Port > 65535 {
		faults = append(faults, fmt.Errorf("PORT is %d: it must be from 1 to 65535", c.Port))
	}
	if c.Partitions < 0 || c.Partitions > 10_000 {
		faults = append(faults, fmt.Errorf("KAFKA_PARTITIONS is %d: it must be from 1 to 10000, or unset", c.Partitions))
	}
	if c.ChangelogPartitions < 0 || c.ChangelogPartitions > 10_000 {
		faults = append(faults, fmt.Errorf("KAFKA_CHANGELOG_PARTITIONS is %d: it must be from 1 to 10000, or unset", c.ChangelogPartitions))
	}
	if c.Workers < 0 || c.Workers > 1024 {
		faults = append(faults, fmt.Errorf("CONVERT_CONCURRENCY is %d: it must be from 0 to 1024", c.Workers))
	}
	if c.Replication < 0 || c.Replication > 100 {
		faults = append(faults, fmt.Errorf("KAFKA_REPLICATION_FACTOR is %d: it must be from 1 to 100 replicas, or 0 for the brokers' default", c.Replication))
	}
	if c.RedisTimeout < time.Millisecond || c.RedisTimeout > 10*time.Second {
		faults = append(faults, fmt.Errorf("REDIS_TIMEOUT is %s: it must be from 1ms to 10s", c.RedisTimeout))
	}
	if c.Consumer.CloseTimeout >= c.StopTimeout {
		faults = append(faults, fmt.Errorf("KAFKA_CONSUMER_CLOSE_TIMEOUT is %s: it must be less than STOP_TIMEOUT, %s", c.Consumer.CloseTimeout, c.StopTimeout))
	}
	if c.StopTimeout < time.Second {
		faults = append(faults, fmt.Errorf("STOP_TIMEOUT is %s: it must be 1s or more", c.StopTimeout))
	}
	if c.RedisURL != "" {
		if _, err := redis.ParseURL(c.RedisURL); err != nil {
			faults = append(faults, fmt.Errorf("REDIS_URL: %w", err))
		}
	}
	if err := c.level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		faults = append(faults, fmt.Errorf("LOG_LEVEL is %q: it must be debug, info, warn or error", c.LogLevel))
	}
	onDisk := len(c.Kafka.Brokers) == 0
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
	// What is not known before the embedded parts run, or is set in code, is as good as set.
	brokers, consumer := c.Kafka, c.Consumer
	if onDisk {
		brokers.Brokers = []string{"embedded:1"}
	}
	consumer.Group = "any"
	for _, part := range []interface{ Validate() error }{brokers, consumer, c.Lag, c.Blob, c.API, c.Read, c.Replay, c.Registry, c.DeadLetters, c.Saga, c.Processor, c.Embedded, c.Engine, c.Denoise, c.Verify, c.Again, c.Reprocess, c.Legacy} {
		if err := part.Validate(); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return c, fmt.Errorf("configuration:\n%w", errors.Join(faults...))
	}
	return c, nil
}

// readableEnvironment is the environment less the variables whose value is of another
// kind than wanted, and a fault for each of those. With their defaults in place the rest
// can be checked all the same.
func readableEnvironment() (map[string]string, []error) {
	environment := env.ToMap(os.Environ())
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
			default:
				wanted = "a whole number"
			}
		}
		faults = append(faults, fmt.Errorf("%s is %q: it must be %s", p.Key, value, wanted))
		delete(environment, p.Key)
	}
	return environment, faults
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
