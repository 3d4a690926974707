package api

import (
	"net/http"
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/internal/apikeys"
)

// Session says who a request is from.
type Session struct {
	Authentication string     `json:"authentication" description:"keys, or off where nobody is asked for one"`
	SignedIn       bool       `json:"signed_in" description:"Whether the request has a valid key or session"`
	KeyID          string     `json:"key_id"`
	Name           string     `json:"name" description:"What the key's maker called it"`
	Tenant         string     `json:"tenant"`
	Scopes         []string   `json:"scopes" description:"submit, read, operate: what may be done"`
	ExpiresAt      *time.Time `json:"expires_at" description:"When the key expires; null where it does not"`
}

func (s *Server) sessionOf(who apikeys.Identity) Session {
	answer := Session{Authentication: s.cfg.Auth.Mode, SignedIn: who.KeyID != "", KeyID: who.KeyID, Name: who.Name, Tenant: who.Tenant, Scopes: []string{}}
	for _, scope := range who.Scopes {
		answer.Scopes = append(answer.Scopes, string(scope))
	}
	if !who.ExpiresAt.IsZero() {
		answer.ExpiresAt = &who.ExpiresAt
	}
	return answer
}

// session answers GET /api/session.
func (s *Server) session(c fuego.ContextNoBody) (Session, error) {
	return s.sessionOf(apikeys.From(c.Context())), nil
}

// signIn answers POST /api/session: a browser is given a cookie in place of the key. A stream of
// events, which can have no headers of its own, then works, and no script can read it.
func (s *Server) signIn(c fuego.ContextNoBody) (Session, error) {
	who := apikeys.From(c.Context())
	if s.cfg.Auth.Mode == AuthOff {
		return s.sessionOf(who), nil
	}
	if who.KeyID == "" {
		challenge(c.Response(), "")
		return Session{}, problem(http.StatusUnauthorized, "Send the API key to sign in with as Authorization: Bearer KEY.")
	}
	// A session makes no session: it would never end.
	key, _ := keyOf(c.Request())
	shown, err := apikeys.ParseKey(key)
	if err != nil {
		challenge(c.Response(), "")
		return Session{}, problem(http.StatusUnauthorized, "A session is there already; send an API key as Authorization: Bearer KEY to begin another.")
	}
	setSession(c.Response(), c.Request(), shown.Session(), s.cfg.Auth.SessionTTL)
	return s.sessionOf(who), nil
}

// signOut answers DELETE /api/session.
func (s *Server) signOut(c fuego.ContextNoBody) (Session, error) {
	setSession(c.Response(), c.Request(), "", forget)
	if s.cfg.Auth.Mode == AuthOff {
		return s.sessionOf(apikeys.From(c.Context())), nil
	}
	return s.sessionOf(apikeys.Identity{}), nil
}

// forget is the age of a cookie that a browser is to drop.
const forget = -time.Second

// setSession has a browser keep what it is signed in with.
func setSession(w http.ResponseWriter, r *http.Request, value string, ttl time.Duration) {
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: value, Path: "/api/", MaxAge: int(ttl.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https"})
}
