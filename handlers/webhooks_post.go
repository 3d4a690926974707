package handlers

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/sony/gobreaker/v2"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/egress"
	"github.com/pixtools/pixtools/internal/secrets"
)

// posted is what posting an outcome came to.
type posted struct {
	// notYet is for how long to wait where nothing was sent: no attempt was used up.
	notYet time.Duration
	// hold: the host is not to be called meanwhile.
	hold bool

	status int
	// code is empty where the receiver accepted.
	code, message string
	final         bool
	retryAfter    time.Duration
}

// WebhookParts are what webhooks are posted with.
type WebhookParts struct {
	// Client follows no redirects, and goes only where it may: see egress.NewClient.
	Client *http.Client
	// MaxAnswerBytes is how much of an answer's body is read.
	MaxAnswerBytes int64
	Keys           *secrets.Keyring
	Secrets        *secrets.Webhooks
	// Body is what is posted: the job's outcome, with its links.
	Body func(ctx context.Context, job *events.Job, eventID string) ([]byte, error)
}

// poster sends outcomes to receivers.
type poster struct {
	WebhookParts
	cfg WebhooksConfig
	// breakers are by host, those that were used last. One that is forgotten is closed.
	breakers *lru.Cache[string, *gobreaker.CircuitBreaker[answer]]
}

func newPoster(cfg WebhooksConfig, parts WebhookParts) (*poster, error) {
	breakers, err := lru.New[string, *gobreaker.CircuitBreaker[answer]](cfg.MaxHosts)
	return &poster{WebhookParts: parts, cfg: cfg, breakers: breakers}, err
}

// forgotten is what an attempt comes to whose tenant was forgotten.
var forgotten = posted{code: "address_forgotten", message: "the key that the address was sealed with is gone", final: true}

// open is an attempt's address and its host. Where it cannot be opened, result says what that
// comes to.
func (p *poster) open(ctx context.Context, a *attempt) (address, host string, result *posted) {
	address, err := p.Keys.Open(ctx, a.job, a.state.GetWebhookUrl())
	if errors.Is(err, secrets.ErrForgotten) {
		return "", "", &forgotten
	}
	if err != nil {
		return "", "", &posted{notYet: p.cfg.Pause}
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", "", &posted{code: "address_invalid", message: "the address is no absolute http or https address", final: true}
	}
	return address, strings.ToLower(u.Host), nil
}

// post makes an attempt, at the address that open gave.
func (p *poster) post(ctx context.Context, a *attempt, address string) posted {
	keys, err := p.Secrets.Signing(ctx, a.state.GetTenant())
	if errors.Is(err, secrets.ErrForgotten) { // this process had the address's key in memory yet
		return forgotten
	}
	if err != nil {
		return posted{notYet: p.cfg.Pause}
	}
	// Every attempt at a revision's outcome has the same id, so that a receiver knows it again.
	id := events.New(a.job, time.Time{}, "", "", &events.JobFinalized{Revision: a.revision}).ID
	body, err := p.Body(ctx, a.state, id)
	if err != nil {
		return posted{code: "internal", message: "the outcome could not be rendered: see the log of the role webhooks"}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return posted{code: "address_invalid", message: "the address cannot be called", final: true}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "PixTools-Webhooks/1")
	now := time.Now()
	request.Header.Set("Webhook-Id", id)
	request.Header.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	request.Header.Set("Webhook-Signature", sign(keys, id, now, body))
	return p.judge(p.breaker(a.host).Execute(func() (answer, error) { return p.send(request) }))
}

// answer is what a receiver answered, as far as it matters.
type answer struct {
	status     int
	retryAfter string
}

func (p *poster) send(request *http.Request) (answer, error) {
	response, err := p.Client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	// The status says it all. What follows is read only so that the connection can be used
	// again, and no longer than the client's timeout.
	_, _ = io.CopyN(io.Discard, response.Body, p.MaxAnswerBytes)
	a := answer{response.StatusCode, response.Header.Get("Retry-After")}
	if a.status >= http.StatusInternalServerError || a.status == http.StatusTooManyRequests {
		return a, errAnswer
	}
	return a, nil
}

// errAnswer is an answer that counts against its host.
var errAnswer = errors.New("the receiver answered with a failure of its own")

// sign is the header webhook-signature of the Standard Webhooks specification: a signature
// for each key, with blanks between.
func sign(keys [][]byte, id string, at time.Time, body []byte) string {
	var all []string
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		_, _ = fmt.Fprintf(mac, "%s.%d.", id, at.Unix())
		_, _ = mac.Write(body)
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(all, " ")
}

func (p *poster) breaker(host string) *gobreaker.CircuitBreaker[answer] {
	if known, ok := p.breakers.Get(host); ok {
		return known
	}
	made := gobreaker.NewCircuitBreaker[answer](gobreaker.Settings{
		Name: host, MaxRequests: 1, Timeout: p.cfg.BreakerOpen,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(p.cfg.BreakerFailures) },
		// What we refuse to call says nothing of the host.
		IsExcluded: func(err error) bool { var refused *egress.Refused; return errors.As(err, &refused) },
	})
	if known, there, _ := p.breakers.PeekOrAdd(host, made); there {
		return known
	}
	return made
}

// judge makes of an answer, or of none, what an attempt came to.
func (p *poster) judge(a answer, err error) posted {
	var refused *egress.Refused
	var timeout net.Error
	var dns *net.DNSError
	switch {
	case errors.Is(err, gobreaker.ErrOpenState):
		return posted{notYet: p.cfg.BreakerOpen, hold: true}
	case errors.Is(err, gobreaker.ErrTooManyRequests): // one is on its way, to see whether the host is back
		return posted{notYet: p.cfg.Pause, hold: true}
	case err == nil || errors.Is(err, errAnswer):
		return judgeAnswer(a, time.Now())
	case errors.As(err, &refused):
		// Its name may lead elsewhere tomorrow, as the receiver's own doing.
		return posted{code: "address_refused", message: "the address " + refused.Reason}
	case errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, os.ErrDeadlineExceeded):
		return posted{code: "timeout", message: "no answer within WEBHOOK_TIMEOUT"}
	case errors.As(err, &dns):
		return posted{code: "name_not_resolved", message: "the host's name could not be resolved"}
	}
	return posted{code: "unreachable", message: "the receiver could not be reached, or its answer was no HTTP"}
}

func judgeAnswer(a answer, now time.Time) posted {
	status := a.status
	result := posted{status: status, retryAfter: retryAfter(a.retryAfter, now)}
	switch {
	case status >= 200 && status < 300:
		return result
	case status >= 300 && status < 400:
		result.code, result.message = "redirect", fmt.Sprintf("the receiver answered %d: redirects are not followed", status)
	case status == http.StatusGone:
		result.code, result.message, result.final = "gone", "the receiver answered 410: it wants no more", true
	default:
		result.code, result.message = "status", fmt.Sprintf("the receiver answered %d", status)
	}
	return result
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(header string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(header, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
