// Package legacy reads what the Python service keeps: its table of jobs (database.go), its
// idempotency keys in Redis (keys.go), and the objects in its bucket (objects.go). Of all of
// it nothing is changed.
package legacy

import (
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// Config says where the Python service keeps things, and bounds an import. What has a flag,
// the flag goes before it.
type Config struct {
	// DatabaseURL and RedisURL are the Python service's; both may hold a password.
	DatabaseURL string `env:"IMPORT_LEGACY_DATABASE_URL"`
	RedisURL    string `env:"IMPORT_LEGACY_REDIS_URL"`
	// S3 keys for its bucket, where that is not ours; empty: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
	AccessKeyID     string `env:"IMPORT_LEGACY_AWS_ACCESS_KEY_ID"`
	SecretAccessKey string `env:"IMPORT_LEGACY_AWS_SECRET_ACCESS_KEY"`
	// Rate is how many jobs a second are written at most.
	Rate float64 `env:"IMPORT_LEGACY_RATE" envDefault:"200"`
	// Reads is how many jobs' objects are read side by side.
	Reads int `env:"IMPORT_LEGACY_READS" envDefault:"8"`
	// HeldJobs is of how many jobs at a time it is known whether the log has them: for each
	// such part the log is read once.
	HeldJobs int `env:"IMPORT_LEGACY_HELD_JOBS" envDefault:"1000000"`
	// MaxKeys is how many idempotency keys are held.
	MaxKeys int `env:"IMPORT_LEGACY_MAX_KEYS" envDefault:"1000000"`
	// MaxObjectBytes bounds one picture, which is kept in SPOOL_DIR while it is looked at.
	MaxObjectBytes int64 `env:"IMPORT_LEGACY_MAX_OBJECT_BYTES" envDefault:"268435456"`
	// Timeout bounds one question to the Python service's database or Redis.
	Timeout time.Duration `env:"IMPORT_LEGACY_TIMEOUT" envDefault:"1m"`
}

// Validate names every value out of range.
func (c Config) Validate() error {
	var faults []error
	if c.DatabaseURL != "" {
		if _, err := pgx.ParseConfig(driverless(c.DatabaseURL)); err != nil {
			faults = append(faults, fmt.Errorf("IMPORT_LEGACY_DATABASE_URL: %w", err))
		}
	}
	if c.RedisURL != "" {
		if _, err := redis.ParseURL(c.RedisURL); err != nil {
			faults = append(faults, fmt.Errorf("IMPORT_LEGACY_REDIS_URL: %w", err))
		}
	}
	if (c.AccessKeyID == "") != (c.SecretAccessKey == "") {
		faults = append(faults, errors.New("IMPORT_LEGACY_AWS_ACCESS_KEY_ID and IMPORT_LEGACY_AWS_SECRET_ACCESS_KEY: set both, or neither to use those of AWS_*"))
	}
	if !(c.Rate >= 0.01 && c.Rate <= 100_000) { // and no NaN
		faults = append(faults, fmt.Errorf("IMPORT_LEGACY_RATE is %g: it must be from 0.01 to 100000 jobs a second", c.Rate))
	}
	for _, n := range []struct {
		name            string
		value, from, to int64
		unit            string
	}{
		{"IMPORT_LEGACY_READS", int64(c.Reads), 1, 256, "jobs"},
		{"IMPORT_LEGACY_HELD_JOBS", int64(c.HeldJobs), 1, 100_000_000, "jobs"},
		{"IMPORT_LEGACY_MAX_KEYS", int64(c.MaxKeys), 1, 100_000_000, "keys"},
		{"IMPORT_LEGACY_MAX_OBJECT_BYTES", c.MaxObjectBytes, 1, 1 << 40, "bytes"},
	} {
		if n.value < n.from || n.value > n.to {
			faults = append(faults, fmt.Errorf("%s is %d: it must be from %d to %d %s", n.name, n.value, n.from, n.to, n.unit))
		}
	}
	if c.Timeout < time.Second || c.Timeout > time.Hour {
		faults = append(faults, fmt.Errorf("IMPORT_LEGACY_TIMEOUT is %s: it must be from 1s to 1h", c.Timeout))
	}
	return errors.Join(faults...)
}
