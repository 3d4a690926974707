package secrets

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// webhookSecretBytes: the Standard Webhooks specification wants 24 to 64.
	webhookSecretBytes = 32
	// MaxWebhookSecrets bounds those of a tenant that sign at once: each is a signature in
	// a header.
	MaxWebhookSecrets = 5
)

var (
	// ErrNoSecret says that a tenant has no such secret that signs.
	ErrNoSecret = errors.New("there is no such secret, or it was revoked before")
	// ErrTooManySecrets says that as many sign as may.
	ErrTooManySecrets = fmt.Errorf("%d secrets sign already, the most there may be: revoke one first", MaxWebhookSecrets)
)

// WebhookSecret is a key with which a tenant's webhooks are signed until it is revoked.
// Several sign at once, so that a receiver can change from one to the next.
type WebhookSecret struct {
	ID        uuid.UUID
	Key       []byte
	CreatedAt time.Time
	RevokedAt *time.Time
}

// Text is the secret as receivers' libraries take it.
func (s WebhookSecret) Text() string { return "whsec_" + base64.StdEncoding.EncodeToString(s.Key) }

// Webhooks are the tenants' signing secrets and default addresses, in the schema that
// Migrate makes.
type Webhooks struct {
	pool    *pgxpool.Pool
	timeout time.Duration
	// fresh is for how long secrets that were read are not read again. Where the database
	// is away they sign on.
	fresh time.Duration

	mu        sync.Mutex
	signing   map[string]signing
	addresses map[string]string
}

type signing struct {
	keys [][]byte
	read time.Time
}

// NewWebhooks makes them; timeout bounds one question to the database.
func NewWebhooks(pool *pgxpool.Pool, timeout, fresh time.Duration) *Webhooks {
	return &Webhooks{pool: pool, timeout: timeout, fresh: fresh, signing: map[string]signing{}, addresses: map[string]string{}}
}

// webhookTables are part of the secrets' schema.
var webhookTables = []string{
	`CREATE TABLE IF NOT EXISTS pixtools_secrets.webhook_secrets (
		secret_id  uuid PRIMARY KEY,
		tenant     text NOT NULL,
		key        bytea NOT NULL,
		created_at timestamptz NOT NULL DEFAULT now(),
		revoked_at timestamptz)`,
	"CREATE INDEX IF NOT EXISTS webhook_secrets_by_tenant ON pixtools_secrets.webhook_secrets (tenant, created_at)",
	`CREATE TABLE IF NOT EXISTS pixtools_secrets.webhook_addresses (
		tenant  text PRIMARY KEY,
		address text NOT NULL)`,
}

// Signing are the keys that sign a tenant's webhooks now, the newest first. A tenant
// without one gets one, but ErrForgotten where it was forgotten and has sent nothing since: what
// still waits of it is to be posted nowhere.
func (w *Webhooks) Signing(ctx context.Context, tenant string) ([][]byte, error) {
	w.mu.Lock()
	known, ok := w.signing[tenant]
	w.mu.Unlock()
	if ok && time.Since(known.read) < w.fresh {
		return known.keys, nil
	}
	keys, err := w.readSigning(ctx, tenant)
	if err != nil && ok && !errors.Is(err, ErrForgotten) {
		return known.keys, nil
	}
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.signing[tenant] = signing{keys, time.Now()}
	return keys, nil
}

func (w *Webhooks) readSigning(ctx context.Context, tenant string) (keys [][]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	if keys, err = active(ctx, w.pool, tenant); err != nil || len(keys) > 0 {
		return keys, err
	}
	err = alone(ctx, w.pool, tenant, func(tx pgx.Tx) error {
		if keys, err = active(ctx, tx, tenant); err != nil || len(keys) > 0 {
			return err // another process made it
		}
		var forgotten bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pixtools_secrets.forgotten_keys WHERE tenant = $1)
			AND NOT EXISTS (SELECT FROM pixtools_secrets.tenant_keys WHERE tenant = $1)`, tenant).Scan(&forgotten); err != nil {
			return fmt.Errorf("ask whether tenant %s was forgotten: %w", tenant, err)
		}
		if forgotten {
			return ErrForgotten
		}
		made, err := insertSecret(ctx, tx, tenant)
		keys = [][]byte{made.Key}
		return err
	})
	return keys, err
}

// alone has one process at a time change a tenant's secrets.
func alone(ctx context.Context, pool *pgxpool.Pool, tenant string, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('pixtools webhook secrets'), hashtext($1))", tenant); err != nil {
			return fmt.Errorf("lock the webhook secrets of tenant %s: %w", tenant, err)
		}
		return do(tx)
	})
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func active(ctx context.Context, from querier, tenant string) ([][]byte, error) {
	rows, err := from.Query(ctx, "SELECT key FROM pixtools_secrets.webhook_secrets WHERE tenant = $1 AND revoked_at IS NULL ORDER BY created_at DESC, secret_id", tenant)
	if err != nil {
		return nil, fmt.Errorf("read the webhook secrets of tenant %s: %w", tenant, err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return nil, fmt.Errorf("read the webhook secrets of tenant %s: %w", tenant, err)
	}
	return keys, nil
}

func insertSecret(ctx context.Context, tx pgx.Tx, tenant string) (WebhookSecret, error) {
	s := WebhookSecret{ID: uuid.New(), Key: make([]byte, webhookSecretBytes)}
	if _, err := rand.Read(s.Key); err != nil {
		return s, err
	}
	err := tx.QueryRow(ctx, "INSERT INTO pixtools_secrets.webhook_secrets (secret_id, tenant, key) VALUES ($1, $2, $3) RETURNING created_at", s.ID, tenant, s.Key).Scan(&s.CreatedAt)
	if err != nil {
		return s, fmt.Errorf("store a webhook secret of tenant %s: %w", tenant, err)
	}
	return s, nil
}

// CreateSecret makes another secret for a tenant, which signs beside those that are there.
func (w *Webhooks) CreateSecret(ctx context.Context, tenant string) (made WebhookSecret, err error) {
	err = alone(ctx, w.pool, tenant, func(tx pgx.Tx) error {
		keys, err := active(ctx, tx, tenant)
		if err != nil {
			return err
		}
		if len(keys) >= MaxWebhookSecrets {
			return ErrTooManySecrets
		}
		made, err = insertSecret(ctx, tx, tenant)
		return err
	})
	return made, err
}

// Secrets are all of a tenant's, the oldest first, revoked ones too.
func (w *Webhooks) Secrets(ctx context.Context, tenant string) ([]WebhookSecret, error) {
	rows, err := w.pool.Query(ctx, "SELECT secret_id, key, created_at, revoked_at FROM pixtools_secrets.webhook_secrets WHERE tenant = $1 ORDER BY created_at, secret_id", tenant)
	if err != nil {
		return nil, fmt.Errorf("read the webhook secrets of tenant %s: %w", tenant, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[WebhookSecret])
	if err != nil {
		return nil, fmt.Errorf("read the webhook secrets of tenant %s: %w", tenant, err)
	}
	return all, nil
}

// RevokeSecret has a secret sign no more. Its key is forgotten.
func (w *Webhooks) RevokeSecret(ctx context.Context, tenant string, id uuid.UUID) error {
	done, err := w.pool.Exec(ctx, "UPDATE pixtools_secrets.webhook_secrets SET revoked_at = now(), key = '' WHERE tenant = $1 AND secret_id = $2 AND revoked_at IS NULL", tenant, id)
	if err != nil {
		return fmt.Errorf("revoke a webhook secret of tenant %s: %w", tenant, err)
	}
	if done.RowsAffected() == 0 {
		return ErrNoSecret
	}
	return nil
}

// Address is where a tenant's webhooks go that name no address themselves, as ReadAddresses
// found it; "" if there is none.
func (w *Webhooks) Address(tenant string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.addresses[tenant]
}

// ReadAddresses takes every tenant's address into memory, so that a submission need not
// ask.
func (w *Webhooks) ReadAddresses(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	rows, err := w.pool.Query(ctx, "SELECT tenant, address FROM pixtools_secrets.webhook_addresses")
	if err != nil {
		return fmt.Errorf("read the tenants' webhook addresses: %w", err)
	}
	found := map[string]string{}
	var tenant, address string
	if _, err := pgx.ForEachRow(rows, []any{&tenant, &address}, func() error {
		found[tenant] = address
		return nil
	}); err != nil {
		return fmt.Errorf("read the tenants' webhook addresses: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.addresses = found
	return nil
}

// SetAddress sets a tenant's address; "" clears it.
func (w *Webhooks) SetAddress(ctx context.Context, tenant, address string) error {
	statement, args := "DELETE FROM pixtools_secrets.webhook_addresses WHERE tenant = $1", []any{tenant}
	if address != "" {
		statement = "INSERT INTO pixtools_secrets.webhook_addresses (tenant, address) VALUES ($1, $2) ON CONFLICT (tenant) DO UPDATE SET address = excluded.address"
		args = append(args, address)
	}
	if _, err := w.pool.Exec(ctx, statement, args...); err != nil {
		return fmt.Errorf("set the webhook address of tenant %s: %w", tenant, err)
	}
	return nil
}
