package blob

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"time"

	"github.com/pixtools/pixtools/internal/trust"
)

// Limits of the settings.
const (
	maxPresignExpirySeconds = 7 * 24 * 60 * 60 // Signature Version 4 allows a week
	maxRetentionDays        = 36500
	maxUploadExpirySeconds  = 24 * 60 * 60 // a day, the least that UploadRetentionDays can be
	maxUploadRetentionDays  = 30
	maxCORSOrigins          = 100
	maxAttempts             = 20
	maxIdleConns            = 10000
)

// bucketName is S3's rule.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// Config names the S3 server and how long to wait for it. The variables are Amazon's where Amazon has them.
type Config struct {
	// AccessKeyID is the key's name: with SecretAccessKey, or neither for what the machine provides
	// (instance roles, profiles, web identity).
	// Beyond it: the program ends where the server refuses it.
	AccessKeyID string `env:"AWS_ACCESS_KEY_ID" example:"pixtools"`
	// SecretAccessKey belongs to AccessKeyID.
	SecretAccessKey string `env:"AWS_SECRET_ACCESS_KEY" secret:"value" example:"change-me"`
	// Region is the one that requests are signed for.
	Region string `env:"AWS_REGION" envDefault:"us-east-1" example:"us-east-1"`
	// Bucket holds the pictures; it is made if it does not exist.
	Bucket string `env:"AWS_S3_BUCKET" envDefault:"pixtools" range:"3 to 63 lower-case letters, digits, dots and hyphens" example:"pixtools"`

	// Endpoint is the server's address, `http://` or `https://`; needed for Amazon's own, too. Unset:
	// S3 runs embedded.
	Endpoint string `env:"AWS_ENDPOINT_URL" example:"https://s3.example.org"`
	// CABundle has the authorities, in PEM, that the server's certificate must be from. Empty: those of
	// the system.
	// Beyond it: a server with another certificate ends the program at its start.
	CABundle string `env:"AWS_CA_BUNDLE" example:"/etc/ssl/private-ca.pem"`
	// PublicEndpoint is the address under which a browser outside the cluster reaches the same server.
	// Download links are signed for it, because a signature covers the host name.
	PublicEndpoint string `env:"AWS_PUBLIC_ENDPOINT_URL" derived:"as AWS_ENDPOINT_URL"`

	// CORSOrigins are those whose pages may read results and store uploads from a browser, on a server that
	// has CORS rules by bucket: such as `https://pictures.example`, 100 at most, or `*`. Empty: the rules
	// are left as they are.
	CORSOrigins []string `env:"S3_CORS_ORIGINS" example:"https://pictures.example"`

	// PresignExpirySeconds is how long a download link lives.
	// Beyond it: it ends; a later read gives a new one.
	PresignExpirySeconds int `env:"PRESIGNED_URL_EXPIRY_SECONDS" envDefault:"86400" range:"1 to 604800" unit:"seconds"`
	// RetentionDays is how long results and the notes of reprocessing are kept, and sources, unless
	// SourceRetentionDays says otherwise.
	// Beyond it: ArtifactsExpired, and the janitor deletes; a server with lifecycle rules would, too.
	RetentionDays int `env:"S3_RETENTION_DAYS" envDefault:"30" range:"1 to 36500" unit:"days"`
	// SourceRetentionDays is how long sources are kept; 0: as long as results.
	// Beyond it: the same, for sources alone.
	SourceRetentionDays int `env:"S3_SOURCE_RETENTION_DAYS" envDefault:"0" range:"0 to 36500" unit:"days"`

	// UploadExpirySeconds is for how long a client may begin to store a file with the request that was
	// signed for it; one that is under way then goes on.
	// Beyond it: the server refuses it; ask for another.
	UploadExpirySeconds int `env:"UPLOAD_URL_EXPIRY_SECONDS" envDefault:"3600" range:"1 to 86400" unit:"seconds"`
	// UploadRetentionDays is for how long jobs may be made of what was stored so, from when it was signed,
	// and the age at which the janitor, or a lifecycle rule on uploads/, deletes it.
	// Beyond it: 404.
	UploadRetentionDays int `env:"UPLOAD_RETENTION_DAYS" envDefault:"1" range:"1 to 30" unit:"days"`

	// CallTimeout bounds a call that moves no content, with all attempts and the pauses between them.
	// Beyond it: the call has failed.
	CallTimeout time.Duration `env:"S3_CALL_TIMEOUT" envDefault:"10s" range:"1ns or more"`
	// TransferTimeout bounds one upload or download, from its begin to the last byte, with all
	// attempts.
	// Beyond it: a submission is 503; for a processor, the record comes again.
	TransferTimeout time.Duration `env:"S3_TRANSFER_TIMEOUT" envDefault:"60s" range:"1ns or more"`
	// ProbeAfter is for how long nothing of a transfer may move. Twice this and once ProbeTimeout is
	// how long a server that is away is waited for.
	// Beyond it: the server is asked whether it is there.
	ProbeAfter time.Duration `env:"S3_PROBE_AFTER" envDefault:"300ms" range:"1ns or more"`
	// ProbeTimeout is how long its answer may take.
	// Beyond it: the transfer has failed.
	ProbeTimeout time.Duration `env:"S3_PROBE_TIMEOUT" envDefault:"1s" range:"1ns or more"`
	// ConnectTimeout bounds one connection attempt, so that a dead address leaves time to try again.
	// Beyond it: the call is sent again.
	ConnectTimeout time.Duration `env:"S3_CONNECT_TIMEOUT" envDefault:"3s" range:"1ns or more"`
	// MaxAttempts is how often a call is sent in all when the server or the network fails.
	// Beyond it: the call has failed.
	MaxAttempts int `env:"S3_MAX_ATTEMPTS" envDefault:"3" range:"1 to 20" unit:"attempts"`
	// MaxBackoff bounds the pause between two attempts; it grows from some milliseconds, with jitter.
	MaxBackoff time.Duration `env:"S3_MAX_BACKOFF" envDefault:"2s" range:"1ns or more"`
	// MaxIdleConns is how many connections are kept for reuse. Go keeps two a host by default, and
	// would open a new one for nearly every small object of a busy process.
	// Beyond it: closed.
	MaxIdleConns int `env:"S3_MAX_IDLE_CONNS" envDefault:"128" range:"1 to 10000" unit:"connections"`
}

// Retention is how long sources and results are kept.
func (c Config) Retention() (sources, results time.Duration) {
	const day = 24 * time.Hour
	return time.Duration(c.sourceDays()) * day, time.Duration(c.RetentionDays) * day
}

// UploadRetention is how long is kept what clients stored themselves.
func (c Config) UploadRetention() time.Duration {
	return time.Duration(c.UploadRetentionDays) * 24 * time.Hour
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
		fault(endpoint == "" || isHTTPURL(endpoint), "%s is not of the form http://host:port or https://host (without user and password)", name)
	}
	if _, err := c.tls(); err != nil {
		faults = append(faults, err)
	}
	for _, origin := range c.CORSOrigins {
		u, err := url.Parse(origin)
		fault(origin == "*" || err == nil && isHTTPURL(origin) && u.Path+u.RawQuery+u.Fragment == "" && u.User == nil,
			"S3_CORS_ORIGINS is %q: use origins such as https://pictures.example, with commas between them, or *", origin)
	}
	fault(len(c.CORSOrigins) <= maxCORSOrigins, "S3_CORS_ORIGINS is %d origins: use %d at most", len(c.CORSOrigins), maxCORSOrigins)
	inRange := func(name string, value, low, high int) {
		fault(low <= value && value <= high, "%s is %d: use %d to %d", name, value, low, high)
	}
	inRange("PRESIGNED_URL_EXPIRY_SECONDS", c.PresignExpirySeconds, 1, maxPresignExpirySeconds)
	inRange("S3_RETENTION_DAYS", c.RetentionDays, 1, maxRetentionDays)
	inRange("S3_SOURCE_RETENTION_DAYS", c.SourceRetentionDays, 0, maxRetentionDays)
	inRange("UPLOAD_URL_EXPIRY_SECONDS", c.UploadExpirySeconds, 1, maxUploadExpirySeconds)
	inRange("UPLOAD_RETENTION_DAYS", c.UploadRetentionDays, 1, maxUploadRetentionDays)
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

func (c Config) tls() (*tls.Config, error) {
	return trust.Client(trust.File{Variable: "AWS_CA_BUNDLE", Path: c.CABundle}, trust.File{}, trust.File{})
}

func isHTTPURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil
}
