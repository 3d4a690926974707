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
	// DatabaseURL is the Python service's DATABASE_URL.
	DatabaseURL string `env:"IMPORT_LEGACY_DATABASE_URL" secret:"url"`
	// RedisURL is the Python service's REDIS_URL. Empty: its idempotency keys are left out.
	RedisURL string `env:"IMPORT_LEGACY_REDIS_URL" secret:"url"`
	// AccessKeyID is for the Python service's bucket, where that is not ours. Empty: AWS_ACCESS_KEY_ID.
	AccessKeyID string `env:"IMPORT_LEGACY_AWS_ACCESS_KEY_ID"`
	// SecretAccessKey belongs to it.
	SecretAccessKey string `env:"IMPORT_LEGACY_AWS_SECRET_ACCESS_KEY" secret:"value"`
	// Rate is how many jobs are written.
	// Beyond it: the next waits.
	Rate float64 `env:"IMPORT_LEGACY_RATE" envDefault:"200" range:"0.01 to 100000" unit:"jobs a second"`
	// Reads is of how many jobs objects are read side by side.
	// Beyond it: the next waits.
	Reads int `env:"IMPORT_LEGACY_READS" envDefault:"8" range:"1 to 256" unit:"jobs"`
	// HeldJobs is of how many jobs at a time it is known whether the log has them.
	// Beyond it: the log is read once more.
	HeldJobs int `env:"IMPORT_LEGACY_HELD_JOBS" envDefault:"1000000" range:"1 to 100000000" unit:"jobs"`
	// MaxKeys is how many idempotency keys are held.
	// Beyond it: the command ends and says so.
	MaxKeys int `env:"IMPORT_LEGACY_MAX_KEYS" envDefault:"1000000" range:"1 to 100000000" unit:"keys"`
	// MaxObjectBytes bounds one picture, which is kept in SPOOL_DIR while it is looked at.
	// Beyond it: its job is refused.
	MaxObjectBytes int64 `env:"IMPORT_LEGACY_MAX_OBJECT_BYTES" envDefault:"268435456" range:"1 to 1099511627776" unit:"bytes"`
	// Timeout bounds one question to the Python service's database or Redis.
	// Beyond it: the command ends; it goes on when it is run again.
	Timeout time.Duration `env:"IMPORT_LEGACY_TIMEOUT" envDefault:"1m" range:"1s to 1h"`
}

// Validate names every value out of range.
func (c Config) Validate() error {
	var faults []error
	if c.DatabaseURL != "" {
		if _, err := pgx.ParseConfig(driverless(c.DatabaseURL)); err != nil {
			// Not err, which has the address, and with it the password.
			faults = append(faults, errors.New("IMPORT_LEGACY_DATABASE_URL is not of the form postgres://user:password@host:port/database"))
		}
	}
	if c.RedisURL != "" {
		if _, err := redis.ParseURL(c.RedisURL); err != nil {
			faults = append(faults, errors.New("IMPORT_LEGACY_REDIS_URL is not of the form redis://user:password@host:port/0, or rediss:// for TLS"))
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
