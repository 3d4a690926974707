package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// balancer shares requests out over processes as what stands before them does: in turn, to
// those that say that they are ready. It asks each of them often, keeps its connections, and
// sends no request twice: what goes wrong with one is the client's to see.
type balancer struct {
	*httptest.Server
	backends []*backend
	turn     atomic.Int64

	mu     sync.Mutex
	faults []error
}

type backend struct {
	base  string
	proxy *httputil.ReverseProxy
	ready atomic.Bool
}

const (
	// probeEvery is how often a process is asked whether it is ready.
	probeEvery = 50 * time.Millisecond
	// probePatience is how long it may take to say so, which on a busy machine is no sign of anything;
	// less than DRAIN_DELAY, so that no answer of before outlives it.
	probePatience = 4 * time.Second
)

func newBalancer(t *testing.T, bases ...string) *balancer {
	b := &balancer{}
	watching, stop := context.WithCancel(context.Background())
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	var all sync.WaitGroup
	for _, base := range bases {
		to, err := url.Parse(base)
		require.NoError(t, err)
		one := &backend{base: base, proxy: &httputil.ReverseProxy{Transport: transport,
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(to)
				r.Out = r.Out.WithContext(b.once(r.Out))
			},
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				if r.Context().Err() == nil { // else the client is gone
					b.fault(fmt.Errorf("%s %s at %s: %w", r.Method, r.URL.Path, base, err))
				}
				w.WriteHeader(http.StatusBadGateway)
			}}}
		b.backends = append(b.backends, one)
		all.Go(func() { one.watch(watching) })
	}
	b.Server = httptest.NewServer(http.HandlerFunc(b.forward))
	t.Cleanup(func() {
		b.CloseClientConnections()
		b.Close()
		stop()
		all.Wait()
		transport.CloseIdleConnections()
	})
	return b
}

// once finds a request that the transport sends a second time, since the process had closed the
// connection on which it was sent.
func (b *balancer) once(r *http.Request) context.Context {
	var connections atomic.Int32
	return httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
		if connections.Add(1) > 1 {
			b.fault(fmt.Errorf("%s %s was sent again: its connection was closed", r.Method, r.URL))
		}
	}})
}

func (b *balancer) forward(w http.ResponseWriter, r *http.Request) {
	// One turn for a request: of two that each took several, one might meet the same process again
	// and again, and not the one that is ready.
	turn := int(b.turn.Add(1))
	for i := range b.backends {
		if to := b.backends[(turn+i)%len(b.backends)]; to.ready.Load() {
			to.proxy.ServeHTTP(w, r)
			return
		}
	}
	b.fault(errors.New("no process is ready"))
	w.WriteHeader(http.StatusServiceUnavailable)
}

func (b *balancer) fault(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, err)
}

// found are the faults so far.
func (b *balancer) found() []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.faults
}

// wait waits until a process gets requests.
func (b *balancer) wait(t *testing.T, base string) {
	t.Helper()
	eventually(t, "requests for "+base, func() error {
		for _, one := range b.backends {
			if one.base == base && !one.ready.Load() {
				return errors.New("it is not ready")
			}
		}
		return nil
	})
}

func (b *backend) watch(ctx context.Context) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: probePatience}
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+"/api/readyz", nil)
		if err != nil {
			panic(err) // of an address that another request was made of
		}
		response, err := client.Do(request)
		if err == nil {
			_ = response.Body.Close()
		}
		b.ready.Store(err == nil && response.StatusCode == http.StatusOK)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
