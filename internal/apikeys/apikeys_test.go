package apikeys

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/testenv"
)

// A key is read back as it was made, and nothing that differs from it is a key.
func TestKeyForm(t *testing.T) {
	text, drawn, err := draw()
	require.NoError(t, err)
	require.Regexp(t, `^pixtools_[a-z2-7]{16}_[a-z2-7]{58}$`, text)
	again, other, err := draw()
	require.NoError(t, err)
	require.NotEqual(t, text, again)
	require.NotEqual(t, drawn, other)

	session, err := ParseSession(drawn.Session())
	require.NoError(t, err)
	require.Equal(t, drawn, session)
	require.NotContains(t, text, strings.TrimPrefix(drawn.Session(), drawn.ID+"_"))
	require.NotEqual(t, drawn.session[:], drawn.stored(), "what is stored opens nothing")

	for i := range len(text) {
		for _, c := range []byte("aq7_A") {
			changed := []byte(text)
			if changed[i] == c {
				continue
			}
			changed[i] = c
			_, err := ParseKey(string(changed))
			require.Error(t, err, "%s with %c at %d", text, c, i)
		}
	}
	for _, bad := range []string{"", "pixtools_", "pixtools__", text[1:], text + "a", text[:len(text)-1], strings.ToUpper(text), text + "\n", drawn.Session(), "pixtools_" + drawn.Session()} {
		_, err := ParseKey(bad)
		require.Error(t, err, "%q", bad)
	}
	for _, bad := range []string{"", "_", text, drawn.Session() + "a", drawn.Session()[1:]} {
		_, err := ParseSession(bad)
		require.Error(t, err, "%q", bad)
	}
}

func FuzzParse(f *testing.F) {
	text, drawn, err := draw()
	require.NoError(f, err)
	f.Add(text)
	f.Add(drawn.Session())
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := ParseSession(text); err == nil {
			require.Equal(t, text, p.Session())
		}
		if p, err := ParseKey(text); err == nil {
			require.True(t, IsID(p.ID))
			require.True(t, strings.HasPrefix(text, prefix+p.ID+"_"))
		}
	})
}

func testConfig(t *testing.T) Config {
	var c Config
	require.NoError(t, env.ParseWithOptions(&c, env.Options{Environment: map[string]string{}}))
	require.NoError(t, c.Validate())
	return c
}

func TestLimitsOfTheConfiguration(t *testing.T) {
	for variable, values := range map[string]struct{ good, bad []string }{
		"API_KEY_REFRESH_INTERVAL": {[]string{"100ms", "101ms", "10m"}, []string{"99ms", "10m1s"}},
		"API_KEY_OFFLINE_TTL":      {[]string{"5s", "6s", "720h"}, []string{"4s", "720h1s"}}, // as long as a refresh takes
		"API_KEYS_MAX":             {[]string{"1", "2", "100000"}, []string{"0", "100001"}},
		"API_KEY_MAX_LOOKUPS":      {[]string{"1", "2", "1000"}, []string{"0", "1001"}},
	} {
		check := func(value string) error {
			var c Config
			require.NoError(t, env.ParseWithOptions(&c, env.Options{Environment: map[string]string{variable: value}}))
			return c.Validate()
		}
		for _, value := range values.good {
			require.NoError(t, check(value), "%s=%s", variable, value)
		}
		for _, value := range values.bad {
			require.ErrorContains(t, check(value), variable+" is ", value)
		}
	}
}

func TestLimitsOfAKey(t *testing.T) {
	number := func(n int) *int { return &n }
	good := Request{Tenant: "acme", Name: "n", Scopes: []Scope{Read}}
	require.NoError(t, good.Validate())
	for _, c := range []struct {
		change func(*Request)
		names  string // empty: nothing is wrong
	}{
		{func(r *Request) { r.Tenant = strings.Repeat("t", 63) }, ""},
		{func(r *Request) { r.Tenant = strings.Repeat("t", 64) }, "--tenant"},
		{func(r *Request) { r.Tenant = "" }, "--tenant"},
		{func(r *Request) { r.Tenant = "a.b-c_D9" }, ""},
		{func(r *Request) { r.Tenant = "-a" }, "--tenant"},
		{func(r *Request) { r.Tenant = "a/b" }, "--tenant"},
		{func(r *Request) { r.Name = strings.Repeat("n", 100) }, ""},
		{func(r *Request) { r.Name = strings.Repeat("n", 101) }, "--name"},
		{func(r *Request) { r.Name = "a\nb" }, "--name"},
		{func(r *Request) { r.Scopes = Scopes }, ""},
		{func(r *Request) { r.Scopes = nil }, "--scope"},
		{func(r *Request) { r.Scopes = []Scope{"write"} }, "--scope"},
		{func(r *Request) { r.Scopes = []Scope{Read, Read} }, "--scope"},
		{func(r *Request) { r.Lifetime = time.Minute }, ""},
		{func(r *Request) { r.Lifetime = time.Minute - 1 }, "--expires"},
		{func(r *Request) { r.Lifetime = -1 }, "--expires"},
		{func(r *Request) { r.SubmitsPerMinute, r.ReadsPerMinute = number(0), number(1_000_000) }, ""},
		{func(r *Request) { r.SubmitsPerMinute = number(-1) }, "--submits-per-minute"},
		{func(r *Request) { r.ReadsPerMinute = number(1_000_001) }, "--reads-per-minute"},
	} {
		r := good
		c.change(&r)
		if c.names == "" {
			require.NoError(t, r.Validate(), "%+v", r)
		} else {
			require.ErrorContains(t, r.Validate(), c.names, "%+v", r)
		}
	}
	require.Equal(t, 3, strings.Count(Request{}.Validate().Error(), "--"), "every fault at once")
}

type world struct {
	*testing.T
	ctx  context.Context
	pool *pgxpool.Pool
	cfg  Config
}

func begin(t *testing.T, url string) world {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	pool, err := pgxpool.New(ctx, url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	var starters sync.WaitGroup
	for range 3 {
		starters.Go(func() { require.NoError(t, Migrate(ctx, pool)) })
	}
	starters.Wait()
	return world{t, ctx, pool, testConfig(t)}
}

func (w world) create(r Request) (Presented, Key) {
	w.Helper()
	text, k, err := Create(w.ctx, w.pool, w.cfg, r)
	require.NoError(w, err)
	p, err := ParseKey(text)
	require.NoError(w, err)
	require.Equal(w, p.ID, k.ID)
	return p, k
}

func (w world) ring() *Ring {
	w.Helper()
	r := NewRing(w.cfg, w.pool, time.Minute, slog.New(slog.DiscardHandler))
	require.NoError(w, r.Load(w.ctx))
	return r
}

// What is in the database is no key, and makes none.
func TestHashedAtRest(t *testing.T) {
	w := begin(t, testenv.Postgres(t))
	text, k, err := Create(w.ctx, w.pool, w.cfg, Request{Tenant: "acme", Name: "n", Scopes: []Scope{Submit, Read}})
	require.NoError(t, err)
	p, err := ParseKey(text)
	require.NoError(t, err)
	var row string
	require.NoError(t, w.pool.QueryRow(w.ctx, "SELECT api_keys::text FROM pixtools_secrets.api_keys").Scan(&row))
	raw, err := letters.DecodeString(strings.TrimPrefix(text, prefix+k.ID+"_"))
	require.NoError(t, err)
	for _, secret := range [][]byte{raw[:secretBytes], p.session[:]} {
		require.NotContains(t, row, fmt.Sprintf("%x", secret))
		require.NotContains(t, row, letters.EncodeToString(secret)[:20])
	}
	require.Contains(t, row, fmt.Sprintf("%x", p.stored()))
	// Who has read the hash may send it as a session: it is that of another.
	require.False(t, bytes.Equal(Presented{ID: k.ID, session: [32]byte(p.stored())}.stored(), p.stored()))
}

// A ring knows what is valid, and what it is; and hears of what changed.
func TestRing(t *testing.T) {
	w := begin(t, testenv.Postgres(t))
	limit := 7
	p, k := w.create(Request{Tenant: "acme", Name: "shop", Scopes: []Scope{Submit, Read}, Lifetime: time.Hour, SubmitsPerMinute: &limit})
	ring := w.ring()
	want := Identity{Tenant: "acme", KeyID: k.ID, Name: "shop", Scopes: []Scope{Submit, Read}, ExpiresAt: *k.ExpiresAt, SubmitsPerMinute: &limit}
	session, err := ParseSession(p.Session())
	require.NoError(t, err)
	for _, shown := range []Presented{p, session} {
		who, err := ring.Find(w.ctx, shown)
		require.NoError(t, err)
		require.Equal(t, want, who)
	}
	require.True(t, want.May(Read))
	require.False(t, want.May(Operate))

	wrong := p
	wrong.session[0] ^= 1
	_, err = ring.Find(w.ctx, wrong)
	require.ErrorIs(t, err, ErrUnknown)
	stranger, _, _ := draw()
	unknown, err := ParseKey(stranger)
	require.NoError(t, err)
	_, err = ring.Find(w.ctx, unknown)
	require.ErrorIs(t, err, ErrUnknown)

	later, _ := w.create(Request{Tenant: "other", Name: "n", Scopes: []Scope{Operate}})
	_, err = ring.Find(w.ctx, later)
	require.NoError(t, err, "a key that the ring has not heard of is looked up")
	require.Equal(t, []string{"acme"}, ring.Tenants())
	require.NoError(t, ring.Load(w.ctx))
	require.Equal(t, []string{"acme", "other"}, ring.Tenants())

	revoked, err := Revoke(w.ctx, w.pool, later.ID)
	require.NoError(t, err)
	again, err := Revoke(w.ctx, w.pool, later.ID)
	require.NoError(t, err)
	require.Equal(t, revoked.RevokedAt, again.RevokedAt, "the first revocation counts")
	_, err = ring.Find(w.ctx, later)
	require.NoError(t, err, "until it hears of it")
	require.NoError(t, ring.Load(w.ctx))
	_, err = ring.Find(w.ctx, later)
	require.ErrorIs(t, err, ErrRevoked)
	_, err = Revoke(w.ctx, w.pool, unknown.ID)
	require.ErrorIs(t, err, ErrNoSuchKey)

	// Expiry needs nobody to tell of it.
	held := *ring.held.Load()
	soon := time.Now()
	expired := held.keys[k.ID]
	expired.ExpiresAt = &soon
	held.keys[k.ID] = expired
	_, err = ring.Find(w.ctx, p)
	require.ErrorIs(t, err, ErrExpired)
	_, err = w.pool.Exec(w.ctx, "UPDATE pixtools_secrets.api_keys SET expires_at = now() WHERE key_id = $1", k.ID)
	require.NoError(t, err)
	require.NoError(t, ring.Load(w.ctx))
	_, err = ring.Find(w.ctx, p)
	require.ErrorIs(t, err, ErrExpired)
	all, err := List(w.ctx, w.pool, "")
	require.NoError(t, err)
	require.Equal(t, []string{"EXPIRED", "REVOKED"}, []string{all[0].State(time.Now()), all[1].State(time.Now())})
	mine, err := List(w.ctx, w.pool, "other")
	require.NoError(t, err)
	require.Len(t, mine, 1)
}

// Run hears of a revocation by itself, and tells when keys were used.
func TestRefresh(t *testing.T) {
	w := begin(t, testenv.Postgres(t))
	w.cfg.RefreshInterval = 100 * time.Millisecond
	p, k := w.create(Request{Tenant: "acme", Name: "n", Scopes: []Scope{Read}})
	idle, _ := w.create(Request{Tenant: "acme", Name: "n", Scopes: []Scope{Read}})
	ring := w.ring()
	ctx, stop := context.WithCancel(w.ctx)
	refreshed, done := make(chan struct{}, 1), make(chan error)
	go func() {
		done <- ring.Run(ctx, func(context.Context) {
			select {
			case refreshed <- struct{}{}:
			default:
			}
		})
	}()
	_, err := ring.Find(ctx, p)
	require.NoError(t, err)
	used := func() *time.Time {
		all, err := List(ctx, w.pool, "")
		require.NoError(t, err)
		for _, other := range all {
			if other.ID == idle.ID {
				require.Nil(t, other.LastUsedAt)
			}
			if other.ID == k.ID {
				return other.LastUsedAt
			}
		}
		return nil
	}
	require.Eventually(t, func() bool { return used() != nil }, time.Minute, 20*time.Millisecond)
	require.Zero(t, used().Minute()*60+used().Second(), "to the hour")
	_, err = Revoke(ctx, w.pool, k.ID)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		<-refreshed
		_, err = ring.Find(ctx, p)
		return err != nil
	}, time.Minute, time.Millisecond)
	require.ErrorIs(t, err, ErrRevoked)
	stop()
	require.NoError(t, <-done)
}

// Without PostgreSQL, known keys work, for a time; others cannot be told.
func TestWithoutPostgres(t *testing.T) {
	server, err := testenv.StartPostgres()
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	w := begin(t, server.URL)
	p, _ := w.create(Request{Tenant: "acme", Name: "n", Scopes: []Scope{Read}})
	ring := w.ring()
	other, _ := w.create(Request{Tenant: "acme", Name: "n", Scopes: []Scope{Read}})
	require.NoError(t, server.Kill())
	require.Error(t, ring.Load(w.ctx))
	_, err = ring.Find(w.ctx, p)
	require.NoError(t, err)
	_, err = ring.Find(w.ctx, other)
	require.ErrorIs(t, err, ErrUnavailable)
	ring.held.Load().at = time.Now().Add(-w.cfg.OfflineTTL - time.Second)
	_, err = ring.Find(w.ctx, p)
	require.ErrorIs(t, err, ErrUnavailable, "for API_KEY_OFFLINE_TTL, and no longer")
}

// The numbers of keys and of lookups are bounded.
func TestBounds(t *testing.T) {
	w := begin(t, testenv.Postgres(t))
	w.cfg.MaxKeys, w.cfg.MaxLookups = 2, 1
	wanted := Request{Tenant: "acme", Name: "n", Scopes: []Scope{Read}}
	var creators sync.WaitGroup
	errs := make([]error, 5)
	for i := range errs {
		creators.Go(func() { _, _, errs[i] = Create(w.ctx, w.pool, w.cfg, wanted) })
	}
	creators.Wait()
	refused := 0
	for _, err := range errs {
		if err != nil {
			require.ErrorIs(t, err, ErrTooMany)
			refused++
		}
	}
	require.Equal(t, 3, refused)
	all, err := List(w.ctx, w.pool, "")
	require.NoError(t, err)
	_, err = Revoke(w.ctx, w.pool, all[0].ID)
	require.NoError(t, err)
	w.create(wanted) // one that is revoked takes no place

	ring := w.ring()
	text, _, err := draw()
	require.NoError(t, err)
	unknown, err := ParseKey(text)
	require.NoError(t, err)
	ring.lookups <- struct{}{}
	_, err = ring.Find(w.ctx, unknown)
	require.ErrorIs(t, err, ErrUnavailable)
	<-ring.lookups
	_, err = ring.Find(w.ctx, unknown)
	require.ErrorIs(t, err, ErrUnknown)
}

func TestNobody(t *testing.T) {
	require.Equal(t, Identity{}, From(context.Background()))
	require.False(t, From(context.Background()).May(Read))
	require.True(t, From(With(context.Background(), Anyone())).May(Operate))
}
