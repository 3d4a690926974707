// Package registry tells a schema registry what the events look like, for the tools that
// look there. Nothing of PixTools reads it, and nothing waits for it.
//
// Values on the log are bare: they do not begin with the id of a schema, as those do that
// a registry's own serializers write. So a reader finds the schema by the header ce_type,
// which is the name of the subject (RecordNameStrategy), and a registry here is for
// discovery and as one more guard of compatibility.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/pixtools/pixtools/internal/trust"
)

// Config says where the registry is.
type Config struct {
	// URL is `http://` or `https://`, with user and password where it asks for them; empty: there is
	// none.
	URL string `env:"SCHEMA_REGISTRY_URL" secret:"url"`
	// CAFile has the authorities, in PEM, that the registry's certificate must be from. Empty: those of
	// the system.
	CAFile string `env:"SCHEMA_REGISTRY_CA_FILE"`
	// Timeout bounds one request.
	// Beyond it: it is tried again.
	Timeout time.Duration `env:"SCHEMA_REGISTRY_TIMEOUT" envDefault:"5s" range:"100ms to 1m"`
	// RetryAfter is the pause after a registry that could not be reached.
	RetryAfter time.Duration `env:"SCHEMA_REGISTRY_RETRY_AFTER" envDefault:"30s" range:"100ms to 1h"`
}

// Validate reports every fault at once, by the name of the variable. It quotes no
// password.
func (c Config) Validate() error {
	var faults []error
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
			faults = append(faults, errors.New("SCHEMA_REGISTRY_URL is not of the form https://user:password@host:port (user and password may be absent, and characters such as @ in them be written %40)"))
		}
	}
	if _, err := c.trusting(); err != nil {
		faults = append(faults, err)
	}
	if c.Timeout < 100*time.Millisecond || c.Timeout > time.Minute {
		faults = append(faults, fmt.Errorf("SCHEMA_REGISTRY_TIMEOUT is %s: it must be from 100ms to 1m", c.Timeout))
	}
	if c.RetryAfter < 100*time.Millisecond || c.RetryAfter > time.Hour {
		faults = append(faults, fmt.Errorf("SCHEMA_REGISTRY_RETRY_AFTER is %s: it must be from 100ms to 1h", c.RetryAfter))
	}
	return errors.Join(faults...)
}

// ErrRefused says that the registry will not have the schema: trying again is of no use.
var ErrRefused = errors.New("the schema registry refuses the schema")

// Announce registers the schema under every subject, and tries again until that is done,
// the registry refuses it, or ctx ends. What went wrong is in the log.
func Announce(ctx context.Context, cfg Config, subjects []string, schema string, log *slog.Logger) {
	client, where, err := cfg.client()
	if err != nil {
		log.Error("schemas are not registered", "error", err)
		return
	}
	for {
		err := register(ctx, client, subjects, schema)
		switch {
		case err == nil:
			log.Info("schemas are registered", "registry", where, "subjects", len(subjects))
			return
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrRefused):
			log.Error("schemas are not registered; everything else goes on", "registry", where, "error", err)
			return
		}
		log.Warn("schemas are not registered yet", "registry", where, "again_after", cfg.RetryAfter.String(), "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(cfg.RetryAfter):
		}
	}
}

func (c Config) trusting() (*tls.Config, error) {
	return trust.Client(trust.File{Variable: "SCHEMA_REGISTRY_CA_FILE", Path: c.CAFile}, trust.File{}, trust.File{})
}

// client also gives the address without its password.
func (c Config) client() (*sr.Client, string, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, "", err
	}
	trusting, err := c.trusting()
	if err != nil {
		return nil, "", err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = trusting
	options := []sr.ClientOpt{sr.HTTPClient(&http.Client{Timeout: c.Timeout, Transport: transport}), sr.UserAgent("pixtools")}
	if u.User != nil {
		password, _ := u.User.Password()
		options = append(options, sr.BasicAuth(u.User.Username(), password))
		u.User = nil
	}
	where := u.String()
	client, err := sr.NewClient(append(options, sr.URLs(where))...)
	return client, where, err
}

// register may be called any number of times, by many processes: a schema that is there
// stays the version that it is.
func register(ctx context.Context, client *sr.Client, subjects []string, schema string) error {
	ctx = sr.WithParams(ctx, sr.Normalize) // comments make no new version
	for _, subject := range subjects {
		if err := guard(ctx, client, subject); err != nil {
			return fmt.Errorf("subject %s: %w", subject, err)
		}
		_, err := client.RegisterSchema(ctx, subject, sr.Schema{Schema: schema, Type: sr.TypeProtobuf}, -1, -1)
		var answer *sr.ResponseError
		switch {
		case errors.As(err, &answer) && answer.StatusCode == http.StatusConflict:
			return fmt.Errorf("subject %s: %w: what is registered there is not compatible with it: %w; "+
				"see whether SCHEMA_REGISTRY_URL is the right one and who registered the last version "+
				"(GET /subjects/%[1]s/versions/latest): PixTools itself never breaks what it released; "+
				"if the versions there are not PixTools', delete the subject and start pixtools again", subject, ErrRefused, err)
		case errors.As(err, &answer) && answer.StatusCode == http.StatusUnprocessableEntity:
			return fmt.Errorf("subject %s: %w: it cannot read it: %w; use a registry that knows PROTOBUF schemas, or unset SCHEMA_REGISTRY_URL",
				subject, ErrRefused, err)
		case err != nil:
			return fmt.Errorf("subject %s: %w", subject, err)
		}
	}
	return nil
}

// guard has a new subject refuse what could not read the log's older records. Of one that
// is there, the level is its operator's business.
func guard(ctx context.Context, client *sr.Client, subject string) error {
	_, err := client.SubjectVersions(ctx, subject)
	var answer *sr.ResponseError
	if !errors.As(err, &answer) || answer.StatusCode != http.StatusNotFound {
		return err
	}
	// Not FULL: to that, another type of event would be a break.
	return client.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatBackwardTransitive}, subject)[0].Err
}
