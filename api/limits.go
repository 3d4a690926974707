package api

import (
	"fmt"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-redis/redis_rate/v10"

	"github.com/pixtools/pixtools/internal/apikeys"
)

// The fields of the IETF's draft "RateLimit header fields for HTTP", as of its version 10.
const (
	rateLimitHeader       = "RateLimit"
	rateLimitPolicyHeader = "RateLimit-Policy"
)

// limitPause is for how long Redis is not asked for limits after it did not answer: it must not
// cost every request its timeout.
const limitPause = time.Second

// limiter counts the requests of keys, in Redis, so that all processes count together. It lets
// requests come evenly, and a minute's at once from who was quiet for a minute (GCRA).
type limiter struct {
	*redis_rate.Limiter
	// askAgain is when to ask Redis again, in nanoseconds since 1970.
	askAgain atomic.Int64
}

// limit refuses a request of a key that has sent too many. Without Redis all are let through:
// it only saves us work.
func (s *Server) limit(r *http.Request, w http.ResponseWriter, who apikeys.Identity) error {
	class, most, own := "reads", s.cfg.Auth.ReadsPerMinute, who.ReadsPerMinute
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		class, most, own = "submits", s.cfg.Auth.SubmitsPerMinute, who.SubmitsPerMinute
	}
	if own != nil {
		most = *own
	}
	now := time.Now()
	if most == 0 || now.UnixNano() < s.limiter.askAgain.Load() {
		return nil
	}
	told, err := s.limiter.Allow(r.Context(), "pixtools:"+class+":"+who.KeyID, redis_rate.PerMinute(most))
	if err != nil {
		if r.Context().Err() == nil && s.limiter.askAgain.Swap(now.Add(limitPause).UnixNano()) < now.Add(-limitPause).UnixNano() {
			s.Log.Warn("Redis does not count requests; keys have no limits meanwhile", "error", err)
		}
		return nil
	}
	wait := told.ResetAfter
	if told.Allowed == 0 {
		wait = told.RetryAfter
	}
	seconds := int(math.Ceil(wait.Seconds()))
	w.Header().Set(rateLimitPolicyHeader, fmt.Sprintf(`%q;q=%d;w=60`, class, most))
	w.Header().Set(rateLimitHeader, fmt.Sprintf(`%q;r=%d;t=%d`, class, told.Remaining, seconds))
	if told.Allowed > 0 {
		return nil
	}
	p := problem(http.StatusTooManyRequests, fmt.Sprintf("The API key %s has sent its %d %s a minute; send the same request again in %d s.", who.KeyID, most, class, seconds))
	p.RetryAfter = time.Duration(seconds) * time.Second
	return p
}
