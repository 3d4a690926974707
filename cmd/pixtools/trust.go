package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/trust"
)

// distrust is the error to end with where a part is there and one side does not trust the
// other: its certificate, our certificate, or that there is TLS at all. nil: it is another.
func distrust(part string, err error) error {
	var set string
	switch part {
	case "kafka":
		return kafka.Refused(err)
	case "database":
		set = "sslmode and sslrootcert in DATABASE_URL"
		if strings.Contains(err.Error(), "server refused TLS connection") { // pgx has no type for it
			return fmt.Errorf("PostgreSQL speaks no TLS: set ssl=on there, or sslmode in DATABASE_URL to disable, and start pixtools again: %w", err)
		}
	case "s3":
		set = "AWS_CA_BUNDLE and AWS_ENDPOINT_URL"
	case "redis":
		set = "REDIS_URL (rediss:// is with TLS), REDIS_CA_FILE, REDIS_CLIENT_CERT_FILE and REDIS_CLIENT_KEY_FILE"
		for _, prefix := range []string{"WRONGPASS", "NOAUTH", "NOPERM"} {
			if redis.HasErrorPrefix(err, prefix) {
				return fmt.Errorf("redis refuses us: set REDIS_URL to a user and a password that it knows, and start pixtools again: %w", err)
			}
		}
	}
	if reason := trust.Refused(err); reason != "" {
		return fmt.Errorf("%s cannot be trusted, or does not trust us: %s: set %s to what is right for it, and start pixtools again: %w", part, reason, set, err)
	}
	return nil
}

// greetRedis asks Redis once: one that is away is not waited for, and one that refuses us is
// a fault to end with.
func (s *services) greetRedis(ctx context.Context) error {
	err := s.redis.Ping(ctx).Err()
	if err == nil {
		return nil
	}
	if refused := distrust("redis", err); refused != nil {
		return refused
	}
	s.log.Warn("redis does not answer; what it saves is done without it", "error", err)
	return nil
}

// redis is where Redis is, and how to come in there.
func (c config) redis() (*redis.Options, error) {
	options, err := redis.ParseURL(c.RedisURL)
	if err != nil {
		var malformed *url.Error // it quotes the whole, with the password
		if errors.As(err, &malformed) {
			err = malformed.Err
		}
		return nil, fmt.Errorf("REDIS_URL is not of the form redis://user:password@host:port/0, or rediss:// for TLS (user, password and number may be absent, and characters such as @ in them be written %%40): %w", err)
	}
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = c.RedisTimeout, c.RedisTimeout, c.RedisTimeout
	options.PoolTimeout, options.MaxRetries, options.DialerRetries, options.ContextTimeoutEnabled = c.RedisTimeout, -1, 1, true
	ca, cert, key := trust.File{Variable: "REDIS_CA_FILE", Path: c.RedisCAFile},
		trust.File{Variable: "REDIS_CLIENT_CERT_FILE", Path: c.RedisCertFile}, trust.File{Variable: "REDIS_CLIENT_KEY_FILE", Path: c.RedisKeyFile}
	trusting, err := trust.Client(ca, cert, key)
	if err != nil {
		return nil, err
	}
	if options.TLSConfig == nil {
		var faults []error
		for _, file := range []trust.File{ca, cert, key} {
			if file.Path != "" {
				faults = append(faults, fmt.Errorf("%s is set, and REDIS_URL is without TLS: let it begin with rediss://, or unset %[1]s", file.Variable))
			}
		}
		return options, errors.Join(faults...)
	}
	trusting.ServerName, trusting.InsecureSkipVerify = options.TLSConfig.ServerName, options.TLSConfig.InsecureSkipVerify // as the address says
	options.TLSConfig = trusting
	return options, nil
}
