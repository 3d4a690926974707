package apikeys

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pixtools/pixtools/internal/secrets"
)

const (
	// longestTenant and longestName are in bytes.
	longestTenant = 63
	longestName   = 100
	// mostPerMinute bounds the limits that a key may have of its own.
	mostPerMinute = 1_000_000
)

// Key is a key as it is listed: without anything that could be sent as one.
type Key struct {
	ID               string     `json:"id"`
	Tenant           string     `json:"tenant"`
	Name             string     `json:"name"`
	Scopes           []Scope    `json:"scopes"`
	SubmitsPerMinute *int       `json:"submits_per_minute"`
	ReadsPerMinute   *int       `json:"reads_per_minute"`
	CreatedAt        time.Time  `json:"created_at"`
	ExpiresAt        *time.Time `json:"expires_at"`
	RevokedAt        *time.Time `json:"revoked_at"`
	// LastUsedAt is to the hour.
	LastUsedAt *time.Time `json:"last_used_at"`

	stored []byte
}

const columns = "key_id, tenant, name, scopes, submits_per_minute, reads_per_minute, created_at, expires_at, revoked_at, last_used_at, stored"

func scanKey(row pgx.CollectableRow) (Key, error) {
	var k Key
	err := row.Scan(&k.ID, &k.Tenant, &k.Name, &k.Scopes, &k.SubmitsPerMinute, &k.ReadsPerMinute, &k.CreatedAt, &k.ExpiresAt, &k.RevokedAt, &k.LastUsedAt, &k.stored)
	return k, err
}

// State is VALID, EXPIRED or REVOKED.
func (k Key) State(now time.Time) string {
	switch {
	case k.RevokedAt != nil:
		return "REVOKED"
	case k.ExpiresAt != nil && !now.Before(*k.ExpiresAt):
		return "EXPIRED"
	}
	return "VALID"
}

func (k Key) identity() Identity {
	i := Identity{Tenant: k.Tenant, KeyID: k.ID, Name: k.Name, Scopes: k.Scopes, SubmitsPerMinute: k.SubmitsPerMinute, ReadsPerMinute: k.ReadsPerMinute}
	if k.ExpiresAt != nil {
		i.ExpiresAt = *k.ExpiresAt
	}
	return i
}

// Migrate makes the table, in the schema that no rebuild touches.
func Migrate(ctx context.Context, pool *pgxpool.Pool) error {
	return secrets.Prepare(ctx, pool, `CREATE TABLE IF NOT EXISTS pixtools_secrets.api_keys (
		key_id             text PRIMARY KEY,
		stored             bytea NOT NULL,
		tenant             text NOT NULL,
		name               text NOT NULL,
		scopes             text[] NOT NULL,
		submits_per_minute integer,
		reads_per_minute   integer,
		created_at         timestamptz NOT NULL DEFAULT now(),
		expires_at         timestamptz,
		revoked_at         timestamptz,
		last_used_at       timestamptz)`)
}

// Request says what key is wanted.
type Request struct {
	Tenant, Name string
	Scopes       []Scope
	// Lifetime: 0 for a key that does not expire.
	Lifetime                         time.Duration
	SubmitsPerMinute, ReadsPerMinute *int
}

// tenantForm keeps names apart from what would need quoting anywhere.
var tenantForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// CheckTenant says what is wrong with a tenant's name that --tenant gives.
func CheckTenant(name string) error {
	if !tenantForm.MatchString(name) || len(name) > longestTenant {
		return fmt.Errorf("--tenant is %q: it must be 1 to %d letters, digits, dots, dashes and underscores, and begin with a letter or digit", name, longestTenant)
	}
	return nil
}

// Validate names every fault.
func (r Request) Validate() error {
	faults := []error{CheckTenant(r.Tenant)}
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if r.Name == "" || len(r.Name) > longestName || slices.ContainsFunc([]rune(r.Name), func(c rune) bool { return c < ' ' || c == 0x7f }) {
		fault("--name is %q: it must be 1 to %d bytes without control characters, and say who uses the key", r.Name, longestName)
	}
	if len(r.Scopes) == 0 {
		fault("--scope names nothing; there are submit, read and operate")
	}
	for i, scope := range r.Scopes {
		if !slices.Contains(Scopes, scope) {
			fault("--scope: %q is no scope; there are submit, read and operate", scope)
		}
		if slices.Contains(r.Scopes[:i], scope) {
			fault("--scope names %s more than once", scope)
		}
	}
	if r.Lifetime < 0 || r.Lifetime > 0 && r.Lifetime < time.Minute {
		fault("--expires is %s: it must be 1m or more, or not given", r.Lifetime)
	}
	for name, n := range map[string]*int{"--submits-per-minute": r.SubmitsPerMinute, "--reads-per-minute": r.ReadsPerMinute} {
		if n != nil && (*n < 0 || *n > mostPerMinute) {
			fault("%s is %d: it must be from 1 to %d requests a minute, or 0 for no limit", name, *n, mostPerMinute)
		}
	}
	return errors.Join(faults...)
}

// ErrTooMany says that there are as many valid keys as API processes hold in memory.
var ErrTooMany = errors.New("there are as many valid API keys as API_KEYS_MAX allows; revoke some, or allow more")

// Create makes a key, and returns its text, which nobody can tell again.
func Create(ctx context.Context, pool *pgxpool.Pool, cfg Config, r Request) (text string, k Key, err error) {
	if err := r.Validate(); err != nil {
		return "", k, err
	}
	text, shown, err := draw()
	if err != nil {
		return "", k, err
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// One at a time, so that they cannot be more together than each has seen.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('pixtools api keys'))"); err != nil {
			return err
		}
		var valid int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM pixtools_secrets.api_keys WHERE "+isValid).Scan(&valid); err != nil {
			return err
		}
		if valid >= cfg.MaxKeys {
			return fmt.Errorf("%w (%d)", ErrTooMany, cfg.MaxKeys)
		}
		var seconds *float64 // by the database's clock, by which it expires, too, in lists
		if r.Lifetime > 0 {
			s := r.Lifetime.Seconds()
			seconds = &s
		}
		rows, err := tx.Query(ctx, `INSERT INTO pixtools_secrets.api_keys (key_id, stored, tenant, name, scopes, submits_per_minute, reads_per_minute, expires_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8)) RETURNING `+columns,
			shown.ID, shown.stored(), r.Tenant, r.Name, r.Scopes, r.SubmitsPerMinute, r.ReadsPerMinute, seconds)
		if err != nil {
			return err
		}
		k, err = pgx.CollectExactlyOneRow(rows, scanKey)
		return err
	})
	if err != nil {
		return "", Key{}, fmt.Errorf("store the API key: %w", err)
	}
	return text, k, nil
}

const isValid = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"

// List gives every key there ever was, of one tenant or, without one, of all; the oldest first.
func List(ctx context.Context, pool *pgxpool.Pool, tenant string) ([]Key, error) {
	return query(ctx, pool, "$1 = '' OR tenant = $1 ORDER BY created_at, key_id", tenant)
}

// ErrNoSuchKey says that no key has the id.
var ErrNoSuchKey = errors.New("there is no API key with this id; `pixtools keys list` shows those there are")

// Revoke ends a key for good. One that is revoked already stays so, with its time.
func Revoke(ctx context.Context, pool *pgxpool.Pool, id string) (Key, error) {
	rows, err := pool.Query(ctx, "UPDATE pixtools_secrets.api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE key_id = $1 RETURNING "+columns, id)
	if err != nil {
		return Key{}, fmt.Errorf("revoke the API key: %w", err)
	}
	k, err := pgx.CollectExactlyOneRow(rows, scanKey)
	if errors.Is(err, pgx.ErrNoRows) {
		return k, ErrNoSuchKey
	}
	if err != nil {
		return k, fmt.Errorf("revoke the API key: %w", err)
	}
	return k, nil
}

func query(ctx context.Context, pool *pgxpool.Pool, where string, args ...any) ([]Key, error) {
	rows, err := pool.Query(ctx, "SELECT "+columns+" FROM pixtools_secrets.api_keys WHERE "+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read the API keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, scanKey)
	if err != nil {
		return nil, fmt.Errorf("read the API keys: %w", err)
	}
	return keys, nil
}
