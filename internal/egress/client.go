package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Config bounds what is sent to addresses that strangers name.
type Config struct {
	// AllowPrivate are address ranges, addresses and hosts that may be called although
	// they are not of the public internet: for intranets, and tests. Commas between them.
	AllowPrivate []string `env:"WEBHOOK_ALLOW_PRIVATE"`
	// Timeout bounds one call, from asking for the host's address to the end of the answer.
	// Beyond it: the attempt has failed.
	Timeout time.Duration `env:"WEBHOOK_TIMEOUT" envDefault:"10s" range:"100ms to 1m"`
	// ConnectTimeout bounds connecting to one host.
	// Beyond it: the attempt has failed.
	ConnectTimeout time.Duration `env:"WEBHOOK_CONNECT_TIMEOUT" envDefault:"5s" range:"50ms to WEBHOOK_TIMEOUT"`
	// MaxHeaderBytes bounds an answer's header.
	// Beyond it: the attempt has failed.
	MaxHeaderBytes int64 `env:"WEBHOOK_MAX_HEADER_BYTES" envDefault:"16384" range:"1024 to 1048576" unit:"bytes"`
	// MaxAnswerBytes is how much of an answer's body is read, to be thrown away.
	// Beyond it: the connection is closed.
	MaxAnswerBytes int64 `env:"WEBHOOK_MAX_ANSWER_BYTES" envDefault:"4096" range:"0 to 1048576" unit:"bytes"`
	// MaxIdleConns bounds the connections that are kept open to all receivers.
	// Beyond it: they are closed.
	MaxIdleConns int `env:"WEBHOOK_MAX_IDLE_CONNS" envDefault:"64" range:"1 to 10000" unit:"connections"`
}

// Validate names every value out of range.
func (c Config) Validate() error {
	_, err := NewGuard(c.AllowPrivate)
	faults := []error{err}
	if c.Timeout < 100*time.Millisecond || c.Timeout > time.Minute {
		faults = append(faults, fmt.Errorf("WEBHOOK_TIMEOUT is %s: it must be from 100ms to 1m", c.Timeout))
	}
	if c.ConnectTimeout < 50*time.Millisecond || c.ConnectTimeout > c.Timeout {
		faults = append(faults, fmt.Errorf("WEBHOOK_CONNECT_TIMEOUT is %s: it must be from 50ms to WEBHOOK_TIMEOUT, %s", c.ConnectTimeout, c.Timeout))
	}
	if c.MaxHeaderBytes < 1<<10 || c.MaxHeaderBytes > 1<<20 {
		faults = append(faults, fmt.Errorf("WEBHOOK_MAX_HEADER_BYTES is %d: it must be from 1024 to 1048576 bytes", c.MaxHeaderBytes))
	}
	if c.MaxAnswerBytes < 0 || c.MaxAnswerBytes > 1<<20 {
		faults = append(faults, fmt.Errorf("WEBHOOK_MAX_ANSWER_BYTES is %d: it must be from 0 to 1048576 bytes", c.MaxAnswerBytes))
	}
	if c.MaxIdleConns < 1 || c.MaxIdleConns > 10_000 {
		faults = append(faults, fmt.Errorf("WEBHOOK_MAX_IDLE_CONNS is %d: it must be from 1 to 10000 connections", c.MaxIdleConns))
	}
	return errors.Join(faults...)
}

// NewClient makes a client that follows no redirect and knows no proxy. An address is
// judged when it is dialled, after its name was resolved: that a name leads somewhere else
// a moment later changes nothing. A nil resolver is the system's.
func NewClient(cfg Config, g *Guard, resolver *net.Resolver) *http.Client {
	dialer := &net.Dialer{Timeout: cfg.ConnectTimeout, Resolver: resolver}
	guarded := *dialer
	guarded.Control = func(network, address string, _ syscall.RawConn) error { return g.checkDialed(network, address) }
	return &http.Client{
		Timeout:       cfg.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: nil, // one in the environment would be asked to connect, and then nobody had looked
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if host, _, err := net.SplitHostPort(address); err == nil && g.hosts[hostOf(host)] {
					return dialer.DialContext(ctx, network, address)
				}
				return guarded.DialContext(ctx, network, address)
			},
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    cfg.ConnectTimeout,
			MaxResponseHeaderBytes: cfg.MaxHeaderBytes,
			MaxIdleConns:           cfg.MaxIdleConns,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        30 * time.Second,
			DisableCompression:     true,
		},
	}
}
