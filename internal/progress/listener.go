package progress

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Listener hears, over one connection, of all attempts, and passes on what each of its
// listeners wants to know.
type Listener struct {
	client *redis.Client

	mu sync.Mutex
	// listeners by job.
	listeners map[string]map[chan State]struct{}
}

// NewListener hears nothing before Run.
func NewListener(client *redis.Client) *Listener {
	return &Listener{client: client, listeners: map[string]map[chan State]struct{}{}}
}

// retryAfter is the pause after Redis was away.
const retryAfter = time.Second

// Run listens until ctx is done. Redis may be away: then nothing is heard.
func (l *Listener) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		l.hear(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
	return nil
}

func (l *Listener) hear(ctx context.Context) {
	sub := l.client.PSubscribe(ctx, prefix+"*")
	defer sub.Close()
	// The connection's end ends the loop: Receive itself waits without a limit.
	defer context.AfterFunc(ctx, func() { _ = sub.Close() })()
	for {
		m, err := sub.ReceiveMessage(ctx)
		if err != nil {
			return
		}
		var s State
		if json.Unmarshal([]byte(m.Payload), &s) == nil {
			l.tell(strings.TrimPrefix(m.Channel, prefix), s)
		}
	}
}

func (l *Listener) tell(jobID string, s State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.listeners[jobID] {
		select {
		case c <- s:
		default: // it has older news still; later ones will come
		}
	}
}

// Listen gives the states of a job's operations as they are told, until stop is called.
func (l *Listener) Listen(jobID string) (states <-chan State, stop func()) {
	c := make(chan State, 4)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listeners[jobID] == nil {
		l.listeners[jobID] = map[chan State]struct{}{}
	}
	l.listeners[jobID][c] = struct{}{}
	return c, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if delete(l.listeners[jobID], c); len(l.listeners[jobID]) == 0 {
			delete(l.listeners, jobID)
		}
	}
}
