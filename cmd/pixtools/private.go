package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"

	"github.com/pixtools/pixtools/internal/telemetry"
)

// flushTimeout bounds sending the last traces at a stop.
const flushTimeout = 5 * time.Second

// servePrivate serves the private port, if there is one, from before the parts are there to
// the end: a process that hangs in its start or its stop is looked into there.
func servePrivate(address string, states *roleStates) (closed func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("PRIVATE_ADDR: %w", err)
	}
	server := &http.Server{Handler: telemetry.Private(states.tell), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	go func() { _ = server.Serve(listener) }() // until it is closed
	return func() { _ = server.Close() }, nil
}

// kafkaMetrics counts what a client does: connections, errors, bytes and records by broker.
// Of clients of one name there is one at a time.
func kafkaMetrics(client string) kgo.Opt {
	return kgo.WithHooks(kprom.NewMetrics("pixtools_kafka",
		kprom.Registerer(prometheus.WrapRegistererWith(prometheus.Labels{"client": client}, prometheus.DefaultRegisterer)),
		kprom.FetchAndProduceDetail(kprom.ByTopic, kprom.Records, kprom.UncompressedBytes)))
}

// roleStates says of each role of the process whether it takes work.
type roleStates struct {
	stopping context.Context
	roles    []string

	mu      sync.Mutex
	waiting func() []string
	asked   map[string]func() error
}

// newRoleStates has no role take work yet; none does once ctx is done.
func newRoleStates(ctx context.Context, roles []string) *roleStates {
	return &roleStates{stopping: ctx, roles: roles, asked: map[string]func() error{}}
}

// waitsFor is asked what the start waits for.
func (s *roleStates) waitsFor(list func() []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = list
}

// runs has a role asked from now on: nil says that it takes work.
func (s *roleStates) runs(role string, ask func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[role] = ask
}

func (s *roleStates) tell() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := map[string]string{}
	for _, role := range s.roles {
		states[role] = s.state(role)
	}
	return states
}

func (s *roleStates) state(role string) string {
	if s.stopping.Err() != nil {
		return "is stopping"
	}
	if ask := s.asked[role]; ask != nil {
		if err := ask(); err != nil {
			return err.Error()
		}
		return telemetry.Ready
	}
	if s.waiting != nil {
		if names := s.waiting(); len(names) > 0 {
			return "waits for " + strings.Join(names, ", ")
		}
	}
	return "is starting"
}

func notJoined(group string) error { return errors.New("is not in its group " + group + " yet") }

func joined(is func() bool, group string) func() error {
	return func() error {
		if !is() {
			return notJoined(group)
		}
		return nil
	}
}

// withoutHandlerErrors leaves out what watermill says when a handler fails, which names no
// job: the handler has said it with all there is to say.
type withoutHandlerErrors struct{ slog.Handler }

func (h withoutHandlerErrors) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "Handler returned error" {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h withoutHandlerErrors) WithAttrs(attrs []slog.Attr) slog.Handler {
	return withoutHandlerErrors{h.Handler.WithAttrs(attrs)}
}

func (h withoutHandlerErrors) WithGroup(name string) slog.Handler {
	return withoutHandlerErrors{h.Handler.WithGroup(name)}
}
