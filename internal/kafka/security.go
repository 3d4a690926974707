package kafka

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/pixtools/pixtools/internal/trust"
)

// Options are what every client of the program has, whatever it is for: where the brokers
// are, and how to come in there.
func (c Config) Options() ([]kgo.Opt, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	security, err := c.security()
	return append([]kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(c.ClientID),
		kgo.DialTimeout(c.DialTimeout),
		kgo.DisableClientMetrics(), // pushed to the brokers, for whoever runs them; ours are for us
	}, security...), err
}

// security is how to come in, and every fault of its settings.
func (c Config) security() ([]kgo.Opt, error) {
	var options []kgo.Opt
	var faults []error
	if c.TLS {
		cfg, err := trust.Client(trust.File{Variable: "KAFKA_CA_FILE", Path: c.CAFile},
			trust.File{Variable: "KAFKA_CLIENT_CERT_FILE", Path: c.CertFile}, trust.File{Variable: "KAFKA_CLIENT_KEY_FILE", Path: c.KeyFile})
		if err != nil {
			faults = append(faults, err)
		}
		options = append(options, kgo.DialTLSConfig(cfg))
	} else {
		for _, file := range []trust.File{{Variable: "KAFKA_CA_FILE", Path: c.CAFile}, {Variable: "KAFKA_CLIENT_CERT_FILE", Path: c.CertFile}, {Variable: "KAFKA_CLIENT_KEY_FILE", Path: c.KeyFile}} {
			if file.Path != "" {
				faults = append(faults, fmt.Errorf("%s is set, and KAFKA_TLS is not: set KAFKA_TLS=true, or unset %[1]s", file.Variable))
			}
		}
	}
	mechanism, err := c.mechanism()
	if err != nil {
		faults = append(faults, err)
	}
	if mechanism != nil {
		options = append(options, kgo.SASL(mechanism))
	}
	return options, errors.Join(faults...)
}

func (c Config) mechanism() (sasl.Mechanism, error) {
	var faults []error
	if c.SASLMechanism == "" {
		for variable, value := range map[string]string{"KAFKA_SASL_USERNAME": c.SASLUsername, "KAFKA_SASL_PASSWORD": c.SASLPassword} {
			if value != "" {
				faults = append(faults, fmt.Errorf("%s is set, and KAFKA_SASL_MECHANISM is not: set that to SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN", variable))
			}
		}
		return nil, errors.Join(faults...)
	}
	for variable, value := range map[string]string{"KAFKA_SASL_USERNAME": c.SASLUsername, "KAFKA_SASL_PASSWORD": c.SASLPassword} {
		if value == "" {
			faults = append(faults, fmt.Errorf("%s is empty: set it, or unset KAFKA_SASL_MECHANISM", variable))
		}
	}
	var chosen sasl.Mechanism
	user := scram.Auth{User: c.SASLUsername, Pass: c.SASLPassword}
	switch c.SASLMechanism {
	case "SCRAM-SHA-512":
		chosen = user.AsSha512Mechanism()
	case "SCRAM-SHA-256":
		chosen = user.AsSha256Mechanism()
	case "PLAIN":
		chosen = plain.Auth{User: c.SASLUsername, Pass: c.SASLPassword}.AsMechanism()
	default:
		faults = append(faults, fmt.Errorf("KAFKA_SASL_MECHANISM is %q: set it to SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN", c.SASLMechanism))
	}
	return chosen, errors.Join(faults...)
}

// Refused says what to do about brokers that are there and do not let us in; nil where the
// error is another, which may pass.
func Refused(err error) error {
	reason := trust.Refused(err)
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return fmt.Errorf("the brokers refuse us: set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD to a user and a password that they know for KAFKA_SASL_MECHANISM, and start pixtools again: %w", err)
	case errors.Is(err, kerr.UnsupportedSaslMechanism), errors.Is(err, kerr.IllegalSaslState):
		return fmt.Errorf("the brokers do not let users log in this way: set KAFKA_SASL_MECHANISM to one that their listener has, or KAFKA_BROKERS to another listener, and start pixtools again: %w", err)
	case reason != "":
		return fmt.Errorf("a broker cannot be trusted, or does not trust us: %s: set KAFKA_TLS, KAFKA_CA_FILE, KAFKA_CLIENT_CERT_FILE and KAFKA_CLIENT_KEY_FILE as the listener in KAFKA_BROKERS wants, and start pixtools again: %w", reason, err)
	}
	return nil
}
