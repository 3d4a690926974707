package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rs/cors"

	"github.com/pixtools/pixtools/internal/apikeys"
)

// What API_AUTH may be.
const (
	// AuthKeys: every request but those for health, the page and the description needs a key.
	AuthKeys = "keys"
	// AuthOff: nobody is asked for one, and whoever reaches the address may do everything.
	AuthOff = "off"
)

const (
	keyHeader     = "X-API-Key"
	sessionCookie = "pixtools_session"
	// mostPerMinute bounds the limits that may be configured.
	mostPerMinute = 1_000_000
	// preflightTTL is how long a browser need not ask again.
	preflightTTL = 10 * time.Minute
)

// AuthConfig says who may send requests, from where, and how many.
type AuthConfig struct {
	// Mode says whether API keys are asked for.
	Mode string `env:"API_AUTH" derived:"off where a part is embedded and the address is a loopback one, else keys" range:"keys, off" example:"keys"`
	// SessionTTL is how long a browser keeps what it was signed in with.
	// Beyond it: the page asks for the key again.
	SessionTTL time.Duration `env:"API_SESSION_TTL" envDefault:"12h" range:"1m to 720h"`
	// SubmitsPerMinute bounds the requests of one key in a minute that change something; 0 is no limit.
	// Beyond it: 429 with Retry-After.
	SubmitsPerMinute int `env:"RATE_LIMIT_SUBMITS_PER_MINUTE" envDefault:"1200" range:"0 to 1000000" unit:"requests"`
	// ReadsPerMinute bounds the requests of one key in a minute that change nothing; 0 is no limit.
	// Beyond it: 429 with Retry-After.
	ReadsPerMinute int `env:"RATE_LIMIT_READS_PER_MINUTE" envDefault:"12000" range:"0 to 1000000" unit:"requests"`
	// Origins are those whose pages may read answers, exactly as a browser sends them. Where no keys
	// are asked for on a loopback address, their names may be used for it.
	// Beyond it: a page of another origin hears nothing; another name is 421.
	Origins []string `env:"CORS_ORIGINS" example:"https://shop.example"`
}

// Validate names every value out of range.
func (c AuthConfig) Validate() error {
	var faults []error
	if !slices.Contains([]string{"", AuthKeys, AuthOff}, c.Mode) {
		faults = append(faults, fmt.Errorf("API_AUTH is %q: it must be keys or off, or unset", c.Mode))
	}
	if c.SessionTTL < time.Minute || c.SessionTTL > 30*24*time.Hour {
		faults = append(faults, fmt.Errorf("API_SESSION_TTL is %s: it must be from 1m to 720h", c.SessionTTL))
	}
	for name, n := range map[string]int{"RATE_LIMIT_SUBMITS_PER_MINUTE": c.SubmitsPerMinute, "RATE_LIMIT_READS_PER_MINUTE": c.ReadsPerMinute} {
		if n < 0 || n > mostPerMinute {
			faults = append(faults, fmt.Errorf("%s is %d: it must be from 1 to %d requests a minute, or 0 for no limit", name, n, mostPerMinute))
		}
	}
	for _, origin := range c.Origins {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Contains(origin, "*") || u.Scheme+"://"+u.Host != origin {
			faults = append(faults, fmt.Errorf("CORS_ORIGINS is %q: each must be an exact origin, such as https://shop.example or http://localhost:3000, without a path and without *", origin))
		}
	}
	return errors.Join(faults...)
}

// tenantOf is the tenant whose request this is.
func tenantOf(ctx context.Context) string { return apikeys.From(ctx).Tenant }

// crossOrigin lets pages of the configured origins read answers. They send a key in a header:
// cookies are for our own page.
func (s *Server) crossOrigin(next http.Handler) http.Handler {
	if len(s.cfg.Auth.Origins) == 0 {
		return next
	}
	return cors.New(cors.Options{
		AllowedOrigins: s.cfg.Auth.Origins,
		AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete},
		AllowedHeaders: []string{"Authorization", keyHeader, "Content-Type", "Idempotency-Key", requestIDHeader, "Last-Event-ID", "traceparent", "tracestate"},
		ExposedHeaders: []string{PositionHeader, requestIDHeader, "Location", "Retry-After", rateLimitHeader, rateLimitPolicyHeader, "WWW-Authenticate"},
		MaxAge:         int(preflightTTL.Seconds()),
	}).Handler(next)
}

// ownPage refuses what another site's page has a browser send: a browser adds the cookie of
// a session, and its way to an address that asks for no keys, by itself.
func ownPage(cfg AuthConfig) (*http.CrossOriginProtection, error) {
	protection := http.NewCrossOriginProtection()
	if cfg.Mode == AuthOff {
		for _, origin := range cfg.Origins {
			if err := protection.AddTrustedOrigin(origin); err != nil {
				return nil, fmt.Errorf("CORS_ORIGINS: %w", err)
			}
		}
	}
	return protection, nil
}

// OwnNames refuses what is sent to a name that is not ours. It is for where nobody is asked for a
// key since only this machine reaches the address: the page of another site may have that site's
// name lead to this machine (DNS rebinding), and its browser then takes our answers for its own
// site's. An address in numbers leads nowhere else, and what sends no Host is no browser.
func OwnNames(cfg AuthConfig, host string, next http.Handler) http.Handler {
	own := []string{"", "localhost", nameIn(host)}
	for _, origin := range cfg.Origins {
		if u, err := url.Parse(origin); err == nil {
			own = append(own, nameIn(u.Host))
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := nameIn(r.Host)
		if _, err := netip.ParseAddr(name); err == nil || slices.Contains(own, name) || strings.HasSuffix(name, ".localhost") {
			next.ServeHTTP(w, r)
			return
		}
		identify(w, r)
		problem(http.StatusMisdirectedRequest, fmt.Sprintf("PixTools asks for no API keys here, and so answers to no name that another site may have given to this machine, such as %s. Use localhost or 127.0.0.1; if the name is yours, put its origin into CORS_ORIGINS.", clipped(name))).write(w)
	})
}

// nameIn is the name or address in a Host header, as names are compared.
func nameIn(host string) string {
	return strings.ToLower(strings.TrimSuffix((&url.URL{Host: host}).Hostname(), "."))
}

// enter says who sends a request for a route, or why it is not let in.
func (s *Server) enter(w http.ResponseWriter, r *http.Request, pattern string) (apikeys.Identity, error) {
	scope, guarded := s.access[pattern]
	if !guarded {
		return apikeys.Identity{}, nil
	}
	who, err := s.sender(w, r)
	if err != nil {
		return who, err
	}
	w.Header().Set("Cache-Control", "no-store") // it is one tenant's
	switch {
	case scope == anyScope, s.cfg.Auth.Mode == AuthOff:
		return who, nil
	case who.KeyID == "":
		challenge(w, "")
		return who, problem(http.StatusUnauthorized, "This needs an API key: send it as Authorization: Bearer KEY, or as X-API-Key. `pixtools keys create` makes one.")
	case !who.May(scope):
		challenge(w, fmt.Sprintf(`error="insufficient_scope", scope=%q`, scope))
		return who, problem(http.StatusForbidden, fmt.Sprintf("The API key %s may not do this: it lacks the scope %s. Use a key that has it; `pixtools keys create --scope` makes one.", who.KeyID, scope))
	}
	return who, s.limit(r, w, who)
}

// sender is who sends a request: nobody where it shows no key, or the session of one that has
// ended. The error says what is wrong with the key that it shows.
func (s *Server) sender(w http.ResponseWriter, r *http.Request) (apikeys.Identity, error) {
	key, ok := keyOf(r)
	if !ok {
		challenge(w, `error="invalid_request"`)
		return apikeys.Identity{}, problem(http.StatusUnauthorized, "Authorization and X-API-Key have different keys: send one of them.")
	}
	if key == "" {
		if err := s.ownPage.Check(r); err != nil {
			return apikeys.Identity{}, problem(http.StatusForbidden, fmt.Sprintf("This was sent by a page of another origin (%s). Send an API key in a header from there; where none is asked for, name the origin in CORS_ORIGINS.", cmp.Or(r.Header.Get("Origin"), "it does not tell which")))
		}
	}
	if s.cfg.Auth.Mode == AuthOff {
		return apikeys.Anyone(), nil
	}
	if key == "" {
		return s.sessionSender(w, r)
	}
	shown, err := apikeys.ParseKey(key)
	var who apikeys.Identity
	if err == nil {
		who, err = s.APIKeys.Find(r.Context(), shown)
	}
	what := "This API key is not valid: there is none like it."
	switch {
	case err == nil:
		return who, nil
	case errors.Is(err, apikeys.ErrUnavailable):
		return who, unavailable("This API key cannot be checked: it is not in memory, and the database cannot be asked now.", err)
	case errors.Is(err, apikeys.ErrExpired):
		what = "This API key has expired."
	case errors.Is(err, apikeys.ErrRevoked):
		what = "This API key was revoked."
	}
	s.Log.InfoContext(r.Context(), "an API key was refused", "key", shown.ID, "reason", err)
	challenge(w, `error="invalid_token"`)
	return apikeys.Identity{}, problem(http.StatusUnauthorized, what+" `pixtools keys create` makes another.")
}

// sessionSender is who a browser was signed in as.
func (s *Server) sessionSender(w http.ResponseWriter, r *http.Request) (apikeys.Identity, error) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return apikeys.Identity{}, nil
	}
	shown, err := apikeys.ParseSession(cookie.Value)
	var who apikeys.Identity
	if err == nil {
		who, err = s.APIKeys.Find(r.Context(), shown)
	}
	if errors.Is(err, apikeys.ErrUnavailable) {
		return who, unavailable("The session cannot be checked: its key is not in memory, and the database cannot be asked now.", err)
	}
	if err != nil {
		s.Log.InfoContext(r.Context(), "a session has ended", "key", shown.ID, "reason", err)
		setSession(w, r, "", forget)
		return apikeys.Identity{}, nil
	}
	return who, nil
}

// keyEnded says whether the key that a request was let in with has been revoked since, or has expired.
func (s *Server) keyEnded(ctx context.Context) bool {
	id := apikeys.From(ctx).KeyID
	return id != "" && s.APIKeys.Ended(ctx, id)
}

// keyOf is the key in a request's headers; ok is false where there are two.
func keyOf(r *http.Request) (key string, ok bool) {
	key = r.Header.Get(keyHeader)
	scheme, bearer, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return key, true
	}
	bearer = strings.TrimSpace(bearer)
	return bearer, key == "" || key == bearer
}

// challenge says how to send a key (RFC 6750).
func challenge(w http.ResponseWriter, more string) {
	text := `Bearer realm="PixTools"`
	if more != "" {
		text += ", " + more
	}
	w.Header().Set("WWW-Authenticate", text)
}
