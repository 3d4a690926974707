package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/testenv"
)

// TestSecureConnections: a Kafka with TLS and SASL, a PostgreSQL, a Redis and an S3 server
// with TLS, from an authority that the system does not know, with passwords from files: a
// job goes through, each tool works, and what is not right is refused, with what to do.
func TestSecureConnections(t *testing.T) {
	s := testenv.StartSecure(t)
	secret := func(value string) string {
		path := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(path, []byte(value+"\n"), 0o600))
		return path
	}
	env := map[string]string{
		"KAFKA_BROKERS": s.Kafka, "KAFKA_PARTITIONS": "2", "KAFKA_TLS": "true", "KAFKA_CA_FILE": s.CAFile,
		"KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USERNAME": s.User, "KAFKA_SASL_PASSWORD_FILE": secret(s.Password),
		"DATABASE_URL_FILE": secret(strings.Replace(s.DatabaseURL, "postgres://", "postgresql+asyncpg://", 1)),
		"REDIS_URL_FILE":    secret("rediss://:" + s.Password + "@" + s.Redis), "REDIS_CA_FILE": s.CAFile,
		"AWS_ENDPOINT_URL": s.S3, "AWS_CA_BUNDLE": s.CAFile, "AWS_ACCESS_KEY_ID": s.User, "AWS_SECRET_ACCESS_KEY_FILE": secret(s.Password),
		"AWS_S3_BUCKET": "secure",
	}
	// with is env with changes; an empty value unsets.
	with := func(changes map[string]string) map[string]string {
		changed := maps.Clone(env)
		maps.Copy(changed, changes)
		maps.DeleteFunc(changed, func(_, value string) bool { return value == "" })
		return changed
	}

	p := run(t, env)
	id, err := p.insist(within(t), file("a.png", "image/png", pngOf(t, picture(20, 20))), field("operations", `["webp","denoise"]`), field("idempotency_key", "secure"))
	require.NoError(t, err)
	job := p.ended(id)
	require.Equal(t, "SUCCEEDED", *job.Outcome)
	require.NotContains(t, p.log.String(), s.Password)
	require.NotContains(t, p.log.String(), "redis does not answer")
	t.Run("link", func(t *testing.T) {
		authorities := x509.NewCertPool()
		ca, err := os.ReadFile(s.CAFile)
		require.NoError(t, err)
		require.True(t, authorities.AppendCertsFromPEM(ca))
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12}}}
		response, err := client.Get(job.ResultURLs["webp"])
		require.NoError(t, err)
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, response.StatusCode, "%s", content)
		require.Equal(t, "WEBP", string(content[8:12]))
	})

	// tool runs one to its end.
	tool := func(env map[string]string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.CommandContext(ctx, self, args...)
		cmd.Env = []string{mainVariable + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "SPOOL_DIR=" + t.TempDir()}
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for name, changes := range map[string]map[string]string{
		"SCRAM-SHA-256":          {"KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"},
		"PLAIN":                  {"KAFKA_SASL_MECHANISM": "PLAIN"},
		"a client's certificate": {"KAFKA_BROKERS": s.KafkaCerts, "KAFKA_SASL_MECHANISM": "", "KAFKA_SASL_USERNAME": "", "KAFKA_SASL_PASSWORD_FILE": "", "KAFKA_CLIENT_CERT_FILE": s.CertFile, "KAFKA_CLIENT_KEY_FILE": s.KeyFile},
		"SCRAM-SHA-512":          {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := tool(with(changes), "events", "cat", "--job", id, "--type", "JobFinalized")
			require.NoError(t, err, out)
			require.Equal(t, 1, strings.Count(out, `"outcome":"OUTCOME_SUCCEEDED"`), out)
		})
	}
	for _, args := range [][]string{ // one after the other: of some, only one may be at work
		{"events", "tail", "--from", "start", "--job", id, "--type", "JobFinalized", "--limit", "1"},
		{"backup", filepath.Join(t.TempDir(), "set"), "--secrets-in-clear"},
		{"verify", "--reexecute", "1"},
		{"replay", "--diff"},
		{"usage", "--audit"},
		{"reprocess", "--operation", "webp", "--where", "engine!=none"},
	} {
		t.Run(strings.Join(args[:2], " "), func(t *testing.T) {
			out, err := tool(env, args...)
			require.NoError(t, err, out)
			require.NotContains(t, out, s.Password)
		})
	}
	t.Run("config", func(t *testing.T) {
		t.Parallel()
		out, err := tool(env, "config", "--json")
		require.NoError(t, err, out)
		require.NotContains(t, out, s.Password)
		require.True(t, json.Valid([]byte(out)), out)
	})

	// A Kafka that speaks no TLS hangs up, as one does that is just starting: it is waited for, and the log says
	// what it may be.
	t.Run("kafka, no TLS there", func(t *testing.T) {
		t.Parallel()
		const doubt = "is TLS misconfigured"
		changed := with(map[string]string{"KAFKA_BROKERS": s.KafkaPlain})
		out, err := tool(changed, "events", "cat")
		require.Error(t, err, out)
		require.Contains(t, out, doubt)
		waiting := prepare(t, changed, "--roles=saga")
		waiting.start()
		eventually(t, "the doubt", func() error {
			if !strings.Contains(waiting.log.String(), doubt) {
				return errors.New("it is not told")
			}
			return nil
		})
		require.Nil(t, waiting.cmd.ProcessState)
	})

	wrongDatabase := func(from, to string) map[string]string {
		return map[string]string{"DATABASE_URL_FILE": "", "DATABASE_URL": strings.Replace(s.DatabaseURL, from, to, 1)}
	}
	for name, c := range map[string]struct {
		changes map[string]string
		role    string
		says    []string
	}{
		"kafka, another password": {map[string]string{"KAFKA_SASL_PASSWORD_FILE": "", "KAFKA_SASL_PASSWORD": "wrong"}, "saga", []string{"the brokers refuse us", "KAFKA_SASL_PASSWORD"}},
		"kafka, another user":     {map[string]string{"KAFKA_SASL_USERNAME": "nobody"}, "saga", []string{"the brokers refuse us", "KAFKA_SASL_USERNAME"}},
		"kafka, another listener": {map[string]string{"KAFKA_BROKERS": s.KafkaCerts, "KAFKA_CLIENT_CERT_FILE": s.CertFile, "KAFKA_CLIENT_KEY_FILE": s.KeyFile}, "saga", []string{"do not let users log in this way", "KAFKA_SASL_MECHANISM"}},
		"kafka, another CA":       {map[string]string{"KAFKA_CA_FILE": s.OtherCAFile}, "saga", []string{"not from an authority that we trust", "KAFKA_CA_FILE"}},
		"kafka, the system's CAs": {map[string]string{"KAFKA_CA_FILE": ""}, "saga", []string{"not from an authority that we trust", "KAFKA_CA_FILE"}},
		"kafka, another name":     {map[string]string{"KAFKA_BROKERS": strings.Replace(s.Kafka, "127.0.0.1", "localhost", 1)}, "saga", []string{"for another name", "KAFKA_BROKERS"}},
		"kafka, no certificate":   {map[string]string{"KAFKA_BROKERS": s.KafkaCerts, "KAFKA_SASL_MECHANISM": "", "KAFKA_SASL_USERNAME": "", "KAFKA_SASL_PASSWORD_FILE": ""}, "saga", []string{"another client certificate", "KAFKA_CLIENT_CERT_FILE"}},
		"postgres, password":      {wrongDatabase(s.Password, "wrong"), "projector", []string{"PostgreSQL refuses us", "DATABASE_URL"}},
		"postgres, another CA":    {wrongDatabase(s.CAFile, s.OtherCAFile), "projector", []string{"not from an authority that we trust", "sslrootcert in DATABASE_URL"}},
		"postgres, another name":  {wrongDatabase("127.0.0.1", "localhost"), "projector", []string{"for another name", "DATABASE_URL"}},
		"postgres, without TLS":   {wrongDatabase("verify-full", "disable"), "projector", []string{"PostgreSQL refuses us", "sslmode"}},
		"redis, another password": {map[string]string{"REDIS_URL_FILE": "", "REDIS_URL": "rediss://:wrong@" + s.Redis}, "api", []string{"redis refuses us", "REDIS_URL"}},
		"redis, no password":      {map[string]string{"REDIS_URL_FILE": "", "REDIS_URL": "rediss://" + s.Redis}, "api", []string{"redis refuses us", "REDIS_URL"}},
		"redis, another CA":       {map[string]string{"REDIS_CA_FILE": s.OtherCAFile}, "api", []string{"not from an authority that we trust", "REDIS_CA_FILE"}},
		"s3, another CA":          {map[string]string{"AWS_CA_BUNDLE": s.OtherCAFile}, "convert", []string{"not from an authority that we trust", "AWS_CA_BUNDLE"}},
		"s3, another password":    {map[string]string{"AWS_SECRET_ACCESS_KEY_FILE": "", "AWS_SECRET_ACCESS_KEY": "wrong"}, "convert", []string{"S3 refuses us", "AWS_SECRET_ACCESS_KEY"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := tool(with(mergedPort(t, c.changes)), "serve", "--roles="+c.role)
			require.Error(t, err, out)
			for _, text := range c.says {
				require.Contains(t, out, text)
			}
			require.NotContains(t, out, s.Password)
			if !strings.HasPrefix(name, "kafka") {
				return
			}
			for _, args := range [][]string{{"events", "cat"}, {"replay"}} {
				out, err := tool(with(c.changes), args...)
				require.Error(t, err, out)
				require.Contains(t, out, c.says[0])
			}
		})
	}
}

// mergedPort adds a port that is free.
func mergedPort(t *testing.T, changes map[string]string) map[string]string {
	changes = maps.Clone(changes)
	changes["PORT"] = freePort(t)
	return changes
}
