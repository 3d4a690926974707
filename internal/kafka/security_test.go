package kafka

import (
	"crypto/tls"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
)

// TestSecurity: what of the settings does not go together is told at once, by the name of the
// variable, and without the password. On a real Kafka, cmd/pixtools.TestSecureConnections
// tries all of them.
func TestSecurity(t *testing.T) {
	t.Parallel()
	with := func(change func(*Config)) Config {
		c := DefaultConfig("broker:9092")
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		config Config
		says   []string
	}{
		"files without TLS": {with(func(c *Config) { c.CAFile, c.CertFile, c.KeyFile = "a", "b", "c" }),
			[]string{"KAFKA_CA_FILE is set, and KAFKA_TLS is not", "KAFKA_CLIENT_CERT_FILE is set", "KAFKA_CLIENT_KEY_FILE is set"}},
		"files that are not there":     {with(func(c *Config) { c.TLS, c.CAFile, c.CertFile, c.KeyFile = true, "/missing", "/missing", "/missing" }), []string{"KAFKA_CA_FILE is", "KAFKA_CLIENT_CERT_FILE is"}},
		"a certificate without a key":  {with(func(c *Config) { c.TLS, c.CertFile = true, "/missing" }), []string{"KAFKA_CLIENT_CERT_FILE and KAFKA_CLIENT_KEY_FILE: set both"}},
		"a user without a mechanism":   {with(func(c *Config) { c.SASLUsername, c.SASLPassword = "user", "hunter2" }), []string{"KAFKA_SASL_USERNAME is set, and KAFKA_SASL_MECHANISM is not", "KAFKA_SASL_PASSWORD is set"}},
		"a mechanism without a user":   {with(func(c *Config) { c.SASLMechanism = "PLAIN" }), []string{"KAFKA_SASL_USERNAME is empty", "KAFKA_SASL_PASSWORD is empty"}},
		"a mechanism that we have not": {with(func(c *Config) { c.SASLMechanism, c.SASLUsername, c.SASLPassword = "scram", "user", "hunter2" }), []string{`KAFKA_SASL_MECHANISM is "scram"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, text := range c.says {
				require.ErrorContains(t, c.config.Validate(), text)
			}
			require.NotContains(t, c.config.Validate().Error(), "hunter2")
			_, err := c.config.Options()
			require.Error(t, err)
		})
	}
	for _, mechanism := range []string{"SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"} {
		c := with(func(c *Config) {
			c.TLS, c.SASLMechanism, c.SASLUsername, c.SASLPassword = true, mechanism, "user", "hunter2"
		})
		client, err := NewClient(c, logger())
		require.NoError(t, err)
		t.Cleanup(client.Close)
		require.NotNil(t, client.OptValue(kgo.DialTLSConfig).(*tls.Config))
		require.Equal(t, mechanism, client.OptValue(kgo.SASL).([]sasl.Mechanism)[0].Name())
	}
}

func TestRefusedByBrokers(t *testing.T) {
	t.Parallel()
	for _, err := range []error{kerr.SaslAuthenticationFailed, kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState, tls.RecordHeaderError{Msg: "x"}} {
		wrapped := fmt.Errorf("ask: %w", err)
		require.ErrorIs(t, Refused(wrapped), err)
		require.ErrorContains(t, Refused(wrapped), "set KAFKA_")
	}
	for _, err := range []error{kerr.NotController, errors.New("connection refused")} { // they may pass
		require.NoError(t, Refused(err))
	}
}
