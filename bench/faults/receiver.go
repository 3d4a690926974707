package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pixtools/pixtools/bench/faults/history"
)

// refusedShare of the webhooks are answered 503: they are to come again.
const refusedShare = .2

// receiver takes webhooks and notes them.
type receiver struct {
	server  *http.Server
	address string

	mu     sync.Mutex
	random *rand.Rand
	calls  []hookCall
}

type hookCall struct {
	header http.Header
	body   []byte
	at     time.Time
	status int
}

func receive(seed uint64) (*receiver, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h := &receiver{address: "http://" + l.Addr().String() + "/outcome", random: rand.New(rand.NewPCG(seed, 1<<32))}
	h.server = &http.Server{Handler: h, ReadHeaderTimeout: requestTimeout}
	go func() { _ = h.server.Serve(l) }() // until it is closed
	return h, nil
}

func (h *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := hookCall{header: r.Header.Clone(), at: time.Now().Truncate(time.Millisecond), status: http.StatusNoContent}
	var err error
	if call.body, err = io.ReadAll(r.Body); err != nil {
		return // cut off: whoever sent it was killed
	}
	h.mu.Lock()
	if h.random.Float64() < refusedShare {
		call.status = http.StatusServiceUnavailable
	}
	h.calls = append(h.calls, call)
	h.mu.Unlock()
	w.WriteHeader(call.status)
}

var secretForm = regexp.MustCompile(`whsec_\S+`)

// delivered are the webhooks that were received, verified by the specification's own library
// with the secrets that the program tells.
func (r *run) delivered(ctx context.Context) ([]history.Delivery, error) {
	cmd := exec.CommandContext(ctx, r.binary, "webhooks", "secret", "list", "--reveal")
	cmd.Env = r.fleet.env
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("pixtools webhooks secret list: %w", err)
	}
	var hooks []*standardwebhooks.Webhook
	for _, secret := range secretForm.FindAllString(string(out), -1) {
		hook, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			return nil, fmt.Errorf("the secret that signs webhooks is none: %w", err)
		}
		hooks = append(hooks, hook)
	}
	r.hooks.mu.Lock()
	defer r.hooks.mu.Unlock()
	var all []history.Delivery
	for _, call := range r.hooks.calls {
		var body struct {
			JobID    string `json:"job_id"`
			Revision int32  `json:"revision"`
			Outcome  string `json:"outcome"`
		}
		if err := json.Unmarshal(call.body, &body); err != nil {
			r.breach("a webhook's body cannot be read: %v: %s", err, call.body)
			continue
		}
		d := history.Delivery{ID: call.header.Get("Webhook-Id"), At: call.at, Status: call.status, JobID: body.JobID, Revision: body.Revision, Outcome: body.Outcome}
		for _, hook := range hooks {
			d.Signed = d.Signed || hook.VerifyIgnoringTimestamp(call.body, call.header) == nil
		}
		all = append(all, d)
	}
	return all, nil
}
