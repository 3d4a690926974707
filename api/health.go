package api

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/go-fuego/fuego"
)

// healthTimeout bounds the whole of a health check; the contract says 2 s.
const healthTimeout = 1500 * time.Millisecond

// Health tells what this process can reach.
type Health struct {
	Status       string            `json:"status" description:"healthy or unhealthy"`
	Dependencies map[string]string `json:"dependencies" description:"database, redis, s3, kafka: ok or unreachable"`
	// Detail repeats it where it is unhealthy: the Python service's shape.
	Detail *HealthDetail `json:"detail,omitempty"`
}

// HealthDetail is the same once more.
type HealthDetail struct {
	Status       string            `json:"status"`
	Dependencies map[string]string `json:"dependencies"`
}

func (s *Server) health(c fuego.ContextNoBody) (Health, error) {
	h := s.report(c.Context())
	if h.Detail != nil {
		c.Response().Header().Set("Content-Type", "application/json")
		c.SetStatus(http.StatusServiceUnavailable)
	}
	return h, nil
}

// report is what can be reached; parts that the process still waits for at its start cannot.
func (s *Server) report(ctx context.Context, waitedFor ...string) Health {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	h := Health{Status: "healthy", Dependencies: s.check(ctx)}
	for _, name := range waitedFor {
		h.Dependencies[name] = "unreachable"
	}
	for _, state := range h.Dependencies {
		if state != "ok" {
			h.Status = "unhealthy"
		}
	}
	if h.Status != "healthy" {
		h.Detail = &HealthDetail{h.Status, h.Dependencies}
	}
	return h
}

// check asks every part at once. A part that ignores its deadline is reported
// unreachable all the same, and its answer dropped.
func (s *Server) check(ctx context.Context) map[string]string {
	parts := map[string]func(context.Context) error{
		"database": s.Reader.Health,
		"redis":    func(ctx context.Context) error { return s.Redis.Ping(ctx).Err() },
		"s3":       s.Store.Health,
		"kafka":    s.Kafka.Ping,
	}
	var mu sync.Mutex
	found, done := map[string]string{}, make(chan struct{}, len(parts))
	for name, ask := range parts {
		go func() {
			err := ask(ctx)
			if err != nil {
				s.Log.WarnContext(ctx, "dependency unreachable", "dependency", name, "error", err)
			} else {
				mu.Lock()
				found[name] = "ok"
				mu.Unlock()
			}
			done <- struct{}{}
		}()
	}
	for range parts {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	mu.Lock()
	defer mu.Unlock()
	all := map[string]string{}
	for name := range parts {
		if all[name] = "unreachable"; found[name] == "ok" {
			all[name] = "ok"
		}
	}
	return all
}

// Alive answers the probes.
type Alive struct {
	Status string `json:"status"`
}

// livez: the process answers.
func (s *Server) livez(fuego.ContextNoBody) (Alive, error) { return Alive{"alive"}, nil }

// readyz: send requests here. Parts that are away are health's to report; taking
// every instance out of service for them would help nobody.
func (s *Server) readyz(fuego.ContextNoBody) (Alive, error) {
	select {
	case <-s.Draining:
		return Alive{}, problem(http.StatusServiceUnavailable, "PixTools is stopping here; send requests to another process.")
	default:
		return Alive{"ready"}, nil
	}
}
