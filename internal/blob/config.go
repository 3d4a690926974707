package blob

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"time"
)

// Limits of the settings.
const (
	maxPresignExpirySeconds = 7 * 24 * 60 * 60 // Signature Version 4 allows a week
	maxRetentionDays        = 36500
	maxAttempts             = 20
	maxIdleConns            = 10000
)

// bucketName is S3's rule.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// Config names the S3 server and how long to wait for it. The variables are Amazon's where Amazon has them.
type Config struct {
	// Keys: both, or neither for what the machine provides (instance roles, profiles, web identity).
	AccessKeyID     string `env:"AWS_ACCESS_KEY_ID"`
	SecretAccessKey string `env:"AWS_SECRET_ACCESS_KEY"`
	Region          string `env:"AWS_REGION" envDefault:"us-east-1"`
	Bucket          string `env:"AWS_S3_BUCKET" envDefault:"pixtools"`

	// Endpoint is the server's address; empty is Amazon's own for the region.
	Endpoint string `env:"AWS_ENDPOINT_URL"`
	// PublicEndpoint is the address under which a browser outside the cluster reaches the same server.
	// Download links are signed for it, because a signature covers the host name. Empty: Endpoint.
	PublicEndpoint string `env:"AWS_PUBLIC_ENDPOINT_URL"`

	PresignExpirySeconds int `env:"PRESIGNED_URL_EXPIRY_SECONDS" envDefault:"86400"`
	// RetentionDays is how long results and the notes of reprocessing are kept, in days, and
	// sources, where SourceRetentionDays is 0.
	RetentionDays int `env:"S3_RETENTION_DAYS" envDefault:"30"`
	// SourceRetentionDays is how long sources are kept, in days; 0: as long as results.
	SourceRetentionDays int `env:"S3_SOURCE_RETENTION_DAYS" envDefault:"0"`

	// CallTimeout bounds a call that moves no content, TransferTimeout one that does, from its begin to
	// the last byte; both with all attempts and the pauses between them.
	CallTimeout     time.Duration `env:"S3_CALL_TIMEOUT" envDefault:"10s"`
	TransferTimeout time.Duration `env:"S3_TRANSFER_TIMEOUT" envDefault:"60s"`
	// A transfer of which nothing moved for ProbeAfter goes on only if the server answers a question within
	// ProbeTimeout. Twice the one and once the other is how long a server that is away is waited for.
	ProbeAfter   time.Duration `env:"S3_PROBE_AFTER" envDefault:"300ms"`
	ProbeTimeout time.Duration `env:"S3_PROBE_TIMEOUT" envDefault:"1s"`
	// ConnectTimeout bounds one connection attempt, so that a dead address leaves time to try again.
	ConnectTimeout time.Duration `env:"S3_CONNECT_TIMEOUT" envDefault:"3s"`
	// MaxAttempts is how often a call is sent in all when the server or the network fails.
	MaxAttempts int `env:"S3_MAX_ATTEMPTS" envDefault:"3"`
	// MaxBackoff bounds the pause between two attempts; it grows from some milliseconds, with jitter.
	MaxBackoff time.Duration `env:"S3_MAX_BACKOFF" envDefault:"2s"`
	// MaxIdleConns connections are kept for reuse. Go keeps two a host by default, and would open a new
	// one for nearly every small object of a busy process.
	MaxIdleConns int `env:"S3_MAX_IDLE_CONNS" envDefault:"128"`
}

// Retention is how long sources and results are kept.
func (c Config) Retention() (sources, results time.Duration) {
	const day = 24 * time.Hour
	return time.Duration(c.sourceDays()) * day, time.Duration(c.RetentionDays) * day
}

func (c Config) sourceDays() int {
	if c.SourceRetentionDays > 0 {
		return c.SourceRetentionDays
	}
	return c.RetentionDays
}

// Validate reports every fault at once, by the name of the variable.
func (c Config) Validate() error {
	var faults []error
	fault := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault((c.AccessKeyID == "") == (c.SecretAccessKey == ""), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set both, or neither to use what the machine provides")
	fault(c.Region != "", "AWS_REGION is empty: name a region, such as us-east-1")
	fault(bucketName.MatchString(c.Bucket), "AWS_S3_BUCKET is %q: use 3 to 63 lower-case letters, digits, dots and hyphens, a letter or digit first and last", c.Bucket)
	for name, endpoint := range map[string]string{"AWS_ENDPOINT_URL": c.Endpoint, "AWS_PUBLIC_ENDPOINT_URL": c.PublicEndpoint} {
		fault(endpoint == "" || isHTTPURL(endpoint), "%s is %q: use http://host:port or https://host", name, endpoint)
	}
	inRange := func(name string, value, low, high int) {
		fault(low <= value && value <= high, "%s is %d: use %d to %d", name, value, low, high)
	}
	inRange("PRESIGNED_URL_EXPIRY_SECONDS", c.PresignExpirySeconds, 1, maxPresignExpirySeconds)
	inRange("S3_RETENTION_DAYS", c.RetentionDays, 1, maxRetentionDays)
	inRange("S3_SOURCE_RETENTION_DAYS", c.SourceRetentionDays, 0, maxRetentionDays)
	inRange("S3_MAX_ATTEMPTS", c.MaxAttempts, 1, maxAttempts)
	inRange("S3_MAX_IDLE_CONNS", c.MaxIdleConns, 1, maxIdleConns)
	for name, d := range map[string]time.Duration{
		"S3_CALL_TIMEOUT": c.CallTimeout, "S3_TRANSFER_TIMEOUT": c.TransferTimeout,
		"S3_CONNECT_TIMEOUT": c.ConnectTimeout, "S3_MAX_BACKOFF": c.MaxBackoff,
		"S3_PROBE_AFTER": c.ProbeAfter, "S3_PROBE_TIMEOUT": c.ProbeTimeout,
	} {
		fault(d > 0, "%s is %s: use a positive time, such as 10s", name, d)
	}
	return errors.Join(faults...)
}

func isHTTPURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}
