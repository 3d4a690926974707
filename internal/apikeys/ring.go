package apikeys

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Config bounds what an API process knows of keys.
type Config struct {
	// RefreshInterval is how often the valid keys are read: a revoked one works no longer than
	// this and one query more, while PostgreSQL answers.
	RefreshInterval time.Duration `env:"API_KEY_REFRESH_INTERVAL" envDefault:"5s" range:"100ms to 10m"`
	// OfflineTTL is how long known keys go on working while PostgreSQL does not answer, revoked
	// ones, too.
	// Beyond it: 503 with Retry-After.
	OfflineTTL time.Duration `env:"API_KEY_OFFLINE_TTL" envDefault:"24h" range:"API_KEY_REFRESH_INTERVAL to 720h"`
	// MaxKeys bounds the valid keys, which each API process has in memory.
	// Beyond it: `pixtools keys create` refuses.
	MaxKeys int `env:"API_KEYS_MAX" envDefault:"10000" range:"1 to 100000" unit:"keys"`
	// MaxLookups bounds the keys that PostgreSQL is asked for at once, since they are not in
	// memory.
	// Beyond it: 503 with Retry-After.
	MaxLookups int `env:"API_KEY_MAX_LOOKUPS" envDefault:"8" range:"1 to 1000" unit:"queries"`
}

// Validate names every value out of range.
func (c Config) Validate() error {
	var faults []error
	if c.RefreshInterval < 100*time.Millisecond || c.RefreshInterval > 10*time.Minute {
		faults = append(faults, fmt.Errorf("API_KEY_REFRESH_INTERVAL is %s: it must be from 100ms to 10m", c.RefreshInterval))
	}
	if c.OfflineTTL < c.RefreshInterval || c.OfflineTTL > 30*24*time.Hour {
		faults = append(faults, fmt.Errorf("API_KEY_OFFLINE_TTL is %s: it must be from API_KEY_REFRESH_INTERVAL, %s, to 720h", c.OfflineTTL, c.RefreshInterval))
	}
	if c.MaxKeys < 1 || c.MaxKeys > 100_000 {
		faults = append(faults, fmt.Errorf("API_KEYS_MAX is %d: it must be from 1 to 100000 keys", c.MaxKeys))
	}
	if c.MaxLookups < 1 || c.MaxLookups > 1000 {
		faults = append(faults, fmt.Errorf("API_KEY_MAX_LOOKUPS is %d: it must be from 1 to 1000 queries", c.MaxLookups))
	}
	return errors.Join(faults...)
}

// Why a key is not accepted.
var (
	ErrUnknown     = errors.New("there is no such API key")
	ErrExpired     = errors.New("the API key has expired")
	ErrRevoked     = errors.New("the API key was revoked")
	ErrUnavailable = errors.New("the API key cannot be checked: it is not in memory, and the database cannot be asked now")
)

// Ring has every valid key in memory, so that requests wait for no database, and go on
// without one.
type Ring struct {
	cfg     Config
	pool    *pgxpool.Pool
	timeout time.Duration
	log     *slog.Logger
	held    atomic.Pointer[held]
	// lookups holds a token per key that PostgreSQL is asked for.
	lookups chan struct{}

	mu sync.Mutex
	// used are the ids that were used since the last refresh; told says of which hour of which
	// key the database has heard.
	used map[string]struct{}
	told map[string]int64
}

// held are the keys that were valid at a time.
type held struct {
	at   time.Time
	keys map[string]Key
}

// NewRing makes a ring over the table that Migrate makes; timeout bounds a query. Load fills it.
func NewRing(cfg Config, pool *pgxpool.Pool, timeout time.Duration, log *slog.Logger) *Ring {
	return &Ring{cfg: cfg, pool: pool, timeout: timeout, log: log, lookups: make(chan struct{}, cfg.MaxLookups),
		used: map[string]struct{}{}, told: map[string]int64{}}
}

// Load reads the valid keys.
func (r *Ring) Load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	next := held{time.Now(), map[string]Key{}} // before the query: what it does not see is later
	keys, err := query(ctx, r.pool, isValid+" LIMIT $1", r.cfg.MaxKeys)
	if err != nil {
		return err
	}
	for _, k := range keys {
		next.keys[k.ID] = k
	}
	r.held.Store(&next)
	return nil
}

// Tenants are those that have a valid key.
func (r *Ring) Tenants() []string {
	all := map[string]struct{}{}
	for _, k := range r.held.Load().keys {
		all[k.Tenant] = struct{}{}
	}
	return slices.Sorted(maps.Keys(all))
}

// Run reads the valid keys again and again until ctx is done. After each time it calls then.
func (r *Ring) Run(ctx context.Context, then func(context.Context)) error {
	tick := time.NewTicker(r.cfg.RefreshInterval)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := r.Load(ctx)
		if err == nil {
			err = r.tellUse(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			r.log.Warn("the API keys cannot be read; those in memory go on working", "error", err, "until", r.held.Load().at.Add(r.cfg.OfflineTTL))
		}
		if failing = err != nil; !failing {
			then(ctx)
		}
	}
}

// tellUse notes which keys were used in this hour. It passes over rows that another process
// holds, which has the same to tell.
func (r *Ring) tellUse(ctx context.Context) error {
	hour := time.Now().Unix() / 3600
	var ids []string
	r.mu.Lock()
	for id := range r.used {
		if r.told[id] != hour {
			ids = append(ids, id)
		}
	}
	clear(r.used)
	r.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	if _, err := r.pool.Exec(ctx, `UPDATE pixtools_secrets.api_keys SET last_used_at = date_trunc('hour', now()) WHERE key_id IN (
		SELECT key_id FROM pixtools_secrets.api_keys WHERE key_id = ANY($1) AND (last_used_at IS NULL OR last_used_at < date_trunc('hour', now()))
		FOR UPDATE SKIP LOCKED)`, ids); err != nil {
		return fmt.Errorf("note that API keys were used: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := r.held.Load().keys
	maps.DeleteFunc(r.told, func(id string, _ int64) bool { _, valid := keys[id]; return !valid })
	for _, id := range ids {
		r.told[id] = hour
	}
	return nil
}

// Find is whose key this is. The error is one of those above.
func (r *Ring) Find(ctx context.Context, p Presented) (Identity, error) {
	now := time.Now()
	k, err := r.key(ctx, p.ID, now)
	if err != nil {
		return Identity{}, err
	}
	if subtle.ConstantTimeCompare(k.stored, p.stored()) != 1 {
		return Identity{}, ErrUnknown
	}
	switch k.State(now) {
	case "REVOKED":
		return Identity{}, ErrRevoked
	case "EXPIRED":
		return Identity{}, ErrExpired
	}
	r.mu.Lock()
	r.used[k.ID] = struct{}{}
	r.mu.Unlock()
	return k.identity(), nil
}

// Ended says whether a key that was let in is none any more, for what goes on long after. Where
// nobody can tell, it is one still.
func (r *Ring) Ended(ctx context.Context, id string) bool {
	now := time.Now()
	k, err := r.key(ctx, id, now)
	if err != nil {
		return errors.Is(err, ErrUnknown)
	}
	return k.State(now) != "VALID"
}

// key is a key from memory, or else from the database. One that is not in memory may have been
// made a moment ago. It is not put there: a refresh that saw it revoked may have come between,
// and would be undone.
func (r *Ring) key(ctx context.Context, id string, now time.Time) (Key, error) {
	known := r.held.Load()
	if k, found := known.keys[id]; found && now.Sub(known.at) <= r.cfg.OfflineTTL {
		return k, nil
	}
	return r.lookUp(ctx, id)
}

func (r *Ring) lookUp(ctx context.Context, id string) (Key, error) {
	select {
	case r.lookups <- struct{}{}:
		defer func() { <-r.lookups }()
	default:
		return Key{}, fmt.Errorf("%w: %d are being looked up, the limit (API_KEY_MAX_LOOKUPS)", ErrUnavailable, r.cfg.MaxLookups)
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	keys, err := query(ctx, r.pool, "key_id = $1", id)
	switch {
	case err != nil:
		return Key{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case len(keys) == 0:
		return Key{}, ErrUnknown
	}
	return keys[0], nil
}
